"""GET /openapi.json tells of the whole HTTP side, and nothing but the truth."""

from __future__ import annotations

import copy
import json
import re
import shlex
import time
from typing import Any

import jsonschema_rs
import pytest
import schemathesis
from flask import Flask
from flask.testing import FlaskClient
from hypothesis import given
from schemathesis import GenerationMode
from schemathesis.specs.openapi import checks as agreeing
from werkzeug.test import TestResponse

from tests.bounded import bounded
from tests.unit.conftest import MakeClient
from tests.unit.test_app import API, EVENTS, HOOK, TOKENS
from tests.unit.test_operating import bury, claimed, hold_back, ledger_of
from webhook.entries import BACKFILL, Settled
from webhook.fleet import Fleet
from webhook.openapi import document
from webhook.sweeps import Sweeps

EXAMPLES = 25
OURS = re.compile(r"/(v1/.*|minio/.*|healthz|readyz|metrics|openapi\.json)")
CHECKS = [
    agreeing.status_code_conformance,
    agreeing.content_type_conformance,
    agreeing.response_headers_conformance,
    agreeing.response_schema_conformance,
]


def of(method: str, path: str) -> dict[str, Any]:
    """The description of an operation."""
    found: dict[str, Any] = document()["paths"][path][method]
    return found


OPERATIONS = [(method, path) for path, methods in document()["paths"].items() for method in methods]
TAKING = [each for each in OPERATIONS if {"requestBody"} & set(of(*each)) or of(*each)["parameters"]]
SENT = [(*each, GenerationMode.POSITIVE) for each in OPERATIONS]
SENT += [(*each, GenerationMode.NEGATIVE) for each in TAKING]
STORES_DO_NOT_ANSWER = (502, 503)
"""In these tests; readyz says so with 503."""


@pytest.fixture
def client(make_client: MakeClient, monkeypatch: pytest.MonkeyPatch) -> FlaskClient:
    """A client of a service with something of everything on record."""
    monkeypatch.setattr("webhook.app.WAIT_S", 0.05)
    made = make_client(**TOKENS, REPLICATE_DELETES="true")
    fill(made)
    return made


def fill(client: FlaskClient) -> None:
    """Entries in all states, a sweep under way, a process, a breaker that has tripped, a bad event."""
    client.post("/v1/sweeps", headers=API)
    sweeps, ledger = Sweeps(ledger_of(client)), ledger_of(client)
    (sweep,) = sweeps.unfinished()
    sweeps.put_off(sweeps.begin(sweep, worker="w"), by_s=60, error="source: no answer.")
    Fleet(ledger).sign("host:1:2:", threads=3, limits={"filebase": None, "b2": 7})
    bury(client, "failed")
    bury(client, "failed too", lane=BACKFILL)
    done = Settled(
        claim=claimed(client, "hello.txt"),
        outcome="replicated",
        size=5,
        source_etag="e",
        target_etag="e",
        cid="Qm",
        lost=("tag:x",),
        bytes_copied=5,
    )
    ledger.finish([done])
    hold_back(client, "default", "held")
    claimed(client, "running")
    client.post("/v1/replicate", json={"s3_key": "waiting", "wait": False}, headers=API)
    client.post(EVENTS, data=b"{}", headers=HOOK)


# ── what is described ────────────────────────────────────────────────────────────────────────────────


def described(app: Flask) -> set[tuple[str, str]]:
    """Method and path of each route, as OpenAPI writes them."""
    found = set()
    for rule in app.url_map.iter_rules():
        path = re.sub(r"<(?:[^:>]+:)?(\w+)>", r"{\1}", rule.rule)
        methods = (rule.methods or set()) - {"HEAD", "OPTIONS"}
        found |= {(method.lower(), path) for method in methods if OURS.fullmatch(path)}
    return found


def test_every_route_is_described_and_nothing_else(client: FlaskClient) -> None:
    assert set(OPERATIONS) == described(client.application)


def test_the_description_is_served_to_everybody(client: FlaskClient) -> None:
    answer = client.get("/openapi.json", environ_overrides={"REMOTE_ADDR": "203.0.113.7"})
    assert (answer.status_code, answer.mimetype) == (200, "application/json")
    assert answer.json == document()
    assert answer.json["openapi"].startswith("3.1.")
    assert "s3cr3t" not in answer.text


