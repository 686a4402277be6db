"""What must be true when all faults are over: found out by rclone, by boto3, and from the ledger's rows.

Nothing here asks the service what it thinks of itself, but for its recovery point, which is held against
what is at the target.
"""

from __future__ import annotations

import hashlib
import json
import re
import sqlite3
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path
from typing import Any

import boto3
import psycopg
from botocore.config import Config
from psycopg.rows import dict_row

from scripts.local_servers import REGION, S3Server
from scripts.local_tools import rclone_check
from tests.acceptance.conftest import BUCKET
from tests.lab.stage import TARGET_BUCKET, Stage
from tests.lab.workload import Done
from webhook.deletes import NOT_OURS

NO_TYPE = "application/octet-stream"
"""S3's own where a client names none: a target may give another in its place."""
NOTICED_S = 10.0
"""Within this, all processes have noticed that the ledger is lost."""
READERS = 4
LATE_S = 60.0
"""What a client gave up waiting for may still be done by a server that was stopped."""
CARRIED = (
    "ContentType",
    "CacheControl",
    "ContentDisposition",
    "ContentEncoding",
    "ContentLanguage",
    "Metadata",
)
COPIED = ("replicated", "unchanged")


@dataclass(frozen=True)
class Object:
    """One object, read whole."""

    etag: str
    size: int
    digest: str
    headers: Mapping[str, Any]
    tags: Mapping[str, str]


class Side:
    """A bucket, read with boto3."""

    def __init__(self, server: S3Server, bucket: str) -> None:
        keys = {"aws_access_key_id": server.access_key, "aws_secret_access_key": server.secret_key}
        config = Config(
            request_checksum_calculation="when_required",
            response_checksum_validation="when_required",
            s3={"addressing_style": "path"},
            max_pool_connections=READERS,
            retries={"total_max_attempts": 1},
            connect_timeout=5,
            read_timeout=60,
        )
        self.s3 = boto3.client("s3", endpoint_url=server.endpoint, region_name=REGION, config=config, **keys)
        self.bucket = bucket

    def etags(self) -> dict[str, str]:
        """key → ETag, as it lists them."""
        pages = self.s3.get_paginator("list_objects_v2").paginate(Bucket=self.bucket)
        return {each["Key"]: each["ETag"].strip('"') for page in pages for each in page.get("Contents", [])}

    def read(self, key: str) -> Object:
        """Every byte, header and tag."""
        answer = self.s3.get_object(Bucket=self.bucket, Key=key)
        digest, size = hashlib.sha256(), 0
        for block in answer["Body"].iter_chunks(1 << 20):
            digest.update(block)
            size += len(block)
        tags = self.s3.get_object_tagging(Bucket=self.bucket, Key=key)["TagSet"]
        return Object(
            etag=answer["ETag"].strip('"'),
            size=size,
            digest=digest.hexdigest(),
            headers={name: answer[name] for name in CARRIED if answer.get(name)},
            tags={each["Key"]: each["Value"] for each in tags},
        )

    def uploads(self) -> list[str]:
        """Keys of uploads in parts that were neither completed nor aborted."""
        found = self.s3.list_multipart_uploads(Bucket=self.bucket)
        return [each["Key"] for each in found.get("Uploads", [])]


@dataclass
class Verdict:
    """What was compared, and all that is wrong; `keys` are those it is wrong with."""

    objects: int = 0
    bytes_read: int = 0
    entries: int = 0
    unlisted: int = 0
    """Keys whose latest change is of a kind that no listing shows, and was lost: in a ledger that was
    deleted, or with its event."""
    recovery_points: int = 0
    wrong: list[str] = field(default_factory=list)
    keys: set[str] = field(default_factory=set)

    def add(self, what: str, *keys: str) -> None:
        """One more thing that is wrong."""
        self.wrong.append(what)
        self.keys.update(keys)


