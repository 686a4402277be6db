"""The HTTP contract of what operates the service, against a real SQLite ledger; no store answers."""

from __future__ import annotations

import json
import re
import sqlite3
import time
from contextlib import closing
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from flask.testing import FlaskClient
from werkzeug.test import TestResponse

from tests.unit.conftest import MakeClient
from tests.unit.test_app import API, EVENTS, HOOK, TOKENS, body_of, error_of, record
from webhook.entries import BACKFILL, Buried, Claim, Deferred, Held, Misfit, Request, Settled
from webhook.fleet import Fleet
from webhook.ledger import Ledger
from webhook.service import Service
from webhook.sweeps import COUNTS, DROPPED, Sweeps
from webhook.version import VERSION

ODD_KEYS = ("/lead", "a//b", "//", "a/", "é", "e\u0301", "a b+c%2F", "?#", "..", "a\nb", "\x1b", "🪣", "null")
ROUTES = (
    *(("GET", "/v1/status"), ("GET", "/v1/entries/default/k")),
    *(("GET", "/v1/failures"), ("POST", "/v1/failures/retry")),
    *(("GET", "/v1/sweeps"), ("GET", "/v1/sweeps/1"), ("POST", "/v1/sweeps")),
    *(("POST", "/v1/deletes/approve"), ("POST", "/v1/deletes/discard")),
)
TAKES_BODY = [path for method, path in ROUTES if method == "POST"]
TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z")
NONE = {"live": 0, "backfill": 0}


@pytest.fixture
def two(make_client: MakeClient, tmp_path: Path) -> FlaskClient:
    """A client of a service with two rules, one of which propagates deletes."""
    (tmp_path / "rules.toml").write_text(
        """
        [rules.photos]
        source = "photos"
        prefix = "raw/"
        bucket = "camera"
        target_prefix = ""
        deletes = true

        [rules.all]
        source = ["*"]
        bucket = "{bucket}-copy"
        """
    )
    return make_client(RULES_FILE="rules.toml")


def service_of(client: FlaskClient) -> Service:
    """What the application behind a client is made of."""
    service: Service = client.application.extensions["service"]
    return service


def ledger_of(client: FlaskClient) -> Ledger:
    """The ledger behind a client."""
    return service_of(client).ledger


def claimed(
    client: FlaskClient, key: str, *, rule: str = "default", lane: str = "live", **more: Any
) -> Claim:
    """A new request, and the claim of it."""
    ledger = ledger_of(client)
    ledger.put([Request(rule=rule, key=key, **more)], lane=lane)
    claim = ledger.claim_one(rule, key, worker="w", lease_s=60)
    assert claim is not None
    return claim


def bury(client: FlaskClient, key: str, code: str = "target_store_refused", **more: Any) -> None:
    """Leaves a failed entry behind."""
    claim = claimed(client, key, **more)
    ledger_of(client).finish([Buried(claim=claim, error_code=code, error="no")])


def hold_back(client: FlaskClient, rule: str, *keys: str) -> None:
    """Leaves deletes behind that wait for a person."""
    ledger = ledger_of(client)
    for key in keys:
        ledger.finish([Deferred(claim=claimed(client, key, rule=rule), after_s=0.0)])
        again = ledger.claim_one(rule, key, worker="w", lease_s=60)
        assert again is not None
        ledger.finish([Held(claim=again)])
    service_of(client).deletes.trip(rule, "too many")


def rule_of(client: FlaskClient, name: str = "default") -> dict[str, Any]:
    """What the status says of a rule."""
    found: dict[str, Any] = client.get("/v1/status").json["rules"][name]
    return found


def asked_for(answer: TestResponse) -> list[tuple[str, str]]:
    """The rules and prefixes of the sweeps in an answer."""
    return [(each["rule"], each["prefix"]) for each in answer.json["sweeps"]]


