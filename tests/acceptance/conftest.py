"""The whole service as processes: a MinIO-API source with notifications, the replicator, a target."""

from __future__ import annotations

import hashlib
import io
import json
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import minio
import pytest
import urllib3
from minio.notificationconfig import NotificationConfig, QueueConfig

from scripts.local_servers import Gateway, PostgreSQL, SeaweedFS
from scripts.local_service import WEBHOOK_AUTH_TOKEN, Replicator
from scripts.local_tools import CheckResult, rclone_check
from tests.policies import User, add_minio_user, add_seaweed_user, policy

if TYPE_CHECKING:
    from tests.acceptance.fleet import Fleet

BUCKET = "source"
STARTING_S = 0.5
ARNS = ("arn:minio:sqs::NOW:webhook", "arn:minio:sqs::QUEUE:webhook")


def until(condition: Callable[[], Any], *, bound_s: float, what: str) -> Any:
    """The condition's value once it is true; fails after `bound_s`."""
    deadline = time.monotonic() + bound_s
    while True:
        value = condition()
        if value:
            return value
        assert time.monotonic() < deadline, f"not within {bound_s:.0f} s: {what}"
        time.sleep(0.05)


@dataclass
class Stack:
    """A source, the service and a target, wired together."""

    source: Gateway
    target: SeaweedFS
    target_bucket: str
    service: Replicator

    def put(self, key: str, body: bytes, **more: Any) -> str:
        """Uploads to the source in one request; gives the ETag."""
        done = self.client().put_object(
            bucket_name=BUCKET, object_name=key, data=io.BytesIO(body), length=len(body), **more
        )
        return str(done.etag)

    def client(self) -> minio.Minio:
        """A client of the source that waits out nothing and repeats nothing."""
        return self.source.client(urllib3.PoolManager(retries=False, timeout=60))

    def put_many(self, keys: list[str], body_of: Callable[[str], bytes], *, clients: int) -> None:
        """Uploads by several clients at once."""
        with ThreadPoolExecutor(clients) as pool:
            list(pool.map(lambda key: self.put(key, body_of(key)), keys))

    def remove(self, key: str) -> None:
        """Removes from the source."""
        self.client().remove_object(bucket_name=BUCKET, object_name=key)

    def remove_many(self, keys: list[str], *, clients: int) -> None:
        """Removes one by one, by several clients at once."""
        with ThreadPoolExecutor(clients) as pool:
            list(pool.map(self.remove, keys))

    def target_keys(self) -> dict[str, str]:
        """key → ETag of all that is at the target."""
        found = self.target.client().list_objects(bucket_name=self.target_bucket, recursive=True)
        return {str(each.object_name): (each.etag or "").strip('"') for each in found}

    def put_at_target(self, key: str, body: bytes) -> None:
        """Writes to the target past the service."""
        self.target.client().put_object(
            bucket_name=self.target_bucket, object_name=key, data=io.BytesIO(body), length=len(body)
        )

    def target_etag(self, key: str) -> str | None:
        """The ETag at the target, None where there is no such object."""
        try:
            found = self.target.client().stat_object(bucket_name=self.target_bucket, object_name=key)
        except minio.S3Error:
            return None
        return (found.etag or "").strip('"')

    def target_body(self, key: str) -> bytes:
        """The content at the target."""
        answer = self.target.client().get_object(bucket_name=self.target_bucket, object_name=key)
        with answer:
            return bytes(answer.read())

    def wait_until_settled(self, *, entries: int, bound_s: float) -> None:
        """Until that many entries are settled and none is anything else."""

        def quiet() -> bool:
            return self.service.settled() >= entries and self.service.unsettled() == 0

        until(quiet, bound_s=bound_s, what=f"{entries} entries settled and none waiting")

    def rule(self) -> dict[str, Any]:
        """What GET /v1/status says of the only rule."""
        return dict(self.service.get("/v1/status").json()["rules"]["default"])

    def entry(self, key: str) -> dict[str, Any]:
        """The ledger's entry; {} where there is none."""
        answer = self.service.get(f"/v1/entries/default/{key}")
        return dict(answer.json()) if answer.ok else {}

    def ask_for_sweep(self) -> dict[str, Any]:
        """Asks for a sweep of everything, which is not done yet when this returns."""
        (asked,) = self.service.post("/v1/sweeps").json()["sweeps"]
        return dict(asked)

    def sweep(self, *, bound_s: float = 60.0) -> dict[str, Any]:
        """A whole sweep: what it found. What it put is not settled yet when this returns."""
        asked = self.ask_for_sweep()

        def over() -> dict[str, Any] | None:
            found = self.service.get(asked["link"]).json()
            return dict(found) if found["state"] == "complete" else None

        return dict(until(over, bound_s=bound_s, what="the sweep is complete"))

    def compare(self) -> CheckResult:
        """The verdict of a tool of another make, which reads every byte of both sides."""
        return rclone_check(self.source, BUCKET, self.target, self.target_bucket, download=True)

    def log_lines(self, path: Path | None = None) -> list[dict[str, Any]]:
        """The service's log, which must run with LOG_FORMAT=json."""
        lines = (path or self.service.log_path).read_text().splitlines()
        return [json.loads(line) for line in lines if line.startswith("{")]


