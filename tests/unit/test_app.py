"""The HTTP contract, against a real SQLite ledger; both stores are a port where nobody answers."""

from __future__ import annotations

import json
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from flask.testing import FlaskClient
from werkzeug.test import TestResponse

from tests.unit.conftest import MakeClient
from webhook.callers import PROXY_HEADERS
from webhook.entries import Buried, Claim, Ending, Retried, Settled
from webhook.ledger import Ledger
from webhook.rules import Rule
from webhook.sweeps import Sweeps

EVENTS = "/minio/events"
TOKENS = {"WEBHOOK_AUTH_TOKEN": "hook-s3cr3t", "API_TOKEN": "api-s3cr3t"}
HOOK = {"Authorization": "Bearer hook-s3cr3t"}
API = {"Authorization": "Bearer api-s3cr3t"}
AFAR = {"REMOTE_ADDR": "203.0.113.7"}


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


def test_what_is_asked_for_by_hand_waits_for_the_end_of_a_pause(client: FlaskClient) -> None:
    Sweeps(ledger_of(client)).register({"default": "shape"})
    pauses = client.application.extensions["service"].pauses
    pauses.pause("default")
    answer = client.post("/v1/replicate", json={"s3_key": "k"})
    assert answer.status_code == 202
    assert answer.json["status"] == "queued"
    assert answer.json["paused"] is True
    assert client.get(answer.json["entry"]).json["state"] == "waiting"
    pauses.resume("default")
    assert client.post("/v1/replicate", json={"s3_key": "k"}).status_code == 502, "no store answers here"


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


# ── several rules ────────────────────────────────────────────────────────────────────────────────────

RULES = """
[targets.archive]
endpoint = "https://127.0.0.1:9"

[rules.photos]
source = "photos"
exclude = ["*.part"]
bucket = "photos-copy"

[rules.raw]
source = "photos"
prefix = "raw/"
suffix = ".cr3"
target = "archive"
bucket = "long-term"
target_prefix = "camera/"

[rules.papers]
source = "papers"
bucket = "papers-copy"
"""


@pytest.fixture
def several(make_client: MakeClient, tmp_path: Path) -> FlaskClient:
    """A client of a service with three rules, two of them on one bucket."""
    (tmp_path / "rules.toml").write_text(RULES)
    keys = {f"TARGET_ARCHIVE_{name}_KEY": f"archive-{name}-s3cr3t" for name in ("ACCESS", "SECRET")}
    return make_client(RULES_FILE="rules.toml", **keys)


def test_a_key_that_two_rules_want_is_queued_for_both(several: FlaskClient) -> None:
    asked = {"s3_key": "raw/a b.cr3", "bucket": "photos", "wait": False}
    answer = several.post("/v1/replicate", json=asked)
    assert (answer.status_code, answer.json["status"], answer.json["rule"]) == (202, "queued", "photos")
    assert [each["rule"] for each in answer.json["copies"]] == ["photos", "raw"]
    for each in answer.json["copies"]:
        entry = several.get(each["entry"]).json
        assert (entry["rule"], entry["key"], entry["state"]) == (each["rule"], "raw/a b.cr3", "waiting")


def test_a_key_that_one_rule_wants_tells_of_no_others(several: FlaskClient) -> None:
    for bucket, key, rule in (("photos", "a.jpg", "photos"), ("papers", "raw/a.cr3", "papers")):
        asked = {"s3_key": key, "bucket": bucket, "wait": False}
        answer = several.post("/v1/replicate", json=asked)
        assert (answer.status_code, answer.json["rule"]) == (202, rule)
        assert "copies" not in answer.json
    assert sum(ledger_of(several).counts()["waiting"].values()) == 2


def test_a_key_that_no_rule_wants_is_refused(several: FlaskClient) -> None:
    for key in ("a.part", "raw/a.part"):
        answer = several.post("/v1/replicate", json={"s3_key": key, "bucket": "photos"})
        assert (answer.status_code, error_of(answer)["message"]) == (400, "no rule wants that key")
        assert "exclude" in error_of(answer)["hint"]
    assert sum(ledger_of(several).counts()["waiting"].values()) == 0


def test_where_there_are_several_buckets_one_has_to_be_named(several: FlaskClient) -> None:
    missing = several.post("/v1/replicate", json={"s3_key": "a"})
    unknown = several.post("/v1/replicate", json={"s3_key": "a", "bucket": "photos-copy"})
    for answer in (missing, unknown):
        assert (answer.status_code, error_of(answer)["code"]) == (400, "bad_request")
        assert error_of(answer)["hint"] == "Name one of: photos, papers."
    assert "bucket is missing" in error_of(missing)["message"]


def test_where_buckets_are_globs_one_has_to_be_named_and_the_rule_is_its(make_client: MakeClient) -> None:
    for buckets, hint in (("*", "Name one that a rule copies."), ("a,b-*", "Name one of: a.")):
        client = make_client(MINIO_BUCKET=buckets)
        answer = client.post("/v1/replicate", json={"s3_key": "k"})
        assert (answer.status_code, error_of(answer)["hint"]) == (400, hint)
        answer = client.post("/v1/replicate", json={"s3_key": "k", "bucket": "b-1", "wait": False})
        assert (answer.status_code, answer.json["entry"]) == (202, "/v1/entries/default.b-1/k")
    assert client.post("/v1/replicate", json={"s3_key": "k", "bucket": "c"}).status_code == 400


