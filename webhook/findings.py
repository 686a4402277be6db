"""What was found out about targets, kept in the ledger: it spares requests, and decides nothing.

Only what does no harm where it is wrong by now is used: that conditions are heeded or ignored, that a trait
was seen to be kept, that parts want Content-MD5. That something is refused or lost is found out by each
process itself, because to believe it wrongly would lose it.
"""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import sqlalchemy as sa
import structlog

from webhook.compiled import insert_or
from webhook.errors import LedgerUnavailable
from webhook.ledger import Ledger
from webhook.tables import FINDINGS

KEEP_S = 7 * 86_400.0
"""Older findings count no more: stores change, and to find out anew is a few requests."""
HELD_MAX, TRAIT_MAX_CHARS = 200, 200
"""So many traits are kept of a target, and none that is longer."""
STORE_S = 60.0
"""Between two looks of a process at what it has learned; it writes only what is new."""
_ROW = FINDINGS.c

log = structlog.get_logger("webhook.findings")


@dataclass(frozen=True, kw_only=True)
class Findings:
    """What is known of one target."""

    conditions: Mapping[str, bool] = field(default_factory=dict)
    """Operation and header, "PutObject if-match" → whether the target heeds it."""
    held: frozenset[str] = frozenset()
    """Traits that it was seen to keep: see webhook.holdings."""
    wants_digests: bool = False
    """Whether it refuses parts without Content-MD5."""
    report: Mapping[str, Any] = field(default_factory=dict)
    """All that scripts/doctor.py found, for people."""

    def plus(self, newer: Findings) -> Findings:
        """Both, the newer where they differ."""
        return Findings(
            conditions={**self.conditions, **newer.conditions},
            held=self.held | newer.held,
            wants_digests=self.wants_digests or newer.wants_digests,
            report=newer.report or self.report,
        )

    def as_json(self) -> str:
        """For the ledger: bounded, and always the same text for the same findings."""
        held = [name for name in sorted(self.held) if len(name) <= TRAIT_MAX_CHARS][:HELD_MAX]
        facts = {"conditions": self.conditions, "held": held, "wants_digests": self.wants_digests}
        return json.dumps({**facts, "report": self.report}, sort_keys=True)


def read(text: str) -> Findings:
    """Findings from the ledger; what cannot be understood is left out."""
    try:
        facts = json.loads(text)
    except ValueError:
        facts = None
    facts = facts if isinstance(facts, dict) else {}
    conditions, held, report = (facts.get(name) for name in ("conditions", "held", "report"))
    return Findings(
        conditions={name: heeds for name, heeds in _mapping(conditions).items() if isinstance(heeds, bool)},
        held=frozenset(name for name in held if isinstance(name, str))
        if isinstance(held, list)
        else frozenset(),
        wants_digests=facts.get("wants_digests") is True,
        report=_mapping(report),
    )


def _mapping(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}


class Archive:
    """The findings of a ledger. Thread-safe. Every method raises LedgerUnavailable."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger

    def load(self, target: str, endpoint: str) -> Findings | None:
        """What counts still of a target's findings; None where there is nothing."""
        since = self._ledger.clock() - KEEP_S
        wanted = sa.select(_ROW.findings).where(
            _ROW.target == target, _ROW.endpoint == endpoint, _ROW.found_at >= since
        )
        with self._ledger.reading() as connection:
            text = connection.execute(wanted).scalar()
        return None if text is None else read(text)

    def replace(self, target: str, endpoint: str, findings: Findings) -> None:
        """All of the target was looked at now."""
        found = {"endpoint": endpoint, "found_at": self._ledger.clock(), "findings": findings.as_json()}
        insert = insert_or(self._ledger.dialect, FINDINGS).values(target=target, **found)
        self._ledger.run(insert.on_conflict_do_update(index_elements=[_ROW.target], set_=found))

    def add(self, target: str, endpoint: str, findings: Findings) -> None:
        """This was seen by the way. It makes the rest no younger."""
        known = self.load(target, endpoint)
        if known is None:
            self.replace(target, endpoint, findings)
        elif (both := known.plus(findings)) != known:
            row = sa.update(FINDINGS).where(_ROW.target == target, _ROW.endpoint == endpoint)
            self._ledger.run(row.values(findings=both.as_json()), durable=False)


@dataclass(frozen=True, kw_only=True)
class Learner:
    """A part of this process that learns about one target."""

    target: str
    endpoint: str
    expect: Callable[[Findings], None]
    """Takes what is known already."""
    learned: Callable[[], Findings]
    """What this process has seen itself."""


class Learning:
    """Gives a process what is known of its targets, and keeps what it learns. `start` once, `stop` once."""

    def __init__(self, ledger: Ledger, learners: list[Learner]) -> None:
        """Whoever learns gets what is known; without a ledger, nothing is."""
        self._archive = Archive(ledger)
        self._learners = learners
        self._kept: dict[str, Findings] = {each.target: Findings() for each in learners}
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None
        with contextlib.suppress(LedgerUnavailable):
            for each in learners:
                if found := self._archive.load(each.target, each.endpoint):
                    each.expect(found)

    def start(self) -> None:
        """Starts the thread that keeps what is learned."""
        self._thread = threading.Thread(target=self._loop, name="learning", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Keeps what was learned last, and ends."""
        self._stopping.set()
        if self._thread:
            self._thread.join()
            self.keep()

    def keep(self) -> None:
        """Writes what is new, one row for each target at most. Where the ledger is away, later."""
        try:
            for each in self._learners:
                self._keep(each)
        except LedgerUnavailable as error:
            log.debug("cannot keep what was found out", error=error.message)

    def _keep(self, learner: Learner) -> None:
        learned = replace(learner.learned(), report={})
        if learned != self._kept[learner.target]:
            self._archive.add(learner.target, learner.endpoint, learned)
            self._kept[learner.target] = learned

    def _loop(self) -> None:
        while not self._stopping.wait(STORE_S):
            self.keep()