# ── all of them ──────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(("method", "path"), ROUTES)
def test_only_the_api_token_opens(make_client: MakeClient, method: str, path: str) -> None:
    client = make_client(**TOKENS)
    for headers in ({}, HOOK):
        answer = client.open(path, method=method, headers=headers)
        assert (answer.status_code, error_of(answer)["code"]) == (401, "unauthorized")
    assert client.open(path, method=method, headers=API).status_code in (200, 202, 404)


@pytest.mark.parametrize("path", TAKES_BODY)
def test_a_body_that_is_no_json_object_is_refused(client: FlaskClient, path: str) -> None:
    for body in (b"{", b"[]", b"7", b"null", b'"rule"', b"\xff", b"[" * 100_000):
        answer = client.post(path, data=body)
        assert (answer.status_code, error_of(answer)["code"]) == (400, "bad_request"), body[:80]
    assert client.get("/v1/sweeps").json == {"sweeps": []}


@pytest.mark.parametrize("path", [*TAKES_BODY, "/v1/failures", "/v1/sweeps?"])
def test_narrowing_by_something_else_is_refused(client: FlaskClient, path: str) -> None:
    wrong: list[dict[str, Any]] = [{"keys": "a"}, {"limits": "1"}, {"rule": "a\0"}, {"rule": "x" * 1025}]
    if path in TAKES_BODY:
        wrong += [{"rule": 7}, {"rule": None}, {"rule": ["default"]}, {"rule": "\ud800"}, {"prefix": True}]
    for asked in wrong:
        is_post = path in TAKES_BODY
        answer = (
            client.post(path, data=json.dumps(asked)) if is_post else client.get(path, query_string=asked)
        )
        assert (answer.status_code, error_of(answer)["code"]) == (400, "bad_request"), asked
        assert error_of(answer)["hint"]
    assert client.get("/v1/sweeps").json == {"sweeps": []}


