"""What config/policies/ allows is enough for the service, and no action of it can be left out.

The gateway, with MinIO's own code for users, enforces what is for MinIO; SeaweedFS and the gateway enforce
what is for targets. `BY_DOCUMENTATION` is what neither does.
"""

from __future__ import annotations

import io
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from minio import MinioAdmin, S3Error
from minio.commonconfig import ENABLED, Tags
from minio.error import MinioAdminException
from minio.notificationconfig import NotificationConfig
from minio.versioningconfig import VersioningConfig

from scripts import doctor as doctor_script
from scripts import doctor_event
from scripts.local_servers import REGION, Gateway, S3Server, SeaweedFS
from scripts.local_service import ROOT
from tests.acceptance.conftest import BUCKET, Stack, content, running_stack, until
from tests.policies import (
    POLICIES,
    Policy,
    User,
    add_minio_user,
    add_seaweed_user,
    admin_of,
    grant_minio_user,
    merged,
    policy,
)
from webhook.errors import StoreDenied
from webhook.objects import Properties
from webhook.probes import FOLDER
from webhook.settings import StoreSettings
from webhook.source import Source
from webhook.store import Store
from webhook.target import Attributes, Target

MIB = 1024 * 1024
BOUND_S = 60.0
BY_DOCUMENTATION = {"s3:PutObjectTagging", "admin:ServerInfo", "admin:ServiceRestart"}
"""AWS asks for the first where tags come with the object, neither server here does. The gateway can do none
of what the others allow, and says so before it looks at who asks."""
RESTART_WANTED = "Restart your MinIO process now"


# ── enough ───────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory, seaweed: SeaweedFS) -> Iterator[Stack]:
    """A stack for all of these tests, as it is in all others of this folder."""
    seaweed.client().make_bucket(bucket_name="least-copies")
    settings = {"REPLICATE_DELETES": "true", "DELETE_GRACE_S": "0", "WHOLE_OBJECT_MAX_MIB": "5"}
    with running_stack(tmp_path_factory.mktemp("least"), seaweed, "least-copies", **settings) as started:
        yield started


@pytest.fixture
def allow(running: Stack) -> Iterator[Callable[[Policy], None]]:
    """Gives the service another policy at the source, until the test is over."""
    service = User(running.service.settings()["MINIO_ACCESS_KEY"])

    def grant(granted: Policy) -> None:
        grant_minio_user(running.source, service, granted)

    yield grant
    grant(policy("minio-source", BUCKET))


Doctor = Callable[..., tuple[int, list[dict[str, Any]]]]


