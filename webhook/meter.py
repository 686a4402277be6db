"""What a process has counted and not put on record yet.

Counters of all processes are added up in the ledger (`Ledger.keep_counts`), so any of them answers for all.
A process that is killed takes what it counted in its last seconds with it.
"""

from __future__ import annotations

import bisect
import json
import threading
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence

BUCKETS_S = (
    *(0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0),
    *(2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 1800.0, 3600.0),
)
"""Upper ends of a histogram's buckets; one more holds what is longer."""
SUM = "sum"
BUCKET = "le"
EVENTS = ("accepted", "ignored", "quarantined")
"""What may become of a record of a notification."""
BY_MINUTE = frozenset(("retries", "failures"))
"""Counted for each minute, too: for charts of the last hour."""
ALL_TIME = 0
"""In the place of a minute."""

Labels = tuple[tuple[str, str], ...]
"""(name, value) in the order of the names."""
Counts = Mapping[tuple[str, Labels, int], float]
"""(name, labels, minute since 1970 or ALL_TIME) → how much was added."""


class Meter:
    """Counters and histograms. Thread-safe; counting takes about a microsecond.

    `clock` gives seconds since 1970, and says which minute it is.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._added: defaultdict[tuple[str, Labels, int], float] = defaultdict(float)

    def count(self, name: str, by: float = 1, **labels: str) -> None:
        """Adds to a counter."""
        key = tuple(sorted(labels.items()))
        minutes = (ALL_TIME, int(self._clock() // 60)) if name in BY_MINUTE else (ALL_TIME,)
        with self._lock:
            for minute in minutes:
                self._added[name, key, minute] += by

    def observe(self, name: str, seconds: float, **labels: str) -> None:
        """Adds one duration to a histogram: to its bucket, and to its sum."""
        bucket = bucket_name(bisect.bisect_left(BUCKETS_S, seconds))
        key = tuple(sorted(labels.items()))
        with self._lock:
            self._added[name, ((BUCKET, bucket), *key), ALL_TIME] += 1
            self._added[name, ((BUCKET, SUM), *key), ALL_TIME] += seconds

    def events(self, **outcomes: int) -> None:
        """Counts records of notifications by what became of them: one of EVENTS."""
        for outcome, number in outcomes.items():
            if number:
                self.count("events", number, outcome=outcome)

    def take(self) -> Counts:
        """What was counted since the last time; it is the caller's from now on."""
        with self._lock:
            taken, self._added = self._added, defaultdict(float)
        return taken

    def give_back(self, counts: Counts) -> None:
        """What could not be put on record: it is taken again the next time."""
        with self._lock:
            for key, value in counts.items():
                self._added[key] += value


def bucket_name(index: int) -> str:
    """The upper end of a bucket, as Prometheus writes it."""
    return "+Inf" if index == len(BUCKETS_S) else repr(BUCKETS_S[index])


def rows(counts: Counts) -> Sequence[dict[str, object]]:
    """Rows of the table `counts`, in the order of its key: so all processes lock them in the same order."""
    found = [
        {"name": name, "labels": json.dumps(dict(labels), sort_keys=True), "minute": minute, "value": value}
        for (name, labels, minute), value in counts.items()
    ]
    return sorted(found, key=lambda row: (row["name"], row["labels"], row["minute"]))


def labels_of(text: str) -> Labels:
    """The labels of such a row."""
    return tuple(sorted(json.loads(text).items()))