def check(
    stage: Stage,
    history: Sequence[Done],
    samples: Sequence[Sample],
    *,
    ledger_lost_at: float = 0.0,
    unheard: Sequence[tuple[float, float]] = (),
) -> Verdict:
    """Both sides, the ledger's claims, and its recovery points.

    `ledger_lost_at`: when its file was deleted last, 0.0: never; `unheard`: from when to when events may have
    been lost on their way.
    """
    verdict = Verdict()
    source, target = Side(stage.source, BUCKET), Side(stage.target, TARGET_BUCKET)
    entries = {row["key"]: row for row in rows(stage)}
    forgotten = _forgotten(history, ledger_lost_at)
    kept = _kept(entries, source.etags(), target.etags(), forgotten)
    verdict.unlisted = len(kept)
    _compare_by_rclone(stage, verdict, kept)
    _compare_by_boto3(source, target, verdict, kept, forgotten | _tagged_unheard(history, unheard))
    _check_entries(entries, source.etags(), target.etags(), verdict)
    for sample in samples:
        _check_recovery_point(sample, history, verdict)
    for key in target.uploads():
        if key in entries or key not in forgotten:
            verdict.add(f"an upload of {key!r} was left at the target", key)
    return verdict


def _forgotten(history: Sequence[Done], ledger_lost_at: float) -> set[str]:
    """Keys whose latest change may have been waiting in the ledger that was lost: a sweep finds what is
    missing and what differs in content, but no tags or headers, and deletes nothing that is not on record.
    """
    latest: dict[str, float] = defaultdict(float)
    for done in history:
        if not done.error:
            latest[done.key] = max(latest[done.key], done.ended_at)
    return {key for key, at in latest.items() if at <= ledger_lost_at + NOTICED_S}


def rows(stage: Stage) -> list[dict[str, Any]]:
    """The ledger's entries, read past the service."""
    query = "SELECT * FROM entries ORDER BY key"
    if stage.database:
        url = stage.database.url.removesuffix("postgres") + "ledger"
        with psycopg.connect(url, row_factory=dict_row) as connection:
            return connection.execute(query).fetchall()
    with closing(sqlite3.connect(f"file:{stage.ledger}?mode=ro", uri=True, timeout=30)) as connection:
        connection.row_factory = sqlite3.Row
        return [dict(row) for row in connection.execute(query)]


# ── both sides ───────────────────────────────────────────────────────────────────────────────────────


def _tagged_unheard(history: Sequence[Done], unheard: Sequence[tuple[float, float]]) -> set[str]:
    """Keys that were tagged last while events were lost: no listing shows tags."""
    latest = {done.key: done for done in sorted(history, key=lambda done: done.began_at) if not done.error}
    return {
        key
        for key, done in latest.items()
        if done.verb == "tag" and any(began <= done.began_at <= ended for began, ended in unheard)
    }


def _kept(
    entries: Mapping[str, Mapping[str, Any]],
    source: Mapping[str, str],
    target: Mapping[str, str],
    forgotten: set[str],
) -> set[str]:
    """What only the target has, and keeps because the ledger that knew it as a copy was lost."""
    extra = (set(target) - set(source)) & forgotten
    return {key for key in extra if key not in entries or NOT_OURS in (entries[key]["lost"] or "")}


def _compare_by_rclone(stage: Stage, verdict: Verdict, kept: set[str]) -> None:
    found = rclone_check(stage.source, BUCKET, stage.target, TARGET_BUCKET, download=True)
    differences = [line for line in found.differences if line[2:] not in kept]
    if differences:
        verdict.add(f"rclone finds {len(differences)} differences: {differences[:10]}")
        verdict.keys.update(line[2:] for line in differences)
    elif not found.ok and not kept:
        verdict.add(f"rclone could not compare: {found.output[-500:]}")


def _compare_by_boto3(
    source: Side, target: Side, verdict: Verdict, kept: set[str], forgiven: set[str]
) -> None:
    theirs, ours = source.etags(), target.etags()
    for key in (set(theirs) ^ set(ours)) - kept:
        verdict.add(f"{key!r} is only at the {'source' if key in theirs else 'target'}", key)
    common = sorted(set(theirs) & set(ours))
    with ThreadPoolExecutor(READERS) as pool:
        for key, here, there in zip(
            common, pool.map(source.read, common), pool.map(target.read, common), strict=True
        ):
            verdict.objects += 1
            verdict.bytes_read += here.size
            if here.headers.get("ContentType") == NO_TYPE:
                there = replace(there, headers={**there.headers, "ContentType": NO_TYPE})
            if here == there:
                continue
            if key in forgiven and here.digest == there.digest:
                verdict.unlisted += 1
            else:
                verdict.add(f"{key!r} differs: {here} at the source, {there} at the target", key)


