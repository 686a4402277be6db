"""Many buckets, many targets: each object where its rules say, and nothing elsewhere."""

from __future__ import annotations

import io
import os
import re
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import boto3
import pytest
from botocore.config import Config
from minio.commonconfig import Tags

from scripts.local_servers import ACCESS_KEY, REGION, SECRET_KEY, Gateway, S3Server, SeaweedFS
from scripts.local_service import API_TOKEN, ROOT, WEBHOOK_AUTH_TOKEN, Replicator
from tests.acceptance.conftest import BUCKET, content, notify, until

BOUND_S = 90.0
EXIT_BOUND_S = 60.0


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SeaweedFS]:
    """A second target."""
    with SeaweedFS(tmp_path_factory.mktemp("archive")) as server:
        yield server


@pytest.fixture
def source(tmp_path: Path) -> Iterator[Gateway]:
    """A source of the test's own, so that all its buckets are known."""
    with Gateway(tmp_path / "source") as server:
        yield server


@dataclass
class Running:
    """A service whose settings are the test's."""

    service: Replicator

    def start(self, *, rules: str = "") -> None:
        """Starts it, with these rules if there are some."""
        if rules:
            self.service.folder.mkdir(exist_ok=True)
            (self.service.folder / "rules.toml").write_text(rules)
            self.service.environ["RULES_FILE"] = "rules.toml"
        self.service.start()

    def sweep(self, **asked: str) -> dict[str, dict[str, Any]]:
        """Sweeps as they are when they are complete and all that they found is settled; by rule."""
        answer = self.service.post("/v1/sweeps", json=asked)
        assert answer.status_code == 202, answer.text
        numbers = {each["id"] for each in answer.json()["sweeps"]}

        def over() -> dict[str, dict[str, Any]]:
            found = [each for each in self.sweeps() if each["id"] in numbers]
            is_over = all(each["state"] == "complete" for each in found) and self.service.unsettled() == 0
            return {each["rule"]: each for each in found} if is_over else {}

        return dict(until(over, bound_s=BOUND_S, what="the sweeps are complete and all is settled"))

    def sweeps(self) -> list[dict[str, Any]]:
        """The latest, newest first."""
        found: list[dict[str, Any]] = self.service.get("/v1/sweeps").json()["sweeps"]
        return found

    def replicate(self, key: str, **more: Any) -> tuple[int, dict[str, Any]]:
        """Status and answer of a manual request."""
        answer = self.service.post("/v1/replicate", json={"s3_key": key, **more})
        return answer.status_code, answer.json()

    def entries(self) -> dict[tuple[str, str], str]:
        """(rule, key) → state, from the ledger's file."""
        with self.ledger() as ledger:
            return {
                (rule, key): state
                for rule, key, state in ledger.execute("SELECT rule, key, state FROM entries")
            }

    def ledger(self) -> closing[sqlite3.Connection]:
        """The ledger's file."""
        return closing(sqlite3.connect(self.service.folder / "data" / "replicator.db"))


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Callable[..., Running]]:
    """Makes a service that is not started; keywords are settings. No sweeps but those that are asked for."""
    made: list[Replicator] = []

    def make(
        source: S3Server, target: S3Server, *, archive: S3Server | None = None, **environ: str
    ) -> Running:
        keys = {"TARGET_ARCHIVE_ACCESS_KEY": ACCESS_KEY, "TARGET_ARCHIVE_SECRET_KEY": SECRET_KEY}
        replicator = Replicator(
            tmp_path / "service",
            source=source,
            source_bucket="",
            target=target,
            target_bucket="",
            environ={
                "LOG_FORMAT": "json",
                "RECONCILE_INTERVAL_S": "0",
                **(keys if archive else {}),
                **environ,
            },
        )
        made.append(replicator)
        return Running(replicator)

    yield make
    for replicator in made:
        replicator.stop()


def of(bucket: str, key: str) -> bytes:
    """Some bytes that no other bucket and key has."""
    return content(f"{bucket}/{key}")


