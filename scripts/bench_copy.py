"""The benchmark's first part: a bucket of objects is copied by each contender in turn, round by round.

Each run has a new target bucket, and is checked by listing both sides: same keys, same sizes, and the same
ETag where it is an MD5 on both.
"""

from __future__ import annotations

import io
import os
import statistics
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, cast

from scripts.bench_peers import CONTENDERS, BenchError, Job, Run
from scripts.local_servers import S3Server

KIB, MIB, GIB = 1024, 1024**2, 1024**3
PART_BYTES = 16 * MIB  # of what is loaded; mc's own choice
LOADERS = 16
Listing = Mapping[str, tuple[int, str]]
"""key → size and ETag."""


@dataclass(frozen=True)
class Case:
    """Objects of one size, and the ratios that are to be reached."""

    name: str
    objects: int
    size: int
    goals: Mapping[str, float]


CASES = (
    Case("4KiB", 3000, 4 * KIB, {"rclone": 1.0, "mc": 1.5}),
    Case("1MiB", 1000, MIB, {"rclone": 1.0}),
    Case("256MiB", 4, 256 * MIB, {"rclone": 1.0}),
    Case("2GiB", 1, 2 * GIB, {"rclone": 1.0}),
)


@dataclass
class Copying:
    """One source and one target; `say` hears of every run."""

    source: S3Server
    target: S3Server
    folder: Path
    say: Callable[[str], None]
    runs: int = 0

    def starts(self, rounds: int) -> dict[str, Run]:
        """What each takes to copy nothing: medians."""
        self.source.client().make_bucket(bucket_name="source-empty")
        return {
            who: median_run([self._run(who, "source-empty", {}) for _ in range(rounds)]) for who in CONTENDERS
        }

    def rounds(self, case: Case, rounds: int) -> dict[str, list[Run]]:
        """All contenders in turn; who comes first changes from round to round."""
        bucket = f"source-{case.name.lower()}"
        listed = self._load(case, bucket)
        runs: dict[str, list[Run]] = {who: [] for who in CONTENDERS}
        order = list(CONTENDERS)
        for number in range(1, rounds + 1):
            for who in order:
                run = self._run(who, bucket, listed)
                self.say(f"{case.name}, round {number}, {who}: {run.seconds:.2f} s")
                runs[who].append(run)
            order.append(order.pop(0))
        _remove(self.source, bucket)
        return runs

    def _run(self, who: str, bucket: str, listed: Listing) -> Run:
        """One contender into a new bucket, and whether it really copied everything."""
        self.runs += 1
        copy, target = f"copy-{self.runs}", self.target.client()
        folder = self.folder / copy
        folder.mkdir(parents=True)
        target.make_bucket(bucket_name=copy)
        target.put_object(bucket_name=copy, object_name="first", data=io.BytesIO(b"1"), length=1)  # is slow
        target.remove_object(bucket_name=copy, object_name="first")
        os.sync()  # nobody pays for what the one before left to be written
        run = CONTENDERS[who](Job(self.source, bucket, self.target, copy, list(listed), folder))
        if wrong := _differences(listed, _listing(self.target, copy)):
            raise BenchError(f"{who}: {len(wrong)} of {len(listed)} objects differ, {wrong[0]} among them")
        _remove(self.target, copy)
        return run

    def _load(self, case: Case, bucket: str) -> Listing:
        """Writes a case's objects and reads them once, so that no contender is the first to do so."""
        self.source.client().make_bucket(bucket_name=bucket)
        client = self.source.client()

        def load(number: int) -> None:
            key = f"object-{number:05}"
            client.put_object(
                bucket_name=bucket,
                object_name=key,
                data=cast(BinaryIO, _Content(case.size)),
                length=case.size,
                part_size=PART_BYTES,
            )
            with client.get_object(bucket_name=bucket, object_name=key) as answer:
                for _ in answer.stream(MIB):
                    pass

        with ThreadPoolExecutor(min(LOADERS, case.objects)) as pool:
            list(pool.map(load, range(case.objects)))
        return _listing(self.source, bucket)


class _Content:
    """Random bytes; those of a large object repeat every PART_BYTES."""

    def __init__(self, size: int) -> None:
        self._block, self._at = os.urandom(min(size, PART_BYTES)), 0

    def read(self, size: int = -1) -> bytes:
        if size < 0 or size > len(self._block):
            size = len(self._block)
        begin = self._at % len(self._block)
        data = self._block[begin : begin + size]
        self._at += len(data)
        return data


def median_run(runs: list[Run]) -> Run:
    """The median of each figure, but the largest memory."""
    return Run(
        statistics.median(run.seconds for run in runs),
        statistics.median(run.cpu_s for run in runs),
        max(run.peak_bytes for run in runs),
    )


def _listing(server: S3Server, bucket: str) -> Listing:
    found = server.client().list_objects(bucket_name=bucket, recursive=True)
    return {each.object_name or "": (each.size or 0, each.etag or "") for each in found}


def _differences(here: Listing, there: Listing) -> list[str]:
    def equal(key: str) -> bool:
        (size, etag), (copied_size, copied_etag) = here.get(key, (-1, "")), there.get(key, (-2, ""))
        return size == copied_size and (etag == copied_etag or "-" in etag + copied_etag)

    return sorted(key for key in here.keys() | there.keys() if not equal(key))


def _remove(server: S3Server, bucket: str) -> None:
    client = server.client()
    keys = [each.object_name or "" for each in client.list_objects(bucket_name=bucket, recursive=True)]
    with ThreadPoolExecutor(LOADERS) as pool:
        list(pool.map(lambda key: client.remove_object(bucket_name=bucket, object_name=key), keys))
    client.remove_bucket(bucket_name=bucket)
