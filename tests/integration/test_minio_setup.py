"""config/minio-webhook.sh and config/configure_minio.py, against a server with MinIO's own code."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from minio.error import S3Error
from minio.notificationconfig import NotificationConfig, PrefixFilterRule, QueueConfig
from minio.xml import marshal

from scripts.local_processes import free_port
from scripts.local_servers import Gateway
from scripts.local_tools import find_mc

ROOT = Path(__file__).resolve().parents[2]
CONFIG = ROOT / "config"
TOKEN = "tok=en%with+signs"
SECRET = 'a:secret@/with"\\%25signs'  # all that an URL, JSON or a shell could stumble over
ARNS = ["arn:minio:sqs::REPLICATOR_NOW:webhook", "arn:minio:sqs::REPLICATOR_QUEUE:webhook"]
OTHER_ARN = "arn:minio:sqs::OTHER:webhook"
RESTART_MESSAGE = "Restart your MinIO process now"
RUN_BOUND_S = 90.0
EVENT_BOUND_S = 30.0
POLL_S = 0.05
NO_WEBHOOK = {"WEBHOOK_URL": "", "WEBHOOK_AUTH_TOKEN": "", "WEBHOOK_QUEUE_DIR": ""}
SCRIPTS = ["minio-webhook.sh", "configure_minio.py"]
MIDNIGHT_COMMANDER = "#!/bin/sh\necho 'GNU Midnight Commander 4.8.29'\n"


def poll(condition: Callable[[], bool], *, bound_s: float = EVENT_BOUND_S) -> bool:
    deadline = time.monotonic() + bound_s
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(POLL_S)
    return True


class Receiver:
    """Stands for the service: answers 200 and keeps what it was sent, as (path, token, event, key)."""

    def __init__(self) -> None:
        self.posts: list[tuple[str, str, str, str]] = []
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                if body:
                    event: dict[str, Any] = json.loads(body)
                    token = self.headers.get("Authorization", "")
                    receiver.posts.append((self.path, token, event["EventName"], event["Key"]))
                self.send_response(200)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def do_GET(self) -> None:
                self.do_POST()

            def do_HEAD(self) -> None:
                self.do_POST()

            def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - its name
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05})
        self._thread.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}"

    def of(self, key: str, event: str, path: str = "/minio/events") -> list[str]:
        """The tokens with which an event of a key arrived."""
        return [sent[1] for sent in self.posts if sent[0] == path and sent[3] == key and event in sent[2]]

    def close(self) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


@dataclass
class Site:
    """A server, what receives its events, and one of the two scripts to bring them together."""

    script: str
    gateway: Gateway
    receiver: Receiver
    folder: Path
    printed: str = ""

    def environment(self, **changes: str) -> dict[str, str]:
        mine = {
            "PATH": os.environ["PATH"],
            "HOME": str(self.folder),
            "TMPDIR": str(self.folder),
            "MINIO_ENDPOINT": self.gateway.endpoint + "/",
            "MINIO_ACCESS_KEY": self.gateway.access_key,
            "MINIO_SECRET_KEY": self.gateway.secret_key,
            "MINIO_BUCKET": "photos, letters",
            "WEBHOOK_URL": self.receiver.url + "/minio/events",
            "WEBHOOK_AUTH_TOKEN": TOKEN,
            "WEBHOOK_QUEUE_DIR": str(self.folder / "queue"),
        }
        return mine | real_client(self.script) | changes

    def run(self, *options: str, **changes: str) -> subprocess.CompletedProcess[str]:
        done = run(CONFIG / self.script, *options, cwd=self.folder, env=self.environment(**changes))
        left = [path.name for path in self.folder.glob("minio-webhook.*")]
        assert left == [], "the folder with the keys must not stay behind"
        return done

    def notification(self, bucket: str) -> str:
        return marshal(self.gateway.client().get_bucket_notification(bucket_name=bucket)).decode()

    def put(self, bucket: str, key: str) -> None:
        self.gateway.client().put_object(bucket_name=bucket, object_name=key, data=BytesIO(b"x"), length=1)


def real_client(script: str) -> dict[str, str]:
    if not script.endswith(".sh"):
        return {}
    found = find_mc()
    if found is None:
        reason = "MinIO's client is not here; scripts/get_mc.sh fetches it"
        if os.environ.get("CI") == "true":
            pytest.fail(reason)
        pytest.skip(reason)
    return {"MC": str(found)}


def command_of(script: Path, *options: str) -> list[str]:
    start = ["sh"] if script.suffix == ".sh" else [sys.executable]
    return [*start, str(script), *options]


def run(script: Path, *options: str, cwd: Path, env: dict[str, str]) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        command_of(script, *options),
        cwd=cwd,
        env=env,
        timeout=RUN_BOUND_S,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert_no_secret(done.stdout)
    return done


def assert_no_secret(printed: str) -> None:
    assert TOKEN not in printed
    assert SECRET not in printed


def set_up_through_a_restart(site: Site) -> int:
    """Runs the script, restarts the server when it asks for that, and lets it go on by itself."""
    with subprocess.Popen(
        command_of(CONFIG / site.script, "--wait", "60"),
        cwd=site.folder,
        env=site.environment(),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as process:
        watchdog = threading.Timer(RUN_BOUND_S, process.kill)
        watchdog.start()
        assert process.stdout is not None
        for line in process.stdout:
            site.printed += line
            if RESTART_MESSAGE in line:
                site.gateway.restart()
        watchdog.cancel()
        return process.wait()


@pytest.fixture(scope="module", params=SCRIPTS)
def site(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """A server that the script has set up; letters/ was bound to another target before."""
    real_client(request.param)
    folder = tmp_path_factory.mktemp("site")
    receiver = Receiver()
    other = {
        "MINIO_NOTIFY_WEBHOOK_ENABLE_OTHER": "on",
        "MINIO_NOTIFY_WEBHOOK_ENDPOINT_OTHER": receiver.url + "/other",
    }
    gateway = Gateway(folder / "gateway", secret_key=SECRET, environ=other)
    try:
        gateway.start()
        client = gateway.client()
        for bucket in ("photos", "letters", "untouched"):
            client.make_bucket(bucket_name=bucket)
        bind_other(gateway)
        made = Site(request.param, gateway, receiver, folder)
        assert set_up_through_a_restart(made) == 0, made.printed
        yield made
    finally:
        gateway.stop()
        receiver.close()


def bind_other(gateway: Gateway) -> None:
    wanted = QueueConfig(
        queue=OTHER_ARN,
        events=["s3:ObjectCreated:*"],
        config_id="theirs",
        prefix_filter_rule=PrefixFilterRule("in/"),
    )
    bind_when_live(gateway, "letters", wanted)


def bind_when_live(gateway: Gateway, bucket: str, wanted: QueueConfig) -> None:
    """As soon as the server takes it: it answers a moment before its targets are live."""
    config = NotificationConfig(queue_config_list=[wanted])

    def is_taken() -> bool:
        try:
            gateway.client().set_bucket_notification(bucket_name=bucket, config=config)
        except S3Error:
            return False
        return True

    assert poll(is_taken)


def arns(gateway: Gateway, bucket: str) -> list[str]:
    config = gateway.client().get_bucket_notification(bucket_name=bucket)
    return sorted(queue.queue or "" for queue in config.queue_config_list)


def test_the_script_asks_for_the_restart_and_goes_on_by_itself(site: Site) -> None:
    assert RESTART_MESSAGE in site.printed
    assert "can't restart itself" in site.printed
    assert "bucket photos: REPLICATOR_NOW added" in site.printed
    assert "bucket letters: REPLICATOR_QUEUE added" in site.printed
    assert "Done: MinIO reports every change of 2 buckets to the service." in site.printed
    assert "made later" not in site.printed, "only globs stand for buckets to come"
    assert_no_secret(site.printed)


def test_a_put_and_a_delete_arrive_twice_with_the_token(site: Site) -> None:
    site.put("photos", "a b.txt")
    assert poll(lambda: len(site.receiver.of("photos/a b.txt", "Created")) == 2)
    site.gateway.client().remove_object(bucket_name="photos", object_name="a b.txt")
    assert poll(lambda: len(site.receiver.of("photos/a b.txt", "Removed")) == 2)
    assert set(site.receiver.of("photos/a b.txt", "")) == {f"Bearer {TOKEN}"}


def test_only_the_buckets_named_are_bound(site: Site) -> None:
    assert arns(site.gateway, "photos") == ARNS
    assert arns(site.gateway, "untouched") == []


def test_running_it_again_changes_nothing(site: Site) -> None:
    before = [site.notification(bucket) for bucket in ("photos", "letters")]
    done = site.run()
    assert done.returncode == 0, done.stdout
    assert done.stdout.count("unchanged") == 6
    assert RESTART_MESSAGE not in done.stdout
    assert [site.notification(bucket) for bucket in ("photos", "letters")] == before


def test_another_target_of_the_bucket_is_still_told(site: Site) -> None:
    assert "theirs" in site.notification("letters")
    site.put("letters", "in/1")
    assert poll(lambda: len(site.receiver.of("letters/in/1", "Created", path="/other")) == 1)
    assert poll(lambda: len(site.receiver.of("letters/in/1", "Created")) == 2)


def test_a_dry_run_changes_nothing(site: Site) -> None:
    done = site.run("--dry-run", MINIO_BUCKET="untouched")
    assert done.returncode == 0
    assert "auth_token=***" in done.stdout
    assert "untouched" in done.stdout
    assert arns(site.gateway, "untouched") == []
    before = site.notification("photos")
    assert site.run("--dry-run", "--remove").returncode == 0
    assert site.notification("photos") == before


def test_removing_takes_ours_only_and_can_be_undone(site: Site) -> None:
    removed = site.run("--remove", "--no-restart")
    assert removed.returncode == 0, removed.stdout
    assert "target REPLICATOR_QUEUE: removed" in removed.stdout
    assert arns(site.gateway, "photos") == []
    assert arns(site.gateway, "letters") == [OTHER_ARN]
    assert "theirs" in site.notification("letters")
    again = site.run("--remove", "--no-restart")
    assert again.returncode == 0, again.stdout
    assert "target REPLICATOR_QUEUE: was not set" in again.stdout

    assert site.run().returncode == 0
    site.gateway.restart()

    def reported_twice() -> bool:
        site.put("photos", "after")  # again and again: the server answers a moment before its targets do
        return len(site.receiver.of("photos/after", "Created")) >= 2

    assert poll(reported_twice)


def test_a_binding_somebody_narrowed_is_made_whole(site: Site) -> None:
    narrow = QueueConfig(
        queue=ARNS[0], events=["s3:ObjectRemoved:*"], prefix_filter_rule=PrefixFilterRule("x/")
    )
    config = NotificationConfig(queue_config_list=[narrow])
    site.gateway.client().set_bucket_notification(bucket_name="untouched", config=config)
    done = site.run("--events-only", MINIO_BUCKET="untouched")
    assert done.returncode == 0, done.stdout
    assert arns(site.gateway, "untouched") == ARNS
    assert "x/" not in site.notification("untouched")
    assert site.run("--remove", "--events-only", MINIO_BUCKET="untouched").returncode == 0
    assert arns(site.gateway, "untouched") == []


def test_a_bucket_that_does_not_exist_is_named_before_anything_changes(site: Site) -> None:
    done = site.run(MINIO_BUCKET="nowhere")
    assert done.returncode == 1
    assert "the bucket doesn't exist; create it" in done.stdout
    assert "target" not in done.stdout


def test_wrong_keys_are_called_that(site: Site) -> None:
    done = site.run(MINIO_SECRET_KEY="wrong-secret")
    assert done.returncode == 1
    assert "check MINIO_ACCESS_KEY and MINIO_SECRET_KEY" in done.stdout


def test_a_webhook_that_does_not_answer_is_warned_of(site: Site) -> None:
    done = site.run(WEBHOOK_URL=f"http://127.0.0.1:{free_port()}/minio/events")
    assert "warning: WEBHOOK_URL" in done.stdout
    assert done.returncode == 1  # this server refuses such a target; newer ones take it
    assert "start the service first" in done.stdout


def test_settings_come_from_a_file_too(site: Site, tmp_path: Path) -> None:
    env = site.environment()
    names = [name for name in env if name.startswith(("MINIO_", "WEBHOOK_"))]
    lines = ["# a comment", f"export MINIO_SECRET_KEY='{env['MINIO_SECRET_KEY']}'"]
    lines += [f"{name}={env[name]}  # said once" for name in names if name != "MINIO_SECRET_KEY"]
    (tmp_path / ".env").write_text("\n".join(lines) + "\n")
    bare = {name: value for name, value in env.items() if name not in names}
    done = run(CONFIG / site.script, cwd=tmp_path, env=bare)
    assert done.returncode == 0, done.stdout
    assert done.stdout.count("unchanged") == 6


@pytest.fixture(scope="module")
def deployed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Gateway, Receiver]]:
    """A server whose own environment names the targets, as config/minio/Dockerfile does; nothing is bound."""
    folder = tmp_path_factory.mktemp("deployed")
    receiver = Receiver()
    environ = {}
    for name in ("NOW", "QUEUE"):
        environ[f"MINIO_NOTIFY_WEBHOOK_ENABLE_REPLICATOR_{name}"] = "on"
        environ[f"MINIO_NOTIFY_WEBHOOK_ENDPOINT_REPLICATOR_{name}"] = receiver.url + "/minio/events"
        environ[f"MINIO_NOTIFY_WEBHOOK_AUTH_TOKEN_REPLICATOR_{name}"] = TOKEN
    environ["MINIO_NOTIFY_WEBHOOK_QUEUE_DIR_REPLICATOR_QUEUE"] = str(folder / ".replicator-events")
    environ["MINIO_NOTIFY_WEBHOOK_QUEUE_LIMIT_REPLICATOR_QUEUE"] = "100000"
    gateway = Gateway(folder / "gateway", secret_key=SECRET, environ=environ)
    try:
        gateway.start()
        for bucket in ("album-1", "album-22", "notes"):
            gateway.client().make_bucket(bucket_name=bucket)
        for arn in ARNS:
            bind_when_live(gateway, "notes", QueueConfig(queue=arn, events=["s3:ObjectCreated:*"]))
        gateway.client().delete_bucket_notification(bucket_name="notes")
        yield gateway, receiver
    finally:
        gateway.stop()
        receiver.close()


@pytest.mark.parametrize("script", SCRIPTS)
def test_targets_from_the_servers_environment_only_need_to_be_bound(
    deployed: tuple[Gateway, Receiver], script: str, tmp_path: Path
) -> None:
    gateway, receiver = deployed
    bucket = Path(script).stem.replace("_", "-")
    gateway.client().make_bucket(bucket_name=bucket)
    site = Site(script, gateway, receiver, tmp_path)
    only = NO_WEBHOOK | {"MINIO_BUCKET": bucket}
    assert site.run("--events-only", **only).returncode == 0
    assert site.run("--events-only", **only).stdout.count("unchanged") == 2
    site.put(bucket, "key")
    assert poll(lambda: receiver.of(f"{bucket}/key", "Created") == [f"Bearer {TOKEN}"] * 2)
    assert site.run("--events-only", "--remove", **only).returncode == 0
    assert arns(gateway, bucket) == []


@dataclass
class Albums:
    """One of the scripts and a server with the buckets album-1, album-22, notes and a few more."""

    site: Site

    def run(self, *options: str, **changes: str) -> subprocess.CompletedProcess[str]:
        return self.site.run("--events-only", *options, **NO_WEBHOOK | changes)

    def bind(self, *options: str, **changes: str) -> str:
        done = self.run(*options, **changes)
        assert done.returncode == 0, done.stdout
        return done.stdout

    def all(self) -> list[str]:
        return [bucket.name for bucket in self.site.gateway.client().list_buckets()]

    def bound(self) -> list[str]:
        """The buckets whose changes both targets are told."""
        return [bucket for bucket in self.all() if arns(self.site.gateway, bucket) == ARNS]

    def clear(self) -> None:
        for bucket in self.all():
            self.site.gateway.client().delete_bucket_notification(bucket_name=bucket)


@pytest.fixture(params=SCRIPTS)
def albums(
    request: pytest.FixtureRequest, deployed: tuple[Gateway, Receiver], tmp_path: Path
) -> Iterator[Albums]:
    found = Albums(Site(request.param, *deployed, tmp_path))
    yield found
    found.clear()


def test_a_list_takes_commas_and_spaces_and_binds_each_bucket_once(albums: Albums) -> None:
    printed = albums.bind(MINIO_BUCKET="album-1 notes,,album-1")
    assert albums.bound() == ["album-1", "notes"]
    assert "every change of 2 buckets" in printed


def test_a_star_means_all_buckets_and_never_the_files_of_the_folder(albums: Albums) -> None:
    for name in ("notes", "a-file", "with space"):
        (albums.site.folder / name).touch()
    printed = albums.bind(MINIO_BUCKET="*")
    assert albums.bound() == albums.all()
    assert f"every change of {len(albums.all())} buckets" in printed
    assert "Buckets made later need this to be run again; it is safe to repeat" in printed
    (albums.site.folder / ".env").write_text("MINIO_BUCKET=*\n")
    assert "a-file" not in albums.bind("--remove", MINIO_BUCKET="")
    assert albums.bound() == []


def test_a_pattern_means_the_buckets_that_match(albums: Albums) -> None:
    (albums.site.folder / "album-x").touch()
    assert "every change of 1 bucket to" in albums.bind(MINIO_BUCKET="album-?")
    assert albums.bound() == ["album-1"]
    albums.bind(MINIO_BUCKET="*-22, notes, album-22")
    assert albums.bound() == ["album-1", "album-22", "notes"]
    albums.bind("--remove", MINIO_BUCKET="album-*")
    assert albums.bound() == ["notes"]


def test_a_bucket_made_later_is_bound_by_the_next_run(albums: Albums) -> None:
    client = albums.site.gateway.client()
    albums.bind(MINIO_BUCKET="album-*")
    client.make_bucket(bucket_name="album-later")
    try:
        printed = albums.bind(MINIO_BUCKET="album-*")
        assert albums.bound() == ["album-1", "album-22", "album-later"]
    finally:
        client.remove_bucket(bucket_name="album-later")
    assert printed.count("unchanged") == 4
    assert printed.count("added") == 2


def test_a_dry_run_names_the_buckets_that_match(albums: Albums) -> None:
    for options in ([], ["--remove"]):
        printed = albums.bind("--dry-run", *options, MINIO_BUCKET="album-*")
        assert "album-1" in printed
        assert "album-22" in printed
        assert "notes" not in printed
        assert "album-*" not in printed
    assert albums.bound() == []


@pytest.mark.parametrize("options", [[], ["--remove"], ["--dry-run"]])
def test_a_pattern_that_matches_nothing_is_called_that_before_anything_changes(
    albums: Albums, options: list[str]
) -> None:
    done = albums.run(*options, MINIO_BUCKET="album-*,nope-*")
    assert done.returncode == 1
    assert f"no bucket matches 'nope-*' (MinIO lists {len(albums.all())} to these keys)" in done.stdout
    assert "Hint: create one, or name others in MINIO_BUCKET" in done.stdout
    assert albums.bound() == []


@pytest.mark.parametrize("albums", ["configure_minio.py"], indirect=True)
def test_the_sources_of_the_rules_are_bound_where_no_bucket_is_named(albums: Albums) -> None:
    rules = '[rules.a]\nsource = "notes"\ntarget = "x"\n[rules.b]\nsource = ["album-?", "notes"]\n'
    (albums.site.folder / "rules.toml").write_text(rules)
    albums.bind(RULES_FILE="rules.toml", MINIO_BUCKET="album-22")
    assert albums.bound() == ["album-22"]
    printed = albums.bind(RULES_FILE="rules.toml", MINIO_BUCKET="")
    assert albums.bound() == ["album-1", "album-22", "notes"]
    assert "every change of 2 buckets" in printed
    albums.bind("--remove", RULES_FILE="rules.toml", MINIO_BUCKET="")
    assert albums.bound() == ["album-22"]


@pytest.mark.parametrize("script", SCRIPTS)
def test_events_for_targets_the_server_lacks_fail_at_once(script: str, tmp_path: Path) -> None:
    receiver = Receiver()
    try:
        with Gateway(tmp_path / "gateway") as gateway:
            gateway.client().make_bucket(bucket_name="photos")
            done = Site(script, gateway, receiver, tmp_path).run("--events-only", MINIO_BUCKET="photos")
    finally:
        receiver.close()
    assert done.returncode == 1
    assert "MinIO has no target REPLICATOR_NOW" in done.stdout


# --- what needs no server -----------------------------------------------------------------------


def lonely_copy(script: str, folder: Path) -> Path:
    """The script in a repository that has no .env and no .tools."""
    (folder / "config").mkdir()
    shutil.copy(CONFIG / "mc.sh", folder / "config" / "mc.sh")
    return Path(shutil.copy(CONFIG / script, folder / "config" / script))


@pytest.mark.parametrize("script", ["minio-webhook.sh", "minio-nats.sh"])
def test_a_link_to_the_script_works_from_any_folder(script: str, tmp_path: Path) -> None:
    lonely_copy(script, tmp_path)
    folder = tmp_path / "local" / "bin"
    folder.mkdir(parents=True)
    (folder / "linked").symlink_to(Path("../../config") / script)
    (folder / "again.sh").symlink_to("linked")
    (tmp_path / ".env").write_text("MINIO_BUCKET='no bucket!'\n")
    for cwd, link in ((Path("/"), folder / "again.sh"), (folder, Path("again.sh"))):
        done = run(link, cwd=cwd, env={"PATH": os.environ["PATH"]})
        assert done.returncode == 2
        assert "'bucket!' is no bucket name" in done.stdout, "the repository's .env is read"


@pytest.mark.parametrize("script", SCRIPTS)
def test_all_missing_settings_are_named_in_one_message(script: str, tmp_path: Path) -> None:
    env = {"PATH": os.environ["PATH"], "MINIO_BUCKET": "photos", "WEBHOOK_AUTH_TOKEN": "two words"}
    done = run(lonely_copy(script, tmp_path), cwd=tmp_path, env=env)
    assert done.returncode == 2
    names = "MINIO_ENDPOINT, MINIO_ACCESS_KEY, MINIO_SECRET_KEY, WEBHOOK_URL, WEBHOOK_QUEUE_DIR"
    assert f"not set: {names} (in the environment or in .env)" in done.stdout
    assert "WEBHOOK_AUTH_TOKEN must have no spaces" in done.stdout
    assert "two words" not in done.stdout


@pytest.mark.parametrize("script", [*SCRIPTS, "minio-nats.sh"])
def test_secrets_may_stand_in_files(script: str, tmp_path: Path) -> None:
    secrets = {"MINIO_SECRET_KEY": SECRET, "WEBHOOK_AUTH_TOKEN": TOKEN, "EVENTS_FROM": "nats://me:word@nats"}
    for name, value in secrets.items():
        (tmp_path / name).write_text(f"{value}\n")
    files = {f"{name}_FILE": name for name in secrets} | dict.fromkeys(secrets, "")
    env = complete("http://127.0.0.1:9", tmp_path) | files
    script_path = lonely_copy(script, tmp_path)
    done = run(script_path, "--dry-run", cwd=tmp_path, env=env)
    assert done.returncode == 0, done.stdout
    assert "***" in done.stdout, "the secret of the target is there, and masked"
    for name, value in secrets.items():
        (tmp_path / name).write_text(f"{value}\nanother line")
        assert value not in done.stdout
    done = run(script_path, "--dry-run", cwd=tmp_path, env=env | {"MINIO_ACCESS_KEY_FILE": "none"})
    assert done.returncode == 2
    assert "MINIO_ACCESS_KEY and MINIO_ACCESS_KEY_FILE are both set" in done.stdout
    assert "MINIO_SECRET_KEY_FILE MINIO_SECRET_KEY must hold one line of text" in done.stdout
    assert "another line" not in done.stdout
    assert "not set" not in done.stdout


@pytest.mark.parametrize("script", SCRIPTS)
@pytest.mark.parametrize("options", [["--nonsense"], ["--wait", "soon"], ["--wait"]])
def test_wrong_options_are_wrong_use(script: str, options: list[str], tmp_path: Path) -> None:
    assert run(CONFIG / script, *options, cwd=tmp_path, env={"PATH": os.environ["PATH"]}).returncode == 2


@pytest.mark.parametrize("script", SCRIPTS)
def test_help_names_every_option(script: str, tmp_path: Path) -> None:
    done = run(CONFIG / script, "--help", cwd=tmp_path, env={"PATH": os.environ["PATH"]})
    assert done.returncode == 0
    for option in ("--events-only", "--remove", "--no-restart", "--wait", "--dry-run", "WEBHOOK_URL"):
        assert option in done.stdout


def complete(endpoint: str, folder: Path) -> dict[str, str]:
    return {
        "PATH": os.environ["PATH"],
        "TMPDIR": str(folder),
        "MINIO_ENDPOINT": endpoint,
        "MINIO_ACCESS_KEY": "minioadmin",
        "MINIO_SECRET_KEY": SECRET,
        "MINIO_BUCKET": "photos",
        "WEBHOOK_URL": "http://127.0.0.1:9/minio/events",
        "WEBHOOK_AUTH_TOKEN": TOKEN,
        "WEBHOOK_QUEUE_DIR": "/data/.replicator-events",
    }


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_server_that_is_not_there_is_called_that(script: str, tmp_path: Path) -> None:
    endpoint = f"http://127.0.0.1:{free_port()}"
    done = run(CONFIG / script, cwd=tmp_path, env=complete(endpoint, tmp_path) | real_client(script))
    assert done.returncode == 1
    assert f"MinIO can't be reached at {endpoint}" in done.stdout


@pytest.mark.parametrize("script", SCRIPTS)
@pytest.mark.parametrize(
    ("named", "problem"),
    [(", ,", "MINIO_BUCKET names no bucket"), ("a/*,photos", "MINIO_BUCKET: 'a/*' is no bucket name")],
)
def test_what_can_be_no_bucket_is_wrong_use(script: str, named: str, problem: str, tmp_path: Path) -> None:
    env = complete("http://127.0.0.1:9", tmp_path) | {"MINIO_BUCKET": named}
    done = run(CONFIG / script, cwd=tmp_path, env=env)
    assert done.returncode == 2
    assert problem in done.stdout


class Buckets(BaseHTTPRequestHandler):
    """A MinIO that lists a bucket of its own, as none of those that run here does."""

    def do_GET(self) -> None:
        names = (".minio.sys", ".hidden", "photos")
        listed = "".join(
            f"<Bucket><Name>{name}</Name><CreationDate>2026-01-01T00:00:00Z</CreationDate></Bucket>"
            for name in names
        )
        body = f"<ListAllMyBucketsResult><Buckets>{listed}</Buckets></ListAllMyBucketsResult>".encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/xml")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - its name
        pass


@pytest.mark.parametrize("script", SCRIPTS)
def test_buckets_of_minios_own_are_passed_by(script: str, tmp_path: Path) -> None:
    with ThreadingHTTPServer(("127.0.0.1", 0), Buckets) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            env = complete(f"http://127.0.0.1:{server.server_port}", tmp_path) | {"MINIO_BUCKET": "*"}
            done = run(CONFIG / script, "--dry-run", cwd=tmp_path, env=env | real_client(script))
        finally:
            server.shutdown()
            thread.join()
    assert done.returncode == 0, done.stdout
    assert "photos" in done.stdout
    assert ".minio.sys" not in done.stdout
    assert ".hidden" not in done.stdout


@pytest.mark.parametrize(
    ("rules", "problem"),
    [
        (None, "can't be read: No such file or directory"),
        ("[rules.a\n", "can't be read: Expected ']'"),
        ("source = 'photos'\n", "has no table [rules.NAME]"),
        ("[rules]\na = 'photos'\n", "rule a needs a source"),
        ("[rules.a]\ntarget = 'x'\n", "rule a needs a source"),
        ("[rules.a]\nsource = []\n", "rule a needs a source"),
        ("[rules.a]\nsource = ['photos', 3]\n", "rule a needs a source"),
        ("[rules.a]\nsource = 'photos/2024'\n", "RULES_FILE: 'photos/2024' is no bucket name"),
    ],
)
def test_a_wrong_file_of_rules_is_wrong_use(rules: str | None, problem: str, tmp_path: Path) -> None:
    path = tmp_path / "rules.toml"
    if rules is not None:
        path.write_text(rules)
    env = complete("http://127.0.0.1:9", tmp_path) | {"MINIO_BUCKET": "", "RULES_FILE": str(path)}
    done = run(lonely_copy("configure_minio.py", tmp_path), cwd=tmp_path, env=env)
    assert done.returncode == 2
    assert problem in done.stdout
    assert "Traceback" not in done.stdout


def test_the_shell_script_says_that_it_reads_no_file_of_rules(tmp_path: Path) -> None:
    env = complete("http://127.0.0.1:9", tmp_path) | {"MINIO_BUCKET": "", "RULES_FILE": "rules.toml"}
    done = run(lonely_copy("minio-webhook.sh", tmp_path), cwd=tmp_path, env=env)
    assert done.returncode == 2
    assert "use config/configure_minio.py, or name the buckets in MINIO_BUCKET" in done.stdout


def test_midnight_commander_named_as_the_client_is_refused(tmp_path: Path) -> None:
    fake = tmp_path / "mc"
    fake.write_text(MIDNIGHT_COMMANDER)
    fake.chmod(0o755)
    env = complete("http://127.0.0.1:9", tmp_path) | {"MC": str(fake)}
    done = run(CONFIG / "minio-webhook.sh", cwd=tmp_path, env=env)
    assert done.returncode == 1
    assert f"MC={fake} is Midnight Commander" in done.stdout


def test_midnight_commander_on_path_is_not_taken_for_the_client(tmp_path: Path) -> None:
    programs = tmp_path / "bin"
    programs.mkdir()
    for name in ("sh", "dirname", "sed", "tail", "tr"):
        (programs / name).symlink_to(shutil.which(name) or "")
    (programs / "mc").write_text(MIDNIGHT_COMMANDER)
    (programs / "mc").chmod(0o755)
    env = complete("http://127.0.0.1:9", tmp_path) | {"PATH": str(programs)}
    done = run(lonely_copy("minio-webhook.sh", tmp_path), cwd=tmp_path, env=env)
    assert done.returncode == 1
    assert "MinIO's client is not on PATH" in done.stdout
    assert "is Midnight Commander (a file manager)" in done.stdout
    assert "scripts/get_mc.sh" in done.stdout


def test_interrupting_it_leaves_no_keys_behind(tmp_path: Path) -> None:
    slow = tmp_path / "slow-mc"
    slow.write_text(
        "#!/bin/sh\n[ \"$1\" = --version ] && echo 'mc version RELEASE.2025' && exit\nexec sleep 60\n"
    )
    slow.chmod(0o755)
    env = complete("http://127.0.0.1:9", tmp_path) | {"MC": str(slow)}
    with subprocess.Popen(command_of(CONFIG / "minio-webhook.sh"), cwd=tmp_path, env=env) as process:
        assert poll(lambda: any(tmp_path.glob("minio-webhook.*/out")))
        (keys,) = tmp_path.glob("minio-webhook.*/config.json")
        assert keys.stat().st_mode & 0o077 == 0
        process.terminate()
        assert process.wait(EVENT_BOUND_S) == 143
    assert list(tmp_path.glob("minio-webhook.*")) == []
