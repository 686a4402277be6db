"""Shows how the running service stands, why an object is where it is, and what a person can do about it.

It asks the service's HTTP side, and changes nothing but by it. Each command has a --help of its own.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import requests
from rich.console import RenderableType
from rich.padding import Padding

from scripts import operate_views as views
from scripts.ask_service import MEANS_WRONG_USE, SETTINGS, Service, add_url, ask, read_service
from scripts.command_line import (
    Code,
    Failure,
    Interrupted,
    Parser,
    Screen,
    WrongUse,
    count,
    is_text,
    start,
    whole,
)
from scripts.operate_watch import FAILURES_LOOKED_AT, View, watch
from webhook.verdict import moment

PAGE = 1000
SHOWN, SHOWN_MAX = 20, 1_000_000
WATCH_BOUND_S = 10.0
STEP_S = 1.0
EXAMPLES = """
  python scripts/operate.py status || mail -s "the copy is not whole" ops@example.com
  python scripts/operate.py watch
  python scripts/operate.py explain "2026/11/a photo.jpg"
  python scripts/operate.py failures --reason target_store_denied
  python scripts/operate.py retry --prefix 2026/
  python scripts/operate.py pause --rule photos
  python scripts/operate.py status --json | jq -r '.summary[].text'
"""
DONE, FAILED = (
    "done; status: the target is complete",
    "it cannot be done; status: something is wrong; explain, sweep --wait: nothing found, or differences",
)

Facts = dict[str, Any]


class Calls:
    """The service, to be asked one thing after the other. Every method raises WrongUse and Failure."""

    def __init__(self, service: Service, session: requests.Session) -> None:
        self._service, self._session = service, session

    def get(self, path: str, *, bound_s: float = 60.0, **query: Any) -> Facts:
        """GET; parameters that are None are left out."""
        given = {name: str(value) for name, value in query.items() if value is not None}
        return self._ask("GET", path, query=given, bound_s=bound_s)

    def post(self, path: str, **body: Any) -> Facts:
        """POST; facts that are None are left out."""
        return self._ask(
            "POST", path, body={name: value for name, value in body.items() if value is not None}
        )

    def pages(self, path: str, name: str, *, most: int, **query: Any) -> Iterator[Facts]:
        """The items of all pages, up to so many."""
        cursor, limit = None, min(most, query.pop("page", PAGE))
        while True:
            page = self.get(path, limit=limit, cursor=cursor, **query)
            yield from page[name][:most]
            most, cursor = most - len(page[name]), page["next"]
            if cursor is None or most <= 0:
                return

    def _ask(self, method: str, path: str, **more: Any) -> Facts:
        reply = ask(self._service, self._session, method, path, **more)
        if reply.status in MEANS_WRONG_USE:
            raise WrongUse(reply.why())
        if not reply.is_fine:
            raise Failure(reply.why())
        return reply.facts


Command = Callable[[argparse.Namespace, Calls, Screen], Code]


# ── looking ──────────────────────────────────────────────────────────────────────────────────────────


def status(options: argparse.Namespace, calls: Calls, screen: Screen) -> Code:
    """Is the target complete?"""
    facts = calls.get("/v1/status")
    if options.rule is not None and options.rule not in facts["rules"]:
        raise WrongUse(
            f"there is no rule {options.rule!r}: {', '.join(facts['rules']) or 'none is known yet'}."
        )
    verdict = next(each for each in facts["summary"] if each["rule"] == options.rule)
    screen.result("", facts)
    for each, text in views.sentences(facts, options.rule):
        screen.line(text)
        if what := views.help_for(each):
            screen.line(f"→ {what}")
    show(screen, views.rules_table(facts, options.rule))
    for rule in facts["rules"].values():
        if rule["sweep"] and options.rule in (None, rule["sweep"]["rule"]):
            screen.line(views.sweep_line(rule["sweep"]))
    show(screen, views.workers_table(facts))
    return Code.DONE if verdict["ok"] else Code.FAILED


def live(options: argparse.Namespace, calls: Calls, screen: Screen) -> Code:
    """The same as status, live, until q or Ctrl-C."""
    view = View(
        look=lambda: calls.get("/v1/status", bound_s=WATCH_BOUND_S),
        failures=lambda: calls.get("/v1/failures", limit=FAILURES_LOOKED_AT, bound_s=WATCH_BOUND_S),
    )
    return watch(view, screen, interval_s=options.interval)


def explain(options: argparse.Namespace, calls: Calls, screen: Screen) -> Code:
    """The whole story of an object, under all rules."""
    found = calls.get("/v1/entries", key=options.key, rule=options.rule)["entries"]
    if not found:
        return _unknown(options, calls, screen)
    facts = calls.get("/v1/status")
    for entry in found:
        screen.result("", entry)
        for line in views.story(entry, facts, time.time()):
            screen.line(line)
    return Code.DONE


def _unknown(options: argparse.Namespace, calls: Calls, screen: Screen) -> Code:
    screen.note(f"Nobody has asked for {options.key!r} yet: no event told of it, and no sweep found it.")
    screen.note(
        "Keys are case-sensitive. If the source has it: python scripts/replicate_one.py KEY copies it."
    )
    if options.key:
        like = calls.get("/v1/entries", contains=options.key, rule=options.rule, limit=5)["entries"]
        for each in like:
            screen.note(f"  on record is: {each['key']}  (rule {each['rule']})")
    return Code.FAILED


def failures(options: argparse.Namespace, calls: Calls, screen: Screen) -> Code:
    """What was put aside, and why."""
    narrowed = {"rule": options.rule, "prefix": options.prefix}
    reasons = calls.get("/v1/failures/reasons", **narrowed)["reasons"]
    reasons = [each for each in reasons if options.reason in (None, each["reason"])]
    number = sum(each["number"] for each in reasons)
    found = list(
        calls.pages("/v1/failures", "failures", most=options.limit, reason=options.reason, **narrowed)
    )
    for each in found:
        screen.result("", each)
    if not number:
        screen.line("Nothing has failed.")
        return Code.DONE
    show(screen, views.reasons_table(reasons))
    show(screen, views.failures_table(found))
    more = f" {len(found)} of them are shown; --limit shows more." if number > len(found) else ""
    screen.line(f"{count(number, 'object')} failed.{more} Mend the cause, then: {views.OPERATE} retry")
    return Code.DONE


# ── deciding ─────────────────────────────────────────────────────────────────────────────────────────


def retry(options: argparse.Namespace, calls: Calls, screen: Screen) -> Code:
    """Has what failed tried again."""
    names = ("rule", "prefix", "reason", "key")
    narrowed = {name: value for name in names if (value := getattr(options, name))}
    _all_or(options, bool(narrowed), "--rule, --prefix, --reason or --key")
    facts = calls.post("/v1/failures/retry", **narrowed)
    screen.result(f"{count(facts['retried'], 'failed object is', 'failed objects are')} tried again.", facts)
    return Code.DONE


def pause(options: argparse.Namespace, calls: Calls, screen: Screen) -> Code:
    """Copies nothing for a rule from now on."""
    return _pause_or_resume(options, calls, screen, "paused")


def resume(options: argparse.Namespace, calls: Calls, screen: Screen) -> Code:
    """Goes on with a rule."""
    return _pause_or_resume(options, calls, screen, "resumed")


def _pause_or_resume(options: argparse.Namespace, calls: Calls, screen: Screen, word: str) -> Code:
    _all_or(options, bool(options.rule), "--rule")
    facts = calls.post(f"/v1/{options.command}", rule=options.rule)
    changed = ", ".join(facts["changed"])
    screen.result(f"Now {word}: {changed}." if changed else f"Nothing changed: {word} already.", facts)
    for name, since in facts["paused"].items():
        screen.line(f"  paused since {moment(since)}: {name}")
    return Code.DONE


def quarantine(options: argparse.Namespace, calls: Calls, screen: Screen) -> Code:
    """Events that nobody could act on."""
    if options.what != "list":
        return _decide_quarantine(options, calls, screen)
    found = list(calls.pages("/v1/quarantine", "records", most=options.limit, page=100))
    for each in found:
        screen.result("", each)
    if not found:
        screen.line("Nothing is in quarantine.")
        return Code.DONE
    show(screen, views.records_table(found))
    screen.line(f"{views.OPERATE} quarantine discard RECORD drops one, once a person has looked at it;")
    screen.line("retry in its place reads it again, with a newer release or other rules.")
    return Code.DONE


def _decide_quarantine(options: argparse.Namespace, calls: Calls, screen: Screen) -> Code:
    _all_or(options, bool(options.record), "a record")
    body = {"all": True} if options.all else {"record_id": options.record}
    facts = calls.post(f"/v1/quarantine/{options.what}", **body)
    if options.what == "discard":
        line = f"{count(facts['discarded'], 'record')} dropped."
    else:
        line = f"{count(facts['accepted'], 'change')} asked for, {facts['ignored']:,} that no rule wants, "
        line += f"{count(facts['kept'], 'record')} kept."
    screen.result(line, facts)
    return Code.DONE if facts.get("discarded", 1) else Code.FAILED


def sweep(options: argparse.Namespace, calls: Calls, screen: Screen) -> Code:
    """Compares both sides now."""
    found = calls.post("/v1/sweeps", rule=options.rule, prefix=options.prefix)["sweeps"]
    if not options.wait:
        for each in found:
            screen.result(f"asked for {views.sweep_line(each)}", each)
        return Code.DONE
    try:
        ended = [_waited_for(calls, each, screen) for each in found]
    except KeyboardInterrupt:
        raise Interrupted("The sweep goes on; status shows how far it is.") from None
    for each in ended:
        screen.result(views.sweep_line(each), each)
    differ = ("missing", "different")
    return Code.FAILED if any(each[name] for each in ended for name in differ) else Code.DONE


def _waited_for(calls: Calls, asked: Mapping[str, Any], screen: Screen) -> Facts:
    told = ""
    while True:
        found = calls.get(asked["link"])
        if found["state"] != "open":
            return found
        if found["error"] and found["error"] != told:
            told = found["error"]
            screen.note(f"sweep {found['id']} cannot go on now: {told}")
        time.sleep(STEP_S)


def deletes(options: argparse.Namespace, calls: Calls, screen: Screen) -> Code:
    """Decides about deletes that were held back."""
    _all_or(options, bool(options.rule), "--rule")
    facts = calls.post(f"/v1/deletes/{options.what}", rule=options.rule)
    (word,) = facts
    screen.result("" if facts[word] else "No delete is held back.", facts)
    for name, number in facts[word].items():
        screen.line(f"{name}: {count(number, 'delete')} {word}")
    return Code.DONE


def _all_or(options: argparse.Namespace, is_narrowed: bool, what: str) -> None:
    """Raises: WrongUse unless it was said what is meant: something, or everything, and not both."""
    if options.all == is_narrowed:
        raise WrongUse(f"which? Give {what}, or --all for everything.")


def show(screen: Screen, what: RenderableType) -> None:
    """A table for people, between empty lines."""
    if not screen.as_json:
        views.console().print(Padding(what, (1, 0)))


# ── options ──────────────────────────────────────────────────────────────────────────────────────────


class _Command(Parser):
    """A command's options; errors in two lines as elsewhere."""

    def __init__(self, **more: Any) -> None:
        argparse.ArgumentParser.__init__(self, allow_abbrev=False, **more)