def test_while_the_ledger_is_locked_what_would_change_it_is_answered_503(
    make_client: MakeClient, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("webhook.database.BUSY_TIMEOUT_S", 0.05)
    client = make_client()
    client.post("/v1/sweeps")
    with closing(sqlite3.connect(tmp_path / "ledger.db", isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        for path in TAKES_BODY:
            answer = client.post(path, json={"rule": "default"})
            assert (answer.status_code, error_of(answer)["code"]) == (503, "ledger_unavailable"), path
            assert int(answer.headers["Retry-After"]) > 0
        for path in ("/v1/status", "/v1/failures", "/v1/sweeps", "/v1/sweeps/1"):
            assert client.get(path).status_code == 200  # looking takes no lock
        other.execute("ROLLBACK")
    assert all(client.post(path, json={"rule": "default"}).status_code < 300 for path in TAKES_BODY)


# ── one entry ────────────────────────────────────────────────────────────────────────────────────────


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
    long = "x" * 1025
    for path in ("other/k", "default/K", "default/k/", "default/k%00", "default/%FF", f"default/{long}"):
        answer = client.get(f"/v1/entries/{path}")
        assert (answer.status_code, error_of(answer)["code"]) == (404, "not_found"), path


def test_each_rule_has_an_entry_of_its_own_for_a_key(two: FlaskClient) -> None:
    two.post("/v1/replicate", json={"s3_key": "raw/a", "bucket": "photos", "wait": False})
    bury(two, "raw/a", rule="photos")
    assert two.get("/v1/entries/photos/raw/a").json["state"] == "failed"
    assert two.get("/v1/entries/all.photos/raw/a").json["state"] == "waiting"
    assert two.get("/v1/entries/all/raw/a").status_code == 404


def test_an_entry_shows_its_attempts_and_nothing_of_the_bookkeeping(client: FlaskClient) -> None:
    bury(client, "k", code="source_store_denied")
    found = client.get("/v1/entries/default/k").json
    (attempt,) = found["attempts_made"]
    assert (found["error_code"], found["error"], found["lost"]) == ("source_store_denied", "no", [])
    assert (attempt["result"], attempt["error"], attempt["worker"]) == ("error", "no", "w")
    assert not {"history", "recent_events"} & set(found)


# ── failures ─────────────────────────────────────────────────────────────────────────────────────────


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
    assert client.get("/v1/failures").json == {"failures": [], "next": None}


@pytest.mark.parametrize("text", ["\ud800", "\0", "x" * 100_000])
def test_narrowing_by_what_no_key_can_hold_revives_nothing(client: FlaskClient, text: str) -> None:
    bury(client, "k")
    for name in ("prefix", "rule", "reason"):
        answer = client.post("/v1/failures/retry", data=json.dumps({name: text}))
        assert (answer.status_code, error_of(answer)["code"]) == (400, "bad_request")
    assert len(client.get("/v1/failures").json["failures"]) == 1


# ── status ───────────────────────────────────────────────────────────────────────────────────────────


def test_before_anything_happened_the_status_claims_nothing(client: FlaskClient) -> None:
    found = client.get("/v1/status").json
    states = ("waiting", "running", "settled", "failed", "held")
    assert found["entries"] == dict.fromkeys(states, NONE)
    assert (found["version"], found["workers"], found["quarantined"]) == (VERSION, [], 0)
    rule = found["rules"]["default"]
    assert TIME.fullmatch(rule.pop("recovery_point_by_events"))
    assert rule == {
        "source": "source-bucket/",
        "target": "filebase:target-bucket/",
        "paused_since": None,
        "recovery_point": None,
        "proved_by": None,
        "lag_s": 0.0,
        "last_hour": {"objects": 0, "bytes": 0, "lag_s": {"p50": None, "p95": None, "p99": None}},
        "entries": dict.fromkeys(states, NONE),
        "events_missed": 0,
        "failures": [],
        "oldest": None,
        "sweep": None,
        "deletes": {"propagated": False, "pending": 0, "held": 0, "breaker": None},
    }


def test_the_status_counts_entries_by_state_and_lane_in_all_and_of_each_rule(two: FlaskClient) -> None:
    two.post(EVENTS, data=body_of(record("raw/a", "photos"), record("b", "photos"), record("?", "photos")))
    bury(two, "c", rule="all.photos", lane=BACKFILL)
    two.post(EVENTS, data=b"{}")
    found = two.get("/v1/status").json
    assert found["entries"]["waiting"] == {"live": 4, "backfill": 0}
    assert found["entries"]["failed"] == {"live": 0, "backfill": 1}
    assert found["rules"]["photos"]["entries"]["waiting"] == {"live": 1, "backfill": 0}
    assert found["rules"]["photos"]["entries"]["failed"] == NONE
    assert found["quarantined"] == 1


def test_the_status_names_rules_with_their_places_those_of_globs_once_they_were_seen(
    two: FlaskClient,
) -> None:
    places = {
        name: (each["source"], each["target"]) for name, each in two.get("/v1/status").json["rules"].items()
    }
    photos = ("photos/raw/", "filebase:camera/")
    assert places == {"photos": photos, "all.photos": ("photos/", "filebase:photos-copy/")}
    two.post("/v1/sweeps", json={"rule": "all.papers"})
    assert rule_of(two, "all.papers")["target"] == "filebase:papers-copy/"


def test_the_status_names_the_processes_that_replicate(client: FlaskClient) -> None:
    fleet = Fleet(ledger_of(client))
    fleet.sign("host:1:2:", threads=3)
    (member,) = client.get("/v1/status").json["workers"]
    assert (member["name"], member["version"], member["threads"]) == ("host:1:2:", VERSION, 3)
    assert all(TIME.fullmatch(member[name]) for name in ("started_at", "seen_at"))
    fleet.leave("host:1:2:")
    assert client.get("/v1/status").json["workers"] == []


def test_the_status_tells_of_the_last_hour_and_of_what_waits(client: FlaskClient) -> None:
    now = time.time()
    copied = claimed(client, "a", event_at=now - 2)
    old = claimed(client, "b", lane=BACKFILL, event_at=now - 500_000)
    ledger_of(client).finish(
        [Settled(claim=each, outcome="replicated", bytes_copied=5) for each in (copied, old)]
    )
    ledger_of(client).put([Request(rule="default", key="c", event_at=now - 100)])
    found = rule_of(client)
    assert (found["last_hour"]["objects"], found["last_hour"]["bytes"]) == (2, 10)
    assert all(2 <= lag < 20 for lag in found["last_hour"]["lag_s"].values())  # not of the backfill
    assert 100 <= found["lag_s"] < 130
    at = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(now - 100))
    assert found["recovery_point_by_events"].startswith(at)


def test_a_complete_sweep_of_everything_proves_the_recovery_point_and_no_other_does(
    client: FlaskClient,
) -> None:
    sweeps = Sweeps(ledger_of(client))
    whole, part = (
        client.post("/v1/sweeps", json={"prefix": prefix}).json["sweeps"][0]["id"] for prefix in ("", "a/")
    )
    for number, proves_at in ((part, 2_000.0), (whole, 1_000.5)):
        assert rule_of(client)["recovery_point"] is None
        assert rule_of(client)["sweep"]["state"] == "open"
        sweep = sweeps.get(number)
        assert sweep
        sweep = sweeps.prove_from(sweeps.begin(sweep, worker="w"), proves_at)
        sweeps.end(sweeps.advance(sweep, "z", {"compared": 7, "missing": 2}))
    found = rule_of(client)
    assert (found["recovery_point"], found["proved_by"]) == ("1970-01-01T00:16:40.500Z", "sweep")
    shown = ("id", "state", "cursor", "compared", "missing", "extra")
    assert [found["sweep"][name] for name in shown] == [whole, "complete", "z", 7, 2, 0]


def test_the_status_counts_changes_that_no_event_told_of(client: FlaskClient) -> None:
    ledger_of(client).put([Request(rule="default", key="k", missed_at=time.time())], lane=BACKFILL)
    assert rule_of(client)["events_missed"] == 1


# ── sweeps ───────────────────────────────────────────────────────────────────────────────────────────


def test_a_sweep_that_is_asked_for_is_given_with_a_link(client: FlaskClient) -> None:
    answer = client.post("/v1/sweeps")
    (sweep,) = answer.json["sweeps"]
    assert answer.status_code == 202
    expected = {
        "rule": "default",
        "prefix": "",
        "cause": "request",
        "state": "open",
        "cursor": "",
        "error": None,
    }
    assert sweep == sweep | expected | dict.fromkeys(COUNTS, 0)
    assert [bool(sweep[name]) for name in ("asked_at", "due_at", "started_at", "ended_at")] == [1, 1, 0, 0]
    assert TIME.fullmatch(sweep["asked_at"])
    assert client.get(sweep["link"]).json == sweep
    assert client.get("/v1/sweeps").json == {"sweeps": [sweep]}


def test_asking_again_gives_the_sweep_that_is_open(client: FlaskClient) -> None:
    numbers = [
        client.post("/v1/sweeps", json=asked).json["sweeps"][0]["id"] for asked in ({}, {"prefix": "a/"}) * 2
    ]
    assert numbers[:2] == numbers[2:]
    assert numbers[0] != numbers[1]
    sweeps = Sweeps(ledger_of(client))
    first = sweeps.get(numbers[0])
    assert first
    sweeps.end(first)
    assert client.post("/v1/sweeps").json["sweeps"][0]["id"] > numbers[1]


def test_sweeps_are_asked_for_by_rule_and_prefix(two: FlaskClient) -> None:
    for asked, expected in (
        ({"rule": "photos"}, ("photos", "")),
        ({"rule": "all.papers", "prefix": "2026/"}, ("all.papers", "2026/")),
        ({"rule": "photos", "prefix": ""}, ("photos", "")),
    ):
        answer = two.post("/v1/sweeps", json=asked)
        assert (answer.status_code, asked_for(answer)) == (202, [expected])
    assert asked_for(two.get("/v1/sweeps")) == [("all.papers", "2026/"), ("photos", "")]
    assert asked_for(two.get("/v1/sweeps", query_string={"rule": "photos"})) == [("photos", "")]
    assert asked_for(two.get("/v1/sweeps", query_string={"rule": "nobody's"})) == []


@pytest.mark.parametrize("path", ["/v1/sweeps", "/v1/deletes/approve", "/v1/deletes/discard"])
def test_a_rule_that_is_not_there_is_refused_and_those_that_are_named(two: FlaskClient, path: str) -> None:
    for name in ("default", "all", "photos.photos", "all.a/b", "", "all."):
        answer = two.post(path, json={"rule": name})
        assert (answer.status_code, error_of(answer)["code"]) == (400, "bad_request"), name
        assert error_of(answer)["hint"].startswith("The rules are: photos, all. ")


def test_sweeps_of_all_buckets_need_a_source_that_answers(two: FlaskClient) -> None:
    answer = two.post("/v1/sweeps")
    assert (answer.status_code, error_of(answer)["code"]) == (502, "store_unavailable")
    assert two.get("/v1/sweeps").json == {"sweeps": []}


def test_a_sweep_that_is_not_there_is_not_found(client: FlaskClient) -> None:
    for number in ("0", "1", "-1", "x", "1.0", "9" * 9, "9" * 30):
        answer = client.get(f"/v1/sweeps/{number}")
        assert (answer.status_code, error_of(answer)["code"]) == (404, "not_found"), number


def test_what_became_of_a_sweep_is_shown(client: FlaskClient) -> None:
    sweeps = Sweeps(ledger_of(client))
    number = client.post("/v1/sweeps").json["sweeps"][0]["id"]
    sweep = sweeps.get(number)
    assert sweep
    sweeps.put_off(sweeps.begin(sweep, worker="w"), by_s=60, error="source: no answer.")
    found = client.get(f"/v1/sweeps/{number}").json
    assert (found["state"], found["error"]) == ("open", "source: no answer.")
    assert found["due_at"] > found["started_at"]
    sweeps.end(sweep, DROPPED)
    found = client.get(f"/v1/sweeps/{number}").json
    assert (found["state"], bool(TIME.fullmatch(found["ended_at"]))) == ("dropped", True)


def test_the_latest_hundred_sweeps_are_listed_newest_first(client: FlaskClient) -> None:
    for number in range(101):
        client.post("/v1/sweeps", json={"prefix": f"{number}/"})
    prefixes = [prefix for _, prefix in asked_for(client.get("/v1/sweeps"))]
    assert prefixes == [f"{number}/" for number in range(100, 0, -1)]


# ── deletes ──────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def held(two: FlaskClient) -> FlaskClient:
    """Deletes of two rules are held back, and the breakers have tripped."""
    for rule in ("photos", "all.photos"):
        two.post("/v1/sweeps", json={"rule": rule})
    hold_back(two, "photos", "raw/a", "raw/b")
    hold_back(two, "all.photos", "c")
    return two


def test_the_status_tells_what_is_held_back_and_why(held: FlaskClient) -> None:
    pending = claimed(held, "raw/pending", rule="photos")
    ledger_of(held).finish([Deferred(claim=pending, after_s=60.0)])
    deletes = rule_of(held, "photos")["deletes"]
    assert TIME.fullmatch(deletes["breaker"].pop("tripped_at"))
    assert deletes == {"propagated": True, "pending": 1, "held": 2, "breaker": {"reason": "too many"}}
    assert rule_of(held, "all.photos")["deletes"]["propagated"] is False
    assert held.get("/v1/status").json["entries"]["held"] == {"live": 3, "backfill": 0}


def test_approved_deletes_are_looked_at_again_and_the_breaker_is_closed(held: FlaskClient) -> None:
    answer = held.post("/v1/deletes/approve", json={"rule": "photos"})
    assert (answer.status_code, answer.json) == (200, {"approved": {"photos": 2}})
    states = [held.get(f"/v1/entries/photos/raw/{name}").json["state"] for name in "ab"]
    assert states == ["waiting", "waiting"]
    assert rule_of(held, "photos")["deletes"]["breaker"] is None
    assert rule_of(held, "all.photos")["deletes"]["held"] == 1


def test_discarded_deletes_are_settled_and_the_copies_stay(held: FlaskClient) -> None:
    answer = held.post("/v1/deletes/discard", json={"rule": "photos"})
    assert (answer.status_code, answer.json) == (200, {"discarded": {"photos": 2}})
    entry = held.get("/v1/entries/photos/raw/a").json
    assert (entry["state"], entry["outcome"], entry["target_etag"]) == ("settled", "gone", None)
    assert rule_of(held, "photos")["deletes"] == {
        "propagated": True,
        "pending": 0,
        "held": 0,
        "breaker": None,
    }


@pytest.mark.parametrize(("word", "told"), [("approve", "approved"), ("discard", "discarded")])
def test_without_a_rule_the_decision_is_about_all_that_is_held_back(
    held: FlaskClient, word: str, told: str
) -> None:
    held.post("/v1/sweeps", json={"rule": "all.papers"})
    for body, count in ((b"", {"photos": 2, "all.photos": 1}), (b"{}", {})):
        answer = held.post(f"/v1/deletes/{word}", data=body)
        assert (answer.status_code, answer.json) == (200, {told: count})


def test_a_decision_about_a_rule_with_nothing_held_back_is_about_nothing(client: FlaskClient) -> None:
    for path, told in (("/v1/deletes/approve", "approved"), ("/v1/deletes/discard", "discarded")):
        assert client.post(path, json={"rule": "default"}).json == {told: {"default": 0}}
        assert client.post(path).json == {told: {}}


def test_a_tripped_breaker_without_deletes_is_closed_by_a_decision(client: FlaskClient) -> None:
    client.post("/v1/sweeps")
    service_of(client).deletes.trip("default", "the source lists no object at all")
    assert rule_of(client)["deletes"]["breaker"]["reason"] == "the source lists no object at all"
    assert client.post("/v1/deletes/discard").json == {"discarded": {"default": 0}}
    assert rule_of(client)["deletes"]["breaker"] is None


# ── pages of the record ──────────────────────────────────────────────────────────────────────────────


def pages(client: FlaskClient, path: str, name: str, **asked: Any) -> list[Any]:
    """What all pages hold together."""
    found: list[Any] = []
    for _ in range(100):
        answer = client.get(path, query_string=asked)
        assert answer.status_code == 200, answer.text
        found += answer.json[name]
        if (cursor := answer.json["next"]) is None:
            return found
        asked["cursor"] = cursor
    raise AssertionError("the pages do not end")


@pytest.mark.parametrize("limit", [1, 2, 100])
def test_entries_failures_and_quarantine_are_listed_page_by_page(client: FlaskClient, limit: int) -> None:
    for key in ("a/1", "a/ö%", "b"):
        client.post(EVENTS, data=body_of(record(quote(key))))
    for key in ("f/1", "f/2", "f/3"):
        bury(client, key)
    for body in ({}, {"a": 1}, {"b": 2}):
        client.post(EVENTS, data=json.dumps(body).encode())
    keys = [each["key"] for each in pages(client, "/v1/entries", "entries", limit=limit)]
    assert keys == ["a/1", "a/ö%", "b", "f/1", "f/2", "f/3"]
    found = pages(client, "/v1/entries", "entries", limit=limit, contains="ö%")
    assert [each["key"] for each in found] == ["a/ö%"]
    found = pages(client, "/v1/entries", "entries", limit=limit, state="failed", prefix="f/")
    assert [each["key"] for each in found] == ["f/1", "f/2", "f/3"]
    assert len(pages(client, "/v1/failures", "failures", limit=limit)) == 3
    records = pages(client, "/v1/quarantine", "records", limit=limit)
    assert len({each["record_id"] for each in records}) == 3
    assert all(TIME.fullmatch(each["last_seen_at"]) for each in records)


@pytest.mark.parametrize("key", ["..", "a/../b", "a//b", "/", "a?b#c", "%2e%2e", "<script>"])
def test_any_key_can_be_asked_for_exactly(client: FlaskClient, key: str) -> None:
    bury(client, key)
    bury(client, key + "x")
    (found,) = client.get("/v1/entries", query_string={"key": key}).json["entries"]
    assert (found["key"], found["state"]) == (key, "failed")
    assert client.get("/v1/entries", query_string={"key": key, "rule": "other"}).json["entries"] == []
    assert client.post("/v1/failures/retry", json={"key": key}).json == {"retried": 1}
    assert [each["key"] for each in client.get("/v1/failures").json["failures"]] == [key + "x"]


@pytest.mark.parametrize("path", ["/v1/entries", "/v1/failures", "/v1/quarantine"])
def test_a_cursor_or_a_limit_that_is_none_is_refused(client: FlaskClient, path: str) -> None:
    cursors = ("x", "", "W10=", "WyJhIl0=", "WzEsMl0=", "bnVsbA==", "é", "=" * 9)
    for asked in [{"cursor": each} for each in cursors] + [
        {"limit": each} for each in ("0", "-1", "x", "9999", "²")
    ]:
        answer = client.get(path, query_string=asked)
        assert (answer.status_code, error_of(answer)["code"]) == (400, "bad_request"), asked
        assert error_of(answer)["hint"]


def test_reasons_are_counted_the_most_first(client: FlaskClient) -> None:
    for key in ("a", "b"):
        bury(client, key)
    (found,) = client.get("/v1/failures/reasons").json["reasons"]
    assert found["number"] == 2
    assert found["rule"] == "default"
    assert client.get("/v1/failures/reasons?prefix=b").json["reasons"][0]["number"] == 1
    assert client.get("/v1/failures/reasons?rule=other").json["reasons"] == []


# ── pauses and quarantine ────────────────────────────────────────────────────────────────────────────


def test_a_rule_is_paused_and_resumed_also_before_its_first_sweep(client: FlaskClient) -> None:
    answer = client.post("/v1/pause", json={"rule": "default"})
    assert answer.json["changed"] == ["default"]
    assert TIME.fullmatch(answer.json["paused"]["default"])
    assert (
        client.get("/v1/status").json["rules"]["default"]["paused_since"] == answer.json["paused"]["default"]
    )
    assert client.post("/v1/pause").json["changed"] == [], "it is paused already"
    assert client.post("/v1/resume").json == {"changed": ["default"], "paused": {}}
    assert client.post("/v1/resume", json={"rule": "default"}).json["changed"] == []
    for path in ("/v1/pause", "/v1/resume"):
        assert error_of(client.post(path, json={"rule": "nobody's"}))["code"] == "bad_request"


def test_what_is_in_quarantine_is_tried_again_or_dropped(client: FlaskClient) -> None:
    client.post(EVENTS, data=b"{}")
    client.post(EVENTS, data=b'{"Records": 7}')
    client.post(EVENTS, data=body_of({"eventName": "s3:ObjectCreated:Put"}))
    ids = [each["record_id"] for each in client.get("/v1/quarantine").json["records"]]
    assert len(ids) == 3
    assert error_of(client.post("/v1/quarantine/discard"))["code"] == "bad_request"
    assert client.post("/v1/quarantine/retry", json={"all": True}).json == {
        "accepted": 0,
        "ignored": 0,
        "kept": 3,
    }
    assert client.post("/v1/quarantine/discard", json={"record_id": ids[0]}).json == {"discarded": 1}
    assert client.post("/v1/quarantine/discard", json={"record_id": ids[0]}).json == {"discarded": 0}
    assert client.post("/v1/quarantine/discard", json={"all": True}).json == {"discarded": 2}
    assert client.get("/v1/quarantine").json == {"records": [], "next": None}


def test_a_record_that_can_be_read_by_now_is_asked_for_and_leaves_the_quarantine(client: FlaskClient) -> None:
    ledger_of(client).put(
        [], [Misfit(record_id="id", reason="of an older release", raw=json.dumps(record("k")))]
    )
    assert client.post("/v1/quarantine/retry", json={"record_id": "id"}).json == {
        "accepted": 1,
        "ignored": 0,
        "kept": 0,
    }
    assert client.get("/v1/entries/default/k").json["state"] == "waiting"
    assert client.get("/v1/quarantine").json["records"] == []
