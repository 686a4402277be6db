"""The HTTP contract, against a real SQLite ledger; both stores are a port where nobody answers."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from flask.testing import FlaskClient
from werkzeug.test import TestResponse

from webhook import settings
from webhook.app import create_app
from webhook.callers import PROXY_HEADERS
from webhook.entries import Buried
from webhook.ledger import Ledger

EVENTS = "/minio/events"
TOKENS = {"WEBHOOK_AUTH_TOKEN": "hook-s3cr3t", "API_TOKEN": "api-s3cr3t"}
HOOK = {"Authorization": "Bearer hook-s3cr3t"}
API = {"Authorization": "Bearer api-s3cr3t"}
AFAR = {"REMOTE_ADDR": "203.0.113.7"}
ODD_KEYS = ("/lead", "a//b", "//", "a/", "é", "e\u0301", "a b+c%2F", "?#", "..", "a\nb", "\x1b", "🪣", "null")
MakeClient = Callable[..., FlaskClient]


@pytest.fixture
def make_client(environ: dict[str, str], tmp_path: Path) -> Iterator[MakeClient]:
    """Makes a client of an application whose environment is extended by keywords."""
    opened = []

    def make(**variables: str) -> FlaskClient:
        more = {"DATABASE_URL": f"sqlite:///{tmp_path}/ledger.db", **variables}
        app = create_app(settings.from_environ(environ | more))
        opened.append(ledger_of(client := app.test_client()))
        return client

    yield make
    for ledger in opened:
        ledger.close()


@pytest.fixture
def client(make_client: MakeClient) -> FlaskClient:
    """A client on the service's own machine, where no token is set."""
    return make_client()


def ledger_of(client: FlaskClient) -> Ledger:
    """The ledger behind a client."""
    ledger: Ledger = client.application.extensions["service"].ledger
    return ledger


def record(key: str = "k", bucket: str = "source-bucket", event: str = "s3:ObjectCreated:Put") -> Any:
    """A record as MinIO sends it, less what nobody reads."""
    return {"eventName": event, "s3": {"bucket": {"name": bucket}, "object": {"key": key}}}


def body_of(*records: Any) -> bytes:
    """A notification."""
    return json.dumps({"Records": records}).encode()


def error_of(response: TestResponse) -> dict[str, str]:
    """The error in an answer, of the one shape there is."""
    assert response.is_json
    error: dict[str, str] = response.json["error"]
    assert set(error) == {"code", "message", "hint"}
    assert all(isinstance(value, str) for value in error.values())
    assert error["message"]
    assert "s3cr3t" not in response.text
    return error


def bury(client: FlaskClient, key: str, code: str = "target_store_refused") -> None:
    """Leaves a failed entry behind."""
    ledger = ledger_of(client)
    client.post("/v1/replicate", json={"s3_key": key, "wait": False})
    claim = ledger.claim_one("default", key, worker="w", lease_s=60)
    assert claim is not None
    ledger.finish([Buried(claim=claim, error_code=code, error="no")])


# ── who may come in ──────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("path", [EVENTS, "/v1/replicate"])
def test_without_a_token_only_this_machine_is_let_in(client: FlaskClient, path: str) -> None:
    for address in ("127.0.0.1", "127.8.9.1", "::1", "::ffff:127.0.0.1"):
        answer = client.post(path, data=b"{", environ_overrides={"REMOTE_ADDR": address})
        assert answer.status_code == 400, address
    strangers = ["203.0.113.7", "10.0.0.1", "::ffff:10.0.0.1", "fe80::1", "", "unix:", "localhost"]
    for address in (*strangers, "127.0.0.1.example.com"):
        answer = client.post(path, data=b"{", environ_overrides={"REMOTE_ADDR": address})
        assert (answer.status_code, error_of(answer)["code"]) == (401, "unauthorized"), address
        assert "_TOKEN" in error_of(answer)["hint"]
        assert answer.headers["WWW-Authenticate"] == "Bearer"


def test_without_a_token_nobody_comes_in_through_a_proxy(client: FlaskClient) -> None:
    for header in (*PROXY_HEADERS, *map(str.lower, PROXY_HEADERS)):
        for value in ("127.0.0.1", ""):
            assert client.post(EVENTS, data=body_of(record()), headers={header: value}).status_code == 401
            assert client.get("/v1/status", headers={header: value}).status_code == 401


