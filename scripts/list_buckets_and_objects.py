"""Shows what the source holds and what the targets hold of it, side by side.

Without --bucket: how many objects and bytes there are of each rule, on both sides, and of source buckets that
no rule copies. With --bucket: each object of it, in the order of keys, with its size on both sides.

  same         equal, as far as listings tell    same size    equal size; the ETags can't be compared
  differs      another size or content           only source  not copied yet
  only target  gone from the source              not wanted   the rule leaves it out

What only the target has counts as a difference where the rule has deletes = true, and nowhere else.

It only looks, and holds a few pages of each listing in memory. What it shows of objects that are written
meanwhile may be a moment old on one side.
"""

from __future__ import annotations

import argparse
import contextlib
import re
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import pairwise
from os.path import commonprefix
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from rich.console import Console
from rich.progress import SpinnerColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from scripts.command_line import (
    Code,
    Failure,
    Interrupted,
    Parser,
    Screen,
    all_settings,
    count,
    in_units,
    printable,
    start,
)
from webhook.compare import SOURCE, TARGET, Pair, Unordered, looks_equal
from webhook.errors import ReplicatorError, StoreDenied, StoreError
from webhook.listing import Listed, Page, walk
from webhook.reconcile import Sides
from webhook.rules import Rule, Rules
from webhook.source import Source
from webhook.target import Target
from webhook.worker import open_stores

MD5 = re.compile("[0-9a-f]{32}")
UNWRAPPED_COLUMNS = 10_000
COLUMNS = (SpinnerColumn(), "{task.completed:,.0f} keys", TimeElapsedColumn())
SAME, SAME_SIZE, DIFFERS, EQUAL = "same", "same size", "differs", "equal"
ONLY_SOURCE, ONLY_TARGET, NOT_WANTED, NO_RULE = "only source", "only target", "not wanted", "no rule"

EXAMPLES = """
  python scripts/list_buckets_and_objects.py
  python scripts/list_buckets_and_objects.py --bucket photos --prefix 2026/
  python scripts/list_buckets_and_objects.py --bucket photos --json | jq -r 'select(.state != "same") | .key'
"""
SETTINGS = "all that the service needs; .env.example explains each"
DONE = "all that the rules want at the targets is there, as far as listings tell"
FAILED = "something differs, or a store failed; what only a target has: see above"


# ── one key ──────────────────────────────────────────────────────────────────────────────────────────


def key_of(pair: Pair) -> str:
    """The source's key."""
    here = pair[0] or pair[1]
    return here.key if here else ""


def state_of(rule: Rule | None, pair: Pair) -> str:
    """How a key stands, as far as listings tell."""
    source, target = pair
    if rule is None or not rule.wants(key_of(pair)):
        return NOT_WANTED if rule else NO_RULE
    if source is None or target is None:
        return ONLY_SOURCE if source else ONLY_TARGET
    if looks_equal(source, target):
        return SAME
    are_digests = MD5.fullmatch(source.etag) and MD5.fullmatch(target.etag)
    return DIFFERS if source.size != target.size or are_digests else SAME_SIZE


def is_difference(rule: Rule | None, state: str) -> bool:
    """Whether the target is not as its rule wants it: what only it has, it may have without deletes."""
    return state in (DIFFERS, ONLY_SOURCE) or (state == ONLY_TARGET and rule is not None and rule.deletes)


def line_of(pair: Pair, state: str) -> str:
    """For people."""
    here, there = (in_units(each.size) if each else "-" for each in pair)
    return f"{here:>10}  {there:>10}  {state:<11}  {key_of(pair)}"


def facts_of(pair: Pair, state: str) -> dict[str, Any]:
    """For programs."""
    facts: dict[str, Any] = {"key": key_of(pair), "state": words(state)}
    for side, listed in zip((SOURCE, TARGET), pair, strict=True):
        facts |= {f"{side}_size": listed and listed.size, f"{side}_etag": listed and listed.etag}
    return facts


