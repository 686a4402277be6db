"""Looks at all that a copy depends on, says what is wrong, and the command that mends it.

It goes through settings, source, ledger, targets, the events that MinIO sends, and how the work stands. It
writes objects of its own below ".minio-replicator-doctor/", at the source to see its event come back and at
each target to see what that can do, and removes them again; --read-only writes nothing anywhere. What it
finds out about the targets is kept in the ledger, where it spares the service requests.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
from collections.abc import Mapping, Sequence
from functools import cached_property, partial
from http import HTTPStatus
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from scripts.ask_service import ask, read_service
from scripts.command_line import (
    Failure,
    Interrupted,
    Parser,
    Screen,
    WrongUse,
    all_settings,
    count,
    start,
)
from scripts.doctor_event import Event, Look, chosen, look_at, look_in
from scripts.doctor_ledger import (
    Tables,
    check_clock,
    check_place,
    check_server,
    check_work,
    check_write,
    say_tables,
    tables_of,
)
from scripts.doctor_report import Bound, Report
from scripts.doctor_source import buckets_of, check_bindings, check_live, check_targets, setup_of
from scripts.doctor_target import Examination, check_buckets, check_writes
from webhook.database import parse_url
from webhook.errors import ReplicatorError
from webhook.findings import Archive
from webhook.ledger import Ledger
from webhook.pauses import Pauses
from webhook.probes import Probes
from webhook.rules import Rule
from webhook.service import Service, assemble, open_stores
from webhook.settings import Settings
from webhook.status import facts
from webhook.store import Store
from webhook.target import Target

PARTS = ("source", "ledger", "target", "events", "work")
SOURCE_BOUND_S, WAIT_BOUND_S = 120.0, 90.0
TARGET_BUCKETS_MAX = 20
EXAMPLES = """
  python scripts/doctor.py                       everything; a minute, or two
  python scripts/doctor.py --read-only           writes nothing anywhere
  python scripts/doctor.py --only source,events  is MinIO reached, and does it tell of changes?
  python scripts/doctor.py --json | jq 'select(.level == "wrong")'
"""
SETTINGS = "those of the service (.env.example lists them); REPLICATOR_URL where it runs elsewhere"
NO_EVENT = """On MinIO's machine this must answer 200: curl -i "$WEBHOOK_URL"
python config/configure_minio.py        # tells MinIO where to send its events
Restart MinIO while the service runs: some versions switch off targets that do not answer when they start."""


def read_options(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The options. Exits with 2 where they cannot be used."""
    parser = Parser(
        "doctor",
        (__doc__ or "").strip(),
        examples=EXAMPLES,
        settings=SETTINGS,
        done="nothing is wrong",
        failed="something is wrong: what, and what to do",
    )
    add = parser.add_argument
    add("--only", type=_parts, default=PARTS, metavar="PART,…", help=f"some of: {', '.join(PARTS)}")
    add("--read-only", action="store_true", help="write nothing: no trials at targets, no event, no findings")
    add("--json", action="store_true", help="one JSON object a line: part, level, text, mend, and facts")
    return parser.parse_args(arguments)


def _parts(text: str) -> tuple[str, ...]:
    asked = [part.strip() for part in text.split(",") if part.strip()]
    unknown = [part for part in asked if part not in PARTS]
    if unknown or not asked:
        raise argparse.ArgumentTypeError(f"{text!r}: name some of {', '.join(PARTS)}")
    return tuple(part for part in PARTS if part in asked)


