"""TOML document → rules and target stores, and what is wrong with them.

    [targets.archive]
    endpoint = "https://s3.example.com"

    [rules.photos]
    source = "photos"
    target = "archive"
    bucket = "photos-copy"

Every problem is one sentence that names its table and field. No credential is taken from the file, and none
that stands there all the same is repeated.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches

from webhook.rules import PLACEHOLDER, Template

ENVIRONMENT_TARGET = "filebase"
"""The name of the target store that the FILEBASE_* variables describe."""
OVERWRITE = ("changed", "never")
RULE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,62}")
TARGET_NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,62}")
BUCKET_NAME = re.compile(r"[A-Za-z0-9._:-]{1,255}")
"""Wider than S3's rules: older and other servers have such names."""
TARGET_TEXTS = ("preset", "endpoint", "region")
TARGET_LIMITS = ("max_rps", "max_mbps")
LIMIT_MAX = 1_000_000
RULE_FIELDS = (
    *("source", "prefix", "suffix", "include", "exclude", "target", "bucket", "target_prefix"),
    *("deletes", "overwrite", "storage_class", "tags"),
)
_CREDENTIAL = re.compile(
    r"(access|secret|api).*key|^key(_?id)?$|secret|token|passw|credential", re.IGNORECASE
)
_KINDS = {str: "a text", bool: "true or false", int: "a number", float: "a number", list: "a list"}


@dataclass(frozen=True, kw_only=True)
class Defaults:
    """What holds for rules that do not say."""

    deletes: bool = False
    overwrite: str = "changed"
    storage_class: str = ""
    """Only for rules whose target the environment describes."""


@dataclass(frozen=True, kw_only=True)
class TargetTable:
    """A target store as it stands in the file; an empty field is not given."""

    name: str
    preset: str
    endpoint: str
    region: str
    max_rps: int | None = None
    """Requests a second; 0: no limit, None: not given."""
    max_mbps: int | None = None
    """Megabytes (10^6 bytes) of object data a second; 0: no limit, None: not given."""

    @property
    def title(self) -> str:
        """How problems name it."""
        return f"[targets.{self.name}]"

    @property
    def variables(self) -> str:
        """What the names of its credentials' variables begin with."""
        return _variables(self.name)


@dataclass(frozen=True, kw_only=True)
class Contents:
    """What a document says. A rule or target that something is wrong with is left out."""

    templates: tuple[Template, ...]
    targets: tuple[TargetTable, ...]
    needs_environment_target: bool
    """Whether some rule, even one left out, copies to the target that the environment describes."""
    problems: tuple[str, ...]


def parse(document: Mapping[str, object], defaults: Defaults) -> Contents:
    """What the document says."""
    problems: list[str] = []
    top = _Table("", document, ("targets", "rules"), problems)
    target_tables = top.tables("targets", such_as="archive")
    targets = [_target(name, values, problems) for name, values in target_tables.items()]
    known = (ENVIRONMENT_TARGET, *target_tables)
    rule_tables = top.tables("rules", such_as="photos")
    rules = [_template(name, values, known, defaults, problems) for name, values in rule_tables.items()]
    if not rules and top.is_sound:
        problems.append("there are no rules: add a table such as [rules.photos]")
    problems += _same_variables(target_tables)
    used = (values.get("target", ENVIRONMENT_TARGET) for values in rule_tables.values())
    return Contents(
        templates=tuple(template for template in rules if template),
        targets=tuple(target for target in targets if target),
        needs_environment_target=ENVIRONMENT_TARGET in used,
        problems=tuple(problems),
    )


def source_problem(pattern: str) -> str | None:
    """Why this pattern names no source buckets; None where nothing speaks against it."""
    if BUCKET_NAME.fullmatch(pattern.replace("*", "x").replace("?", "x")):
        return None
    return f"{pattern!r} is neither a bucket's name nor a glob"


def target_bucket_problem(bucket: str) -> str | None:
    """Why this names no target bucket; None where nothing speaks against it."""
    if BUCKET_NAME.fullmatch(bucket.replace(PLACEHOLDER, "x")):
        return None
    return f"{bucket!r} is no bucket's name (it may hold {PLACEHOLDER}, but no glob)"


def _target(name: str, values: Mapping[str, object], problems: list[str]) -> TargetTable | None:
    known = (*TARGET_TEXTS, *TARGET_LIMITS)
    table = _Table(f"[targets.{name}]", values, known, problems, variables=_variables(name))
    if not TARGET_NAME.fullmatch(name):
        table.problem("a target's name holds a-z, 0-9, - and _, and begins with a letter or digit")
    if name == ENVIRONMENT_TARGET:
        table.problem("is the target of the FILEBASE_* variables: give this one another name")
    preset, endpoint, region = (table.text(field, "") for field in TARGET_TEXTS)
    max_rps, max_mbps = (table.whole(field, most=LIMIT_MAX) for field in TARGET_LIMITS)
    if not table.is_sound:
        return None
    return TargetTable(
        name=name, preset=preset, endpoint=endpoint, region=region, max_rps=max_rps, max_mbps=max_mbps
    )


