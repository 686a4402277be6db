"""Which objects go where."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from webhook import settings
from webhook.rules import Rule, Rules, Template, is_glob

KEYS = st.text("ab/.*é\n", max_size=8)
GLOBS = st.lists(st.text("ab/.*?\n[", min_size=1, max_size=6), max_size=3).map(tuple)
ANY_RULES = st.builds(
    Rule,
    name=st.just("r"),
    source_bucket=st.just("s"),
    target_bucket=st.just("t"),
    prefix=st.text("ab/", max_size=3),
    target_prefix=st.text("ab/", max_size=3),
    suffix=st.text("ab.", max_size=2),
    include=GLOBS,
    exclude=GLOBS,
)


def rule(**fields: Any) -> Rule:
    return Rule(name="r", source_bucket="s", target_bucket="t", **fields)


def template(*sources: str, **fields: Any) -> Template:
    return Template(**{"name": "r", "sources": sources, "target_bucket": "t"} | fields)


def in_force(*templates: Template) -> Rules:
    return Rules(templates=templates)


# ── the rule of the environment ──────────────────────────────────────────────────────────────────────


def test_the_environment_makes_one_rule(environ: dict[str, str]) -> None:
    (found,) = settings.from_environ(environ).rules.matching(bucket="source-bucket", key="k")
    assert (found.name, found.source_bucket, found.target, found.target_bucket) == (
        *("default", "source-bucket"),
        *("filebase", "target-bucket"),
    )
    assert (found.target_key("a/b"), found.source_key("a/b"), found.wants("a/b")) == ("a/b", "a/b", True)


def test_a_bucket_finds_its_rules_by_its_exact_name(environ: dict[str, str]) -> None:
    rules = settings.from_environ(environ).rules
    assert [each.name for each in rules.matching(bucket="source-bucket", key="k")] == ["default"]
    for other in ("target-bucket", "Source-Bucket", "source-bucket ", "source-bucket\n", "source", ""):
        assert rules.matching(bucket=other, key="k") == ()


# ── keys ─────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("fields", "wanted", "unwanted"),
    [
        ({}, ["a", "a/b", " ", "/"], [""]),
        ({"prefix": "in/"}, ["in/a", "in//"], ["in", "in/", "a", "IN/a", "/in/a"]),
        ({"prefix": "in/", "target_prefix": "out/"}, ["in/a", "in/"], ["in"]),
        ({"suffix": ".jpg"}, [".jpg", "a.jpg"], ["a.JPG", "a.jpg "]),
        ({"prefix": "in/a", "suffix": "a.jpg"}, ["in/aa.jpg"], ["in/a.jpg"]),
        ({"prefix": "in/", "target_prefix": "out/", "suffix": "/"}, ["in//"], ["in/"]),
        (
            {"include": ("*.jpg", "raw/?")},
            ["a/b.jpg", ".jpg", "raw/a", "raw//"],
            ["raw/", "raw/ab", "a.jpgx"],
        ),
        ({"exclude": ("tmp/*", "*.part")}, ["tmp", "a.parts"], ["tmp/", "tmp/a/b", "x/y.part", "a\n.part"]),
        ({"include": ("*.jpg",), "exclude": ("tmp/*",)}, ["a.jpg"], ["tmp/a.jpg", "a.png"]),
        ({"include": ("a.[bc]",)}, ["a.[bc]"], ["a.b", "axb"]),
        ({"exclude": ("A*",)}, ["ab"], ["AB"]),
    ],
)
def test_a_rule_wants_what_prefix_suffix_and_globs_let_through(
    fields: dict[str, Any], wanted: list[str], unwanted: list[str]
) -> None:
    assert [key for key in wanted if not rule(**fields).wants(key)] == []
    assert [key for key in unwanted if rule(**fields).wants(key)] == []


@pytest.mark.parametrize(
    ("prefix", "target_prefix", "key", "target_key"),
    [
        ("", "", "a/b", "a/b"),
        ("in/", "in/", "in/a", "in/a"),
        ("in/", "", "in/a", "a"),
        ("in/", "out/", "in/in/a", "out/in/a"),
        ("", "out/", "a", "out/a"),
    ],
)
def test_the_target_prefix_takes_the_place_of_the_prefix(
    prefix: str, target_prefix: str, key: str, target_key: str
) -> None:
    found = rule(prefix=prefix, target_prefix=target_prefix)
    assert (found.target_key(key), found.source_key(target_key)) == (target_key, key)


def test_no_source_key_is_named_for_what_the_rule_does_not_write() -> None:
    found = rule(prefix="in/", target_prefix="out/", exclude=("*.part",))
    assert [found.source_key(key) for key in ("in/a", "a", "out", "out/a.part", "")] == [None] * 5


@given(ANY_RULES, KEYS)
@example(rule(target_prefix="out/"), "a")
def test_keys_go_to_the_target_and_back_unchanged(any_rule: Rule, key: str) -> None:
    """The key is tried as a source's, with and without the prefix, and as a target's."""
    for source_key in (key, any_rule.prefix + key):
        if any_rule.wants(source_key):
            assert any_rule.target_key(source_key) != ""
            assert any_rule.source_key(any_rule.target_key(source_key)) == source_key
    for target_key in (key, any_rule.target_prefix + key):
        found = any_rule.source_key(target_key)
        if found is not None:
            assert any_rule.wants(found)
            assert any_rule.target_key(found) == target_key


def _matches(glob: str, text: str) -> bool:
    """What a glob means, written as slowly and plainly as can be."""
    if not glob:
        return not text
    if glob[0] == "*":
        return _matches(glob[1:], text) or (bool(text) and _matches(glob, text[1:]))
    return bool(text) and glob[0] in ("?", text[0]) and _matches(glob[1:], text[1:])


@given(GLOBS, KEYS.filter(bool))
@example(("a*b*c", "*ab*b"), "aab")
@example(("*ab", "a*a"), "a")
def test_globs_mean_what_they_mean(globs: tuple[str, ...], key: str) -> None:
    expected = any(_matches(glob, key) for glob in globs)
    assert rule(target_prefix="t/", exclude=globs).wants(key) is not expected
    if globs:
        assert rule(target_prefix="t/", include=globs).wants(key) is expected


def test_a_glob_of_many_stars_is_decided_at_once() -> None:
    assert not rule(include=("*a" * 50 + "b",)).wants("a" * 1024)
    assert rule(include=("*a" * 50 + "*b",)).wants("a" * 1023 + "b")


# ── buckets ──────────────────────────────────────────────────────────────────────────────────────────


def test_a_rule_of_one_bucket_has_its_own_name_and_others_name_the_bucket() -> None:
    for sources, bucket, name in (
        (("photos",), "photos", "r"),
        (("photos", "photos"), "photos", "r"),
        (("photos", "music"), "photos", "r.photos"),
        (("photos", "*"), "photos", "r.photos"),
        (("phot?s",), "photos", "r.photos"),
        (("*",), "my.photos", "r.my.photos"),
    ):
        (found,) = in_force(template(*sources)).matching(bucket=bucket, key="k")
        assert (found.name, found.source_bucket) == (name, bucket)


@pytest.mark.parametrize(
    ("fields", "bucket", "target_key"),
    [
        ({}, "t", "photos/raw/a"),
        ({"target_bucket": "{bucket}-copy"}, "photos-copy", "raw/a"),
        ({"prefix": "raw/"}, "t", "photos/raw/a"),
        ({"prefix": "raw/", "target_prefix": ""}, "t", "photos/a"),
        ({"prefix": "raw/", "target_prefix": "x/"}, "t", "photos/x/a"),
        ({"prefix": "raw/", "target_prefix": "x/{bucket}/"}, "t", "x/photos/a"),
        ({"target_bucket": "{bucket}", "target_prefix": "{bucket}-"}, "photos", "photos-raw/a"),
    ],
)
def test_keys_of_several_buckets_are_told_apart_at_the_target(
    fields: dict[str, Any], bucket: str, target_key: str
) -> None:
    for sources in (("photos", "music"), ("*",)):
        (found,) = in_force(template(*sources, **fields)).matching(bucket="photos", key="raw/a")
        assert (found.target_bucket, found.target_key("raw/a")) == (bucket, target_key)


def test_for_one_bucket_nothing_is_added_but_its_name_where_it_is_asked_for() -> None:
    fields = {"target_bucket": "{bucket}-copy", "prefix": "{bucket}/"}
    (found,) = in_force(template("photos", **fields)).matching(bucket="photos", key="{bucket}/a")
    assert (found.target_bucket, found.target_key("{bucket}/a")) == ("photos-copy", "{bucket}/a")
    (found,) = in_force(template("photos", target_prefix="{bucket}/")).of_buckets(["photos"])
    assert found.target_key("a") == "photos/a"


def test_an_object_goes_to_every_place_whose_rule_wants_it() -> None:
    rules = in_force(
        template("photos", name="one"),
        template("*", name="two", prefix="raw/"),
        template("music", name="three"),
    )
    names = [each.name for each in rules.matching(bucket="photos", key="raw/a")]
    assert names == ["one", "two.photos"]
    assert [each.name for each in rules.matching(bucket="photos", key="a")] == ["one"]


BUCKETS = st.text("ab.", max_size=4)
TEMPLATES = st.builds(
    Template,
    name=st.sampled_from(["one", "two", "three"]),
    sources=st.lists(st.text("ab*?.", min_size=1, max_size=3), min_size=1, max_size=2).map(tuple),
    target=st.sampled_from(["filebase", "archive"]),
    target_bucket=st.sampled_from(["t", "{bucket}", "{bucket}-copy"]),
    prefix=st.sampled_from(["", "a", "a/", "ab", "{bucket}"]),
    target_prefix=st.sampled_from([None, "", "b/", "x/{bucket}/", "{bucket}/{bucket}/"]),
    suffix=st.sampled_from(["", "b", ".é"]),
    include=GLOBS,
    exclude=GLOBS,
)


def _goes_to(each: Template, bucket: str, key: str) -> tuple[str, str, str] | None:
    """Target, bucket and key of the copy of an object, as documented; None: there is to be none."""
    if not bucket or not any(_matches(source, bucket) for source in each.sources):
        return None
    middle = len(key) - len(each.prefix) - len(each.suffix)
    if not key.startswith(each.prefix) or not key.endswith(each.suffix) or middle < 0:
        return None
    is_included = not each.include or any(_matches(glob, key) for glob in each.include)
    if not is_included or any(_matches(glob, key) for glob in each.exclude):
        return None
    told = each.target_prefix or ""
    stands = each.prefix if each.target_prefix is None else told.replace("{bucket}", bucket)
    is_one = len(set(each.sources)) == 1 and not set("*?") & set(each.sources[0])
    if not is_one and "{bucket}" not in told + each.target_bucket:
        stands = f"{bucket}/{stands}"
    copy = stands + key[len(each.prefix) :]
    return (each.target, each.target_bucket.replace("{bucket}", bucket), copy) if copy else None


@given(st.lists(TEMPLATES, max_size=3, unique_by=lambda each: each.name), BUCKETS, KEYS)
@example([template("a", name="one", prefix="a/")], "a", "a/b")
@example([template("a", name="one", prefix="ab", suffix="b", target_prefix="x")], "a", "ab")
@example([template("a*", name="one", exclude=("*.b",)), template("?", name="two", suffix="b")], "a", "b")
def test_an_object_reaches_the_places_its_rules_describe_and_no_others(
    templates: list[Template], bucket: str, key: str
) -> None:
    reached = {
        rule.name.partition(".")[0]: (rule.target, rule.target_bucket, rule.target_key(key))
        for rule in in_force(*templates).matching(bucket=bucket, key=key)
    }
    expected = {each.name: place for each in templates if key and (place := _goes_to(each, bucket, key))}
    assert reached == expected


def test_a_rule_is_found_by_its_name_while_it_is_in_force() -> None:
    rules = in_force(
        template("photos", name="one"), template("a*", "b.c", name="two"), template("*", name="all")
    )
    for name in ("one", "two.a", "two.abc", "two.b.c", "all.photos", "all.my.photos"):
        found = rules.named(name)
        assert found is not None
        assert found.name == name
    for name in (
        "one.photos",
        "one.",
        "two",
        "two.",
        "two.b",
        "two.c",
        "three",
        "all",
        "all.",
        "all.x/y",
        "",
    ):
        assert rules.named(name) is None


@given(st.lists(st.text("ab*?.", min_size=1, max_size=3), min_size=1, max_size=3), st.text("ab.", max_size=4))
def test_what_matches_is_found_by_its_name(sources: list[str], bucket: str) -> None:
    rules = in_force(template(*sources))
    expected = bool(bucket) and any(_matches(source, bucket) for source in sources)
    found = rules.matching(bucket=bucket, key="k")
    assert len(found) == expected
    assert [rules.named(each.name) for each in found] == list(found)
    assert rules.of_buckets([bucket, bucket]) == found


def test_the_buckets_named_outright_are_known_without_asking_the_source() -> None:
    rules = in_force(template("photos", "music"), template("photos", "b*", name="two"))
    assert (rules.literal_buckets, rules.has_globs) == (("photos", "music"), True)
    plain = in_force(template("photos"))
    assert (plain.literal_buckets, plain.has_globs) == (("photos",), False)
    names = [each.name for each in rules.of_buckets(["bb", "photos", "other", "bb"])]
    assert names == ["two.bb", "r.photos", "two.photos"]


def test_every_option_of_a_rule_reaches_each_of_its_buckets() -> None:
    options: dict[str, Any] = {"prefix": "p", "suffix": "s", "include": ("i",), "exclude": ("e",)}
    options |= {"deletes": True, "overwrite": "never", "storage_class": "COLD", "tags": False}
    options |= {"target": "archive"}
    (found,) = in_force(template("*", **options)).of_buckets(["photos"])
    held = dataclasses.asdict(found)
    assert {name: held[name] for name in options} == options
    assert set(held) - set(options) == {"name", "source_bucket", "target_bucket", "target_prefix"}


def test_rules_list_their_templates_in_order_and_equal_those_of_the_same() -> None:
    templates = (template("photos"), template("b*", name="two"))
    assert list(in_force(*templates)) == list(templates)
    assert in_force(*templates) == in_force(*templates) != in_force(templates[0])


def test_a_glob_is_told_from_a_name() -> None:
    assert [is_glob(each) for each in ("*", "a?", "a", "a.b-c", "")] == [True, True, False, False, False]
