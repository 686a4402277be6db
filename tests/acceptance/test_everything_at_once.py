"""scripts/replicate_to_filebase.py, run as a program on real servers."""

from __future__ import annotations

import io
import json
import re
import signal
import sqlite3
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import urllib3

from scripts import replicate_to_filebase
from scripts.local_processes import free_port
from scripts.local_servers import Gateway, S3Server, SeaweedFS
from scripts.local_service import WEBHOOK_AUTH_TOKEN, Replicator
from scripts.local_tools import rclone_check
from tests.acceptance.conftest import content, until
from tests.integration.test_scripts import Done, Shell, seen, source_variables, target_variables
from tests.proxy import Exchange, Proxy, after, answering

NAME = "replicate_to_filebase"
MIB = 1024 * 1024
BOUND_S = 120.0
CTRL_C_BOUND_S = 12.0
SMALL = [f"many/{number:04}" for number in range(2000)]
ODD = [
    "with  two spaces",
    "a+b c%20d",
    "café/crème brûlée",
    "日本語/🚀",
    "empty",
    "new\nline",
    "mark/",
    "x" * 255,
]
LARGE, LARGE_BYTES, PART_BYTES = "large", 40 * MIB, 10 * MIB
ALL = len(SMALL) + len(ODD) + 1
OVERLONG = "s" * 256
"""The gateway takes it, SeaweedFS does not: one segment of more than 255 bytes."""


