"""The scripts for people, run as programs on real servers."""

from __future__ import annotations

import fcntl
import io
import json
import os
import pty
import select
import signal
import subprocess
import sys
import termios
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from minio.commonconfig import ENABLED
from minio.versioningconfig import VersioningConfig

from scripts import upload_to_minio
from scripts.local_processes import find_binary, free_port
from scripts.local_servers import ACCESS_KEY, SECRET_KEY, Gateway, S3Server, SeaweedFS
from scripts.local_service import API_TOKEN, Replicator
from tests.proxy import Exchange, Proxy, answering, drop

ROOT = Path(__file__).resolve().parents[2]
SCRIPTS = ("upload_to_minio", "list_buckets_and_objects", "delete_bucket", "replicate_one", "doctor")
RUN_BOUND_S, POLL_S = 60.0, 0.05
MIB = 1024 * 1024
ODD_KEYS = (
    *("with  two spaces", "a+b", "100%25", "café/crème", "日本語/写真 🚀", "&<>\"'", "why?#yes;no"),
    *("new\nline", "car\rriage", "tab\tbed", "esc\x1b[31mred", "bell\x07", "del\x7f", "\u202etxt.exe"),
)

# ── how scripts are run ──────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class Done:
    """How a run ended, and what it printed."""

    code: int
    out: str
    err: str = ""

    @property
    def objects(self) -> list[dict[str, Any]]:
        """The JSON of each line."""
        return [json.loads(line) for line in self.out.splitlines()]


@dataclass
class Shell:
    """Runs scripts in a folder of their own, with no other variables than these."""

    folder: Path
    variables: dict[str, str] = field(default_factory=dict)
    before: tuple[str, ...] = ()
    """Comes before the command."""

    def command(self, name: str, arguments: Sequence[str]) -> dict[str, Any]:
        environ = {"PATH": os.environ["PATH"], "HOME": str(self.folder), "LANG": "C.UTF-8"}
        environ |= {"PYTHONDONTWRITEBYTECODE": "1", "COLUMNS": "120"}
        script = [*self.before, sys.executable, str(ROOT / "scripts" / f"{name}.py"), *arguments]
        return {"args": script, "cwd": self.folder, "env": environ | self.variables}

    def run(self, name: str, *arguments: str, stdin: bytes = b"") -> Done:
        """Runs a script to its end, without a terminal."""
        done = subprocess.run(
            **self.command(name, arguments), input=stdin, capture_output=True, timeout=RUN_BOUND_S
        )
        return seen(Done(done.returncode, done.stdout.decode(), done.stderr.decode()))

    def start(self, name: str, *arguments: str) -> subprocess.Popen[bytes]:
        """Starts a script whose stdin, stdout and stderr are pipes."""
        pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
        return subprocess.Popen(**self.command(name, arguments), **pipes)

    def run_on_terminal(self, name: str, *arguments: str, answer: str = "", question: str = "") -> Done:
        """Runs a script on a terminal, and types the answer once the question is there."""
        ours, theirs = pty.openpty()

        def take_terminal() -> None:
            os.setsid()
            fcntl.ioctl(theirs, termios.TIOCSCTTY, 0)  # so that Ctrl-C reaches it

        try:
            with subprocess.Popen(
                **self.command(name, arguments),
                **dict.fromkeys(("stdin", "stdout", "stderr"), theirs),
                preexec_fn=take_terminal,
            ) as process:
                printed = _converse(process, ours, answer, question)
        finally:
            os.close(ours)
            os.close(theirs)
        return seen(Done(process.returncode, printed))


def _converse(process: subprocess.Popen[bytes], terminal: int, answer: str, question: str) -> str:
    """What the process prints until it ends; it is killed when that takes too long."""
    printed, deadline = b"", time.monotonic() + RUN_BOUND_S
    while True:
        has_ended = process.poll() is not None  # looked at first: what it printed last is read then
        if select.select([terminal], [], [], POLL_S)[0]:
            printed += os.read(terminal, 65536)
        elif has_ended:
            return printed.decode()
        if answer and question in printed.decode(errors="replace"):
            os.write(terminal, answer.encode())
            answer = ""
        if time.monotonic() > deadline:
            process.kill()


def seen(done: Done) -> Done:
    """What no run may print."""
    for secret in (SECRET_KEY, ACCESS_KEY, API_TOKEN):
        assert secret not in done.out + done.err
    assert "Traceback" not in done.err
    return done


def until(condition: Callable[[], Any], what: str) -> Any:
    """The condition's value once it is true; fails after RUN_BOUND_S."""
    deadline = time.monotonic() + RUN_BOUND_S
    while not (value := condition()):
        assert time.monotonic() < deadline, f"not within {RUN_BOUND_S:.0f} s: {what}"
        time.sleep(POLL_S)
    return value


def source_variables(server: S3Server | Proxy, bucket: str = "") -> dict[str, str]:
    """What the source alone needs."""
    values = {"MINIO_ENDPOINT": server.endpoint, "MINIO_BUCKET": bucket}
    return values | {"MINIO_ACCESS_KEY": ACCESS_KEY, "MINIO_SECRET_KEY": SECRET_KEY}


def target_variables(server: S3Server | Proxy, bucket: str) -> dict[str, str]:
    """What the target needs."""
    values = {"FILEBASE_ENDPOINT": server.endpoint, "FILEBASE_BUCKET": bucket}
    return values | {"FILEBASE_ACCESS_KEY": ACCESS_KEY, "FILEBASE_SECRET_KEY": SECRET_KEY}


