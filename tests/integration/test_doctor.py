"""scripts/doctor.py on real servers: a stack that is well, and what it says of each thing that is not."""

from __future__ import annotations

import json
import re
import signal
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import timedelta
from email.utils import format_datetime, parsedate_to_datetime
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from minio.commonconfig import ENABLED
from minio.versioningconfig import VersioningConfig

from scripts import doctor, doctor_event
from scripts.local_processes import free_port
from scripts.local_servers import ACCESS_KEY, SECRET_KEY, Gateway, PostgreSQL, S3Server, SeaweedFS
from scripts.local_service import API_TOKEN, WEBHOOK_AUTH_TOKEN, Replicator
from tests.integration.test_scripts import Shell, put, until
from tests.proxy import Exchange, Proxy, answering
from webhook.ledger import Ledger
from webhook.probes import FOLDER
from webhook.tables import ENTRIES, FINDINGS, METADATA

BUCKET = "source"
SECRETS = (ACCESS_KEY, SECRET_KEY, API_TOKEN, WEBHOOK_AUTH_TOKEN)
WRITES = {"PutObject", "DeleteObject", "CreateMultipartUpload", "UploadPart", "CompleteMultipartUpload"}
Line = Mapping[str, Any]


@dataclass
class Site:
    """A source that tells a running service of changes, and its target."""

    gateway: Gateway
    target: SeaweedFS
    target_bucket: str
    service: Replicator
    folder: Path

    def variables(self, **changes: str) -> dict[str, str]:
        return {**self.service.settings(), **changes}

    def left(self) -> list[str]:
        """What is at both sides of the doctor's, unfinished uploads too."""
        uploads = self.target.client()._list_multipart_uploads(self.target_bucket).uploads
        return [
            *keys(self.gateway, BUCKET),
            *keys(self.target, self.target_bucket),
            *(upload.object_name for upload in uploads),
        ]

    def rows(self, table: sa.Table) -> list[tuple[Any, ...]]:
        ledger = Ledger.open(f"sqlite:///{self.service.folder}/data/replicator.db")
        try:
            with ledger.reading() as connection:
                return [tuple(row) for row in connection.execute(sa.select(table))]
        finally:
            ledger.close()


def keys(server: S3Server, bucket: str) -> list[str]:
    """Those of the doctor."""
    listed = server.client().list_objects(bucket_name=bucket, recursive=True)
    return [name for each in listed if FOLDER in (name := each.object_name or "")]


