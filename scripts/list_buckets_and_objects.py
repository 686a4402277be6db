"""Shows what the source holds and what the targets hold of it, side by side.

Without --bucket: how many objects and bytes there are of each rule, on both sides, and of source buckets that
no rule copies. With --bucket: each object of it, in the order of keys, with its size on both sides.

  same         equal size and ETag          same size    equal size; the ETags can't be compared
  differs      another size or content      only source  not copied yet
  only target  gone from the source         not wanted   the rule leaves it out

It only looks, and holds a page of each listing in memory. What it shows of objects that are written meanwhile
may be a moment old on one side.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from rich.console import Console
from rich.progress import SpinnerColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from scripts.command_line import (
    STORE_ERRORS,
    Code,
    Failure,
    Interrupted,
    NoBucket,
    Parser,
    Screen,
    Store,
    all_settings,
    count,
    in_units,
    printable,
    start,
)
from webhook.rules import Rule, Rules
from webhook.settings import Settings

MD5 = re.compile("[0-9a-f]{32}")
UNWRAPPED_COLUMNS = 10_000
COLUMNS = (SpinnerColumn(), "{task.completed:,.0f} objects", TimeElapsedColumn())
SAME, SAME_SIZE, DIFFERS = "same", "same size", "differs"
ONLY_SOURCE, ONLY_TARGET, NOT_WANTED, NO_RULE = "only source", "only target", "not wanted", "no rule"
TELLS = (DIFFERS, ONLY_SOURCE, ONLY_TARGET)
"""States that make the exit status 1."""

EXAMPLES = """
  python scripts/list_buckets_and_objects.py
  python scripts/list_buckets_and_objects.py --bucket photos --prefix 2026/
  python scripts/list_buckets_and_objects.py --bucket photos --json | jq -r 'select(.state != "same") | .key'
"""
SETTINGS = "all that the service needs; .env.example explains each"
DONE, FAILED = "both sides are equal, as far as listings tell", "something differs, or a store failed"


class Listed(NamedTuple):
    """One object of a listing; `key` is the source's, also at the target."""

    key: str
    size: int
    etag: str


@dataclass(frozen=True, kw_only=True)
class Pair:
    """One key on both sides of a rule; at least one side has it."""

    source: Listed | None
    target: Listed | None
    state: str

    @property
    def key(self) -> str:
        """The source's key."""
        known = self.source or self.target
        return known.key if known else ""

    def line(self) -> str:
        """For people."""
        here, there = (in_units(each.size) if each else "-" for each in (self.source, self.target))
        return f"{here:>10}  {there:>10}  {self.state:<11}  {self.key}"

    def facts(self) -> dict[str, Any]:
        """For programs."""
        facts: dict[str, Any] = {"key": self.key, "state": words(self.state)}
        for side, listed in (("source", self.source), ("target", self.target)):
            facts |= {f"{side}_size": listed and listed.size, f"{side}_etag": listed and listed.etag}
        return facts


# ── listings ─────────────────────────────────────────────────────────────────────────────────────────


@dataclass(kw_only=True)
class Listing:
    """One side's objects, a page at a time. Raises, while it is read: Failure, NoBucket."""

    store: Store
    bucket: str
    prefix: str
    key_of: Callable[[str], str | None]
    """The source's key for a key of this side; None leaves the object out."""
    is_ascending: bool = True
    """Whether its keys have come in the order of their bytes so far, which is that of strings."""

    def __iter__(self) -> Iterator[Listed]:
        last, ask = "", self.store.client.list_objects
        with self.store.asked():
            for found in ask(bucket_name=self.bucket, prefix=self.prefix, recursive=True):
                name = found.object_name or ""
                self.is_ascending &= name > last
                last, key = name, self.key_of(name)
                if key is not None:
                    yield Listed(key, found.size or 0, (found.etag or "").strip('"'))

    def __str__(self) -> str:
        where = f"{self.bucket}/{self.prefix}" if self.prefix else self.bucket
        return where if self.store.name == "source" else f"{self.store.name.removeprefix('target ')}: {where}"


def pairs(rule: Rule | None, source: Iterable[Listed], target: Iterable[Listed]) -> Iterator[Pair]:
    """Both listings merged by key; each is read once, and no further than needed."""
    sources, targets = iter(source), iter(target)
    here, there = next(sources, None), next(targets, None)
    while here or there:
        mine, theirs = _first(here, there)
        yield Pair(source=mine, target=theirs, state=state_of(rule, mine, theirs))
        here = next(sources, None) if mine else here
        there = next(targets, None) if theirs else there


def _first(here: Listed | None, there: Listed | None) -> tuple[Listed | None, Listed | None]:
    """Whichever has the lesser key, or both where it is the same."""
    if here is None or there is None or here.key == there.key:
        return here, there
    return (here, None) if here.key < there.key else (None, there)


