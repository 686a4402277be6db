"""The HTTP side: MinIO's notifications, the manual copy, and health; operating.py has the rest of it.

Every error is `{"error": {"code", "message", "hint"}}`.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import IO, Any
from urllib.parse import quote

import structlog
from flask import Blueprint, Flask, Response, jsonify, request
from flask import Request as FlaskRequest
from werkzeug.exceptions import HTTPException, RequestEntityTooLarge
from werkzeug.routing import BaseConverter
from werkzeug.utils import cached_property

from webhook import events, logs, settings, traces
from webhook.callers import json_object, let_in, refuse_query, service
from webhook.copier import OutcomeKind
from webhook.entries import Buried, Deferred, Ending, Held, Parked, Request, Retried, Settled
from webhook.errors import BadRequest, LedgerUnavailable, ReplicatorError, StoreError
from webhook.metrics import exposition
from webhook.openapi import description
from webhook.operating import operating
from webhook.pages import pages
from webhook.rules import Rule
from webhook.service import assemble
from webhook.settings import Settings

Answer = tuple[dict[str, Any], int]
"""What came of one copy, and its HTTP status."""

WAIT_S = 300.0
"""How long a manual request waits for an entry that somebody else is copying."""
RETRY_AFTER_S = 3
"""MinIO's own pause between deliveries."""

log = structlog.get_logger("webhook.app")


class _KeyConverter(BaseConverter):
    """The rest of the path as an object key: slashes anywhere, also first and last."""

    regex = r"[\s\S]+"
    part_isolating = False


class _Request(FlaskRequest):
    """Its body has come whole, as it was announced: to some calls, none at all means all there is."""

    @cached_property
    def stream(self) -> IO[bytes]:
        """All of the body. Raises: BadRequest, RequestEntityTooLarge."""
        hint = "Send it again; where that does not help, look at what is between you and the service."
        try:
            body = super().stream.read()
        except HTTPException:
            raise
        except Exception:  # noqa: BLE001 - the server's own, which has no base to name them by
            raise BadRequest("the body is not in the chunks it was announced in", hint=hint) from None
        if self.content_length is None and len(body) >= (self.max_content_length or 0):
            raise RequestEntityTooLarge  # it is cut there
        if len(body) < (self.content_length or 0):
            raise BadRequest("the body is shorter than it was announced", hint=hint)
        return io.BytesIO(body)


def create_app(configured: Settings | None = None) -> Flask:
    """The application with its ledger, stores and worker; the worker's threads are not started yet.

    Raises: SettingsError, LedgerUnavailable, LedgerVersionError.
    """
    configured = configured or settings.load()
    logs.configure(configured.log_format)
    app = Flask("webhook", static_folder=None)
    app.request_class = _Request
    app.config["MAX_CONTENT_LENGTH"] = configured.web.body_max_bytes
    app.url_map.merge_slashes = False
    app.url_map.converters["key"] = _KeyConverter
    app.json.sort_keys = False  # type: ignore[attr-defined]
    app.json.ensure_ascii = False  # type: ignore[attr-defined]
    app.extensions["settings"] = configured
    app.extensions["service"] = assemble(configured)
    for blueprint in (_minio, _api, operating, description, exposition, pages, _health):
        app.register_blueprint(blueprint)
    app.register_error_handler(ReplicatorError, _replicator_error)
    app.register_error_handler(HTTPException, _http_error)
    app.register_error_handler(Exception, _unexpected_error)
    app.after_request(_add_headers)
    return app


def _add_headers(response: Response) -> Response:
    """No answer is kept by a cache or taken for another type than it is; pages have more of this."""
    response.headers.setdefault("Cache-Control", "no-store")
    response.headers["X-Content-Type-Options"] = "nosniff"
    return response


# ── MinIO ────────────────────────────────────────────────────────────────────────────────────────────

_minio = Blueprint("minio", __name__)


@_minio.get("/minio/events")
def probe() -> Response:
    """MinIO asks whether its target is there, in some versions without the token."""
    return jsonify(status="ready")


@_minio.post("/minio/events")
def accept_events() -> Response:
    """Records a notification; 200 means it is on disk."""
    if not (request.content_length or "Transfer-Encoding" in request.headers):
        return probe()
    let_in(lambda web: web.webhook_auth_token, name="WEBHOOK_AUTH_TOKEN")  # before a stranger's body is read
    body = request.get_data(cache=False)
    if not body:
        return probe()
    found = events.asked(body, service().sides.rules)
    if found.requests or found.misfits:
        with traces.asking("event") as trace:
            service().ledger.put(traces.with_trace(found.requests, trace), found.misfits)
    service().ledger.meter.events(
        accepted=found.accepted, ignored=found.ignored, quarantined=len(found.misfits)
    )
    for misfit in found.misfits:
        log.warning("event quarantined", reason=misfit.reason, record=misfit.record_id)
    answer = f'{{"accepted":{found.accepted},"ignored":{found.ignored},"quarantined":{len(found.misfits)}}}\n'
    return Response(answer, mimetype="application/json")  # as jsonify makes it, in a third of the time


# ── the API ──────────────────────────────────────────────────────────────────────────────────────────

_api = Blueprint("api", __name__, url_prefix="/v1")


@_api.before_request
def _authorize() -> None:
    let_in(lambda web: web.api_token, name="API_TOKEN")
    refuse_query(())


