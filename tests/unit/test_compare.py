"""Two listings side by side: every key once, in order, with both its sides; and what follows from a pair."""

from __future__ import annotations

import gc
import tempfile
import threading
import warnings
from collections.abc import Callable, Mapping
from contextlib import closing, suppress
from dataclasses import replace
from itertools import islice, product
from pathlib import Path
from typing import Any, cast
from urllib.parse import quote

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from webhook.answers import read_xml
from webhook.compare import SOURCE, TARGET, Kind, Listings, Pair, Unordered, judge, looks_equal, merge
from webhook.errors import Place, StoreFailed
from webhook.listing import Listed, Page, read_page
from webhook.rules import Rule
from webhook.source import Source
from webhook.target import Target

KEYS = st.text(st.characters(codec="utf-8"), min_size=1, max_size=6)
FOLDERS = st.text("ab-./0", min_size=1, max_size=5).filter(lambda key: "//" not in key and key[0] != "/")
RULE = Rule(name="default", source_bucket="here", target_bucket="there")


def at(key: str, *, size: int = 1, etag: str = "e") -> Listed:
    return Listed(key, size, etag, "")


# ── merge ────────────────────────────────────────────────────────────────────────────────────────────────


@given(source=st.sets(KEYS), target=st.sets(KEYS))
@example(source=set(), target=set())
@example(source={"a"}, target=set())
@example(source=set(), target={"a"})
@example(source={"a/x", "a-b"}, target={"a/x", "a.b"})
def test_every_key_comes_once_in_order_with_both_its_sides(source: set[str], target: set[str]) -> None:
    here = {key: at(key, etag="source's") for key in source}
    there = {key: at(key, etag="target's") for key in target}
    found = list(merge(iter(map(here.get, sorted(here))), iter(map(there.get, sorted(there)))))
    assert found == [(here.get(key), there.get(key)) for key in sorted(source | target)]


def test_merging_takes_no_more_than_one_object_of_each_side_ahead() -> None:
    taken: list[str] = []

    def noted(side: str) -> Any:
        for number in range(5):
            taken.append(f"{side}{number}")
            yield at(f"{number}")

    merged = merge(noted("s"), noted("t"))
    assert taken == []
    next(merged)
    assert taken == ["s0", "t0"]
    next(merged)
    assert taken == ["s0", "t0", "s1", "t1"]


# ── one pair ─────────────────────────────────────────────────────────────────────────────────────────────

ETAGS = ("", "a", "b", "a-2")


@pytest.mark.parametrize("sizes", [(0, 0), (0, 7), (7, 0), (7, 7), (7, 8)])
@pytest.mark.parametrize("etags", list(product(ETAGS, ETAGS)))
def test_listings_prove_equality_by_size_with_etag_or_by_emptiness(
    sizes: tuple[int, int], etags: tuple[str, str]
) -> None:
    source, target = (at("k", size=size, etag=etag) for size, etag in zip(sizes, etags, strict=True))
    expected = (sizes[0] == sizes[1] == 0) or (
        sizes[0] == sizes[1] and etags[0] == etags[1] and etags[0] != ""
    )
    assert looks_equal(source, target) is expected


def known(source_etag: str | None, target_etag: str | None) -> Mapping[str, Any]:
    return {"state": "settled", "source_etag": source_etag, "target_etag": target_etag}


ENTRIES = [
    None,
    *(known(here, there) for here in (None, "", "old", "s") for there in (None, "", "old", "t")),
]


@pytest.mark.parametrize("overwrite", ["changed", "never"])
@pytest.mark.parametrize("entry", ENTRIES, ids=str)
@pytest.mark.parametrize(
    "pair", [(at("k"), None), (None, at("k")), (at("k"), at("k"))], ids=["source", "target", "equal"]
)
def test_a_key_of_one_side_and_an_equal_one_are_what_they_are_whatever_the_ledger_says(
    pair: Pair, entry: Mapping[str, Any] | None, overwrite: str
) -> None:
    expected = {(True, False): Kind.MISSING, (False, True): Kind.EXTRA, (True, True): None}
    rule = replace(RULE, overwrite=overwrite)
    assert judge(rule, pair, entry) is expected[pair[0] is not None, pair[1] is not None]


@pytest.mark.parametrize("entry", ENTRIES, ids=str)
@pytest.mark.parametrize("sizes", [(1, 1), (1, 2), (0, 1)])
def test_a_rule_that_overwrites_nothing_keeps_what_differs(
    sizes: tuple[int, int], entry: Mapping[str, Any] | None
) -> None:
    pair = at("k", size=sizes[0], etag="s"), at("k", size=sizes[1], etag="t")
    assert judge(replace(RULE, overwrite="never"), pair, entry) is Kind.KEPT


