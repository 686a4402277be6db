"""A server's time, known without asking each time."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from webhook import clocks
from webhook.clocks import GOOD_FOR_S, ServerClock, elapsed_s
from webhook.errors import LedgerUnavailable

AHEAD_S = 300.0


class Server:
    """A server whose answers take their time, and which may be away."""

    def __init__(self) -> None:
        self.elapsed_s = 1000.0
        self.ahead_s = AHEAD_S
        self.round_trips_s: Iterator[float] = iter(lambda: 0.002, None)
        self.asked = 0
        self.is_away = False

    def ask(self) -> float:
        self.asked += 1
        takes_s = next(self.round_trips_s)
        self.elapsed_s += takes_s / 2
        if self.is_away:
            raise LedgerUnavailable("away", hint="wait")
        told = self.elapsed_s + self.ahead_s
        self.elapsed_s += takes_s / 2
        return told


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Server:
    """A server beside a machine whose time passes only by the server's answers, and by the test's hand."""
    made = Server()
    monkeypatch.setattr(clocks, "elapsed_s", lambda: made.elapsed_s)
    return made


def test_elapsed_time_is_not_set_back_with_the_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    before = elapsed_s()
    monkeypatch.setattr(time, "time", lambda: 0.0)
    assert 0.0 <= elapsed_s() - before < 60.0


def test_the_server_is_asked_once_for_many_readings(server: Server) -> None:
    clock = ServerClock(server.ask)
    for _ in range(100):
        assert clock() == pytest.approx(server.elapsed_s + AHEAD_S, abs=0.001)
        server.elapsed_s += 0.5
    assert server.asked == 1


def test_a_clock_that_is_set_at_the_server_is_followed_within_a_minute(server: Server) -> None:
    clock = ServerClock(server.ask)
    clock()
    server.ahead_s += 3600
    server.elapsed_s += GOOD_FOR_S
    assert clock() == pytest.approx(server.elapsed_s + AHEAD_S + 3600, abs=0.001)


def test_an_answer_that_took_long_says_little_and_is_not_taken_over_a_better_one(server: Server) -> None:
    clock = ServerClock(server.ask)
    clock()
    server.ahead_s += 1
    server.elapsed_s += GOOD_FOR_S
    server.round_trips_s = iter([20.0, 0.002])  # as of a process that was stopped while it asked
    assert clock() == pytest.approx(server.elapsed_s + AHEAD_S, abs=0.001)
    server.elapsed_s += clocks.TRIED_AGAIN_S
    assert clock() == pytest.approx(server.elapsed_s + AHEAD_S + 1, abs=0.001)


def test_of_first_answers_that_took_long_the_quickest_counts(server: Server) -> None:
    server.round_trips_s = iter([20.0, 3.0, 0.01])
    assert ServerClock(server.ask)() == pytest.approx(server.elapsed_s + AHEAD_S, abs=0.001)
    assert server.asked == 3


def test_time_passes_while_the_server_is_away(server: Server) -> None:
    clock = ServerClock(server.ask)
    clock()
    server.is_away = True
    server.elapsed_s += GOOD_FOR_S * 10
    for _ in range(10):
        assert clock() == pytest.approx(server.elapsed_s + AHEAD_S, abs=0.01)
    assert server.asked == 2, "and it is not asked at each reading"


def test_a_server_that_never_answered_gives_no_time(server: Server) -> None:
    server.is_away = True
    clock = ServerClock(server.ask)
    for _ in range(2):
        with pytest.raises(LedgerUnavailable):
            clock()
    server.is_away = False
    assert clock() == pytest.approx(server.elapsed_s + AHEAD_S, abs=0.001)