def put(server: S3Server, bucket: str, key: str, body: bytes | None = None, **more: Any) -> None:
    """Writes an object; its content is that of its bucket and key unless it is given."""
    body = of(bucket, key) if body is None else body
    server.client().put_object(
        bucket_name=bucket, object_name=key, data=io.BytesIO(body), length=len(body), **more
    )


def read(server: S3Server, bucket: str, key: str) -> bytes:
    """The content of an object."""
    with server.client().get_object(bucket_name=bucket, object_name=key) as answer:
        return bytes(answer.read())


def held(server: S3Server, *buckets: str) -> dict[tuple[str, str], bytes]:
    """All there is in the buckets: (bucket, key) → content."""
    return {
        (bucket, str(each.object_name)): read(server, bucket, str(each.object_name))
        for bucket in buckets
        for each in server.client().list_objects(bucket_name=bucket, recursive=True)
    }


def make_buckets(server: S3Server, *buckets: str) -> None:
    for bucket in buckets:
        server.client().make_bucket(bucket_name=bucket)


def tell_of(source: Gateway, service: Replicator, queue_dir: Path, *buckets: str) -> None:
    """Has the source tell the service of changes in BUCKET and in these buckets."""
    notify(source, service.events_url, queue_dir=queue_dir)
    client = source.client()
    for bucket in buckets:
        client.set_bucket_notification(
            bucket_name=bucket, config=client.get_bucket_notification(bucket_name=BUCKET)
        )


# ── several rules and targets ────────────────────────────────────────────────────────────────────────

RULES = """
[targets.archive]
endpoint = "{archive}"

# all, but what is unfinished
[rules.photos]
source = "source"
exclude = ["*.part", "tmp/*"]
bucket = "photos-copy"

# some of them once more, elsewhere, below another prefix
[rules.raw]
source = "source"
prefix = "raw/"
suffix = ".cr3"
target = "archive"
bucket = "long-term"
target_prefix = "camera/"
overwrite = "never"
storage_class = "STANDARD_IA"
tags = false

# another bucket, to a bucket that the rule before fills too
[rules.papers]
source = "papers"
include = ["*.pdf"]
exclude = ["draft-?.pdf"]
target = "archive"
bucket = "long-term"
target_prefix = "papers/"
"""
PHOTOS = ("photos", "photos-copy", "")
CAMERA = ("raw", "long-term", "camera/")
PAPERS = ("papers", "long-term", "papers/")
OBJECTS = [
    (BUCKET, "{}.jpg", [(PHOTOS, "{}.jpg")]),
    (BUCKET, "raw/{}.cr3", [(PHOTOS, "raw/{}.cr3"), (CAMERA, "{}.cr3")]),
    (BUCKET, "raw/deep/é {}+b.cr3", [(PHOTOS, "raw/deep/é {}+b.cr3"), (CAMERA, "deep/é {}+b.cr3")]),
    (BUCKET, "raw/tmp/{}.cr3", [(PHOTOS, "raw/tmp/{}.cr3"), (CAMERA, "tmp/{}.cr3")]),
    (BUCKET, "raw/{}.jpg", [(PHOTOS, "raw/{}.jpg")]),
    (BUCKET, "rawer/{}.cr3", [(PHOTOS, "rawer/{}.cr3")]),
    (BUCKET, "raw/{}.CR3", [(PHOTOS, "raw/{}.CR3")]),
    (BUCKET, "raw/{}.cr3.part", []),
    (BUCKET, "tmp/{}.cr3", []),
    ("papers", "{}.pdf", [(PAPERS, "{}.pdf")]),
    ("papers", "raw/{}.cr3.pdf", [(PAPERS, "raw/{}.cr3.pdf")]),
    ("papers", "raw/{}.cr3", []),
    ("papers", "draft-{}.pdf", []),
    ("unread", "{}.pdf", []),
]
"""Source bucket, key, and where it belongs; "{}" is a letter."""


