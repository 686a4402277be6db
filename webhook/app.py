"""The HTTP side: MinIO's notifications, the manual copy, and looking at what happened.

Every error is `{"error": {"code", "message", "hint"}}`.
"""

from __future__ import annotations

import hmac
import ipaddress
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote

import structlog
from flask import Blueprint, Flask, Response, current_app, jsonify, request
from werkzeug.exceptions import HTTPException
from werkzeug.routing import BaseConverter

import webhook
from webhook import events, logs, rules, settings
from webhook.copier import OutcomeKind
from webhook.entries import Buried, Ending, Misfit, Request, Retried, Settled
from webhook.errors import BadRequest, LedgerUnavailable, ReplicatorError, StoreError
from webhook.ledger import Ledger
from webhook.rules import Rule
from webhook.settings import Settings
from webhook.worker import Service, assemble

WAIT_S = 300.0
"""How long a manual request waits for an entry that somebody else is copying."""
RETRY_AFTER_S = 3
"""MinIO's own pause between deliveries."""
PROXY_HEADERS = ("Forwarded", "X-Forwarded-For", "X-Forwarded-Host", "X-Real-Ip", "Via")
WANTED_EVENTS = ("s3:ObjectCreated:", "s3:ObjectRemoved:", "s3:ObjectTagging:")

log = structlog.get_logger("webhook.app")


class Unauthorized(ReplicatorError):
    """The caller has no token, or the wrong one."""

    code = "unauthorized"


class NotFound(ReplicatorError):
    """What was asked for is not there."""

    code = "not_found"


class _KeyConverter(BaseConverter):
    """The rest of the path as an object key: slashes anywhere, also first and last."""

    regex = r"[\s\S]+"
    part_isolating = False


def create_app(configured: Settings | None = None) -> Flask:
    """The application with its ledger, stores and worker; the worker's threads are not started yet.

    Raises: SettingsError, LedgerUnavailable, LedgerVersionError.
    """
    configured = configured or settings.load()
    logs.configure(configured.log_format)
    app = Flask("webhook", static_folder=None)
    app.config["MAX_CONTENT_LENGTH"] = configured.web.body_max_bytes
    app.url_map.merge_slashes = False
    app.url_map.converters["key"] = _KeyConverter
    app.json.sort_keys = False  # type: ignore[attr-defined]
    app.json.ensure_ascii = False  # type: ignore[attr-defined]
    app.extensions["settings"] = configured
    app.extensions["service"] = assemble(configured)
    for blueprint in (_minio, _api, _health):
        app.register_blueprint(blueprint)
    app.register_error_handler(ReplicatorError, _replicator_error)
    app.register_error_handler(HTTPException, _http_error)
    app.register_error_handler(Exception, _unexpected_error)
    return app


def _service() -> Service:
    service: Service = current_app.extensions["service"]
    return service


def _ledger() -> Ledger:
    return _service().ledger


def _configured() -> Settings:
    configured: Settings = current_app.extensions["settings"]
    return configured


# ── MinIO ────────────────────────────────────────────────────────────────────────────────────────────

_minio = Blueprint("minio", __name__)


@_minio.get("/minio/events")
def probe() -> Response:
    """MinIO asks whether its target is there, in some versions without the token."""
    return jsonify(status="ready")


@_minio.post("/minio/events")
def accept_events() -> Response:
    """Records a notification; 200 means it is on disk."""
    body = request.get_data(cache=False)
    if not body:
        return probe()
    _let_in(_configured().web.webhook_auth_token, name="WEBHOOK_AUTH_TOKEN")
    notification = events.parse(body)
    wanted = [_requests(change) for change in notification.changes]
    misfits = [
        Misfit(record_id=each.record_id, reason=each.reason, raw=each.raw) for each in notification.unusable
    ]
    requests = [each for of_change in wanted for each in of_change]
    if requests or misfits:
        _ledger().put(requests, misfits)
    for misfit in misfits:
        log.warning("event quarantined", reason=misfit.reason, record=misfit.record_id)
    ignored = wanted.count([])
    accepted = len(wanted) - ignored
    answer = f'{{"accepted":{accepted},"ignored":{ignored},"quarantined":{len(misfits)}}}\n'
    return Response(answer, mimetype="application/json")  # as jsonify makes it, in a third of the time


def _requests(change: events.Change) -> list[Request]:
    """What a change asks for: nothing where no rule wants the bucket or the event changes no object."""
    if not change.event_name.startswith(WANTED_EVENTS):
        return []
    return [
        Request(rule=rule.name, key=change.key, event_id=change.event_id, event_at=change.event_at)
        for rule in rules.matching(_service().rules, bucket=change.bucket)
    ]


