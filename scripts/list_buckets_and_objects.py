"""Shows what the source holds and what the targets hold of it, side by side.

Without --bucket: how many objects and bytes there are of each rule, on both sides, and of source buckets that
no rule copies. With --bucket: each object of it, in the order of keys, with its size on both sides.

  same         equal size and ETag          same size    equal size; the ETags can't be compared
  differs      another size or content      only source  not copied yet
  only target  gone from the source         not wanted   the rule leaves it out

What only the target has counts as a difference where the rule has deletes = true, and nowhere else: sums that
differ by nothing more are "only target".

It only looks. Both listings of a rule are sorted in temporary files before any of it is shown, as not every
store lists in the order of keys; memory stays small. What it shows of objects that are written meanwhile may
be a moment old on one side.
"""

from __future__ import annotations

import argparse
import contextlib
import re
import sys
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from rich.progress import SpinnerColumn, TimeElapsedColumn

from scripts.command_line import (
    Code,
    Failure,
    Interrupted,
    Parser,
    Screen,
    all_settings,
    count,
    in_units,
    start,
)
from webhook.compare import SOURCE, TARGET, Pair, looks_equal
from webhook.errors import ReplicatorError, StoreDenied, StoreError
from webhook.listing import Page, walk
from webhook.reconcile import Sides
from webhook.rules import Rule, Rules
from webhook.service import open_stores
from webhook.source import Source
from webhook.target import Target

MD5 = re.compile("[0-9a-f]{32}")
COLUMNS = (SpinnerColumn(), "{task.completed:,.0f} objects listed", TimeElapsedColumn())
SAME, SAME_SIZE, DIFFERS, EQUAL = "same", "same size", "differs", "equal"
ONLY_SOURCE, ONLY_TARGET, NOT_WANTED, NO_RULE = "only source", "only target", "not wanted", "no rule"
Seen = Callable[[Page], None]
"""Hears of each page that arrives."""
OBJECT, SUM = "{:>10}  {:>10}  {:<11}  {}", "{:>21}  {:>21}  {:<11}  {}"
EXAMPLES = """
  python scripts/list_buckets_and_objects.py
  python scripts/list_buckets_and_objects.py --bucket photos --prefix 2026/
  python scripts/list_buckets_and_objects.py --bucket photos --json | jq -r 'select(.state != "same") | .key'
"""
SETTINGS = "all that the service needs; .env.example explains each"
DONE, FAILED = "both sides are equal, as far as listings tell", "something differs, or a store failed"


@dataclass(frozen=True, kw_only=True)
class Part:
    """What a rule copies of a source bucket, or the bucket where no rule does, below a prefix of its keys."""

    bucket: str
    rule: Rule | None
    prefix: str

    @property
    def asked(self) -> tuple[str, ...]:
        """The sides that it lies on."""
        return (SOURCE, TARGET) if self.rule else (SOURCE,)

    def __str__(self) -> str:
        here, rule = _path(self.bucket, self.prefix), self.rule
        if rule is None:
            return here
        there = _path(rule.target_bucket, rule.target_key(self.prefix))
        return f"rule {rule.name}: {here} → {rule.target}: {there}"

    def facts(self, state: str) -> dict[str, Any]:
        """For programs."""
        rule, facts = self.rule, {"rule": self.rule and self.rule.name, "source_bucket": self.bucket}
        facts |= {"target": rule and rule.target, "target_bucket": rule and rule.target_bucket}
        return facts | {"state": state.replace(" ", "_")}


def _path(bucket: str, prefix: str) -> str:
    return f"{bucket}/{prefix}" if prefix else bucket


def parts(rules: Rules, bucket: str, prefix: str) -> Iterator[Part]:
    """What to list of a source bucket."""
    found = rules.of_buckets([bucket])
    if not found:
        yield Part(bucket=bucket, rule=None, prefix=prefix)
    for rule in found:
        below = max(prefix, rule.prefix, key=len)
        if below.startswith(prefix) and below.startswith(rule.prefix):
            yield Part(bucket=bucket, rule=rule, prefix=below)


# ── listings ─────────────────────────────────────────────────────────────────────────────────────────


def pairs_of(sides: Sides, part: Part, left: Collection[str], seen: Seen) -> Iterator[Pair]:
    """What the rule wants of these sides; of both in the order of keys. Raises: StoreError, OSError."""
    if part.rule and len(left) > 1:
        # sorted first: what is shown cannot be taken back where a store has an order of its own
        listings = sides.listings(
            part.rule, prefix=part.prefix, on_disk=frozenset(left), told=lambda _side, page: seen(page)
        )
        return listings.pairs()
    return chain.from_iterable(one_side(sides, part, side, seen) for side in left)


def one_side(sides: Sides, part: Part, side: str, seen: Seen) -> Iterator[Pair]:
    """What the rule wants of one side, as the store lists it. Raises: StoreError."""
    rule = part.rule
    store: Source | Target = sides.source
    bucket, prefix = part.bucket, part.prefix
    if rule and side == TARGET:
        store, bucket, prefix = sides.targets[rule.target], rule.target_bucket, rule.target_key(prefix)
    reader = ThreadPoolExecutor(1, thread_name_prefix="listing")
    try:
        for page in walk(lambda token: store.page(bucket, prefix, token=token), reader):
            seen(page)
            for each in page.objects:
                if side == TARGET and rule and rule.source_key(each.key) is not None:
                    yield None, each
                elif side == SOURCE and (rule is None or rule.wants(each.key)):
                    yield each, None
    finally:  # after Ctrl-C nobody waits for what is being read
        reader.shutdown(wait=False, cancel_futures=True)


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