@pytest.mark.parametrize("entry", ENTRIES, ids=str)
@pytest.mark.parametrize("etags", [("s", "t"), ("e", "e"), ("", "")])
def test_another_size_is_different_whatever_etags_and_the_ledger_say(
    etags: tuple[str, str], entry: Mapping[str, Any] | None
) -> None:
    pair = at("k", size=1, etag=etags[0]), at("k", size=2, etag=etags[1])
    assert judge(RULE, pair, entry) is Kind.DIFFERENT


@pytest.mark.parametrize("entry", ENTRIES, ids=str)
def test_what_etags_cannot_tell_is_told_by_the_last_copy_on_record(entry: Mapping[str, Any] | None) -> None:
    found = judge(RULE, (at("k", etag="s"), at("k", etag="t")), entry)
    if entry is None or not entry["source_etag"] or not entry["target_etag"]:
        assert found is Kind.UNPROVEN
    elif (entry["source_etag"], entry["target_etag"]) == ("s", "t"):
        assert found is None
    else:
        assert found is Kind.DIFFERENT


def test_etags_that_are_not_told_are_no_record() -> None:
    pair = at("k", etag=""), at("k", etag="")
    assert judge(RULE, pair, known("", "")) is Kind.UNPROVEN
    assert judge(RULE, pair, None) is Kind.UNPROVEN


# ── both listings ────────────────────────────────────────────────────────────────────────────────────────


class Side:
    """A bucket that lists as S3 does, or folder by folder; keeps what it was asked."""

    def __init__(self, keys: set[str], *, page_size: int = 3, order: Callable[[str], Any] = str) -> None:
        self._keys = sorted(keys, key=order)
        self._page_size = page_size
        self.asked: list[tuple[str, str, str]] = []
        self.fails_at: int | None = None

    def page(self, bucket: str, prefix: str, *, token: str = "") -> Page:
        self.asked.append((bucket, prefix, token))
        if len(self.asked) == self.fails_at:
            raise StoreFailed(
                "failed", Place(side="target", operation="ListObjectsV2", bucket=bucket, key="")
            )
        found = [key for key in self._keys[int(token or 0) :] if key.startswith(prefix)]
        page = found[: self._page_size]
        more = len(found) > self._page_size
        return Page([at(key) for key in page], str(self._keys.index(page[-1]) + 1) if more else "")


def listings(rule: Rule, source: Side, target: Side, **more: Any) -> Listings:
    return Listings(rule=rule, source=cast(Source, source), target=cast(Target, target), **more)


def keys_of(pairs: Any) -> list[tuple[str, bool, bool]]:
    """Key, is it at the source, is it at the target."""
    return [((pair[0] or pair[1]).key, pair[0] is not None, pair[1] is not None) for pair in pairs]


def expected_of(rule: Rule, source: set[str], target: set[str], *, prefix: str = "", after: str = "") -> Any:
    here = {key for key in source if rule.wants(key)}
    there = {key for each in target if (key := rule.source_key(each)) is not None}
    wanted = sorted(key for key in here | there if key.startswith(prefix) and key > after)
    return [(key, key in here, key in there) for key in wanted]


def by_folders(key: str) -> str:
    """The order of a store that lists what is in a folder before the folder's next neighbour."""
    return key.replace("/", "\0")


def compared(source: Side, target: Side) -> tuple[list[Pair], frozenset[str]]:
    """All pairs, begun anew where a side has to be sorted; and the sides that had to be."""
    on_disk: frozenset[str] = frozenset()
    while True:
        try:
            return list(listings(RULE, source, target, on_disk=on_disk).pairs()), on_disk
        except Unordered as error:
            assert error.side not in on_disk
            on_disk |= {error.side}


PREFIXES = st.sampled_from(["", "a", "a/", "a/b", "b-"])
GLOBS = st.sampled_from([(), ("*b",), ("a/*", "*-*")])