# ── the API ──────────────────────────────────────────────────────────────────────────────────────────

_api = Blueprint("api", __name__, url_prefix="/v1")


@_api.before_request
def _authorize() -> None:
    _let_in(_configured().web.api_token, name="API_TOKEN")


@_api.post("/replicate")
def replicate() -> tuple[Response, int]:
    """Copies one object now, and answers with what came of it."""
    asked = _json_object()
    key, wait = asked.get("s3_key"), asked.get("wait", True)
    if not isinstance(key, str):
        raise BadRequest("s3_key is missing", hint='Send {"s3_key": "path/to/your-file.txt"}.')
    if problem := events.key_problem(key):
        raise BadRequest(f"s3_key cannot be used: {problem}", hint="Send the object's key as MinIO lists it.")
    if not isinstance(wait, bool):
        raise BadRequest("wait must be true or false", hint="Leave it out to wait for the copy.")
    rule = _rule_for(asked.get("bucket"))
    if not wait:
        _ledger().put([Request(rule=rule.name, key=key)])
        return _queued(rule, key)
    ending = _service().worker.replicate_now(rule, key, wait_s=WAIT_S)
    return _queued(rule, key) if ending is None else _answer(rule, key, ending)


def _rule_for(bucket: object) -> Rule:
    in_force = _service().rules
    if bucket is None:
        return in_force[0]
    found = rules.matching(in_force, bucket=bucket) if isinstance(bucket, str) else ()
    if not found:
        names = ", ".join(rule.source_bucket for rule in in_force)
        raise BadRequest("no rule copies that bucket", hint=f"Leave bucket out, or name one of: {names}.")
    return found[0]


def _answer(rule: Rule, key: str, ending: Ending) -> tuple[Response, int]:
    link = _entry_link(rule, key)
    match ending:
        case Settled(outcome=OutcomeKind.GONE):
            raise NotFound(
                f"there is no object {key!r} in {rule.source_bucket}",
                hint="Check the key's spelling; keys are case-sensitive and have no leading slash as a rule.",
            )
        case Settled():
            return _settled_answer(rule, key, ending)
        case Retried() | Buried():
            again = f"It is tried again in {ending.after_s:.0f} s." if isinstance(ending, Retried) else ""
            hint = (
                again or "It will not be tried again by itself: mend the cause, then send this request again."
            )
            is_store = ending.error_code.startswith(("source_", "target_", "integrity"))
            return _error(502 if is_store else 500, ending.error_code, ending.error, hint, entry=link)
        case _:
            return _queued(rule, key)


def _settled_answer(rule: Rule, key: str, ending: Settled) -> tuple[Response, int]:
    is_new = ending.outcome == OutcomeKind.REPLICATED
    facts: dict[str, Any] = {
        "status": "replicated" if is_new else "exists",
        "s3_key": key,
        "bucket": rule.source_bucket,
        "size": ending.size,
        "source_etag": ending.source_etag,
        "target_etag": ending.target_etag,
        "lost": list(ending.lost),
        "entry": _entry_link(rule, key),
    }
    if ending.cid:
        facts["cid"] = ending.cid
    if is_new:
        return jsonify(facts), 200
    held = {"code": "exists", "message": "the target already holds this object"}
    return jsonify({**facts, "error": {**held, "hint": "Nothing is to be done: nothing was copied."}}), 409


def _queued(rule: Rule, key: str) -> tuple[Response, int]:
    return jsonify(status="queued", s3_key=key, entry=_entry_link(rule, key)), 202


def _entry_link(rule: Rule, key: str) -> str:
    return f"/v1/entries/{quote(rule.name, safe='')}/{quote(key, safe='/')}"


@_api.get("/entries/<rule>/<key:key>")
def entry(rule: str, key: str) -> Response:
    """Everything known about one key, with its latest attempts."""
    found = None if events.key_problem(key) or events.key_problem(rule) else _ledger().entry(rule, key)
    if found is None:
        raise NotFound("nobody has asked for that key yet", hint="POST /v1/replicate copies it now.")
    return jsonify(found)


@_api.get("/status")
def status() -> Response:
    """Counts by state and lane."""
    return jsonify(
        version=webhook.__version__,
        entries=_ledger().counts(),
        quarantined=_ledger().quarantined(),
        rules={
            rule.name: {"source": rule.source_bucket, "target": rule.target_bucket}
            for rule in _service().rules
        },
    )


@_api.get("/failures")
def failures() -> Response:
    """Failed entries in key order, narrowed by `rule`, `prefix` and `reason`; at most 1,000."""
    found = _ledger().failures(**_narrowed(request.args), limit=1000)
    return jsonify(failures=found)