# ── the ledger ───────────────────────────────────────────────────────────────────────────────────────


def _check_entries(
    entries: Mapping[str, Mapping[str, Any]],
    source: Mapping[str, str],
    target: Mapping[str, str],
    verdict: Verdict,
) -> None:
    verdict.entries = len(entries)
    for key, row in entries.items():
        what = _wrong_with(row, source.get(key), target.get(key))
        if what:
            facts = {
                name: row[name]
                for name in ("state", "outcome", "source_etag", "target_etag", "error", "upload")
            }
            verdict.add(f"the entry of {key!r}: {what}: {facts}", key)


def _wrong_with(row: Mapping[str, Any], at_source: str | None, at_target: str | None) -> str:
    if row["state"] != "settled":
        return f"is {row['state']}"
    if row["generation"] != row["claimed_generation"]:
        return "is settled though something newer was asked for"
    if row["upload"]:
        return "still notes an upload"
    if row["outcome"] in COPIED and (row["source_etag"], row["target_etag"]) != (at_source, at_target):
        return f"claims what is not there: {at_source} at the source, {at_target} at the target"
    if row["outcome"] in ("deleted", "gone") and at_source is not None:
        return "says it is gone from the source, which has it"
    if row["outcome"] == "deleted" and at_target is not None:
        return "says it was deleted at the target, which has it"
    return ""


# ── the recovery point ───────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class Sample:
    """A recovery point that the service told in the middle of the run, and the target's listing after it."""

    point: float
    listed_at: float
    etags: Mapping[str, str]

    @classmethod
    def of(cls, stage: Stage) -> Sample | None:
        """None: nobody answers, or the service knows of no recovery point yet."""
        answer = stage.get("/v1/status")
        point = answer.json()["rules"]["default"]["recovery_point"] if answer else None
        if point is None:
            return None
        etags = Side(stage.target, TARGET_BUCKET).etags()
        return cls(datetime.fromisoformat(point).timestamp(), time.time(), etags)


def _check_recovery_point(sample: Sample, history: Sequence[Done], verdict: Verdict) -> None:
    """Whatever a client was told before that moment is at the target, unless it was changed since."""
    verdict.recovery_points += 1
    asked: dict[str, list[Done]] = defaultdict(list)
    for done in history:
        if done.began_at <= sample.listed_at and not done.was_refused:
            asked[done.key].append(done)
    for key, all_done in asked.items():
        *before, last = sorted(all_done, key=lambda done: done.began_at)
        is_clear = all(done.ended_at < last.began_at for done in before)
        is_clear &= not any(done.is_unknown and last.began_at - done.ended_at < LATE_S for done in all_done)
        if is_clear and last.etag and last.ended_at <= sample.point and sample.etags.get(key) != last.etag:
            what = f"recovery point {sample.point:.3f} was not true at {sample.listed_at:.3f} of {key!r}"
            verdict.add(f"{what}: {last.facts()}, at the target {sample.etags.get(key)}", key)


# ── telling ──────────────────────────────────────────────────────────────────────────────────────────


def story(stage: Stage, keys: set[str], history: Sequence[Done]) -> list[str]:
    """What clients did with these keys, and what the service logged about them, in order."""
    lines = [(done.began_at, f"client {done.facts()}") for done in history if done.key in keys]
    for service in stage.services:
        lines += [(at, f"{service.folder.name} {text}") for at, text in _logged(service.log_path, keys)]
    return [f"{at:.3f} {text}" for at, text in sorted(lines)]


def _logged(path: Path, keys: set[str]) -> list[tuple[float, str]]:
    found = []
    for line in path.read_text(errors="replace").splitlines():
        if re.match(r"\{.*\}$", line):
            fact = json.loads(line)
            if fact.get("key") in keys:
                found.append((float(fact.get("began_at") or 0.0), line))
    return found
