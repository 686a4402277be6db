"""An SQLite ledger whose file is deleted or replaced while it is in use."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from webhook import database
from webhook.database import connect, prepare
from webhook.entries import Request
from webhook.errors import LedgerLost, LedgerUnavailable
from webhook.ledger import Ledger

ASKED = Request(rule="default", key="a")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Where the ledger is."""
    return tmp_path / "ledger.db"


@pytest.fixture
def ledger(path: Path) -> Iterator[Ledger]:
    """A ledger with an open connection."""
    opened = Ledger.open(f"sqlite:///{path}")
    opened.put([ASKED])
    yield opened
    opened.close()


def _delete(path: Path) -> None:
    path.unlink()


def _replace(path: Path) -> None:
    copy = path.with_name("copy.db")
    shutil.copy(path, copy)
    copy.replace(path)


def _move_folder(path: Path) -> None:
    path.parent.rename(path.parent.with_name("elsewhere"))


@pytest.mark.parametrize("lose", [_delete, _replace, _move_folder])
def test_a_ledger_that_is_not_at_its_place_takes_nothing_and_says_so(
    lose: Callable[[Path], None], path: Path, ledger: Ledger
) -> None:
    lose(path)
    calls: dict[str, Callable[[], object]] = {
        "put": lambda: ledger.put([ASKED]),
        "put_now": lambda: ledger.put_now(ASKED),
        "claim": lambda: ledger.claim(1, worker="w", lease_s=60),
        "check": ledger.check,
        "counts": ledger.counts,
        "entry": lambda: ledger.entry("default", "a"),
    }
    for name, call in calls.items():
        with pytest.raises(LedgerLost, match=r"ledger\.db") as caught:
            call()
        assert "sweep" in caught.value.hint, name


def test_no_empty_file_is_made_in_place_of_a_lost_one(path: Path, ledger: Ledger) -> None:
    ledger.close()  # its connections: it opens new ones when it is used
    path.unlink()
    with pytest.raises(LedgerLost):
        ledger.put([ASKED])
    assert not path.exists()


def test_what_is_committed_to_a_file_that_was_deleted_meanwhile_is_not_acknowledged(
    path: Path, ledger: Ledger
) -> None:
    with pytest.raises(LedgerLost), ledger.writing():
        path.unlink()


def test_a_file_that_is_back_is_used_again(path: Path, ledger: Ledger) -> None:
    aside = path.with_name("aside.db")
    path.rename(aside)
    with pytest.raises(LedgerLost):
        ledger.counts()
    aside.rename(path)
    ledger.put([ASKED])
    assert ledger.counts()["waiting"]["live"] == 1


def test_a_folder_that_may_not_be_looked_into_is_no_loss(
    path: Path, ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(self: Path, **_: object) -> os.stat_result:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "stat", refused)
    with pytest.raises(LedgerUnavailable, match="PermissionError") as caught:
        ledger.put([ASKED])
    assert not isinstance(caught.value, LedgerLost)


def test_a_process_that_is_forked_after_the_loss_makes_the_tables_anew(path: Path) -> None:
    url = f"sqlite:///{path}"
    prepare(url)
    assert url in database._PREPARED
    path.unlink()
    again = Ledger(connect(url))
    again.put([ASKED])
    assert again.counts()["waiting"]["live"] == 1
    again.close()


def test_a_disk_that_could_only_be_read_for_a_while_is_written_to_once_it_can_be(small_disk: Path) -> None:
    path = small_disk / "ledger.db"
    prepare(f"sqlite:///{path}")
    with _read_only(small_disk):
        ledger = Ledger.open(f"sqlite:///{path}")
        for call in (ledger.counts, lambda: ledger.put([ASKED])):
            with pytest.raises(LedgerUnavailable, match="can only be read"):
                call()
    ledger.put([ASKED])
    assert ledger.counts()["waiting"]["live"] == 1
    ledger.close()


@contextmanager
def _read_only(folder: Path) -> Iterator[None]:
    subprocess.run(["mount", "-o", "remount,ro", folder], check=True)
    yield
    subprocess.run(["mount", "-o", "remount,rw", folder], check=True)
