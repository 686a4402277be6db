"""Two listings of one rule, side by side in key order: which keys differ, and how.

Decided by size and ETag; where ETags cannot be compared, by what the ledger says of the last copy. What
even that leaves open is unproven: somebody has to ask the target.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Generator, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from typing import Any

from webhook.listing import Listed, OutOfOrder, Page, in_order, sorted_on_disk, walk
from webhook.rules import Rule
from webhook.source import Source
from webhook.target import Target

Pair = tuple[Listed | None, Listed | None]
"""The object of one key at the source and at the target; the target's has the source's key."""
SOURCE, TARGET = "source", "target"


class Kind(enum.StrEnum):
    """How a key differs."""

    MISSING = "missing"  # not at the target
    DIFFERENT = "different"
    UNPROVEN = "unproven"  # same size, and ETags that say nothing of each other
    EXTRA = "extra"  # not at the source
    KEPT = "kept"  # differs and stays so: OVERWRITE=never


class Unordered(Exception):
    """A side's keys do not come in order: begin anew, and sort that side on disk. What was concluded until
    then does not count.
    """

    def __init__(self, side: str) -> None:
        super().__init__(side)
        self.side = side


def looks_equal(source: Listed, target: Listed) -> bool:
    """Whether the listings alone prove it."""
    return source.size == target.size and (source.etag == target.etag != "" or source.size == 0)


def judge(rule: Rule, pair: Pair, known: Mapping[str, Any] | None) -> Kind | None:
    """How a key differs, None where it does not; `known` is the ledger's entry of it."""
    source, target = pair
    if target is None:
        return Kind.MISSING
    if source is None:
        return Kind.EXTRA
    if looks_equal(source, target):
        return None
    if rule.overwrite == "never":
        return Kind.KEPT
    if source.size != target.size:
        return Kind.DIFFERENT
    if known is None or not known["source_etag"] or not known["target_etag"]:
        return Kind.UNPROVEN
    is_on_record = (known["source_etag"], known["target_etag"]) == (source.etag, target.etag)
    return None if is_on_record else Kind.DIFFERENT


@dataclass(frozen=True, kw_only=True)
class Listings:
    """Both listings of a rule, behind a key and below a prefix of the source's."""

    rule: Rule
    source: Source
    target: Target
    prefix: str = ""
    after: str = ""
    on_disk: frozenset[str] = frozenset()
    """The sides whose keys do not come in order."""
    told: Callable[[str, Page], None] = lambda _side, _page: None
    """Hears of each page that arrives; may raise to end it all. Called in the order of pages, from the
    thread that iterates over `pairs` or one that reads ahead."""

    def pairs(self) -> Iterator[Pair]:
        """All keys that the rule wants, in ascending order; memory for a few pages.

        Raises: Unordered, StoreError.
        """
        below = self._below()
        if below is None:
            return
        rule = self.rule
        with ThreadPoolExecutor(2, thread_name_prefix="listing") as reader:

            def list_source(token: str) -> Page:
                return self._told(SOURCE, self.source.page(rule.source_bucket, below, token=token))

            def list_target(token: str) -> Page:
                page = self.target.page(rule.target_bucket, rule.target_key(below), token=token)
                return self._told(TARGET, page)

            at_source = self._objects(SOURCE, walk(list_source, reader), after=self.after)
            behind = rule.target_key(self.after) if self.after else ""
            at_target = self._objects(TARGET, walk(list_target, reader), after=behind)
            with closing(at_source), closing(at_target):  # files on disk go at once, however this ends
                wanted = (each for each in at_source if rule.wants(each.key))
                yield from merge(wanted, self._renamed(at_target))

    def _told(self, side: str, page: Page) -> Page:
        self.told(side, page)
        return page

    def _below(self) -> str | None:
        """The longer of the rule's prefix and the one asked for; None where they have no key in common."""
        longer, shorter = sorted((self.rule.prefix, self.prefix), key=len, reverse=True)
        return longer if longer.startswith(shorter) else None

    def _objects(self, side: str, pages: Iterator[Page], *, after: str) -> Generator[Listed, None, None]:
        if side in self.on_disk:
            yield from sorted_on_disk(pages, after=after)
            return
        try:
            yield from in_order(pages, after=after)
        except OutOfOrder:
            raise Unordered(side) from None

    def _renamed(self, objects: Iterator[Listed]) -> Iterator[Listed]:
        """The target's objects under the source's keys, those that the rule would write."""
        keeps_keys = self.rule.prefix == self.rule.target_prefix
        for each in objects:
            key = self.rule.source_key(each.key)
            if key is not None:
                yield each if keeps_keys else each._replace(key=key)


def merge(source: Iterator[Listed], target: Iterator[Listed]) -> Iterator[Pair]:
    """The two side by side; both in ascending order of their keys."""
    left, right = next(source, None), next(target, None)
    while left is not None or right is not None:
        if right is None or (left is not None and left.key < right.key):
            yield left, None
            left = next(source, None)
        elif left is None or right.key < left.key:
            yield None, right
            right = next(target, None)
        else:
            yield left, right
            left, right = next(source, None), next(target, None)
