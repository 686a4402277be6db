"""Moves a ledger into another database: from the SQLite file into PostgreSQL, or back.

Stop the service first. All that is on record is copied: entries with their attempts, rules with their
breakers, sweeps, counts, quarantine. Then every row of both ledgers is read and compared. No service starts
on the new ledger before all of it is there and equal. The old one stays as it was. Interrupted or killed, run
this again: it goes on where it was.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import logging
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import zip_longest
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import sqlalchemy as sa
from rich.progress import BarColumn, TextColumn

from scripts.command_line import (
    Code,
    Failure,
    Interrupted,
    Parser,
    Screen,
    WrongUse,
    count,
    is_text,
    start,
    variables,
)
from scripts.ledger_sides import (
    MOVED,
    Row,
    Side,
    finish,
    hold_still,
    open_new,
    open_old,
    refuse_running,
    turn,
)
from webhook.database import HALF_MOVED, parse_url
from webhook.errors import SettingsError
from webhook.tables import ENTRIES

Seen = Callable[[str, sa.Table, int], None]
"""Hears what is done, with which table, and of how many more rows."""

COUNTED_BY = {ENTRIES: ("rule", "state", "lane")}
PAGE_ROWS = 2000
LINE_S = 10.0
"""Between two lines of progress where there is no terminal."""
DEFAULT_URL = "sqlite:///data/replicator.db"

EXAMPLES = """
  python scripts/move_ledger.py                 into the PostgreSQL that DATABASE_URL in .env names by now
  python scripts/move_ledger.py --from sqlite:////data/replicator.db
  python scripts/move_ledger.py --to sqlite:///data/back.db    and back, with OLD_DATABASE_URL in .env
"""
SETTINGS = "DATABASE_URL, OLD_DATABASE_URL, or either with _FILE: no URL with a password on a command line"
DONE = "all is in the new ledger, and every row was found equal"
FAILED = "rows differ, or a ledger is in use or cannot be used: what to do is said"


def read_options(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The options. Exits with 2 where they cannot be used."""
    what = (__doc__ or "").strip()
    parser = Parser("move_ledger", what, examples=EXAMPLES, settings=SETTINGS, done=DONE, failed=FAILED)
    add = parser.add_argument
    add("--from", dest="old", metavar="URL", help=f"default: OLD_DATABASE_URL, else {DEFAULT_URL}")
    add("--to", dest="new", metavar="URL", help="an empty database; default: DATABASE_URL")
    add("--json", action="store_true", help="results as JSON, one object a line")
    options, unknown = parser.parse_known_args(arguments)
    if unknown:  # not repeated: there may be a password in it
        parser.error("there are no other options than --from, --to and --json")
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    """Gives the exit code. Raises: WrongUse, Failure, Interrupted."""
    options = read_options(arguments)
    read = variables()
    logging.getLogger("sqlalchemy.pool").setLevel(logging.CRITICAL)  # it tells of lost connections at length
    old = options.old or read.secret("OLD_DATABASE_URL", DEFAULT_URL)
    new = options.new or read.secret("DATABASE_URL", DEFAULT_URL)
    if read.problems:
        raise SettingsError(read.problems)
    if _database(old, "the old ledger's URL") == _database(new, "the new ledger's URL"):
        raise WrongUse("the old and the new ledger are one: give --to, or set DATABASE_URL to the new one.")
    try:
        return move(old, new, Screen(as_json=options.json))
    except KeyboardInterrupt:
        raise Interrupted("What was copied stays; run this again, and it goes on.") from None


def _database(address: str, name: str) -> sa.URL:
    try:
        url = parse_url(address)
    except SettingsError:
        raise WrongUse(f"{name} must be like {DEFAULT_URL} or postgresql://user@host/name.") from None
    is_file = url.get_backend_name() == "sqlite"
    return url.set(database=str(Path(url.database or "").resolve())) if is_file else url


