"""Asks the running service to copy objects now, and prints what came of each.

It sends POST /v1/replicate for one key after the other and waits for each copy to be verified; --no-wait
only leaves the request with the service.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import requests

from scripts.ask_service import (
    MEANS_WRONG_USE,
    REDIRECTS,
    SETTINGS,
    Reply,
    Service,
    add_url,
    read_service,
    refused,
)
from scripts.ask_service import ask as ask_service
from scripts.command_line import (
    ANSWER_BOUND_S,
    Code,
    Interrupted,
    Parser,
    Screen,
    in_units,
    is_text,
    start,
)

COPY_BOUND_S = 3600.0
"""How long one copy is waited for. The service goes on with it all the same."""
WORDS = {200: "replicated", 202: "queued", 404: "not found", 409: "exists"}
FINE = (200, 202, 409)
SAME_FOR_ALL = (401, *REDIRECTS)
"""Answers after which no other key need be asked for."""

EXAMPLES = """
  python scripts/replicate_one.py hello.txt
  python scripts/replicate_one.py "2026/11/a photo.jpg" --bucket photos --no-wait
  python scripts/replicate_one.py - < keys.txt            a key on each line
  python scripts/replicate_one.py - --json < keys.txt | jq -r 'select(.http_status == 404) | .key'
"""
DONE, FAILED = (
    "all are at the target, or queued with --no-wait",
    "one was not found or failed, or no service answers",
)


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What the service said of one key."""

    key: str
    reply: Reply

    @property
    def word(self) -> str:
        """What came of it, in a word or two."""
        return WORDS.get(self.reply.status or 0, "failed") if self.reply.is_ours else "failed"

    @property
    def code(self) -> Code:
        """The exit status this answer asks for."""
        if self.reply.is_ours and self.reply.status in FINE:
            return Code.DONE
        return Code.WRONG_USE if self.reply.status in MEANS_WRONG_USE else Code.FAILED

    def line(self) -> str:
        """For people."""
        facts, line = self.reply.facts, f"{self.word:<10}  {self.key}"
        if self.code is not Code.DONE:
            return f"{line}: {self.reply.why()}"
        more = [in_units(facts["size"])] if isinstance(facts.get("size"), int) else []
        more += [f"CID {facts['cid']}"] if facts.get("cid") else []
        more += [f"without {', '.join(map(str, facts['lost']))}"] if facts.get("lost") else []
        more += [f"{len(facts['copies'])} copies"] if facts.get("copies") else []
        return f"{line}  ({'; '.join(more)})" if more else line


def ask(service: Service, session: requests.Session, key: str, more: dict[str, Any]) -> Answer:
    """What the service says to one key; `more`: what to ask for besides. Raises: Failure where nothing
    answers at all.
    """
    if not is_text(key):
        return Answer(key=key, reply=refused(None, "the key is not UTF-8", "Give it as the source lists it."))
    bound_s = COPY_BOUND_S if more.get("wait", True) else ANSWER_BOUND_S
    body = {"s3_key": key, **more}
    reply = ask_service(service, session, "POST", "/v1/replicate", body=body, bound_s=bound_s, fine=FINE)
    if reply.status is None:
        hint = "It may be copying still: ask again later, or use --no-wait."
        reply = refused(None, "the service did not answer in time", hint)
    return Answer(key=key, reply=reply)


def replicate(service: Service, keys: Iterator[str], screen: Screen, more: dict[str, Any]) -> Code:
    """Asks for each key in turn; stops where no other key would fare better."""
    tally: dict[str, int] = {}
    worst = Code.DONE
    try:
        with service.session() as session:
            for key in keys:
                answer = ask(service, session, key, more)
                tally[answer.word] = tally.get(answer.word, 0) + 1
                worst = max(worst, answer.code)
                screen.result(
                    answer.line(), {"key": key, "http_status": answer.reply.status, **answer.reply.facts}
                )
                sys.stdout.flush()
                if answer.reply.status in SAME_FOR_ALL:
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


def asked_besides(options: argparse.Namespace) -> dict[str, Any]:
    """What to ask for besides the key."""
    more = {} if options.bucket is None else {"bucket": options.bucket}
    return more if options.wait else {**more, "wait": False}


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
    add_url(parser)
    add("--json", action="store_true", help="one JSON object a line: the answer, with key and http_status")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    """The exit status, as --help lists them. Raises: WrongUse, Failure, Interrupted."""
    options = read_options(arguments)
    service, screen = read_service(options.url), Screen(as_json=options.json)
    return replicate(service, keys_of(options.keys), screen, asked_besides(options))


if __name__ == "__main__":
    start(main)