def test_an_event_is_put_for_each_rule_that_wants_it_and_counted_once(several: FlaskClient) -> None:
    wanted = [record("raw/a.cr3", "photos"), record("b.jpg", "photos"), record("c", "papers")]
    unwanted = [record("d.part", "photos"), record("e", "elsewhere")]
    answer = several.post(EVENTS, data=body_of(*wanted, *unwanted))
    assert answer.json == {"accepted": 3, "ignored": 2, "quarantined": 0}
    entries = [("photos", "raw/a.cr3"), ("raw", "raw/a.cr3"), ("photos", "b.jpg"), ("papers", "c")]
    assert all(ledger_of(several).entry(rule, key) for rule, key in entries)
    assert sum(ledger_of(several).counts()["waiting"].values()) == 4


NEW, OLD, GONE, DOWN, BROKEN, UNDONE = "new", "old", "gone", "down", "broken", "undone"
ENDINGS = [
    ((NEW, NEW), 200, "photos"),
    ((OLD, NEW), 200, "raw"),
    ((OLD, OLD), 409, "photos"),
    ((NEW, UNDONE), 202, "raw"),
    ((NEW, GONE), 404, "raw"),
    ((DOWN, GONE), 502, "photos"),
    ((OLD, DOWN), 502, "raw"),
    ((DOWN, BROKEN), 500, "raw"),
]


def ending(kind: str, rule: str) -> Ending | None:
    """How a copy can end."""
    facts: dict[str, Any] = dict.fromkeys(Claim.__dataclass_fields__, 0)
    claim = Claim(**facts | {"rule": rule, "key": "raw/a.cr3"})
    down, broken = ("target_store_unavailable", "no answer"), ("unexpected", "ZeroDivisionError, see the log")
    return {
        NEW: Settled(claim=claim, outcome="replicated", size=3, source_etag="e", target_etag="e"),
        OLD: Settled(claim=claim, outcome="unchanged", size=3, source_etag="e", target_etag="e"),
        GONE: Settled(claim=claim, outcome="gone"),
        DOWN: Retried(
            claim=claim, after_s=7.0, backoff_s=7.0, counts=False, error_code=down[0], error=down[1]
        ),
        BROKEN: Buried(claim=claim, error_code=broken[0], error=broken[1]),
    }.get(kind)


@pytest.mark.parametrize(("kinds", "status", "rule"), ENDINGS)
def test_of_several_copies_the_one_that_went_worst_is_the_answer_and_all_are_told(
    several: FlaskClient, monkeypatch: pytest.MonkeyPatch, kinds: tuple[str, str], status: int, rule: str
) -> None:
    by_rule = dict(zip(("photos", "raw"), kinds, strict=True))

    def replicate_now(of: Rule, _key: str, *, wait_s: float, trace: str | None = None) -> Ending | None:
        return ending(by_rule[of.name], of.name)

    worker = several.application.extensions["service"].worker
    monkeypatch.setattr(worker, "replicate_now", replicate_now)
    answer = several.post("/v1/replicate", json={"s3_key": "raw/a.cr3", "bucket": "photos"})
    assert (answer.status_code, answer.json["rule"]) == (status, rule)
    copies = {each["rule"]: each for each in answer.json["copies"]}
    assert answer.json == copies[rule] | {"copies": answer.json["copies"]}
    for name, kind in by_rule.items():
        told = copies[name].get("status"), copies[name].get("error", {}).get("code")
        assert (
            told
            == {
                NEW: ("replicated", None),
                OLD: ("exists", "exists"),
                GONE: (None, "not_found"),
                DOWN: (None, "target_store_unavailable"),
                BROKEN: (None, "unexpected"),
                UNDONE: ("queued", None),
            }[kind]
        ), name
    assert ("7 s" in answer.json.get("error", {}).get("hint", "")) == (status == 502)


def test_of_two_targets_that_do_not_answer_both_are_told(several: FlaskClient) -> None:
    answer = several.post("/v1/replicate", json={"s3_key": "raw/a.cr3", "bucket": "photos"})
    assert (answer.status_code, answer.json["error"]["code"]) == (502, "target_store_unavailable")
    assert [each["rule"] for each in answer.json["copies"]] == ["photos", "raw"]
    assert [list(each) for each in answer.json["copies"]] == [["rule", "s3_key", "entry", "error"]] * 2
    assert "s3cr3t" not in answer.text


def test_readiness_names_each_bucket_of_each_store(several: FlaskClient) -> None:
    checks = several.get("/readyz").json["checks"]
    stores = ["source papers", "source photos"]
    stores += ["target archive/long-term", "target filebase/papers-copy", "target filebase/photos-copy"]
    assert checks == {"ledger": "ok"} | dict.fromkeys(stores, "store_unavailable")


# ── health ───────────────────────────────────────────────────────────────────────────────────────────


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
    for path in ("/nothing", "/v1/", "/v1/entries/default/", "/minio/events/"):
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