def words(state: str) -> str:
    """A state as programs get it: only_source."""
    return state.replace(" ", "_")


# ── listings ─────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, kw_only=True)
class Part:
    """What a rule copies of a source bucket, or the bucket where no rule does, below a prefix of its keys."""

    bucket: str
    rule: Rule | None
    prefix: str

    @property
    def name(self) -> str:
        """For people."""
        return f"rule {self.rule.name}" if self.rule else self.bucket

    def names(self) -> dict[str, Any]:
        """Rule, stores and buckets, for programs."""
        facts: dict[str, Any] = {"rule": self.rule and self.rule.name, "source_bucket": self.bucket}
        facts |= {"target": self.rule and self.rule.target}
        return facts | {"target_bucket": self.rule and self.rule.target_bucket}

    def places(self) -> tuple[str, str]:
        """Where it lies at the source and at the target, for people."""
        rule = self.rule
        beyond = (rule.target_bucket, rule.target_key(self.prefix)) if rule else ("", "")
        here, there = ("/".join(filter(None, each)) for each in ((self.bucket, self.prefix), beyond))
        return here, f"{rule.target}: {there}" if rule else ""

    def one_side(self, sides: Sides, side: str) -> Iterator[Listed]:
        """What the rule wants of one side, as the store lists it. Raises: StoreError."""
        rule = self.rule
        if rule is None or side == SOURCE:
            found = listed(sides.source, self.bucket, self.prefix)
            return (each for each in found if rule is None or rule.wants(each.key))
        found = listed(sides.targets[rule.target], rule.target_bucket, rule.target_key(self.prefix))
        return (each for each in found if rule.source_key(each.key) is not None)


def parts(rules: Rules, bucket: str, prefix: str) -> Iterator[Part]:
    """What to list of a source bucket."""
    found = rules.of_buckets([bucket])
    if not found:
        yield Part(bucket=bucket, rule=None, prefix=prefix)
    for rule in found:
        below = max(prefix, rule.prefix, key=len)
        if below.startswith(prefix) and below.startswith(rule.prefix):
            yield Part(bucket=bucket, rule=rule, prefix=below)


def listed(store: Source | Target, bucket: str, prefix: str) -> Iterator[Listed]:
    """The objects of one store. Raises: StoreError."""
    reader = ThreadPoolExecutor(1, thread_name_prefix="listing")
    try:
        for page in walk(lambda token: store.page(bucket, prefix, token=token), reader):
            yield from page.objects
    finally:  # after Ctrl-C nobody waits for what is being read
        reader.shutdown(wait=False, cancel_futures=True)


def merged(sides: Sides, rule: Rule, prefix: str) -> Iterator[Pair]:
    """Both sides in the order of keys, each key once. Raises: StoreError."""
    last = ""
    on_disk: frozenset[str] = frozenset()
    while True:
        order = Order(sides, rule, on_disk)
        both = sides.listings(rule, prefix=prefix, after=last, on_disk=on_disk, told=order.note)
        try:
            for pair in both.pairs():
                order.check(pair)
                yield pair
                last = key_of(pair)
        except Unordered as error:
            on_disk |= {error.side}
        else:
            return


class Order:
    """Finds out that a side does not list in the order of keys, before a key is shown as not there.

    Such a store lists folder by folder: all of "a/" before "a-b", perhaps many pages before.
    """

    def __init__(self, sides: Sides, rule: Rule, on_disk: frozenset[str]) -> None:
        target = (sides.targets[rule.target], rule.target_bucket)
        self._stores = {SOURCE: (sides.source, rule.source_bucket), TARGET: target}
        self._rule = rule
        self._on_disk = on_disk
        self._arrived = {SOURCE: "", TARGET: ""}
        """The last key of each side; "" before the first page, and after the last one."""

    def note(self, side: str, page: Page) -> None:
        """Hears of each page, before its objects are compared. Raises: Unordered."""
        if side in self._on_disk:
            return
        keys = [self._arrived[side], *(each.key for each in page.objects)]
        if any(second <= first for first, second in pairwise(keys)):
            raise Unordered(side)
        self._arrived[side] = keys[-1] if page.token else ""

    def check(self, pair: Pair) -> None:
        """Asks for a key of one side where the other may have it further on. Raises: Unordered, StoreError."""
        if all(pair):
            return
        side, key = (SOURCE, key_of(pair)) if pair[1] else (TARGET, self._rule.target_key(key_of(pair)))
        if not may_come_behind(self._arrived[side], key):
            return
        store, bucket = self._stores[side]
        if any(each.key == key for each in store.page(bucket, key).objects):
            raise Unordered(side)


