"""The way to the pages: who is let in, what every answer carries, and how an error looks."""

from __future__ import annotations

import math
from typing import Any

import structlog
from flask import Blueprint, Response, current_app, g, redirect, render_template, request, url_for
from werkzeug.exceptions import HTTPException

from webhook.callers import NotFound, Unauthorized, configured
from webhook.errors import BadRequest, LedgerUnavailable, ReplicatorError, StoreError
from webhook.pages.sessions import TOKEN_FIELD, Sessions
from webhook.pages.words import FILTERS
from webhook.version import VERSION

HEADERS = {
    "Content-Security-Policy": "default-src 'none'; style-src 'self'; script-src 'self'; connect-src 'self'; "
    "img-src data:; form-action 'self'; base-uri 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "same-origin",  # with "no-referrer", browsers hide the origin of forms
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
}
TROUBLE = {
    BadRequest: (400, "That cannot be done"),
    NotFound: (404, "There is nothing here"),
    Unauthorized: (401, "You are not let in"),
    LedgerUnavailable: (503, "The ledger does not answer"),
    StoreError: (502, "A store does not do what was asked"),
}
RETRY_AFTER_S = 5

log = structlog.get_logger("webhook.pages")
pages = Blueprint(
    "pages", __name__, template_folder="templates", static_folder="static", static_url_path="/page"
)
for _name, _filter in FILTERS.items():
    pages.add_app_template_filter(_filter, _name)


def sessions() -> Sessions:
    """Those of this process."""
    found: Sessions = current_app.extensions.setdefault("sessions", Sessions(configured().web.api_token))
    return found


@pages.before_request
def _let_in() -> Response | None:
    """All but the sign-in and what all pages look like is for those who were let in."""
    if request.endpoint == "pages.static":
        return None
    if _came_from_elsewhere():
        return page("onward.html", path=_local(request.full_path.rstrip("?")))
    if request.endpoint == "pages.sign_in":
        g.session = sessions().read(request) or sessions().begin(is_signed_in=False)
        return None
    session = sessions().admit(request)
    if session is None:
        back = request.full_path.rstrip("?") if request.method == "GET" else "/"
        return _to(url_for("pages.sign_in", back=back))
    if request.method == "POST":
        sessions().check_post(sessions().read(request), request)
    g.session = session
    return None


def _came_from_elsewhere() -> bool:
    """Whether a link of another site led here. The browser keeps back the session's cookie then: a page of
    our own has to ask again, before somebody who has signed in is given a guest's session instead.
    """
    is_link = request.method == "GET" and request.headers.get("Sec-Fetch-Site") == "cross-site"
    return is_link and sessions().read(request) is None


@pages.after_request
def _add_headers(response: Response) -> Response:
    response.headers.update(HEADERS)
    if request.endpoint == "pages.static":
        return response
    response.headers["Cache-Control"] = "no-store"
    session = g.get("session")
    if session and session != sessions().read(request):
        sessions().keep(session, request, response)
    return response


# ── signing in and out ───────────────────────────────────────────────────────────────────────────────


@pages.route("/sign-in", methods=["GET", "POST"])
def sign_in() -> Response:
    """A form for API_TOKEN; with the right one, a session."""
    back = _local(request.args.get("back", "/"))
    if not sessions().needs_sign_in:
        sessions().admit(request)
        return _to(back)
    if request.method == "GET":
        return page("sign_in.html", back=back)
    sessions().check_post(sessions().read(request), request)
    if not sessions().is_token(request.form.get("token", "").strip()):
        return _wrong_token(back)
    response = _to(back)  # whatever was counted: others behind the same proxy must not shut it out
    sessions().keep(sessions().begin(is_signed_in=True), request, response)
    return response


def _wrong_token(back: str) -> Response:
    """The form once more; from an address that sent many, it is logged no more for a while."""
    peer, failures = request.remote_addr or "", sessions().failures
    if wait_s := math.ceil(failures.wait_s(peer)):
        problem = "That is not the API_TOKEN of the service, and many wrong ones came from your address."
        response = page("sign_in.html", status=429, back=back, problem=problem)
        response.headers["Retry-After"] = str(wait_s)
        return response
    failures.count(peer)
    log.warning("sign-in refused", peer=peer)
    return page("sign_in.html", status=401, back=back, problem="That is not the API_TOKEN of the service.")


@pages.post("/sign-out")
def sign_out() -> Response:
    """Ends the session in this browser."""
    response = _to(url_for("pages.sign_in"))
    sessions().forget(request, response)
    return response


def _local(path: str) -> str:
    """A path of this service; whatever else it is, the first page."""
    is_local = path.startswith("/") and not path.startswith(("//", "/\\")) and path.isprintable()
    return path if is_local else "/"


# ── answers ──────────────────────────────────────────────────────────────────────────────────────────


def page(template: str, *, status: int = 200, **facts: Any) -> Response:
    """A page of HTML."""
    session, note = g.get("session"), sessions().take_note(request)
    shared = {
        "version": VERSION,
        "token_field": TOKEN_FIELD,
        "form_token": sessions().form_token(session) if session else "",
        "can_see": session is not None and request.endpoint != "pages.sign_in",
        "can_sign_out": bool(session and session.is_signed_in),
        "note": note,
    }
    response = Response(render_template(template, **shared, **facts), status, mimetype="text/html")
    if note is not None:
        sessions().drop_note(request, response)
    return response


def done(text: str, path: str) -> Response:
    """The answer to a POST: on with that page, which says what was done."""
    response = _to(path)
    sessions().note(text, request, response)
    return response


def _to(path: str) -> Response:
    """303: the next request is a GET."""
    found = redirect(path, code=303)
    return Response(
        found.get_data(), 303, headers={"Location": found.headers["Location"]}, mimetype="text/html"
    )


@pages.errorhandler(ReplicatorError)
def _trouble(error: ReplicatorError) -> Response:
    known = next((told for kind, told in TROUBLE.items() if isinstance(error, kind)), None)
    status, title = known or (500, "Something went wrong")
    if status >= 500:
        log.warning("page failed", path=request.path, error=error.message)
    response = page("trouble.html", status=status, title=title, message=error.message, hint=error.hint)
    if status == 503:
        response.headers["Retry-After"] = str(RETRY_AFTER_S)
    return response


@pages.errorhandler(HTTPException)
def _refused(error: HTTPException) -> Response:
    return page(
        "trouble.html", status=error.code or 500, title=error.name, message=error.description or "", hint=""
    )


@pages.errorhandler(Exception)
def _unexpected(error: Exception) -> Response:
    log.error("unexpected error", path=request.path, exc_info=error)
    hint = "The service's log has the details."
    return page("trouble.html", status=500, title="Something unforeseen went wrong", message="", hint=hint)
