"""The way of an event, tried with an object of our own: written, told to the service, recorded, copied.

Then it is removed at both sides and from the ledger. MinIO's queue may tell of it once more after that; the
next run drops what that leaves in the ledger.
"""

from __future__ import annotations

import contextlib
import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any
from urllib.parse import quote

import requests

from scripts.ask_service import Service, ask
from scripts.doctor_ledger import forget
from scripts.doctor_report import Bound, Report
from webhook.abilities import BODY
from webhook.entries import LIVE, RUNNING, WAITING
from webhook.errors import ReplicatorError, StoreError
from webhook.ledger import Ledger
from webhook.probes import FOLDER, Probes
from webhook.rules import Rule
from webhook.store import Store

EVENT_BOUND_S = 30.0
"""From the object's writing to the event's record. MinIO's queue leaves it every few seconds."""
COPY_BOUND_S = 30.0
REMOVAL_BOUND_S = 20.0
AGAIN_BOUND_S = 5.0
"""MinIO's queue may deliver that much later what was delivered at once."""
POLL_S = 0.2
PROBES_MAX = 20
"""Buckets that are tried, where globs match more."""
Look = Callable[[str, str], Mapping[str, Any] | None]
"""Rule and key → what is on record of it."""


@dataclass
class Probe:
    """One object, written to see its event come back."""

    rule: Rule
    key: str
    probes: Probes
    written_at: float = 0.0
    event_s: float | None = None
    copied_s: float | None = None
    entry: Mapping[str, Any] = field(default_factory=dict)


def probe_key(rule: Rule) -> str | None:
    """A key of our own that the rule wants; None where none can be found that it would."""
    word = f"{FOLDER}{secrets.token_hex(6)}"
    for glob in ("*", *rule.include):
        begin, _, end = glob.replace("?", "x").partition("*")
        key = f"{'' if begin.startswith(rule.prefix) else rule.prefix}{begin}{word}{end.replace('*', '')}"
        key += "" if key.endswith(rule.suffix) else rule.suffix
        if "*" in glob and rule.wants(key):
            return key
    return None


def chosen(rules: Sequence[Rule], report: Report) -> list[tuple[Rule, str]]:
    """A rule and a key for each source bucket, as far as one can be tried."""
    found: list[tuple[Rule, str]] = []
    for bucket in dict.fromkeys(rule.source_bucket for rule in rules):
        pairs = [(rule, probe_key(rule)) for rule in rules if rule.source_bucket == bucket]
        usable = [(rule, key) for rule, key in pairs if key]
        if usable:
            found.append(usable[0])
        else:
            report.skipped(f"bucket {bucket}: its rules want no key of ours, so no event was tried")
    if len(found) > PROBES_MAX:
        report.note(f"events of {len(found) - PROBES_MAX} buckets were not tried")
    return found[:PROBES_MAX]


