"""The service at work on this machine: real servers, real notifications, a kill -9, an independent judge.

It starts a server with MinIO's API, another maker's S3 server and this service, all on the loopback address;
lets the script in config/ set up MinIO's notifications; writes objects to the first server and watches them
arrive at the second; kills the service while more are written, and starts it again; has rclone compare both
sides byte by byte. On a terminal it then stays up until Ctrl-C. It leaves no process and no file behind.

Exit status: 0 both sides are equal, 1 they are not or something failed, 128 + n ended early by signal n.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import textwrap
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import Any
from urllib.parse import quote

import minio
import requests
import urllib3
from minio.commonconfig import Tags
from rich.cells import cell_len, set_cell_size
from rich.console import Console
from rich.text import Text

from scripts.local_servers import REGION, Gateway, S3Server, SeaweedFS, Server, ServerError
from scripts.local_service import API_TOKEN, ROOT, Replicator
from scripts.local_tools import find_mc, rclone_check

KIB, MIB = 1024, 1024 * 1024
PART_BYTES = 16 * MIB
SOURCE, TARGET = "photos", "photos-copy"  # the buckets
CRASH_OBJECTS, CRASH_THREADS, KILL_AFTER_OBJECTS = 60, 4, 20
ARRIVAL_BOUND_S, RECOVERY_BOUND_S, ANSWER_BOUND_S, SETUP_BOUND_S, STOP_BOUND_S = 60, 120, 30, 60, 5
LOOK_S, PROGRESS_S = 0.02, 1.0  # between two looks at the service, between two lines of progress
KEY_COLUMNS, WIDTH_COLUMNS, LOG_LINES = 28, 100, 6


class DemoError(Exception):
    """The demo cannot go on; the message says why."""


class Interrupted(BaseException):
    """Ctrl-C, SIGTERM, or the terminal was closed."""


FAILURES = (DemoError, ServerError, OSError, minio.error.MinioException, urllib3.exceptions.HTTPError)


class Interrupts:
    """Signals raise Interrupted once, in the main thread; while `holds` is not 0 they are only noted."""

    def __init__(self) -> None:
        self.received, self.holds = 0, 1
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, self._handle)

    def release(self) -> None:
        self.holds -= 1
        if self.received and self.holds == 0:
            self.holds += 1
            raise Interrupted

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """What starts in here is surely known to whoever ends it."""
        self.holds += 1
        try:
            yield
        finally:
            self.release()

    def _handle(self, number: int, _frame: object) -> None:
        self.received = self.received or number
        self.holds += 1
        self.release()


@dataclass(frozen=True)
class Demo:
    """What all acts work with."""

    console: Console
    interrupts: Interrupts
    folder: Path
    source: Gateway
    target: SeaweedFS
    service: Replicator

    def title(self, text: str) -> None:
        self.console.print(Text(f"\n{text}", "bold"))

    def say(self, text: str, style: str = "", prefix: str = "  ") -> None:
        for line in textwrap.wrap(text, self.console.width - len(prefix)):
            self.console.print(Text(prefix + line, style), soft_wrap=True)

    def dead(self) -> list[str]:
        return [server.name for server in (self.source, self.target, self.service) if not server.alive]

    def entry(self, key: str) -> dict[str, Any]:
        """What the service knows of a key; empty before it heard of it."""
        answer = self.service.get(f"/v1/entries/default/{quote(key)}")
        if answer.status_code == requests.codes.not_found:
            return {}
        answer.raise_for_status()
        return dict(answer.json())


@dataclass(frozen=True)
class Sample:
    """An object to write, of random content."""

    key: str
    size: int = 2 * KIB
    kind: str = "text/plain"
    metadata: Mapping[str, str] = field(default_factory=dict)
    tags: Mapping[str, str] = field(default_factory=dict)
    writes: int = 1
    size_before: int = 0
    """Written first, and overwritten as soon as its copy is under way."""


BINARY = "application/octet-stream"
ODD_KEYS = (
    *("with  two spaces.txt", "a+b = c & d.txt", "100%20 not a space.txt", "café/crème brûlée.txt"),
    *("日本語/写真.txt", "emoji 🚀 🌍.txt", 'it\'s "quoted".txt', "why?#yes;no,<maybe>.txt"),
    *("[1] (2) {3} ~!$@^.txt", ".hidden/-dash", "very/deep/" + "down/" * 20 + "here.txt"),
)
SAMPLES = (
    *(Sample("hello.txt", 13), Sample("empty.txt", 0), Sample("one-byte.txt", 1)),
    *(Sample(key) for key in ODD_KEYS),
    Sample("2026/11/IMG_0001.jpg", 300 * KIB, "image/jpeg", {"camera": "F 2"}, {"album": "a b/c"}),
    Sample("report.pdf", 90 * KIB, "application/pdf", {"by": "Ada", "ok": "no"}, {"year": "2026", "x": "+1"}),
    *(Sample(f"{mib}-MiB.bin", mib * MIB, BINARY) for mib in (1, 16, 64)),
    Sample("written-six-times.txt", writes=6),
    Sample("overwritten-mid-copy.bin", MIB, BINARY, size_before=48 * MIB),
)


def connect(server: S3Server) -> minio.Minio:
    """A client that gives up."""
    return server.client(urllib3.PoolManager(timeout=ANSWER_BOUND_S, retries=False, maxsize=CRASH_THREADS))


def put(store: minio.Minio, sample: Sample, size: int) -> tuple[str, float]:
    """Writes it; gives the ETag, and the time when the PUT returned."""
    tags = Tags.new_object_tags()
    tags.update(sample.tags)
    done = store.put_object(
        bucket_name=SOURCE,
        object_name=sample.key,
        data=BytesIO(os.urandom(size)),
        length=size,
        content_type=sample.kind,
        metadata=dict(sample.metadata),
        part_size=PART_BYTES,
        tags=tags or None,
    )
    return done.etag or "", time.time()


# ── the stage ────────────────────────────────────────────────────────────────────────────────────────


def prepare(stack: contextlib.ExitStack, console: Console, interrupts: Interrupts) -> Demo:
    """The servers, not started yet; `stack` ends them and removes their files."""
    folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="replicator-demo-")))
    source, target = Gateway(folder / "source"), SeaweedFS(folder / "target")
    service = Replicator(
        folder / "service", source=source, source_bucket=SOURCE, target=target, target_bucket=TARGET
    )
    for server in (source, target, service):
        stack.callback(server.kill)
    return Demo(console, interrupts, folder, source, target, service)


def start_servers(demo: Demo) -> None:
    demo.title("Real servers on this machine")
    with demo.interrupts.held(), ThreadPoolExecutor() as pool:
        list(pool.map(Server.start, (demo.source, demo.target)))
    for server, bucket in ((demo.source, SOURCE), (demo.target, TARGET)):
        connect(server).make_bucket(bucket_name=bucket)
    with demo.interrupts.held():
        demo.service.start()
    for name, url, what in (
        ("source", f"{demo.source.endpoint}/{SOURCE}", "MinIO's API and events (JuiceFS)"),
        ("target", f"{demo.target.endpoint}/{TARGET}", "another maker's S3 (SeaweedFS)"),
        ("service", demo.service.url, "this project, run as in the Procfile"),
    ):
        demo.console.print(f"  {name:8}{url:36}{what}")


def set_up_notifications(demo: Demo) -> None:
    """Runs the project's own script, and restarts the source when the script asks for it."""
    mc, folder = find_mc(), str(demo.folder)
    script = "config/minio-webhook.sh" if mc else "config/configure_minio.py"
    demo.title(f"MinIO is told to report every change, by {script}")
    environ = {"PATH": os.defpath, "HOME": folder, "TMPDIR": folder, "MC": str(mc or "")}
    environ |= demo.service.settings() | {"WEBHOOK_URL": demo.service.events_url}
    environ |= {"WEBHOOK_QUEUE_DIR": f"{demo.source.folder}/events", "WEBHOOK_QUEUE_LIMIT": "100000"}
    command = [*([] if mc else [sys.executable]), str(ROOT / script), f"--wait={SETUP_BOUND_S}"]
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    with contextlib.ExitStack() as stack:
        with demo.interrupts.held():
            process = subprocess.Popen(command, cwd=folder, env=environ, text=True, **pipes)
            stack.callback(_end, process)
        for line in process.stdout or ():
            demo.say(line, "dim", prefix="  │ ")
            if "Restart your MinIO process now" in line:
                with demo.interrupts.held():
                    demo.source.restart()
                demo.say("the demo restarted it", "dim", prefix="  ├ ")
        if process.wait() != 0:
            raise DemoError(f"{script} ended with exit status {process.returncode}")


