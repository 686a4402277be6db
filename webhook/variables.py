"""Variables → values, and what is wrong with them.

A problem is one sentence that begins with the variable's name. No value is repeated that may be a secret.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TypeVar
from urllib.parse import unquote, urlsplit

T = TypeVar("T")
_SUBJECT = re.compile(r"[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*")


@dataclass(frozen=True, kw_only=True)
class NatsServers:
    """A NATS server, or several of one cluster, and what they let us in by."""

    urls: tuple[str, ...]
    """Without credentials: "nats://host:4222" or "tls://host:4222"; all alike."""
    user: str = field(default="", repr=False)
    """With a password; a user alone is a token."""
    password: str = field(default="", repr=False)


class Variables:
    """Takes variables one by one and collects what is wrong with them.

    Each method gives the value of the variable called `name`, or something of its type where it cannot.
    """

    def __init__(self, environ: Mapping[str, str]) -> None:
        self._environ = environ
        self.problems: list[str] = []

    def text(self, name: str, default: str | None = None) -> str:
        """Without blanks around it; without a default it must be there."""
        value = self._environ.get(name, "").strip()
        if value:
            return value
        if default is None:
            self.problems.append(f"{name} is missing")
        return default or ""

    def endpoint(self, name: str) -> str:
        """Scheme, host and port of a store."""
        value = self.text(name)
        return self.as_endpoint(name, value) if value else ""

    def as_endpoint(self, name: str, value: str) -> str:
        """A value from elsewhere, read as if it were a variable's."""
        if not value:
            self.problems.append(f"{name} is missing")
            return ""
        return self._parsed(name, value, _endpoint_url, 'must be like "https://host:9000"', "")

    def http_url(self, name: str, value: str) -> str:
        """A URL that may have a path, but neither a login nor a query."""
        return self._parsed(name, value, _http_url, 'must be like "https://host:4318"', "")

    def pairs(self, name: str) -> dict[str, str]:
        """`name=value` with commas between, percent-encoded, as in W3C Baggage. No value is ever repeated."""
        value = self.text(name, "")
        return self._parsed(name, value, _pairs, 'must be like "name=value,other=value"', {})

    def names(self, name: str, problem_of: Callable[[str], str | None]) -> tuple[str, ...]:
        """What stands between commas and spaces, each once; none that `problem_of` objects to."""
        value = self.text(name)
        found = tuple(dict.fromkeys(value.replace(",", " ").split()))
        if value and not found:
            self.problems.append(f"{name} is missing")
        return tuple([each for each in found if self.check(name, each, problem_of)])

    def check(self, name: str, value: str, problem_of: Callable[[str], str | None]) -> bool:
        """Whether `problem_of` does not object; a missing value has been reported before."""
        problem = problem_of(value) if value else None
        if problem:
            self.problems.append(f"{name} {problem}")
        return not problem

    def database_url(self, name: str, default: str) -> str:
        """The URL of an SQLite file or of PostgreSQL."""
        value = self.text(name, default)
        if not value.startswith(("sqlite:///", "postgres://", "postgresql://", "postgresql+psycopg://")):
            self.problems.append(f"{name} must begin with sqlite:/// or postgresql://")
        return value

    def nats_servers(self, name: str) -> NatsServers | None:
        """Servers with commas between them; None where none are named."""
        value = self.text(name, "")
        problem = 'must be like "nats://user:password@host:4222"; several: with commas, and the same login'
        return self._parsed(name, value, _nats_servers, problem, None) if value else None

    def nats_subject(self, name: str, default: str) -> str:
        """A subject without wildcards."""
        value = self.text(name, default)
        if not _SUBJECT.fullmatch(value):
            self.problems.append(f"{name} must be words of A-Z, a-z, 0-9, _ and - with dots between them")
        return value

    def whole(self, name: str, default: int, *, least: int, most: int) -> int:
        """A whole number within bounds."""
        value = self.text(name, str(default))
        number = self._parsed(name, value, int, f"must be a whole number, not {value!r}", default)
        if not least <= number <= most:
            self.problems.append(f"{name} must be between {least} and {most}, not {number}")
        return number

    def flag(self, name: str, *, default: bool) -> bool:
        """Yes or no, in the usual words."""
        words = {"true": True, "1": True, "yes": True, "on": True}
        words |= {"false": False, "0": False, "no": False, "off": False}
        value = self.text(name, str(default)).lower()
        return self._parsed(name, value, words.__getitem__, f"must be true or false, not {value!r}", default)

    def choice(self, name: str, choices: tuple[str, ...]) -> str:
        """One of some words; the first if none is given."""
        value = self.text(name, choices[0]).lower()
        if value not in choices:
            self.problems.append(f"{name} must be one of {', '.join(choices)}, not {value!r}")
        return value

    def _parsed(self, name: str, value: str, parse: Callable[[str], T], problem: str, fallback: T) -> T:
        try:
            return parse(value)
        except (ValueError, KeyError):
            self.problems.append(f"{name} {problem}")
            return fallback


def _endpoint_url(value: str) -> str:
    parts = urlsplit(value)
    usable = parts.scheme in ("http", "https") and parts.hostname and parts.path in ("", "/")
    if not usable or parts.query or parts.fragment or "@" in parts.netloc or parts.port == 0:
        raise ValueError(value)
    standard = {"http": ":80", "https": ":443"}[parts.scheme]
    return f"{parts.scheme}://{parts.netloc.lower().removesuffix(standard)}"


def _http_url(value: str) -> str:
    parts = urlsplit(value)
    usable = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    if not usable or parts.query or parts.fragment or "@" in parts.netloc:
        raise ValueError("no URL")
    return value


def _pairs(value: str) -> dict[str, str]:
    found = [each.partition("=") for each in value.split(",") if each.strip()]
    if not all(name.strip() and equals for name, equals, _ in found):
        raise ValueError("no pairs")
    return {unquote(name.strip()).lower(): unquote(text.strip()) for name, _, text in found}


def _nats_servers(value: str) -> NatsServers:
    parts = [urlsplit(each.strip()) for each in value.split(",")]
    usable = all(part.hostname and part.path in ("", "/") and part.port != 0 for part in parts)
    schemes = {part.scheme for part in parts}
    logins = {(unquote(part.username or ""), unquote(part.password or "")) for part in parts} - {("", "")}
    if not usable or schemes not in ({"nats"}, {"tls"}) or len(logins) > 1 or "#" in value or "?" in value:
        raise ValueError("no list of servers")
    user, password = next(iter(logins), ("", ""))
    urls = tuple(f"{part.scheme}://{part.netloc.rpartition('@')[2]}" for part in parts)
    return NatsServers(urls=urls, user=user, password=password)
