"""What processes say of their surroundings when they start."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, MutableMapping
from dataclasses import replace
from datetime import timedelta
from email.utils import format_datetime, parsedate_to_datetime
from pathlib import Path
from typing import Any

import pytest
from minio.notificationconfig import NotificationConfig, QueueConfig
from structlog.testing import capture_logs

from scripts.local_servers import Gateway, S3Server, SeaweedFS
from scripts.local_service import LoneWorker, Replicator
from tests.integration.test_minio_setup import Receiver, poll
from tests.integration.test_scripts import source_variables, target_variables, until
from tests.proxy import Exchange, Proxy, answering, drop
from webhook import disks, startcheck
from webhook.service import Service, assemble
from webhook.settings import Settings, from_environ

Lines = list[MutableMapping[str, Any]]
Begin = Callable[..., Lines]


@pytest.fixture
def begin(
    tmp_path: Path, gateway: Gateway, seaweed: SeaweedFS, new_bucket: Callable[[S3Server], str]
) -> Iterator[Begin]:
    """Starts the checks of a service with these settings; gives what was logged, by part."""
    opened: list[Service] = []
    bucket, copies = new_bucket(gateway), new_bucket(seaweed)

    def run(change: Callable[[Settings], Settings] = lambda each: each, **changes: str) -> Lines:
        variables = source_variables(gateway, bucket) | target_variables(seaweed, copies)
        variables |= {"DATABASE_URL": f"sqlite:///{tmp_path}/ledger.db", **changes}
        configured = change(from_environ(variables))
        opened.append(assemble(configured))
        with capture_logs() as lines:
            startcheck.begin(opened[-1].checks(), opened[-1].sides, configured).join(60)
        return [line for line in lines if line["event"] == "checked at start"]

    yield run
    for service in opened:
        service.close()


def found(lines: Lines, part: str) -> list[str]:
    return [line["found"] for line in lines if line["part"] == part]


def test_there_is_one_line_for_each_part_that_is_well(begin: Begin) -> None:
    lines = begin()
    assert found(lines, "ledger") == ["fine"]
    assert found(lines, "target") == ["fine"]
    assert {line["part"] for line in lines} == {"ledger", "source", "target"}


def test_a_bucket_that_tells_nobody_of_changes_is_named_with_the_command_for_it(begin: Begin) -> None:
    (line,) = [line for line in begin() if line["part"] == "source"]
    assert "tells nobody of changes" in line["found"]
    assert "python config/configure_minio.py" in line["hint"]
    assert line["log_level"] == "warning"


@pytest.mark.parametrize(
    ("changes", "part", "text"),
    [
        ({"FILEBASE_BUCKET": "nowhere"}, "target", "the bucket does not exist"),
        ({"FILEBASE_SECRET_KEY": "wrong"}, "target", "answered 403"),
        ({"FILEBASE_ENDPOINT": "http://127.0.0.1:9"}, "target", "no answer"),
        ({"MINIO_BUCKET": "nowhere"}, "source", "the bucket does not exist"),
    ],
)
def test_what_is_wrong_is_named_with_what_to_do(
    begin: Begin, changes: dict[str, str], part: str, text: str
) -> None:
    lines = begin(**changes)
    wrong = [line for line in lines if line["part"] == part]
    assert text in wrong[0]["found"]
    assert wrong[0]["hint"]
    assert found(lines, "ledger") == ["fine"], "the others are looked at all the same"


def test_a_clock_that_differs_is_named(begin: Begin, gateway: Gateway) -> None:
    def shift(exchange: Exchange) -> None:
        answer = exchange.forward()
        told = parsedate_to_datetime(answer.headers["Date"]) - timedelta(minutes=10)
        answer.headers["Date"] = format_datetime(told, usegmt=True)

    with Proxy(gateway.endpoint) as proxy:
        proxy.plan("HeadBucket", shift, times=9)
        lines = begin(MINIO_ENDPOINT=proxy.endpoint)
    (text,) = [text for text in found(lines, "source") if "clock" in text]
    assert "s behind this machine's" in text


@pytest.mark.parametrize("fault", [answering(403, "AccessDenied"), answering(501, "NotImplemented"), drop])
def test_a_source_that_does_not_say_whom_it_tells_is_fine(
    begin: Begin, gateway: Gateway, fault: Callable[[Exchange], None]
) -> None:
    with Proxy(gateway.endpoint) as proxy:
        proxy.plan("GET bucket", fault, times=9)
        assert found(begin(MINIO_ENDPOINT=proxy.endpoint), "source") == ["fine"]


def test_a_ledger_on_a_disk_that_does_not_last_is_named(
    begin: Begin, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = tmp_path / "mounts"
    table.write_text("1 1 0:1 / / rw - ext4 /dev/root rw\n")
    monkeypatch.setattr(disks, "MOUNTS", table)
    lines = begin(lambda each: replace(each, platform="Railway"))
    assert "Railway container's own disk" in found(lines, "ledger")[0]
    assert found(begin(RAILWAY_ENVIRONMENT_ID="e"), "ledger") == found(lines, "ledger")


# ── processes ────────────────────────────────────────────────────────────────────────────────────────────


def checked(process: Replicator) -> dict[str, list[str]]:
    """Part → what the process's log says of it."""
    lines = [json.loads(line) for line in process.log_path.read_text().splitlines() if line[0] == "{"]
    said: dict[str, list[str]] = {}
    for line in lines:
        if line.get("event") == "checked at start":
            said.setdefault(line["part"], []).append(line["found"])
    return said


