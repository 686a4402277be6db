"""Variables → values, and what is wrong with them.

A problem is one sentence that begins with the variable's name. No value is repeated that may be a secret.
A secret may also stand in a file: NAME_FILE names it, as those of Docker and Kubernetes are given.
"""

from __future__ import annotations

import re
import ssl
import stat
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar
from urllib.parse import unquote, urlsplit

T = TypeVar("T")
SECRET_MAX_BYTES = 16_384
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

    Each method gives the value of the variable called `name`, or something of its type where it cannot. Files
    are looked for from `folder`.
    """

    def __init__(self, environ: Mapping[str, str], folder: Path) -> None:
        self._environ = environ
        self._folder = folder
        self.problems: list[str] = []

    def text(self, name: str, default: str | None = None) -> str:
        """Without blanks around it; without a default it must be there."""
        value = self._environ.get(name, "").strip()
        if value:
            return value
        if default is None:
            self.problems.append(f"{name} is missing")
        return default or ""

    def secret(self, name: str, default: str | None = None) -> str:
        """As `text`, or what stands in the file that `name`_FILE names, without blanks around it."""
        file_name = self.text(f"{name}_FILE", "")
        if not file_name:
            return self.text(name, default)
        if self.text(name, ""):
            self.problems.append(f"{name} and {name}_FILE are both set: leave one of them empty")
            return default or ""
        path = self._folder / file_name
        try:
            return _one_line(path)
        except OSError as error:
            problem = f"cannot be read: {error.strerror}"
        except UnicodeDecodeError:
            problem = "is not UTF-8"  # and no byte of it is told
        except ValueError as error:
            problem = str(error)
        self.problems.append(f"{name}_FILE {str(path)!r} {problem}")
        return default or ""

    def certificates(self, *names: str, default: str) -> str:
        """The PEM file of certificate authorities that the first of these variables names that is set."""
        for name in names:
            if path := self.text(name, ""):
                self.check(name, path, _certificates_problem)
                return path
        return default

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
        value = self.secret(name, "")
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
        value = self.secret(name, default)
        if not value.startswith(("sqlite:///", "postgres://", "postgresql://", "postgresql+psycopg://")):
            self.problems.append(f"{name} must begin with sqlite:/// or postgresql://")
        return value

    def nats_servers(self, name: str) -> NatsServers | None:
        """Servers with commas between them; None where none are named."""
        value = self.secret(name, "")
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


def _one_line(path: Path) -> str:
    """What stands in a file. Raises: OSError, UnicodeDecodeError, ValueError that has no word of it."""
    if not stat.S_ISREG(path.stat().st_mode):
        raise ValueError("is no file")  # a pipe could be read once only, and might never end
    with path.open("rb") as file:
        content = file.read(SECRET_MAX_BYTES + 1)
    if len(content) > SECRET_MAX_BYTES:
        raise ValueError(f"is larger than {SECRET_MAX_BYTES} bytes")
    value = content.decode("utf-8").strip()
    if not value:
        raise ValueError("is empty")
    if not value.isprintable():
        raise ValueError("must hold one line of text")
    return value


def _certificates_problem(path: str) -> str | None:
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(path)
    except OSError as error:
        return f"names {path!r}, which cannot be read as certificates ({error.strerror or 'it holds none'})"
    return None


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
