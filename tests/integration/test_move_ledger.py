"""scripts/move_ledger.py, between real databases, with a kill in the middle."""

from __future__ import annotations

import itertools
import json
import os
import signal
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from alembic import command
from alembic.config import Config

from scripts import ledger_sides, move_ledger
from scripts.command_line import Code, Failure, WrongUse
from scripts.local_servers import PostgreSQL
from tests.contract.steps import (
    Clock,
    ask,
    bring_to,
    deferred,
    held,
    missed,
    removal,
    retried,
    settled,
    take,
    take_one,
)
from tests.integration.test_scripts import ODD_KEYS, Shell, until
from webhook.database import MIGRATIONS, connect, parse_url
from webhook.deletes import Deletes
from webhook.entries import BACKFILL, Misfit
from webhook.errors import LedgerVersionError
from webhook.fleet import Fleet
from webhook.ledger import Ledger
from webhook.pauses import Pauses
from webhook.processes import own_name
from webhook.progress import Progress
from webhook.settings import DeleteSettings
from webhook.sweeps import Sweeps
from webhook.tables import COUNTS, ENTRIES, FINDINGS, METADATA, SLOTS

PASSWORD = "pa55-w0rd"
SHAPES = {"default": "photos → filebase", "other.photos": "all of it"}
MANY = 3 * move_ledger.PAGE_ROWS
"""Entries of a ledger that is moved in some pages."""
DELETES = DeleteSettings(grace_s=60, breaker_max=1000, breaker_share=0.1)
_numbers = itertools.count(1)


@pytest.fixture
def old_url(tmp_path: Path) -> str:
    """Where the old ledger is to be."""
    return f"sqlite:///{tmp_path}/old.db"


@pytest.fixture
def new_url(postgresql: PostgreSQL) -> str:
    """An empty database."""
    return postgresql.create_database(f"moved_{next(_numbers)}")


@pytest.fixture(params=["sqlite to postgresql", "postgresql to sqlite"])
def both_ways(request: pytest.FixtureRequest, old_url: str, new_url: str) -> tuple[str, str]:
    """Two empty databases: from, to."""
    return (old_url, new_url) if request.param == "sqlite to postgresql" else (new_url, old_url)