@pytest.mark.parametrize("kind", [Replicator, LoneWorker])
def test_each_process_says_what_it_finds_and_starts_whatever_that_is(
    tmp_path: Path, gateway: Gateway, seaweed: SeaweedFS, new_bucket: Callable[[S3Server], str], kind: Any
) -> None:
    process = kind(
        tmp_path / "process",
        source=gateway,
        source_bucket=new_bucket(gateway),
        target=seaweed,
        target_bucket="nowhere",
        environ={"LOG_FORMAT": "json", "RECONCILE_INTERVAL_S": "0"},
    )
    with process:
        said = until(lambda: len(found := checked(process)) == 3 and found, "all parts are looked at")
        assert process.alive
    assert said["ledger"] == ["fine"]
    assert "the bucket does not exist" in said["target"][0]


def test_a_process_without_a_worker_looks_too_and_a_bucket_that_is_bound_is_fine(
    tmp_path: Path, seaweed: SeaweedFS, new_bucket: Callable[[S3Server], str]
) -> None:
    receiver = Receiver()
    environ = {
        "MINIO_NOTIFY_WEBHOOK_ENABLE_X": "on",
        "MINIO_NOTIFY_WEBHOOK_ENDPOINT_X": receiver.url,
    }
    source = Gateway(tmp_path / "source", environ=environ)
    try:
        source.start()
        bucket = new_bucket(source)
        queue = QueueConfig(queue="arn:minio:sqs::X:webhook", events=["s3:ObjectCreated:*"])
        config = NotificationConfig(queue_config_list=[queue])

        def is_bound() -> bool:
            try:
                source.client().set_bucket_notification(bucket_name=bucket, config=config)
            except Exception:  # noqa: BLE001 - its targets are not live yet
                return False
            return True

        assert poll(is_bound)
        service = Replicator(
            tmp_path / "service",
            source=source,
            source_bucket=bucket,
            target=seaweed,
            target_bucket=new_bucket(seaweed),
            environ={"LOG_FORMAT": "json", "WORKER_EMBEDDED": "false"},
        )
        with service:
            said = until(lambda: len(found := checked(service)) == 3 and found, "all parts are looked at")
        assert said == {"ledger": ["fine"], "source": ["fine"], "target": ["fine"]}
    finally:
        source.stop()
        receiver.close()