def test_with_a_token_only_the_token_counts(make_client: MakeClient) -> None:
    client = make_client(**TOKENS)
    wrong = ["", "Bearer ", "Bearer", "Bearer x", "hook-s3cr3t", "Basic hook-s3cr3t", "Bearer hook-s3cr3t2"]
    wrong += [
        "Bearer hook-s3cr3",
        "Bearer api-s3cr3t",
        "Bearer  hook-s3cr3t",
        "Bearer HOOK-S3CR3T",
        "Bearer \xe9",
    ]
    for value in wrong:
        answer = client.post(EVENTS, data=body_of(record()), headers={"Authorization": value})
        assert (answer.status_code, error_of(answer)["code"]) == (401, "unauthorized"), value
    assert client.post(EVENTS, data=body_of(record())).status_code == 401
    assert ledger_of(client).entry("default", "k") is None
    through_proxy = {**HOOK, "X-Forwarded-For": "203.0.113.7"}
    answer = client.post(EVENTS, data=body_of(record()), headers=through_proxy, environ_overrides=AFAR)
    assert answer.status_code == 200
    for method, path in (
        *(("GET", "/v1/status"), ("GET", "/v1/failures"), ("POST", "/v1/failures/retry")),
        *(("POST", "/v1/replicate"), ("GET", "/v1/entries/default/k")),
    ):
        for headers in ({}, HOOK):
            assert client.open(path, method=method, headers=headers).status_code == 401
    assert client.get("/v1/status", headers=API, environ_overrides=AFAR).status_code == 200


@pytest.mark.parametrize("method", ["GET", "HEAD", "POST"])
def test_minio_s_probe_is_answered_without_a_token(make_client: MakeClient, method: str) -> None:
    client = make_client(**TOKENS)
    assert client.open(EVENTS, method=method, environ_overrides=AFAR).status_code == 200
    assert ledger_of(client).quarantined() == 0


# ── notifications ────────────────────────────────────────────────────────────────────────────────────


def test_a_notification_is_recorded_and_counted(client: FlaskClient) -> None:
    unusable = {"s3": {"bucket": {"name": "source-bucket"}}}
    body = body_of(
        *(record("a%2Fb+c"), record("b", event="s3:ObjectRemoved:Delete")),
        *(record("c", event="s3:ObjectTagging:Put"), record("d", event="s3:ObjectAccessed:Get")),
        *(record("e", bucket="another"), record("f", event=""), unusable),
    )
    for _ in range(2):
        answer = client.post(EVENTS, data=body, content_type="application/json")
        assert (answer.status_code, answer.json) == (200, {"accepted": 3, "ignored": 3, "quarantined": 1})
    ledger = ledger_of(client)
    generations = {key: (ledger.entry("default", key) or {}).get("generation") for key in ("a/b c", "b", "c")}
    assert generations == {"a/b c": 1, "b": 1, "c": 1}
    assert sum(ledger.counts()["waiting"].values()) == 3


def test_what_nobody_can_use_is_kept_for_a_person(client: FlaskClient, tmp_path: Path) -> None:
    unusable = record("a%00")
    for body in (body_of(unusable), body_of(unusable), b'{"Records": []}', b"{}"):
        answer = client.post(EVENTS, data=body)
        assert (answer.status_code, answer.json) == (200, {"accepted": 0, "ignored": 0, "quarantined": 1})
    with closing(sqlite3.connect(tmp_path / "ledger.db")) as connection:
        kept = connection.execute("SELECT raw, reason, times_seen FROM quarantine ORDER BY 1 DESC").fetchall()
    assert [json.loads(raw) for raw, _, _ in kept] == [{}, unusable, {"Records": []}]
    assert [times for _, _, times in kept] == [1, 2, 1]
    assert "NUL" in kept[1][1]
    assert client.get("/v1/status").json["quarantined"] == 3


def test_what_is_no_notification_is_refused(client: FlaskClient) -> None:
    for body in (b"{", b"[]", b"7", b"null", b"\xff", b" ", b"[" * 100_000):
        answer = client.post(EVENTS, data=body)
        assert (answer.status_code, error_of(answer)["code"]) == (400, "bad_request"), body[:80]