def test_every_reference_leads_somewhere_and_every_schema_is_one() -> None:
    whole = document()
    used = set(re.findall(r'"#/components/schemas/(\w+)"', json.dumps(whole)))
    assert used == set(whole["components"]["schemas"])
    for name in used:
        jsonschema_rs.Draft202012Validator({**whole, "$ref": f"#/components/schemas/{name}"})


def test_every_operation_has_a_name_of_its_own_and_its_tag() -> None:
    operations = [of(*each) for each in OPERATIONS]
    names = [each["operationId"] for each in operations]
    assert len(set(names)) == len(names)
    tags = {tag["name"] for tag in document()["tags"]}
    assert {tag for each in operations for tag in each["tags"]} == tags


@pytest.mark.parametrize(("method", "path"), OPERATIONS)
def test_a_call_pasted_from_the_description_is_answered_as_described(
    client: FlaskClient, method: str, path: str
) -> None:
    (sample,) = of(method, path)["x-codeSamples"]
    words = shlex.split(sample["source"])
    given_headers = [words[at + 1].split(": ") for at, word in enumerate(words) if word == "-H"]
    values = {"$API_TOKEN": "api-s3cr3t", "$WEBHOOK_AUTH_TOKEN": "hook-s3cr3t"}
    headers = {name: re.sub(r"\$\w+", lambda found: values[found[0]], value) for name, value in given_headers}
    body = words[words.index("-d") + 1] if "-d" in words else None
    url = words[-1].removeprefix("$REPLICATOR_URL")
    answer = client.open(url, method=method.upper(), headers=headers, data=body)
    assert answer.status_code < 300 or answer.status_code in STORES_DO_NOT_ANSWER
    assert_described_whole(answer, method, path)


# ── what is answered ─────────────────────────────────────────────────────────────────────────────────


