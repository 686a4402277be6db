"""Which rules get in each other's way: loops, and keys that two of them would write.

Globs are not known to match one bucket or another before the source is asked, and buckets come and go: so
two rules are in conflict where there may be buckets and keys that make them meet.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

from webhook.rules import PLACEHOLDER, Template, is_glob

Pattern = tuple[str, ...]
"""A text with gaps, cut into single characters and these:"""
ANY = "any"
"""any characters,"""
NAME = "name"
"""any characters but a slash,"""
LETTER = "letter"
"""one character that is no slash."""
_GAPS = ((ANY,), (NAME,))


@dataclass(frozen=True, kw_only=True)
class _Flow:
    """Where the objects go that one template takes from the buckets of one pattern."""

    template: Template
    source: Pattern
    store: str
    bucket: Pattern
    prefix: Pattern

    @property
    def keys(self) -> Pattern:
        """Which keys of the target it may write."""
        return (*self.prefix, ANY)


def problems(templates: Sequence[Template], *, source: str, targets: Mapping[str, str]) -> list[str]:
    """A sentence for each conflict, with what can be done about it.

    `source` and `targets` (by name) are endpoints; a rule whose target is not there is left out.
    """
    said = []
    for first, *others in loops(templates, source=source, targets=targets):
        circle = " → ".join((first, *others, first))
        said.append(
            f"rules copy their own copies again, without end ({circle}): "
            "give one of them a bucket or target_prefix at the target that none of them reads"
        )
    for one, other in overlaps(templates, targets=targets):
        said.append(
            f"rules {one} and {other} may write the same keys of one target bucket: give each a "
            "target_prefix or bucket of its own, or make them disjoint by suffix or exclude"
        )
    return said


def loops(
    templates: Sequence[Template], *, source: str, targets: Mapping[str, str]
) -> tuple[tuple[str, ...], ...]:
    """The names of rules that copy each other's copies again, in order, each circle once."""
    flows = [flow for flow in _flows(templates, targets) if flow.store == source]
    feeds = {
        here: [there for there, next_flow in enumerate(flows) if _feeds(flow, next_flow)]
        for here, flow in enumerate(flows)
    }
    circles: dict[frozenset[str], tuple[str, ...]] = {}
    for start in feeds:
        if path := _way_back(start, feeds):
            names = tuple(dict.fromkeys(flows[step].template.name for step in path))
            circles.setdefault(frozenset(names), names)
    return tuple(circles.values())


def overlaps(templates: Sequence[Template], *, targets: Mapping[str, str]) -> tuple[tuple[str, str], ...]:
    """The names of any two rules that may write the same key of the same target bucket."""
    pairs = combinations(_flows(templates, targets), 2)
    meeting = ((a.template.name, b.template.name) for a, b in pairs if _overlap(a, b))
    return tuple(dict.fromkeys(meeting))


def _flows(templates: Iterable[Template], targets: Mapping[str, str]) -> list[_Flow]:
    return [
        _Flow(
            template=template,
            source=_glob(source),
            store=targets[template.target],
            bucket=_filled(template.target_bucket.split(PLACEHOLDER), _glob(source)),
            prefix=_filled(template.target_prefix_parts, _glob(source)),
        )
        for template in templates
        if targets.get(template.target)
        for source in template.sources
    ]


def _glob(bucket: str) -> Pattern:
    tokens = tuple({"*": NAME, "?": LETTER}.get(char, char) for char in bucket)
    return tokens if set(tokens) != {NAME} else (LETTER, NAME)  # no bucket's name is empty


def _filled(parts: Sequence[str], gap: Pattern) -> Pattern:
    first, *others = parts
    return tuple(first) + tuple(token for part in others for token in (*gap, *part))


def _feeds(flow: _Flow, other: _Flow) -> bool:
    return _meet(flow.bucket, other.source) and _meet(flow.keys, (*other.template.prefix, ANY))


def _way_back(start: int, feeds: Mapping[int, Sequence[int]]) -> tuple[int, ...]:
    """The shortest way from a node back to itself, without its end; empty where there is none."""
    ways: list[tuple[int, ...]] = [(start,)]
    seen: set[int] = set()
    for way in ways:  # grows as it goes, once for each node at most
        for step in feeds[way[-1]]:
            if step == start:
                return way
            if step not in seen:
                seen.add(step)
                ways.append((*way, step))
    return ()


def _overlap(one: _Flow, other: _Flow) -> bool:
    """Buckets of one template never meet: it tells them apart by itself."""
    if one.template.name == other.template.name or one.store != other.store:
        return False
    if not _meet(one.bucket, other.bucket) or not _meet(one.keys, other.keys):
        return False
    apart = _end_differently(one.template.suffix, other.template.suffix)
    return not (apart or _leaves_out(one, other) or _leaves_out(other, one))


def _end_differently(one: str, other: str) -> bool:
    return not one.endswith(other) and not other.endswith(one)


def _leaves_out(flow: _Flow, other: _Flow) -> bool:
    """Whether the first excludes all that could go where the second writes.

    A glob like "raw/*" excludes keys by how they begin, and so by how they would begin at the target.
    """
    if any(len(token) > 1 for token in flow.prefix):  # a gap: where its keys begin is not known
        return False
    before = flow.template.prefix
    starts = (glob[:-1] for glob in flow.template.exclude if glob.endswith("*") and not is_glob(glob[:-1]))
    never = [(*flow.prefix, *start[len(before) :]) for start in starts if start.startswith(before)]
    return any(other.prefix[: len(start)] == start for start in never)


def _meet(one: Pattern, other: Pattern) -> bool:
    """Whether some text fits both: whether both can be gone through side by side to their ends.

    A gap is closed, or takes one token of the other side. Two gaps need not take the same characters: what
    fits with them fits without.
    """
    ahead = {(0, 0)}
    done = set()
    while ahead:
        here = ahead.pop()
        if here == (len(one), len(other)):
            return True
        done.add(here)
        ahead |= set(_steps(one, other, *here)) - done
    return False


def _steps(one: Pattern, other: Pattern, i: int, j: int) -> Iterator[tuple[int, int]]:
    here, there = one[i : i + 1], other[j : j + 1]
    here_is_gap, there_is_gap = here in _GAPS, there in _GAPS
    if here_is_gap:
        yield i + 1, j
    if there_is_gap:
        yield i, j + 1
    if here and there and _fit(here[0], there[0]):
        yield i + (not here_is_gap), j + (not there_is_gap)


def _fit(one: str, other: str) -> bool:
    """Whether some character fits both tokens."""
    if one == other or ANY in (one, other):
        return True
    return "/" not in (one, other) and (len(one) > 1 or len(other) > 1)