def may_come_behind(other: str, key: str) -> bool:
    """Whether a store that lists folder by folder lists a key behind one that is greater."""
    common = len(commonprefix((other, key)))
    return other[common : common + 1] == "/" and key[common : common + 1] < "/"


# ── objects ──────────────────────────────────────────────────────────────────────────────────────────


def list_objects(sides: Sides, options: argparse.Namespace, screen: Screen) -> Code:
    """Every object of one bucket, each as soon as it is known. Raises: StoreError, Interrupted."""
    tally: Counter[str] = Counter()
    differs = False
    try:
        for part in parts(sides.rules, options.bucket, options.prefix):
            if part.rule:
                screen.line(f"{part.name}: {' → '.join(part.places())}")
            screen.line(f"{'source':>10}  {'target':>10}  {'':<11}  key")
            for pair in with_unwanted(sides, part):
                state = state_of(part.rule, pair)
                tally[state] += 1
                differs |= is_difference(part.rule, state)
                screen.result(line_of(pair, state), part.names() | facts_of(pair, state))
    except KeyboardInterrupt:
        text = f"Until then: {_in_words(tally)}. Nothing was changed; run it again to see all."
        raise Interrupted(text) from None
    screen.line(_in_words(tally))
    return Code.FAILED if differs else Code.DONE


def with_unwanted(sides: Sides, part: Part) -> Iterator[Pair]:
    """All keys there are, also those that the rule leaves out. Raises: StoreError."""
    if part.rule:
        return merged(sides, replace(part.rule, suffix="", include=(), exclude=()), part.prefix)
    return ((each, None) for each in part.one_side(sides, SOURCE))


def _in_words(tally: Counter[str]) -> str:
    states = ", ".join(f"{number:,} {state}" for state, number in tally.most_common())
    total = count(tally.total(), "object")
    return f"{total}: {states}" if states else total


# ── sums ─────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(kw_only=True)
class Sum:
    """Objects and bytes of one side; `fault` says why they are not known."""

    objects: int = 0
    size_bytes: int = 0
    fault: str = ""

    def add(self, listed: Listed | None) -> None:
        """One more, if there is one."""
        if listed:
            self.objects += 1
            self.size_bytes += listed.size

    def cells(self) -> tuple[str, str]:
        """For a table."""
        return (self.fault, "") if self.fault else (f"{self.objects:,}", in_units(self.size_bytes))

    def facts(self, side: str) -> dict[str, int | None]:
        """For programs."""
        objects, size_bytes = (None, None) if self.fault else (self.objects, self.size_bytes)
        return {f"{side}_objects": objects, f"{side}_bytes": size_bytes}