@settings(max_examples=300, deadline=None)
@given(data=st.data(), source=st.sets(FOLDERS, max_size=12), target=st.sets(FOLDERS, max_size=12))
def test_what_a_rule_wants_is_compared_and_nothing_else(
    data: st.DataObject, source: set[str], target: set[str]
) -> None:
    rule = replace(
        RULE,
        prefix=(own := data.draw(PREFIXES)),
        target_prefix=data.draw(st.sampled_from([own, "", "0/", "copy-"])),
        include=data.draw(GLOBS),
        exclude=data.draw(GLOBS),
    )
    there = {rule.target_key(key) for key in target if key.startswith(rule.prefix)} | target
    there -= {"", rule.target_prefix}
    prefix = data.draw(PREFIXES)
    inside = [key for key, *_ in expected_of(rule, source, there, prefix=prefix)]
    after = data.draw(st.sampled_from(["", *inside]))
    on_disk = data.draw(st.sets(st.sampled_from([SOURCE, TARGET])))
    here_side = Side(
        source, order=by_folders if SOURCE in on_disk else str, page_size=data.draw(st.integers(1, 4))
    )
    there_side = Side(
        there, order=by_folders if TARGET in on_disk else str, page_size=data.draw(st.integers(1, 4))
    )
    asked = listings(rule, here_side, there_side, prefix=prefix, after=after, on_disk=frozenset(on_disk))
    assert keys_of(asked.pairs()) == expected_of(rule, source, there, prefix=prefix, after=after)


@settings(max_examples=200, deadline=None)
@given(source=st.sets(FOLDERS, max_size=14), target=st.sets(FOLDERS, max_size=14))
def test_disorder_is_noticed_and_sorting_that_side_mends_it(source: set[str], target: set[str]) -> None:
    pairs, on_disk = compared(Side(source, order=by_folders), Side(target, order=by_folders))
    assert keys_of(pairs) == expected_of(RULE, source, target)
    for side, keys in ((SOURCE, source), (TARGET, target)):
        assert (side in on_disk) == (sorted(keys, key=by_folders) != sorted(keys))


class Written(Side):
    """A bucket in S3's order whose pages come as XML, keys escaped."""

    def page(self, bucket: str, prefix: str, *, token: str = "") -> Page:
        page = super().page(bucket, prefix, token=token)
        more = f"<NextContinuationToken>{page.token}</NextContinuationToken>" if page.token else ""
        keys = [f"<Contents><Key>{quote(each.key)}</Key><Size>1</Size></Contents>" for each in page.objects]
        root = read_xml(
            f"<ListBucketResult><IsTruncated>{str(bool(more)).lower()}</IsTruncated>{more}"
            f"<EncodingType>url</EncodingType>{''.join(keys)}</ListBucketResult>".encode()
        )
        assert root is not None
        read = read_page(root)
        assert read is not None
        return read


@settings(max_examples=100, deadline=None)
@given(
    data=st.data(),
    source=st.sets(KEYS, max_size=10),
    target=st.sets(KEYS, max_size=10),
    both=st.sets(KEYS, max_size=5),
)
def test_any_two_sets_of_keys_are_compared_as_sets_whatever_their_pages(
    data: st.DataObject, source: set[str], target: set[str], both: set[str]
) -> None:
    begins = sorted({key[:length] for key in source | target | both for length in (0, 1, 2)} | {""})
    rule = replace(RULE, prefix=(own := data.draw(st.sampled_from(begins))), target_prefix=own)
    prefix, after = data.draw(st.sampled_from(begins)), data.draw(st.sampled_from(["", *sorted(both)]))
    after = after if after.startswith(own) else ""
    here, there = (
        Written(keys | both, order=str.encode, page_size=data.draw(st.integers(1, 4)))
        for keys in (source, target)
    )
    pairs = listings(rule, here, there, prefix=prefix, after=after).pairs()
    assert keys_of(pairs) == expected_of(rule, source | both, target | both, prefix=prefix, after=after)


def test_only_the_keys_that_both_prefixes_share_are_asked_for() -> None:
    rule = replace(RULE, prefix="in/", target_prefix="copy/")
    source, target = Side({"in/a/x", "in/b"}), Side({"copy/a/x", "copy/b"})
    assert keys_of(listings(rule, source, target, prefix="in/a/", after="in/a/w").pairs()) == [
        ("in/a/x", True, True)
    ]
    assert source.asked == [("here", "in/a/", "")]
    assert target.asked == [("there", "copy/a/", "")]
    assert keys_of(listings(rule, source, target, prefix="i").pairs()) == [
        *(("in/a/x", True, True), ("in/b", True, True))
    ]
    assert source.asked[-1] == ("here", "in/", "")


def test_a_folder_marker_at_the_target_prefix_is_no_object_of_the_rule_s() -> None:
    rule = replace(RULE, target_prefix="copy/")
    assert rule.source_key("copy/") is None
    assert keys_of(listings(rule, Side({"a"}), Side({"copy/", "copy/a"})).pairs()) == [("a", True, True)]