@pytest.fixture(autouse=True)
def variables(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> dict[str, str]:
    """All that the script sees of an environment, within this process; tests add to it."""
    monkeypatch.chdir(tmp_path)
    values = {"HOME": str(tmp_path), "PATH": os.environ["PATH"]}
    monkeypatch.setattr("os.environ", values)
    return values


@pytest.fixture
def shell(tmp_path: Path, old_url: str, new_url: str) -> Iterator[Shell]:
    """Where the script is run as a program, with both URLs in its environment."""
    variables = {"OLD_DATABASE_URL": old_url, "DATABASE_URL": new_url}
    yield Shell(tmp_path, variables)


@contextmanager
def opened(url: str, clock: Clock | None = None) -> Iterator[Ledger]:
    with closing(Ledger(connect(url), clock=clock or Clock())) as ledger:
        yield ledger


def move(old: str, new: str) -> int:
    return move_ledger.main(["--from", old, "--to", new])


@contextmanager
def session(url: str) -> Iterator[sa.Connection]:
    """A connection that is none of the service's, also to a half-moved ledger."""
    engine = sa.create_engine(parse_url(url))
    try:
        with engine.begin() as connection:
            yield connection
    finally:
        engine.dispose()


def rows(url: str, table: sa.Table) -> list[dict[str, Any]]:
    with session(url) as connection:
        found = [dict(row) for row in connection.execute(sa.select(table)).mappings()]
    return sorted(found, key=lambda row: [row[column.name] for column in table.primary_key])


def run(url: str, *statements: str) -> None:
    with session(url) as connection:
        for statement in statements:
            connection.execute(sa.text(statement))


def some(ledger: Ledger, number: int) -> None:
    """Entries of which nobody did anything yet."""
    ledger.put([ask(f"{n:06}", n) for n in range(number)])


# ── a ledger with something of everything ────────────────────────────────────────────────────────────────


def fill(ledger: Ledger) -> None:
    """What a service leaves behind that was killed."""
    sweeps = Sweeps(ledger)
    sweeps.register(SHAPES)
    for rule in SHAPES:
        sweeps.end(sweeps.prove_from(sweeps.request(rule, cause="start"), ledger.clock() - 600))
    sweeps.advance(sweeps.request("default", cause="interval"), "m/ö", {"compared": 7, "put": 3})
    sweeps.take_lease(worker="w", lease_s=60, is_dead=lambda _: False)
    ledger.run(sa.insert(SLOTS).values(name="filebase requests", given_until=ledger.clock()))
    ledger.run(sa.insert(COUNTS).values(name="events", labels='{"outcome": "accepted"}', minute=0, value=7.5))
    ledger.run(sa.insert(FINDINGS).values(target="filebase", endpoint="e", found_at=1.5, findings='{"a": 1}'))
    Pauses(ledger).pause("other.photos")
    ledger.put([], [Misfit(record_id="a", reason="no key", raw='{"\\u0000": 1}'), _misfit("b"), _misfit("a")])
    Deletes(ledger, DELETES).trip("other.photos", "too many")
    Fleet(ledger).sign("host:1:2:boot/3", threads=16, limits={"filebase": 8})
    _fill_entries(ledger)


def _misfit(record_id: str) -> Misfit:
    return Misfit(record_id=record_id, reason="no key", raw="{}")


def _fill_entries(ledger: Ledger) -> None:
    for number, state in enumerate(("settled", "failed", "held", "running")):
        bring_to(ledger, state, ask(state, number, rule="other.photos", event_at=ledger.clock() - number))
    ledger.put([ask(key, number) for number, key in enumerate(ODD_KEYS)])
    ledger.put([ask(f"b{number}") for number in range(5)], lane=BACKFILL)
    ledger.put([missed("told late", at=ledger.clock())], lane=BACKFILL)
    claims = {claim.key: claim for claim in take(ledger, 6)}
    first, second, third, fourth, *_ = claims.values()
    ledger.finish([settled(first, size=5, source_etag="a", target_etag="b", cid="Qm", lost=("tag:x",))])
    ledger.finish([retried(second)])
    ledger.note_upload(third, '{"id": "upload-1"}')
    ledger.put([removal("gone", 900), removal("going", 901), removal("held back", 902)])
    ledger.finish([deferred(claim) for key in ("gone", "held back") if (claim := take_one(ledger, key))])
    if claim := take_one(ledger, "held back"):
        ledger.finish([held(claim)])
    ledger.put([ask(fourth.key, 500)])  # once more, while it runs


def fill_at(url: str) -> None:
    with opened(url) as ledger:
        fill(ledger)


def as_moved(name: str, row: dict[str, Any]) -> dict[str, Any]:
    """What a row of the old ledger becomes: the service that was killed runs no more."""
    if name == "workers":
        return row | {"threads": 0}
    if row.get("state") == "running":
        return row | {"state": "waiting", "due_at": row["first_seen_at"], "worker": None}
    return row


# ── what is moved ────────────────────────────────────────────────────────────────────────────────────────


def test_of_every_table_it_is_said_whether_it_is_moved() -> None:
    said = [*ledger_sides.MOVED, *ledger_sides.NOT_MOVED]
    assert sorted(table.name for table in said) == sorted(METADATA.tables)


def test_every_row_is_moved_as_it_was(
    both_ways: tuple[str, str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    old, new = both_ways
    fill_at(old)
    monkeypatch.setattr(move_ledger, "PAGE_ROWS", 3)
    before = {table.name: rows(old, table) for table in METADATA.sorted_tables}
    assert move(old, new) == Code.DONE
    assert all(before.values()), "the test has something of everything"
    for table in METADATA.sorted_tables:
        assert rows(old, table) == before[table.name], "the old ledger stays as it was"
        expected = [as_moved(table.name, row) for row in before[table.name]]
        assert rows(new, table) == ([] if table in ledger_sides.NOT_MOVED else expected)
    printed = capsys.readouterr()
    assert "Every row is the same in both.\n" in printed.out
    assert f"{sum(map(len, before.values())) - 2} rows compared" in printed.out
    assert "set DATABASE_URL to the new ledger" in printed.err


def test_an_empty_ledger_is_moved(both_ways: tuple[str, str]) -> None:
    old, new = both_ways
    with opened(old):
        pass
    assert move(old, new) == Code.DONE
    with opened(new) as ledger:
        assert Sweeps(ledger).request("default", cause="start").id == 1


@pytest.mark.parametrize("number", [2, 3, 4])
def test_pages_leave_out_no_row_and_repeat_none(
    old_url: str, new_url: str, number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(move_ledger, "PAGE_ROWS", 3)
    with opened(old_url) as ledger:
        some(ledger, number)
    assert move(old_url, new_url) == Code.DONE
    assert [row["key"] for row in rows(new_url, ENTRIES)] == [f"{n:06}" for n in range(number)]


def test_results_are_there_for_programs(
    old_url: str, new_url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with opened(old_url) as ledger:
        some(ledger, 5)
    assert move_ledger.main(["--from", old_url, "--to", new_url, "--json"]) == Code.DONE
    *counts, last = map(json.loads, capsys.readouterr().out.splitlines())
    entries = {"table": "entries", "rule": "default", "state": "waiting", "lane": "live", "old": 5, "new": 5}
    assert entries in counts
    assert (last["equal"], last["rows"], last["copied"], last["differing"]) == (True, 5, 5, {})


# ── the new ledger goes on as the old one would have ─────────────────────────────────────────────────────


@dataclass
class Moved:
    """The old ledger and the new one, at the same time of day."""

    old: Ledger
    new: Ledger
    clock: Clock


@pytest.fixture
def moved(both_ways: tuple[str, str]) -> Iterator[Moved]:
    old, new = both_ways
    fill_at(old)
    assert move(old, new) == Code.DONE
    clock = Clock()
    with opened(old, clock) as before, opened(new, clock) as after:
        yield Moved(before, after, clock)


def test_due_entries_are_claimed_in_the_same_order(both_ways: tuple[str, str]) -> None:
    old, new = both_ways
    clock = Clock()
    with opened(old, clock) as ledger:
        for number in (3, 1, 2, 5, 4):
            clock.now += 1
            ledger.put([ask(f"k{number}", number)], lane=BACKFILL if number == 1 else "live")
    assert move(old, new) == Code.DONE
    with opened(new, clock) as ledger:
        one_by_one = [claim.key for _ in range(5) for claim in take(ledger, 1)]
    assert one_by_one == ["k3", "k2", "k5", "k4", "k1"]


def test_an_event_seen_before_the_move_is_recognised(moved: Moved) -> None:
    before = moved.new.entry("default", ODD_KEYS[-1])
    assert before is not None
    moved.new.put([ask(ODD_KEYS[-1], len(ODD_KEYS) - 1)])
    assert moved.new.entry("default", ODD_KEYS[-1]) == before
    moved.new.put([ask(ODD_KEYS[-1], 77)])
    after = moved.new.entry("default", ODD_KEYS[-1])
    assert after is not None
    assert after["generation"] == before["generation"] + 1


def test_what_was_running_is_due_at_once_and_its_claim_counts_no_more(both_ways: tuple[str, str]) -> None:
    old, new = both_ways
    with opened(old) as ledger:
        claim = bring_to(ledger, "running", ask())
        assert claim is not None
        ledger.note_upload(claim, '{"id": "upload-1"}')
    assert move(old, new) == Code.DONE
    with opened(new) as ledger:
        assert ledger.finish([settled(claim)]) == 0
        (again,) = take(ledger)
    assert (again.key, again.number, again.upload) == (claim.key, claim.number + 1, '{"id": "upload-1"}')


def test_a_delete_under_way_stays_in_doubt(both_ways: tuple[str, str]) -> None:
    old, new = both_ways
    clock = Clock()
    with opened(old, clock) as ledger:
        ledger.put([removal("k", 1, event_at=clock.now - 900)])
        first = take_one(ledger)
        assert first is not None
        ledger.finish([deferred(first)])
        assert take_one(ledger) is not None
        before = Progress(ledger).recovery(["default"], {})
    assert before["default"].by_events == clock.now - 900
    assert move(old, new) == Code.DONE
    with opened(new, clock) as ledger:
        assert Progress(ledger).recovery(["default"], {}) == before
        assert [claim.key for claim in take(ledger)] == ["k"]


def test_recovery_point_and_last_hour_are_the_same(moved: Moved) -> None:
    def told(ledger: Ledger) -> tuple[Any, ...]:
        progress, proofs = Progress(ledger), Sweeps(ledger).last_proofs(SHAPES)
        assert set(proofs) == set(SHAPES)
        return progress.recovery(list(SHAPES), proofs), progress.last_hour(), progress.events_missed()

    recovery, last_hour, events_missed = told(moved.new)
    assert (recovery, last_hour, events_missed) == told(moved.old)
    assert recovery["default"].by_sweep
    assert last_hour["default"].objects


def test_sweeps_go_on_behind_their_cursor(moved: Moved) -> None:
    sweeps = Sweeps(moved.new)
    (going,) = sweeps.unfinished()
    assert (going.rule, going.cursor, going.compared) == ("default", "m/ö", 7)
    assert sweeps.take_lease(worker="another", lease_s=60, is_dead=lambda _: False)
    assert sweeps.advance(sweeps.begin(going, worker="another"), "z", {"compared": 1}).compared == 8
    known = {sweep.id for sweep in sweeps.latest()}
    assert sweeps.request("other.photos", cause="request").id > max(known)


def test_breakers_stay_tripped(moved: Moved) -> None:
    breakers = Deletes(moved.new, DELETES).breakers()
    assert breakers == Deletes(moved.old, DELETES).breakers()
    assert breakers["other.photos"].reason == "too many"
    assert breakers["default"].held == 1


def test_how_long_the_service_was_down_can_be_told(moved: Moved) -> None:
    assert Fleet(moved.new).last_seen_at() == Fleet(moved.old).last_seen_at() == moved.clock.now
    assert Fleet(moved.old).members()
    assert Fleet(moved.new).members() == []


# ── interrupted ──────────────────────────────────────────────────────────────────────────────────────────


@dataclass
class Halfway:
    """A new ledger that takes two pages of entries, and no more for half a minute."""

    url: str
    number: int = 2 * move_ledger.PAGE_ROWS

    def __enter__(self) -> Halfway:
        connect(self.url).dispose()
        wait = "BEGIN PERFORM pg_sleep(29); RETURN NEW; END"
        run(
            self.url,
            f"CREATE FUNCTION wait() RETURNS trigger LANGUAGE plpgsql AS '{wait}'",
            "CREATE TRIGGER wait BEFORE INSERT ON entries FOR EACH ROW "
            f"WHEN (NEW.key = '{self.number:06}') EXECUTE FUNCTION wait()",
        )
        return self

    def is_reached(self) -> bool:
        with session(self.url) as connection:
            waiting = "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'PgSleep' AND datname = "
            return bool(connection.execute(sa.text(f"{waiting} current_database()")).scalar())

    def __exit__(self, *_: object) -> None:
        others = "FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
        run(self.url, f"SELECT pg_terminate_backend(pid) {others}")
        until(lambda: not self.is_reached(), "the server lets go")
        run(self.url, "DROP TRIGGER wait ON entries")


def interrupt(shell: Shell, url: str, number: signal.Signals | None) -> tuple[int, str]:
    """Stops a move after its second page of entries, by a signal or by ending its session at the database;
    gives how it ended and what it said.
    """
    with Halfway(url) as halfway:
        process = shell.start("move_ledger")
        until(lambda: process.poll() is not None or halfway.is_reached(), "two pages are copied")
        assert process.poll() is None
        if number:
            process.send_signal(number)
            process.wait()
    _, said = process.communicate()
    return process.returncode, said.decode()


@pytest.fixture
def many(old_url: str) -> str:
    """An old ledger that is moved in some pages."""
    with opened(old_url) as ledger:
        some(ledger, MANY)
    return old_url


def test_after_a_kill_it_goes_on_without_copying_anew(shell: Shell, many: str, new_url: str) -> None:
    code, _ = interrupt(shell, new_url, signal.SIGKILL)
    assert code == -signal.SIGKILL
    before = _places(new_url)
    assert len(before) == 2 * move_ledger.PAGE_ROWS
    done = shell.run("move_ledger")
    assert done.code == Code.DONE
    assert f"{MANY:,} rows compared, {MANY - len(before):,} copied in this run" in done.out
    after = _places(new_url)
    assert {key: after[key] for key in before} == before, "what was there is not written anew"
    with opened(new_url) as ledger:
        assert ledger.counts()["waiting"]["live"] == MANY


def _places(url: str) -> dict[str, Any]:
    """key → by which transaction it was written, and where."""
    with session(url) as connection:
        found = connection.execute(sa.text("SELECT key, xmin::text, ctid::text FROM entries"))
        return {key: (by, where) for key, by, where in found}


def test_ctrl_c_ends_it_in_words_and_a_second_run_goes_on(shell: Shell, many: str, new_url: str) -> None:
    code, said = interrupt(shell, new_url, signal.SIGINT)
    assert code == Code.INTERRUPTED
    assert said == "move_ledger.py: interrupted. What was copied stays; run this again, and it goes on.\n"
    assert shell.run("move_ledger").code == Code.DONE


def test_a_lost_connection_ends_it_in_words_and_a_second_run_goes_on(
    shell: Shell, many: str, new_url: str
) -> None:
    code, said = interrupt(shell, new_url, None)
    assert code == Code.FAILED
    assert said.startswith("move_ledger.py: new ledger, postgresql://")
    assert len(said.splitlines()) == 1
    assert shell.run("move_ledger").code == Code.DONE


def test_no_service_starts_on_a_half_moved_ledger(shell: Shell, many: str, new_url: str) -> None:
    interrupt(shell, new_url, signal.SIGKILL)
    with pytest.raises(LedgerVersionError, match="half moved") as caught:
        Ledger.open(new_url)
    assert "move_ledger.py again" in caught.value.hint
    with pytest.raises(Failure, match="half moved itself"):
        move(new_url, f"{many}.third")


def test_what_changed_before_the_second_run_is_copied_too(
    old_url: str, new_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with opened(old_url) as ledger:
        some(ledger, 9)
        bring_to(ledger, "settled", ask("b"))
    assert move(old_url, new_url) == Code.DONE
    monkeypatch.setattr(move_ledger, "PAGE_ROWS", 3)
    run(new_url, "UPDATE alembic_version SET version_num = version_num || ' (half moved)'")
    run(old_url, "DELETE FROM entries WHERE key >= '000007' OR key = '000000'")
    with opened(old_url) as ledger:
        ledger.put([ask("000003", 77), ask("000001x")])
    assert move(old_url, new_url) == Code.DONE
    assert rows(new_url, ENTRIES) == rows(old_url, ENTRIES)


# ── what is refused ──────────────────────────────────────────────────────────────────────────────────────


def test_a_service_that_runs_on_the_old_ledger_is_in_the_way(both_ways: tuple[str, str]) -> None:
    old, new = both_ways
    with closing(Ledger.open(old)) as ledger:
        some(ledger, 3)
        Fleet(ledger).sign(own_name(), threads=16)
        with pytest.raises(Failure, match=rf"runs on the old ledger: process {os.getpid()} on .* Stop it"):
            move(old, new)
        Fleet(ledger).leave(own_name())
    assert move(old, new) == Code.DONE


def test_a_service_that_runs_on_the_new_ledger_is_in_the_way(both_ways: tuple[str, str]) -> None:
    old, new = both_ways
    with opened(old) as ledger:
        some(ledger, 3)
    with closing(Ledger.open(new)) as ledger:
        Fleet(ledger).sign(own_name(), threads=16)
        with pytest.raises(Failure, match="runs on the new ledger"):
            move(old, new)
    with opened(new):
        pass  # it is not marked


def test_a_service_that_has_come_to_a_half_moved_ledger_is_in_the_way(old_url: str, new_url: str) -> None:
    with opened(old_url) as ledger:
        some(ledger, 3)
    with closing(Ledger.open(new_url)) as ledger:
        run(new_url, "UPDATE alembic_version SET version_num = version_num || ' (half moved)'")
        Fleet(ledger).sign(own_name(), threads=16)  # it was there a moment before the mark
        with pytest.raises(Failure, match="runs on the new ledger"):
            move(old_url, new_url)
        assert rows(new_url, ENTRIES) == []


@pytest.mark.parametrize("table", ledger_sides.MOVED, ids=lambda table: table.name)
def test_a_ledger_that_has_been_in_use_is_left_alone(
    old_url: str, new_url: str, table: sa.Table, tmp_path: Path
) -> None:
    with opened(old_url) as ledger:
        some(ledger, 3)
    fill_at(f"sqlite:///{tmp_path}/used.db")
    (*_, row) = rows(f"sqlite:///{tmp_path}/used.db", table)
    connect(new_url).dispose()
    with session(new_url) as connection:
        connection.execute(sa.insert(table).values(row))
    with pytest.raises(Failure, match=f"in use, or was moved before: .* 1 row of {table.name}"):
        move(old_url, new_url)
    assert rows(new_url, table) == [row]
    with opened(new_url):
        pass  # it is not marked


def test_nobody_can_write_to_the_old_ledger_meanwhile(both_ways: tuple[str, str]) -> None:
    old, _ = both_ways
    with opened(old) as ledger:
        some(ledger, 2)
    impatient = "PRAGMA busy_timeout = 0" if old.startswith("sqlite") else "SET lock_timeout = '10ms'"
    with ExitStack() as stack:
        move_ledger.hold_still(move_ledger.open_old(old, stack), stack)
        with pytest.raises(sa.exc.OperationalError, match="lock"):
            run(old, impatient, "UPDATE entries SET size = 1")
    run(old, impatient, "UPDATE entries SET size = 1")


def test_a_move_that_could_be_disturbed_does_not_count(
    old_url: str, new_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with opened(new_url) as ledger:
        some(ledger, 3)
    compare = move_ledger.compare

    def compare_after_the_hold_is_lost(*arguments: Any) -> move_ledger.Compared:
        idle = "FROM pg_stat_activity WHERE state = 'idle in transaction' AND datname = current_database()"
        run(new_url, f"SELECT pg_terminate_backend(pid) {idle}")
        return compare(*arguments)

    monkeypatch.setattr(move_ledger, "compare", compare_after_the_hold_is_lost)
    with pytest.raises(Failure, match=r"old ledger, postgresql://.* cannot be used now"):
        move(new_url, old_url)
    with pytest.raises(LedgerVersionError):
        Ledger.open(old_url)


def test_a_run_that_is_left_over_changes_nothing_any_more(old_url: str, new_url: str) -> None:
    with opened(old_url) as ledger:
        some(ledger, 3)
    assert move(old_url, new_url) == Code.DONE
    with opened(new_url) as ledger:
        ledger.put([ask("000001", 77)])
    before = rows(new_url, ENTRIES)
    with ExitStack() as stack:
        old = move_ledger.open_old(old_url, stack)
        new = move_ledger.Side.at(new_url, "new ledger", stack)
        release = old.version()
        assert release
        with pytest.raises(Failure, match="Another run"):
            move_ledger.copy(old, new, ENTRIES, release, lambda *_: None)
        with pytest.raises(Failure, match="Another run"):
            move_ledger.finish(new, release)
    assert rows(new_url, ENTRIES) == before


def test_where_there_is_no_ledger_none_is_made(tmp_path: Path, new_url: str) -> None:
    with pytest.raises(Failure, match=r"There is no ledger at sqlite:///.*/none\.db"):
        move(f"sqlite:///{tmp_path}/none.db", new_url)
    with pytest.raises(Failure, match="There is no ledger at postgresql://"):
        move(new_url, f"sqlite:///{tmp_path}/new.db")
    assert list(tmp_path.iterdir()) == []
    with session(new_url) as connection:
        assert sa.inspect(connection).get_table_names() == []


def test_a_file_that_is_no_ledger_is_an_error_in_words(tmp_path: Path, new_url: str) -> None:
    (tmp_path / "notes.txt").write_text("not a database, but long enough to be looked at as one " * 20)
    with pytest.raises(Failure, match="file is not a database"):
        move(f"sqlite:///{tmp_path}/notes.txt", new_url)


def test_a_ledger_is_not_moved_into_itself(old_url: str, tmp_path: Path) -> None:
    with opened(old_url) as ledger:
        some(ledger, 1)
    (tmp_path / "folder").mkdir()
    with pytest.raises(WrongUse, match="are one"):
        move(old_url, f"sqlite:///{tmp_path}/folder/../old.db")


# ── versions ─────────────────────────────────────────────────────────────────────────────────────────────


def test_an_older_ledger_is_upgraded_first(old_url: str, new_url: str) -> None:
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS))
    config.set_main_option("path_separator", "os")
    with session(old_url) as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, "0001")
    columns = "rule, key, state, lane, generation, claimed_generation, claim_number, attempts, backoff_s"
    columns += ", recent_events, first_seen_at, event_at, lost, history, due_at"
    values = "'default', 'k', 'waiting', 'live', 3, 2, 2, 0, 0.0, '', 5.0, 6.0, '[]', '[]', 7.0"
    run(old_url, f"INSERT INTO entries ({columns}) VALUES ({values})")  # noqa: S608 - of this test
    assert move(old_url, new_url) == Code.DONE
    (row,) = rows(new_url, ENTRIES)
    assert (row["key"], row["generation"], row["due_at"], row["asked_at"]) == ("k", 3, 7.0, 6.0)


@pytest.mark.parametrize("is_old", [True, False])
def test_a_newer_ledger_is_refused(old_url: str, new_url: str, *, is_old: bool) -> None:
    with opened(old_url), opened(new_url):
        pass
    run(old_url if is_old else new_url, "UPDATE alembic_version SET version_num = '9999'")
    word = "old ledger" if is_old else "new ledger"
    with pytest.raises(WrongUse, match=rf"{word}, .* version 9999, this program knows up to"):
        move(old_url, new_url)


def test_a_move_that_another_release_began_is_refused(old_url: str, new_url: str) -> None:
    with opened(old_url), opened(new_url):
        pass
    run(new_url, "UPDATE alembic_version SET version_num = '0001 (half moved)'")
    with pytest.raises(Failure, match="Another release began"):
        move(old_url, new_url)


# ── what differs, and what cannot be moved ───────────────────────────────────────────────────────────────


def test_a_row_that_does_not_arrive_as_it_was_is_found(
    old_url: str, new_url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with opened(old_url) as ledger:
        some(ledger, 9)
    connect(new_url).dispose()
    spoil = "BEGIN NEW.history := NEW.history || chr(32); RETURN NEW; END"
    run(
        new_url,
        f"CREATE FUNCTION spoil() RETURNS trigger LANGUAGE plpgsql AS '{spoil}'",
        "CREATE TRIGGER spoil BEFORE INSERT ON entries FOR EACH ROW "
        "WHEN (NEW.key >= '000004') EXECUTE FUNCTION spoil()",
    )
    with pytest.raises(Failure, match=r"differ in entries, first at default/000004\. Run this again"):
        move(old_url, new_url)
    assert "9 rows compared, 9 copied" in capsys.readouterr().out
    with pytest.raises(LedgerVersionError):
        Ledger.open(new_url)
    run(new_url, "DROP TRIGGER spoil ON entries")
    assert move(old_url, new_url) == Code.DONE


def test_a_row_that_is_missing_or_too_many_is_found(old_url: str, new_url: str) -> None:
    for url in (old_url, new_url):
        with opened(url) as ledger:
            some(ledger, 4)
    run(old_url, "DELETE FROM entries WHERE key = '000002'")
    run(new_url, "DELETE FROM entries WHERE key = '000001'")
    with ExitStack() as stack:
        old = move_ledger.open_old(old_url, stack)
        new = move_ledger.Side.at(new_url, "new ledger", stack)
        found = move_ledger.compare(old, new, ENTRIES, lambda *_: None)
    assert not found.are_equal
    assert found.first_difference == ("default", "000001")
    assert list(found.counts()) == [(("default", "waiting", "live"), 3, 3)]


@pytest.mark.parametrize("column", ["key", "error"])
@pytest.mark.parametrize("text", ["CAST(x'6b6f66fc72' AS TEXT)", "'a' || char(0) || 'b'"])
def test_text_that_postgresql_cannot_hold_is_named(
    old_url: str, new_url: str, column: str, text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(move_ledger, "PAGE_ROWS", 3)
    with opened(old_url) as ledger:
        some(ledger, 9)
    run(old_url, f"UPDATE entries SET {column} = {text} WHERE key = '000005'")  # noqa: S608 - of this test
    key = "default/000005" if column == "error" else "default/(kof\udcfcr|a\0b)"
    with pytest.raises(Failure, match=f"cannot hold the row {key} of entries: .* not UTF-8, or a NUL"):
        move(old_url, new_url)
    with pytest.raises(LedgerVersionError):
        Ledger.open(new_url)


# ── URLs and passwords ───────────────────────────────────────────────────────────────────────────────────


def with_password(url: str) -> str:
    return url.replace("postgres@", f"postgres:{PASSWORD}@", 1)


def test_urls_come_from_the_environment_or_a_file(
    old_url: str, new_url: str, variables: dict[str, str]
) -> None:
    with opened(old_url) as ledger:
        some(ledger, 1)
    Path(".env").write_text(f"DATABASE_URL={with_password(new_url)}\nOLD_DATABASE_URL={new_url}\n")
    variables["OLD_DATABASE_URL"] = old_url
    assert move_ledger.main([]) == Code.DONE
    assert len(rows(new_url, ENTRIES)) == 1


def test_the_default_is_the_services_own_file(new_url: str, variables: dict[str, str]) -> None:
    with opened("sqlite:///data/replicator.db") as ledger:
        some(ledger, 1)
    with pytest.raises(WrongUse, match="are one: give --to, or set DATABASE_URL"):
        move_ledger.main([])
    variables["DATABASE_URL"] = new_url
    assert move_ledger.main([]) == Code.DONE


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["--to", "postgresql://u:{}@127.0.0.1:9/db"], 1),
        (["--to", "postgresql://127.0.0.1:9/db?user=u&password={}"], 1),
        (["--to", "postgresql://127.0.0.1:9/db?pass={}"], 1),
        (["--to", "mysql://u:{}@host/db"], 2),
        (["--to", "sqlite:///new.db?timeout={}"], 2),
        (["--to", "postgresql://u:{}@host:port/db"], 2),
        (["--too", "postgresql://u:{}@host/db"], 2),
        (["postgresql://u:{}@host/db"], 2),
    ],
)
def test_no_error_tells_a_password(shell: Shell, old_url: str, arguments: Sequence[str], code: int) -> None:
    with opened(old_url):
        pass
    done = shell.run("move_ledger", *(argument.format(PASSWORD) for argument in arguments))
    assert done.code == code
    assert done.err
    assert PASSWORD not in done.out + done.err


def test_no_success_tells_a_password(shell: Shell, old_url: str, new_url: str) -> None:
    with opened(old_url) as ledger:
        some(ledger, 1)
    shell.variables["DATABASE_URL"] = with_password(new_url)
    done = shell.run("move_ledger")
    assert done.code == Code.DONE
    assert PASSWORD not in done.out + done.err
    assert new_url.removeprefix("postgresql://postgres@") in done.err


def test_its_help_has_examples(shell: Shell) -> None:
    done = shell.run("move_ledger", "--help")
    assert done.code == Code.DONE
    assert "python scripts/move_ledger.py --from sqlite:///" in done.out


def test_progress_is_drawn_on_a_terminal(shell: Shell, many: str) -> None:
    done = shell.run_on_terminal("move_ledger")
    assert done.code == Code.DONE
    assert "rows/s" in done.out