@pytest.fixture
def three_rules(
    tmp_path: Path, source: Gateway, seaweed: SeaweedFS, archive: SeaweedFS, service: Callable[..., Running]
) -> Iterator[Running]:
    """A service with three rules and two targets, told of all changes; half the objects were there before."""
    make_buckets(source, BUCKET, "papers", "unread")
    make_buckets(seaweed, "photos-copy")
    make_buckets(archive, "long-term")
    for bucket, key, _ in OBJECTS:
        put(source, bucket, key.format("a"))
    running = service(source, seaweed, archive=archive)
    running.start(rules=RULES.format(archive=archive.endpoint))
    tell_of(source, running.service, tmp_path / "queue", "papers", "unread")
    yield running
    running.service.stop()
    for server, bucket in ((seaweed, "photos-copy"), (archive, "long-term")):
        for each in server.client().list_objects(bucket_name=bucket, recursive=True):
            server.client().remove_object(bucket_name=bucket, object_name=str(each.object_name))
        server.client().remove_bucket(bucket_name=bucket)


def belonging(letters: str) -> tuple[dict[tuple[str, str], bytes], set[tuple[str, str]]]:
    """What should be at both targets together, and the (rule, key) that should be on record."""
    objects, entries = {}, set()
    for bucket, key, places in OBJECTS:
        for letter in letters:
            for (rule, target_bucket, prefix), target_key in places:
                objects[target_bucket, prefix + target_key.format(letter)] = of(bucket, key.format(letter))
                entries.add((rule, key.format(letter)))
    return objects, entries


def test_events_and_sweeps_bring_each_object_where_its_rules_say_and_nowhere_else(
    three_rules: Running, source: Gateway, seaweed: SeaweedFS, archive: SeaweedFS
) -> None:
    def at_targets() -> dict[tuple[str, str], bytes]:
        return held(seaweed, "photos-copy") | held(archive, "long-term")

    for bucket, key, _ in OBJECTS:
        put(source, bucket, key.format("b"))
    told, on_record = belonging("b")
    until(
        lambda: three_rules.service.settled() == len(on_record),
        bound_s=BOUND_S,
        what="all events are settled",
    )
    assert at_targets() == told
    assert three_rules.entries() == dict.fromkeys(on_record, "settled")

    sweeps = three_rules.sweep()
    everything, on_record = belonging("ab")
    assert at_targets() == everything
    assert three_rules.entries() == dict.fromkeys(on_record, "settled")
    rules = [rule for _, _, places in OBJECTS for (rule, _, _), _ in places]
    missing = {rule: rules.count(rule) for rule in ("photos", "raw", "papers")}
    assert {rule: each["missing"] for rule, each in sweeps.items()} == missing
    assert {rule: each["extra"] for rule, each in sweeps.items()} == {"photos": 0, "raw": 0, "papers": 0}
    assert all(each["missing"] == each["different"] == 0 for each in three_rules.sweep().values())


def test_each_rule_has_its_own_ways(
    three_rules: Running, source: Gateway, seaweed: SeaweedFS, archive: SeaweedFS
) -> None:
    """overwrite = "never", storage_class and tags = false hold for one rule, and not for the other."""

    def stat(server: S3Server, bucket: str, key: str) -> Mapping[str, str]:
        found = server.client().stat_object(bucket_name=bucket, object_name=key)
        return {name.lower(): value for name, value in (found.metadata or {}).items()}

    tags = Tags.new_object_tags()
    tags["color"] = "red"
    put(source, BUCKET, "raw/x.cr3", b"first", tags=tags)
    places = (seaweed, "photos-copy", "raw/x.cr3"), (archive, "long-term", "camera/x.cr3")
    until(lambda: three_rules.service.settled() == 2, bound_s=BOUND_S, what="the object is at both targets")
    assert [read(*place) for place in places] == [b"first"] * 2
    assert [stat(*place).get("x-amz-storage-class") for place in places] == [None, "STANDARD_IA"]
    kept = [
        server.client().get_object_tags(bucket_name=bucket, object_name=key) for server, bucket, key in places
    ]
    assert [dict(each or {}) for each in kept] == [{"color": "red"}, {}]

    put(source, BUCKET, "raw/x.cr3", b"second")

    def entry(rule: str) -> dict[str, Any]:
        return dict(three_rules.service.get(f"/v1/entries/{rule}/raw/x.cr3").json())

    def both_ended() -> bool:
        # not by generation: each change is told twice, and the first one's second event may come late
        settled = [entry(rule)["state"] for rule in ("photos", "raw")] == ["settled"] * 2
        return settled and read(*places[0]) == b"second" and bool(entry("raw")["lost"])

    until(both_ended, bound_s=BOUND_S, what="both rules have seen the second version")
    assert [read(*place) for place in places] == [b"second", b"first"]
    assert entry("raw")["lost"] == ["content: OVERWRITE=never"]
    assert three_rules.sweep(rule="raw")["raw"]["kept"] == 1
    assert [read(*place) for place in places] == [b"second", b"first"]


