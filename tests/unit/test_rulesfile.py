"""The rules file is read whole, and complained about whole."""

from __future__ import annotations

import tomllib

import pytest

from webhook.rules import Template
from webhook.rulesfile import Contents, Defaults, TargetTable, parse

ARCHIVE = '[targets.archive]\nendpoint = "https://archive"\n'
PHOTOS = 'source = "photos"\nbucket = "copy"\n'
CREDENTIALS = "belongs in the environment, as TARGET_ARCHIVE_ACCESS_KEY and TARGET_ARCHIVE_SECRET_KEY"


def read(text: str, defaults: Defaults | None = None) -> Contents:
    return parse(tomllib.loads(text), defaults or Defaults())


def sole(text: str, defaults: Defaults | None = None) -> Template:
    found = read(text, defaults)
    assert found.problems == ()
    (template,) = found.templates
    return template


def test_what_a_rule_does_not_say_has_a_default() -> None:
    assert sole("[rules.r]\n" + PHOTOS) == Template(name="r", sources=("photos",), target_bucket="copy")


def test_what_a_rule_says_is_used() -> None:
    template = sole(
        ARCHIVE
        + """
        [rules.r]
        source = ["photos", "music-*", "photos"]
        prefix = "in/"
        suffix = ".jpg"
        include = ["a*"]
        exclude = ["*b", "c?"]
        target = "archive"
        bucket = "{bucket}-copy"
        target_prefix = ""
        deletes = true
        overwrite = "never"
        storage_class = "COLD"
        tags = false
        """
    )
    assert template == Template(
        name="r",
        sources=("photos", "music-*"),
        target="archive",
        target_bucket="{bucket}-copy",
        prefix="in/",
        target_prefix="",
        suffix=".jpg",
        include=("a*",),
        exclude=("*b", "c?"),
        deletes=True,
        overwrite="never",
        storage_class="COLD",
        tags=False,
    )


def test_the_environment_gives_defaults_and_its_storage_class_to_its_own_target_alone() -> None:
    defaults = Defaults(deletes=True, overwrite="never", storage_class="COLD")
    template = sole("[rules.r]\n" + PHOTOS, defaults)
    assert (template.deletes, template.overwrite, template.storage_class) == (True, "never", "COLD")
    assert sole(ARCHIVE + '[rules.r]\ntarget = "archive"\n' + PHOTOS, defaults).storage_class == ""
    said = 'deletes = false\noverwrite = "changed"\nstorage_class = ""\n'
    template = sole("[rules.r]\n" + said + PHOTOS, defaults)
    assert (template.deletes, template.overwrite, template.storage_class) == (False, "changed", "")


def test_targets_are_read_as_they_stand_and_name_their_variables() -> None:
    found = read('[targets.cold-1]\npreset = "b2"\nendpoint = "e"\nregion = "r"\n[targets.a]\n')
    assert found.targets == (
        TargetTable(name="cold-1", preset="b2", endpoint="e", region="r"),
        TargetTable(name="a", preset="", endpoint="", region=""),
    )
    assert (found.targets[0].variables, found.targets[0].title) == ("TARGET_COLD_1", "[targets.cold-1]")


def test_a_target_may_have_limits_of_its_own() -> None:
    (target,) = read("[targets.a]\nmax_rps = 0\nmax_mbps = 50\n").targets
    assert (target.max_rps, target.max_mbps) == (0, 50)


@pytest.mark.parametrize(
    ("value", "problem"),
    [
        ('"50"', "must be a whole number, without quotes, not a text"),
        ("1.5", "must be a whole number, without quotes, not a number"),
        ("true", "must be a whole number, without quotes, not true or false"),
        ("-1", "must be between 0 and 1000000, not -1"),
        ("1000001", "must be between 0 and 1000000, not 1000001"),
    ],
)
@pytest.mark.parametrize("field", ["max_rps", "max_mbps"])
def test_a_limit_is_a_whole_number(field: str, value: str, problem: str) -> None:
    assert f"[targets.a] {field} {problem}" in read(f"[targets.a]\n{field} = {value}\n").problems


@pytest.mark.parametrize(
    ("text", "needed"),
    [
        ("[rules.r]\n" + PHOTOS, True),
        ('[rules.r]\ntarget = "filebase"\nbucket = 3\n', True),
        (ARCHIVE + '[rules.r]\ntarget = "archive"\n' + PHOTOS, False),
        ("", False),
    ],
)
def test_it_is_known_whether_the_environment_s_target_is_needed(text: str, needed: bool) -> None:
    assert read(text).needs_environment_target is needed


A_LIST = "must be a list of texts in quotes, none of them empty, not"
A_NAME = "is no bucket's name (it may hold {bucket}, but no glob)"


