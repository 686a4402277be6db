"""What the demo plays on: the servers, the service, the notifications, the samples, and a clean end."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import textwrap
import time
from collections.abc import Iterator, Mapping
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
from rich.console import Console
from rich.text import Text

from scripts.local_processes import Server, ServerError
from scripts.local_servers import Gateway, S3Server, SeaweedFS
from scripts.local_service import ROOT, Replicator
from scripts.local_tools import find_mc

KIB, MIB = 1024, 1024 * 1024
PART_BYTES = 16 * MIB
SOURCE, TARGET = "photos", "photos-copy"  # the buckets
OLD_OBJECTS = 200
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
    fill(demo)
    with demo.interrupts.held():
        demo.service.start()
    for name, url, what in (
        ("source", f"{demo.source.endpoint}/{SOURCE}", "MinIO's API and events (JuiceFS)"),
        ("target", f"{demo.target.endpoint}/{TARGET}", "another maker's S3 (SeaweedFS)"),
        ("service", demo.service.url, "this project, run as in the Procfile"),
    ):
        demo.console.print(f"  {name:8}{url:36}{what}")


def fill(demo: Demo) -> None:
    """Objects that are there before the service is."""
    store = connect(demo.source)
    with ThreadPoolExecutor(CRASH_THREADS) as pool:
        samples = [Sample(f"old/{number:03}.txt") for number in range(OLD_OBJECTS)]
        list(pool.map(lambda sample: put(store, sample, sample.size), samples))


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
