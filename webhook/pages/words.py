"""How things read on the pages: moments, sizes, numbers, and keys that may hold anything."""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any

from markupsafe import Markup, escape

from webhook.verdict import duration

RAW_MAX_CHARS = 20_000
_MOMENT = re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d UTC")
_SHOWN_AS_CODE = ("Cc", "Cf", "Cs", "Cn", "Zl", "Zp")
_SHORT = {"\n": "\\n", "\r": "\\r", "\t": "\\t"}


def seen(text: str | None, *, lines: bool = False) -> Markup:
    """The text with all that cannot be seen, or turns what is beside it around, written as its code; `lines`
    leaves line ends.
    """
    return Markup("").join(_seen(char, lines=lines) for char in text or "")


def _seen(char: str, *, lines: bool) -> Markup:
    if lines and char == "\n":
        return Markup("\n")
    code = _code(char)
    return Markup('<span class="code">{}</span>').format(code) if code else escape(char)


def _code(char: str) -> str:
    """Of what cannot be seen; "" of all else."""
    category = unicodedata.category(char)
    if category not in _SHOWN_AS_CODE and not (category == "Zs" and char != " "):
        return ""
    return _SHORT.get(char) or (f"\\x{ord(char):02x}" if ord(char) < 256 else f"\\u{ord(char):04x}")


def plain(text: str) -> str:
    """As `seen`, for an attribute, which can have no mark-up."""
    return "".join(_code(char) or char for char in text)


def key(text: str) -> Markup:
    """An object's key, read from left to right whatever it begins with, and where it begins and ends."""
    inner = text.strip(" ")
    before = len(text) - len(text.lstrip(" ")) if inner else len(text)
    after = len(text) - before - len(inner)
    space = Markup('<span class="code">\\x20</span>')
    return Markup('<bdi class="key" dir="ltr">{}{}{}</bdi>').format(
        space * before, seen(inner), space * after
    )


def moment(at: float | str | None) -> Markup:
    """A time in UTC, of seconds since 1970 or as the API writes it; static/page.js adds the reader's own."""
    if at is None:
        return Markup("–")
    when = datetime.fromisoformat(at) if isinstance(at, str) else datetime.fromtimestamp(at, UTC)
    stamp = when.isoformat(timespec="milliseconds").replace("+00:00", "Z")
    return Markup('<time datetime="{}">{}</time>').format(stamp, when.strftime("%Y-%m-%d %H:%M:%S UTC"))


def sentence(text: str) -> Markup:
    """Prose in which the moments are times."""
    parts, last = [], 0
    for found in _MOMENT.finditer(text):
        parts += [seen(text[last : found.start()]), _told(found.group())]
        last = found.end()
    return Markup("").join([*parts, seen(text[last:])])


def _told(text: str) -> Markup:
    try:
        when = datetime.strptime(text, "%Y-%m-%d %H:%M:%S UTC").replace(tzinfo=UTC)
    except ValueError:  # in somebody else's words
        return escape(text)
    return moment(when.timestamp())


def size(count: int | None) -> str:
    """Bytes for people: "0 B", "1.2 KiB", "3.4 GiB"."""
    if count is None:
        return "–"
    value = float(count)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if value < 1024:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1024
    return f"{value:.1f} TiB"


def number(count: float | None) -> str:
    """A whole number with its thousands apart."""
    return "–" if count is None else f"{count:,.0f}"


def raw(text: str) -> Markup:
    """JSON on many lines, as far as it goes."""
    try:
        text = json.dumps(json.loads(text), indent=2, ensure_ascii=False)
    except (ValueError, RecursionError):
        pass
    left = len(text) - RAW_MAX_CHARS
    more = f"\n… and {left:,} characters more: GET /v1/quarantine has them." if left > 0 else ""
    return seen(text[:RAW_MAX_CHARS] + more, lines=True)


FILTERS: Mapping[str, Callable[..., Any]] = {
    function.__name__: function
    for function in (seen, plain, key, moment, sentence, size, number, raw, duration)
}
