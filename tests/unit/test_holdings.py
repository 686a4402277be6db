"""What a target holds is found by looking, once."""

from __future__ import annotations

from typing import Any

import pytest

from webhook.holdings import TRAITS_MAX, Holdings, traits
from webhook.objects import ObjectInfo, Properties

NONE: frozenset[str] = frozenset()
FULL = Properties(
    content_type="text/plain",
    content_encoding="gzip",
    content_disposition="inline",
    content_language="de",
    cache_control="no-store",
    expires="never",
    metadata={"a": "b"},
)


def shown(**properties: Any) -> ObjectInfo:
    """An object at the target."""
    return ObjectInfo(size=1, etag="e", version_id="", properties=Properties(**properties), tag_count=0)


def test_every_property_is_a_trait_and_absent_ones_are_none() -> None:
    assert len(traits(FULL)) == 7
    for kind in ("", "binary/octet-stream", "application/octet-stream"):
        assert traits(Properties(content_type=kind)) == {}


def test_what_the_target_does_not_show_is_lost_from_then_on() -> None:
    holdings = Holdings()
    assert not holdings.knows(FULL)
    assert holdings.lost(FULL) == ()
    holdings.learn(FULL, shown(content_type="text/plain; charset=utf-8", metadata={"a": "b"}, expires="0"))
    assert holdings.knows(FULL)
    held = {"metadata"}
    assert set(holdings.lost(FULL)) == traits(FULL).keys() - held
    assert not holdings.knows(Properties(content_type="image/png")), "a type counts with its value"
    assert holdings.lost(Properties(metadata={"other": "c"}, cache_control="x")) == ("cache-control",)


@pytest.mark.parametrize(
    ("wanted", "present", "is_same"),
    [
        ({}, {}, True),
        ({"expires": "a"}, {"expires": "a"}, True),
        ({"expires": "a"}, {"expires": "b"}, False),
        ({"expires": "a"}, {}, False),
        ({}, {"expires": "a"}, False),
        ({"metadata": {"a": "b"}}, {"metadata": {"a": "c"}}, False),
        ({"content_type": "a/b"}, {"content_type": "a/c"}, False),
        ({}, {"content_type": "guessed/from-the-key"}, True),
        ({"content_type": "a/b"}, {"content_type": "binary/octet-stream"}, False),
    ],
)
def test_a_target_that_holds_everything_must_show_everything_and_nothing_else(
    wanted: dict[str, Any], present: dict[str, Any], is_same: bool
) -> None:
    found = Holdings().same(Properties(**wanted), Properties(**present), lost_before=NONE)
    assert found == is_same


@pytest.mark.parametrize("is_on_record", [True, False])
def test_what_cannot_be_held_is_no_difference(is_on_record: bool) -> None:
    wanted = Properties(content_type="a/b", expires="a", cache_control="c")
    present = Properties(content_type="own/type", cache_control="c")
    holdings, before = Holdings(), NONE
    if is_on_record:
        before = frozenset({"content-type: a/b", "expires"})
    else:
        holdings.learn(wanted, shown(content_type="own/type", cache_control="c"))
    assert holdings.same(wanted, present, lost_before=before)
    assert not holdings.same(wanted, Properties(content_type="own/type"), lost_before=before)


def test_what_is_remembered_is_bounded() -> None:
    holdings = Holdings()
    for number in range(2 * TRAITS_MAX):
        holdings.learn(Properties(content_type=f"a/{number}"), shown())
    assert len(holdings._lost) <= TRAITS_MAX + 1
