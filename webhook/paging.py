"""Many things, a page at a time: what a caller asks for, and where the next page begins.

A cursor is urlsafe base64 of a JSON list of strings. Callers are told that it means nothing to them.
"""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Mapping
from typing import Any

from webhook.errors import BadRequest
from webhook.events import key_problem

LIMIT, LIMIT_MAX = 100, 1000
_HINT = 'Send the "next" of the answer before, with the same narrowing, or no cursor to begin anew.'


def limit_of(asked: Mapping[str, str], *, most: int = LIMIT_MAX) -> int:
    """How many are asked for at most. Raises: BadRequest."""
    text = asked.get("limit", str(min(LIMIT, most)))
    if not (text.isascii() and text.isdigit() and len(text) <= len(str(most)) and 1 <= int(text) <= most):
        raise BadRequest(f"limit cannot be {text!r}", hint=f"Send a whole number from 1 to {most}.")
    return int(text)


def cursor_of(after: tuple[str, ...] | None) -> str | None:
    """The cursor of what begins behind `after`; None: there is no more."""
    if after is None:
        return None
    return base64.urlsafe_b64encode(json.dumps(after, ensure_ascii=False).encode()).decode()


def after_of(asked: Mapping[str, str]) -> tuple[str, str] | None:
    """Where the page begins that is asked for; None: at the begin. Raises: BadRequest."""
    if "cursor" not in asked:
        return None
    match _decoded(asked["cursor"]):
        case [str(first), str(second)] if not (key_problem(first) or key_problem(second)):
            return first, second
        case _:
            raise BadRequest("the cursor is none that this service gave", hint=_HINT)


def moment_after(asked: Mapping[str, str]) -> tuple[str, str] | None:
    """As `after_of`, where the first of the two is a time in seconds since 1970. Raises: BadRequest."""
    after = after_of(asked)
    if after and not _is_number(after[0]):
        raise BadRequest("the cursor is none that this service gave", hint=_HINT)
    return after


def _is_number(text: str) -> bool:
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False


def _decoded(cursor: str) -> Any:
    try:
        return json.loads(base64.b64decode(cursor.encode(), altchars=b"-_", validate=True))
    except (ValueError, RecursionError):
        return None