def test_a_manual_request_is_for_all_rules_that_want_the_key(
    three_rules: Running, seaweed: SeaweedFS, archive: SeaweedFS
) -> None:
    def told(answer: dict[str, Any]) -> list[tuple[str, str]]:
        return [(each["rule"], each["status"]) for each in answer["copies"]]

    asked = {"bucket": BUCKET}
    status, answer = three_rules.replicate("raw/a.cr3", **asked)
    assert (status, told(answer)) == (200, [("photos", "replicated"), ("raw", "replicated")])
    assert held(seaweed, "photos-copy") == {("photos-copy", "raw/a.cr3"): of(BUCKET, "raw/a.cr3")}
    assert held(archive, "long-term") == {("long-term", "camera/a.cr3"): of(BUCKET, "raw/a.cr3")}
    links = [each["entry"] for each in answer["copies"]]
    assert links == ["/v1/entries/photos/raw/a.cr3", "/v1/entries/raw/raw/a.cr3"]
    assert {three_rules.service.get(link).json()["outcome"] for link in links} == {"replicated"}
    archive.client().remove_object(bucket_name="long-term", object_name="camera/a.cr3")
    status, answer = three_rules.replicate("raw/a.cr3", **asked)
    assert (status, told(answer)) == (200, [("photos", "exists"), ("raw", "replicated")])
    status, answer = three_rules.replicate("raw/a.cr3", **asked)
    assert (status, told(answer)) == (409, [("photos", "exists"), ("raw", "exists")])
    status, answer = three_rules.replicate("a.jpg", **asked)
    assert (status, answer["rule"], "copies" in answer) == (200, "photos", False)
    status, answer = three_rules.replicate("raw/none.cr3", **asked)
    assert (status, [each["error"]["code"] for each in answer["copies"]]) == (404, ["not_found"] * 2)
    for key, more in (("tmp/a.cr3", asked), ("raw/a.cr3", {}), ("a.pdf", {"bucket": "unread"})):
        status, answer = three_rules.replicate(key, **more)
        assert (status, answer["error"]["code"]) == (400, "bad_request"), key
        assert answer["error"]["hint"]
    assert len(held(seaweed, "photos-copy")) == 2


# ── several buckets by variables ─────────────────────────────────────────────────────────────────────


def test_a_list_of_buckets_goes_to_one_each_below_its_name(
    tmp_path: Path,
    source: Gateway,
    seaweed: SeaweedFS,
    service: Callable[..., Running],
    new_bucket: Callable[[S3Server], str],
) -> None:
    make_buckets(source, BUCKET, "beta", "other")
    copies = new_bucket(seaweed)
    for bucket in (BUCKET, "beta", "other"):
        put(source, bucket, "old")
    running = service(source, seaweed, MINIO_BUCKET=f"{BUCKET}, beta", FILEBASE_BUCKET=copies)
    running.start()
    tell_of(source, running.service, tmp_path / "queue", "beta", "other")
    for bucket in (BUCKET, "beta", "other"):
        put(source, bucket, "new/é b")
    until(lambda: running.service.settled() == 2, bound_s=BOUND_S, what="the events are settled")
    expected = {(copies, f"{bucket}/new/é b"): of(bucket, "new/é b") for bucket in (BUCKET, "beta")}
    assert held(seaweed, copies) == expected
    assert set(running.sweep()) == {f"default.{BUCKET}", "default.beta"}
    expected |= {(copies, f"{bucket}/old"): of(bucket, "old") for bucket in (BUCKET, "beta")}
    assert held(seaweed, copies) == expected
    put(source, "beta", "by hand")
    running.service.post("/v1/replicate", json={"s3_key": "by hand", "bucket": "beta"})
    assert read(seaweed, copies, "beta/by hand") == of("beta", "by hand")