@pytest.mark.parametrize("prefix", ["out/", "im", "IN/"])
def test_where_the_prefixes_share_no_key_nothing_is_asked(prefix: str) -> None:
    source, target = Side({"in/a", "out/a"}), Side({"in/a", "out/a"})
    assert list(listings(replace(RULE, prefix="in/"), source, target, prefix=prefix).pairs()) == []
    assert (source.asked, target.asked) == ([], [])


@settings(max_examples=300, deadline=None)
@given(
    source=st.sets(FOLDERS, max_size=14),
    target=st.sets(FOLDERS, max_size=14),
    stops=st.lists(st.integers(0, 5), max_size=4),
)
def test_what_is_stopped_anywhere_and_gone_on_with_passes_no_key_by(
    source: set[str], target: set[str], stops: list[int]
) -> None:
    """Neither side's disorder may have shown when it stops; what it shows later makes all begin anew."""
    seen: list[Pair] = []
    on_disk: frozenset[str] = frozenset()
    for stop in (*stops, None, None, None):
        after = keys_of(seen[-1:])[0][0] if seen else ""
        sides = Side(source, order=by_folders), Side(target, order=by_folders)
        try:
            with closing(listings(RULE, *sides, after=after, on_disk=on_disk).pairs()) as pairs:
                seen += islice(pairs, stop)
        except Unordered as error:
            assert error.side not in on_disk
            on_disk, seen = on_disk | {error.side}, []
    assert keys_of(seen) == expected_of(RULE, source, target)


def test_each_page_that_arrives_is_told_of_in_its_order() -> None:
    told: list[tuple[str, int]] = []
    keys = {f"{number}" for number in range(8)}
    asked = listings(
        RULE, Side(keys), Side(keys), told=lambda side, page: told.append((side, len(page.objects)))
    )
    list(asked.pairs())
    for side in (SOURCE, TARGET):
        assert [count for each, count in told if each == side] == [3, 3, 2]


@pytest.mark.parametrize("fails_at", [1, 2, 3])
@pytest.mark.parametrize("is_on_disk", [False, True])
@pytest.mark.parametrize("side", [SOURCE, TARGET])
def test_a_page_that_fails_ends_it_and_nothing_follows_from_what_was_not_seen(
    side: str, is_on_disk: bool, fails_at: int
) -> None:
    keys = {f"{number}" for number in range(8)}
    sides = {SOURCE: Side(keys), TARGET: Side(keys)}
    sides[side].fails_at = fails_at
    on_disk = frozenset({side} if is_on_disk else set())
    found: list[Pair] = []
    with pytest.raises(StoreFailed):
        found.extend(listings(RULE, sides[SOURCE], sides[TARGET], on_disk=on_disk).pairs())
    assert all(here and there for here, there in found), "no key of the pages before is told as one-sided"


@pytest.mark.parametrize("side", [SOURCE, TARGET])
def test_a_page_that_fails_leaves_no_file_of_the_other_side_behind(
    side: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    keys = {f"{number}" for number in range(8)}
    sides = {SOURCE: Side(keys), TARGET: Side(keys)}
    sides[side].fails_at = 3
    found = listings(RULE, sides[SOURCE], sides[TARGET], on_disk=frozenset({SOURCE, TARGET} - {side}))
    gc.disable()  # which would come some time, or hours later
    try:
        with suppress(StoreFailed):
            list(found.pairs())
        left = list(tmp_path.iterdir())
    finally:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ResourceWarning)
            gc.collect()
        gc.enable()
    assert left == []


def test_who_hears_of_a_page_may_end_it_all() -> None:
    class Enough(Exception):
        pass

    def told(_side: str, page: Page) -> None:
        if page.objects and page.objects[0].key >= "3":
            raise Enough

    keys = {f"{number}" for number in range(8)}
    with pytest.raises(Enough):
        list(listings(RULE, Side(keys), Side(keys), told=told).pairs())


@pytest.mark.parametrize("leave", [lambda pairs: pairs.close(), lambda pairs: None])
def test_who_stops_in_the_middle_leaves_no_thread_behind(leave: Callable[[Any], None]) -> None:
    before = threading.active_count()
    keys = {f"{number}" for number in range(8)}
    pairs = listings(RULE, Side(keys), Side(keys)).pairs()
    next(pairs)
    leave(pairs)
    del pairs
    assert threading.active_count() == before


def test_keys_that_are_not_utf_8_are_compared_like_any_others() -> None:
    keys = {raw.decode(errors="surrogateescape") for raw in (b"a", b"\x80", "é".encode(), b"\xff")}
    target = {*keys, "b", "漢"} - {"a"}
    sides = [Side(each, order=lambda key: key.encode(errors="surrogateescape")) for each in (keys, target)]
    assert keys_of(compared(*sides)[0]) == expected_of(RULE, keys, target)
