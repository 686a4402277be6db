"""One call of the running service's HTTP side, and its answer, for the scripts that ask it."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import requests

from scripts.command_line import (
    ANSWER_BOUND_S,
    CONNECT_BOUND_S,
    Failure,
    WrongUse,
    is_address,
    proxy_for,
    variables,
)
from webhook.errors import SettingsError

PORT = "8000"
REDIRECTS = (301, 302, 303, 307, 308)
MEANS_WRONG_USE = (400, 401, *REDIRECTS)
SETTINGS = "API_TOKEN or API_TOKEN_FILE, as the service; REPLICATOR_URL, else PORT (8000) here; SSL_CERT_FILE"


@dataclass(frozen=True, kw_only=True)
class Service:
    """Where the service is, and what lets one in."""

    url: str
    token: str = field(repr=False)
    ca_file: str | None

    def session(self) -> requests.Session:
        """A session that sends the token, through no proxy but the one for this address."""
        made = requests.Session()
        made.trust_env = False  # ~/.netrc would replace the token
        if self.token:
            made.headers["Authorization"] = f"Bearer {self.token}"
        if proxy := proxy_for(self.url):
            made.proxies = {"https": proxy}
        made.verify = self.ca_file or True
        return made


@dataclass(frozen=True, kw_only=True)
class Reply:
    """What the service said: the HTTP status and its JSON, with an "error" unless it is fine."""

    status: int | None
    """None: it was not asked, or did not answer in time."""
    facts: dict[str, Any]
    is_ours: bool = True
    """Whether these are the service's own words."""
    is_fine: bool = False
    """Whether they are what was asked for."""

    def why(self) -> str:
        """The error, in a sentence or two."""
        return f"{self.facts['error']['message'].rstrip('.')}. {self.facts['error']['hint']}".rstrip()


def add_url(parser: argparse.ArgumentParser) -> None:
    """The option that says where the service is."""
    what = "the service's address (default: REPLICATOR_URL, else this machine's PORT)"
    parser.add_argument("--url", help=what)


def read_service(url: str | None) -> Service:
    """Where the service is, and the token; `url`: the option, if it was given.

    Raises: WrongUse, SettingsError.
    """
    read = variables()
    local = f"http://127.0.0.1:{read.text('PORT', PORT)}"
    url = (url or read.text("REPLICATOR_URL", local)).rstrip("/")
    if not is_address(url):
        raise WrongUse('the address must be like "http://host:8000": give --url or set REPLICATOR_URL.')
    token = read.secret("API_TOKEN", "")
    if read.problems:
        raise SettingsError(read.problems)
    if not (token.isascii() and token.isprintable()):
        raise WrongUse("API_TOKEN must be one line of ASCII, as the service has it.")
    return Service(url=url, token=token, ca_file=read.text("SSL_CERT_FILE", "") or None)


def ask(
    service: Service,
    session: requests.Session,
    method: str,
    path: str,
    *,
    query: Mapping[str, str] | None = None,
    body: Mapping[str, Any] | None = None,
    bound_s: float = ANSWER_BOUND_S,
    fine: tuple[int, ...] = (200, 202),
) -> Reply:
    """One call; `fine`: the statuses whose answers are JSON without an error.

    Raises: Failure where nothing answers at all.
    """
    try:
        got = session.request(
            method,
            service.url + path,
            params=query,
            json=body,
            timeout=(CONNECT_BOUND_S, bound_s),
            allow_redirects=False,  # the token is for this address alone
        )
    except requests.ReadTimeout:
        return refused(None, "the service did not answer in time", "Ask again later.")
    except OSError as error:  # requests' own are OSErrors too
        raise Failure(_silence(service, error)) from None  # the message may quote a proxy's password
    return _read(got, fine)


def refused(status: int | None, message: str, hint: str) -> Reply:
    """What a script says itself, where the service said nothing."""
    error = {"code": "no_answer", "message": message, "hint": hint}
    return Reply(status=status, facts={"error": error}, is_ours=False)


def _silence(service: Service, error: Exception) -> str:
    if isinstance(error, requests.exceptions.SSLError) or not isinstance(error, requests.RequestException):
        return f"No secure connection to {service.url}: check --url, and SSL_CERT_FILE if it has its own CA."
    return f"The service does not answer at {service.url}: is it running? make run starts it."


def _read(got: requests.Response, fine: tuple[int, ...]) -> Reply:
    if got.is_redirect:
        hint = "Give the service's own address with --url: the token is not sent anywhere else."
        return refused(got.status_code, "the answer is a redirect", hint)
    try:
        facts = got.json()
    except ValueError:
        facts = None
    if isinstance(facts, dict) and (got.status_code in fine or _is_error(facts.get("error"))):
        return Reply(status=got.status_code, facts=facts, is_fine=got.status_code in fine)
    hint = "Check --url, and what stands before the service."
    return refused(got.status_code, f"the answer ({got.status_code}) is not the service's", hint)


def _is_error(found: object) -> bool:
    return isinstance(found, dict) and all(isinstance(found.get(name), str) for name in ("message", "hint"))
