"""What scripts/doctor.py looks at in a target: that it can be used, and what it can do.

Objects of our own are written below the target prefix of a rule, looked at and removed.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from scripts.doctor_report import Bound, Level, Report, mend_of
from webhook.abilities import Ability, Grade, Trials
from webhook.errors import StoreError
from webhook.findings import Findings
from webhook.probes import FOLDER, Probes
from webhook.rules import Rule
from webhook.rulesfile import ENVIRONMENT_TARGET
from webhook.target import Target

TRIAL_BOUND_S = 120.0
CLEAN_BOUND_S = 60.0
LEVELS = {Grade.FINE: Level.FINE, Grade.NOTE: Level.NOTE, Grade.WRONG: Level.WRONG}


def variables_of(target: str) -> str:
    """What the names of a target's settings begin with."""
    return "FILEBASE" if target == ENVIRONMENT_TARGET else f"TARGET_{target.upper().replace('-', '_')}"


def check_buckets(
    name: str, target: Target, rules: Sequence[Rule], report: Report, bound: Bound
) -> list[str]:
    """The buckets that are there; says of each that is not."""
    usable = []
    for bucket in sorted({rule.target_bucket for rule in rules}):
        bound.check()
        try:
            target.page(bucket, "")  # unlike HEAD's, its answer says what is wrong
        except StoreError as error:
            missing = f"Create the bucket {bucket} there, or correct FILEBASE_BUCKET or the file of rules."
            mend = mend_of(error, variables_of(name), missing)
            report.wrong(f"bucket {bucket}: {error.message}", mend, bucket=bucket)
            continue
        report.fine(f"bucket {bucket}: there, can be listed", bucket=bucket)
        usable.append(bucket)
    return usable


def check_writes(target: Target, rule: Rule, report: Report, bound: Bound) -> None:
    """That a bucket can be written to, where another one of the target has all the trials."""
    probes = _probes(target, rule, bound)
    try:
        Trials(probes).content()
        report.fine(f"bucket {rule.target_bucket}: can be written", bucket=rule.target_bucket)
    except StoreError as error:
        report.wrong(f"bucket {rule.target_bucket}: {error.message}", error.hint, bucket=rule.target_bucket)
    finally:
        probes.clean_up(Bound(CLEAN_BOUND_S))


class Examination:
    """All trials at a target."""

    def __init__(self, target: Target, rules: Sequence[Rule], report: Report) -> None:
        """In the first rule's bucket, below its target prefix; storage classes are those of all."""
        self._probes = _probes(target, rules[0], Bound(0))
        self._trials = Trials(self._probes)
        self._report = report
        self._classes = sorted({rule.storage_class for rule in rules if rule.storage_class})
        self._found: dict[str, Any] = {}
        self._is_whole, self._can_write = True, False

    def run(self) -> Findings | None:
        """Tries everything, and cleans up; None where it could not all be tried."""
        try:
            self._can_write = self._try("writing", self._trials.content)
            if self._can_write:
                self._try("checksums", self._trials.checksums)
                self._try("conditions", self._trials.conditions)
                self._try("uploads in parts", self._trials.parts)
                self._try("headers", self._trials.headers)
                self._try("tags", self._trials.tags)
                for each in self._classes:
                    self._try(f"storage class {each}", partial(self._trials.storage_class, each))
                self._try("odd keys", self._trials.odd_keys)
        finally:
            self._clean_up()
        return self._trials.findings(self._found) if self._can_write and self._is_whole else None

    def _try(self, what: str, trial: Callable[[], list[Ability]]) -> bool:
        def run(bound: Bound) -> list[Ability]:
            self._probes.permit = bound
            return trial()

        found = self._report.do(what, run, bound_s=TRIAL_BOUND_S)
        for each in found or []:
            self._found[each.name] = each.value
            self._report.say(LEVELS[each.grade], each.text, each.mend, name=each.name, value=each.value)
        self._is_whole &= found is not None
        return found is not None and all(each.grade is not Grade.WRONG for each in found)

    def _clean_up(self) -> None:
        left = self._report.do(
            "cleaning up", lambda _: self._probes.clean_up(Bound(CLEAN_BOUND_S)), bound_s=CLEAN_BOUND_S
        )
        if left:
            text = f"{len(left)} objects of the trials could not be removed, such as {left[0]!r}"
            mend = f"Remove what is below {self._probes.bucket}/{self._probes.prefix} at the target."
            self._report.wrong(text, mend, left=left)


def _probes(target: Target, rule: Rule, bound: Bound) -> Probes:
    prefix = f"{rule.target_prefix}{FOLDER}{secrets.token_hex(6)}/"
    return Probes(target.store, rule.target_bucket, prefix, bound)