def _end(process: subprocess.Popen[str]) -> None:
    process.terminate()
    try:
        process.wait(STOP_BOUND_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


# ── first act: every kind of object ──────────────────────────────────────────────────────────────────


def show_objects(demo: Demo) -> list[str]:
    """Writes every sample, one after the other; gives what is wrong, which should be nothing."""
    demo.title(f"{len(SAMPLES)} objects, each copied because MinIO told of it")
    print_row(demo, "object", "size", "PUT→copy", "ETags", style="dim")
    problems, small_ms = [], []
    with demo.console.status("") as status:
        for sample in SAMPLES:
            status.update(Text(f"{sample.key} ({_size(sample.size)})"))
            lag_ms, note = write_and_watch(demo, sample)
            small_ms += [lag_ms] if sample.size < MIB else []
            here, there = facts(demo.source, SOURCE, sample.key), facts(demo.target, TARGET, sample.key)
            unequal = sorted(name for name in here | there if here.get(name) != there.get(name))
            problems += [f"{sample.key}: its {name} differs" for name in unequal]
            lag = f"{lag_ms:,.0f} ms" if lag_ms >= 1 else "<1 ms"  # even below 0: done before PUT's answer
            etags = f"{'≠' if 'ETag' in unequal else '='} {here['ETag'][:8]}"
            note, style = (f"UNEQUAL: {', '.join(unequal)}", "red") if unequal else (note, "")
            print_row(demo, sample.key, _size(sample.size), lag, etags, note, style=style)
    median_ms = statistics.median(small_ms)
    demo.say(f"Below 1 MiB: {median_ms:.0f} ms median from the PUT's return to a verified copy.", "green")
    return problems


def print_row(demo: Demo, key: str, size: str, lag: str, etags: str, note: str = "", style: str = "") -> None:
    if cell_len(key) > KEY_COLUMNS:
        key = set_cell_size(key, KEY_COLUMNS - 1).rstrip() + "…"
    line = f"  {set_cell_size(key, KEY_COLUMNS)} {size:>7} {lag:>8}  {etags:<11} {note}".rstrip()
    demo.console.print(Text(line, style), no_wrap=True, overflow="ellipsis")


def write_and_watch(demo: Demo, sample: Sample) -> tuple[float, str]:
    """Writes a sample and waits for its copy; gives the milliseconds between the two, and a note."""
    store, begun_at = connect(demo.source), 0.0
    if sample.size_before:
        put(store, sample, sample.size_before)
        wait_for_entry(demo, sample.key, lambda entry: bool(entry["state"] != "waiting"))
        begun_at = time.time()
    for _ in range(sample.writes):
        etag, returned_at = put(store, sample, sample.size)
    copied = ("settled", etag)
    entry = wait_for_entry(demo, sample.key, lambda entry: (entry["state"], entry["source_etag"]) == copied)
    notes = ["metadata, tags too"] if sample.tags else []
    notes += [f"in {etag.partition('-')[2]} parts"] if "-" in etag else []
    notes += [f"last of {sample.writes} writes"] if sample.writes > 1 else []
    if any(attempt["claimed_at"] < begun_at < attempt["ended_at"] for attempt in entry["attempts_made"]):
        notes.append(f"replaced {_size(sample.size_before)}")
    return (entry["settled_at"] - returned_at) * 1000, ", ".join(notes)


def wait_for_entry(demo: Demo, key: str, is_wanted: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
    """The entry once it is as wanted. Raises: DemoError at the bound."""
    deadline = time.monotonic() + ARRIVAL_BOUND_S
    while not ((entry := demo.entry(key)) and is_wanted(entry)):
        if time.monotonic() > deadline or demo.dead():
            raise DemoError(f"not copied, and no longer waited for: {fate(demo, key)}")
        time.sleep(LOOK_S)
    return entry


def facts(server: S3Server, bucket: str, key: str) -> dict[str, str]:
    """What a store itself says of an object, by name."""
    store = connect(server)
    found = store.stat_object(bucket_name=bucket, object_name=key)
    headers = {name.lower(): value for name, value in (found.metadata or {}).items()}
    kept = {name: headers[name] for name in headers if name.startswith(("content-type", "x-amz-meta-"))}
    tags: Mapping[str, str] = store.get_object_tags(bucket_name=bucket, object_name=key) or {}
    return kept | {f"tag {name}": value for name, value in tags.items()} | {"ETag": found.etag or ""}


def fate(demo: Demo, key: str) -> str:
    """What became of a key, for a message."""
    entry = demo.entry(key)
    told = f"{entry['state']}, {entry['error'] or 'no error'}" if entry else "no event of it came"
    return f"{key}: {told}"


# ── second act: kill -9 ──────────────────────────────────────────────────────────────────────────────


def crash(demo: Demo) -> None:
    """Kills the service amid uploads, starts it again, and waits until all is at the target."""
    demo.title("kill -9 of the service, while objects are written")
    etags: dict[str, str] = {}
    killed_at = write_and_kill(demo, etags)
    started_at = time.time()
    with demo.interrupts.held():
        demo.service.start()
    demo.say(f"The service was started again; it answers after {time.time() - started_at:.1f} s.")
    wait_for_recovery(demo, etags, started_at)
    entries = [demo.entry(key) for key in etags]
    complete = sum(1 for entry in entries if entry["settled_at"] < killed_at)
    queued = sum(1 for entry in entries if entry["first_seen_at"] > started_at)
    demo.say(f"{complete:4} had been copied before the kill")
    demo.say(f"{len(entries) - complete - queued:4} were accepted, not copied: the ledger had them on disk")
    demo.say(f"{queued:4} became known after the restart: MinIO's queue had kept the events")
    demo.say("   0 lost: all have the same ETag on both sides", "green")


def write_and_kill(demo: Demo, etags: dict[str, str]) -> float:
    """Writes a large object, then small ones in threads, and kills amid them; gives the time of death."""
    store, enough = connect(demo.source), threading.Event()

    def write(sample: Sample) -> None:
        etags[sample.key], _ = put(store, sample, sample.size)
        if len(etags) > KILL_AFTER_OBJECTS:
            enough.set()

    write(Sample("crash/64-MiB.bin", 64 * MIB))
    with ThreadPoolExecutor(CRASH_THREADS) as pool:
        uploads = [pool.submit(write, Sample(f"crash/{number}.txt")) for number in range(CRASH_OBJECTS)]
        enough.wait(ANSWER_BOUND_S)
        with demo.interrupts.held():
            demo.service.kill()
        killed_at, before = time.time(), len(etags)
        for upload in uploads:
            upload.result()
    demo.say(f"{before} objects were written, one of 64 MiB, when all processes of the service were killed;")
    demo.say(f"{len(etags) - before} more were written while there was no service.")
    return killed_at


def wait_for_recovery(demo: Demo, etags: Mapping[str, str], started_at: float) -> None:
    """Until nothing is left to do, and the target lists each object with the source's ETag."""
    target, missing, told_s, passed_s = connect(demo.target), set(etags), 0.0, 0.0
    while missing or demo.service.unsettled():
        if passed_s > RECOVERY_BOUND_S or demo.dead():
            fates = "; ".join(fate(demo, key) for key in sorted(missing)[:3])
            raise DemoError(f"{len(missing)} not copied, {demo.service.unsettled()} unsettled. {fates}")
        time.sleep(LOOK_S)
        listed = target.list_objects(bucket_name=TARGET, prefix="crash/", recursive=True)
        missing -= {one.object_name for one in listed if etags[one.object_name or ""] == one.etag}
        passed_s = time.time() - started_at
        if not missing or passed_s - told_s > PROGRESS_S:
            told_s = passed_s
            demo.say(f"{passed_s:4.1f} s: {len(etags) - len(missing)} of {len(etags)} are copied", "dim")


# ── the end ──────────────────────────────────────────────────────────────────────────────────────────


def judge(demo: Demo, problems: list[str]) -> bool:
    """Has rclone read every byte of both sides; gives, and prints, whether all is equal."""
    demo.title("The judge: rclone check --download reads every byte of both sides")
    found = rclone_check(demo.source, SOURCE, demo.target, TARGET, download=True)
    equal = sum(line.startswith("= ") for line in found.output.splitlines())
    expected = len(SAMPLES) + 1 + CRASH_OBJECTS
    problems += [f"rclone: {line}" for line in found.differences]
    if not found.ok or equal != expected:
        problems.append(f"rclone found {equal} of {expected} objects equal")
    for problem in problems:
        demo.say(problem, "red")
    if problems:
        demo.say("✘ The sides are NOT equal (rclone: + not at the target, - only there, * other).", "red")
        return False
    demo.say(f"✔ All {equal} objects are equal, none is missing, none is too many.", "bold green")
    return True


def stay_up(demo: Demo) -> None:
    """Says where to look, until interrupted."""
    source, mc = demo.source, find_mc()
    keys = f"{source.access_key}:{source.secret_key}"
    write = f"curl -T README.md -u {keys} --aws-sigv4 aws:amz:{REGION}:s3 {source.endpoint}/{SOURCE}/"
    if mc:
        alias = source.endpoint.replace("://", f"://{keys}@")
        write = f"MC_HOST_demo={alias} {os.path.relpath(mc)} cp README.md demo/{SOURCE}/"
    api = f"curl -H 'Authorization: Bearer {API_TOKEN}' {demo.service.url}/v1"
    demo.title("All of it stays up until Ctrl-C")
    for label, text in {
        "source": f"{source.endpoint}, bucket {SOURCE}, {keys.replace(':', ' / ')}",
        "target": f"{demo.target.endpoint}, bucket {TARGET}, same keys",
        "write": write,
        "look": f"{api}/entries/default/README.md",
        "status": f"{api}/status",
    }.items():
        demo.console.print(Text(f"  {label:<7} {text}"), soft_wrap=True)
    with contextlib.suppress(Interrupted):
        threading.Event().wait()


def explain(demo: Demo, error: Exception) -> None:
    """What went wrong, who is not running, and the end of the service's log."""
    demo.title("The demo failed")
    demo.say(str(error) if isinstance(error, DemoError) else f"{type(error).__name__}: {error}", "red")
    time.sleep(PROGRESS_S)  # what is just dying is dead then
    for name in demo.dead():
        demo.say(f"{name} is not running", "red")
    demo.say("The end of the service's log:")
    for line in demo.service.log_tail().splitlines()[-LOG_LINES:]:
        demo.say(line, "dim", prefix="  │ ")


def _size(size: int) -> str:
    if size < KIB:
        return f"{size} B"
    return f"{size // KIB} KiB" if size < MIB else f"{size // MIB} MiB"


def perform(demo: Demo) -> int:
    """All of it, in order; gives the exit status."""
    begun_at = time.monotonic()
    try:
        start_servers(demo)
        set_up_notifications(demo)
        problems = show_objects(demo)
        crash(demo)
        is_equal = judge(demo, problems)
        demo.say(f"{time.monotonic() - begun_at:.0f} s in all.", "dim")
        if demo.console.is_terminal:
            stay_up(demo)
    except FAILURES as error:
        explain(demo, error)
        return 1
    return 0 if is_equal else 1


def main(arguments: Sequence[str] | None = None) -> int:
    """The exit status, as the module's text has it."""
    shape = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser("python -m scripts.demo", description=__doc__, formatter_class=shape)
    parser.parse_args(arguments)
    is_terminal = sys.stdout.isatty()
    width = None if is_terminal else WIDTH_COLUMNS
    console = Console(highlight=False, markup=False, force_terminal=is_terminal, width=width)
    interrupts = Interrupts()
    with contextlib.ExitStack() as stack:
        demo = prepare(stack, console, interrupts)
        try:
            interrupts.release()
            return perform(demo)
        except Interrupted:
            return 128 + interrupts.received
        finally:
            interrupts.holds += 1
            if interrupts.received:
                demo.title("Stopping the servers and removing their files.")


if __name__ == "__main__":
    sys.exit(main())