def move(old_url: str, new_url: str, screen: Screen) -> int:
    """Copies, compares, and lets services start on the new ledger only where both are equal."""
    began = time.monotonic()
    with contextlib.ExitStack() as stack:
        old = open_old(old_url, stack)
        hold = hold_still(old, stack)
        refuse_running(old)
        release = old.version() or ""
        new = open_new(new_url, release, stack)
        with watched(screen, old) as seen:
            written = sum(copy(old, new, table, release, seen) for table in MOVED)
            found = [compare(old, new, table, seen) for table in MOVED]
        with old.asked():
            hold.exec_driver_sql("SELECT 1")  # it held all the time
        if all(each.are_equal for each in found):
            finish(new, release)
    return report(found, screen, written=written, seconds=time.monotonic() - began, place=new.place)


# ── copying and comparing ────────────────────────────────────────────────────────────────────────────────


def pages(side: Side, table: sa.Table) -> Iterator[list[Row]]:
    """All rows in order; only the last page has fewer than PAGE_ROWS."""
    after = None
    while True:
        rows = side.read(table, after=after, limit=PAGE_ROWS)
        yield rows
        if len(rows) < PAGE_ROWS:
            return
        after = _key_of(table, rows[-1])


def _key_of(table: sa.Table, row: Row) -> Row:
    return tuple(value for value, column in zip(row, table.columns, strict=True) if column.primary_key)


def copy(old: Side, new: Side, table: sa.Table, release: str, seen: Seen) -> int:
    """Makes the new ledger's table equal to the old one's; gives how many rows it wrote.

    A page is written whole or not at all. One that is there, as an earlier run left it, is not.
    """
    after, written = None, 0
    for rows in pages(old, table):
        upto = _key_of(table, rows[-1]) if len(rows) == PAGE_ROWS else None
        with _naming_unfit(table, rows):
            if new.read(table, after=after, upto=upto, limit=PAGE_ROWS + 1) != rows:
                with new.asked(), new.engine.begin() as connection:
                    turn(connection, release + HALF_MOVED, release + HALF_MOVED)
                    connection.execute(sa.delete(table).where(*new.within(table, after, upto)))
                    _insert(connection, table, rows)
                written += len(rows)
        after = upto
        seen("copying", table, len(rows))
    return written


def _insert(connection: sa.Connection, table: sa.Table, rows: Sequence[Row]) -> None:
    names = [column.name for column in table.columns]
    if connection.dialect.name == "sqlite":
        named = [dict(zip(names, row, strict=True)) for row in rows]
        connection.execute(sa.insert(table), named) if named else None
        return
    driver: Any = connection.connection.driver_connection
    columns = ", ".join(f'"{name}"' for name in names)
    with driver.cursor() as cursor, cursor.copy(f"COPY {table.name} ({columns}) FROM STDIN") as copying:
        for row in rows:
            copying.write_row(row)


@contextlib.contextmanager
def _naming_unfit(table: sa.Table, rows: Sequence[Row]) -> Iterator[None]:
    """Says which row has text that the new database cannot hold, where that is why a page was refused."""
    try:
        yield
    except (UnicodeEncodeError, Failure):
        for row in rows:
            if not all(map(_is_fit, row)):
                key = "/".join(map(str, _key_of(table, row)))
                what = f"the row {key} of {table.name}: it has text that is not UTF-8, or a NUL"
                raise Failure(
                    f"The new ledger cannot hold {what}. Mend or delete it in the old one."
                ) from None
        raise


def _is_fit(value: object) -> bool:
    return not isinstance(value, str) or (is_text(value) and "\0" not in value)


@dataclass(frozen=True)
class Content:
    """What a ledger has of a table."""

    rows: Counter[Row] = field(default_factory=Counter)
    """Their number, by what they are counted by."""
    digest: Any = field(default_factory=hashlib.sha256)

    def add(self, table: sa.Table, rows: Sequence[Row]) -> None:
        """The next rows. They are digested as Python writes them, the same from whichever database."""
        names = [column.name for column in table.columns]
        places = [names.index(name) for name in COUNTED_BY.get(table, ())]
        self.rows.update(tuple(row[place] for place in places) for row in rows)
        self.digest.update("".join(f"{row!r}\n" for row in rows).encode())


