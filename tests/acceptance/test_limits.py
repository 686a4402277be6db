"""What the service needs and what it does when it does not get it."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from scripts.local_servers import PostgreSQL
from scripts.local_service import ROOT
from tests.acceptance.conftest import Stack, content, until

MIB = 1024 * 1024


class Zeros:
    """A gibibyte that takes no room."""

    def __init__(self, size: int) -> None:
        self._left = size

    def read(self, size: int = -1) -> bytes:
        given = min(self._left, size if size >= 0 else self._left)
        self._left -= given
        return b"\0" * given


class PeakMemory:
    """The largest resident size of a process and its children, by the kernel's own mark, in MiB."""

    def __init__(self, pid: int) -> None:
        self._pid = pid

    def largest_process(self) -> float:
        """The peak of the largest single process since it began."""
        processes = [psutil.Process(self._pid), *psutil.Process(self._pid).children(recursive=True)]
        return max(self._peak(process.pid) for process in processes)

    @staticmethod
    def _peak(pid: int) -> float:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1024


def test_a_large_object_is_copied_within_the_memory_budget(stack: Callable[..., Stack]) -> None:
    running = stack(MEMORY_BUDGET_MIB="64")
    size = 1024 * MIB
    running.client().put_object(
        bucket_name="source", object_name="large", data=Zeros(size), length=size, part_size=16 * MIB
    )
    running.wait_until_settled(entries=1, bound_s=240)
    entry = running.service.get("/v1/entries/default/large").json()
    assert (entry["size"], entry["target_etag"]) == (size, entry["source_etag"])
    peak_mib = PeakMemory(running.service.pid).largest_process()
    sys.stdout.write(f"\npeak memory: {peak_mib:.0f} MiB with a budget of 64 MiB\n")
    assert peak_mib <= 150 + 64


def test_a_full_disk_is_answered_503_and_all_goes_on_once_there_is_room(
    stack: Callable[..., Stack], small_disk: Path
) -> None:
    running = stack(DATABASE_URL=f"sqlite:///{small_disk}/ledger.db")
    filler = small_disk / "filler"
    with filler.open("wb", buffering=0) as file:
        try:
            while True:
                file.write(b"\0" * 4096)
        except OSError:
            pass
    token = running.service.settings()["WEBHOOK_AUTH_TOKEN"]
    statuses = set()

    def refused() -> bool:
        event = {"Records": [{"eventName": "s3:ObjectCreated:Put", "s3": {
            "bucket": {"name": "source"}, "object": {"key": "k" * 1000 + str(len(statuses))}}}]}  # fmt: skip
        answer = running.service.post(
            "/minio/events", json=event, headers={"Authorization": f"Bearer {token}"}
        )
        statuses.add((answer.status_code, "Retry-After" in answer.headers))
        return answer.status_code == 503

    until(refused, bound_s=30, what="the full disk is noticed")
    assert statuses <= {(200, False), (503, True)}
    running.put_many([f"full/{number}" for number in range(10)], content, clients=4)
    filler.unlink()
    keys = {f"full/{number}" for number in range(10)}
    until(lambda: all(map(running.target_etag, keys)), bound_s=60, what="all objects have arrived")
    until(lambda: running.service.unsettled() == 0, bound_s=60, what="all is settled")
    assert running.compare().ok


@pytest.mark.parametrize(
    "command",
    [
        ["gunicorn", "--config", "config/gunicorn.conf.py", "webhook:create_app()"],
        [sys.executable, "-m", "webhook.worker"],
    ],
)
def test_without_settings_one_message_names_all_that_is_missing(tmp_path: Path, command: list[str]) -> None:
    for name in ("webhook", "config"):
        (tmp_path / name).symlink_to(ROOT / name)
    done = subprocess.run(
        command,
        cwd=tmp_path,
        env={"PATH": f"{Path(sys.executable).parent}:{os.defpath}", "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 2
    for side in ("MINIO", "FILEBASE"):
        for name in ("ENDPOINT", "ACCESS_KEY", "SECRET_KEY", "BUCKET"):
            assert f"{side}_{name} is missing" in done.stderr
    assert ".env.example" in done.stderr
    assert "Traceback" not in done.stderr


def test_the_same_service_runs_on_postgresql_through_kills(
    stack: Callable[..., Stack], postgresql: PostgreSQL
) -> None:
    url = postgresql.create_database("acceptance")
    running = stack(DATABASE_URL=url.replace("postgresql://", "postgres://"), LEASE_S="5")
    keys = [f"pg/{number:03}" for number in range(300)]
    uploads = threading.Thread(target=running.put_many, args=(keys, content), kwargs={"clients": 8})
    uploads.start()
    until(lambda: running.service.settled() > 20, bound_s=60, what="some objects are settled")
    running.service.kill()
    running.service.start()
    uploads.join()
    running.wait_until_settled(entries=300, bound_s=90)
    assert running.compare().ok
