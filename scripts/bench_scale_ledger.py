"""The scale benchmark's first part: a ledger alone, small and large, by 1 to 8 processes.

Both ledgers of an engine stand side by side and take turns. In a pass the same keys, spread over all others,
are put as new, claimed and settled; before the next they are taken out of the table, which so keeps its size.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field
from functools import reduce
from pathlib import Path
from typing import Any

import psycopg
import sqlalchemy as sa

from scripts.bench_peers import RULE, BenchError, usage
from scripts.bench_scale_crew import ANSWER_BOUND_S, BATCH, Crew, Done, Order, digest, do
from scripts.local_servers import PostgreSQL
from webhook.database import connect
from webhook.ledger import Ledger
from webhook.tables import ENTRIES

FILL_CACHE_KIB, REMOVE_BATCH = 1_000_000, 500
ONE, MANY, SETTLE = "put, 1 in a call", f"put, {BATCH} in a call", f"claim + settle, {BATCH} at once"
WORK = (ONE, MANY, SETTLE)
Meter = Callable[[], tuple[float, int]]


@dataclass(frozen=True)
class Sizes:
    """How much is measured."""

    rows: Sequence[int]
    """Of the small and the large table."""
    worked: int
    """Entries of them that are worked on."""
    processes: Sequence[int]
    rounds: int
    seconds: float
    """At least, for each kind of work in a round; putting one by one ends after this time."""


@dataclass(frozen=True)
class Phase:
    """Work of one kind by some processes."""

    entries: int = 0
    seconds: float = 0.0
    cpu_s: float = 0.0
    server_cpu_s: float = 0.0
    wal_bytes: int = 0
    """What PostgreSQL wrote into its write-ahead log."""
    refused: int = 0
    """Calls that found the ledger busy for too long, and were made again."""

    def __add__(self, other: Phase) -> Phase:
        return Phase(
            entries=self.entries + other.entries,
            seconds=self.seconds + other.seconds,
            cpu_s=self.cpu_s + other.cpu_s,
            server_cpu_s=self.server_cpu_s + other.server_cpu_s,
            wal_bytes=self.wal_bytes + other.wal_bytes,
            refused=self.refused + other.refused,
        )

    @property
    def per_s(self) -> float:
        """Entries a second."""
        return self.entries / self.seconds


@dataclass
class Measured:
    """Of one engine."""

    version: str
    phases: dict[tuple[str, int, int], list[Phase]] = field(default_factory=dict)
    """(kind of work, processes, rows) → one for each round."""
    bytes_filled: int = 0
    """On disk for one entry of the large table, freshly filled."""
    bytes_worked: int = 0
    """The same after all rounds."""

    def rates(self, work: str, processes: int, rows: int) -> list[float]:
        """Entries a second, one for each round."""
        return [phase.per_s for phase in self.phases[work, processes, rows]]

    def total(self, work: str, processes: int, rows: int) -> Phase:
        """All rounds as one."""
        return reduce(Phase.__add__, self.phases[work, processes, rows])

    def best(self, work: str, rows: int) -> tuple[int, float]:
        """With how many processes it was fastest in the median, and how fast."""
        of = {count: statistics.median(self.rates(work, count, rows)) for _, count, _ in self.phases}
        return max(of.items(), key=lambda each: each[1])


# ── the ledgers ──────────────────────────────────────────────────────────────────────────────────────


def _key(number: int) -> str:
    """Keys of neighbouring numbers are far apart."""
    folder = digest(str(number))
    return f"{folder[:2]}/{folder[2:12]}/object-{number:09}.bin"


def fill(url: str, rows: int, worked: int) -> list[str]:
    """Makes a ledger of so many settled entries; gives the keys of those to be worked on."""
    keys = [_key(number) for number in range(worked)]
    with closing(Ledger.open(url)) as ledger:
        for given in (keys, None):
            do(Order(url, 0.0, keys=given), ledger)
        settled = _row(ledger, keys[0])
    copies = (_like(settled, _key(number)) for number in range(worked, rows))
    (_copy_in if url.startswith("postgresql") else _insert)(url, copies)
    return keys


def _row(ledger: Ledger, key: str) -> dict[str, Any]:
    with ledger.reading() as connection:
        return dict(connection.execute(ENTRIES.select().where(ENTRIES.c.key == key)).mappings().one())


def _like(settled: Mapping[str, Any], key: str) -> dict[str, Any]:
    etag = digest(key)
    own = {"key": key, "recent_events": f"{etag[:16]} ", "source_etag": etag, "target_etag": etag}
    return {**settled, **own, "told_etags": f"{etag} "}


def _remove(url: str, keys: Sequence[str]) -> None:
    engine = connect(url)
    for first in range(0, len(keys), REMOVE_BATCH):
        some = ENTRIES.c.key.in_(keys[first : first + REMOVE_BATCH])
        with engine.begin() as connection:
            connection.execute(sa.delete(ENTRIES).where(ENTRIES.c.rule == RULE, some))
    engine.dispose()


def _insert(url: str, rows: Iterator[dict[str, Any]]) -> None:
    engine = connect(url)
    with engine.connect() as connection:
        insert = str(sa.insert(ENTRIES).compile(engine))
        driver: Any = connection.connection.driver_connection
        for faster in ("journal_mode = OFF", "synchronous = OFF", f"cache_size = -{FILL_CACHE_KIB}"):
            driver.execute(f"PRAGMA {faster}")
        driver.execute("BEGIN")
        driver.executemany(insert, rows)
        driver.execute("COMMIT")
    engine.dispose()


def _copy_in(url: str, rows: Iterator[dict[str, Any]]) -> None:
    names = [column.name for column in ENTRIES.columns]
    into = f"COPY entries ({', '.join(names)}) FROM STDIN"
    with psycopg.connect(url) as connection, connection.cursor().copy(into) as copy:
        for row in rows:
            copy.write_row([row[name] for name in names])
    with psycopg.connect(url, autocommit=True) as connection:  # as the server does by itself, later
        connection.execute("VACUUM ANALYZE entries")
        connection.execute("CHECKPOINT")


def _bytes_on_disk(url: str) -> int:
    """Of the entries with their indexes; of SQLite, the file without what is not in it yet."""
    with closing(Ledger.open(url)) as ledger, ledger.reading() as connection:
        if ledger.dialect == "postgresql":
            size = connection.exec_driver_sql("SELECT pg_total_relation_size('entries')").scalar_one()
            return int(size)
        pages = connection.exec_driver_sql("PRAGMA page_count").scalar_one()
        return int(pages * connection.exec_driver_sql("PRAGMA page_size").scalar_one())


# ── measuring ────────────────────────────────────────────────────────────────────────────────────────


def measure_ledgers(folder: Path, sizes: Sizes, say: Callable[[str], object]) -> dict[str, Measured]:
    """Engine → what was measured."""
    with ExitStack() as running:
        crew = running.enter_context(Crew(max(sizes.processes)))
        server = running.enter_context(PostgreSQL(folder / "postgresql"))
        meter = running.enter_context(_metering(server))
        urls = {rows: server.create_database(f"ledger_{rows}") for rows in sizes.rows}
        of_postgresql = _measure("PostgreSQL", urls, sizes, crew, say, meter)
        urls = {rows: f"sqlite:///{folder}/ledger-{rows}.db" for rows in sizes.rows}
        of_sqlite = _measure("SQLite", urls, sizes, crew, say, lambda: (0.0, 0))
    return {"PostgreSQL": of_postgresql, "SQLite": of_sqlite}


@contextmanager
def _metering(server: PostgreSQL) -> Iterator[Meter]:
    """Gives what tells the server's processor seconds and WAL bytes so far."""
    position = "SELECT pg_wal_lsn_diff(pg_current_wal_insert_lsn(), '0/0')::bigint"
    with psycopg.connect(server.url, autocommit=True) as connection:

        def read() -> tuple[float, int]:
            (written,) = connection.execute(position).fetchone() or (0,)
            return usage(server.pid)[0], int(written)

        yield read


