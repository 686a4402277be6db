"""Which objects of the source go where at the target."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from webhook.settings import Settings


@dataclass(frozen=True, kw_only=True)
class Rule:
    """Everything of one source bucket goes to one target bucket, under the same keys."""

    name: str
    source_bucket: str
    target_bucket: str


def from_settings(settings: Settings) -> tuple[Rule, ...]:
    """The rules in force: one, called "default", made from the environment."""
    return (
        Rule(
            name="default",
            source_bucket=settings.source.bucket,
            target_bucket=settings.target.bucket,
        ),
    )


def matching(rules: Sequence[Rule], *, bucket: str) -> tuple[Rule, ...]:
    """The rules that want objects of this source bucket."""
    return tuple(rule for rule in rules if rule.source_bucket == bucket)
