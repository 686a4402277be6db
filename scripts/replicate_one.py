"""Asks the running service to copy objects now, and prints what came of each.

It sends POST /v1/replicate for one key after the other and waits for each copy to be verified; --no-wait
only leaves the request with the service.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import requests

from scripts.command_line import (
    ANSWER_BOUND_S,
    CONNECT_BOUND_S,
    Code,
    Failure,
    Interrupted,
    Parser,
    Screen,
    WrongUse,
    environment,
    in_units,
    is_address,
    is_text,
    proxy_for,
    start,
)

COPY_BOUND_S = 3600.0
"""How long one copy is waited for. The service goes on with it all the same."""
PORT = "8000"
WORDS = {200: "replicated", 202: "queued", 404: "not found", 409: "exists"}
FINE = (200, 202, 409)
REDIRECTS = (301, 302, 303, 307, 308)
MEANS_WRONG_USE = (400, 401, *REDIRECTS)
SAME_FOR_ALL = (401, *REDIRECTS)
"""Answers after which no other key need be asked for."""

EXAMPLES = """
  python scripts/replicate_one.py hello.txt
  python scripts/replicate_one.py "2026/11/a photo.jpg" --bucket photos --no-wait
  python scripts/replicate_one.py - < keys.txt            a key on each line
  python scripts/replicate_one.py - --json < keys.txt | jq -r 'select(.http_status == 404) | .key'
"""
SETTINGS = "API_TOKEN, as the service has it; REPLICATOR_URL, else PORT (8000) on this machine; SSL_CERT_FILE"
DONE, FAILED = (
    "all are at the target, or queued with --no-wait",
    "one was not found or failed, or no service answers",
)


@dataclass(frozen=True, kw_only=True)
class Service:
    """The service, and what to ask it for besides the key."""

    url: str
    token: str = field(repr=False)
    ca_file: str | None
    more: dict[str, Any]

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
class Answer:
    """What the service said of one key: the HTTP status and its JSON, which has "error" unless it is fine."""

    key: str
    status: int | None
    """None: it was not asked, or did not answer in time."""
    facts: dict[str, Any]
    is_ours: bool = True
    """Whether these are the service's own words."""

    @property
    def word(self) -> str:
        """What came of it, in a word or two."""
        return WORDS.get(self.status or 0, "failed") if self.is_ours else "failed"

    @property
    def code(self) -> Code:
        """The exit status this answer asks for."""
        if self.is_ours and self.status in FINE:
            return Code.DONE
        return Code.WRONG_USE if self.status in MEANS_WRONG_USE else Code.FAILED

    def line(self) -> str:
        """For people."""
        facts, line = self.facts, f"{self.word:<10}  {self.key}"
        if self.code is not Code.DONE:
            return f"{line}: {facts['error']['message'].rstrip('.')}. {facts['error']['hint']}".rstrip()
        more = [in_units(facts["size"])] if isinstance(facts.get("size"), int) else []
        more += [f"CID {facts['cid']}"] if facts.get("cid") else []
        more += [f"without {', '.join(map(str, facts['lost']))}"] if facts.get("lost") else []
        more += [f"{len(facts['copies'])} copies"] if facts.get("copies") else []
        return f"{line}  ({'; '.join(more)})" if more else line


def ask(service: Service, session: requests.Session, key: str) -> Answer:
    """What the service says to one key. Raises: Failure where nothing answers at all."""
    if not is_text(key):
        return _failed(key, None, "the key is not UTF-8", "Give it as the source lists it.")
    try:
        got = session.post(
            f"{service.url}/v1/replicate",
            json={"s3_key": key, **service.more},
            timeout=(CONNECT_BOUND_S, COPY_BOUND_S if service.more.get("wait", True) else ANSWER_BOUND_S),
            allow_redirects=False,  # the token is for this address alone
        )
    except requests.ReadTimeout:
        hint = "It may be copying still: ask again later, or use --no-wait."
        return _failed(key, None, "the service did not answer in time", hint)
    except OSError as error:  # requests' own are OSErrors too
        raise Failure(_silence(service, error)) from None  # the message may quote a proxy's password
    return _read(key, got)