@dataclass
class Compared:
    """A table in both ledgers."""

    table: sa.Table
    old: Content = field(default_factory=Content)
    new: Content = field(default_factory=Content)
    first_difference: Row | None = None
    """The key of the first row that is not the same in both."""

    @property
    def are_equal(self) -> bool:
        """Whether every row is."""
        return self.old.rows == self.new.rows and self.old.digest.digest() == self.new.digest.digest()

    def counts(self) -> Iterator[tuple[Row, int, int]]:
        """What is counted by, and how many rows the old and the new ledger have of it."""
        for group in sorted({*self.old.rows, *self.new.rows}) or [()]:
            yield group, self.old.rows[group], self.new.rows[group]


def compare(old: Side, new: Side, table: sa.Table, seen: Seen) -> Compared:
    """Reads all rows of both once more."""
    found = Compared(table)
    nothing: list[Row] = []
    for ours, theirs in zip_longest(pages(old, table), pages(new, table), fillvalue=nothing):
        found.old.add(table, ours)
        found.new.add(table, theirs)
        if found.first_difference is None and ours != theirs:
            pair = next((one, other) for one, other in zip_longest(ours, theirs) if one != other)
            found.first_difference = min(_key_of(table, row) for row in pair if row is not None)
        seen("comparing", table, len(ours))
    return found


# ── what is shown ────────────────────────────────────────────────────────────────────────────────────────


@contextlib.contextmanager
def watched(screen: Screen, old: Side) -> Iterator[Seen]:
    """Shows how far it is: a bar on a terminal, a line now and then elsewhere."""
    with old.asked(), old.engine.connect() as connection:
        sizes = [sa.select(sa.func.count()).select_from(table) for table in MOVED]
        total = 2 * sum(connection.execute(size).scalar_one() for size in sizes)
    began = line_at = time.monotonic()
    done = 0
    with screen.progress(BarColumn(bar_width=24), TextColumn("{task.description}")) as bar:
        task = bar.add_task("copying", total=total)

        def seen(what: str, table: sa.Table, rows: int) -> None:
            nonlocal done, line_at
            done, now = done + rows, time.monotonic()
            share, rate = done / max(total, 1), done / max(now - began, 0.001)
            text = f"{what} {table.name} · {share:.0%} · {rate:,.0f} rows/s"
            bar.update(task, description=text, completed=done)
            if bar.disable and now - line_at > LINE_S:
                line_at = now
                screen.note(text)

        yield seen


def report(found: Sequence[Compared], screen: Screen, *, written: int, seconds: float, place: str) -> int:
    """What both ledgers have, and what to do next; gives the exit code. Raises: Failure."""
    screen.line(f"{'old ledger':>12}  {'new ledger':>12}")
    total = 0
    for each in found:
        for group, old, new in each.counts():
            named = dict(zip(COUNTED_BY.get(each.table, ()), group, strict=bool(group)))
            line = f"{old:>12,}  {new:>12,}  {' '.join((each.table.name, *group))}"
            screen.result(line, {"table": each.table.name, **named, "old": old, "new": new})
            total += old
    differing = {each.table.name: each.first_difference for each in found if not each.are_equal}
    facts = {"equal": not differing, "differing": differing, "rows": total, "copied": written}
    line = f"{count(total, 'row')} compared, {written:,} copied in this run, {seconds:,.0f} s."
    screen.result(line, {**facts, "seconds": round(seconds, 1)})
    if differing:
        where = "; ".join(
            f"{name}, first at {'/'.join(map(str, key or ()))}" for name, key in differing.items()
        )
        raise Failure(f"The ledgers differ in {where}. Run this again: it copies what differs anew.")
    screen.line("Every row is the same in both.")
    screen.note(f"Next: set DATABASE_URL to the new ledger, {place}, and start the service.")
    screen.note("The old ledger is as it was. Start nothing on it any more.")
    return Code.DONE


if __name__ == "__main__":
    start(main)