def state_of(rule: Rule | None, source: Listed | None, target: Listed | None) -> str:
    """How an object stands, as far as listings tell."""
    if rule is None:
        return NO_RULE
    if source is None or target is None:
        unwanted = source is not None and not rule.wants(source.key)
        return NOT_WANTED if unwanted else ONLY_SOURCE if source else ONLY_TARGET
    if source.size != target.size:
        return DIFFERS
    if source.etag == target.etag:
        return SAME
    return DIFFERS if MD5.fullmatch(source.etag) and MD5.fullmatch(target.etag) else SAME_SIZE


@dataclass(frozen=True, kw_only=True)
class Couple:
    """A rule's two listings; a source bucket that no rule copies has one."""

    rule: Rule | None
    source: Listing
    target: Listing | None

    def names(self) -> dict[str, Any]:
        """Rule, stores and buckets, for programs."""
        facts: dict[str, Any] = {"rule": self.rule and self.rule.name, "source_bucket": self.source.bucket}
        facts |= {"target": self.rule and self.rule.target}
        return facts | {"target_bucket": self.rule and self.rule.target_bucket}


@dataclass(frozen=True, kw_only=True)
class Sides:
    """The source and all targets, with the rules between them."""

    source: Store
    targets: dict[str, Store]
    rules: Rules

    def couples(self, bucket: str, prefix: str) -> Iterator[Couple]:
        """What to list of a source bucket, below a prefix of its keys."""
        rules = self.rules.of_buckets([bucket])
        if not rules:
            yield Couple(rule=None, source=self._source(bucket, prefix), target=None)
        for rule in rules:
            below = max(prefix, rule.prefix, key=len)
            if below.startswith(prefix) and below.startswith(rule.prefix):
                yield self._couple(rule, below)

    def _couple(self, rule: Rule, below: str) -> Couple:
        target = Listing(
            store=self.targets[rule.target],
            bucket=rule.target_bucket,
            prefix=rule.target_key(below),
            key_of=rule.source_key,
        )
        return Couple(rule=rule, source=self._source(rule.source_bucket, below), target=target)

    def _source(self, bucket: str, prefix: str) -> Listing:
        return Listing(store=self.source, bucket=bucket, prefix=prefix, key_of=lambda key: key)

    def buckets(self, screen: Screen) -> list[str]:
        """All source buckets: those that are there, and those that the rules name. Raises: Failure."""
        named = list(self.rules.literal_buckets)
        try:
            found = self.source.buckets()
        except STORE_ERRORS as error:
            if getattr(error, "code", "") != "AccessDenied" or not named:
                raise Failure(self.source.why(error)) from error
            screen.note("The source does not let these keys list its buckets: those of the rules are shown.")
            return named
        return sorted({*found, *named})


# ── objects ──────────────────────────────────────────────────────────────────────────────────────────


class Objects:
    """Prints every object of a bucket; `tally` counts them by state."""

    def __init__(self, screen: Screen) -> None:
        self.screen = screen
        self.tally: Counter[str] = Counter()

    def show(self, couple: Couple) -> None:
        """Prints each as soon as it is known. Raises: Failure."""
        if couple.rule:
            self.screen.line(f"rule {couple.rule.name}: {couple.source} → {couple.target}")
        self.screen.line(f"{'source':>10}  {'target':>10}  {'':<11}  key")
        for pair in pairs(couple.rule, couple.source, couple.target or ()):
            self.tally[pair.state] += 1
            self.screen.result(pair.line(), couple.names() | pair.facts())
        self._tell_of_order(couple)

    def _tell_of_order(self, couple: Couple) -> None:
        for listing in (couple.source, couple.target):
            if listing and not listing.is_ascending:
                self.screen.note(
                    f"The {listing.store.name} does not list {listing.bucket} in the order of keys: an "
                    "object may be shown twice, as only at the source and only at the target."
                )

    def __str__(self) -> str:
        states = ", ".join(f"{number:,} {state}" for state, number in self.tally.most_common())
        total = count(self.tally.total(), "object")
        return f"{total}: {states}" if states else total


# ── sums ─────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(kw_only=True)
class Sum:
    """Objects and bytes of a listing; `fault` says why they are not known."""

    objects: int = 0
    size_bytes: int = 0
    fault: str = ""

    def cells(self) -> tuple[str, str]:
        """For a table."""
        return (self.fault, "") if self.fault else (f"{self.objects:,}", in_units(self.size_bytes))

    def facts(self, side: str) -> dict[str, int | None]:
        """For programs."""
        known = not self.fault
        return {
            f"{side}_objects": self.objects if known else None,
            f"{side}_bytes": self.size_bytes if known else None,
        }


