"""What a target holds of an object besides its bytes: found by looking, remembered, never guessed.

A trait is one thing an object can have: a header, its user metadata as a whole, its tags. Content-Type
counts with its value, because stores keep some types and replace others by one of their own.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from webhook.objects import ObjectInfo, Properties

NO_TYPE = frozenset(("", "binary/octet-stream", "application/octet-stream"))
"""What stores answer for an object that was given no type; some put in its place what the key's ending
suggests to them. It counts as no trait, so that such a guess is no difference."""
TRAITS_MAX = 4096
"""Remembered at most; then all are found anew."""


def traits(properties: Properties) -> dict[str, object]:
    """Name → value of each trait that is there."""
    kind = "" if properties.content_type in NO_TYPE else properties.content_type
    named = {
        f"content-type: {kind}": kind,
        "content-encoding": properties.content_encoding,
        "content-disposition": properties.content_disposition,
        "content-language": properties.content_language,
        "cache-control": properties.cache_control,
        "expires": properties.expires,
        "metadata": {name: value for name, value in properties.metadata.items() if value},
        "metadata without a value": sorted(name for name, value in properties.metadata.items() if not value),
    }
    return {name: value for name, value in named.items() if value}


class Holdings:
    """What one target was found to hold and not to hold. Thread-safe: sets only grow or are emptied."""

    def __init__(self) -> None:
        self._held: set[str] = set()
        self._lost: set[str] = set()
        self._told: set[str] = set()

    @property
    def held(self) -> frozenset[str]:
        """The traits that were seen to be held."""
        return frozenset(self._held.copy())

    def expect(self, held: Iterable[str]) -> None:
        """These were seen to be held by others: they need not be looked for, until there is doubt."""
        self._told.update(held)

    def doubt(self, properties: Properties) -> None:
        """The target does not show what it was told to hold: what others have seen counts no more."""
        self._told -= traits(properties).keys()

    def knows(self, properties: Properties) -> bool:
        """Whether each trait was seen at the target before."""
        return traits(properties).keys() <= self._held | self._lost | self._told

    def learn(self, sent: Properties, found: ObjectInfo) -> tuple[str, ...]:
        """Takes note of what the target shows after it was sent these properties; gives what it does not.

        What one object keeps is not held to be lost because another one does not show it.
        """
        if len(self._held) + len(self._lost) > TRAITS_MAX:
            self._held.clear()
            self._lost.clear()
            self._told.clear()
        shown = traits(found.properties)
        lost = tuple(name for name, value in traits(sent).items() if shown.get(name) != value)
        self._held.update(traits(sent).keys() - set(lost))
        self._lost.update(set(lost) - self._held)
        return lost

    def lost(self, properties: Properties, before: frozenset[str] = frozenset()) -> tuple[str, ...]:
        """The traits of these properties that the target does not hold; `before` as in `same`."""
        return tuple(name for name in traits(properties) if name in self._lost | before)

    def same(self, wanted: Properties, present: Properties, *, lost_before: frozenset[str]) -> bool:
        """Whether the target shows all of `wanted` that it can hold, and nothing else.

        `lost_before` is what the last copy left on record as lost.
        """
        expected = traits(wanted)
        unheld = {_header(name) for name in expected if name in self._lost | lost_before}
        if wanted.content_type in NO_TYPE:
            unheld.add("content-type")
        return _without(expected, unheld) == _without(traits(present), unheld)


def _without(named: Mapping[str, object], headers: set[str]) -> dict[str, object]:
    """A target may show something of its own in the place of what it cannot hold: that goes too."""
    return {name: value for name, value in named.items() if _header(name) not in headers}


def _header(trait: str) -> str:
    return trait.partition(":")[0]