def put(server: S3Server, bucket: str, *keys: str, body: bytes = b"content", **more: Any) -> None:
    client = server.client()
    for key in keys:
        client.put_object(
            bucket_name=bucket, object_name=key, data=io.BytesIO(body), length=len(body), **more
        )


def held(server: S3Server, bucket: str) -> dict[str, int]:
    """The size of each object."""
    listed = server.client().list_objects(bucket_name=bucket, recursive=True)
    return {each.object_name: each.size or 0 for each in listed if each.object_name}


def read(server: S3Server, bucket: str, key: str) -> bytes:
    with server.client().get_object(bucket_name=bucket, object_name=key) as answer:
        return bytes(answer.read())


def content_type(server: S3Server, bucket: str, key: str) -> str | None:
    return server.client().stat_object(bucket_name=bucket, object_name=key).content_type


@pytest.fixture
def bucket(gateway: Gateway, new_bucket: Callable[[S3Server], str]) -> str:
    """An empty bucket of the source."""
    return new_bucket(gateway)


@pytest.fixture
def copies(seaweed: SeaweedFS, new_bucket: Callable[[S3Server], str]) -> str:
    """An empty bucket of the target."""
    return new_bucket(seaweed)


@pytest.fixture
def shell(tmp_path: Path, gateway: Gateway, bucket: str) -> Shell:
    """With the settings of the source, and none of a target."""
    return Shell(tmp_path, source_variables(gateway, bucket))


@pytest.fixture
def both(shell: Shell, seaweed: SeaweedFS, copies: str) -> Shell:
    """With the settings of both sides."""
    return Shell(shell.folder, shell.variables | target_variables(seaweed, copies))


@pytest.fixture
def proxied(tmp_path: Path, gateway: Gateway, bucket: str) -> Iterator[tuple[Shell, Proxy]]:
    """The source behind a proxy."""
    with Proxy(gateway.endpoint) as proxy:
        yield Shell(tmp_path, source_variables(proxy, bucket)), proxy


# ── all of them ──────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("name", SCRIPTS)
def test_help_helps_from_any_folder(name: str, tmp_path: Path) -> None:
    done = Shell(tmp_path).run(name, "--help")
    assert (done.code, done.err) == (0, "")
    for word in ("examples:", f"scripts/{name}.py", "settings", "exit codes:", "130", "--json"):
        assert word in done.out


@pytest.mark.parametrize("name", SCRIPTS)
def test_each_runs_as_a_module_too(name: str) -> None:
    command = [sys.executable, "-m", f"scripts.{name}", "--no-such-option"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=RUN_BOUND_S)
    assert (done.returncode, done.stdout) == (2, "")
    assert "See --help" in done.stderr


@pytest.mark.parametrize(
    ("name", "arguments", "missing"),
    [
        ("upload_to_minio", ["."], "MINIO_SECRET_KEY"),
        ("delete_bucket", ["a-bucket", "--yes"], "MINIO_SECRET_KEY"),
        ("delete_bucket", ["a-bucket", "--yes", "--target=filebase"], "FILEBASE_SECRET_KEY"),
        ("list_buckets_and_objects", [], "FILEBASE_SECRET_KEY"),
    ],
)
def test_settings_that_are_missing_are_named(
    name: str, arguments: list[str], missing: str, tmp_path: Path
) -> None:
    done = Shell(tmp_path).run(name, *arguments)
    assert (done.code, done.out) == (2, "")
    assert f"{missing} is missing" in done.err


@pytest.mark.parametrize(
    ("name", "arguments"),
    [("upload_to_minio", ["--sample=3"]), ("delete_bucket", ["bucket-x", "--yes"])],
)
def test_a_wrong_secret_and_a_silent_store_are_said_once(
    name: str, arguments: list[str], shell: Shell
) -> None:
    shell.variables["MINIO_SECRET_KEY"] = "not-the-s3cr3t"
    done = shell.run(name, *arguments)
    assert (done.code, done.out) == (1, "")
    assert "in the settings" in done.err
    shell.variables["MINIO_ENDPOINT"] = f"http://127.0.0.1:{free_port()}"
    done = shell.run(name, *arguments)
    assert (done.code, done.err.count("\n")) == (1, 1)
    assert "does not answer" in done.err
    assert "not-the-s3cr3t" not in done.err


# ── upload_to_minio ──────────────────────────────────────────────────────────────────────────────────


def make_files(folder: Path, files: dict[str, bytes]) -> Path:
    for name, body in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(body)
    return folder


def test_a_folders_files_get_their_paths_below_it_as_keys(
    shell: Shell, gateway: Gateway, bucket: str
) -> None:
    bodies = {
        "index.html": b"<p>",
        "a b/ü+1 🚀.json": b"{}",
        "deep/er/photo.jpg": b"jpg",
        "dump.sql.gz": b"gz",
        "without-ending": b"",
    }
    make_files(shell.folder / "photos", bodies)
    done = shell.run("upload_to_minio", "photos/")
    assert (done.code, done.err) == (0, "")
    assert "uploaded  a b/ü+1 🚀.json  (2 B, application/json)" in done.out
    assert f"5 objects, 10 B uploaded to {bucket}" in done.out
    assert {key: read(gateway, bucket, key) for key in held(gateway, bucket)} == bodies
    types = {key: content_type(gateway, bucket, key) for key in bodies}
    assert types == {
        "index.html": "text/html",
        "a b/ü+1 🚀.json": "application/json",
        "deep/er/photo.jpg": "image/jpeg",
        "dump.sql.gz": "application/gzip",
        "without-ending": "application/octet-stream",
    }


