"""Rules that get in each other's way are refused, and no others."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from typing import Any

import pytest
from hypothesis import given
from hypothesis import settings as effort
from hypothesis import strategies as st

from webhook import conflicts
from webhook.rules import Rule, Rules, Template

HERE = "http://minio:9000"
TARGETS = {"here": HERE, "also-here": HERE, "there": "https://there", "elsewhere": "https://elsewhere"}
BUCKETS = ["".join(chars) for size in (1, 2, 3) for chars in product("ab", repeat=size)]
KEYS = ["".join(chars) for size in (1, 2, 3) for chars in product("ab/", repeat=size)]


def template(*sources: str, **fields: Any) -> Template:
    return Template(**{"name": "r", "sources": sources, "target": "there", "target_bucket": "t"} | fields)


def loops(*templates: Template) -> tuple[tuple[str, ...], ...]:
    return conflicts.loops(templates, source=HERE, targets=TARGETS)


def overlaps(*templates: Template) -> tuple[tuple[str, str], ...]:
    return conflicts.overlaps(templates, targets=TARGETS)


# ── loops ────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("sources", "fields", "is_loop"),
    [
        (("photos",), {"target_bucket": "photos"}, True),
        (("photos",), {"target_bucket": "{bucket}"}, True),
        (("photos",), {"target_bucket": "photos", "target": "there"}, False),
        (("photos",), {"target_bucket": "photos", "target": "also-here"}, True),
        (("photos",), {"target_bucket": "copy"}, False),
        (("*",), {"target_bucket": "copy"}, True),
        (("*",), {"target_bucket": "{bucket}-copy"}, True),
        (("photos-??",), {"target_bucket": "{bucket}-copy"}, False),
        (("photos", "copy"), {"target_bucket": "copy"}, True),
        (("photos", "copy"), {"target_bucket": "photos", "target_prefix": "x/{bucket}/"}, True),
        (("photos", "photos-copy"), {"target_bucket": "{bucket}-copy"}, False),
        (("photos",), {"target_bucket": "photos", "prefix": "in/", "target_prefix": "out/"}, False),
        (("photos",), {"target_bucket": "photos", "prefix": "in/", "target_prefix": "in/out/"}, True),
        (("photos",), {"target_bucket": "photos", "prefix": "in/", "target_prefix": "i"}, True),
        (("photos",), {"target_bucket": "photos", "target_prefix": "copy/"}, True),
        (("p*",), {"target_bucket": "photos", "prefix": "in/"}, False),
        (("p*",), {"target_bucket": "photos", "prefix": "p", "target_prefix": ""}, True),
        (("p*",), {"target_bucket": "photos", "prefix": "q", "target_prefix": ""}, False),
    ],
)
def test_a_rule_that_would_copy_its_own_copies_is_a_loop(
    sources: tuple[str, ...], fields: dict[str, Any], is_loop: bool
) -> None:
    assert loops(template(*sources, **{"target": "here"} | fields)) == ((("r",),) if is_loop else ())


def test_a_loop_over_several_rules_is_told_once_with_its_shortest_way() -> None:
    one = template("a", name="one", target="here", target_bucket="b")
    two = template("b", name="two", target="also-here", target_bucket="c")
    three = template("c", name="three", target="here", target_bucket="a")
    assert loops(one, two) == ()
    assert loops(one, two, three) == (("one", "two", "three"),)
    back = template("b", name="back", target="here", target_bucket="a")
    assert loops(one, two, three, back) == (("one", "back"), ("two", "three", "one"))
    assert loops(three, template("a", name="away", target="there", target_bucket="c")) == ()


# ── overlaps ─────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("one", "other", "overlap"),
    [
        ((("a",), {}), (("b",), {}), True),
        ((("a",), {}), (("a",), {}), True),
        ((("a",), {}), (("b",), {"target": "elsewhere"}), False),
        ((("a",), {}), (("b",), {"target_bucket": "u"}), False),
        ((("a",), {"target": "here"}), (("b",), {"target": "also-here"}), True),
        ((("a",), {"target_prefix": "x/"}), (("b",), {"target_prefix": "y/"}), False),
        ((("a",), {"target_prefix": "x/"}), (("b",), {"target_prefix": "x/y/"}), True),
        ((("a",), {"target_prefix": "x"}), (("b",), {"target_prefix": "x/"}), True),
        ((("a",), {"prefix": "x/"}), (("a",), {"prefix": "y/"}), False),
        ((("a",), {"prefix": "x/"}), (("a",), {"prefix": "x/"}), True),
        ((("a",), {"prefix": "x/", "target_prefix": ""}), (("a",), {"prefix": "y/"}), True),
        ((("a",), {"suffix": ".jpg"}), (("b",), {"suffix": ".png"}), False),
        ((("a",), {"suffix": ".jpg"}), (("b",), {"suffix": ".x.jpg"}), True),
        ((("a",), {"suffix": ".jpg"}), (("b",), {}), True),
        ((("a",), {"exclude": ("raw/*",)}), (("a",), {"prefix": "raw/"}), False),
        ((("a",), {"exclude": ("raw/*",)}), (("a",), {"prefix": "raw/x/"}), False),
        ((("a",), {"exclude": ("raw/x*",)}), (("a",), {"prefix": "raw/"}), True),
        ((("a",), {"exclude": ("r?w/*",)}), (("a",), {"prefix": "raw/"}), True),
        ((("a",), {"exclude": ("*raw/*",)}), (("a",), {"prefix": "raw/"}), True),
        ((("a",), {"exclude": ("raw/",)}), (("a",), {"prefix": "raw/"}), True),
        ((("a",), {"exclude": ("raw/*",)}), (("a",), {"prefix": "raw/", "target_prefix": ""}), True),
        ((("a",), {"exclude": ("x/raw/*",), "prefix": "x/"}), (("a",), {"prefix": "x/raw/"}), False),
        ((("a",), {"exclude": ("raw/*",), "target_prefix": "p/"}), (("b",), {"prefix": "raw/"}), False),
        ((("a",), {"exclude": ("raw/*",), "target_prefix": "p/"}), (("b",), {"prefix": "p/raw/"}), False),
        ((("*",), {"target_bucket": "{bucket}"}), (("a",), {"target_bucket": "u"}), True),
        ((("*",), {"target_bucket": "{bucket}-copy"}), (("a",), {"target_bucket": "u"}), False),
        ((("x*",), {"target_bucket": "{bucket}"}), (("y*",), {"target_bucket": "{bucket}"}), False),
        ((("x*",), {"target_bucket": "{bucket}"}), (("*y",), {"target_bucket": "{bucket}"}), True),
        ((("x?",), {"target_bucket": "{bucket}"}), (("x??",), {"target_bucket": "{bucket}"}), False),
        ((("x*",), {}), (("y*",), {}), False),
        ((("x*",), {}), (("xy", "z"), {}), True),
        ((("*",), {"prefix": "raw/"}), (("a",), {"target_prefix": "a/small/"}), False),
        ((("*",), {"prefix": "raw/"}), (("a",), {"target_prefix": "a/raw/"}), True),
        ((("*",), {}), (("a",), {"target_prefix": "/"}), False),
        ((("?",), {}), (("a",), {"target_prefix": "//"}), False),
        ((("a", "b"), {}), (("c", "d"), {}), False),
        ((("a", "b"), {}), (("b", "c"), {}), True),
    ],
)
def test_two_rules_that_may_write_one_key_overlap(
    one: tuple[tuple[str, ...], dict[str, Any]], other: tuple[tuple[str, ...], dict[str, Any]], overlap: bool
) -> None:
    first = template(*one[0], **{"name": "one"} | one[1])
    second = template(*other[0], **{"name": "two"} | other[1])
    assert overlaps(first, second) == ((("one", "two"),) if overlap else ())
    assert overlaps(second, first) == ((("two", "one"),) if overlap else ())


def test_the_buckets_of_one_rule_do_not_overlap() -> None:
    assert overlaps(template("a", "a*", "*"), template("b", "c", name="two", target_bucket="u")) == ()


def test_a_rule_whose_target_is_not_known_is_left_out() -> None:
    rules = [template("a", name=name, target="here", target_bucket="a") for name in ("one", "two")]
    for targets in ({}, {"here": ""}):
        assert conflicts.problems(rules, source="", targets=targets) == []


def test_each_conflict_is_a_sentence_that_says_what_to_change() -> None:
    rules = [template("a", name=name, target="here", target_bucket="a") for name in ("one", "two")]
    found = conflicts.problems(rules, source=HERE, targets=TARGETS)
    assert found == [
        "rules copy their own copies again, without end (one → one): "
        "give one of them a bucket or target_prefix at the target that none of them reads",
        "rules copy their own copies again, without end (two → two): "
        "give one of them a bucket or target_prefix at the target that none of them reads",
        "rules one and two may write the same keys of one target bucket: "
        "give each a target_prefix or bucket of its own, or make them disjoint by suffix or exclude",
    ]


# ── what is accepted is safe, and what is plainly safe is accepted ───────────────────────────────────

PREFIXES = st.sampled_from(["", "a", "a/", "b", "b/", "ab", "a/b", "/"])
PATTERNS = st.sampled_from(["a", "b", "ab", "ba", "a*", "*a", "?", "*", "a?"])
TARGET_BUCKETS = st.sampled_from(["a", "b", "ab", "{bucket}", "{bucket}b", "a{bucket}"])
TARGET_PREFIXES = st.none() | PREFIXES | st.sampled_from(["{bucket}/", "a{bucket}/", "{bucket}/{bucket}"])
GLOBS = st.lists(st.sampled_from(["a*", "a/*", "b*", "ab*", "*b", "a", "?/*", "/*"]), max_size=2).map(tuple)


def templates(names: str, **fields: Any) -> st.SearchStrategy[list[Template]]:
    usual = {
        "sources": st.lists(PATTERNS, min_size=1, max_size=2, unique=True).map(tuple),
        "target": st.sampled_from(["here", "here", "also-here", "there"]),
        "target_bucket": TARGET_BUCKETS,
        "prefix": PREFIXES,
        "target_prefix": TARGET_PREFIXES,
        "suffix": st.sampled_from(["", "", "a", "b", "/"]),
        "include": GLOBS | st.just(()),
        "exclude": GLOBS,
    }
    each = [st.builds(Template, name=st.just(name), **usual | fields) for name in names]
    return st.tuples(*each).map(list)


def accepted(offered: list[Template], *, source: str = HERE) -> list[Template]:
    """As many of them as are accepted together, from the first on."""
    kept: list[Template] = []
    for each in offered:
        if not conflicts.problems([*kept, each], source=source, targets=TARGETS):
            kept.append(each)
    return kept


def copies(rules: Rules, bucket: str, key: str) -> Iterator[tuple[Rule, str, str]]:
    for each in rules.matching(bucket=bucket, key=key):
        if TARGETS[each.target] == HERE:
            yield each, each.target_bucket, each.target_key(key)


def follow(rules: Rules, bucket: str, key: str, before: tuple[str, ...] = ()) -> None:
    """Copies of copies, until there are none; fails where one comes to a rule again."""
    for rule, target_bucket, target_key in copies(rules, bucket, key):
        assert rule.name not in before
        follow(rules, target_bucket, target_key, (*before, rule.name))


@effort(max_examples=300, deadline=None)
@given(templates("rst"), st.sampled_from(BUCKETS), st.lists(st.sampled_from(KEYS), min_size=1, max_size=8))
def test_no_copy_comes_back_to_a_rule_that_made_it(
    offered: list[Template], bucket: str, keys: list[str]
) -> None:
    rules = Rules(templates=tuple(accepted(offered)))
    for key in keys:
        follow(rules, bucket, key)


def writers(rules: list[Template]) -> dict[tuple[str, str, str], set[tuple[str, str]]]:
    """Which (rule, source key) write each target key, of all short buckets and keys."""
    found: dict[tuple[str, str, str], set[tuple[str, str]]] = {}
    for rule in Rules(templates=tuple(rules)).of_buckets(BUCKETS):
        for key in filter(rule.wants, KEYS):
            place = (TARGETS[rule.target], rule.target_bucket, rule.target_key(key))
            found.setdefault(place, set()).add((rule.name, key))
    return found


@effort(max_examples=300, deadline=None)
@given(templates("rst"))
def test_no_two_objects_are_written_to_one_key(offered: list[Template]) -> None:
    clashes = [who for who in writers(accepted(offered, source="http://none")).values() if len(who) > 1]
    assert clashes == []


PLAIN = {
    "target": st.just("there"),
    "suffix": st.just(""),
    "include": st.just(()),
    "exclude": st.just(()),
    "target_bucket": st.sampled_from(["a", "{bucket}", "{bucket}b"]),
    "target_prefix": st.none() | PREFIXES,
}


@effort(max_examples=300, deadline=None)
@given(templates("rs", **PLAIN))
def test_rules_without_suffix_and_globs_on_keys_are_refused_only_where_they_do_clash(
    offered: list[Template],
) -> None:
    if conflicts.overlaps(offered, targets=TARGETS):
        one, other = (Rules(templates=(each,)).of_buckets(BUCKETS) for each in offered)
        assert any(both_write_a_key(a, b) for a, b in product(one, other))


def both_write_a_key(one: Rule, other: Rule) -> bool:
    key = max(one.target_prefix, other.target_prefix, key=len) + "x"
    return one.target_bucket == other.target_bucket and None not in (
        one.source_key(key),
        other.source_key(key),
    )