@pytest.mark.parametrize(
    ("lines", "problem"),
    [
        ("prefx = 'a'", "prefx is not known: did you mean prefix?"),
        ("BUCKETS = 'a'", "BUCKETS is not known: did you mean bucket?"),
        ("bucket = ''", "bucket is missing"),
        ("source = []", "source is missing"),
        ("source = ''", "source is missing"),
        ("bucket = 0", "bucket must be a text in quotes, not a number"),
        ("prefix = true", "prefix must be a text in quotes, not true or false"),
        ("prefix = ['a']", "prefix must be a text in quotes, not a list"),
        ("suffix = 2026-01-01", "suffix must be a text in quotes, not a table or date"),
        ("deletes = 1", "deletes must be true or false, without quotes, not a number"),
        ("tags = 'no'", "tags must be true or false, without quotes, not a text"),
        ("include = 'a'", f"include {A_LIST} a text"),
        ("exclude = ['']", f"exclude {A_LIST} a list"),
        ("source = ['a', 1]", f"source {A_LIST} a list"),
        ("overwrite = 'always'", "overwrite must be one of changed, never, not 'always'"),
        ("bucket = 'a b'", f"bucket 'a b' {A_NAME}"),
        ("bucket = 'a*'", f"bucket 'a*' {A_NAME}"),
        ("bucket = '{name}'", f"bucket '{{name}}' {A_NAME}"),
        ("source = ['a', 'b/c']", "source 'b/c' is neither a bucket's name nor a glob"),
        ("target = 'archiv'", "target 'archiv' is none of [targets.…]: did you mean archive?"),
        ("target = 'x'", "target 'x' is none of [targets.…]; there are: filebase, archive"),
        (
            "source = '*'\ntarget_prefix = 'x/{bucket}-'",
            "target_prefix needs a slash behind {bucket}, or keys of two buckets could meet",
        ),
        (
            "SecretKey = 's3cr3t'",
            "SecretKey belongs in the environment, as TARGET_<NAME>_ACCESS_KEY and TARGET_<NAME>_SECRET_KEY",
        ),
    ],
)
def test_a_problem_of_a_rule_is_one_sentence_that_names_table_and_field(lines: str, problem: str) -> None:
    others = [line for line in PHOTOS.splitlines() if line.split()[0] not in lines.split()]
    text = "\n".join([ARCHIVE, "[rules.r]", lines, *others])
    assert read(text).problems == (f"[rules.r] {problem}",)


@pytest.mark.parametrize("missing", ["source", "bucket"])
def test_a_rule_needs_a_source_and_a_bucket(missing: str) -> None:
    lines = [line for line in PHOTOS.splitlines() if not line.startswith(missing)]
    assert read("\n".join(["[rules.r]", *lines])).problems == (f"[rules.r] {missing} is missing",)


@pytest.mark.parametrize(
    ("lines", "problem"),
    [
        ("rule.s = {}", "rule is not known: did you mean rules?"),
        ("zzz = 1", "zzz is not known; there are: targets, rules"),
        ("targets = 1", "[targets] must hold nothing but tables such as [targets.archive]"),
        ("rules.source = 's'", "[rules] must hold nothing but tables such as [rules.photos]"),
        (
            "rules.'a.b' = {source = 'a', bucket = 'b'}",
            "[rules.a.b] a rule's name holds letters, digits, - and _, and begins with a letter or digit",
        ),
        (
            "targets.A = {}",
            "[targets.A] a target's name holds a-z, 0-9, - and _, and begins with a letter or digit",
        ),
        (
            "targets.filebase = {}",
            "[targets.filebase] is the target of the FILEBASE_* variables: give this one another name",
        ),
        (
            "targets.a-b = {}\ntargets.a_b = {}",
            "[targets.a_b] would share TARGET_A_B_ACCESS_KEY with [targets.a-b]: rename one",
        ),
        ("targets.a.endpoint = 1", "[targets.a] endpoint must be a text in quotes, not a number"),
        ("targets.a.endpont = 'x'", "[targets.a] endpont is not known: did you mean endpoint?"),
        ("targets.archive.access_key = 's3cr3t'", f"[targets.archive] access_key {CREDENTIALS}"),
        ("targets.archive.password = 's3cr3t'", f"[targets.archive] password {CREDENTIALS}"),
        ("secret = 's3cr3t'", f"secret {CREDENTIALS.replace('ARCHIVE', '<NAME>')}"),
    ],
)
def test_a_problem_of_anything_else_is_one_sentence_too(lines: str, problem: str) -> None:
    assert read(f"{lines}\nrules.r = {{source = 'photos', bucket = 'copy'}}").problems == (problem,)


@pytest.mark.parametrize("text", ["", ARCHIVE, "rules = {}"])
def test_a_file_without_rules_is_a_problem(text: str) -> None:
    assert read(text).problems == ("there are no rules: add a table such as [rules.photos]",)


def test_rules_that_are_no_tables_are_one_problem() -> None:
    assert read("rules = 1").problems == ("[rules] must hold nothing but tables such as [rules.photos]",)


@pytest.mark.parametrize("length", [63, 64])
def test_names_have_at_most_63_characters(length: int) -> None:
    name = "a" * length
    found = read(f"[rules.{name}]\n{PHOTOS}[targets.{name}]\n")
    assert len(found.problems) == (0 if length <= 63 else 2)


def test_all_problems_are_told_and_what_is_sound_is_kept() -> None:
    found = read(
        '[targets.archive]\ntoken = "s3cr3t"\n[targets.other]\n'
        '[rules.a]\nsource = 1\nbucket = "s3cr3t s3cr3t"\ntag = 3\n'
        '[rules.b]\ntarget = "archive"\n' + PHOTOS
    )
    assert len(found.problems) == 3
    assert [each.split()[0] for each in found.problems] == ["[targets.archive]", "[rules.a]", "[rules.a]"]
    assert [template.name for template in found.templates] == ["b"]
    assert [target.name for target in found.targets] == ["other"]


@pytest.mark.parametrize(
    "text",
    [
        "[rules.r]\nbucket = 'a'\nsource = 'a'\ntarget_prefix = '{bucket}-'",
        "[rules.r]\nbucket = '{bucket}'\nsource = '*'\ntarget_prefix = '{bucket}-'",
        "[rules.r]\nbucket = 'a'\nsource = '*'\ntarget_prefix = 'x{bucket}-{bucket}/'",
    ],
)
def test_a_placeholder_needs_a_slash_only_where_keys_of_two_buckets_could_meet(text: str) -> None:
    assert read(text).problems == ()
