"""Which objects go where."""

from __future__ import annotations

from webhook import rules, settings


def test_the_environment_makes_one_rule(environ: dict[str, str]) -> None:
    (rule,) = rules.from_settings(settings.from_environ(environ))
    assert (rule.name, rule.source_bucket, rule.target_bucket) == (
        "default",
        "source-bucket",
        "target-bucket",
    )


def test_a_bucket_finds_its_rules_by_its_exact_name(environ: dict[str, str]) -> None:
    in_force = rules.from_settings(settings.from_environ(environ))
    assert rules.matching(in_force, bucket="source-bucket") == in_force
    for other in ("target-bucket", "Source-Bucket", "source-bucket ", "source", ""):
        assert rules.matching(in_force, bucket=other) == ()