def test_names_prefix_and_type_can_be_chosen(shell: Shell, gateway: Gateway, bucket: str) -> None:
    make_files(shell.folder, {"photos/a.jpg": b"a", "photos/sub/b.jpg": b"b", "c.txt": b"c"})
    chosen = ["--prefix=2026/", "--keep-name", "--content-type=x/y", "--json", "--threads=1"]
    done = shell.run("upload_to_minio", "photos", "c.txt", *chosen)
    keys = ["2026/photos/a.jpg", "2026/photos/sub/b.jpg", "2026/c.txt"]
    assert (done.code, [each["key"] for each in done.objects]) == (0, keys)
    assert sorted(held(gateway, bucket)) == sorted(keys)
    first = done.objects[0]
    assert first.pop("etag")
    assert first == {
        "status": "uploaded",
        "bucket": bucket,
        "key": "2026/photos/a.jpg",
        "path": "photos/a.jpg",
        "size": 1,
        "content_type": "x/y",
    }
    assert content_type(gateway, bucket, "2026/c.txt") == "x/y"


def test_what_cannot_be_uploaded_is_reported_and_the_rest_goes_on(
    shell: Shell, gateway: Gateway, bucket: str
) -> None:
    folder = make_files(shell.folder / "all", {"good.txt": b"1", "sub/also\x1b[31mgood": b"2"})
    (folder / "sub" / "linked.txt").symlink_to(folder / "good.txt")
    (folder / "linked-folder").symlink_to(folder / "sub")
    (folder / "sub" / "loop").symlink_to(folder)
    (folder / "broken").symlink_to("nowhere")
    os.mkfifo(folder / "fifo")
    Path(os.fsdecode(os.fsencode(folder) + b"/not\xffutf8")).write_bytes(b"3")
    make_files(shell.folder, {"other/good.txt": b"4"})
    done = shell.run("upload_to_minio", "all", "other", "absent.txt")
    assert done.code == 1
    linked = {"linked-folder/also\x1b[31mgood": 1, "linked-folder/linked.txt": 1, "sub/linked.txt": 1}
    assert held(gateway, bucket) == {"good.txt": 1, "sub/also\x1b[31mgood": 1} | linked
    assert read(gateway, bucket, "good.txt") == b"1"
    for word in (
        *("failed  all/broken:", "failed  absent.txt:", "failed  all/not\\udcffutf8:"),
        *("failed  other/good.txt: another one", "skipped  all/fifo:", "skipped  all/sub/loop:"),
    ):
        assert word in done.err
    assert "also\\x1b[31mgood" in done.out
    assert "\x1b" not in done.out + done.err
    assert "; 4 failed; 3 skipped" in done.out


def test_a_file_that_may_not_be_read_is_reported(shell: Shell, gateway: Gateway, bucket: str) -> None:
    make_files(shell.folder, {"all/good.txt": b"1", "all/shut.txt": b"2"})
    (shell.folder / "all" / "shut.txt").chmod(0)
    shell.before = without_root()
    done = shell.run("upload_to_minio", "all", "--json")
    assert done.code == 1
    assert {each["path"]: each["status"] for each in done.objects} == {
        "all/good.txt": "uploaded",
        "all/shut.txt": "failed",
    }
    assert "shut.txt: Permission denied" in done.err
    assert held(gateway, bucket) == {"good.txt": 1}


def without_root() -> tuple[str, ...]:
    """What goes before a command for which file modes are to count, also where tests run as root."""
    if os.geteuid() != 0:
        return ()
    powers = "-dac_override,-dac_read_search"
    return find_binary("setpriv"), f"--bounding-set={powers}", f"--inh-caps={powers}", "--"


@pytest.mark.parametrize("size_change", [b"more", None])
def test_a_file_that_changes_its_size_while_it_is_read_is_an_error(
    size_change: bytes | None, tmp_path: Path
) -> None:
    path = tmp_path / "log"
    path.write_bytes(b"0123456789")
    with (
        pytest.raises(upload_to_minio.Changed, match="from 10 to"),
        upload_to_minio.open_file(path) as (reading, size_bytes),
    ):
        assert size_bytes == 10
        assert reading.read(4) == b"0123"
        if size_change:
            with path.open("ab") as file:
                file.write(size_change)
        else:
            os.truncate(path, 4)
        reading.read(10)


def test_a_changed_file_leaves_no_object(shell: Shell, gateway: Gateway, bucket: str) -> None:
    with Proxy(gateway.endpoint) as proxy:
        shell.variables["MINIO_ENDPOINT"] = proxy.endpoint
        path = make_files(shell.folder, {"growing": b"x" * 17 * MIB}) / "growing"
        proxy.plan("CreateMultipartUpload", lambda _: os.truncate(path, 16 * MIB))
        done = shell.run("upload_to_minio", "growing", "--json")
    assert done.code == 1
    assert "changed from 17,825,792 to 16,777,216 bytes" in done.objects[0]["error"]
    assert held(gateway, bucket) == {}
    assert uploads(gateway, bucket) == []