@pytest.fixture
def doctor(running: Stack, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Doctor:
    """Runs it where the service runs, with its settings: the exit code, and what it said."""
    monkeypatch.setattr(doctor_event, "AGAIN_BOUND_S", 0.5)
    monkeypatch.chdir(running.service.folder)

    def run(*options: str) -> tuple[int, list[dict[str, Any]]]:
        with monkeypatch.context() as here:
            for name, value in running.service.settings().items():
                here.setenv(name, value)
            code = doctor_script.main([*options, "--json"])
        lines = [line for line in capsys.readouterr().out.splitlines() if line[0] == "{"]
        return code, [json.loads(line) for line in lines]

    return run


def texts(lines: list[dict[str, Any]], *levels: str) -> str:
    """What was said at these levels, and what mends it."""
    return "\n".join(f"{each['text']} → {each['mend']}" for each in lines if each["level"] in levels)


def test_with_the_keys_of_these_users_all_that_the_service_does_works(running: Stack, doctor: Doctor) -> None:
    keys = running.service.settings()
    assert keys["MINIO_ACCESS_KEY"] != running.source.access_key
    assert keys["FILEBASE_ACCESS_KEY"] != running.target.access_key
    tags = Tags.new_object_tags()
    tags["colour"] = "blue"
    running.put("small", content("small"))
    running.put("tagged", content("tagged"), tags=tags)
    running.put("over", content("over"))
    running.put("over", content("written over"))
    running.client().put_object(
        bucket_name=BUCKET,
        object_name="large",
        data=io.BytesIO(bytes(12 * MIB)),
        length=12 * MIB,
        part_size=5 * MIB,
    )
    running.put("gone", content("gone"))
    running.wait_until_settled(entries=5, bound_s=BOUND_S)
    found = running.target.client().get_object_tags(bucket_name=running.target_bucket, object_name="tagged")
    assert found == tags

    running.remove("gone")
    until(lambda: running.target_etag("gone") is None, bound_s=BOUND_S, what="the removed object goes")
    until(lambda: running.service.unsettled() == 0, bound_s=BOUND_S, what="its delete is settled")
    running.target.client().remove_object(bucket_name=running.target_bucket, object_name="small")
    assert running.sweep()["missing"] == 1
    until(lambda: running.target_etag("small"), bound_s=BOUND_S, what="a sweep has it copied again")
    again = running.service.post("/v1/replicate", json={"s3_key": "large"})
    assert (again.status_code, again.json()["status"]) == (409, "exists")
    assert running.compare().ok

    code, lines = doctor()
    assert (code, texts(lines, "wrong")) == (0, "")
    assert texts(lines, "note").count("tags") == 0
    assert "tells of all changes" in texts(lines, "fine")
    assert "Allow s3:PutObject and s3:DeleteObject" in texts(lines, "skipped")
    assert not [key for key in running.target_keys() if FOLDER in key]


def test_with_one_more_policy_the_doctor_may_try_an_event_and_with_another_a_person_sets_minio_up(
    running: Stack, allow: Callable[[Policy], None], doctor: Doctor, tmp_path: Path
) -> None:
    person = add_minio_user(running.source, "set-up-person", policy("minio-setup", BUCKET))
    set_up(running, person, tmp_path)
    bound = running.client().get_bucket_notification(bucket_name=BUCKET).queue_config_list
    assert "arn:minio:sqs::REPLICATOR_QUEUE:webhook" in [each.queue for each in bound]

    allow(merged(policy("minio-source", BUCKET), policy("minio-source-doctor", BUCKET)))
    code, lines = doctor("--only", "events")
    assert (code, texts(lines, "wrong")) == (0, "")
    assert "its object was copied" in texts(lines, "fine")
    kept = running.client().list_objects(bucket_name=BUCKET, recursive=True)
    assert not [each.object_name for each in kept if FOLDER in (each.object_name or "")]


def set_up(running: Stack, person: User, folder: Path) -> None:
    """Runs config/configure_minio.py with these keys, and restarts MinIO when it asks for that."""
    queue_dir = folder / "own-queue"
    queue_dir.mkdir()
    settings = {**running.service.settings(), **person.variables("MINIO")}
    settings |= {"WEBHOOK_URL": running.service.events_url, "WEBHOOK_QUEUE_DIR": str(queue_dir)}
    with subprocess.Popen(
        [sys.executable, str(ROOT / "config/configure_minio.py"), "--wait", "30"],
        cwd=running.service.folder,
        env=settings,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as process:
        said = []
        for line in process.stdout or ():
            said.append(line)
            if RESTART_WANTED in line:
                running.source.restart()
    assert process.returncode == 0, said


# ── no less ──────────────────────────────────────────────────────────────────────────────────────────────


class Always:
    """A right that does not end."""

    def check(self) -> None:
        """It may be sent."""


@dataclass
class Seat:
    """A user's place before a bucket that holds the object "key"."""

    server: S3Server
    bucket: str
    user: User
    version: str
    """Of the object below the doctor's folder, where the bucket keeps versions."""
    upload: str
    """An unfinished upload of "parts"."""
    closing: ExitStack = field(default_factory=ExitStack)

    def __post_init__(self) -> None:
        settings = StoreSettings(
            endpoint_url=self.server.endpoint,
            access_key=self.user.access_key,
            secret_key=self.user.secret_key,
            region=REGION,
        )
        self.source = self.closing.enter_context(closing(Source(settings)))
        self.target = self.closing.enter_context(closing(Target(settings)))
        self.store = self.closing.enter_context(closing(Store(settings, side="source")))

    def put(self, key: str) -> None:
        """As a copy is written."""
        attributes = Attributes(properties=Properties(), tags={})
        self.target.put(self.bucket, key, memoryview(b"x"), b"", attributes, permit=Always())

    def delete_version(self) -> None:
        """As the doctor cleans up where versions are kept."""
        key, query = f"{FOLDER}key", [("versionId", self.version)]
        self.store.ask("DeleteObject", "DELETE", self.bucket, key, query=query, permit=Always())

    def list_uploads(self) -> None:
        """As the doctor looks for uploads whose id never arrived."""
        query = [("prefix", FOLDER), ("uploads", "")]
        self.store.ask("ListMultipartUploads", "GET", self.bucket, query=query)


Ask = Callable[[Seat], object]
MINIO, SEAWEED = "gateway", "seaweed"
NEEDS: dict[tuple[str, str], tuple[str, str, Ask]] = {
    ("minio-source", "s3:GetObject"): (
        MINIO,
        "GetObject",
        lambda seat: seat.source.open(seat.bucket, "key").close(),
    ),
    ("minio-source", "s3:GetObjectTagging"): (
        MINIO,
        "GetObjectTagging",
        lambda seat: seat.source.tags(seat.bucket, "key"),
    ),
    ("minio-source", "s3:ListBucket"): (
        MINIO,
        "ListObjectsV2",
        lambda seat: seat.source.page(seat.bucket, ""),
    ),
    ("minio-source", "s3:GetBucketNotification"): (
        MINIO,
        "GetBucketNotificationConfiguration",
        lambda seat: seat.store.has_notification(seat.bucket),
    ),
    ("minio-source-doctor", "s3:PutObject"): (MINIO, "PutObject", lambda seat: seat.put(f"{FOLDER}new")),
    ("minio-source-doctor", "s3:DeleteObject"): (
        MINIO,
        "DeleteObject",
        lambda seat: seat.target.delete(seat.bucket, f"{FOLDER}key", permit=Always()),
    ),
    ("minio-source-doctor", "s3:DeleteObjectVersion"): (SEAWEED, "DeleteObject", Seat.delete_version),
    ("aws-target", "s3:PutObject"): (SEAWEED, "PutObject", lambda seat: seat.put("new")),
    ("aws-target", "s3:GetObject"): (
        SEAWEED,
        "HeadObject",
        lambda seat: seat.target.head(seat.bucket, "key"),
    ),
    ("aws-target", "s3:GetObjectTagging"): (
        SEAWEED,
        "GetObjectTagging",
        lambda seat: seat.target.tags(seat.bucket, "key"),
    ),
    ("aws-target", "s3:ListBucket"): (
        SEAWEED,
        "ListObjectsV2",
        lambda seat: seat.target.page(seat.bucket, ""),
    ),
    ("aws-target", "s3:ListBucketMultipartUploads"): (SEAWEED, "ListMultipartUploads", Seat.list_uploads),
    ("aws-target", "s3:ListMultipartUploadParts"): (
        MINIO,
        "ListParts",
        lambda seat: seat.target.uploaded_parts(seat.bucket, "parts", seat.upload),
    ),
    ("aws-target", "s3:AbortMultipartUpload"): (
        MINIO,
        "AbortMultipartUpload",
        lambda seat: seat.target.abort_upload(seat.bucket, "parts", seat.upload),
    ),
    ("aws-target", "s3:DeleteObject"): (
        SEAWEED,
        "DeleteObject",
        lambda seat: seat.target.delete(seat.bucket, f"{FOLDER}key", permit=Always()),
    ),
    ("aws-target", "s3:DeleteObjectVersion"): (SEAWEED, "DeleteObject", Seat.delete_version),
    ("aws-target-deletes", "s3:DeleteObject"): (
        SEAWEED,
        "DeleteObject",
        lambda seat: seat.target.delete(seat.bucket, "key", permit=Always()),
    ),
}
"""File, action → the server that enforces it, the operation that needs it, and the service's own request."""


def prepare(server: S3Server, bucket: str) -> tuple[str, str]:
    """Puts there, as the administrator, what a seat holds; gives the version and the upload."""
    client, version, upload = server.client(), "", ""
    if isinstance(server, SeaweedFS):  # the gateway keeps no versions
        client.set_bucket_versioning(bucket_name=bucket, config=VersioningConfig(ENABLED))
    else:
        upload = client._create_multipart_upload(bucket, "parts", {})
    for key in ("key", f"{FOLDER}key"):
        done = client.put_object(bucket_name=bucket, object_name=key, data=io.BytesIO(b"x"), length=1)
        version = done.version_id or ""
    return version, upload


@pytest.fixture(scope="module")
def minio_user(gateway: Gateway) -> User:
    """A user of MinIO without rights; to make one takes a while."""
    return add_minio_user(gateway, "somebody", policy("minio-source", "none"))


@pytest.fixture
def seats(
    request: pytest.FixtureRequest, new_bucket: Callable[[S3Server], str], minio_user: User
) -> Iterator[Callable[..., Seat]]:
    """Makes a user of a server who has one of the policies for a bucket there, but for one action; at MinIO
    it is always the same user, who has the last one.
    """
    buckets: dict[str, str] = {}
    with ExitStack() as opened:

        def seat(where: str, name: str, *, without: str = "") -> Seat:
            server: S3Server = request.getfixturevalue(where)
            bucket = buckets[where] = buckets.get(where) or new_bucket(server)
            granted = policy(name, bucket, without=without)
            if isinstance(server, Gateway):
                user = minio_user
                grant_minio_user(server, user, granted)
            else:
                assert isinstance(server, SeaweedFS)
                user = add_seaweed_user(server, f"user-of-{bucket}-{name}{without[3:]}", granted)
            version, upload = prepare(server, bucket)
            made = Seat(server, bucket, user, version, upload)
            opened.enter_context(made.closing)
            return made

        yield seat


def test_every_action_of_every_policy_is_proved_to_be_needed_or_named_as_one_that_is_not_enforced_here() -> (
    None
):
    of_files = {
        (path.stem, action)
        for path in POLICIES.iterdir()
        for statement in policy(path.stem, BUCKET)["Statement"]
        for action in statement["Action"]
    }
    proved = {*NEEDS, *(("minio-setup", action) for action in SET_UP)}
    assert {each for each in of_files if each[1] not in BY_DOCUMENTATION} == proved


@pytest.mark.parametrize(("name", "action"), sorted(NEEDS))
def test_without_an_action_what_needs_it_is_refused_and_named_and_with_it_it_is_not(
    seats: Callable[..., Seat], name: str, action: str
) -> None:
    where, operation, ask = NEEDS[name, action]
    ask(seats(where, name))
    with pytest.raises(StoreDenied) as raised:
        ask(seats(where, name, without=action))
    assert f" {operation} " in raised.value.message
    assert "403" in raised.value.message
    assert "permission" in raised.value.hint


def reset(admin: MinioAdmin) -> None:
    """Takes away a notification target, which is not there."""
    try:
        admin.config_reset(key="notify_webhook", name="NONE")
    except MinioAdminException as error:
        if "already deleted" not in str(error):
            raise


Way = Callable[[Gateway, User, str], object]
SET_UP: dict[str, Way] = {
    "admin:ConfigUpdate": lambda gateway, user, _: reset(admin_of(gateway, user)),
    "s3:GetBucketNotification": lambda gateway, user, bucket: user.client(gateway).get_bucket_notification(
        bucket_name=bucket
    ),
    "s3:PutBucketNotification": lambda gateway, user, bucket: user.client(gateway).set_bucket_notification(
        bucket_name=bucket, config=NotificationConfig()
    ),
    "s3:GetBucketLocation": lambda gateway, user, bucket: user.client(
        gateway, region=None
    ).get_bucket_notification(bucket_name=bucket),
}
"""Action → a request of config/configure_minio.py that needs it."""


@pytest.mark.parametrize("action", sorted(SET_UP))
def test_without_an_action_of_its_own_a_person_cannot_set_minio_up(
    gateway: Gateway, new_bucket: Callable[[S3Server], str], minio_user: User, action: str
) -> None:
    bucket, person = new_bucket(gateway), minio_user
    grant_minio_user(gateway, person, policy("minio-setup", bucket))
    SET_UP[action](gateway, person, bucket)
    grant_minio_user(gateway, person, policy("minio-setup", bucket, without=action))
    with pytest.raises((S3Error, MinioAdminException)) as raised:
        SET_UP[action](gateway, person, bucket)
    assert "AccessDenied" in str(raised.value)


@pytest.mark.parametrize("name", ["minio-source", "minio-source-doctor"])
def test_at_the_source_nothing_of_its_owners_can_be_written_or_removed_and_no_other_bucket_be_seen(
    seats: Callable[..., Seat], new_bucket: Callable[[S3Server], str], name: str
) -> None:
    seat = seats(MINIO, name)
    target, other = seat.target, new_bucket(seat.server)
    seat.server.client().put_object(bucket_name=other, object_name="key", data=io.BytesIO(b"x"), length=1)
    attributes = Attributes(properties=Properties(), tags={})
    forbidden: list[Callable[[], object]] = [
        lambda: seat.put("new"),
        lambda: seat.put("key"),
        lambda: target.delete(seat.bucket, "key", permit=Always()),
        lambda: target.create_upload(seat.bucket, "new", attributes, permit=Always()),
        lambda: target.abort_upload(seat.bucket, "parts", seat.upload),
        lambda: seat.source.page(other, ""),
        lambda: seat.source.head(other, "key"),
        lambda: admin_of(seat.server, seat.user).user_list(),
    ]
    for ask in forbidden:
        with pytest.raises((StoreDenied, MinioAdminException)) as raised:
            ask()
        assert "403" in str(raised.value)
    found = seat.server.client().list_objects(bucket_name=seat.bucket, recursive=True)
    assert {each.object_name for each in found} == {"key", f"{FOLDER}key"}


# ── what the service says of it ──────────────────────────────────────────────────────────────────────────


def test_what_the_source_does_not_allow_is_told_with_what_mends_it_and_goes_on_once_it_is_mended(
    running: Stack, allow: Callable[[Policy], None], doctor: Doctor
) -> None:
    def take(action: str) -> None:
        allow(policy("minio-source", BUCKET, without=action))

    take("s3:GetObjectTagging")
    tags = Tags.new_object_tags()
    tags["colour"] = "blue"
    running.put("with/tags", content("with"), tags=tags)
    running.put("without/tags", content("without"))
    until(lambda: running.target_etag("without/tags"), bound_s=BOUND_S, what="what has no tags is copied")
    until(lambda: running.entry("with/tags")["error"], bound_s=BOUND_S, what="what has some is tried")
    assert "source GetObjectTagging" in running.entry("with/tags")["error"]
    assert running.entry("with/tags")["error_code"] == "source_store_denied"
    code, lines = doctor("--read-only", "--only", "source")
    assert (code, "Allow s3:GetObjectTagging" in texts(lines, "note")) == (0, True)

    take("s3:ListBucket")
    code, lines = doctor("--read-only", "--only", "source")
    assert (code, "config/policies/minio-source.json" in texts(lines, "wrong")) == (1, True)

    take("s3:GetBucketNotification")
    code, lines = doctor("--read-only", "--only", "events")
    assert (code, "Allow s3:GetBucketNotification" in texts(lines, "skipped")) == (0, True)

    allow(policy("minio-source", BUCKET))
    done = running.service.post("/v1/replicate", json={"s3_key": "with/tags"})
    assert done.json()["status"] in ("replicated", "exists")
    assert running.compare().ok
