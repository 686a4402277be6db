"""Which faults are on when: two at once, of every kind once before any comes again."""

from __future__ import annotations

import random
import threading
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field

from tests.lab.deck import Card, NotNow

PLAYERS = 2
PAUSE_S = (0.5, 3.0)
LOOK_S = 0.2


@dataclass(frozen=True)
class Played:
    """A fault that was on, in seconds since 1970."""

    name: str
    began_at: float
    ended_at: float


@dataclass
class Schedule:
    """Plays cards until it is told to stop; which, in what order and for how long, the seed decides.

    As a context, no fault is on at its end.
    """

    cards: Sequence[Card]
    seed: int
    longest_s: float
    players: int = PLAYERS
    played: list[Played] = field(default_factory=list)
    troubles: list[str] = field(default_factory=list)
    """What went wrong with a fault itself: a process that did not stop, a server that did not come back."""
    _waiting: list[Card] = field(default_factory=list)
    _occupied: Counter[str] = field(default_factory=Counter)
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _is_over: threading.Event = field(default_factory=threading.Event)

    def __enter__(self) -> Schedule:
        self._shuffles = random.Random(f"{self.seed} order")
        self._threads = [
            threading.Thread(target=self._play, args=(random.Random(f"{self.seed} player {number}"),))
            for number in range(self.players)
        ]
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._is_over.set()
        for thread in self._threads:
            thread.join()

    def _play(self, chance: random.Random) -> None:
        while not self._is_over.wait(chance.uniform(*PAUSE_S)):
            card = self._take()
            if card is None:
                continue
            try:
                self._one(card, chance.uniform(self.longest_s / 4, self.longest_s))
            finally:
                with self._lock:
                    self._occupied.subtract(card.occupies)

    def _one(self, card: Card, lasts_s: float) -> None:
        began_at = time.time()
        try:
            with ExitStack() as on:
                on.enter_context(card.doing())
                self._is_over.wait(lasts_s)
        except NotNow:
            with self._lock:
                self._waiting.append(card)
            return
        except Exception as error:  # noqa: BLE001 - the run goes on, and has failed
            self.troubles.append(f"{card.name}: {type(error).__name__}: {error}")
        self.played.append(Played(card.name, began_at, time.time()))

    def _take(self) -> Card | None:
        """The next card that strikes nothing that is struck already."""
        with self._lock:
            if not self._waiting:
                self._waiting = list(self.cards)
                self._shuffles.shuffle(self._waiting)
            for card in self._waiting:
                if not any(self._occupied[each] > 0 for each in card.occupies):
                    self._waiting.remove(card)
                    self._occupied.update(card.occupies)
                    return card
        return None