@_api.post("/failures/retry")
def retry_failures() -> Response:
    """Makes failed entries waiting again; the JSON body narrows as in GET /v1/failures."""
    return jsonify(retried=_ledger().revive(**_narrowed(_json_object(may_be_empty=True))))


def _narrowed(asked: Mapping[str, Any]) -> dict[str, Any]:
    for name, value in asked.items():
        if name not in ("rule", "prefix", "reason") or not isinstance(value, str):
            raise BadRequest(f"cannot narrow by {name!r}", hint="Use rule, prefix and reason, each a string.")
        if value and (problem := events.key_problem(value)):
            raise BadRequest(f"{name} cannot be used: {problem}", hint="Send text as it is in the entries.")
    return {"rule": asked.get("rule"), "prefix": asked.get("prefix", ""), "error_code": asked.get("reason")}


def _json_object(*, may_be_empty: bool = False) -> dict[str, Any]:
    if may_be_empty and not request.get_data():
        return {}
    try:
        asked = request.get_json(force=True)
    except (HTTPException, RecursionError) as error:
        if getattr(error, "code", 400) != 400:
            raise
        asked = None
    if not isinstance(asked, dict):
        raise BadRequest("the body is not a JSON object", hint='Send JSON, such as {"s3_key": "a/b.txt"}.')
    return asked


# ── health ───────────────────────────────────────────────────────────────────────────────────────────

_health = Blueprint("health", __name__)


@_health.get("/healthz")
def healthz() -> Response:
    """The process answers."""
    return jsonify(status="alive")


@_health.get("/readyz")
def readyz() -> tuple[Response, int]:
    """The ledger can be written and both stores answer. Details are in the log: this needs no token."""
    checks = {}
    for name, check in _service().checks().items():
        try:
            check()
            checks[name] = "ok"
        except (LedgerUnavailable, StoreError) as error:
            checks[name] = error.code
            log.warning("not ready", part=name, error=error.message, hint=error.hint)
    is_ready = set(checks.values()) == {"ok"}
    return jsonify(status="ready" if is_ready else "not ready", checks=checks), 200 if is_ready else 503


# ── who may come in, and what went wrong ─────────────────────────────────────────────────────────────


def _let_in(token: str, *, name: str) -> None:
    """Raises Unauthorized unless the caller has the token; without one set, unless it is this machine."""
    if not token:
        if not _is_from_here():
            raise Unauthorized(
                f"{name} is not set, so only callers on the service's own machine are let in",
                hint=f"Set {name} on the service and send it as 'Authorization: Bearer …'.",
            )
        return
    given = request.headers.get("Authorization", "")
    if not hmac.compare_digest(given.encode(), f"Bearer {token}".encode()):
        raise Unauthorized(
            "the token is missing or wrong", hint=f"Send the value of {name} as 'Authorization: Bearer …'."
        )


def _is_from_here() -> bool:
    """A proxy on this machine would make every caller look local: its headers give it away."""
    if any(header in request.headers for header in PROXY_HEADERS):
        return False
    try:
        address = ipaddress.ip_address(request.remote_addr or "")
    except ValueError:
        return False
    mapped = getattr(address, "ipv4_mapped", None)
    return (mapped or address).is_loopback


_STATUS = {"bad_request": 400, "unauthorized": 401, "not_found": 404, "ledger_unavailable": 503}


def _error(status: int, code: str, message: str, hint: str, **more: str) -> tuple[Response, int]:
    return jsonify({**more, "error": {"code": code, "message": message, "hint": hint}}), status


def _replicator_error(error: ReplicatorError) -> tuple[Response, int]:
    status = _STATUS.get(error.code, 500)
    if status >= 500:
        log.warning("request failed", path=request.path, error=error.message)
    response, status = _error(status, error.code, error.message, error.hint)
    if status == 503:
        response.headers["Retry-After"] = str(RETRY_AFTER_S)
    if status == 401:
        response.headers["WWW-Authenticate"] = "Bearer"
    return response, status


def _http_error(error: HTTPException) -> tuple[Response, int]:
    hints = {
        404: "GET /v1/status, POST /v1/replicate and POST /minio/events are there; the README lists all.",
        405: "See the README for the methods of each path.",
        413: "MinIO's notifications are a few kB; send no more than 1 MiB.",
    }
    status = error.code or 500
    code = (error.name or "error").lower().replace(" ", "_")
    response, status = _error(status, code, error.description or code, hints.get(status, ""))
    if allowed := getattr(error, "valid_methods", None):
        response.headers["Allow"] = ", ".join(sorted(allowed))
    return response, status


def _unexpected_error(error: Exception) -> tuple[Response, int]:
    log.error("unexpected error", path=request.path, exc_info=error)
    return _error(500, "unexpected", "something unforeseen went wrong", "The service's log has the details.")
