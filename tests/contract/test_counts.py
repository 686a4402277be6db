"""What every engine must do for counts: those of all processes are added up, and none is lost on the way."""

from __future__ import annotations

import threading

import pytest
import sqlalchemy as sa

from tests.contract.steps import Clock
from webhook.database import connect
from webhook.errors import LedgerUnavailable
from webhook.ledger import Ledger
from webhook.meter import ALL_TIME, Labels
from webhook.metrics import minutes
from webhook.progress import KEPT_MINUTES, Progress
from webhook.tables import COUNTS


def kept(ledger: Ledger) -> dict[tuple[str, str, int], float]:
    """All that is on record."""
    with ledger.reading() as connection:
        return {
            (name, labels, minute): value
            for name, labels, minute, value in connection.execute(COUNTS.select())
        }


def test_what_several_processes_counted_is_added_up(ledger: Ledger, database_url: str) -> None:
    other = Ledger(connect(database_url))
    for each, times in ((ledger, 3), (other, 4)):
        for _ in range(times):
            each.meter.count("copies", rule="default", outcome="replicated")
        each.meter.count("copied_bytes", 2.5, rule="default")
        each.keep_counts()
    other.close()
    assert kept(ledger) == {
        ("copies", '{"outcome": "replicated", "rule": "default"}', ALL_TIME): 7,
        ("copied_bytes", '{"rule": "default"}', ALL_TIME): 5,
    }


def test_nothing_is_written_twice_and_nothing_where_nothing_was_counted(ledger: Ledger) -> None:
    ledger.meter.count("copies", rule="ö", outcome="gone")
    ledger.keep_counts()
    before = kept(ledger)
    ledger.keep_counts()
    assert kept(ledger) == before
    assert list(before.values()) == [1]


def test_what_cannot_be_kept_now_is_kept_later(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    ledger.meter.count("copies", rule="default", outcome="gone")
    with monkeypatch.context() as patch:
        patch.setattr(ledger._sql.add_counts, "run", _fail)
        with pytest.raises(LedgerUnavailable):
            ledger.keep_counts()
    ledger.meter.count("copies", rule="default", outcome="gone")
    ledger.keep_counts()
    assert list(kept(ledger).values()) == [2]


def _fail(*_: object) -> None:
    raise LedgerUnavailable("away")


def test_threads_lose_no_count(ledger: Ledger) -> None:
    def count() -> None:
        for _ in range(500):
            ledger.meter.count("copies", rule="default", outcome="gone")
            ledger.keep_counts()

    threads = [threading.Thread(target=count) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert list(kept(ledger).values()) == [2000]


def test_what_goes_wrong_is_counted_by_the_minute_too_and_that_is_forgotten(
    ledger: Ledger, clock: Clock
) -> None:
    this_minute = int(clock.now // 60)
    labels: Labels = (("reason", "target_store_denied"), ("rule", "default"))
    for _ in range(3):
        ledger.meter.count("failures", rule="default", reason="target_store_denied")
    ledger.keep_counts()
    told = minutes(ledger, "failures", since_minute=this_minute - 60)
    assert told == {this_minute: {labels: 3}}, "by the ledger's clock"
    assert minutes(ledger, "failures", since_minute=this_minute + 1) == {}
    assert minutes(ledger, "retries", since_minute=0) == {}
    clock.now = (this_minute + KEPT_MINUTES + 3) * 60
    Progress(ledger).forget()
    assert minutes(ledger, "failures", since_minute=0) == {}
    with ledger.reading() as connection:
        total = sa.select(COUNTS.c.value).where(COUNTS.c.minute == ALL_TIME)
        assert connection.execute(total).scalar_one() == 3
