"""Which disks a ledger may be on."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest

from webhook.disks import FREE_MIN_BYTES, mount_of, worries

LINE = "36 35 98:0 / {folder} rw,noatime master:1 - {kind} /dev/root rw,errors=continue"
Mounts = Callable[..., Path]


class Usage(NamedTuple):
    total: int
    used: int
    free: int


@pytest.fixture
def mounts(tmp_path: Path) -> Mounts:
    """Writes a table of mounts: folder → kind."""

    def write(*table: tuple[str, str]) -> Path:
        path = tmp_path / "mountinfo"
        path.write_text("".join(LINE.format(folder=folder, kind=kind) + "\n" for folder, kind in table))
        return path

    return write


@pytest.fixture
def ledger(tmp_path: Path) -> Path:
    return tmp_path / "data" / "replicator.db"


def texts(ledger: Path, mounts: Path, platform: str = "") -> list[str]:
    return [worry.text for worry in worries(ledger, platform=platform, mounts=mounts)]


@pytest.mark.parametrize("platform", ["", "Railway", "Kubernetes"])
def test_a_volume_at_the_ledgers_folder_is_fine_everywhere(
    mounts: Mounts, ledger: Path, platform: str
) -> None:
    assert texts(ledger, mounts(("/", "overlay"), (str(ledger.parents[1]), "ext4")), platform) == []


def test_a_plain_disk_is_fine(mounts: Mounts, ledger: Path) -> None:
    assert texts(ledger, mounts(("/", "ext4"))) == []


@pytest.mark.parametrize(
    ("kind", "platform", "word"),
    [
        ("overlay", "", "container's own disk"),
        ("ext4", "Railway", "Railway container's own disk"),
        ("overlay", "Kubernetes", "Kubernetes container's own disk"),
        ("tmpfs", "", "in memory"),
        ("nfs4", "", "network file system (nfs4)"),
    ],
)
def test_a_disk_that_does_not_last_is_named(
    mounts: Mounts, ledger: Path, kind: str, platform: str, word: str
) -> None:
    (text,) = texts(ledger, mounts(("/", kind)), platform)
    assert word in text


def test_memory_in_the_middle_of_a_disk_is_seen(mounts: Mounts, ledger: Path) -> None:
    (text,) = texts(ledger, mounts(("/", "ext4"), (str(ledger.parents[1]), "tmpfs")))
    assert "in memory (tmpfs)" in text


def test_the_last_of_two_mounts_at_one_place_counts(mounts: Mounts, tmp_path: Path) -> None:
    found = mount_of(tmp_path, mounts(("/", "overlay"), ("/", "ext4")))
    assert found is not None
    assert found.kind == "ext4"


def test_a_folder_with_a_blank_in_its_name_is_found(mounts: Mounts, tmp_path: Path) -> None:
    folder = tmp_path / "my disk"
    found = mount_of(folder, mounts(("/", "ext4"), (str(tmp_path) + "/my\\040disk", "nfs")))
    assert found is not None
    assert found.kind == "nfs"


def test_a_folder_whose_name_only_begins_alike_is_another(mounts: Mounts) -> None:
    found = mount_of(Path("/database"), mounts(("/", "ext4"), ("/data", "tmpfs")))
    assert found is not None
    assert found.kind == "ext4"


@pytest.mark.parametrize("text", ["", "nonsense\n", "1 2 3 - \n"])
def test_a_system_that_does_not_tell_is_no_worry(tmp_path: Path, ledger: Path, text: str) -> None:
    (tmp_path / "odd").write_text(text)
    assert texts(ledger, tmp_path / "odd") == []
    assert texts(ledger, tmp_path / "missing") == []


def test_a_disk_that_is_nearly_full_is_named(
    mounts: Mounts, ledger: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(1, 1, FREE_MIN_BYTES - 1))
    (text,) = texts(ledger, mounts(("/", "ext4")))
    assert text == "only 199 MiB are free on its disk"