def test_all_buckets_go_each_to_its_own_and_a_bucket_made_later_is_found_by_the_next_sweep(
    tmp_path: Path, source: Gateway, archive: SeaweedFS, service: Callable[..., Running]
) -> None:
    make_buckets(source, BUCKET, "beta")
    make_buckets(archive, f"{BUCKET}-star", "beta-star")
    for bucket in (BUCKET, "beta"):
        put(source, bucket, "old")
    running = service(source, archive, MINIO_BUCKET="*", FILEBASE_BUCKET="{bucket}-star")
    running.start()
    tell_of(source, running.service, tmp_path / "queue", "beta")
    put(source, "beta", "new")
    until(lambda: running.service.settled() == 1, bound_s=BOUND_S, what="the event is settled")
    assert held(archive, f"{BUCKET}-star", "beta-star") == {("beta-star", "new"): of("beta", "new")}
    running.sweep()
    expected = {(f"{BUCKET}-star", "old"): of(BUCKET, "old"), ("beta-star", "old"): of("beta", "old")}
    expected |= {("beta-star", "new"): of("beta", "new")}
    assert held(archive, f"{BUCKET}-star", "beta-star") == expected

    make_buckets(source, "later")
    make_buckets(archive, "later-star")
    put(source, "later", "deep/key")
    assert set(running.sweep()) == {f"default.{BUCKET}", "default.beta", "default.later"}
    assert held(archive, "later-star") == {("later-star", "deep/key"): of("later", "deep/key")}
    rules = running.service.get("/v1/status").json()["rules"]
    assert rules["default.later"]["target"] == "filebase:later-star/"
    assert rules["default.later"]["recovery_point"]


# ── wrong rules ──────────────────────────────────────────────────────────────────────────────────────

WRONG = """
[targets.archive]
endpoint = "https://archive.example.com/path"
secret_key = "never-s3cr3t"

[targets.backup]
preset = "r3"
endpoint = "https://backup.example.com"

[rules.photos]
source = "photos"
target = "archvie"
bucket = "copy"
delete = true

[rules.papers]
source = []
bucket = "a/b"
overwrite = "sometimes"

[rules.one]
source = "one"
bucket = "all"

[rules.two]
source = "two"
bucket = "all"
"""
SAID = [
    "[targets.archive] secret_key belongs in the environment, as TARGET_ARCHIVE_ACCESS_KEY and",
    "[targets.backup] preset must be one of",
    "TARGET_BACKUP_ACCESS_KEY is missing",
    "[rules.photos] target 'archvie' is none of [targets.…]: did you mean archive?",
    "[rules.photos] delete is not known: did you mean deletes?",
    "[rules.papers] source",
    "[rules.papers] overwrite must be one of changed, never, not 'sometimes'",
    "rules one and two may write the same keys of one target bucket",
    "MINIO_SECRET_KEY is missing",
    "PORT must be",
]
GUNICORN = ["gunicorn", "--config", "config/gunicorn.conf.py", "webhook:create_app()"]
WORKER = [sys.executable, "-m", "webhook.worker"]