@pytest.fixture(scope="module")
def site(seaweed: SeaweedFS, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """All is well there: MinIO tells of changes, one sweep has proved the target to be complete."""
    from tests.acceptance.conftest import notify

    folder = tmp_path_factory.mktemp("site")
    gateway = Gateway(folder / "gateway").start()
    target_bucket = "doctor-copies"
    seaweed.client().make_bucket(bucket_name=target_bucket)
    gateway.client().make_bucket(bucket_name=BUCKET)
    service = Replicator(
        folder / "service",
        source=gateway,
        source_bucket=BUCKET,
        target=seaweed,
        target_bucket=target_bucket,
    )
    try:
        service.start()
        notify(gateway, service.events_url, queue_dir=folder / "queue")
        put(gateway, BUCKET, "one", "two")
        until(lambda: service.settled() >= 2 and service.unsettled() == 0, "what is there is copied")
        until(lambda: _is_proved(service), "a sweep has proved it")
        yield Site(gateway, seaweed, target_bucket, service, folder)
    finally:
        service.stop()
        gateway.stop()


def _is_proved(service: Replicator) -> bool:
    return bool(service.get("/v1/status").json()["rules"]["default"]["recovery_point"])


@dataclass
class Run:
    """What one run of the doctor said."""

    code: int
    lines: list[dict[str, Any]]

    def of(self, part: str, level: str = "") -> list[dict[str, Any]]:
        return [each for each in self.lines if each["part"] == part and level in ("", each["level"])]

    def text(self, part: str, level: str = "") -> str:
        return "\n".join(f"{each['text']} → {each['mend']}" for each in self.of(part, level))

    @property
    def wrong(self) -> list[str]:
        return [each["text"] for each in self.lines if each["level"] == "wrong"]


Look = Callable[..., Run]


@pytest.fixture
def look(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Look:
    """Runs it here, with the site's settings and these changes; events are waited for 10 s."""
    monkeypatch.setattr(doctor_event, "EVENT_BOUND_S", 10.0)
    monkeypatch.chdir(site.service.folder)
    for name in ("HTTPS_PROXY", "https_proxy", "RULES_FILE", "REPLICATOR_URL"):
        monkeypatch.delenv(name, raising=False)

    def run(*options: str, **changes: str) -> Run:
        with monkeypatch.context() as here:
            for name, value in site.variables(**changes).items():
                here.setenv(name, value)
            code = doctor.main([*options, "--json"])
        printed = capsys.readouterr()
        for secret in SECRETS:
            assert secret not in printed.out + printed.err
        # what is logged comes there, too, where no script has switched it off
        return Run(code, [json.loads(line) for line in printed.out.splitlines() if line[0] == "{"])

    return run


@pytest.fixture
def before_target(site: Site) -> Iterator[Proxy]:
    with Proxy(site.target.endpoint) as proxy:
        yield proxy


@pytest.fixture
def before_source(site: Site) -> Iterator[Proxy]:
    with Proxy(site.gateway.endpoint) as proxy:
        yield proxy


# ── all is well ──────────────────────────────────────────────────────────────────────────────────────────


def test_a_stack_that_is_well_is_called_that_and_is_clean_afterwards(site: Site) -> None:
    shell = Shell(site.service.folder, site.variables())
    done = shell.run("doctor")
    for secret in SECRETS:
        assert secret not in done.out + done.err
    assert done.code == 0, done.out + done.err
    assert "✘" not in done.out
    assert "nothing is wrong" in done.out
    assert re.search(r"the event came after [\d.]+ s, its object was copied after [\d.]+ s", done.out)
    assert "PutObject with If-None-Match is heeded" in done.out
    assert "a key with .. is refused" in done.out
    assert site.left() == []
    assert [row for row in site.rows(ENTRIES) if FOLDER in row[1]] == []


def test_what_was_found_is_kept_in_the_ledger_for_the_target_at_its_endpoint(site: Site, look: Look) -> None:
    run = look("--only", "target")
    assert run.code == 0, run.wrong
    ((target, endpoint, _, text),) = site.rows(FINDINGS)
    found = json.loads(text)
    assert (target, endpoint) == ("filebase", site.target.endpoint)
    assert set(found["conditions"].values()) == {True}
    assert "metadata" in found["held"]
    assert found["report"]["tags"] is True
    assert {each["part"] for each in run.lines} == {"settings", "target filebase"}
    assert site.left() == []


def test_read_only_writes_nothing_anywhere(
    site: Site, look: Look, before_source: Proxy, before_target: Proxy
) -> None:
    tables = {table.name: site.rows(table) for table in METADATA.sorted_tables if table.name != "workers"}
    run = look(
        "--read-only",
        MINIO_ENDPOINT=before_source.endpoint,
        FILEBASE_ENDPOINT=before_target.endpoint,
        TARGET_MAX_RPS="1000",  # which processes share by the ledger
    )
    assert run.code == 0, run.wrong
    assert not WRITES & (before_source.counted.keys() | before_target.counted.keys())
    after = {table.name: site.rows(table) for table in METADATA.sorted_tables if table.name != "workers"}
    for name in ("entries", "findings", "slots", "rules", "quarantine"):
        assert after[name] == tables[name]
    assert "--read-only" in run.text("events", "skipped")
    assert "--read-only" in run.text("target filebase", "skipped")


def test_the_service_is_asked_where_its_ledger_is_elsewhere(site: Site, look: Look) -> None:
    run = look("--only", "ledger,events,work", DATABASE_URL="sqlite:///elsewhere/replicator.db")
    assert run.code == 0, run.wrong
    assert "the event came" in run.text("events", "fine")
    assert "asked instead" in run.text("ledger", "skipped")
    assert "Target complete" in run.text("work", "fine")
    assert not (site.service.folder / "elsewhere").exists()
    assert site.left() == []


def test_trials_stay_below_the_rules_target_prefix(
    site: Site, look: Look, before_target: Proxy, tmp_path: Path
) -> None:
    paths: list[str] = []
    for operation in WRITES:
        before_target.plan(operation, lambda exchange: paths.append(exchange.path), times=1000)
    rules = tmp_path / "rules.toml"
    rules.write_text(
        f'[rules.a]\nsource = "{BUCKET}"\nbucket = "{site.target_bucket}"\ntarget_prefix = "below/"\n'
    )
    run = look("--only", "target", RULES_FILE=str(rules), FILEBASE_ENDPOINT=before_target.endpoint)
    assert run.code == 0, run.wrong
    assert len(paths) > 30
    assert {path.startswith(f"/{site.target_bucket}/below/{FOLDER}") for path in paths} == {True}


# ── what is wrong ────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("changes", "part", "text", "mend"),
    [
        ({"MINIO_BUCKET": "nowhere"}, "source", "bucket nowhere", "mc mb SOURCE/nowhere"),
        ({"MINIO_BUCKET": "no-such-*"}, "source", "no bucket matches no-such-*", "Create the bucket"),
        ({"MINIO_SECRET_KEY": "wrong-secret"}, "source", "SignatureDoesNotMatch", "Correct MINIO_SECRET_KEY"),
        ({"MINIO_ACCESS_KEY": "nobody-here"}, "source", "InvalidAccessKeyId", "Correct MINIO_ACCESS_KEY"),
        ({"FILEBASE_BUCKET": "nowhere"}, "target filebase", "bucket nowhere", "Create the bucket nowhere"),
        ({"FILEBASE_SECRET_KEY": "wrong"}, "target filebase", "SignatureDoesNotMatch", "FILEBASE_SECRET_KEY"),
        (
            {"FILEBASE_ENDPOINT": "http://127.0.0.1:9"},
            "target filebase",
            "no answer",
            "Check that the store runs",
        ),
        (
            {"FILEBASE_STORAGE_CLASS": "NO_SUCH"},
            "target filebase",
            "refuses the storage class",
            "FILEBASE_STORAGE_CLASS",
        ),
        ({"DATABASE_URL": "sqlite:///no/x.db", "PORT": "9"}, "ledger", "there is no ledger at", "make run"),
    ],
)
def test_each_thing_that_is_wrong_is_named_with_what_mends_it_and_hides_no_other(
    site: Site, look: Look, changes: dict[str, str], part: str, text: str, mend: str
) -> None:
    run = look("--only", "source,ledger,target", **changes)
    assert run.code == 1
    (wrong,) = run.of(part, "wrong")
    assert text in wrong["text"]
    assert mend in wrong["mend"]
    assert run.wrong == [wrong["text"]], "nothing else is"
    assert len({each["part"] for each in run.lines}) == 4, "all were looked at"
    assert site.left() == []


def test_settings_that_cannot_be_used_are_all_named_at_once(site: Site) -> None:
    shell = Shell(
        site.service.folder, site.variables(MINIO_ENDPOINT="nonsense", FILEBASE_BUCKET="", PORT="x")
    )
    done = shell.run("doctor")
    assert (done.code, done.out) == (2, "")
    for name in ("MINIO_ENDPOINT", "FILEBASE_BUCKET", "PORT"):
        assert name in done.err


def test_an_event_that_does_not_come_is_missed_and_its_object_removed(site: Site, look: Look) -> None:
    """The source tells another service than the one of this ledger."""
    site.gateway.client().make_bucket(bucket_name="untold")
    run = look("--only", "events", MINIO_BUCKET="untold", PORT=str(free_port()))
    assert run.code == 1
    unbound, missed = run.of("events", "wrong")
    assert "not bound" in unbound["text"]
    assert "python config/configure_minio.py" in unbound["mend"]
    assert "no event of an object came" in missed["text"]
    assert "No service answers" in missed["mend"]
    assert "curl -i" in missed["mend"]
    assert list(site.gateway.client().list_objects(bucket_name="untold", recursive=True)) == []


def test_a_service_that_is_away_is_missed(site: Site, look: Look) -> None:
    site.service.stop()
    try:
        run = look("--only", "events,work")
    finally:
        site.service.start()
    assert "no event of an object came" in run.text("events", "wrong")
    assert "no process replicates" in run.text("work", "wrong")
    assert "python -m webhook.worker" in run.text("work", "wrong")
    until(lambda: site.service.unsettled() == 0, "MinIO's queue has told of what was missed")
    assert site.left() == []


def test_a_source_that_may_not_be_written_to_is_no_fault(
    site: Site, look: Look, before_source: Proxy
) -> None:
    before_source.plan("PutObject", answering(403, "AccessDenied"), times=9)
    run = look("--only", "events", MINIO_ENDPOINT=before_source.endpoint)
    assert run.code == 0, run.wrong
    assert "s3:PutObject" in run.text("events", "skipped")
    assert "--read-only" in run.text("events", "skipped")


def test_a_copy_that_cannot_be_made_is_told_with_its_reason(
    site: Site, look: Look, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor_event, "COPY_BOUND_S", 5.0)
    site.target.stop()
    try:
        run = look("--only", "events")
    finally:
        site.target.start()
    assert "but the copy is not done" in run.text("events", "wrong")
    until(lambda: site.service.get("/readyz").status_code == 200, "the target is back")


@pytest.mark.parametrize("off", [timedelta(hours=1), timedelta(hours=-1)])
def test_clocks_that_differ_are_told(site: Site, look: Look, before_source: Proxy, off: timedelta) -> None:
    def shift(exchange: Exchange) -> None:
        answer = exchange.forward()
        told = parsedate_to_datetime(answer.headers["Date"])
        answer.headers["Date"] = format_datetime(told + off, usegmt=True)

    before_source.plan("HeadBucket", shift, times=9)
    run = look("--only", "source", MINIO_ENDPOINT=before_source.endpoint)
    assert run.code == 1
    (wrong,) = run.of("source", "wrong")
    assert ("ahead of" if off > timedelta(0) else "behind") in wrong["text"]
    assert 3590 < abs(wrong["skew_s"]) < 3610
    assert "NTP" in wrong["mend"]


def test_a_source_that_is_no_minio_is_looked_at_as_far_as_it_goes(
    site: Site, look: Look, new_bucket: Callable[[S3Server], str]
) -> None:
    run = look(
        "--only",
        "source,events",
        "--read-only",
        MINIO_ENDPOINT=site.target.endpoint,
        MINIO_BUCKET=new_bucket(site.target),
        FILEBASE_ENDPOINT=site.gateway.endpoint,
        FILEBASE_BUCKET=BUCKET,
    )
    assert run.of("source", "wrong") == []
    assert "not shown" in run.text("events", "skipped")


@pytest.mark.parametrize(("state", "level"), [("online", "fine"), ("offline", "wrong")])
def test_what_minio_says_of_its_targets_is_passed_on(
    site: Site, look: Look, before_source: Proxy, state: str, level: str
) -> None:
    """The gateway does not tell; MinIO's administration answers like this."""
    told = {"services": {"notifications": [{"webhook": [{"REPLICATOR_QUEUE": {"status": state}}]}]}}

    def answer(exchange: Exchange) -> None:
        if "/minio/admin/v3/info" in exchange.path:
            answering(200, json.dumps(told).encode())(exchange)

    before_source.plan("GetObject", answer, times=9)
    run = look("--only", "events", "--read-only", MINIO_ENDPOINT=before_source.endpoint)
    assert "REPLICATOR_QUEUE" in run.text("events", level)


# ── ledgers ──────────────────────────────────────────────────────────────────────────────────────────────


def test_postgresql_is_looked_at_and_an_empty_one_is_left_empty(
    site: Site, look: Look, postgresql: PostgreSQL
) -> None:
    url = postgresql.create_database("doctor")
    run = look("--only", "ledger", DATABASE_URL=url)
    assert "is empty" in run.text("ledger", "wrong")
    Ledger.open(url).close()
    run = look("--only", "ledger", DATABASE_URL=url)
    assert run.code == 0, run.wrong
    assert "PostgreSQL 1" in run.text("ledger", "fine")
    assert "agrees" in run.text("ledger", "fine")
    run = look("--only", "ledger", DATABASE_URL=url.replace("/doctor", "/nowhere"))
    assert "nowhere" in run.text("ledger", "wrong")


def test_a_ledger_of_another_version_is_not_touched(site: Site, look: Look, tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/old.db"
    Ledger.open(url).close()
    engine = sa.create_engine(url)
    with engine.begin() as connection:
        connection.exec_driver_sql("UPDATE alembic_version SET version_num = '0001'")
    run = look("--only", "ledger", DATABASE_URL=url)
    assert "has version 0001" in run.text("ledger", "wrong")
    with engine.connect() as connection:
        assert connection.exec_driver_sql("SELECT version_num FROM alembic_version").scalar() == "0001"
    engine.dispose()


# ── cleaning up ──────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("operation", "nth"), [("PutObject", 6), ("UploadPart", 2), ("CompleteMultipartUpload", 2)]
)
def test_ctrl_c_removes_what_was_written(site: Site, before_target: Proxy, operation: str, nth: int) -> None:
    shell = Shell(site.service.folder, site.variables(FILEBASE_ENDPOINT=before_target.endpoint))
    process = None

    def interrupt(_: Exchange) -> None:
        assert process
        process.send_signal(signal.SIGINT)

    before_target.plan(operation, interrupt, nth=nth)
    process = shell.start("doctor", "--only", "target")
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130, err.decode()
    assert b"removed" in err
    assert b"Traceback" not in err
    assert site.left() == []


def test_ctrl_c_while_an_event_is_waited_for_removes_its_object(site: Site) -> None:
    site.gateway.client().make_bucket(bucket_name="untold-either")
    shell = Shell(site.service.folder, site.variables(MINIO_BUCKET="untold-either"))
    process = shell.start("doctor", "--only", "events")
    until(lambda: keys(site.gateway, "untold-either"), "the object is written")
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130, err.decode()
    assert keys(site.gateway, "untold-either") == []


def test_what_cannot_be_removed_is_named(site: Site, look: Look, before_target: Proxy) -> None:
    before_target.plan("DeleteObject", answering(403, "AccessDenied"), times=1000)
    run = look("--only", "target", FILEBASE_ENDPOINT=before_target.endpoint)
    assert run.code == 1
    assert "could not be removed" in run.text("target filebase", "wrong")
    assert FOLDER in run.text("target filebase", "wrong")
    for key in keys(site.target, site.target_bucket):
        site.target.client().remove_object(bucket_name=site.target_bucket, object_name=key)


def test_what_a_killed_run_left_is_removed_by_the_next_one(site: Site, look: Look) -> None:
    key = f"{FOLDER}of-a-killed-run"
    put(site.target, site.target_bucket, key)
    put(site.gateway, BUCKET, key)
    until(lambda: [row for row in site.rows(ENTRIES) if row[1] == key], "the event of it is on record")
    run = look("--only", "events")
    assert run.code == 0, run.wrong
    assert site.left() == []
    assert [row for row in site.rows(ENTRIES) if FOLDER in row[1]] == []


def lost(exchange: Exchange) -> None:
    """The upload is begun, and its id never arrives."""
    exchange.forward()
    exchange.answer = None
    answering(500, "InternalError")(exchange)


def test_an_upload_whose_id_never_arrived_is_found_and_ended(
    site: Site, look: Look, before_target: Proxy
) -> None:
    before_target.plan("CreateMultipartUpload", lost)
    run = look("--only", "target", FILEBASE_ENDPOINT=before_target.endpoint)
    assert run.code == 1
    assert site.left() == []


def test_of_a_bucket_that_keeps_versions_none_is_left(site: Site, look: Look) -> None:
    bucket, client = "doctor-versions", site.target.client()
    client.make_bucket(bucket_name=bucket)
    client.set_bucket_versioning(bucket_name=bucket, config=VersioningConfig(ENABLED))
    run = look("--only", "target", FILEBASE_BUCKET=bucket)
    assert run.code == 0, run.wrong
    left = client.list_objects(bucket_name=bucket, recursive=True, include_version=True)
    assert [each.object_name for each in left] == []


@pytest.mark.parametrize("operation", sorted(WRITES))
def test_a_store_that_breaks_off_in_the_middle_leaves_nothing_behind(
    site: Site, look: Look, before_target: Proxy, operation: str
) -> None:
    before_target.plan(operation, answering(503, "SlowDown"), nth=2)
    run = look("--only", "target", FILEBASE_ENDPOINT=before_target.endpoint)
    assert run.code == 1
    assert site.left() == []
    assert "odd keys" in {each.get("name") for each in run.lines}, "what came after it was tried"
