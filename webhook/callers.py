"""Who calls, and what they sent: what all routes of the HTTP side have in common."""

from __future__ import annotations

import hmac
import ipaddress
from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit

from flask import current_app, request
from werkzeug.exceptions import HTTPException

from webhook.errors import BadRequest, ReplicatorError
from webhook.events import key_problem
from webhook.service import Service
from webhook.settings import Settings, WebSettings

LOOPBACK_NAMES = ("localhost", "127.0.0.1", "::1")
PROXY_HEADERS = ("Forwarded", "X-Forwarded-For", "X-Forwarded-Host", "X-Real-Ip", "Via")


class Unauthorized(ReplicatorError):
    """The caller has no token, or the wrong one."""

    code = "unauthorized"


class NotFound(ReplicatorError):
    """What was asked for is not there."""

    code = "not_found"


def service() -> Service:
    """What this process is made of."""
    found: Service = current_app.extensions["service"]
    return found


def configured() -> Settings:
    """The settings in force."""
    found: Settings = current_app.extensions["settings"]
    return found


def let_in(token_of: Callable[[WebSettings], str], *, name: str) -> None:
    """Raises Unauthorized unless the caller has the token; without one set, unless it is this machine."""
    token = token_of(configured().web)
    if not token:
        if not is_from_here():
            raise Unauthorized(
                f"{name} is not set, so only callers on the service's own machine are let in",
                hint=f"Set {name} on the service and send it as 'Authorization: Bearer …'.",
            )
        if _is_of_a_page_elsewhere() or (name == "API_TOKEN" and not is_own_name(request.host)):
            raise Unauthorized(
                f"{name} is not set, and a page elsewhere, or by another name, sent this",
                hint=f"Set {name} on the service, or ask it as localhost.",
            )
        return
    given = request.headers.get("Authorization", "")
    if not hmac.compare_digest(given.encode(), f"Bearer {token}".encode()):
        raise Unauthorized(
            "the token is missing or wrong", hint=f"Send the value of {name} as 'Authorization: Bearer …'."
        )


def _is_of_a_page_elsewhere() -> bool:
    """Whether a browser on this machine sent it for a page of another site, or for one whose name was made to
    lead here: browsers name the page that a POST comes from, and programs do not.
    """
    origin = request.headers.get("Origin")
    is_other = origin is not None and not is_own_name(origin.partition("://")[2])
    return is_other or request.headers.get("Sec-Fetch-Site", "none") not in ("none", "same-origin")


def is_own_name(netloc: str) -> bool:
    """Whether a host, with or without its port, is this machine by a name that nobody else can give it."""
    try:
        return (urlsplit(f"//{netloc}").hostname or "").rstrip(".") in LOOPBACK_NAMES
    except ValueError:
        return False


def is_from_here() -> bool:
    """Whether the caller is on this machine. A proxy on it would make all look so: its headers tell."""
    if any(header in request.headers for header in PROXY_HEADERS):
        return False
    try:
        address = ipaddress.ip_address(request.remote_addr or "")
    except ValueError:
        return False
    mapped = getattr(address, "ipv4_mapped", None)
    return (mapped or address).is_loopback


def refuse_query(names: tuple[str, ...]) -> None:
    """Raises BadRequest where the query has other parameters than these, or one of them twice."""
    takes = f"This call takes {', '.join(names)}." if names else "This call takes no query parameters."
    for name, values in request.args.lists():
        if name not in names:
            raise BadRequest(f"there is no query parameter {name!r}", hint=takes)
        if len(values) > 1:
            raise BadRequest(f"the query parameter {name!r} is there twice", hint="Send it once.")


def json_object(*, may_be_empty: bool = False) -> dict[str, Any]:
    """The body as a JSON object. Raises: BadRequest."""
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


def only_strings(asked: dict[str, Any], names: tuple[str, ...]) -> dict[str, str]:
    """What was asked, if it has no other names than these, and strings that a key could hold.

    Raises: BadRequest.
    """
    for name, value in asked.items():
        if name not in names or not isinstance(value, str):
            listed = ", ".join(names)
            raise BadRequest(f"cannot narrow by {name!r}", hint=f"Use {listed}, each a string.")
        if value and (problem := key_problem(value)):
            raise BadRequest(f"{name} cannot be used: {problem}", hint="Send text as it is in the entries.")
    return asked