@_api.post("/replicate")
def replicate() -> tuple[Response, int]:
    """Copies one object now, and answers with what came of it."""
    asked = json_object()
    key, wait = asked.get("s3_key"), asked.get("wait", True)
    if not isinstance(key, str):
        raise BadRequest("s3_key is missing", hint='Send {"s3_key": "path/to/your-file.txt"}.')
    if problem := events.key_problem(key):
        raise BadRequest(f"s3_key cannot be used: {problem}", hint="Send the object's key as MinIO lists it.")
    if not isinstance(wait, bool):
        raise BadRequest("wait must be true or false", hint="Leave it out to wait for the copy.")
    found = _rules_for(asked.get("bucket"), key)
    with traces.asking("replicate", parent=request.headers.get("traceparent")) as trace:
        if wait:
            answers = [_replicate_now(rule, key, trace) for rule in found]
        else:
            service().ledger.put([Request(rule=rule.name, key=key, trace=trace) for rule in found])
            answers = [_queued(rule, key) for rule in found]
    return _together(answers)


def _replicate_now(rule: Rule, key: str, trace: str | None) -> Answer:
    ending = service().worker.replicate_now(rule, key, wait_s=WAIT_S, trace=trace)
    return _queued(rule, key) if ending is None else _answer(rule, key, ending)


def _together(answers: Sequence[Answer]) -> tuple[Response, int]:
    """One answer for all: the worst there is, and what else there is as `copies`."""
    order = (*(500, 502, 404, 202, 200), 409)  # 409 only where nothing was to be done anywhere
    facts, status = min(answers, key=lambda answer: order.index(answer[1]))
    copies = {"copies": [each for each, _ in answers]} if len(answers) > 1 else {}
    return jsonify({**facts, **copies}), status


def _rules_for(bucket: object, key: str) -> tuple[Rule, ...]:
    """The rules that want the object. Raises: BadRequest."""
    in_force = service().sides.rules
    names = in_force.literal_buckets
    listed = f"Name one of: {', '.join(names)}." if names else "Name one that a rule copies."
    if bucket is None:
        if len(names) != 1 or in_force.has_globs:
            raise BadRequest("there are several source buckets, and bucket is missing", hint=listed)
        bucket = names[0]
    if not isinstance(bucket, str) or not any(each.matches(bucket) for each in in_force):
        raise BadRequest("no rule copies that bucket", hint=listed)
    found = in_force.matching(bucket=bucket, key=key)
    if not found:
        raise BadRequest(
            "no rule wants that key", hint="See prefix, suffix, include and exclude in the file of rules."
        )
    return found


def _answer(rule: Rule, key: str, ending: Ending) -> Answer:
    link = {"rule": rule.name, "s3_key": key, "entry": _entry_link(rule, key)}
    match ending:
        case Settled(outcome=OutcomeKind.GONE | OutcomeKind.DELETED) | Deferred() | Held():
            message = f"there is no object {key!r} in {rule.source_bucket}"
            hint = "Check the key's spelling; keys are case-sensitive and have no leading slash as a rule."
            return link | _error_facts("not_found", message, hint), 404
        case Settled():
            return _settled_answer(rule, key, ending)
        case Retried() | Buried():
            again = f"It is tried again in {ending.after_s:.0f} s." if isinstance(ending, Retried) else ""
            hint = (
                again or "It will not be tried again by itself: mend the cause, then send this request again."
            )
            is_store = ending.error_code.startswith(("source_", "target_", "integrity"))
            return link | _error_facts(ending.error_code, ending.error, hint), 502 if is_store else 500
        case Parked():
            facts, status = _queued(rule, key)
            return facts | {"paused": True}, status
        case _:
            return _queued(rule, key)


def _settled_answer(rule: Rule, key: str, ending: Settled) -> Answer:
    is_new = ending.outcome == OutcomeKind.REPLICATED
    facts: dict[str, Any] = {
        "status": "replicated" if is_new else "exists",
        "s3_key": key,
        "bucket": rule.source_bucket,
        "rule": rule.name,
        "size": ending.size,
        "source_etag": ending.source_etag,
        "target_etag": ending.target_etag,
        "lost": list(ending.lost),
        "entry": _entry_link(rule, key),
    }
    if ending.cid:
        facts["cid"] = ending.cid
    if is_new:
        return facts, 200
    message = "the target already holds this object"
    return facts | _error_facts("exists", message, "Nothing is to be done: nothing was copied."), 409


def _queued(rule: Rule, key: str) -> Answer:
    return {"status": "queued", "s3_key": key, "rule": rule.name, "entry": _entry_link(rule, key)}, 202


def _entry_link(rule: Rule, key: str) -> str:
    return f"/v1/entries/{quote(rule.name, safe='')}/{quote(key, safe='/')}"


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
    for name, check in service().checks().items():
        try:
            check()
            checks[name] = "ok"
        except (LedgerUnavailable, StoreError) as error:
            checks[name] = error.code
            log.warning("not ready", part=name, error=error.message, hint=error.hint)
    is_ready = set(checks.values()) == {"ok"}
    return jsonify(status="ready" if is_ready else "not ready", checks=checks), 200 if is_ready else 503


# ── what went wrong ──────────────────────────────────────────────────────────────────────────────────


_STATUS = {"bad_request": 400, "unauthorized": 401, "not_found": 404}
_STATUS |= {"ledger_unavailable": 503, "ledger_lost": 503}


def _error_facts(code: str, message: str, hint: str) -> dict[str, Any]:
    return {"error": {"code": code, "message": message, "hint": hint}}


def _error(status: int, code: str, message: str, hint: str) -> tuple[Response, int]:
    return jsonify(_error_facts(code, message, hint)), status


def _replicator_error(error: ReplicatorError) -> tuple[Response, int]:
    status = 502 if isinstance(error, StoreError) else _STATUS.get(error.code, 500)
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
        404: "GET /openapi.json lists all there is: POST /v1/replicate and GET /v1/status, for example.",
        405: "GET /openapi.json lists the methods of each path.",
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