def is_fault(rule: Rule | None, state: str) -> bool:
    """Whether the target is not as its rule wants it: what only it has, it may have without deletes."""
    return state in (DIFFERS, ONLY_SOURCE) or (state == ONLY_TARGET and rule is not None and rule.deletes)


# ── objects ──────────────────────────────────────────────────────────────────────────────────────────


def list_objects(sides: Sides, options: argparse.Namespace, screen: Screen, seen: Seen) -> Code:
    """Every object of one bucket, also what rules leave out. Raises: StoreError, OSError, Interrupted."""
    tally: Counter[str] = Counter()
    has_faults = False
    try:
        for part in parts(sides.rules, options.bucket, options.prefix):
            rule = part.rule
            if rule:
                screen.line(str(part))
            screen.line(OBJECT.format("source", "target", "", "key"))
            all_there = rule and replace(rule, suffix="", include=(), exclude=())
            for pair in pairs_of(sides, replace(part, rule=all_there), part.asked, seen):
                state = state_of(rule, pair)
                tally[state] += 1
                has_faults |= is_fault(rule, state)
                cells = (in_units(each.size) if each else "-" for each in pair)
                facts = part.facts(state) | {"key": key_of(pair)}
                for side, each in zip((SOURCE, TARGET), pair, strict=True):
                    facts |= {f"{side}_size": each and each.size, f"{side}_etag": each and each.etag}
                screen.result(OBJECT.format(*cells, state, key_of(pair)), facts)
    except KeyboardInterrupt:
        until = f"Until then: {_in_all(tally)}. Nothing was changed; run it again to see all."
        raise Interrupted(until) from None
    screen.line(_in_all(tally))
    return Code.FAILED if has_faults else Code.DONE


def _in_all(tally: Counter[str]) -> str:
    states = ", ".join(f"{number:,} {state}" for state, number in tally.most_common())
    return count(tally.total(), "object") + (f": {states}" if states else "")


# ── sums ─────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(kw_only=True)
class Sum:
    """Objects and bytes of one side; `fault` says why they are not known."""

    objects: int = 0
    size_bytes: int = 0
    fault: str = ""

    def __str__(self) -> str:
        return self.fault or f"{self.objects:,} {in_units(self.size_bytes):>10}"

    def facts(self, side: str) -> dict[str, int | None]:
        """For programs."""
        objects, size_bytes = (None, None) if self.fault else (self.objects, self.size_bytes)
        return {f"{side}_objects": objects, f"{side}_bytes": size_bytes}


def summarize(sides: Sides, options: argparse.Namespace, screen: Screen, seen: Seen) -> Code:
    """Objects and bytes of one bucket or all. Raises: StoreError, OSError, Interrupted."""
    has_faults = False
    screen.line(SUM.format("source", "target", "", "rule or bucket"))
    try:
        for bucket in [options.bucket] if options.bucket else buckets(sides, screen):
            for part in parts(sides.rules, bucket, options.prefix):
                here, there, state = add_up(sides, part, screen, seen)
                has_faults |= state == DIFFERS or bool(here.fault)
                facts = part.facts(state) | here.facts(SOURCE) | there.facts(TARGET)
                beyond = str(there) if part.rule else "-"
                screen.result(SUM.format(str(here), beyond, state, str(part)), facts)
    except KeyboardInterrupt:
        raise Interrupted("Not all was counted. Nothing was changed; run it again to see all.") from None
    return Code.FAILED if has_faults else Code.DONE


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


def add_up(sides: Sides, part: Part, screen: Screen, seen: Seen) -> tuple[Sum, Sum, str]:
    """Source, target and state; what a store fails at stands in its place. Raises: OSError."""
    rule = part.rule
    faults: dict[str, str] = {}
    while True:
        sums = {side: Sum(fault=faults.get(side, "")) for side in (SOURCE, TARGET)}
        states: set[str] = set()
        try:
            left = [side for side in part.asked if side not in faults]
            for pair in pairs_of(sides, part, left, seen):
                for total, each in zip(sums.values(), pair, strict=True):
                    total.objects += each is not None
                    total.size_bytes += each.size if each else 0
                states.add(state_of(rule, pair))
        except StoreError as error:
            is_absent = error.status == 404  # nothing else can be missing for a listing
            faults[error.place.side] = "no bucket" if is_absent else "unknown"
            if not is_absent:
                screen.note(f"{part}: {in_words(error)}")
        else:
            break
    rest = ONLY_TARGET if ONLY_TARGET in states else EQUAL
    is_wrong = faults or any(is_fault(rule, state) for state in states)
    return sums[SOURCE], sums[TARGET], NO_RULE if rule is None else DIFFERS if is_wrong else rest


# ── the run ──────────────────────────────────────────────────────────────────────────────────────────


def in_words(error: ReplicatorError) -> str:
    """What happened, and what to do about it."""
    return f"{error.message.rstrip('.')}. {error.hint}".rstrip()


def read_options(arguments: list[str] | None) -> argparse.Namespace:
    name, what = "list_buckets_and_objects", __doc__ or ""
    parser = Parser(name, what, examples=EXAMPLES, settings=SETTINGS, done=DONE, failed=FAILED)
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
        with contextlib.closing(open_stores(configured)) as sides, screen.progress(*COLUMNS) as bar:
            task = bar.add_task("", total=None)
            return show(sides, options, screen, lambda page: bar.advance(task, len(page.objects)))
    except ReplicatorError as error:
        raise Failure(in_words(error)) from None


if __name__ == "__main__":
    start(main)