class Event:
    """Tries the events of some buckets, and cleans up after it, whatever happens."""

    def __init__(
        self,
        store: Store,
        look: Look,
        report: Report,
        *,
        paused: Mapping[str, float],
        remove_copies: Callable[[Rule, str, Bound], None],
        ledger: Ledger | None,
    ) -> None:
        """`look` tells what is on record; `paused` are rules by which nothing is copied now; `remove_copies`
        removes the copies of all source keys with a prefix.
        """
        self._store = store
        self._look = look
        self._report = report
        self._paused = paused
        self._remove_copies = remove_copies
        self._ledger = ledger
        self._probes: list[Probe] = []
        self._tried: list[Probe] = []
        """Those too whose writing failed: it may have been done all the same."""

    def write(self, pairs: Sequence[tuple[Rule, str]], bound: Bound) -> list[Probe]:
        """Writes the objects; says where that is not allowed, and goes on with the others."""
        for rule, key in pairs:
            bound.check()
            prefix = key[: key.index(FOLDER) + len(FOLDER)]
            probe = Probe(rule=rule, key=key, probes=Probes(self._store, rule.source_bucket, prefix, bound))
            self._tried.append(probe)
            try:
                probe.probes.put(key, BODY, {"content-type": "text/plain"})
            except StoreError as error:
                self._report.skipped(
                    f"bucket {rule.source_bucket}: no object may be written, so no event was tried "
                    f"({error.message})",
                    f"Allow s3:PutObject and s3:DeleteObject on {rule.source_bucket}/{prefix}*, "
                    "or use --read-only.",
                )
                continue
            probe.written_at = time.monotonic()
            self._probes.append(probe)
        return self._probes

    def wait(self, bound: Bound) -> None:
        """Until all events are on record and their objects copied, or time is up."""
        copied_by = time.monotonic() + EVENT_BOUND_S + COPY_BOUND_S
        while time.monotonic() < copied_by and not all(map(self._is_over, self._probes)):
            bound.check()
            for probe in self._probes:
                self._watch(probe)
            lost = [each for each in self._probes if each.event_s is None]
            if lost and time.monotonic() > lost[0].written_at + EVENT_BOUND_S:
                break
            time.sleep(POLL_S)

    def _is_over(self, probe: Probe) -> bool:
        """Nothing more is to be waited for."""
        if probe.copied_s is not None or probe.entry.get("state") == "failed":
            return True
        return probe.event_s is not None and probe.rule.name in self._paused

    def _watch(self, probe: Probe) -> None:
        entry = self._look(probe.rule.name, probe.key)
        if entry is None:
            return
        probe.entry = entry
        since = time.monotonic() - probe.written_at
        if probe.event_s is None and entry.get("lane") == LIVE:  # a sweep may have found it, too
            probe.event_s = since
        if probe.copied_s is None and entry.get("outcome") in ("replicated", "unchanged"):
            probe.copied_s = since

    def say(self, hint: str) -> None:
        """What came of each; `hint` is what to do where no event came."""
        for probe in self._probes:
            bucket = probe.rule.source_bucket
            if probe.event_s is None:
                text = f"bucket {bucket}: no event of an object came within {EVENT_BOUND_S:.0f} s"
                self._report.wrong(text, hint, bucket=bucket)
                continue
            text = f"bucket {bucket}: the event came after {probe.event_s:.1f} s"
            if probe.copied_s is not None:
                self._report.fine(
                    f"{text}, its object was copied after {probe.copied_s:.1f} s", bucket=bucket
                )
                continue
            if probe.rule.name in self._paused:
                self._report.note(f"{text}; rule {probe.rule.name} is paused, so it is not copied")
                continue
            error = probe.entry.get("error") or "no process has copied it yet"
            self._report.wrong(
                f"{text}, but the copy is not done: {error}", "See below: work.", bucket=bucket
            )

    def clean_up(self, bound: Bound) -> None:
        """Removes the objects, their copies and their entries; says what is left. Safe to repeat."""
        for probe in self._tried:
            left = probe.probes.clean_up(bound)
            if left:
                text = f"{probe.rule.source_bucket}/{probe.key} could not be removed"
                self._report.wrong(text, f"mc rm 'SOURCE/{probe.rule.source_bucket}/{probe.key}'")
        self._wait_for_removals(Bound(min(REMOVAL_BOUND_S, bound.left_s)))
        for probe in self._tried:
            with contextlib.suppress(ReplicatorError):
                self._remove_copies(probe.rule, probe.probes.prefix, bound)
        if self._ledger and self._tried:
            self._forget(self._ledger, Bound(min(AGAIN_BOUND_S, bound.left_s)))

    def _forget(self, ledger: Ledger, bound: Bound) -> None:
        """Drops the entries; those too that MinIO's queue makes anew, as far as it is quick."""
        forget(ledger, FOLDER)
        has_events = any(probe.event_s is not None for probe in self._probes)
        while has_events and bound.left_s > POLL_S:
            time.sleep(POLL_S)
            forget(ledger, FOLDER)

    def _wait_for_removals(self, bound: Bound) -> None:
        """Until their events are on record and nothing runs any more, so that no copy is made after all."""
        for probe in self._probes:
            while probe.event_s is not None and bound.left_s > POLL_S and not self._is_removed(probe):
                time.sleep(POLL_S)

    def _is_removed(self, probe: Probe) -> bool:
        entry = self._look(probe.rule.name, probe.key)
        if entry is None:
            return True
        was_told = entry["generation"] > probe.entry["generation"]
        is_paused = probe.rule.name in self._paused
        is_put_off = entry["state"] == WAITING and (entry["gone_at"] or entry["error_code"] or is_paused)
        return was_told and bool(is_put_off or entry["state"] not in (WAITING, RUNNING))


# ── where it is on record ────────────────────────────────────────────────────────────────────────────────


def look_in(ledger: Ledger) -> Look:
    """By the ledger itself."""
    return ledger.entry


def look_at(service: Service, session: requests.Session) -> Look:
    """By the running service."""

    def look(rule: str, key: str) -> Mapping[str, Any] | None:
        path = f"/v1/entries/{quote(rule, safe='')}/{quote(key, safe='/')}"
        said = ask(service, session, "GET", path)
        return said.facts if said.status == HTTPStatus.OK else None

    return look