def uploads(server: S3Server, bucket: str) -> list[str]:
    return [each.object_name for each in server.client()._list_multipart_uploads(bucket).uploads]


def test_stdin_of_any_length_becomes_an_object(shell: Shell, gateway: Gateway, bucket: str) -> None:
    body = os.urandom(MIB) * 17 + b"end"
    done = shell.run("upload_to_minio", "-", "--key=dumps/shop.json", "--json", stdin=body)
    assert (done.code, done.objects[0]["size"]) == (0, len(body))
    assert done.objects[0]["etag"].endswith("-2")
    assert content_type(gateway, bucket, "dumps/shop.json") == "application/json"
    assert read(gateway, bucket, "dumps/shop.json") == body


def test_ctrl_c_ends_an_upload_and_leaves_nothing_unfinished(
    shell: Shell, gateway: Gateway, bucket: str
) -> None:
    with shell.start("upload_to_minio", "-", "--key=endless") as process:
        assert process.stdin
        process.stdin.write(b"x" * 17 * MIB)
        process.stdin.flush()
        until(lambda: uploads(gateway, bucket), "the upload has begun")
        process.send_signal(signal.SIGINT)
        code = process.wait(RUN_BOUND_S)  # its stdin is open still
        assert process.stderr
        said = process.stderr.read().decode()
    assert code == 130
    assert "interrupted. Until then: 0 objects, 0 B uploaded" in said
    assert "Run it again" in said
    assert (uploads(gateway, bucket), held(gateway, bucket)) == ([], {})


def test_samples_are_the_same_each_time(shell: Shell, gateway: Gateway, bucket: str) -> None:
    runs = [shell.run("upload_to_minio", "--sample=40", "--json") for _ in range(2)]
    first, second = ({each["key"]: each["etag"] for each in done.objects} for done in runs)
    assert first == second
    assert len(set(first.values())) == 40
    assert held(gateway, bucket) == {f"sample/{number:06}.bin": 4096 for number in range(1, 41)}
    done = shell.run("upload_to_minio", "--sample=1", "--sample-size=1MiB", "--prefix=x/", "--quiet")
    assert (done.code, done.out.count("\n")) == (0, 1)
    assert held(gateway, bucket)["x/000001.bin"] == MIB


def test_a_dry_run_uploads_nothing(shell: Shell, gateway: Gateway, bucket: str) -> None:
    make_files(shell.folder, {"b/2.txt": b"2", "b/1.txt": b"1", "a.txt": b"0"})
    done = shell.run("upload_to_minio", "b", "a.txt", "absent", "--dry-run")
    assert done.code == 1
    keys = [line.split()[2] for line in done.out.splitlines() if line.startswith("would upload")]
    assert keys == ["1.txt", "2.txt", "a.txt"]
    assert held(gateway, bucket) == {}