def _measure(
    name: str,
    urls: Mapping[int, str],
    sizes: Sizes,
    crew: Crew,
    say: Callable[[str], object],
    meter: Meter,
) -> Measured:
    sides: dict[int, _Side] = {}
    for rows, url in urls.items():
        say(f"{name}: filling {rows:,} rows")
        sides[rows] = _Side(url, rows, fill(url, rows, sizes.worked), crew, meter)
    large = max(urls)
    measured = Measured(_version(urls[large]))
    measured.bytes_filled = _bytes_on_disk(urls[large]) // large
    for number in range(sizes.rounds):
        for processes in sizes.processes:
            for rows in list(urls)[:: 1 if number % 2 == 0 else -1]:
                phases = sides[rows].round(processes, seconds=sizes.seconds)
                rates = ", ".join(f"{work} {phase.per_s:,.0f}/s" for work, phase in phases.items())
                say(f"{name}, {rows:,} rows, {processes} processes: {rates}")
                for work, phase in phases.items():
                    measured.phases.setdefault((work, processes, rows), []).append(phase)
    measured.bytes_worked = _bytes_on_disk(urls[large]) // large
    return measured


def _version(url: str) -> str:
    with closing(Ledger.open(url)) as ledger, ledger.reading() as connection:
        asked = "SHOW server_version" if ledger.dialect == "postgresql" else "SELECT sqlite_version()"
        return str(connection.exec_driver_sql(asked).scalar_one())