@pytest.fixture
def refused(tmp_path: Path) -> Callable[..., str]:
    """Runs a command with these rules to its end, which is exit status 2; gives what it said."""

    def run(command: list[str], rules: str | bytes | None, **environ: str) -> str:
        for name in ("webhook", "config"):
            (tmp_path / name).symlink_to(ROOT / name)
        if rules is not None:
            raw = rules if isinstance(rules, bytes) else rules.encode()
            (tmp_path / "rules.toml").write_bytes(raw)
        variables = {
            "PATH": f"{Path(sys.executable).parent}:{os.defpath}",
            "PYTHONDONTWRITEBYTECODE": "1",
            "MINIO_ENDPOINT": "http://127.0.0.1:9",
            "MINIO_ACCESS_KEY": "minio-s3cr3t",
            "FILEBASE_ENDPOINT": "http://127.0.0.1:9",
            "FILEBASE_ACCESS_KEY": "filebase-s3cr3t",
            "FILEBASE_SECRET_KEY": "filebase-secret-s3cr3t",
            "TARGET_ARCHIVE_ACCESS_KEY": "archive-s3cr3t",
            "RULES_FILE": "rules.toml",
            "API_TOKEN": API_TOKEN,
            "WEBHOOK_AUTH_TOKEN": WEBHOOK_AUTH_TOKEN,
        }
        done = subprocess.run(
            command,
            cwd=tmp_path,
            env=variables | environ,
            capture_output=True,
            text=True,
            timeout=EXIT_BOUND_S,
        )
        assert (done.returncode, done.stdout) == (2, "")
        for unwanted in ("Traceback", "s3cr3t", API_TOKEN, WEBHOOK_AUTH_TOKEN):
            assert unwanted not in done.stderr
        assert not (tmp_path / "data").exists()
        return done.stderr

    return run


@pytest.mark.parametrize("command", [GUNICORN, WORKER], ids=["web", "worker"])
def test_of_wrong_rules_one_message_tells_all(command: list[str], refused: Callable[..., str]) -> None:
    said = refused(command, WRONG, PORT="99999999")
    (announced,) = re.findall(r"^(\d+) setting\(s\) need attention:$", said, re.MULTILINE)
    assert said.count("\n  - ") == int(announced) >= len(SAID)
    for sentence in SAID:
        assert said.count(f"\n  - {sentence}") == 1, sentence


@pytest.mark.parametrize(
    ("rules", "sentence"),
    [
        (None, "rules.toml' cannot be read: No such file or directory"),
        ("", "there are no rules: add a table such as [rules.photos]"),
        ("[rules.photos\nsource =", "rules.toml' is not TOML: "),
        (b"\xff\xfe[", "rules.toml' is not UTF-8 (at byte 0)"),
        ("x = " + "[" * 50_000, "rules.toml' is nested too deeply"),
        ("rules = 7", "[rules] must hold nothing but tables such as [rules.photos]"),
        ('[rules.a]\nsource = "b"\nbucket = "b"', "rules copy their own copies again, without end (a → a)"),
    ],
    ids=["none", "empty", "no TOML", "no text", "too deep", "no table", "a loop"],
)
def test_a_file_of_rules_that_cannot_be_used_is_named(
    rules: str | bytes | None, sentence: str, refused: Callable[..., str]
) -> None:
    said = refused(WORKER, rules, MINIO_SECRET_KEY="minio-secret-s3cr3t")
    assert said.startswith("1 setting(s) need attention:\n")
    assert sentence in said


# ── versions ─────────────────────────────────────────────────────────────────────────────────────────