def closed(schema: Any) -> Any:
    """The schema without room for anything that it does not name."""
    if isinstance(schema, list):
        return [closed(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    found = {name: closed(each) for name, each in schema.items()}
    if found.get("type") == "object" and "properties" in found:
        found.setdefault("additionalProperties", False)
    return found


def assert_described_whole(answer: TestResponse, method: str, path: str) -> None:
    """The answer has what the description says, and nothing more."""
    responses = of(method, path)["responses"]
    assert str(answer.status_code) in responses, answer.text
    (content,) = responses[str(answer.status_code)]["content"].items()
    assert answer.mimetype == content[0]
    if answer.mimetype == "application/json":
        components = closed(copy.deepcopy(document()["components"]["schemas"]))
        whole = {"components": {"schemas": components}, **closed(content[1]["schema"])}
        jsonschema_rs.Draft202012Validator(whole, validate_formats=True).validate(answer.json)


CALLS: list[tuple[str, str, str, dict[str, Any], int]] = [
    ("get", "/v1/status", "/v1/status", {}, 200),
    ("get", "/v1/entries", "/v1/entries?limit=2", {}, 200),
    ("get", "/v1/entries", "/v1/entries?key=failed", {}, 200),
    ("get", "/v1/entries", "/v1/entries?cursor=x", {}, 400),
    ("get", "/v1/entries/{rule}/{key}", "/v1/entries/default/hello.txt", {}, 200),
    ("get", "/v1/entries/{rule}/{key}", "/v1/entries/default/held", {}, 200),
    ("get", "/v1/entries/{rule}/{key}", "/v1/entries/default/running", {}, 200),
    ("get", "/v1/entries/{rule}/{key}", "/v1/entries/default/nobody", {}, 404),
    ("get", "/v1/failures", "/v1/failures?limit=1", {}, 200),
    ("get", "/v1/failures/reasons", "/v1/failures/reasons", {}, 200),
    ("get", "/v1/quarantine", "/v1/quarantine", {}, 200),
    ("get", "/v1/sweeps", "/v1/sweeps", {}, 200),
    ("get", "/v1/sweeps/{number}", "/v1/sweeps/1", {}, 200),
    ("get", "/v1/sweeps/{number}", "/v1/sweeps/99", {}, 404),
    ("post", "/v1/sweeps", "/v1/sweeps", {"prefix": "a/"}, 202),
    ("post", "/v1/pause", "/v1/pause", {}, 200),
    ("post", "/v1/pause", "/v1/pause", {"rule": "nobody's"}, 400),
    ("post", "/v1/replicate", "/v1/replicate", {"s3_key": "new"}, 502),
    ("post", "/v1/replicate", "/v1/replicate", {"s3_key": "new", "wait": False}, 202),
    ("post", "/v1/replicate", "/v1/replicate", {}, 400),
    ("post", "/v1/deletes/approve", "/v1/deletes/approve", {}, 200),
    ("post", "/v1/deletes/discard", "/v1/deletes/discard", {}, 200),
    ("post", "/v1/quarantine/retry", "/v1/quarantine/retry", {"all": True}, 200),
    ("post", "/v1/quarantine/discard", "/v1/quarantine/discard", {}, 400),
    ("post", "/v1/quarantine/discard", "/v1/quarantine/discard", {"record_id": "x"}, 200),
    ("get", "/readyz", "/readyz", {}, 503),
]


@pytest.mark.parametrize(("method", "path", "url", "body", "status"), CALLS)
def test_answers_hold_what_is_described_and_nothing_more(
    client: FlaskClient, method: str, path: str, url: str, body: dict[str, Any], status: int
) -> None:
    more = {} if method == "get" else {"json": body}
    answer = client.open(url, method=method.upper(), headers=API, **more)
    assert answer.status_code == status, answer.text
    assert_described_whole(answer, method, path)


def test_a_body_that_is_too_large_is_answered_as_described(client: FlaskClient) -> None:
    big = b" " * (2 << 20)
    for method, path in OPERATIONS:
        if method == "post":
            headers = HOOK if path == EVENTS else API
            answer = client.post(path, data=big, headers=headers)
            assert answer.status_code == 413, path
            assert_described_whole(answer, method, path)


@pytest.mark.parametrize(("method", "path", "mode"), SENT)
def test_whatever_is_sent_the_answer_is_as_described(
    client: FlaskClient, method: str, path: str, mode: GenerationMode
) -> None:
    operation = schemathesis.openapi.from_wsgi("/openapi.json", client.application)[path][method.upper()]
    statuses = set()

    @bounded(EXAMPLES)
    @given(case=operation.as_strategy(generation_mode=mode))
    def ask(case: Any) -> None:
        case.headers = HOOK if path == EVENTS else API
        response = case.call()
        statuses.add(response.status_code)
        assert response.status_code < 500 or response.status_code in STORES_DO_NOT_ANSWER
        case.validate_response(response, checks=CHECKS)

    ask()
    assert 401 not in statuses
    if mode is GenerationMode.POSITIVE and "{" not in path:
        assert {status for status in statuses if status < 300 or status in STORES_DO_NOT_ANSWER}
    if mode is GenerationMode.NEGATIVE and path != EVENTS:  # what nobody can use is kept, not refused
        assert statuses & {400, 404}, "nothing wrong was sent"


@pytest.mark.parametrize(("method", "path"), OPERATIONS)
def test_what_wants_a_token_says_so_and_the_rest_does_not(
    client: FlaskClient, method: str, path: str
) -> None:
    url = path.format(rule="default", key="hello.txt", number=1)
    for headers in ({}, {"Authorization": "Bearer wrong"}):
        answer = client.open(
            url, method=method.upper(), headers=headers, data=b"{}" if method == "post" else None
        )
        wants = bool(of(method, path)["security"])
        assert (answer.status_code == 401) is wants, answer.text
        assert_described_whole(answer, method, path)


def test_the_status_of_a_quiet_service_is_described_whole_too(make_client: MakeClient) -> None:
    client = make_client(**TOKENS)
    assert_described_whole(client.get("/v1/status", headers=API), "get", "/v1/status")
    began = time.time()
    sweeps = Sweeps(ledger_of(client))
    client.post("/v1/sweeps", headers=API)
    (sweep,) = sweeps.unfinished()
    sweeps.end(sweeps.prove_from(sweeps.begin(sweep, worker="w"), began))
    answer = client.get("/v1/status", headers=API)
    assert answer.json["rules"]["default"]["proved_by"] == "sweep"
    assert_described_whole(answer, "get", "/v1/status")