@dataclass
class _Side:
    """One ledger, and the keys that are worked on."""

    url: str
    rows: int
    keys: Sequence[str]
    crew: Crew
    meter: Meter

    def round(self, processes: int, *, seconds: float) -> dict[str, Phase]:
        """All kinds of work: the first one once, the others in passes until each took `seconds`."""
        shares = [self.keys[first::processes] for first in range(processes)]
        _remove(self.url, self.keys)
        self._settle(processes)  # nothing: all have a connection then
        one = self._put(shares, batch=1, seconds=seconds)
        self._settle(processes)
        many = settle = Phase()
        while many.seconds < seconds or settle.seconds < seconds:
            _remove(self.url, self.keys)
            many += self._put(shares, batch=BATCH)
            settle += self._settle(processes)
        self._check()
        if settle.entries != many.entries:
            raise BenchError(f"{many.entries} entries were put and {settle.entries} settled")
        return dict(zip(WORK, (one, many, settle), strict=True))

    def _put(self, shares: Sequence[Sequence[str]], *, batch: int, seconds: float = ANSWER_BOUND_S) -> Phase:
        return self._phase(lambda: self.crew.put(self.url, shares, batch=batch, seconds=seconds))

    def _settle(self, processes: int) -> Phase:
        return self._phase(lambda: self.crew.settle(self.url, processes))

    def _phase(self, work: Callable[[], list[Done]]) -> Phase:
        cpu_before_s, wal_before = self.meter()
        done = work()
        cpu_s, wal_bytes = self.meter()
        return Phase(
            entries=sum(each.entries for each in done),
            seconds=max(each.ended_at for each in done) - min(each.began_at for each in done),
            cpu_s=sum(each.cpu_s for each in done),
            server_cpu_s=cpu_s - cpu_before_s,
            wal_bytes=wal_bytes - wal_before,
            refused=sum(each.refused for each in done),
        )

    def _check(self) -> None:
        with closing(Ledger.open(self.url)) as ledger:
            counts = {state: sum(lanes.values()) for state, lanes in ledger.counts().items()}
        if counts != {**dict.fromkeys(counts, 0), "settled": self.rows}:
            raise BenchError(f"not {self.rows} settled entries, but {counts}")