def test_the_target_follows_the_newest_versions_of_a_versioned_bucket(
    seaweed: SeaweedFS,
    archive: SeaweedFS,
    service: Callable[..., Running],
    new_bucket: Callable[[S3Server], str],
) -> None:
    versioned, copies = new_bucket(seaweed), new_bucket(archive)
    s3 = boto3.client(
        "s3",
        endpoint_url=seaweed.endpoint,
        aws_access_key_id=seaweed.access_key,
        aws_secret_access_key=seaweed.secret_key,
        region_name=REGION,
        config=Config(request_checksum_calculation="when_required", s3={"addressing_style": "path"}),
    )
    s3.put_bucket_versioning(Bucket=versioned, VersioningConfiguration={"Status": "Enabled"})

    def write(key: str, body: bytes) -> str:
        return str(s3.put_object(Bucket=versioned, Key=key, Body=body)["VersionId"])

    def remove(key: str, **which: str) -> str:
        return str(s3.delete_object(Bucket=versioned, Key=key, **which).get("VersionId"))

    def at_target() -> dict[str, bytes]:
        return {key: body for (_, key), body in held(archive, copies).items()}

    running = service(
        seaweed,
        archive,
        MINIO_BUCKET=versioned,
        FILEBASE_BUCKET=copies,
        REPLICATE_DELETES="true",
        DELETE_GRACE_S="1",
    )
    running.start()
    for body in (b"1", b"two", b"three!"):
        write("twice", body)
    write("deep/marked", b"marked")
    write("kept", b"kept")
    write("never seen", b"never")
    remove("never seen")
    running.sweep()
    assert at_target() == {"twice": b"three!", "deep/marked": b"marked", "kept": b"kept"}

    newest = write("twice", b"fourth")
    marker = remove("deep/marked")
    running.sweep()
    assert at_target() == {"twice": b"fourth", "kept": b"kept"}
    status, answer = running.replicate("deep/marked")
    assert (status, answer["error"]["code"]) == (404, "not_found")

    remove("twice", VersionId=newest)  # the third one is the newest again
    remove("deep/marked", VersionId=marker)
    found = running.sweep()["default"]
    assert at_target() == {"twice": b"three!", "deep/marked": b"marked", "kept": b"kept"}
    assert (found["missing"], found["different"]) == (1, 1)

    write("kept", b"by hand")
    status, answer = running.replicate("kept")
    assert (status, answer["status"]) == (200, "replicated")
    remove("kept")
    write("kept", b"after a marker")
    running.sweep()
    assert at_target() == {"twice": b"three!", "deep/marked": b"marked", "kept": b"after a marker"}
    s3.close()


# ── by itself ────────────────────────────────────────────────────────────────────────────────────────


def test_what_was_there_before_is_copied_by_itself_and_so_is_what_came_while_the_service_was_down(
    source: Gateway,
    seaweed: SeaweedFS,
    service: Callable[..., Running],
    new_bucket: Callable[[S3Server], str],
) -> None:
    make_buckets(source, "alpha", "beta", "gamma")
    copies = new_bucket(seaweed)
    running = service(source, seaweed, MINIO_BUCKET="alpha,beta", FILEBASE_BUCKET=copies)
    del running.service.environ["RECONCILE_INTERVAL_S"]

    def arrives(key: str) -> None:
        until(lambda: (copies, key) in held(seaweed, copies), bound_s=BOUND_S, what=f"{key} arrives")

    def causes() -> dict[str, list[str]]:
        found: dict[str, list[str]] = {}
        for each in reversed(running.sweeps()):
            found.setdefault(each["rule"], []).append(each["cause"])
        return found

    for bucket in ("alpha", "beta", "gamma"):
        put(source, bucket, "before")
    running.start()
    arrives("alpha/before")
    arrives("beta/before")
    assert causes() == {"default.alpha": ["start"], "default.beta": ["start"]}

    running.service.stop()
    put(source, "alpha", "while it was down")
    with running.ledger() as ledger:
        ledger.execute("UPDATE workers SET seen_at = seen_at - 200, started_at = started_at - 200")
        ledger.execute("UPDATE sweeps SET asked_at = asked_at - 201")
        ledger.commit()
    running.start()
    arrives("alpha/while it was down")
    assert causes() == {"default.alpha": ["start"] * 2, "default.beta": ["start"] * 2}

    until(
        lambda: all(each["state"] == "complete" for each in running.sweeps()),
        bound_s=BOUND_S,
        what="all sweeps end",
    )
    running.service.stop()
    put(source, "alpha", "between")
    running.service.environ["MINIO_BUCKET"] = "alpha,beta,gamma"  # the new one shows that it looked at all
    running.start()
    arrives("gamma/before")
    assert causes() == {rule: ["start"] * 2 for rule in ("default.alpha", "default.beta")} | {
        "default.gamma": ["start"]
    }
    assert (copies, "alpha/between") not in held(seaweed, copies)
