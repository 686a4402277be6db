"""Moving off MinIO, step by step, with the commands of docs/OPERATIONS.md."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path

import pytest

from scripts.local_servers import Gateway, SeaweedFS
from scripts.local_service import ROOT, Replicator
from tests.acceptance.conftest import BUCKET, Stack, content, until

BOUND_S = 180.0
MIB = 1024 * 1024
RESTART_WANTED = "Restart your MinIO process now"


class Move(Stack):
    """A stack, and the scripts as a person runs them where the service runs."""

    def run(self, script: str, *arguments: str, **environ: str) -> subprocess.CompletedProcess[str]:
        """Its exit code and what it printed."""
        command = [sys.executable, str(ROOT / script), *arguments]
        settings = self.service.settings() | environ | {"PATH": str(Path(sys.executable).parent)}
        return subprocess.run(
            command, cwd=self.service.folder, env=settings, capture_output=True, text=True, timeout=BOUND_S
        )

    def have_changes_reported(self, queue_dir: Path) -> None:
        """Runs config/configure_minio.py, and starts the source anew when that asks for it."""
        environ = {"WEBHOOK_URL": self.service.events_url, "WEBHOOK_QUEUE_DIR": str(queue_dir)}
        process = subprocess.Popen(
            [sys.executable, str(ROOT / "config/configure_minio.py")],
            cwd=self.service.folder,
            env=self.service.settings() | environ,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        with process:
            for line in process.stdout or ():
                if RESTART_WANTED in line:
                    self.source.restart()
        assert process.returncode == 0

    def notified(self) -> list[str]:
        """The targets that the bucket's changes are told to."""
        found = self.client().get_bucket_notification(bucket_name=BUCKET).queue_config_list
        return [each.queue for each in found or ()]


class Clients:
    """They write, overwrite and remove at the source until they are stopped, as a context."""

    def __init__(self, running: Move) -> None:
        self._running = running
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._write)
        self.written = 0

    def __enter__(self) -> Clients:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping.set()
        self._thread.join()

    def _write(self) -> None:
        while not self._stopping.is_set():
            number = self.written
            self._running.put(f"live/{number:05}", content(f"{number}"))
            if number % 20 == 19:
                self._running.put(f"live/{number - 2:05}", content(f"{number} again"))
                self._running.remove(f"live/{number - 3:05}")
            self.written += 1


@pytest.fixture
def moving(tmp_path: Path, seaweed: SeaweedFS, new_bucket: Callable[[SeaweedFS], str]) -> Iterator[Move]:
    """A source with some objects, and the service, which knows nothing yet and is not told of changes."""
    bucket = new_bucket(seaweed)
    with Gateway(tmp_path / "source") as source:
        source.client().make_bucket(bucket_name=BUCKET)
        service = Replicator(
            tmp_path / "service",
            source=source,
            source_bucket=BUCKET,
            target=seaweed,
            target_bucket=bucket,
            environ={"LOG_FORMAT": "json", "REPLICATE_DELETES": "true", "DELETE_GRACE_S": "1"},
        )
        running = Move(source=source, target=seaweed, target_bucket=bucket, service=service)
        running.put_many([f"old/{number:03}" for number in range(60)], content, clients=4)
        running.put("old/large", bytes(range(256)) * (20 * MIB // 256))
        with service:
            yield running


def test_a_move_off_minio_ends_with_a_target_that_is_proved_equal_and_a_way_back(
    moving: Move, tmp_path: Path
) -> None:
    # Copy: the first sweep. Follow: MinIO tells of changes.
    moving.have_changes_reported(tmp_path / "queue")
    with Clients(moving) as clients:
        until(lambda: clients.written >= 40, bound_s=BOUND_S, what="clients have written")
        swept = moving.run("scripts/operate.py", "sweep", "--wait")
        assert swept.returncode in (0, 1), swept.stdout + swept.stderr
        until(lambda: moving.rule()["recovery_point"], bound_s=BOUND_S, what="all that was there is copied")

    # Freeze: the clients have stopped. Prove.
    frozen_at = time.time()
    _prove(moving, after=frozen_at)

    # The proof is one: it sees what is missing, and what is the same in all but its bytes.
    moving.target.client().remove_object(bucket_name=moving.target_bucket, object_name="old/007")
    moving.put_at_target("old/008", content("old/008")[::-1])
    wrong = moving.run("scripts/replicate_to_filebase.py", "--check")
    assert wrong.returncode == 1
    assert "old/007" in wrong.stdout
    assert "old/008" in wrong.stdout
    _prove(moving, after=frozen_at)

    # Cut over: MinIO tells nobody any more, the service ends, clients write to the target.
    assert moving.notified()
    removed = moving.run("config/configure_minio.py", "--remove", "--no-restart")
    assert removed.returncode == 0, removed.stdout + removed.stderr
    assert not moving.notified()
    moving.service.stop()
    moving.put_at_target("new/1", content("new/1"))

    # A way back: MinIO follows the target by sweeps.
    back = Replicator(
        tmp_path / "back",
        source=moving.target,
        source_bucket=moving.target_bucket,
        target=moving.source,
        target_bucket=BUCKET,
        environ={"LOG_FORMAT": "json"},
    )
    with back:
        until(lambda: _has(moving, "new/1"), bound_s=BOUND_S, what="the new object is at MinIO")
        until(lambda: back.unsettled() == 0, bound_s=BOUND_S, what="nothing waits")
    verdict = moving.compare()
    assert verdict.ok, verdict.differences


def _prove(moving: Move, *, after: float) -> None:
    until(
        lambda: _sweep_proves(moving, after), bound_s=BOUND_S, what="the recovery point is after the freeze"
    )
    stands = moving.run("scripts/operate.py", "status")
    assert stands.returncode == 0, stands.stdout + stands.stderr
    for options in (["--check"], ["--check", "--deep"]):
        checked = moving.run("scripts/replicate_to_filebase.py", *options)
        assert checked.returncode == 0, checked.stdout + checked.stderr


def _sweep_proves(moving: Move, after: float) -> bool:
    """One that begins in the second of the freeze does not: the source's time has no fractions."""
    swept = moving.run("scripts/operate.py", "sweep", "--wait")
    assert swept.returncode in (0, 1), swept.stdout + swept.stderr
    until(lambda: moving.service.unsettled() == 0, bound_s=BOUND_S, what="what the sweep found is copied")
    return _proved_at(moving) > after


def _proved_at(moving: Move) -> float:
    """Cut to the second below, as the source's time is."""
    found = moving.rule()["recovery_point"]
    return datetime.fromisoformat(found).timestamp() if found else 0.0


def _has(moving: Move, key: str) -> bool:
    found = moving.client().list_objects(bucket_name=BUCKET, prefix=key)
    return any(each.object_name == key for each in found)