def read_options(arguments: list[str] | None) -> argparse.Namespace:
    parser = Parser("operate", __doc__ or "", examples=EXAMPLES, settings=SETTINGS, done=DONE, failed=FAILED)
    commands = parser.add_subparsers(
        dest="command", required=True, metavar="COMMAND", parser_class=_Command, title="commands"
    )

    def command(name: str, run: Command, *narrowing: str) -> argparse.ArgumentParser:
        made: argparse.ArgumentParser = commands.add_parser(name, help=run.__doc__, description=run.__doc__)
        made.set_defaults(run=run)
        for option in narrowing:
            made.add_argument(f"--{option}", help=_NARROWING[option])
        add_url(made)
        made.add_argument("--json", action="store_true", help="JSON on stdout, an object a line")
        return made

    def with_all(made: argparse.ArgumentParser) -> argparse.ArgumentParser:
        made.add_argument("--all", action="store_true", help="everything, with nothing to narrow it")
        return made

    command("status", status, "rule")
    every = command("watch", live)
    every.add_argument("--interval", type=_seconds, default=1.0, metavar="S", help="seconds (default: 1)")
    command("explain", explain, "rule").add_argument("key", metavar="KEY", type=_key, help="the object's key")
    _limit(command("failures", failures, "rule", "prefix", "reason"))
    with_all(command("retry", retry, "rule", "prefix", "reason", "key"))
    with_all(command("pause", pause, "rule"))
    with_all(command("resume", resume, "rule"))
    looked_at = with_all(_limit(command("quarantine", quarantine)))
    looked_at.add_argument("what", nargs="?", default="list", choices=("list", "retry", "discard"))
    looked_at.add_argument("record", nargs="?", metavar="RECORD", help="one that the list shows")
    swept = command("sweep", sweep, "rule", "prefix")
    swept.add_argument("--wait", action="store_true", help="until it is complete; 1 if anything differs")
    decided = with_all(command("deletes", deletes, "rule"))
    decided.add_argument("what", choices=("approve", "discard"))
    return parser.parse_args(arguments)


_NARROWING = {
    "rule": "only this rule's",
    "prefix": "only keys that begin with this",
    "reason": "only what failed by this, as the list of reasons names it",
    "key": "only this key",
}


def _limit(parser: argparse.ArgumentParser) -> argparse.ArgumentParser:
    what = f"how many are shown (default: {SHOWN})"
    parser.add_argument("--limit", type=whole(1, SHOWN_MAX), default=SHOWN, metavar="N", help=what)
    return parser


def _seconds(text: str) -> float:
    return float(whole(1, 3600)(text))


def _key(text: str) -> str:
    if not is_text(text):
        raise argparse.ArgumentTypeError("the key is not UTF-8: give it as the source lists it")
    return text


def main(arguments: list[str] | None = None) -> int:
    """The exit status, as --help lists them. Raises: WrongUse, Failure, Interrupted."""
    options = read_options(arguments)
    service = read_service(options.url)
    with service.session() as session:
        code: Code = options.run(options, Calls(service, session), Screen(as_json=options.json))
    return code


if __name__ == "__main__":
    start(main)
