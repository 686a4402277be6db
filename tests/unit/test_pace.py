"""A target's limits, on a clock that only sleeping moves."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field

import pytest
import structlog
from structlog.testing import capture_logs

from webhook import pace
from webhook.errors import LeaseLost, LedgerUnavailable, Place, StoreError, StoreFailed, StoreUnavailable
from webhook.pace import BATCH_S, BURST_S, LEDGER_WAIT_S, MB, PAUSE_MAX_S, LocalSlots, Pace, Turn

PLACE = Place(side="target", operation="PutObject", bucket="b", key="k")
BUSY = StoreUnavailable("answered 503 SlowDown", PLACE, status=503)


@dataclass
class Clock:
    """Stands in for the module `time`; `sleep` passes, and does what is to happen at a moment."""

    now: float = 1000.0

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        assert seconds > 0
        self.now += seconds


@dataclass
class Counted(LocalSlots):
    """Slots that remember what was reserved, and can be away."""

    clock: Clock
    lengths: list[float] = field(default_factory=list)
    away_until: float = 0.0

    def __post_init__(self) -> None:
        super().__init__()

    def reserve(self, name: str, length_s: float) -> float:
        if self.clock.now < self.away_until:
            raise LedgerUnavailable("away")
        self.lengths.append(length_s)
        return super().reserve(name, length_s)


@dataclass
class Ends:
    """A right that ends at a moment."""

    clock: Clock
    at: float

    def check(self) -> None:
        if self.clock.now >= self.at:
            raise LeaseLost("over")


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(pace, "time", made)
    return made


@pytest.fixture
def slots(clock: Clock) -> Counted:
    return Counted(clock)


def fails(paced: Pace, *errors: BaseException | None) -> None:
    """As many requests at once as there are errors; they end in them, in order."""
    for turn, error in [(paced.turn(PLACE), error) for error in errors]:
        turn.end(error)


# ── so much a second ─────────────────────────────────────────────────────────────────────────────────────


def test_requests_are_sent_at_the_rate_that_is_allowed_and_a_small_burst_at_first(clock: Clock) -> None:
    paced, sent = Pace("t", max_rps=100), []
    for _ in range(200):
        paced.turn(PLACE).end()
        sent.append(clock.now - 1000)
    burst = round(BURST_S * 100)
    assert sum(at == 0 for at in sent) == pytest.approx(burst + 1, abs=1)
    assert sent[-1] == pytest.approx((200 - 1 - burst) / 100)
    assert all(later - earlier >= 0.0099 for earlier, later in itertools.pairwise(sent[burst + 1 :]))


def test_bytes_are_sent_at_the_rate_that_is_allowed_and_requests_without_any_pass(clock: Clock) -> None:
    paced = Pace("t", max_mbps=10)
    for _ in range(20):
        paced.turn(PLACE, length=MB).end()
    assert clock.now - 1000 == pytest.approx(20 * 0.1 - BURST_S, abs=0.11)
    now = clock.now
    paced.turn(PLACE).end()
    assert clock.now == now


def test_a_large_body_takes_its_time_in_small_pieces_so_that_other_processes_get_theirs(
    clock: Clock, slots: Counted
) -> None:
    mine, other = Pace("t", max_mbps=1, slots=slots), Pace("t", max_mbps=1, slots=slots)
    mine.turn(PLACE, length=5 * MB).end()
    assert clock.now - 1000 == pytest.approx(5, abs=BATCH_S + BURST_S)
    assert max(slots.lengths) == BATCH_S
    now = clock.now
    other.turn(PLACE, length=1000).end()
    assert clock.now - now <= BATCH_S + 0.01


def test_two_processes_share_one_limit_and_two_targets_do_not(clock: Clock, slots: Counted) -> None:
    mine, other, elsewhere = (Pace(name, max_rps=100, slots=slots) for name in ("t", "t", "u"))
    for _ in range(100):
        mine.turn(PLACE).end()
        other.turn(PLACE).end()
    shared_s = clock.now - 1000
    assert 200 / 100 - BURST_S - 0.02 <= shared_s <= 2.1 / 0.9
    elsewhere.turn(PLACE).end()
    assert clock.now - 1000 == shared_s


def test_a_limit_costs_a_few_reservations_a_second_and_none_where_there_is_none(
    clock: Clock, slots: Counted
) -> None:
    paced = Pace("t", max_rps=1000, slots=slots)
    for _ in range(5000):
        paced.turn(PLACE).end()
    assert clock.now - 1000 == pytest.approx(5, abs=0.2)
    assert len(slots.lengths) <= 2 * 5 / BATCH_S
    Pace("t", slots=slots).turn(PLACE, length=MB).end()
    assert len(slots.lengths) <= 2 * 5 / BATCH_S


def test_a_lone_request_reserves_no_more_than_itself_and_what_it_leaves_unused_is_lost(
    clock: Clock, slots: Counted
) -> None:
    paced = Pace("t", max_rps=100, slots=slots)
    for _ in range(5):
        paced.turn(PLACE).end()
        clock.now += 10
    assert slots.lengths == pytest.approx([0.01] * 5)
    fails(paced, *[None] * 20)  # leaves some
    reserved = len(slots.lengths)
    clock.now += 10
    began = clock.now
    fails(paced, *[None] * 15)
    assert clock.now - began >= 15 / 100 - BURST_S - 0.02
    assert len(slots.lengths) > reserved


def test_a_request_that_waits_for_its_moment_is_given_up_where_its_right_ends(clock: Clock) -> None:
    paced = Pace("t", max_mbps=1)
    with pytest.raises(LeaseLost):
        paced.turn(PLACE, Ends(clock, 1001), length=100 * MB)
    assert clock.now < 1001 + 2 * BATCH_S


def test_a_ledger_that_is_away_is_waited_for_and_not_for_ever(clock: Clock, slots: Counted) -> None:
    paced = Pace("t", max_rps=100, slots=slots)
    slots.away_until = clock.now + LEDGER_WAIT_S / 2
    paced.turn(PLACE).end()
    assert clock.now - 1000 < LEDGER_WAIT_S
    slots.away_until = clock.now + 1000
    began = clock.now
    clock.now += 1
    with pytest.raises(LedgerUnavailable):
        paced.turn(PLACE)
    assert LEDGER_WAIT_S <= clock.now - began < LEDGER_WAIT_S + 5
    with pytest.raises(LeaseLost):
        paced.turn(PLACE, Ends(clock, clock.now + 1))


# ── so many at once ──────────────────────────────────────────────────────────────────────────────────────


def test_there_is_no_limit_until_the_target_is_busy_then_half_of_what_was_under_way(clock: Clock) -> None:
    paced = Pace("t")
    fails(paced, *[None] * 16)
    assert paced.limit is None
    turns = [paced.turn(PLACE) for _ in range(16)]
    turns[0].end(BUSY)
    assert paced.limit == 8


def test_requests_that_began_before_the_limit_was_halved_do_not_halve_it_again(clock: Clock) -> None:
    paced = Pace("t")
    clock.now += 1
    turns = [paced.turn(PLACE) for _ in range(16)]
    clock.now += 1
    for turn in turns:
        turn.end(BUSY)
    assert paced.limit == 8
    clock.now += 1
    fails(paced, *[BUSY] * 8)
    assert paced.limit == 4
    for _ in range(9):
        clock.now += 1
        fails(paced, BUSY)
    assert paced.limit == 1


def test_the_limit_grows_by_one_for_as_many_successes_as_it_has_and_then_is_gone(clock: Clock) -> None:
    paced = Pace("t")
    fails(paced, *[BUSY] * 8)
    assert paced.limit == 4
    for limit in (5, 6, 7, 8, None):
        for _ in range(paced.limit or 0):
            was = paced.limit
            fails(paced, StoreFailed("answered 500", PLACE, status=500))  # it did answer
        assert (was, paced.limit) == ((limit or 9) - 1, limit)


@pytest.mark.parametrize(
    "error",
    [
        LeaseLost("over"),
        LedgerUnavailable("away"),
        KeyboardInterrupt(),
        StoreUnavailable("no answer (Connection refused)", PLACE),
    ],
    ids=lambda error: type(error).__name__,
)
def test_what_says_nothing_of_the_target_changes_nothing(clock: Clock, error: BaseException) -> None:
    paced = Pace("t")
    fails(paced, *[BUSY] * 2)
    assert paced.limit == 1
    fails(paced, error)
    assert paced.limit == 1
    fails(paced, None)
    assert paced.limit == 2


def test_an_answer_that_is_waited_for_in_vain_counts_as_busy(clock: Clock) -> None:
    paced = Pace("t")
    fails(paced, *[StoreUnavailable("no answer (timed out)", PLACE, timed_out=True)] * 4)
    assert paced.limit == 2


def test_each_change_is_told_once(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pace, "log", structlog.get_logger())  # one that no earlier test has settled
    paced = Pace("archive")
    with capture_logs() as lines:
        fails(paced, *[BUSY] * 4)
        for _ in range(20):
            fails(paced, None)
    assert [(line["log_level"], line["target"], line.get("at_once")) for line in lines] == [
        ("warning", "archive", 2),
        ("info", "archive", None),
    ]
    with capture_logs() as lines:
        for _ in range(5):
            clock.now += 1
            fails(paced, BUSY)
    assert len(lines) == 1  # it stays at 1


def test_a_turn_is_ended_once(clock: Clock) -> None:
    paced = Pace("t")
    fails(paced, *[BUSY] * 2)
    turn = paced.turn(PLACE)
    turn.end()
    turn.end(BUSY)
    assert paced.limit == 2
    Turn().end(BUSY)  # of what is not limited


# ── silence ──────────────────────────────────────────────────────────────────────────────────────────────


def busy_for(seconds: float) -> StoreError:
    return StoreUnavailable("answered 503", PLACE, status=503, retry_after_s=seconds)


def test_a_short_retry_after_is_waited_for(clock: Clock) -> None:
    paced = Pace("t")
    fails(paced, busy_for(PAUSE_MAX_S - 1))
    paced.turn(PLACE).end()
    assert clock.now == pytest.approx(1000 + PAUSE_MAX_S - 1)


def test_a_long_retry_after_is_an_error_that_says_when_to_come_back(clock: Clock) -> None:
    paced = Pace("t")
    fails(paced, busy_for(120))
    clock.now += 10
    with pytest.raises(StoreUnavailable) as raised:
        paced.turn(PLACE)
    assert raised.value.retry_after_s == pytest.approx(110)
    assert clock.now == 1010
    clock.now += 110
    paced.turn(PLACE).end()
    assert clock.now == 1120


def test_a_request_that_waits_for_its_moment_keeps_a_silence_that_begins_meanwhile(clock: Clock) -> None:
    paced = Pace("t", max_mbps=1)
    under_way = paced.turn(PLACE)

    class Fails(Ends):
        def check(self) -> None:
            if self.clock.now >= self.at:
                under_way.end(busy_for(4))

    paced.turn(PLACE, Fails(clock, 1001), length=2 * MB).end()
    assert clock.now >= 1005


def test_a_request_that_waits_out_a_silence_is_given_up_where_its_right_ends(clock: Clock) -> None:
    paced = Pace("t")
    fails(paced, busy_for(4))
    with pytest.raises(LeaseLost):
        paced.turn(PLACE, Ends(clock, 1001))
    assert clock.now < 1001.5