def test_the_bucket_is_given_or_the_only_one_and_made_where_wanted(shell: Shell, gateway: Gateway) -> None:
    shell.variables["MINIO_BUCKET"] = "photos-*"
    done = shell.run("upload_to_minio", "--sample=1")
    assert (done.code, done.out) == (2, "")
    assert "--bucket" in done.err
    done = shell.run("upload_to_minio", "--sample=1", "--bucket=made-by-upload")
    assert done.code == 1
    assert "--create-bucket" in done.err
    done = shell.run("upload_to_minio", "--sample=1", "--bucket=made-by-upload", "--create-bucket")
    assert done.code == 0
    assert held(gateway, "made-by-upload") == {"sample/000001.bin": 4096}


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["-"],
        ["file", "--key=x"],
        ["-", "-", "--key=x"],
        ["--sample=0"],
        ["--sample=1", "--sample-size=1kb"],
        ["file", "--threads=1000"],
        ["file", "--buck=x"],
    ],
)
def test_wrong_use_of_upload_is_refused(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        upload_to_minio.main(arguments)
    assert caught.value.code == 2
    assert "See --help" in capsys.readouterr().err


def test_keys_that_no_store_takes_are_reported(shell: Shell, gateway: Gateway, bucket: str) -> None:
    make_files(shell.folder, {"a.txt": b"1"})
    for prefix, why in (("../", "path segment"), ("x" * 1100, "longer than 1024")):
        done = shell.run("upload_to_minio", "a.txt", f"--prefix={prefix}")
        assert done.code == 1
        assert why in done.err
    assert held(gateway, bucket) == {}


def test_a_request_that_fails_is_sent_again_and_one_objects_failure_is_its_own(
    proxied: tuple[Shell, Proxy], gateway: Gateway, bucket: str
) -> None:
    shell, proxy = proxied
    proxy.plan("PutObject", drop)
    proxy.plan("PutObject", answering(503, "SlowDown"), nth=2)
    proxy.plan("PutObject", answering(403, "AccessDenied"), nth=4)
    done = shell.run("upload_to_minio", "--sample=3", "--threads=1", "--json")
    assert [each["status"] for each in done.objects] == ["uploaded", "failed", "uploaded"]
    assert done.code == 1
    assert "AccessDenied: planned. Check the keys" in done.err
    assert len(held(gateway, bucket)) == 2


def test_a_store_that_ends_half_way_ends_the_run_and_says_what_was_done(
    proxied: tuple[Shell, Proxy],
) -> None:
    shell, proxy = proxied
    proxy.plan("PutObject", answering(403, "InvalidAccessKeyId"), nth=3, times=100)
    done = shell.run("upload_to_minio", "--sample=50", "--threads=1", "--quiet")
    assert done.code == 1
    assert "InvalidAccessKeyId" in done.err
    assert "Until then: 2 objects" in done.err
    assert proxy.counted["PutObject"] < 10


def test_progress_is_drawn_on_a_terminal_alone(shell: Shell) -> None:
    done = shell.run_on_terminal("upload_to_minio", "--sample=3")
    assert done.code == 0
    assert "\x1b[" in done.out
    assert "3 objects" in done.out
    assert f"uploaded to {shell.variables['MINIO_BUCKET']}" in done.out.splitlines()[-1]


# ── list_buckets_and_objects ─────────────────────────────────────────────────────────────────────────


def fill_both(source: S3Server, bucket: str, target: S3Server, copies: str) -> None:
    """One object of each state."""
    put(source, bucket, "a/same", "b+same ü", "only-source")
    put(target, copies, "a/same", "b+same ü", "only\x1btarget")
    put(source, bucket, "size", body=b"long")
    put(target, copies, "size", body=b"longer")
    put(source, bucket, "content", body=b"one")
    put(target, copies, "content", body=b"two")
    body = bytes(6 * MIB)
    put(source, bucket, "parts", body=body, part_size=5 * MIB)
    put(target, copies, "parts", body=body, part_size=16 * MIB)


STATES = {
    "a/same": "same",
    "b+same ü": "same",
    "content": "differs",
    "only-source": "only_source",
    "only\x1btarget": "only_target",
    "parts": "same_size",
    "size": "differs",
}


def test_objects_are_shown_side_by_side(
    both: Shell, gateway: Gateway, bucket: str, seaweed: SeaweedFS, copies: str
) -> None:
    fill_both(gateway, bucket, seaweed, copies)
    done = both.run("list_buckets_and_objects", "--bucket", bucket, "--json")
    assert done.code == 1
    assert {each["key"]: each["state"] for each in done.objects} == STATES
    assert [each["key"] for each in done.objects] == sorted(STATES)
    sizes = {each["key"]: (each["source_size"], each["target_size"]) for each in done.objects}
    assert (sizes["size"], sizes["only-source"]) == ((4, 6), (7, None))
    assert {each["target_bucket"] for each in done.objects} == {copies}

    done = both.run("list_buckets_and_objects", "--bucket", bucket)
    assert (done.code, done.err) == (1, "")
    lines = done.out.splitlines()
    assert lines[0] == f"rule default: {bucket} → filebase: {copies}"
    assert "       4 B         6 B  differs      size" in lines
    assert "         -         7 B  only target  only\\x1btarget" in lines
    assert lines[-1].startswith("7 objects: ")
    assert "\x1b" not in done.out

    done = both.run("list_buckets_and_objects", "--bucket", bucket, "--prefix", "a/", "--json")
    assert (done.code, [each["key"] for each in done.objects]) == (0, ["a/same"])


def test_sums_stand_side_by_side_by_rule(
    both: Shell, gateway: Gateway, bucket: str, seaweed: SeaweedFS, copies: str
) -> None:
    put(gateway, bucket, "a", "b")
    put(seaweed, copies, "a")
    done = both.run("list_buckets_and_objects", "--json")
    (row,) = [each for each in done.objects if each["rule"]]
    assert done.code == 1
    assert row == {
        "rule": "default",
        "source_bucket": bucket,
        "target": "filebase",
        "target_bucket": copies,
        "source_objects": 2,
        "source_bytes": 14,
        "target_objects": 1,
        "target_bytes": 7,
        "state": "differs",
    }
    put(seaweed, copies, "b")
    done = both.run("list_buckets_and_objects", "--bucket", bucket, "--summary")
    assert (done.code, done.err) == (0, "")
    lines = done.out.splitlines()
    assert lines[0].split() == ["source", "target", "rule", "or", "bucket"]
    assert lines[1].split(maxsplit=7) == [
        *("2", "14", "B", "2", "14", "B", "equal"),
        f"rule default: {bucket} → filebase: {copies}",
    ]


def test_rules_with_prefixes_and_buckets_without_rules_are_shown_too(
    both: Shell,
    gateway: Gateway,
    bucket: str,
    seaweed: SeaweedFS,
    copies: str,
    new_bucket: Callable[[S3Server], str],
) -> None:
    rules = f"""
        [rules.raw]
        source = "{bucket}"
        prefix = "raw/"
        exclude = ["*.part"]
        bucket = "{copies}"
        target_prefix = "camera/"
        [rules.absent]
        source = "no-such-bucket"
        bucket = "no-such-copies"
    """
    (both.folder / "rules.toml").write_text(rules)
    both.variables["RULES_FILE"] = "rules.toml"
    del both.variables["MINIO_BUCKET"], both.variables["FILEBASE_BUCKET"]
    put(gateway, bucket, "raw/1.cr3", "raw/2.cr3", "raw/3.part", "beside.txt")
    put(seaweed, copies, "camera/1.cr3", "camera/3.part", "beside.txt")
    done = both.run("list_buckets_and_objects", "--bucket", bucket, "--json")
    states = [(each["rule"], each["key"], each["state"]) for each in done.objects]
    assert states == [
        ("raw", "raw/1.cr3", "same"),
        ("raw", "raw/2.cr3", "only_source"),
        ("raw", "raw/3.part", "not_wanted"),
    ]
    assert (done.code, done.objects[2]["target_size"]) == (1, 7)
    assert both.run("list_buckets_and_objects", "--bucket", bucket, "--prefix", "x").out.count("\n") == 1
    other = new_bucket(gateway)
    put(gateway, other, "a")
    done = both.run("list_buckets_and_objects", "--json")
    rows = {each["source_bucket"]: each for each in done.objects}
    assert (rows[bucket]["source_objects"], rows[bucket]["target_objects"]) == (2, 1)
    assert (rows[other]["source_objects"], rows[other]["state"]) == (1, "no_rule")
    assert (rows["no-such-bucket"]["source_objects"], rows["no-such-bucket"]["state"]) == (None, "differs")


def test_a_target_that_lists_folder_by_folder_is_shown_in_the_order_of_keys(
    both: Shell, gateway: Gateway, bucket: str, seaweed: SeaweedFS, copies: str
) -> None:
    keys = ["a-b", "a.b", "a/b-c", "a/b/c", "a/x", "b"]
    put(gateway, bucket, *keys)
    put(seaweed, copies, *keys)
    done = both.run("list_buckets_and_objects", "--bucket", bucket, "--json")
    assert [(each["key"], each["state"]) for each in done.objects] == [(key, "same") for key in keys]
    assert (done.code, done.err) == (0, "")
    done = both.run("list_buckets_and_objects", "--bucket", bucket, "--summary", "--json")
    (row,) = done.objects
    assert (done.code, row["source_objects"], row["target_objects"], row["state"]) == (0, 6, 6, "equal")


def test_a_key_that_a_target_lists_pages_later_is_shown_in_its_place(
    both: Shell, gateway: Gateway, bucket: str, seaweed: SeaweedFS, copies: str
) -> None:
    at_target = Shell(both.folder, source_variables(seaweed, copies))
    for shell in (both, at_target):  # more than a page, all of it before a-b
        filled = shell.run("upload_to_minio", "--sample=1100", "--prefix=a/", "--threads=16", "--quiet")
        assert filled.code == 0
    put(gateway, bucket, "a-a", "a-b")
    put(seaweed, copies, "a-b", "a.b")
    done = both.run("list_buckets_and_objects", "--bucket", bucket, "--json")
    keys = [each["key"] for each in done.objects]
    assert (len(keys), keys) == (1103, sorted(set(keys)))
    states = {each["key"]: each["state"] for each in done.objects if each["state"] != "same"}
    assert (done.code, states) == (1, {"a-a": "only_source", "a.b": "only_target"})


@pytest.mark.parametrize(("deletes", "code", "state"), [("false", 0, "only_target"), ("true", 1, "differs")])
def test_what_only_the_target_has_counts_where_deletes_are_propagated(
    deletes: str,
    code: int,
    state: str,
    both: Shell,
    gateway: Gateway,
    bucket: str,
    seaweed: SeaweedFS,
    copies: str,
) -> None:
    both.variables["REPLICATE_DELETES"] = deletes
    put(gateway, bucket, "a")
    put(seaweed, copies, "a", "b")
    done = both.run("list_buckets_and_objects", "--bucket", bucket, "--json")
    assert (done.code, [each["state"] for each in done.objects]) == (code, ["same", "only_target"])
    done = both.run("list_buckets_and_objects", "--bucket", bucket, "--summary", "--json")
    assert (done.code, [each["state"] for each in done.objects]) == (code, [state])
    put(seaweed, copies, "a", body=b"changed")
    done = both.run("list_buckets_and_objects", "--bucket", bucket, "--summary", "--json")
    assert (done.code, [each["state"] for each in done.objects]) == (1, ["differs"])


def test_a_reader_that_has_enough_ends_a_listing_quietly(both: Shell, gateway: Gateway, bucket: str) -> None:
    done = both.run("upload_to_minio", "--sample=300", "--threads=16", f"--prefix={'long/' * 60}", "--quiet")
    assert done.code == 0  # 200 kB of JSON are to come: more than a pipe holds
    first, code, said = head(both.start("list_buckets_and_objects", "--bucket", bucket, "--json"))
    assert json.loads(first)["state"] == "only_source"
    assert (code, said) == (141, "")


def test_a_reader_that_has_enough_ends_an_upload_quietly(shell: Shell, gateway: Gateway, bucket: str) -> None:
    _, code, said = head(shell.start("upload_to_minio", "--sample=1000", f"--prefix={'long/' * 150}"))
    assert (code, said) == (141, "")
    assert len(held(gateway, bucket)) < 500


def head(process: subprocess.Popen[bytes]) -> tuple[bytes, int, str]:
    """The first line of stdout, which is closed then; the exit status; all of stderr."""
    with process:
        assert process.stdout
        assert process.stderr
        first = process.stdout.readline()
        process.stdout.close()
        said = process.stderr.read().decode()
        return first, process.wait(RUN_BOUND_S), said


def test_a_bucket_or_store_that_is_not_there_ends_a_listing(
    both: Shell, gateway: Gateway, bucket: str, copies: str
) -> None:
    put(gateway, bucket, "a")
    done = both.run("list_buckets_and_objects", "--bucket", "no-such-bucket")
    assert done.code == 1
    assert "NoSuchBucket" in done.err
    done = both.run("list_buckets_and_objects", "--bucket", "no-such-bucket", "--summary")
    assert (done.code, "no bucket" in done.out) == (1, True)
    both.variables["FILEBASE_BUCKET"] = "no-such-copies"
    done = both.run("list_buckets_and_objects", "--bucket", bucket, "--summary")
    assert (done.code, done.out.splitlines()[1].split()[:6]) == (
        1,
        ["1", "7", "B", "no", "bucket", "differs"],
    )
    assert done.err == ""
    both.variables |= {"FILEBASE_BUCKET": copies, "FILEBASE_ENDPOINT": f"http://127.0.0.1:{free_port()}"}
    done = both.run("list_buckets_and_objects", "--bucket", bucket, "--summary", "--json")
    row = done.objects[0]
    assert (done.code, row["source_objects"], row["target_objects"]) == (1, 1, None)
    assert f"filebase: {copies}: target ListObjectsV2 '{copies}': no answer from" in done.err
    done = both.run("list_buckets_and_objects", "--bucket", bucket)
    assert (done.code, "no answer from" in done.err, done.err.count("\n")) == (1, True, 1)


# ── delete_bucket ────────────────────────────────────────────────────────────────────────────────────


def has_bucket(server: S3Server, bucket: str) -> bool:
    return server.client().bucket_exists(bucket_name=bucket)


def test_nothing_is_deleted_without_a_word_or_in_a_dry_run(
    shell: Shell, gateway: Gateway, bucket: str
) -> None:
    put(gateway, bucket, "a", "b/c")
    done = shell.run("delete_bucket", bucket)
    assert (done.code, done.out) == (2, "")
    assert "--yes" in done.err
    done = shell.run("delete_bucket", bucket, "--dry-run")
    assert (done.code, done.out) == (
        0,
        f"would be deleted of {bucket}: 2 objects (14 B). Nothing was changed.\n",
    )
    assert held(gateway, bucket) == {"a": 7, "b/c": 7}


def test_a_person_has_to_type_the_buckets_name(shell: Shell, gateway: Gateway, bucket: str) -> None:
    put(gateway, bucket, "a")
    question = "type the bucket's name: "
    done = shell.run_on_terminal("delete_bucket", bucket, answer=f"{bucket}x\n", question=question)
    assert done.code == 1
    assert f"{bucket} at the source holds 1 object (7 B)" in done.out
    assert "nothing was deleted" in done.out
    assert held(gateway, bucket) == {"a": 7}
    done = shell.run_on_terminal("delete_bucket", bucket, answer="\x03", question=question)
    assert done.code == 130
    assert has_bucket(gateway, bucket)
    done = shell.run_on_terminal("delete_bucket", bucket, answer=f"{bucket}\n", question=question)
    assert (done.code, has_bucket(gateway, bucket)) == (0, False)
    assert f"deleted the bucket and 1 object (7 B) of {bucket} at the source." in done.out


def test_unfinished_uploads_and_odd_keys_are_deleted_too(shell: Shell, gateway: Gateway, bucket: str) -> None:
    put(gateway, bucket, *ODD_KEYS, "folder/in/folder", "a\\b")
    put(gateway, bucket, "marker/", body=b"")
    for number in range(2):
        gateway.client()._create_multipart_upload(bucket, f"up load/{number}", {})
    done = shell.run("delete_bucket", bucket, "--yes", "--json")
    (told,) = done.objects
    assert (done.code, told["bucket_deleted"], told["left"], told["faults"]) == (0, True, 0, [])
    assert told["found"] == told["deleted"]
    assert (told["found"]["objects"], told["found"]["unfinished_uploads"]) == (len(ODD_KEYS) + 3, 2)
    assert not has_bucket(gateway, bucket)
    done = shell.run("delete_bucket", bucket, "--yes", "--json")
    assert (done.code, done.out) == (1, "")
    assert f"there is no bucket {bucket} at the source" in done.err


def test_versions_and_delete_markers_go_at_a_target(both: Shell, seaweed: SeaweedFS, copies: str) -> None:
    client = seaweed.client()
    put(seaweed, copies, "before")
    client.set_bucket_versioning(bucket_name=copies, config=VersioningConfig(ENABLED))
    put(seaweed, copies, "a", "a", "b c/ü+", "b c/ü+", "b c/ü+")
    client.remove_object(bucket_name=copies, object_name="a")
    client._create_multipart_upload(copies, "unfinished", {})
    done = both.run("delete_bucket", copies, "--target=filebase", "--yes", "--keep-bucket", "--json")
    (told,) = done.objects
    assert (done.code, told["store"], told["bucket_deleted"]) == (0, "target filebase", False)
    counts = {
        "objects": 2,
        "older_versions": 4,
        "delete_markers": 1,
        "unfinished_uploads": 1,
        "size_bytes": 42,
    }
    assert (told["found"], told["deleted"]) == (counts, counts)
    assert "rule default copies" in done.err
    assert has_bucket(seaweed, copies)
    assert not list(client.list_objects(bucket_name=copies, recursive=True, include_version=True))


def test_odd_keys_are_deleted_at_a_target_too(both: Shell, seaweed: SeaweedFS, copies: str) -> None:
    put(seaweed, copies, *ODD_KEYS, "marker/")
    done = both.run("delete_bucket", copies, "--target=filebase", "--yes", "--keep-bucket")
    assert (done.code, held(seaweed, copies)) == (0, {})
    assert done.out.startswith(f"deleted {len(ODD_KEYS) + 1} objects")


def test_more_than_a_batch_is_deleted(shell: Shell, gateway: Gateway, bucket: str) -> None:
    filled = shell.run("upload_to_minio", "--sample=1003", "--sample-size=1", "--threads=16", "--quiet")
    assert filled.code == 0
    done = shell.run("delete_bucket", bucket, "--yes")
    assert (done.code, has_bucket(gateway, bucket)) == (0, False)
    assert "1,003 objects (1003 B)" in done.out


def test_where_batches_are_not_taken_objects_are_deleted_one_by_one(
    proxied: tuple[Shell, Proxy], gateway: Gateway, bucket: str
) -> None:
    shell, proxy = proxied
    put(gateway, bucket, "a", "b", "c")
    proxy.plan("POST bucket", answering(501, "NotImplemented"), times=9)
    done = shell.run("delete_bucket", bucket, "--yes")
    assert (done.code, has_bucket(gateway, bucket)) == (0, False)
    assert (proxy.counted["POST bucket"], proxy.counted["DeleteObject"]) == (1, 3)


REFUSED = b"""<DeleteResult><Error>
<Key>locked</Key><Code>AccessDenied</Code><Message>It is retained</Message>
</Error></DeleteResult>"""


def test_what_cannot_be_deleted_is_named_and_the_bucket_stays(
    proxied: tuple[Shell, Proxy], gateway: Gateway, bucket: str
) -> None:
    shell, proxy = proxied
    put(gateway, bucket, "locked")
    proxy.plan("POST bucket", answering(200, REFUSED, Content_Type="application/xml"), times=9)
    done = shell.run("delete_bucket", bucket, "--yes", "--json")
    (told,) = done.objects
    assert (done.code, told["left"], told["bucket_deleted"]) == (1, 1, False)
    fault = {"key": "locked", "version_id": None, "why": "AccessDenied: It is retained"}
    assert told["faults"] == [fault]
    assert "not deleted  locked: AccessDenied" in done.err
    assert held(gateway, bucket) == {"locked": 7}


def test_a_deletion_that_was_stopped_can_be_gone_on_with(
    proxied: tuple[Shell, Proxy], gateway: Gateway, bucket: str
) -> None:
    shell, proxy = proxied
    put(gateway, bucket, "a", "b")
    held_up = threading.Event()

    def answer_late(exchange: Exchange) -> None:
        exchange.forward()
        held_up.wait(RUN_BOUND_S)

    proxy.plan("POST bucket", answer_late)
    with shell.start("delete_bucket", bucket, "--yes") as process:
        until(lambda: not held(gateway, bucket), "the objects are deleted, and nobody was told")
        process.send_signal(signal.SIGINT)
        code = process.wait(RUN_BOUND_S)
        held_up.set()
        assert process.stderr
        said = process.stderr.read().decode()
    assert code == 130
    assert "Run it again to go on." in said
    assert shell.run("delete_bucket", bucket, "--yes").code == 0
    assert not has_bucket(gateway, bucket)


def test_a_person_is_warned_where_copies_will_be_deleted_too(both: Shell, bucket: str) -> None:
    both.variables["REPLICATE_DELETES"] = "true"
    done = both.run("delete_bucket", bucket, "--dry-run")
    assert done.code == 0
    assert "Warning: rule default has deletes = true" in done.err
    done = both.run("delete_bucket", bucket, "--dry-run", "--target=nowhere")
    assert (done.code, done.out) == (2, "")
    assert "filebase" in done.err


# ── replicate_one ────────────────────────────────────────────────────────────────────────────────────


def test_the_service_is_asked_to_copy(
    both: Shell, tmp_path: Path, gateway: Gateway, bucket: str, seaweed: SeaweedFS, copies: str
) -> None:
    service = Replicator(
        tmp_path / "service",
        source=gateway,
        source_bucket=bucket,
        target=seaweed,
        target_bucket=copies,
        environ={"RECONCILE_INTERVAL_S": "0"},  # it would copy by itself
    )
    with service:
        put(gateway, bucket, "hello.txt", "a b/ü+1")
        both.variables |= {"API_TOKEN": API_TOKEN, "PORT": str(service.port)}
        done = both.run("replicate_one", "hello.txt", "-", stdin="a b/ü+1\n".encode())
        assert (done.code, done.err) == (0, "")
        assert done.out == "replicated  hello.txt  (7 B)\nreplicated  a b/ü+1  (7 B)\n"
        assert held(seaweed, copies) == {"hello.txt": 7, "a b/ü+1": 7}
        done = both.run("replicate_one", "hello.txt", "absent\x1b", "--json")
        assert done.code == 1
        assert [each["http_status"] for each in done.objects] == [409, 404]
        done = both.run("replicate_one", "hello.txt", "--no-wait", "--bucket", bucket)
        assert (done.code, done.out) == (0, "queued      hello.txt\n")
        both.variables["API_TOKEN"] = "wrong"
        done = both.run("replicate_one", "hello.txt")
        assert done.code == 2
        assert "API_TOKEN" in done.out
    done = both.run("replicate_one", "hello.txt")
    assert (done.code, done.out) == (1, "")
    assert "make run" in done.err
