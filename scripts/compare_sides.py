"""Compares source and target without changing either, for replicate_to_filebase.py.

As a sweep does: listings first, then the ledger's record of the last copy, then one look at the target; or,
asked to go deep, every byte of both sides.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from scripts.command_line import in_units
from webhook.compare import SOURCE, TARGET, Kind, Pair, judge
from webhook.errors import NoSuchKey, ReplicatorError
from webhook.ledger import Ledger
from webhook.reconcile import Sides
from webhook.rules import Rule

BATCH_KEYS = 1000
CHUNK_BYTES = 1024 * 1024
UNREADABLE = "unreadable"
WHY = {
    Kind.MISSING: "not at the target",
    Kind.DIFFERENT: "differs",
    Kind.UNPROVEN: "ETags cannot be compared, and there is no record of a copy",
    Kind.EXTRA: "only at the target",
    Kind.KEPT: "differs, and stays so: overwrite is never",
}
TO_COPY = (Kind.MISSING, Kind.DIFFERENT, Kind.UNPROVEN)


@dataclass(frozen=True, kw_only=True)
class Finding:
    """A key that is not the same at both sides."""

    rule: Rule
    kind: str
    key: str
    size: int
    """At the source; at the target where only that has it."""
    why: str

    @property
    def is_fault(self) -> bool:
        """Whether the target is not as its rule wants it: what only it has, it may have without deletes."""
        return self.kind != Kind.KEPT and (self.kind != Kind.EXTRA or self.rule.deletes)

    def line(self) -> str:
        """For people."""
        key = f"{self.rule.source_bucket}/{self.key}"
        return f"{self.kind:10} {in_units(self.size):>11}  {key}  ({self.why})"

    def facts(self) -> dict[str, Any]:
        """For programs."""
        target = f"{self.rule.target_bucket}/{self.rule.target_key(self.key)}"
        place = {"rule": self.rule.name, "bucket": self.rule.source_bucket, "key": self.key}
        return {**place, "target": target, "found": self.kind, "size": self.size, "why": self.why}


@dataclass
class Sum:
    """What was compared, and found, in all."""

    compared: int = 0
    size: int = 0
    kinds: Counter[str] = field(default_factory=Counter)

    @property
    def to_copy(self) -> int:
        """How many objects would be copied."""
        return sum(self.kinds[kind] for kind in TO_COPY)


class Comparing:
    """One comparison of some rules. `seen` hears of each key compared, with its bytes at the source."""

    def __init__(
        self, sides: Sides, ledger: Ledger | None, *, deep: bool, threads: int, seen: Callable[[int], None]
    ) -> None:
        self._sides = sides
        self._ledger = ledger
        self._deep = deep
        self._threads = threads
        self._seen = seen
        self.sum = Sum()

    def findings(self, rule: Rule, prefix: str) -> Iterator[Finding]:
        """What differs, in key order. Raises: ReplicatorError."""
        # sorted first: where a store has an order of its own, what is found may not be taken back
        listings = self._sides.listings(rule, prefix=prefix, on_disk=frozenset((SOURCE, TARGET)))
        pairs = listings.pairs()
        while batch := list(itertools.islice(pairs, BATCH_KEYS)):
            yield from self._judged(rule, batch)

    def _judged(self, rule: Rule, batch: Sequence[Pair]) -> Iterator[Finding]:
        for pair in batch:
            size = pair[0].size if pair[0] else 0
            self.sum.compared += 1
            self.sum.size += size
            self._seen(size)
        kinds = self._by_content(rule, batch) if self._deep else self._by_listing(rule, batch)
        for pair, (kind, why) in zip(batch, kinds, strict=True):
            if kind:
                self.sum.kinds[kind] += 1
                here = pair[0] or pair[1]
                yield Finding(rule=rule, kind=kind, key=_key(pair), size=here.size if here else 0, why=why)

    def _by_listing(self, rule: Rule, batch: Sequence[Pair]) -> Iterator[tuple[str | None, str]]:
        first = [judge(rule, pair, None) for pair in batch]
        doubtful = {
            _key(pair): pair for pair, kind in zip(batch, first, strict=True) if kind is Kind.UNPROVEN
        }
        known = self._ledger.known(rule.name, list(doubtful)) if self._ledger and doubtful else {}
        with ThreadPoolExecutor(self._threads, thread_name_prefix="compare") as askers:
            answers = askers.map(
                lambda pair: self._proved(rule, pair, known.get(_key(pair))), doubtful.values()
            )
            proved = dict(zip(doubtful, answers, strict=True))
        for pair, kind in zip(batch, first, strict=True):
            found = proved.get(_key(pair), kind)
            yield found, WHY[found] if found else ""

    def _proved(self, rule: Rule, pair: Pair, known: Mapping[str, Any] | None) -> Kind | None:
        """By the ledger, else by the source's ETag that this service writes onto some of its copies."""
        kind = judge(rule, pair, known)
        if kind is not Kind.UNPROVEN or pair[0] is None:
            return kind
        target = self._sides.targets[rule.target]
        found = target.head(rule.target_bucket, rule.target_key(pair[0].key))
        return None if found and found.stamp == pair[0].etag != "" else kind

    def _by_content(self, rule: Rule, batch: Sequence[Pair]) -> Iterator[tuple[str | None, str]]:
        readers = ThreadPoolExecutor(self._threads, thread_name_prefix="compare")
        try:
            for future in [readers.submit(self._read_both, rule, pair) for pair in batch]:
                yield future.result()
        finally:  # after Ctrl-C nobody waits for what is being read
            readers.shutdown(wait=False, cancel_futures=True)

    def _read_both(self, rule: Rule, pair: Pair) -> tuple[str | None, str]:
        """Byte by byte, whatever ETags say."""
        source, target = pair
        if source is None or target is None or source.size != target.size:
            kind = judge(rule, pair, None)
            return kind, WHY[kind] if kind else ""
        try:
            is_equal = self._is_equal(rule, source.key)
        except ReplicatorError as error:
            return UNREADABLE, error.message
        kind = None if is_equal else Kind.KEPT if rule.overwrite == "never" else Kind.DIFFERENT
        return kind, WHY[kind] if kind else ""

    def _is_equal(self, rule: Rule, key: str) -> bool:
        source, target = self._sides.source, self._sides.targets[rule.target]
        try:
            with (
                source.open(rule.source_bucket, key) as here,
                target.open(rule.target_bucket, rule.target_key(key)) as there,
            ):
                pieces = itertools.zip_longest(here.chunks(CHUNK_BYTES), there.chunks(CHUNK_BYTES))
                return all(one == other for one, other in pieces)
        except NoSuchKey:
            return False  # it went while this looked


def _key(pair: Pair) -> str:
    here = pair[0] or pair[1]
    return here.key if here else ""