class Sums:
    """Adds up both sides of every rule, and prints a table of them in the end."""

    def __init__(self, screen: Screen) -> None:
        self.screen = screen
        self.differs = False
        self.table = Table(box=None, pad_edge=False, header_style="")
        for name in ("rule", "source", "objects", "size", "target", "objects", "size", ""):
            self.table.add_column(
                name, justify="right" if name in ("objects", "size") else "left", no_wrap=True
            )

    def add(self, couple: Couple, seen: Callable[[int], None]) -> None:
        """Lists both sides to their ends."""
        rule = couple.rule
        here = self._sum(couple.source, seen, (lambda key: rule.wants(key)) if rule else None)
        there = self._sum(couple.target, seen) if couple.target else Sum()
        state = NO_RULE if rule is None else "equal" if here == there and not here.fault else DIFFERS
        self.differs |= state == DIFFERS or bool(here.fault)
        facts = couple.names() | here.facts("source") | there.facts("target") | {"state": words(state)}
        self.screen.result("", facts)
        beyond = (str(couple.target), *there.cells()) if couple.target else ("", "", "")
        row = (rule.name if rule else "", str(couple.source), *here.cells(), *beyond, state)
        self.table.add_row(*(Text(printable(cell)) for cell in row))

    def _sum(
        self, listing: Listing, seen: Callable[[int], None], wants: Callable[[str], bool] | None = None
    ) -> Sum:
        """Raises nothing: what is wrong with one bucket stands in its place."""
        total = Sum()
        try:
            for listed in listing:
                if wants is None or wants(listed.key):
                    total.objects += 1
                    total.size_bytes += listed.size
                    seen(1)
        except NoBucket:
            return Sum(fault="no bucket")
        except Failure as error:
            self.screen.note(str(error))
            return Sum(fault="unknown")
        return total

    def print(self) -> None:
        """The table, to stdout."""
        if not self.screen.as_json:
            terminal = sys.stdout.isatty()
            width = None if terminal else UNWRAPPED_COLUMNS
            Console(force_terminal=terminal, width=width, highlight=False).print(self.table)


# ── the run ──────────────────────────────────────────────────────────────────────────────────────────


def words(state: str) -> str:
    """A state as programs get it: only_source."""
    return state.replace(" ", "_")


def list_objects(sides: Sides, options: argparse.Namespace, screen: Screen) -> Code:
    """Every object of one bucket. Raises: Failure, Interrupted."""
    objects = Objects(screen)
    try:
        for couple in sides.couples(options.bucket, options.prefix):
            objects.show(couple)
    except KeyboardInterrupt:
        raise Interrupted(f"Until then: {objects}. Nothing was changed; run it again to see all.") from None
    screen.line(str(objects))
    return Code.FAILED if any(objects.tally[state] for state in TELLS) else Code.DONE


def summarize(sides: Sides, options: argparse.Namespace, screen: Screen) -> Code:
    """Objects and bytes of one bucket or all. Raises: Failure, Interrupted."""
    sums = Sums(screen)
    try:
        with screen.progress(
            SpinnerColumn(), "{task.completed:,.0f} objects", TimeElapsedColumn()
        ) as progress:
            task = progress.add_task("", total=None)
            for bucket in [options.bucket] if options.bucket else sides.buckets(screen):
                for couple in sides.couples(bucket, options.prefix):
                    sums.add(couple, lambda number: progress.advance(task, number))
    except KeyboardInterrupt:
        sums.print()
        raise Interrupted("Not all was counted. Nothing was changed; run it again to see all.") from None
    sums.print()
    return Code.FAILED if sums.differs else Code.DONE


def connect(configured: Settings) -> Sides:
    """Clients for all stores; nothing is asked yet."""
    targets = {name: Store(f"target {name}", store) for name, store in configured.targets.items()}
    return Sides(source=Store("source", configured.source), targets=targets, rules=configured.rules)


def read_options(arguments: list[str] | None) -> argparse.Namespace:
    parser = Parser(
        "list_buckets_and_objects",
        __doc__ or "",
        examples=EXAMPLES,
        settings=SETTINGS,
        done=DONE,
        failed=FAILED,
    )
    add = parser.add_argument
    add("--bucket", help="a bucket of the source, whose objects are shown one by one")
    add("--prefix", default="", help="only keys of the source that begin with this")
    add("--summary", action="store_true", help="only sums, with --bucket too")
    add("--json", action="store_true", help="one JSON object a line, for each object or each rule's sums")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    """The exit status, as --help lists them. Raises: SettingsError, Failure, Interrupted."""
    options = read_options(arguments)
    sides, screen = connect(all_settings()), Screen(as_json=options.json)
    if options.summary or options.bucket is None:
        return summarize(sides, options, screen)
    return list_objects(sides, options, screen)


if __name__ == "__main__":
    start(main)