def test_a_body_that_is_too_large_is_refused(client: FlaskClient) -> None:
    for path in (EVENTS, "/v1/replicate", "/v1/failures/retry"):
        answer = client.post(path, data=b" " * (1024 * 1024 + 1))
        assert (answer.status_code, error_of(answer)["code"]) == (413, "request_entity_too_large"), path
    assert client.post(EVENTS, data=b"{}" + b" " * (1024 * 1024 - 2)).status_code == 200


def test_a_notification_that_cannot_be_recorded_is_refused_until_it_can(
    make_client: MakeClient, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("webhook.database.BUSY_TIMEOUT_S", 0.05)
    client = make_client()
    with closing(sqlite3.connect(tmp_path / "ledger.db", isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        for path, body in (
            *((EVENTS, body_of(record())), (EVENTS, b"{}"), ("/v1/replicate", b'{"s3_key": "k"}')),
            *(("/v1/failures/retry", b""), ("/v1/replicate", b'{"s3_key": "k", "wait": false}')),
        ):
            answer = client.post(path, data=body)
            assert (answer.status_code, error_of(answer)["code"]) == (503, "ledger_unavailable")
            assert int(answer.headers["Retry-After"]) > 0
        assert client.get("/readyz").json["checks"]["ledger"] == "ledger_unavailable"
        assert client.get("/healthz").status_code == 200
        other.execute("ROLLBACK")
    assert ledger_of(client).entry("default", "k") is None
    assert client.post(EVENTS, data=body_of(record())).status_code == 200
    assert client.get("/readyz").json["checks"]["ledger"] == "ok"


# ── the API ──────────────────────────────────────────────────────────────────────────────────────────


def test_a_request_to_replicate_that_makes_no_sense_is_refused(client: FlaskClient) -> None:
    for body in (
        *(b"", b"{", b"[]", b"7", b'"a"', b"\xff", b"{}", b"[" * 100_000),
        *(json.dumps({"s3_key": key}).encode() for key in (None, 7, ["a"], "", "a\0", "\ud800", "x" * 1025)),
        *(json.dumps({"s3_key": "k", "wait": wait}).encode() for wait in (None, 1, "true", [])),
        *(
            json.dumps({"s3_key": "k", "bucket": name}).encode()
            for name in ("", "target-bucket", 7, [], "\ud800")
        ),
    ):
        answer = client.post("/v1/replicate", data=body)
        assert (answer.status_code, error_of(answer)["code"]) == (400, "bad_request"), body[:80]
        assert error_of(answer)["hint"]
    assert sum(ledger_of(client).counts()["waiting"].values()) == 0


def test_an_entry_is_found_under_the_link_that_was_given(client: FlaskClient) -> None:
    assert client.get("/v1/entries/default/nobody-asked").status_code == 404
    for key in ODD_KEYS:
        queued = client.post("/v1/replicate", json={"s3_key": key, "wait": False, "bucket": "source-bucket"})
        assert (queued.status_code, queued.json["status"]) == (202, "queued")
        found = client.get(queued.json["entry"])
        assert (found.status_code, found.json.get("key")) == (200, key)
        assert found.json["state"] == "waiting"


def test_an_entry_that_is_not_there_is_not_found(client: FlaskClient) -> None:
    client.post("/v1/replicate", json={"s3_key": "k", "wait": False})
    for path in ("other/k", "default/K", "default/k/", "default/k%00", "default/%FF"):
        answer = client.get(f"/v1/entries/{path}")
        assert (answer.status_code, error_of(answer)["code"]) == (404, "not_found"), path


def test_a_store_that_does_not_answer_is_a_bad_gateway(client: FlaskClient) -> None:
    answer = client.post("/v1/replicate", json={"s3_key": "k"})
    assert (answer.status_code, error_of(answer)["code"]) == (502, "target_store_unavailable")
    assert "again" in error_of(answer)["hint"]
    entry = client.get(answer.json["entry"]).json
    assert (entry["state"], entry["attempts"], entry["error_code"]) == (
        "waiting",
        0,
        "target_store_unavailable",
    )
    assert "s3cr3t" not in json.dumps(entry)


def test_failures_are_listed_and_tried_again_as_far_as_asked_for(client: FlaskClient) -> None:
    for key, code in (("a/1", "x"), ("a/2", "y"), ("b/1", "x"), ("%", "x")):
        bury(client, key, code)
    bodies: list[tuple[dict[str, str], list[str]]] = [
        ({}, ["%", "a/1", "a/2", "b/1"]),
        ({"prefix": "a/"}, ["a/1", "a/2"]),
        ({"prefix": "a/", "reason": "y"}, ["a/2"]),
        ({"prefix": "%"}, ["%"]),
        ({"rule": "other"}, []),
    ]
    for narrowed, expected in bodies:
        listed = client.get("/v1/failures", query_string=narrowed).json["failures"]
        assert [each["key"] for each in listed] == expected
    for narrowed, count in (({"rule": "other"}, 0), ({"reason": "y"}, 1), ({"prefix": "a/"}, 1), ({}, 2)):
        assert client.post("/v1/failures/retry", json=narrowed).json == {"retried": count}
    bury(client, "again")
    assert client.post("/v1/failures/retry").json == {"retried": 1}
    assert client.get("/v1/failures").json == {"failures": []}


def test_narrowing_by_something_else_is_refused(client: FlaskClient) -> None:
    for asked in ({"key": "a"}, {"prefix": 7}, {"rule": None}, {"reason": ["x"]}):
        assert error_of(client.post("/v1/failures/retry", json=asked))["code"] == "bad_request"
    for body in (b"[]", b"{", b"7"):
        assert client.post("/v1/failures/retry", data=body).status_code == 400
    assert client.get("/v1/failures", query_string={"limit": "1"}).status_code == 400


@pytest.mark.parametrize("text", ["\ud800", "\0", "x" * 100_000])
def test_narrowing_by_what_no_key_can_hold_revives_nothing(client: FlaskClient, text: str) -> None:
    bury(client, "k")
    for name in ("prefix", "rule", "reason"):
        answer = client.post("/v1/failures/retry", data=json.dumps({name: text}))
        assert answer.status_code == 400 or (answer.status_code, answer.json) == (200, {"retried": 0})


def test_the_status_counts_entries(client: FlaskClient) -> None:
    client.post(EVENTS, data=body_of(record("a"), record("b")))
    bury(client, "c")
    found = client.get("/v1/status").json
    assert (found["entries"]["waiting"]["live"], found["entries"]["failed"]["live"]) == (2, 1)
    assert found["rules"]["default"]["source"] == "source-bucket/"


def test_health_needs_no_token_and_tells_no_details(make_client: MakeClient) -> None:
    client = make_client(**TOKENS)
    assert client.get("/healthz", environ_overrides=AFAR).status_code == 200
    answer = client.get("/readyz", environ_overrides=AFAR)
    unavailable = "store_unavailable"
    assert (answer.status_code, answer.json["checks"]) == (
        503,
        {"ledger": "ok", "source": unavailable, "target": unavailable},
    )


def test_what_is_not_there_is_an_error_of_the_same_shape(client: FlaskClient) -> None:
    for path in ("/", "/nothing", "/v1/", "/v1/entries/default/", "//", "/minio/events/"):
        answer = client.get(path)
        assert (answer.status_code, error_of(answer)["code"]) == (404, "not_found"), path
        assert error_of(answer)["hint"]
    for method, path in (
        ("GET", "/v1/replicate"),
        ("PUT", EVENTS),
        ("POST", "/healthz"),
        ("DELETE", "/v1/status"),
    ):
        answer = client.open(path, method=method)
        assert (answer.status_code, error_of(answer)["code"]) == (405, "method_not_allowed"), path
        assert answer.headers["Allow"]


def test_an_unforeseen_error_tells_the_caller_nothing_of_it(
    client: FlaskClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail() -> None:
        raise ZeroDivisionError("s3cr3t")

    monkeypatch.setattr(ledger_of(client), "counts_by_rule", fail)
    answer = client.get("/v1/status")
    assert (answer.status_code, error_of(answer)["code"]) == (500, "unexpected")