def _template(
    name: str, values: Mapping[str, object], targets: Sequence[str], defaults: Defaults, problems: list[str]
) -> Template | None:
    table = _Table(f"[rules.{name}]", values, RULE_FIELDS, problems)
    if not RULE_NAME.fullmatch(name):
        table.problem("a rule's name holds letters, digits, - and _, and begins with a letter or digit")
    target = table.text("target", ENVIRONMENT_TARGET)
    if target not in targets:
        table.problem(f"target {target!r} is none of [targets.…]{_nearest(target, targets)}")
    storage_class = defaults.storage_class if target == ENVIRONMENT_TARGET else ""
    template = Template(
        name=name,
        sources=table.sources(),
        target_bucket=table.text("bucket"),
        target=target,
        prefix=table.text("prefix", ""),
        target_prefix=table.text("target_prefix", "") if "target_prefix" in values else None,
        suffix=table.text("suffix", ""),
        include=table.texts("include"),
        exclude=table.texts("exclude"),
        deletes=table.flag("deletes", default=defaults.deletes),
        overwrite=table.choice("overwrite", OVERWRITE, defaults.overwrite),
        storage_class=table.text("storage_class", storage_class),
        tags=table.flag("tags", default=True),
    )
    if table.is_sound:
        _check_buckets(table, template)
    return template if table.is_sound else None


def _check_buckets(table: _Table, template: Template) -> None:
    for pattern in template.sources:
        if problem := source_problem(pattern):
            table.problem(f"source {problem}")
    if problem := target_bucket_problem(template.target_bucket):
        table.problem(f"bucket {problem}")
    _, placed, behind = (template.target_prefix or "").partition(PLACEHOLDER)
    if (
        placed
        and "/" not in behind
        and PLACEHOLDER not in template.target_bucket
        and not template.only_bucket
    ):
        table.problem(f"target_prefix needs a slash behind {PLACEHOLDER}, or keys of two buckets could meet")


class _Table:
    """Takes fields one by one and says what is wrong with them. `is_sound`: nothing so far."""

    def __init__(
        self,
        title: str,
        values: Mapping[str, object],
        known: Sequence[str],
        problems: list[str],
        *,
        variables: str = "TARGET_<NAME>",
    ) -> None:
        self._title = title
        self._values = values
        self._problems = problems
        self.is_sound = True
        belongs = f"belongs in the environment, as {variables}_ACCESS_KEY and {variables}_SECRET_KEY"
        for field in values:
            if field not in known:
                unknown = f"is not known{_nearest(field, known)}"
                self.problem(f"{field} {belongs if _CREDENTIAL.search(field) else unknown}")

    def problem(self, sentence: str) -> None:
        """Notes what is wrong."""
        self.is_sound = False
        self._problems.append(f"{self._title} {sentence}".strip())

    def tables(self, field: str, *, such_as: str) -> dict[str, Mapping[str, object]]:
        """The tables below a field, by name."""
        value = self._values.get(field, {})
        if isinstance(value, dict) and all(isinstance(each, dict) for each in value.values()):
            return value
        self.problem(f"[{field}] must hold nothing but tables such as [{field}.{such_as}]")
        return {}

    def text(self, field: str, default: str | None = None) -> str:
        """A text; without a default it must be there."""
        value = self._values.get(field, default)
        if value is None or (value == "" and default is None):
            self.problem(f"{field} is missing")
        elif isinstance(value, str):
            return value
        else:
            self._wrong(field, "a text in quotes", value)
        return default or ""

    def texts(self, field: str) -> tuple[str, ...]:
        """A list of texts; none where it is not there."""
        value = self._values.get(field, [])
        if isinstance(value, list) and all(isinstance(each, str) and each for each in value):
            return tuple(value)
        self._wrong(field, "a list of texts in quotes, none of them empty", value)
        return ()

    def sources(self) -> tuple[str, ...]:
        """The source buckets: one text, or a list of them."""
        value = self._values.get("source", "")
        several = (self.text("source"),) if isinstance(value, str) else self.texts("source")
        if value == []:
            self.problem("source is missing")
        return tuple(dict.fromkeys(several)) or ("",)

    def whole(self, field: str, *, most: int) -> int | None:
        """A whole number from 0 on; None where it is not there."""
        value = self._values.get(field)
        if type(value) is int and not 0 <= value <= most:
            self.problem(f"{field} must be between 0 and {most}, not {value}")
        elif value is not None and type(value) is not int:
            self._wrong(field, "a whole number, without quotes", value)
        return value if type(value) is int else None

    def flag(self, field: str, *, default: bool) -> bool:
        """True or false."""
        value = self._values.get(field, default)
        if not isinstance(value, bool):
            self._wrong(field, "true or false, without quotes", value)
        return value is True

    def choice(self, field: str, choices: Sequence[str], default: str) -> str:
        """One of some words."""
        value = self.text(field, default)
        if value not in choices:
            self.problem(f"{field} must be one of {', '.join(choices)}, not {value!r}")
        return value

    def _wrong(self, field: str, wanted: str, value: object) -> None:
        self.problem(f"{field} must be {wanted}, not {_KINDS.get(type(value), 'a table or date')}")


def _nearest(word: str, known: Sequence[str]) -> str:
    near = get_close_matches(word.lower(), known, n=1, cutoff=0.5)
    return f": did you mean {near[0]}?" if near else f"; there are: {', '.join(known)}"


def _variables(target: str) -> str:
    return f"TARGET_{target.replace('-', '_').upper()}"


def _same_variables(targets: Iterable[str]) -> list[str]:
    first: dict[str, str] = {}
    return [
        f"[targets.{name}] would share {_variables(name)}_ACCESS_KEY with [targets.{earlier}]: rename one"
        for name in targets
        if (earlier := first.setdefault(_variables(name), name)) != name
    ]
