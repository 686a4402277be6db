"""Which objects of the source go where at the target, and how.

A `Template` is a rule as it is configured, for one or several source buckets, named outright or by globs.
A `Rule` is what it means for one bucket. `Rules` gives the ones that want an object.

Globs are those of MinIO's and S3's policies: `*` stands for any characters, slashes too, `?` for exactly one;
nothing else is special, and case counts. Names of buckets hold no slash.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, fields
from functools import cached_property, lru_cache

BUCKETS_REMEMBERED_MAX = 4096
"""Of so many source buckets the rules are kept; those of others are made anew each time."""
PLACEHOLDER = "{bucket}"
"""Stands for the source bucket's name in a target bucket and a target prefix."""


@dataclass(frozen=True, kw_only=True)
class Terms:
    """What is said alike for one bucket and for many."""

    name: str
    target: str = "filebase"
    """The name of the target store."""
    prefix: str = ""
    """Source keys must begin with this."""
    suffix: str = ""
    """What follows the prefix must end with this."""
    include: tuple[str, ...] = ()
    """Globs on the whole source key: one of them must match, if there are some."""
    exclude: tuple[str, ...] = ()
    """Globs on the whole source key: none of them may match."""
    deletes: bool = False
    """Whether what is deleted at the source is deleted at the target."""
    overwrite: str = "changed"
    """"changed": the target follows the source; "never": an existing key at the target is left alone."""
    storage_class: str = ""
    """What objects are written with; empty: whatever the store gives them."""
    tags: bool = True
    """Whether tags are carried over."""


@dataclass(frozen=True, kw_only=True)
class Rule(Terms):
    """What goes from one source bucket to one target bucket.

    Its name is "default", say, or "default.photos" for one bucket of a rule with several.
    """

    source_bucket: str
    target_bucket: str
    target_prefix: str = ""
    """Stands in the place of `prefix` at the target."""

    def wants(self, key: str) -> bool:
        """Whether the object of this source key is to be copied."""
        if not key or not key.startswith(self.prefix) or not key.endswith(self.suffix):
            return False
        if len(key) < len(self.prefix) + len(self.suffix) or not self.target_key(key):
            return False
        if self._included and not self._included.fullmatch(key):
            return False
        return not (self._excluded and self._excluded.fullmatch(key))

    def target_key(self, key: str) -> str:
        """Where the object of this source key goes; the key begins with `prefix`."""
        return self.target_prefix + key[len(self.prefix) :]

    def source_key(self, target_key: str) -> str | None:
        """The source key that would be written there; None where this rule writes no such key."""
        if not target_key.startswith(self.target_prefix):
            return None
        key = self.prefix + target_key[len(self.target_prefix) :]
        return key if self.wants(key) else None

    @cached_property
    def _included(self) -> re.Pattern[str] | None:
        return _any_of(self.include) if self.include else None

    @cached_property
    def _excluded(self) -> re.Pattern[str] | None:
        return _any_of(self.exclude) if self.exclude else None