class Sums:
    """Adds up both sides of every rule, and prints a table of them in the end."""

    def __init__(self, sides: Sides, screen: Screen, seen: Callable[[], None]) -> None:
        """`seen` hears of each key."""
        self.differs = False
        self._sides = sides
        self._screen = screen
        self._seen = seen
        self._table = Table(box=None, pad_edge=False, header_style="")
        for name in ("rule", "source", "objects", "size", "target", "objects", "size", ""):
            justify: Any = "right" if name in ("objects", "size") else "left"
            self._table.add_column(name, justify=justify, no_wrap=True)

    def add(self, part: Part) -> None:
        """Raises no StoreError: what is wrong with one bucket stands in its place."""
        rule = part.rule
        here, there, state = self._both(part, rule) if rule else (self._one(part, SOURCE), Sum(), NO_RULE)
        self.differs |= state == DIFFERS or bool(here.fault)
        facts = part.names() | here.facts(SOURCE) | there.facts(TARGET) | {"state": words(state)}
        self._screen.result("", facts)
        source, target = part.places()
        beyond = (target, *there.cells()) if rule else ("", "", "")
        row = (rule.name if rule else "", source, *here.cells(), *beyond, state)
        self._table.add_row(*(Text(printable(cell)) for cell in row))

    def _both(self, part: Part, rule: Rule) -> tuple[Sum, Sum, str]:
        here, there = Sum(), Sum()
        states: set[str] = set()
        try:
            for pair in merged(self._sides, rule, part.prefix):
                here.add(pair[0])
                there.add(pair[1])
                states.add(state_of(rule, pair))
                self._seen()
        except StoreError as error:
            failed = self._failed(part, error)
            if error.place.side == SOURCE:
                return failed, self._one(part, TARGET), DIFFERS
            return self._one(part, SOURCE), failed, DIFFERS
        if any(is_difference(rule, state) for state in states):
            return here, there, DIFFERS
        return here, there, ONLY_TARGET if ONLY_TARGET in states else EQUAL

    def _one(self, part: Part, side: str) -> Sum:
        total = Sum()
        try:
            for each in part.one_side(self._sides, side):
                total.add(each)
                self._seen()
        except StoreError as error:
            return self._failed(part, error)
        return total

    def _failed(self, part: Part, error: StoreError) -> Sum:
        if error.status == 404:  # no other thing can be missing for a listing
            return Sum(fault="no bucket")
        self._screen.note(f"{part.name}: {in_words(error)}")
        return Sum(fault="unknown")

    def print(self) -> None:
        """The table, to stdout."""
        if not self._screen.as_json:
            terminal = sys.stdout.isatty()
            width = None if terminal else UNWRAPPED_COLUMNS
            Console(force_terminal=terminal, width=width, highlight=False).print(self._table)


def summarize(sides: Sides, options: argparse.Namespace, screen: Screen) -> Code:
    """Objects and bytes of one bucket or all. Raises: StoreError, Interrupted."""
    with screen.progress(*COLUMNS) as progress:
        task = progress.add_task("", total=None)
        sums = Sums(sides, screen, lambda: progress.advance(task))
        try:
            for bucket in [options.bucket] if options.bucket else buckets(sides, screen):
                for part in parts(sides.rules, bucket, options.prefix):
                    sums.add(part)
        except KeyboardInterrupt:
            is_whole = False
        else:
            is_whole = True
    sums.print()
    if not is_whole:
        raise Interrupted("Not all was counted. Nothing was changed; run it again to see all.")
    return Code.FAILED if sums.differs else Code.DONE


def buckets(sides: Sides, screen: Screen) -> list[str]:
    """All source buckets: those that are there, and those that the rules name. Raises: StoreError."""
    named = sides.rules.literal_buckets
    try:
        return sorted({*sides.source.buckets(), *named})
    except StoreDenied as error:
        if error.store_code != "AccessDenied" or not named:
            raise
    screen.note("The source does not let these keys list its buckets: those of the rules are shown.")
    return list(named)


# ── the run ──────────────────────────────────────────────────────────────────────────────────────────


def in_words(error: ReplicatorError) -> str:
    """What happened, and what to do about it."""
    return f"{error.message.rstrip('.')}. {error.hint}".rstrip()


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
    configured, screen = all_settings(), Screen(as_json=options.json)
    show = summarize if options.summary or options.bucket is None else list_objects
    try:
        with contextlib.closing(open_stores(configured)) as sides:
            return show(sides, options, screen)
    except ReplicatorError as error:
        raise Failure(in_words(error)) from None


if __name__ == "__main__":
    start(main)
