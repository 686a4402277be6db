"""The HTTP side's description, OpenAPI 3.1, at GET /openapi.json. No token: it holds no secret.

Every route is described here, once; schemas.py has what they answer.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

from flask import Blueprint, Response

from webhook.entries import STATES
from webhook.operating import QUARANTINE_LIMIT_MAX, QUERIES
from webhook.paging import LIMIT, LIMIT_MAX
from webhook.schemas import (
    KEY,
    RULE,
    SCHEMAS,
    TEXT,
    WHOLE,
    YES_OR_NO,
    Schema,
    by_name,
    one_of,
    ref,
    sent,
    thing,
)
from webhook.version import VERSION

_Described = tuple[str, str, dict[str, Any]]
"""Method, path and what OpenAPI calls an operation."""

description = Blueprint("description", __name__)

_TAGS = {
    "copying": "Events and copies",
    "looking": "What happened, and how it stands",
    "operating": "What a person decides",
    "health": "Is it there?",
}
_ABOUT = """Copies objects from MinIO to another S3 store the moment they are written.

`/v1` takes `Authorization: Bearer $API_TOKEN`, the webhook `Bearer $WEBHOOK_AUTH_TOKEN`; where a token is \
not set on the service, only callers on its own machine are let in. Every error is \
`{"error": {"code", "message", "hint"}}`."""
_TOKENS = {"api": "the value of API_TOKEN", "webhook": "the value of WEBHOOK_AUTH_TOKEN"}
_QUERY: dict[str, Schema] = {
    "rule": RULE,
    "prefix": TEXT | {"description": "What the key begins with."},
    "contains": TEXT | {"description": "What the key has in it, as it is written."},
    "reason": TEXT | {"description": "The code of what it failed by, as /v1/failures/reasons lists them."},
    "state": one_of(*STATES),
    "key": TEXT | {"description": "Exactly this key; goes with `rule` alone. Every key can be asked for so."},
    "limit": WHOLE | {"minimum": 1, "maximum": LIMIT_MAX, "default": LIMIT},
    "cursor": TEXT | {"description": "The `next` of the page before."},
}
_NARROWED: Schema = {"rule": RULE, "prefix": TEXT}
_WHICH_RECORD: Schema = {
    "oneOf": [
        sent({"record_id": TEXT | {"description": "Of GET /v1/quarantine."}}, needs=("record_id",)),
        sent({"all": {"const": True}}, needs=("all",)),
    ]
}
_EVENT = {
    "Records": [
        {
            "eventName": "s3:ObjectCreated:Put",
            "s3": {"bucket": {"name": "uploads"}, "object": {"key": "hello.txt"}},
        }
    ]
}
_LINKS: dict[str, tuple[str, dict[str, str], dict[str, str]]] = {
    "post /v1/replicate": ("get_v1_entries_rule_key", {"rule": "rule", "key": "s3_key"}, {}),
    "get /v1/entries": ("get_v1_entries", {"cursor": "next"}, {}),
    "get /v1/failures": ("get_v1_entries_rule_key", {"rule": "failures/0/rule", "key": "failures/0/key"}, {}),
    "get /v1/quarantine": ("post_v1_quarantine_retry", {}, {"record_id": "records/0/record_id"}),
    "post /v1/sweeps": ("get_v1_sweeps_number", {"number": "sweeps/0/id"}, {}),
    "post /v1/pause": ("post_v1_resume", {}, {"rule": "changed/0"}),
}
"""Operation → which one goes on from its answer, and with what of it as parameters and in the body."""
_ERRORS = {
    400: "Something that was sent cannot be used; the hint says what can.",
    401: "The token is missing or wrong.",
    404: "There is no such thing.",
    413: "The body is larger than the service takes.",
    500: "Something unforeseen went wrong; the log has it.",
    502: "A store refused or does not answer, and which.",
    503: "The ledger cannot be read or cannot commit now; nothing was changed.",
}


@description.get("/openapi.json")
def openapi() -> Response:
    """This description."""
    return Response(_written(), mimetype="application/json")


@cache
def _written() -> str:
    return json.dumps(document(), ensure_ascii=False)


def document() -> dict[str, Any]:
    """All of it."""
    paths: dict[str, Any] = {}
    for method, path, operation in _operations():
        operation["x-codeSamples"] = [{"lang": "Shell", "source": _curl(method, path, operation)}]
        paths.setdefault(path, {})[method] = operation
    return {
        "openapi": "3.1.0",
        "info": {"title": "minio-replicator", "version": VERSION, "description": _ABOUT},
        "servers": [{"url": "/"}],
        "tags": [{"name": name, "description": text} for name, text in _TAGS.items()],
        "paths": paths,
        "components": {
            "schemas": SCHEMAS,
            "securitySchemes": {
                name: {"type": "http", "scheme": "bearer", "description": f"Send {value}."}
                for name, value in _TOKENS.items()
            },
        },
    }


# ── one operation ────────────────────────────────────────────────────────────────────────────────────


def _get(path: str, summary: str, answer: str, *errors: int, **more: Any) -> _Described:
    return "get", path, _operation(path, "get", summary, {200: ref(answer)}, errors, **more)


def _post(path: str, summary: str, answers: Mapping[int, Schema], *errors: int, **more: Any) -> _Described:
    return "post", path, _operation(path, "post", summary, answers, (*errors, 400, 413), **more)


def _operation(
    path: str,
    method: str,
    summary: str,
    answers: Mapping[int, Schema],
    errors: Sequence[int] = (),
    *,
    tag: str = "looking",
    token: str = "api",  # noqa: S107 - which one, not its value
    view: str = "",
    parameters: Sequence[Schema] = (),
    body: Schema | None = None,
    example: Any = None,
    needs_body: bool = False,
    media_type: str = "application/json",
) -> dict[str, Any]:
    """`view`: whose query parameters it takes; `token`: which it wants, "" for none."""
    name = f"{method}_{path}".replace("{", "").replace("}", "").replace(".", "_")
    usual = (400, 401, 503) if token == "api" else ()  # noqa: S105
    found: dict[str, Any] = {
        "operationId": "_".join(filter(None, name.replace("/", "_").split("_"))),
        "tags": [tag],
        "summary": summary,
        "security": [{token: []}] if token else [],
        "parameters": [*parameters, *(_in_query(each, view) for each in QUERIES.get(view, ()))],
        "responses": {
            **{str(status): _answer(schema, media_type) for status, schema in answers.items()},
            **{str(status): _error(status) for status in sorted({*errors, *usual} - set(answers))},
        },
    }
    if link := _LINKS.get(f"{method} {path}"):
        found["responses"][str(min(answers))]["links"] = {"next": _link(*link)}
    if body is not None:
        content: Schema = {"schema": body} | ({} if example is None else {"example": example})
        found["requestBody"] = {"required": needs_body, "content": {"application/json": content}}
    return found


def _link(goes_to: str, parameters: Mapping[str, str], body: Mapping[str, str]) -> Schema:
    def of_answer(places: Mapping[str, str]) -> dict[str, str]:
        return {name: f"$response.body#/{place}" for name, place in places.items()}

    found: Schema = {"operationId": goes_to}
    found |= {"parameters": of_answer(parameters)} if parameters else {}
    return found | ({"requestBody": of_answer(body)} if body else {})


def _in_query(name: str, view: str) -> Schema:
    schema = _QUERY[name]
    if (view, name) == ("quarantine", "limit"):
        schema = schema | {"maximum": QUARANTINE_LIMIT_MAX}
    return {"name": name, "in": "query", "required": False, "schema": schema}


def _in_path(name: str, schema: Schema) -> Schema:
    return {"name": name, "in": "path", "required": True, "schema": schema}


def _answer(schema: Schema, media_type: str) -> Schema:
    return {"description": "Done.", "content": {media_type: {"schema": schema}}}


def _error(status: int) -> Schema:
    found: Schema = {
        "description": _ERRORS[status],
        "content": {"application/json": {"schema": ref("Error")}},
    }
    if status == 503:
        found["headers"] = {"Retry-After": {"schema": TEXT, "description": "Seconds.", "required": True}}
    if status == 401:
        found["headers"] = {"WWW-Authenticate": {"schema": TEXT, "required": True}}
    return found


def _curl(method: str, path: str, operation: Mapping[str, Any]) -> str:
    """A call that can be pasted, with the addresses and tokens in variables."""
    words = ["curl"] + ([] if method == "get" else ["-X", method.upper()])
    for name in (name for each in operation["security"] for name in each):
        variable = {"api": "API_TOKEN", "webhook": "WEBHOOK_AUTH_TOKEN"}[name]
        words += ["-H", f'"Authorization: Bearer ${variable}"']
    content = operation.get("requestBody", {}).get("content", {}).get("application/json", {})
    if "example" in content:
        words += ["-H", "'Content-Type: application/json'", "-d", shlex.quote(json.dumps(content["example"]))]
    filled = path.format(rule="default", key="hello.txt", number=1)
    return " ".join([*words, f'"$REPLICATOR_URL{filled}"'])


# ── all of them ──────────────────────────────────────────────────────────────────────────────────────


def _operations() -> list[_Described]:
    return [*_copying(), *_looking(), *_deciding(), *_health()]


def _copying() -> list[_Described]:
    copy = ref("Copy")
    one: Schema = {
        "type": "object",
        "properties": {"s3_key": KEY, "bucket": TEXT, "wait": YES_OR_NO | {"default": True}},
        "required": ["s3_key"],
    }
    notification: Schema = {"type": "object", "properties": {"Records": {"type": "array"}}}
    copied = dict.fromkeys((200, 202, 404, 409, 500, 502), copy)
    copied[500] = copied[502] = {"anyOf": [copy, ref("Error")]}
    accepted = {200: {"anyOf": [ref("Accepted"), ref("Probed")]}}
    events: dict[str, Any] = {"tag": "copying", "token": "webhook", "body": notification, "example": _EVENT}
    return [
        _post(
            "/v1/replicate",
            "Copies one object now, and answers with what came of it.",
            copied,
            tag="copying",
            body=one,
            example={"s3_key": "hello.txt"},
            needs_body=True,
        ),
        _post(
            "/minio/events",
            "Records a notification of MinIO's; 200 means it is on disk. An empty body is a probe.",
            accepted,
            *(401, 503),
            **events,
        ),
        _get("/minio/events", "MinIO's probe.", "Probed", tag="copying", token=""),
    ]


def _looking() -> list[_Described]:
    of_entry = [_in_path("rule", RULE), _in_path("key", KEY)]
    of_sweep = [_in_path("number", WHOLE | {"minimum": 1, "maximum": 2**31 - 1})]
    return [
        _get("/v1/status", "How it stands, in sentences and in numbers.", "Status"),
        _get("/v1/entries", "Entries by rule and key.", "Entries", view="entries"),
        _get("/v1/entries/{rule}/{key}", "One entry.", "Entry", 404, parameters=of_entry),
        _get("/v1/failures", "What was put aside, and why.", "Failures", view="failures"),
        _get(
            "/v1/failures/reasons",
            "How many failed by what, the most first.",
            "Reasons",
            view="failure_reasons",
        ),
        _get("/v1/quarantine", "Events that nobody can act on.", "Records", view="quarantine"),
        _get("/v1/sweeps", "The latest sweeps, newest first.", "Sweeps", view="list_sweeps"),
        _get("/v1/sweeps/{number}", "One sweep.", "Sweep", 404, parameters=of_sweep),
    ]


def _deciding() -> list[_Described]:
    by_rule, one_rule = sent({"rule": RULE}), {"rule": "default"}
    retry = sent({**_NARROWED, "reason": TEXT, "key": TEXT})
    failed = {"reason": "target_store_refused"}
    retried = thing({"retried": WHOLE})
    numbers = by_name(WHOLE, "rule → how many")
    approved, discarded = thing({"approved": numbers}), thing({"discarded": numbers})
    dropped, paused = thing({"discarded": WHOLE}), ref("Paused")
    return [
        _decision("/v1/failures/retry", "Tries again what failed.", retried, retry, failed),
        _decision("/v1/pause", "Pauses a rule, or all.", paused, by_rule, one_rule),
        _decision("/v1/resume", "Resumes a rule, or all.", paused, by_rule, one_rule),
        _post(
            "/v1/sweeps",
            "Compares both sides now.",
            {202: ref("Sweeps")},
            502,
            tag="operating",
            body=sent(_NARROWED),
            example=one_rule,
        ),
        _decision("/v1/deletes/approve", "Lets held deletes go.", approved, by_rule, one_rule),
        _decision("/v1/deletes/discard", "Keeps those copies.", discarded, by_rule, one_rule),
        _decision("/v1/quarantine/discard", "Drops records.", dropped, _WHICH_RECORD, {"all": True}),
        _decision("/v1/quarantine/retry", "Reads records again.", ref("Tried"), _WHICH_RECORD, {"all": True}),
    ]


def _decision(path: str, summary: str, answer: Schema, takes: Schema, example: Any) -> _Described:
    needs_body = takes is _WHICH_RECORD
    return _post(
        path, summary, {200: answer}, tag="operating", body=takes, example=example, needs_body=needs_body
    )


def _health() -> list[_Described]:
    open_to_all: dict[str, Any] = {"tag": "health", "token": ""}
    ready = dict.fromkeys((200, 503), ref("Readiness"))
    is_ready = "Ledger and stores answer."
    return [
        _get("/healthz", "The process answers.", "Health", **open_to_all),
        ("get", "/readyz", _operation("/readyz", "get", is_ready, ready, **open_to_all)),
        (
            "get",
            "/metrics",
            _operation(
                "/metrics",
                "get",
                "Numbers of all processes, for Prometheus; without a token where METRICS_PUBLIC is true.",
                {200: TEXT},
                tag="looking",
                media_type="text/plain",
            ),
        ),
        (
            "get",
            "/openapi.json",
            _operation("/openapi.json", "get", "This description.", {200: {"type": "object"}}, **open_to_all),
        ),
    ]