def _silence(service: Service, error: Exception) -> str:
    if isinstance(error, requests.exceptions.SSLError) or not isinstance(error, requests.RequestException):
        return f"No secure connection to {service.url}: check --url, and SSL_CERT_FILE if it has its own CA."
    return f"The service does not answer at {service.url}: is it running? make run starts it."


def _read(key: str, got: requests.Response) -> Answer:
    if got.is_redirect:
        hint = "Give the service's own address with --url: the token is not sent anywhere else."
        return _failed(key, got.status_code, "the answer is a redirect", hint)
    try:
        facts = got.json()
    except ValueError:
        facts = None
    if isinstance(facts, dict) and (got.status_code in FINE or _is_error(facts.get("error"))):
        return Answer(key=key, status=got.status_code, facts=facts)
    hint = "Check --url, and what stands before the service."
    return _failed(key, got.status_code, f"the answer ({got.status_code}) is not the service's", hint)


def _is_error(found: object) -> bool:
    return isinstance(found, dict) and all(isinstance(found.get(name), str) for name in ("message", "hint"))


def _failed(key: str, status: int | None, message: str, hint: str) -> Answer:
    error = {"code": "no_answer", "message": message, "hint": hint}
    return Answer(key=key, status=status, facts={"error": error}, is_ours=False)


def replicate(service: Service, keys: Iterator[str], screen: Screen) -> Code:
    """Asks for each key in turn; stops where no other key would fare better."""
    tally: dict[str, int] = {}
    worst = Code.DONE
    try:
        with service.session() as session:
            for key in keys:
                answer = ask(service, session, key)
                tally[answer.word] = tally.get(answer.word, 0) + 1
                worst = max(worst, answer.code)
                screen.result(answer.line(), {"key": key, "http_status": answer.status, **answer.facts})
                sys.stdout.flush()
                if answer.status in SAME_FOR_ALL:
                    break
    except KeyboardInterrupt:
        done = ", ".join(f"{number:,} {word}" for word, number in tally.items()) or "nothing was answered"
        raise Interrupted(
            f"Until then: {done}. The service ends what it has begun; run this again."
        ) from None
    return worst


def keys_of(arguments: list[str]) -> Iterator[str]:
    """The keys in order; "-" stands for those on stdin, a key on each line."""
    for argument in arguments:
        if argument != "-":
            yield argument
            continue
        for line in sys.stdin.buffer:
            if key := line.removesuffix(b"\n").removesuffix(b"\r"):
                yield key.decode(errors="surrogateescape")


def read_service(options: argparse.Namespace) -> Service:
    """Where the service is, and the token. Raises: WrongUse."""
    values = {name: value.strip() for name, value in environment().items()}
    local = f"http://127.0.0.1:{values.get('PORT') or PORT}"
    url = (options.url or values.get("REPLICATOR_URL") or local).rstrip("/")
    if not is_address(url):
        raise WrongUse('the address must be like "http://host:8000": give --url or set REPLICATOR_URL.')
    token = values.get("API_TOKEN", "")
    if not (token.isascii() and token.isprintable()):
        raise WrongUse("API_TOKEN must be one line of ASCII, as the service has it.")
    more = {} if options.bucket is None else {"bucket": options.bucket}
    return Service(
        url=url,
        token=token,
        ca_file=values.get("SSL_CERT_FILE"),
        more=more if options.wait else {**more, "wait": False},
    )


def read_options(arguments: list[str] | None) -> argparse.Namespace:
    parser = Parser(
        "replicate_one", __doc__ or "", examples=EXAMPLES, settings=SETTINGS, done=DONE, failed=FAILED
    )
    add = parser.add_argument
    add(
        "keys",
        nargs="+",
        metavar="KEY",
        help="an object's key as the source lists it; - reads keys from stdin",
    )
    add("--bucket", help="the source bucket (default: the service's, if it has only one)")
    add("--no-wait", dest="wait", action="store_false", help="don't wait for the copy, only ask for it")
    add("--url", help="the service's address (default: REPLICATOR_URL, else this machine's PORT)")
    add("--json", action="store_true", help="one JSON object a line: the answer, with key and http_status")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    """The exit status, as --help lists them. Raises: WrongUse, Failure, Interrupted."""
    options = read_options(arguments)
    return replicate(read_service(options), keys_of(options.keys), Screen(as_json=options.json))


if __name__ == "__main__":
    start(main)