@dataclass(frozen=True, kw_only=True)
class Template(Terms):
    """A rule as it is configured. Its name has no dot, so that "name.bucket" ends its name at the first.

    The keys of two source buckets never meet at the target: the bucket's name is in the target bucket's, or
    in the target prefix, with a slash behind it, or is put in front of the target prefix.
    """

    sources: tuple[str, ...]
    """Source buckets, by name or glob; at least one."""
    target_bucket: str
    """May hold "{bucket}"."""
    target_prefix: str | None = None
    """May hold "{bucket}"; None: the same as `prefix`."""

    @property
    def only_bucket(self) -> str | None:
        """The source bucket where there is but one; None where there are several, or may be."""
        several = len(set(self.sources)) > 1 or is_glob(self.sources[0])
        return None if several else self.sources[0]

    @property
    def target_prefix_parts(self) -> tuple[str, ...]:
        """The target prefix, cut where the source bucket's name stands in it."""
        if self.target_prefix is None:
            parts: tuple[str, ...] = (self.prefix,)
        else:
            parts = tuple(self.target_prefix.split(PLACEHOLDER))
        tells_apart = self.only_bucket or len(parts) > 1 or PLACEHOLDER in self.target_bucket
        return parts if tells_apart else ("", "/" + parts[0])

    def matches(self, bucket: str) -> bool:
        """Whether this is one of the source buckets."""
        return bool(bucket) and "/" not in bucket and bool(self._sources.fullmatch(bucket))

    def rule(self, bucket: str) -> Rule:
        """What it means for one source bucket, which is one of its own."""
        terms = {field.name: getattr(self, field.name) for field in fields(Terms)}
        if not self.only_bucket:
            terms["name"] = f"{self.name}.{bucket}"
        return Rule(
            **terms,
            source_bucket=bucket,
            target_bucket=self.target_bucket.replace(PLACEHOLDER, bucket),
            target_prefix=bucket.join(self.target_prefix_parts),
        )

    @cached_property
    def _sources(self) -> re.Pattern[str]:
        return _any_of(self.sources)


@dataclass(frozen=True, kw_only=True)
class Rules:
    """The rules in force. Safe to share between threads."""

    templates: tuple[Template, ...]
    """No two have the same name."""

    def __iter__(self) -> Iterator[Template]:
        return iter(self.templates)

    def matching(self, *, bucket: str, key: str) -> tuple[Rule, ...]:
        """The rules that want this object."""
        return tuple([rule for rule in self._of_bucket(bucket) if rule.wants(key)])

    def named(self, name: str) -> Rule | None:
        """The rule of a ledger's entry; None if no such rule is in force any more."""
        template_name, _, bucket = name.partition(".")
        template = self._by_name.get(template_name)
        if template is None:
            return None
        found = self._of_bucket(bucket or template.only_bucket or "")
        return next((rule for rule in found if rule.name == name), None)

    def of_buckets(self, buckets: Iterable[str]) -> tuple[Rule, ...]:
        """The rules for these source buckets, which exist; each once."""
        return tuple(rule for bucket in dict.fromkeys(buckets) for rule in self._of_bucket(bucket))

    @property
    def literal_buckets(self) -> tuple[str, ...]:
        """The source buckets that are named outright; each once."""
        return tuple(dict.fromkeys(source for source in self._sources() if not is_glob(source)))

    @property
    def has_globs(self) -> bool:
        """Whether the source has to be asked which buckets there are."""
        return any(is_glob(source) for source in self._sources())

    def _sources(self) -> Iterator[str]:
        return (source for template in self.templates for source in template.sources)

    @cached_property
    def _by_name(self) -> dict[str, Template]:
        return {template.name: template for template in self.templates}

    @cached_property
    def _of_bucket(self) -> Callable[[str], tuple[Rule, ...]]:
        return lru_cache(maxsize=BUCKETS_REMEMBERED_MAX)(self._made_for)

    def _made_for(self, bucket: str) -> tuple[Rule, ...]:
        return tuple(template.rule(bucket) for template in self.templates if template.matches(bucket))


def is_glob(pattern: str) -> bool:
    """Whether this is more than a plain name."""
    return "*" in pattern or "?" in pattern


def _any_of(globs: tuple[str, ...]) -> re.Pattern[str]:
    return re.compile("|".join(_expression(glob) for glob in globs), re.DOTALL)


def _expression(glob: str) -> str:
    """Each piece between two stars is matched where it comes first and never tried elsewhere (an atomic
    group): to try again helps no match, and would take for ever with many stars and a long key.
    """
    first, *others = ["".join("." if char == "?" else re.escape(char) for char in x) for x in glob.split("*")]
    if not others:
        return first
    return first + "".join(f"(?>.*?{piece})" for piece in others[:-1]) + ".*" + others[-1]