def add_reader(source: Gateway) -> User:
    """The service's user at a source; its keys are the same at each."""
    return add_minio_user(source, "replicator", policy("minio-source", BUCKET))


def add_writer(target: SeaweedFS, bucket: str) -> User:
    """The service's user of a bucket at a target, who may delete there, too."""
    may = [policy(name, bucket) for name in ("aws-target", "aws-target-deletes")]
    return add_seaweed_user(target, bucket, *may)


def least_keys(source: Gateway, target: SeaweedFS, target_bucket: str) -> dict[str, str]:
    """The keys of new users who may do what the service needs, deletes too, and nothing else."""
    reader, writer = add_reader(source), add_writer(target, target_bucket)
    return {**reader.variables("MINIO"), **writer.variables("FILEBASE")}


@contextmanager
def running_stack(folder: Path, target: SeaweedFS, target_bucket: str, **environ: str) -> Iterator[Stack]:
    """A stack in this folder; `environ` adds settings of the service. No sweeps but those asked for."""
    source = Gateway(folder / "source").start()
    service = Replicator(
        folder / "service",
        source=source,
        source_bucket=BUCKET,
        target=target,
        target_bucket=target_bucket,
        keys=least_keys(source, target, target_bucket),
        environ={"LOG_FORMAT": "json", "RECONCILE_INTERVAL_S": "0", **environ},
    )
    try:
        service.start()
        source.client().make_bucket(bucket_name=BUCKET)
        notify(source, service.events_url, queue_dir=folder / "queue")
        yield Stack(source=source, target=target, target_bucket=target_bucket, service=service)
    finally:
        service.stop()
        source.stop()


@pytest.fixture
def stack(
    tmp_path: Path, seaweed: SeaweedFS, new_bucket: Callable[[SeaweedFS], str]
) -> Iterator[Callable[..., Stack]]:
    """Starts a `running_stack` of the test's own; keywords are settings of the service."""
    with ExitStack() as running:

        def start(**environ: str) -> Stack:
            bucket = new_bucket(seaweed)
            return running.enter_context(running_stack(tmp_path, seaweed, bucket, **environ))

        yield start


@pytest.fixture
def fleet(
    tmp_path: Path, seaweed: SeaweedFS, postgresql: PostgreSQL, new_bucket: Callable[[SeaweedFS], str]
) -> Iterator[Callable[..., Fleet]]:
    """Makes a source, a target and an empty ledger for a fleet whose processes the test adds and starts."""
    from tests.acceptance.fleet import Fleet  # which needs this module

    made: list[Fleet] = []

    def make(*, database: PostgreSQL = postgresql, **settings: str) -> Fleet:
        bucket = new_bucket(seaweed)
        url = database.create_database(f"fleet_{bucket.replace('-', '_')}")
        defaults = {"LOG_FORMAT": "json", "RECONCILE_INTERVAL_S": "0", "LEASE_S": "5", "WORKER_THREADS": "4"}
        source = Gateway(tmp_path / "source").start()
        fleet = Fleet(
            source=source,
            target=seaweed,
            target_bucket=bucket,
            keys=least_keys(source, seaweed, bucket),
            folder=tmp_path,
            settings={**defaults, "DATABASE_URL": url, **settings},
        )
        made.append(fleet)
        fleet.source.client().make_bucket(bucket_name=BUCKET)
        return fleet

    yield make
    for each in made:
        each.stop()


def notify(source: Gateway, events_url: str, queued_url: str = "", *, queue_dir: Path) -> None:
    """Two notification targets: one direct, and one (of `queued_url`, where that is another) that keeps what
    it could not deliver.

    Told twice: once, of what the source accepted in the first moment after its start no event came. While it
    starts it may put what it had read of the bucket before, nothing, in its place.
    """
    queue_dir.mkdir(exist_ok=True)
    environ = {"MINIO_NOTIFY_WEBHOOK_QUEUE_DIR_QUEUE": str(queue_dir)}
    for name, url in (("NOW", events_url), ("QUEUE", queued_url or events_url)):
        environ[f"MINIO_NOTIFY_WEBHOOK_ENABLE_{name}"] = "on"
        environ[f"MINIO_NOTIFY_WEBHOOK_ENDPOINT_{name}"] = url
        environ[f"MINIO_NOTIFY_WEBHOOK_AUTH_TOKEN_{name}"] = WEBHOOK_AUTH_TOKEN
    source.restart(environ=environ)
    tell(source, *ARNS)
    time.sleep(STARTING_S)
    tell(source, *ARNS)


def tell(source: Gateway, *arns: str) -> None:
    """Has the bucket's changes told to these notification targets from now on, and to no others."""
    config = NotificationConfig(
        queue_config_list=[
            QueueConfig(queue=arn, events=["s3:ObjectCreated:*", "s3:ObjectRemoved:*"], config_id=arn)
            for arn in arns
        ]
    )

    def accepted() -> bool:
        try:
            source.client().set_bucket_notification(bucket_name=BUCKET, config=config)
        except minio.S3Error:
            return False
        return True

    until(accepted, bound_s=20, what="the notification targets are live")


def content(key: str) -> bytes:
    """Some bytes that no other key has, 1 to 12 kB of them."""
    seed = hashlib.sha256(key.encode()).digest()
    return seed * (32 + seed[0])
