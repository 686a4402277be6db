"""Findings in the ledger, on both engines."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import pytest
import sqlalchemy as sa

from webhook.errors import LedgerUnavailable
from webhook.findings import KEEP_S, Archive, Findings, Learner, Learning
from webhook.ledger import Ledger
from webhook.tables import FINDINGS

HERE, ELSEWHERE = "https://s3.example.com", "https://s3.example.org"
HEEDS = Findings(conditions={"PutObject if-match": True}, report={"tags": True})


@dataclass
class Process:
    """Learns what a test says, and remembers what it was told."""

    name: str = "filebase"
    endpoint: str = HERE
    seen: Findings = field(default_factory=Findings)
    told: list[Findings] = field(default_factory=list)

    def learning(self, ledger: Ledger) -> Learning:
        learner = Learner(
            target=self.name, endpoint=self.endpoint, expect=self.told.append, learned=lambda: self.seen
        )
        return Learning(ledger, [learner])


def rows(ledger: Ledger) -> list[dict[str, object]]:
    with ledger.reading() as connection:
        return [dict(row) for row in connection.execute(sa.select(FINDINGS)).mappings()]


@pytest.fixture
def archive(ledger: Ledger) -> Archive:
    return Archive(ledger)


def test_findings_count_for_their_target_at_their_endpoint(archive: Archive) -> None:
    archive.replace("filebase", HERE, HEEDS)
    assert archive.load("filebase", HERE) == HEEDS
    assert archive.load("filebase", ELSEWHERE) is None
    assert archive.load("other", HERE) is None


def test_findings_of_another_endpoint_are_replaced(archive: Archive, ledger: Ledger) -> None:
    archive.replace("filebase", ELSEWHERE, Findings(held=frozenset({"expires"})))
    archive.add("filebase", HERE, HEEDS)
    assert archive.load("filebase", HERE) == HEEDS
    assert len(rows(ledger)) == 1


def test_old_findings_count_no_more_however_often_something_was_added(
    archive: Archive, ledger: Ledger
) -> None:
    archive.replace("filebase", HERE, HEEDS)
    ledger.run(sa.update(FINDINGS).values(found_at=FINDINGS.c.found_at - KEEP_S + 60))
    archive.add("filebase", HERE, Findings(held=frozenset({"expires"})))
    assert archive.load("filebase", HERE) is not None
    ledger.run(sa.update(FINDINGS).values(found_at=FINDINGS.c.found_at - 120))
    assert archive.load("filebase", HERE) is None
    archive.add("filebase", HERE, Findings(held=frozenset({"metadata"})))
    assert archive.load("filebase", HERE) == Findings(held=frozenset({"metadata"}))


def test_what_is_added_takes_the_place_of_what_it_contradicts_and_of_nothing_else(archive: Archive) -> None:
    archive.replace("filebase", HERE, HEEDS)
    seen = {"PutObject if-match": False, "PutObject if-none-match": True}
    archive.add("filebase", HERE, Findings(conditions=seen, held=frozenset({"expires"})))
    assert archive.load("filebase", HERE) == Findings(
        conditions=seen, held=frozenset({"expires"}), report=HEEDS.report
    )


def test_a_process_hears_what_another_one_has_learned(ledger: Ledger) -> None:
    one, other = Process(), Process()
    first = one.learning(ledger)
    one.seen = Findings(conditions={"PutObject if-match": True}, held=frozenset({"expires"}))
    first.keep()
    other.learning(ledger)
    assert one.told == []
    assert other.told == [one.seen]


def test_what_was_learned_last_is_kept_when_a_process_stops(ledger: Ledger, archive: Archive) -> None:
    process = Process()
    learning = process.learning(ledger)
    learning.start()
    process.seen = HEEDS
    learning.stop()
    assert archive.load("filebase", HERE) == Findings(conditions=HEEDS.conditions)


def test_nothing_is_written_where_nothing_was_learned(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    process, writes = Process(), []
    learning = process.learning(ledger)
    process.seen = Findings(held=frozenset({"expires"}))
    learning.keep()
    run: Callable[..., object] = ledger.run
    monkeypatch.setattr(ledger, "run", lambda *all_of, **more: writes.append(1) or run(*all_of, **more))
    learning.keep()
    assert writes == []
    process.seen = Findings(held=frozenset({"expires", "metadata"}))
    learning.keep()
    assert writes == [1]


def test_a_ledger_that_is_away_holds_nothing_up_and_what_was_learned_is_kept_later(
    ledger: Ledger, archive: Archive, monkeypatch: pytest.MonkeyPatch
) -> None:
    process = Process()
    with monkeypatch.context() as away:

        def refuse(*_: object, **__: object) -> None:
            raise LedgerUnavailable("away")

        away.setattr(ledger, "run", refuse)
        away.setattr(ledger, "reading", refuse)
        learning = process.learning(ledger)
        process.seen = HEEDS
        learning.keep()
    assert archive.load("filebase", HERE) is None
    learning.keep()
    assert archive.load("filebase", HERE) == Findings(conditions=HEEDS.conditions)
