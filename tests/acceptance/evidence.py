"""What a fleet's ledger, its logs and its requests to the target prove."""

from __future__ import annotations

import itertools
import json
import time
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit
from xml.etree import ElementTree

from scripts.local_service import Replicator
from tests.acceptance.faults import Faults
from tests.acceptance.fleet import Fleet, version_of
from tests.proxy import Exchange, Fault, Proxy

CLOCK_ERROR_S = 0.1
"""What two processes may take the ledger's time to be, apart."""
WRITES = ("PutObject", "UploadPart", "CompleteMultipartUpload")


# ── what was done at the target ──────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class Write:
    """A request that changed an object at the target; times by this machine's clock."""

    by: str
    key: str
    version: int
    began: float
    ended: float


@dataclass
class Recorder(Proxy):
    """Between one worker and the target: notes which version of which key was written when."""

    by: str = ""
    writes: list[Write] = field(default_factory=list)
    _uploads: dict[str, int] = field(default_factory=dict)

    def fault_for(self, operation: str) -> Fault:
        """Counts one request; it meets what is planned, and is noted where it changes an object."""
        planned = super().fault_for(operation)
        return (lambda exchange: self._note(operation, planned, exchange)) if operation in WRITES else planned

    def _note(self, operation: str, planned: Fault, exchange: Exchange) -> None:
        began = time.time()
        planned(exchange)
        answer = exchange.forward()
        where = urlsplit(exchange.path)
        query = parse_qs(where.query)
        upload = query.get("uploadId", [""])[0]
        if operation == "UploadPart" and query["partNumber"] == ["1"]:
            self._uploads[upload] = version_of(exchange.body)
        is_done = answer.status == 200 and operation != "UploadPart"
        if is_done and operation == "CompleteMultipartUpload":
            is_done = ElementTree.fromstring(answer.body).tag.endswith("Result")  # noqa: S314 - SeaweedFS' own
        if is_done:
            version = self._uploads[upload] if upload else version_of(exchange.body)
            key = unquote(where.path).split("/", 2)[2]
            self.writes.append(Write(self.by, key, version, began, time.time()))


def assert_versions_never_go_back(recorders: Iterable[Recorder]) -> int:
    """No write replaced a newer version with an older one; gives how many writes there were."""
    writes = sorted((write for each in recorders for write in each.writes), key=lambda write: write.ended)
    newest: dict[str, Write] = {}
    for write in writes:
        before = newest.get(write.key)
        assert before is None or before.version <= write.version, f"{before} was replaced by {write}"
        newest[write.key] = write
    return len(writes)


# ── what the ledger and the logs say ─────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class Copy:
    """A line of a worker's log about the end of a claim; times in seconds since 1970."""

    process: Replicator
    worker: str
    key: str
    claim: int
    event: str
    began: float
    ended: float


def copies(processes: Iterable[Replicator]) -> dict[str, list[Copy]]:
    """key → what the logs say of its claims, in their order."""
    found: dict[str, list[Copy]] = defaultdict(list)
    for process in processes:
        worker = ""
        for line in log_lines(process):
            worker = line["worker"] if line["event"] == "worker starts" else worker
            if "claim" in line:
                ended = line["began_at"] + line["ms"] / 1000
                found[line["key"]].append(
                    Copy(process, worker, line["key"], line["claim"], line["event"], line["began_at"], ended)
                )
    return {key: sorted(each, key=lambda copy: copy.claim) for key, each in found.items()}


def log_lines(process: Replicator) -> list[dict[str, Any]]:
    """What a process has logged, but for a line that was cut short when it was killed."""
    lines = []
    for line in process.log_path.read_text(errors="replace").splitlines():
        try:
            lines.append(json.loads(line))
        except ValueError:
            continue
    return [line for line in lines if isinstance(line, dict)]


def assert_attempts_never_overlap(rows: Iterable[Mapping[str, Any]]) -> int:
    """By the ledger, no key was worked on by two at once; gives how many attempts there were."""
    count = 0
    for row in rows:
        attempts = row["history"]
        count += len(attempts)
        for earlier, later in itertools.pairwise(attempts):
            assert earlier["ended_at"] <= later["claimed_at"] + CLOCK_ERROR_S, (
                f"{row['key']} was claimed before it was done: {earlier}, {later}"
            )
    return count


def assert_only_stopped_copies_overlap(fleet: Fleet, faults: Faults, recorders: Iterable[Recorder]) -> int:
    """By the logs, no two copies of a key were under way at once, but where one's process was stopped
    meanwhile and its claim was taken over; and nothing was written under a claim that was begun after that.
    What was taken over is not on record. Gives how many claims were.

    Each worker's recorder has the name of its folder.
    """
    recorded = _recorded(fleet)
    writes = [write for each in recorders for write in each.writes]
    count = 0
    for key, of_key in copies(fleet.processes).items():
        numbers = [copy.claim for copy in of_key]
        assert len(set(numbers)) == len(numbers), f"two worked on one claim of {key}: {of_key}"
        for earlier, later in itertools.combinations(of_key, 2):
            if earlier.ended <= later.began + CLOCK_ERROR_S:
                continue
            count += 1
            told = f"{earlier} was taken over by {later}"
            if earlier.began >= later.began:
                assert not any(_is_of(write, earlier) for write in writes), f"{told}, and then wrote"
            else:
                assert _was_stopped(earlier, faults), f"{told}, and its process was not stopped"
            assert not any(
                claimed_at <= earlier.began <= ended_at
                for claimed_at, ended_at in recorded[key, earlier.worker]
            ), f"{told}, and is on record"
    return count


def _is_of(write: Write, copy: Copy) -> bool:
    is_by_it = (write.by, write.key) == (copy.process.folder.name, copy.key)
    return is_by_it and copy.began <= write.began <= copy.ended


def _was_stopped(copy: Copy, faults: Faults) -> bool:
    return any(
        process is copy.process and began <= copy.ended and ended >= copy.began
        for process, began, ended in faults.stops
    )


def _recorded(fleet: Fleet) -> Mapping[tuple[str, str], list[tuple[float, float]]]:
    """(key, worker) → from when to when its attempts were, by the ledger."""
    found: dict[tuple[str, str], list[tuple[float, float]]] = defaultdict(list)
    for row in fleet.rows():
        for attempt in row["history"]:
            found[row["key"], attempt["worker"]].append((attempt["claimed_at"], attempt["ended_at"]))
    return found


def unexpected(processes: Iterable[Replicator]) -> list[dict[str, Any]]:
    """What the logs say of errors."""
    return [
        line for each in processes for line in log_lines(each) if line.get("level") in ("error", "critical")
    ]