def body_of(key: str) -> bytes:
    """What an object of this key holds."""
    if key == LARGE:
        return b"".join(number.to_bytes(8, "big") * (MIB // 8) for number in range(LARGE_BYTES // MIB))
    return b"" if key in ("empty", "mark/") else content(key)


def put(server: S3Server, bucket: str, *keys: str, body: bytes | None = None, **more: Any) -> None:
    """Writes objects, some at once; their content is that of their key unless it is given."""
    client = server.client(urllib3.PoolManager(maxsize=16, timeout=60, retries=False))

    def put_one(key: str) -> None:
        given = body_of(key) if body is None else body
        client.put_object(
            bucket_name=bucket,
            object_name=key,
            data=io.BytesIO(given),
            length=len(given),
            part_size=PART_BYTES,
            **more,
        )

    with ThreadPoolExecutor(16) as pool:
        list(pool.map(put_one, keys))


def remove(server: S3Server, bucket: str, *keys: str) -> None:
    for key in keys:
        server.client().remove_object(bucket_name=bucket, object_name=key)


def held(server: S3Server, bucket: str) -> dict[str, tuple[int, str, float]]:
    """key → size, ETag and time of all there is."""
    return {
        str(each.object_name): (each.size or 0, each.etag or "", each.last_modified.timestamp())
        for each in server.client().list_objects(bucket_name=bucket, recursive=True)
        if each.last_modified
    }


def etags(server: S3Server, bucket: str) -> dict[str, str]:
    """key → ETag of all there is; some servers list none of a folder's marker."""
    return {key: "" if key.endswith("/") else etag for key, (_, etag, _) in held(server, bucket).items()}


@dataclass
class Place:
    """A folder to run the script in, with its ledger, between two buckets."""

    shell: Shell
    source: S3Server
    bucket: str
    target: S3Server
    copies: str
    before: dict[str, str] = field(default_factory=dict)

    def run(self, *arguments: str, **variables: str) -> Done:
        """Runs it to its end, without a terminal."""
        with Popen(self, *arguments, **variables) as running:
            return running.done()

    def entries(self) -> dict[tuple[str, str], dict[str, Any]]:
        """(rule, key) → row of the ledger; empty where there is none yet."""
        if not self.ledger_path.exists():
            return {}
        with closing(sqlite3.connect(self.ledger_path, timeout=10)) as ledger:
            ledger.row_factory = sqlite3.Row
            try:
                rows = [dict(row) for row in ledger.execute("SELECT * FROM entries")]
            except sqlite3.OperationalError:  # its tables are being made
                return {}
        return {(row["rule"], row["key"]): row | {"history": json.loads(row["history"])} for row in rows}

    def settled(self) -> int:
        """How many entries are settled."""
        return sum(row["state"] == "settled" for row in self.entries().values())

    @property
    def ledger_path(self) -> Path:
        return self.shell.folder / "data" / "replicator.db"

    def put(self, *keys: str, **more: Any) -> None:
        """Writes to the source."""
        put(self.source, self.bucket, *keys, **more)

    def are_equal(self) -> bool:
        """By the listings of both sides."""
        return etags(self.source, self.bucket) == etags(self.target, self.copies)


class Popen:
    """The script as a process of its own; it is killed where a test ends before it."""

    def __init__(self, place: Place, *arguments: str, **variables: str) -> None:
        command = place.shell.command(NAME, arguments)
        command["env"] |= variables
        self.process = subprocess.Popen(**command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)

    def done(self, *, bound_s: float = BOUND_S) -> Done:
        """How it ended, which it does within the bound. No terminal: no escape codes."""
        out, err = self.process.communicate(timeout=bound_s)
        assert b"\x1b" not in out + err
        return seen(Done(self.process.returncode, out.decode(), err.decode()))

    def interrupt(self) -> Done:
        """Ctrl-C, which ends it soon."""
        self.process.send_signal(signal.SIGINT)
        return self.done(bound_s=CTRL_C_BOUND_S)

    def __enter__(self) -> Popen:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.communicate()


@pytest.fixture(scope="module")
def many(gateway: Gateway) -> str:
    """A bucket of the source with some thousand objects, which no test changes."""
    bucket = "some-thousand"
    gateway.client().make_bucket(bucket_name=bucket)
    put(gateway, bucket, *SMALL, *ODD, LARGE)
    return bucket


@pytest.fixture
def place(
    tmp_path: Path, gateway: Gateway, seaweed: SeaweedFS, new_bucket: Callable[[S3Server], str]
) -> Callable[..., Place]:
    """Makes a place to run the script in; keywords are settings."""

    def make(bucket: str = "", **variables: str) -> Place:
        bucket, copies = bucket or new_bucket(gateway), new_bucket(seaweed)
        settings = source_variables(gateway, bucket) | target_variables(seaweed, copies) | variables
        return Place(Shell(tmp_path, settings), gateway, bucket, seaweed, copies)

    return make


@pytest.fixture
def beside() -> Iterator[Callable[..., Replicator]]:
    """Starts the service on the ledger of a place, and with its settings."""
    started: list[Replicator] = []

    def start(where: Place, **environ: str) -> Replicator:
        service = Replicator(
            where.shell.folder / "service",
            source=where.source,
            source_bucket=where.bucket,
            target=where.target,
            target_bucket=where.copies,
            environ={
                "DATABASE_URL": f"sqlite:///{where.ledger_path}",
                "RECONCILE_INTERVAL_S": "0",
                "LOG_FORMAT": "json",
                **environ,
            },
        )
        started.append(service)
        service.start()
        return service

    yield start
    for service in started:
        service.stop()


def only_member(service: Replicator) -> dict[str, Any]:
    """The only process that replicates, once it has said so."""
    (member,) = until(lambda: service.get("/v1/status").json()["workers"], bound_s=BOUND_S, what="it signs")
    return dict(member)


def found(done: Done) -> list[tuple[str, str]]:
    """What a comparison with --json found: (kind, key)."""
    return [(each["found"], each["key"]) for each in done.objects[:-1]]


# ── some thousand objects ────────────────────────────────────────────────────────────────────────────


def test_killed_half_way_it_goes_on_and_copies_nothing_twice(place: Callable[..., Place], many: str) -> None:
    here = place(many)
    keys = {*SMALL, *ODD, LARGE}
    with Popen(here) as running:
        until(lambda: here.settled() >= len(keys) / 2, bound_s=BOUND_S, what="half is copied")
        running.process.kill()
    before = here.entries()
    done_before = {key for key, row in before.items() if row["state"] == "settled"}
    assert len(keys) / 2 <= len(done_before) < len(keys), "the kill came too late"

    done = here.run()
    assert (done.code, "tried again" in done.err) == (0, False)
    total = len(keys)
    told = re.fullmatch(
        rf"{total:,} objects compared, ([\d,]+) settled \(.* MiB copied\) in \d+ s; 0 failed\.\n", done.out
    )
    assert told
    assert int(told[1].replace(",", "")) >= total - len(done_before)
    entries = here.entries()
    assert {key for _, key in entries} == keys
    assert {row["state"] for row in entries.values()} == {"settled"}
    for name in done_before:
        assert entries[name] == before[name]
    for (_, key), row in entries.items():
        sent = sum(attempt["bytes_copied"] for attempt in row["history"])
        was_running = before.get(("default", key), {}).get("state") == "running"
        assert sent == len(body_of(key)) or (was_running and sent < len(body_of(key))), key
    verdict = rclone_check(here.source, many, here.target, here.copies)
    assert verdict.ok, verdict.differences

    again = here.run("--json")
    assert again.code == 0
    assert {name: again.objects[0][name] for name in ("compared", "settled", "bytes", "failed")} == {
        "compared": total,
        "settled": 0,
        "bytes": 0,
        "failed": 0,
    }
    for how in ((), ("--deep",)):
        checked = here.run("--check", *how)
        assert (checked.code, checked.err) == (0, "")
        assert re.fullmatch(rf"{total:,} objects, [\d.]+ MiB compared: all the same\.\n", checked.out)
    assert here.entries() == entries


def test_a_terminal_shows_how_far_it_is_until_ctrl_c_and_the_next_run_goes_on(
    place: Callable[..., Place], many: str
) -> None:
    here = place(many)
    done = here.shell.run_on_terminal(NAME, answer="\x03", question=" left")
    assert done.code == 130
    assert re.search(
        r"[\d,]+/2,009 objects · [\d.]+ \w+ copied · [\d,]+/s, [\d.]+ \w+/s · (\d+:)*\d+ (s|min) left",
        re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", done.out),
    )
    assert "interrupted. What is done is done; run this again to go on." in done.out
    before = here.entries()
    assert 0 < here.settled() < len(before) <= ALL
    assert not [row for row in before.values() if row["state"] == "running"], "what ran was handed back"
    with closing(sqlite3.connect(here.ledger_path)) as ledger:
        assert ledger.execute("PRAGMA integrity_check").fetchall() == [("ok",)]

    again = here.shell.run_on_terminal(NAME)
    assert again.code == 0
    assert "2,009 objects compared" in again.out
    assert here.settled() == ALL
    assert here.are_equal()
    sent = {
        key: sum(each["bytes_copied"] for each in row["history"]) for (_, key), row in here.entries().items()
    }
    assert sent == {key: len(body_of(key)) for key in (*SMALL, *ODD, LARGE)}


def test_where_the_service_runs_it_only_watches_and_takes_over_when_that_is_killed(
    place: Callable[..., Place], many: str, beside: Callable[..., Replicator]
) -> None:
    here = place(many)
    member = only_member(service := beside(here))
    with Popen(here) as running:
        until(lambda: here.settled() > 300, bound_s=BOUND_S, what="the service copies")
        assert {row["worker"] for row in here.entries().values() if row["worker"]} <= {member["name"]}
        service.kill()
        at_kill = here.settled()
        done = running.done()
    assert (done.code, at_kill < ALL) == (0, True)
    assert done.err.startswith(
        "The service is running: it does the work. Ctrl-C ends only this view of it.\n"
    )
    assert done.out.startswith("2,009 objects compared, 2,009 settled")
    workers = {attempt["worker"] for row in here.entries().values() for attempt in row["history"]}
    assert member["name"] in workers
    assert len(workers) == 2
    assert here.are_equal()


# ── beside the service ───────────────────────────────────────────────────────────────────────────────


def test_where_the_service_runs_it_does_all_the_work(
    place: Callable[..., Place], beside: Callable[..., Replicator]
) -> None:
    here = place()
    here.put(*SMALL[:50])
    member = only_member(beside(here))
    done = here.run("--json")
    assert (done.code, done.objects[0]["settled"]) == (0, 50)
    assert done.err.startswith("The service is running: it does the work.")
    attempts = [attempt for row in here.entries().values() for attempt in row["history"]]
    assert [attempt["worker"] for attempt in attempts] == [member["name"]] * 50
    with closing(sqlite3.connect(here.ledger_path)) as ledger:
        assert ledger.execute("SELECT name FROM workers").fetchall() == [(member["name"],)]
    assert here.are_equal()


def test_ctrl_c_ends_the_view_and_not_the_service(
    place: Callable[..., Place], beside: Callable[..., Replicator]
) -> None:
    here = place()
    here.put(*SMALL[:30])
    goes_on = threading.Event()
    with Proxy(here.target.endpoint) as proxy:
        proxy.plan("PutObject", after(lambda: goes_on.wait(BOUND_S)), times=30)
        beside(here, FILEBASE_ENDPOINT=proxy.endpoint)
        with Popen(here) as running:
            until(lambda: proxy.counted["PutObject"], bound_s=BOUND_S, what="the service copies")
            done = running.interrupt()
        goes_on.set()
        assert done.code == 130
        assert done.err.endswith(f"{NAME}.py: interrupted. The service goes on without this view.\n")
        until(lambda: here.settled() == 30, bound_s=BOUND_S, what="the service has done it all")
        until(here.are_equal, bound_s=BOUND_S, what="both sides are equal")


def test_a_service_that_has_other_rules_is_named(
    place: Callable[..., Place], beside: Callable[..., Replicator]
) -> None:
    here = place()
    here.put("a")
    beside(here)
    rules = f'[rules.new]\nsource = "{here.bucket}"\nbucket = "{here.copies}"\n'
    (here.shell.folder / "rules.toml").write_text(rules)
    done = here.run(RULES_FILE="rules.toml")
    assert done.code == 1
    assert "The service does not copy by rule new: start it anew with these settings." in done.err
    assert etags(here.target, here.copies) == {}


def test_what_events_had_asked_for_before_is_copied_too(
    place: Callable[..., Place], beside: Callable[..., Replicator]
) -> None:
    """They wait in the lane of live events, which a sweep does not take them out of."""
    here = place()
    here.put(*SMALL[:200])
    service = beside(here, WORKER_EMBEDDED="false")
    records = [
        {"eventName": "s3:ObjectCreated:Put", "s3": {"bucket": {"name": here.bucket}, "object": {"key": key}}}
        for key in SMALL[:200]
    ]
    headers = {"Authorization": f"Bearer {WEBHOOK_AUTH_TOKEN}"}
    assert service.post("/minio/events", json={"Records": records}, headers=headers).json()["accepted"] == 200
    service.stop()
    assert {(row["state"], row["lane"]) for row in here.entries().values()} == {("waiting", "live")}
    done = here.run(WORKER_THREADS="1")  # slower than the sweep
    assert (done.code, "tried again" in done.err) == (0, False)
    assert done.out.startswith("200 objects compared, ")
    assert here.settled() == 200
    assert here.are_equal()


# ── comparing ────────────────────────────────────────────────────────────────────────────────────────


def differing(here: Place) -> list[tuple[str, str]]:
    """Copies some objects, then makes differences; gives them as a comparison should, in key order."""
    keys = ["a/same", "a/missing", "b other size", "b/same size", "é/same", "é/not yet", LARGE]
    here.put(*keys)
    assert here.run().code == 0
    remove(here.target, here.copies, "a/missing", "é/not yet")
    put(here.target, here.copies, "b other size", body=b"another")
    put(here.target, here.copies, "b/same size", body=bytes(len(body_of("b/same size"))))
    put(here.target, here.copies, "c/extra", "zzz extra", body=b"?")
    return [
        ("missing", "a/missing"),
        ("different", "b other size"),
        ("different", "b/same size"),
        ("extra", "c/extra"),
        ("extra", "zzz extra"),
        ("missing", "é/not yet"),
    ]


def test_a_check_lists_exactly_what_differs_and_a_dry_run_what_would_be_copied(
    place: Callable[..., Place],
) -> None:
    here = place()
    differences = differing(here)
    before = held(here.target, here.copies), here.entries()
    for how in ((), ("--deep",)):
        checked = here.run("--check", "--json", *how)
        assert (checked.code, found(checked)) == (1, differences)
        kinds = {"missing": 2, "different": 2, "extra": 2}
        assert (checked.objects[-1]["compared"], checked.objects[-1]["found"]) == (9, kinds)
    first = checked.objects[0]
    assert first == {
        "rule": "default",
        "bucket": here.bucket,
        "key": "a/missing",
        "target": f"{here.copies}/a/missing",
        "found": "missing",
        "size": len(body_of("a/missing")),
        "why": "not at the target",
    }
    told = here.run("--check")
    assert told.code == 1
    lines = told.out.splitlines()
    assert [
        (line.split()[0], line.split(f"{here.bucket}/")[1].split("  (")[0]) for line in lines[:6]
    ] == differences
    assert lines[6].endswith(" MiB compared: 2 missing, 2 different, 2 extra.")
    assert lines[7] == "What only the target has counts as a difference where the rule propagates deletes."

    dry = here.run("--dry-run", "--json")
    assert (dry.code, found(dry)) == (0, [each for each in differences if each[0] != "extra"])
    dry = here.run("--dry-run")
    assert dry.out.splitlines()[-1].endswith(" MiB compared; 4 objects would be copied.")
    assert (held(here.target, here.copies), here.entries()) == before

    assert here.run().code == 0
    assert here.run("--check", "--json").objects[-1]["found"] == {"extra": 2}
    assert here.run("--check").code == 0
    assert here.run("--check", REPLICATE_DELETES="true").code == 1


def test_a_dry_run_and_a_check_make_no_ledger(place: Callable[..., Place]) -> None:
    here = place()
    here.put("a", "b/c")
    for how, code in (("--dry-run", 0), ("--check", 1)):
        done = here.run(how, "--json")
        assert (done.code, found(done)) == (code, [("missing", "a"), ("missing", "b/c")])
    assert not (here.shell.folder / "data").exists()
    assert etags(here.target, here.copies) == {}


def test_only_a_deep_check_finds_what_etags_hide(place: Callable[..., Place]) -> None:
    """An object uploaded in parts, whose copy claims to be of that ETag and has other bytes."""
    here = place()
    here.put("parts", body=body_of(LARGE))
    etag = etags(here.source, here.bucket)["parts"].strip('"')
    other = bytearray(body_of(LARGE))
    other[20 * MIB] ^= 1
    stamp = {"replicator-source-etag": etag}
    target = here.target.client()
    target.put_object(
        bucket_name=here.copies,
        object_name="parts",
        data=io.BytesIO(other),
        length=len(other),
        part_size=LARGE_BYTES,
        metadata=stamp,
    )
    assert etags(here.target, here.copies)["parts"].strip('"') != etag
    assert here.run("--check").code == 0
    deep = here.run("--check", "--deep", "--json")
    assert (deep.code, found(deep)) == (1, [("different", "parts")])

    put(here.target, here.copies, "parts", body=bytes(other))  # the same parts, and no such claim
    assert etags(here.target, here.copies)["parts"].strip('"') != etag
    without_record = here.run("--check", "--json")
    assert (without_record.code, found(without_record)) == (1, [("unproven", "parts")])


def test_objects_whose_etags_cannot_be_compared_are_proved_by_the_ledger_or_by_the_copies_stamp(
    place: Callable[..., Place],
) -> None:
    """In one piece at the source, in parts at the target."""
    here = place(WHOLE_OBJECT_MAX_MIB="5")
    source = here.source.client()
    for key in ("big/1", "big/2"):
        body = content(key) * 2000
        source.put_object(
            bucket_name=here.bucket,
            object_name=key,
            data=io.BytesIO(body),
            length=len(body),
            part_size=100 * MIB,
        )
    here.put("small")
    done = here.run("--json")
    assert (done.code, done.objects[0]["settled"]) == (0, 3)
    assert not here.are_equal()
    for settings in ({}, {"DATABASE_URL": f"sqlite:///{here.shell.folder}/none.db"}):
        for how in ((), ("--deep",)):
            checked = here.run("--check", *how, **settings)
            assert (checked.code, "3 objects" in checked.out) == (0, True), checked.out
    assert here.run("--json").objects[0]["settled"] == 0
    assert here.run("--json", DATABASE_URL=f"sqlite:///{here.shell.folder}/none.db").objects[0]["bytes"] == 0


# ── some of it ───────────────────────────────────────────────────────────────────────────────────────


def test_a_prefix_narrows_what_is_copied_and_compared(place: Callable[..., Place]) -> None:
    here = place()
    here.put("a", "b/1", "b/2", "bb", "c")
    assert here.run("--dry-run", "--prefix", "b/", "--json").objects[-1]["compared"] == 2
    done = here.run("--prefix", "b/", "--json")
    assert (done.code, done.objects[0]["compared"], done.objects[0]["settled"]) == (0, 2, 2)
    assert set(etags(here.target, here.copies)) == {"b/1", "b/2"}
    assert here.run("--check", "--prefix", "b/").code == 0
    assert found(here.run("--check", "--json", "--prefix", "b")) == [("missing", "bb")]
    assert here.run("--prefix", "nothing/").out.startswith("0 objects compared, 0 settled")


def test_a_bucket_narrows_and_one_that_no_rule_copies_is_refused(
    place: Callable[..., Place], gateway: Gateway, new_bucket: Callable[[S3Server], str]
) -> None:
    here = place()
    other, unread = new_bucket(gateway), new_bucket(gateway)
    here.shell.variables["MINIO_BUCKET"] = f"{here.bucket},{other}"
    here.put("a")
    put(gateway, other, "b")
    put(gateway, unread, "c")
    assert found(here.run("--check", "--json", "--bucket", other)) == [("missing", "b")]
    assert here.run("--bucket", other).code == 0
    assert set(etags(here.target, here.copies)) == {f"{other}/b"}
    for how in ((), ("--check",)):
        done = here.run(*how, "--bucket", unread)
        assert (done.code, done.out) == (2, "")
        assert (
            done.err == f"{NAME}.py: no rule copies the bucket '{unread}'. See MINIO_BUCKET, or RULES_FILE.\n"
        )
    assert here.run().code == 0
    assert set(etags(here.target, here.copies)) == {f"{here.bucket}/a", f"{other}/b"}
    assert set(here.entries()) == {(f"default.{here.bucket}", "a"), (f"default.{other}", "b")}


# ── what cannot be done ──────────────────────────────────────────────────────────────────────────────


def test_help_helps(tmp_path: Path) -> None:
    done = Shell(tmp_path).run(NAME, "--help")
    assert (done.code, done.err) == (0, "")
    for word in ("examples:", "--check --deep", "--dry-run", "exit codes:", "130", ".env.example"):
        assert word in done.out


def test_wrong_use_and_settings_that_cannot_be_used_are_refused(
    place: Callable[..., Place], capsys: pytest.CaptureFixture[str]
) -> None:
    here = place()
    for arguments in (["--deep"], ["--check", "--dry-run"], ["--bucke", "a"], ["--bucket"], ["key"]):
        with pytest.raises(SystemExit, match="2"):
            replicate_to_filebase.main(arguments)
        said = capsys.readouterr()
        assert (said.out, said.err.endswith("See --help.\n")) == ("", True)
    here.shell.variables |= {"MINIO_ENDPOINT": "", "FILEBASE_SECRET_KEY": ""}
    for how in ((), ("--check",)):
        done = here.run(*how)
        assert (done.code, done.out) == (2, "")
        assert "MINIO_ENDPOINT is missing" in done.err
        assert "FILEBASE_SECRET_KEY is missing" in done.err
    assert not (here.shell.folder / "data").exists()


def test_a_ledger_or_env_file_that_cannot_be_used_is_named(place: Callable[..., Place]) -> None:
    here = place()
    wrong = here.run("--check", DATABASE_URL="sqlite:///")
    assert (wrong.code, "DATABASE_URL must name an SQLite file" in wrong.err) == (2, True)
    silent = here.run(DATABASE_URL=f"postgresql://u:s3cr3t@127.0.0.1:{free_port()}/none")
    assert (silent.code, "the ledger cannot be used now" in silent.err) == (1, True)
    assert "s3cr3t" not in silent.err
    here.put("a")
    assert here.run().code == 0
    with closing(sqlite3.connect(here.ledger_path)) as ledger:
        ledger.execute("UPDATE alembic_version SET version_num = 'of tomorrow'")
        ledger.commit()
    for how in ((), ("--check",)):
        done = here.run(*how)
        assert (done.code, "the ledger has version of tomorrow" in done.err) == (2, True)
    (here.shell.folder / ".env").write_bytes(b"\xff\xfe")
    assert here.run().err == f"{NAME}.py: .env cannot be read: it must be a text file in UTF-8.\n"


def test_a_store_that_is_down_and_a_bucket_that_is_not_there_are_named_at_once(
    place: Callable[..., Place],
) -> None:
    here = place()
    here.put("a")
    silence = f"http://127.0.0.1:{free_port()}"
    cases: list[Any] = [
        ({"MINIO_ENDPOINT": silence}, "source HeadBucket", "no answer"),
        ({"MINIO_ENDPOINT": silence, "MINIO_BUCKET": "*"}, "source ListBuckets", "no answer"),
        ({"FILEBASE_ENDPOINT": silence}, "target HeadBucket", "no answer"),
        ({"MINIO_BUCKET": "no-such-bucket"}, "source HeadBucket", "the bucket does not exist"),
        ({"FILEBASE_BUCKET": "no-such-bucket"}, "target HeadBucket", "the bucket does not exist"),
        ({"MINIO_BUCKET": "no-such-*"}, "no bucket at the source", "See MINIO_BUCKET"),
        ({"MINIO_SECRET_KEY": "wrong-s3cr3t"}, "source HeadBucket", "403"),
    ]
    for how, (settings, *words) in [((), case) for case in cases] + [(("--check",), cases[0])]:
        done = here.run(*how, **settings)
        assert (done.code, done.out) == (1, ""), settings
        assert done.err.count("\n") == 1
        assert done.err.startswith(f"{NAME}.py: ")
        assert all(word in done.err for word in words), done.err
        assert "s3cr3t" not in done.err
    assert here.entries() == {}


def test_what_the_target_refuses_is_named_with_its_reason_and_all_else_is_copied(
    place: Callable[..., Place],
) -> None:
    here = place()
    here.put("a", OVERLONG, "z")
    for _ in range(2):  # the second time it is tried again
        done = here.run("--json")
        facts = done.objects[0]
        assert (done.code, facts["compared"], facts["failed"]) == (1, 3, 1)
        (line,) = [line for line in done.err.splitlines() if line.startswith("  failed: ")]
        assert line.startswith(f"  failed: default/{OVERLONG}: target PutObject")
        assert "KeyTooLongError" in line
    assert len(here.entries()["default", OVERLONG]["history"]) == 2
    assert set(etags(here.target, here.copies)) == {"a", "z"}
    remove(here.source, here.bucket, OVERLONG)
    assert here.run().code == 0
    assert here.run("--check").code == 0


def test_a_listing_and_objects_that_fail_for_a_while_are_tried_again_and_the_reasons_told(
    place: Callable[..., Place],
) -> None:
    here = place()
    here.put("a", "b")
    healthy_at = time.monotonic() + 13

    def ill(exchange: Exchange) -> None:
        if time.monotonic() < healthy_at and "/b" in exchange.path:
            answering(503, "SlowDown")(exchange)

    with Proxy(here.target.endpoint) as proxy:
        proxy.plan("GET bucket", answering(500, "InternalError"))
        proxy.plan("PutObject", ill, times=1000)
        done = here.run(FILEBASE_ENDPOINT=proxy.endpoint)
    assert done.code == 0
    assert "a listing failed and is tried again: target ListObjectsV2" in done.err
    assert "InternalError" in done.err
    assert "an object failed and is tried again: target PutObject" in done.err
    assert re.search(r"^\d/2 objects · [\d.]+ \w+ copied · ", done.err, re.MULTILINE)
    assert here.are_equal()


def test_ctrl_c_waits_for_no_store_that_does_not_answer(place: Callable[..., Place]) -> None:
    here = place()
    here.put(*SMALL[:20], LARGE)
    ends = threading.Event()
    hang = after(lambda: ends.wait(BOUND_S))
    with Proxy(here.target.endpoint) as proxy:
        proxy.plan("UploadPart", hang, times=100)
        with Popen(here, FILEBASE_ENDPOINT=proxy.endpoint) as running:
            until(lambda: here.settled() == 20, bound_s=BOUND_S, what="all but the large one are copied")
            until(lambda: proxy.counted["UploadPart"], bound_s=BOUND_S, what="the large one is begun")
            done = running.interrupt()
        assert done.code == 130
        assert "stopping: copies under way are finished or handed back" in done.err
        ends.set()
        proxy.forget()
        proxy.plan("GetObject", hang, times=100)
        ends.clear()
        with Popen(here, "--check", "--deep", FILEBASE_ENDPOINT=proxy.endpoint) as running:
            until(lambda: proxy.counted["GetObject"], bound_s=BOUND_S, what="the target is read")
            done = running.interrupt()
        ends.set()
        assert done.code == 130
        assert "were compared; nothing was changed." in done.err
    assert here.run().code == 0
    assert here.are_equal()


# ── rules' own ways ──────────────────────────────────────────────────────────────────────────────────


def test_deletes_go_or_are_held_back_and_the_exit_status_tells(place: Callable[..., Place]) -> None:
    here = place(REPLICATE_DELETES="true", DELETE_GRACE_S="0")
    here.put("a", "b", "c")
    assert here.run().code == 0
    remove(here.source, here.bucket, "a")
    assert here.run().code == 0
    assert set(etags(here.target, here.copies)) == {"b", "c"}
    remove(here.source, here.bucket, "b")
    done = here.run("--json", DELETE_BREAKER_MAX="0")
    assert (done.code, done.objects[0]["held"]) == (1, 1)
    assert "1 delete held back: approve or discard them" in done.err
    assert set(etags(here.target, here.copies)) == {"b", "c"}
    assert found(here.run("--check", "--json")) == [("extra", "b")]


def test_what_is_not_to_be_overwritten_is_left_alone_and_said_so(place: Callable[..., Place]) -> None:
    here = place(OVERWRITE="never")
    here.put("a", "b")
    put(here.target, here.copies, "b", body=b"mine")
    done = here.run("--json")
    assert (done.code, done.objects[0]["settled"], done.objects[0]["kept"]) == (0, 1, 1)
    assert "1 key that differ" in done.err
    checked = here.run("--check", "--json")
    assert (checked.code, found(checked)) == (0, [("kept", "b")])
    assert here.target.client().get_object(bucket_name=here.copies, object_name="b").data == b"mine"


def test_the_log_is_shown_where_it_is_wanted(place: Callable[..., Place]) -> None:
    here = place(LOG_FORMAT="json")
    here.put("a")
    done = here.run("--verbose")
    lines = [json.loads(line) for line in done.err.splitlines()]
    told = [line["event"] for line in lines]
    assert (done.code, told.count("settled"), told.count("sweep complete")) == (0, 1, 1)
    assert here.run().err == ""