class Doctor:
    """One look at everything."""

    def __init__(self, configured: Settings, options: argparse.Namespace, report: Report) -> None:
        self._configured = configured
        self._options = options
        self._report = report
        self._stack = contextlib.ExitStack()
        self._web = read_service(None)
        self._session = self._stack.enter_context(self._web.session())
        self._tables: Tables | None = None
        self._ledger_error: Exception | None = None
        self._service: Service | None = None
        self._readable: list[str] | None = None
        """The source buckets that can be read; None: not known yet."""

    def run(self) -> int:
        """Gives the exit status."""
        with self._stack:
            self._say_settings()
            self._open()
            for part in PARTS:
                if part in self._options.only:
                    getattr(self, f"_{part}")()
            return self._report.end()

    # ── settings, and what is opened by them ─────────────────────────────────────────────────────────

    def _say_settings(self) -> None:
        configured, report = self._configured, self._report
        report.begin("settings")
        where = (
            ".env and the environment" if Path(".env").is_file() else "the environment; there is no .env here"
        )
        rules, targets = len(configured.rules.templates), len(configured.targets)
        report.fine(f"complete, from {where}: {count(rules, 'rule')}, {count(targets, 'target')}")
        for name, token in (
            ("WEBHOOK_AUTH_TOKEN", configured.web.webhook_auth_token),
            ("API_TOKEN", configured.web.api_token),
        ):
            if not token:
                report.note(
                    f"{name} is not set: only callers on the service's own machine are let in",
                    f"Set {name} to a word of its own (openssl rand -hex 32), for callers elsewhere.",
                )

    def _open(self) -> None:
        """What all parts need, as far as it can be had; the part of the ledger says why not."""
        configured = self._configured
        try:
            self._tables = tables_of(configured)
            if self._tables.are_usable:
                self._service = assemble(configured)
                self._stack.callback(self._service.close)
        except (ReplicatorError, Failure, WrongUse) as error:
            self._ledger_error = error
        self._sides = open_stores(configured, self._writable_ledger)
        self._stack.callback(self._sides.close)
        self._rules = self._sides.rules.of_buckets(self._sides.rules.literal_buckets)

    @property
    def _writable_ledger(self) -> Ledger | None:
        return self._service.ledger if self._service and not self._options.read_only else None

    # ── the parts ────────────────────────────────────────────────────────────────────────────────────

    def _source(self) -> None:
        self._report.begin("source", self._configured.source.endpoint_url)
        self._find_rules()

    def _find_rules(self) -> None:
        """The rules of the buckets that are there."""
        sides, report = self._sides, self._report
        found = report.do("buckets", lambda bound: buckets_of(sides, report, bound), bound_s=SOURCE_BOUND_S)
        self._rules = sides.rules.of_buckets(found or sides.rules.literal_buckets)
        self._readable = found or []

    def _ledger(self) -> None:
        report, service = self._report, self._service
        report.begin("ledger")
        if self._tables and not self._tables.exists and self._web_status:
            report.skipped(
                f"{self._tables.place} is not here; the service at {self._web.url} is asked instead"
            )
        elif self._tables:
            say_tables(self._tables, report)
        if self._ledger_error:
            report.failed("opening", self._ledger_error)
        if self._tables and self._tables.exists:
            report.do("place", lambda _: check_place(self._configured, report))
        if service is None:
            return
        if not self._options.read_only:
            report.do("writing", lambda _: check_write(service.ledger, report))
        report.do("server", lambda _: check_server(service.ledger, report))
        report.do("clock", lambda _: check_clock(service.ledger, report))

    def _target(self) -> None:
        for name, target in self._sides.targets.items():
            rules = [rule for rule in self._rules if rule.target == name]
            self._report.begin(f"target {name}", self._configured.targets[name].endpoint_url)
            if not rules:
                self._report.skipped("no rule of a bucket that is there goes to it")
                continue
            found = self._report.do("buckets", partial(check_buckets, name, target, rules, self._report))
            if found and self._options.read_only:
                self._report.skipped("what it can do was not tried: --read-only")
            elif found:
                self._examine(name, target, [rule for rule in rules if rule.target_bucket in found])

    def _examine(self, name: str, target: Target, rules: Sequence[Rule]) -> None:
        """All trials in one bucket, and in the others whether they can be written to."""
        found = Examination(target, rules, self._report).run()
        _, *others = dict.fromkeys(rule.target_bucket for rule in rules)
        for bucket in others[:TARGET_BUCKETS_MAX]:
            rule = next(rule for rule in rules if rule.target_bucket == bucket)
            self._report.do(f"bucket {bucket}", partial(check_writes, target, rule, self._report))
        if found and (ledger := self._writable_ledger):
            endpoint = self._configured.targets[name].endpoint_url
            self._report.do("keeping", lambda _: Archive(ledger).replace(name, endpoint, found))

    def _events(self) -> None:
        report = self._report
        report.begin("events")
        if self._readable is None:
            self._find_rules()
        if not self._readable:
            report.skipped("no source bucket can be read: see above, source")
            return
        setup = setup_of(self._configured)
        report.do("bindings", lambda bound: check_bindings(setup, self._rules, report, bound))
        report.do("targets", lambda _: check_targets(setup, report))
        report.do("live", lambda _: check_live(setup, report))
        if self._options.read_only:
            report.skipped("no event was tried: --read-only")
        elif look := self._look():
            self._try_event(look)

    def _look(self) -> Look | None:
        """Where an event is seen to arrive: the ledger, else the running service."""
        if self._service:
            return look_in(self._service.ledger)
        if self._web_status:
            return look_at(self._web, self._session)
        self._report.skipped(
            "no event was tried: neither the ledger nor the service is here to see it arrive",
            "Set DATABASE_URL to the service's ledger, or REPLICATOR_URL and API_TOKEN to reach the service.",
        )
        return None

    def _try_event(self, look: Look) -> None:
        store = Store(self._configured.source, side="source")
        self._stack.callback(store.close)
        service = self._service
        paused = self._report.do("pauses", lambda _: Pauses(service.ledger).paused()) if service else None
        event = Event(
            store,
            look,
            self._report,
            paused=paused or {},
            remove_copies=self._remove_copies,
            ledger=self._writable_ledger,
        )
        try:
            pairs = chosen(self._rules, self._report)
            if self._report.do("writing objects", lambda bound: event.write(pairs, bound)):
                self._report.do("waiting for their events", event.wait, bound_s=WAIT_BOUND_S)
                event.say(self._no_event())
        finally:
            self._report.do("cleaning up", event.clean_up, bound_s=WAIT_BOUND_S)

    def _no_event(self) -> str:
        """What to do where no event came."""
        try:
            ask(self._web, self._session, "GET", "/healthz")
            up = ""
        except Failure:
            up = f"No service answers at {self._web.url}: make run starts it; REPLICATOR_URL names another.\n"
        if self._configured.events:
            up += "python -m webhook.ingest must run, too: EVENTS_FROM is set.\n"
        if self._service and self._tables:
            up += f"The service that MinIO tells must be on this ledger: {self._tables.place}\n"
        return up + NO_EVENT

    def _remove_copies(self, rule: Rule, prefix: str, bound: Bound) -> None:
        """Those of the source's keys with this prefix, which is the doctor's own: of earlier runs, too."""
        store = self._sides.targets[rule.target].store
        Probes(store, rule.target_bucket, rule.target_key(prefix), bound).clean_up(bound)

    def _work(self) -> None:
        report, service = self._report, self._service
        report.begin("work")
        status = report.do("status", lambda _: facts(service)) if service else self._web_status
        if status:
            report.do("status", lambda _: check_work(status, report))
        elif not service:
            report.skipped("how the work stands cannot be seen: neither the ledger nor the service is here")

    @cached_property
    def _web_status(self) -> Mapping[str, Any] | None:
        """What the running service says of itself; None where none lets us in."""
        try:
            said = ask(self._web, self._session, "GET", "/v1/status")
        except Failure:
            return None
        if said.is_ours and said.status == HTTPStatus.UNAUTHORIZED:
            self._report.wrong(
                f"the service at {self._web.url} refuses API_TOKEN", "Set it as the service has it."
            )
        return said.facts if said.status == HTTPStatus.OK else None


def secrets_of(configured: Settings) -> list[str]:
    """All that no line may show."""
    stores = [configured.source, *configured.targets.values()]
    keys = [key for store in stores for key in (store.access_key, store.secret_key)]
    password = str(parse_url(configured.database_url).password or "")
    return [*keys, configured.web.webhook_auth_token, configured.web.api_token, password]


def main(arguments: Sequence[str] | None = None) -> int:
    """Gives the exit code. Raises: SettingsError, WrongUse, Interrupted."""
    options = read_options(arguments)
    configured = all_settings()
    report = Report(Screen(as_json=options.json), secrets=secrets_of(configured))
    try:
        with report.watched():
            return Doctor(configured, options, report).run()
    except KeyboardInterrupt:
        raise Interrupted("What was written has been removed, but for what is named above.") from None


if __name__ == "__main__":
    start(main)
