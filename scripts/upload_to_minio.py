"""Uploads files, folders, stdin or made-up samples to a bucket of the source.

A folder's files get their paths below it as keys: of photos/, photos/a/b.jpg becomes a/b.jpg. With
--keep-name the folder's own name stands in front: photos/a/b.jpg. A file's key is its name. --prefix stands
before every key as it is; end it with / to have a folder.

Links are followed, but for those that lead back to a folder they are in. What is neither file nor folder is
skipped. A file that cannot be read, or changes its size while it is read, is reported, and the rest goes on.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import mimetypes
import os
import random
import select
import stat
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, Protocol, cast

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from minio.error import S3Error
from rich.progress import BarColumn, DownloadColumn, ProgressColumn, Task, TimeElapsedColumn
from rich.text import Text

from scripts.command_line import (
    SOURCE_SETTINGS,
    STORE_ERRORS,
    Code,
    Failure,
    Interrupted,
    Parser,
    Screen,
    Stopped,
    Store,
    count,
    do_all,
    in_units,
    is_hopeless,
    is_text,
    size,
    source_bucket,
    source_settings,
    start,
    whole,
)
from webhook.events import key_problem

MIB = 1024 * 1024
PART_BYTES, PARTS_MAX = 16 * MIB, 10_000
READ_BYTES = 4 * MIB  # between two looks at whether to stop
STDIN_POLL_S = 0.2
THREADS, THREADS_MAX = 8, 64
SAMPLE_PREFIX, SAMPLE_BYTES, SAMPLES_MAX = "sample/", 4096, 10_000_000
DEPTH_MAX = 500  # folders in folders
RATE_LEAST_S = 0.1  # a rate of less time says nothing
BINARY = "application/octet-stream"
PACKED = {"gzip": "application/gzip", "bzip2": "application/x-bzip2", "xz": "application/x-xz"}

EXAMPLES = """
  python scripts/upload_to_minio.py report.pdf
  python scripts/upload_to_minio.py photos/ --keep-name --prefix 2026/
  pg_dump shop | python scripts/upload_to_minio.py - --key dumps/shop.sql
  python scripts/upload_to_minio.py --sample 1000 --sample-size 64KiB --bucket try-out --create-bucket
"""
SETTINGS = f"{SOURCE_SETTINGS}; MINIO_BUCKET"
DONE, FAILED = "all are uploaded", "one or more are not"


class Changed(Exception):
    """A file's size is not what it was when its upload began."""


class Reading(Protocol):
    """What put_object reads from."""

    def read(self, count: int) -> bytes: ...


Opener = Callable[[threading.Event], contextlib.AbstractContextManager[tuple[Reading, int]]]


@dataclass(frozen=True, kw_only=True)
class Item:
    """One object to write."""

    key: str
    content_type: str
    path: str
    """Where it comes from, for messages."""
    open: Opener
    """Gives what to read and how many bytes, -1 where nobody knows; told of the event that ends the run."""


@dataclass(frozen=True, kw_only=True)
class Trouble:
    """What cannot be uploaded; `is_skipped` where that is no failure."""

    path: str
    why: str
    is_skipped: bool = False


@dataclass(kw_only=True)
class Run:
    """One run: where to, what to show, and what was done so far."""

    store: Store
    bucket: str
    screen: Screen
    quiet: bool
    dry_run: bool
    stop: threading.Event = field(default_factory=threading.Event)
    seen: Callable[[int], None] = lambda _: None
    """Told of the bytes of each piece that was read, and 0 when an object is done."""
    lock: threading.Lock = field(default_factory=threading.Lock)
    objects: int = 0
    size_bytes: int = 0
    failed: int = 0
    skipped: int = 0

    def take(self, found: Item | Trouble) -> None:
        """Uploads one and reports it. Raises: Failure where no other would fare better."""
        if isinstance(found, Trouble):
            self.trouble(found)
            return
        try:
            written = self.upload(found)
        except Stopped:
            return
        except (*STORE_ERRORS, OSError, Changed) as error:
            self.fail(found, error)
        else:
            self.done(found, *written)  # out here: that stdout is closed is no fault of the file

    def fail(self, item: Item, error: Exception) -> None:
        """Reports what an upload raised. Raises: Failure where no other would fare better."""
        if not isinstance(error, STORE_ERRORS):
            self.trouble(Trouble(path=item.path, why=_why(error)), item.key)
        elif is_hopeless(error):
            raise Failure(self.store.why(error)) from error
        else:
            self.trouble(Trouble(path=item.path, why=self.store.why(error)), item.key)

    def upload(self, item: Item) -> tuple[int, str]:
        """Writes it; gives its size and ETag."""
        with item.open(self.stop) as (reading, length):
            if self.dry_run:
                return length, ""
            counted = _Counted(reading, self)
            done = self.store.client.put_object(
                bucket_name=self.bucket,
                object_name=item.key,
                data=cast(BinaryIO, counted),
                length=length,
                content_type=item.content_type,
                part_size=part_bytes(length),
                num_parallel_uploads=1,  # a part for each thread in memory, no more
            )
        return counted.count, done.etag or ""

    def done(self, item: Item, size_bytes: int, etag: str) -> None:
        """Counts and shows an object that was written."""
        with self.lock:
            self.objects += 1
            self.size_bytes += max(size_bytes, 0)
        self.seen(0)
        word = "would upload" if self.dry_run else "uploaded"
        facts: dict[str, Any] = {"status": word.replace(" ", "_"), "bucket": self.bucket}
        facts |= {"key": item.key, "path": item.path, "content_type": item.content_type}
        facts |= {"size": size_bytes if size_bytes >= 0 else None}
        known = in_units(size_bytes) if size_bytes >= 0 else "size unknown"
        line = "" if self.quiet else f"{word}  {item.key}  ({known}, {item.content_type})"
        self.screen.result(line, facts if self.dry_run else {**facts, "etag": etag})

    def trouble(self, found: Trouble, key: str | None = None) -> None:
        """Counts and shows what was not written."""
        word = "skipped" if found.is_skipped else "failed"
        with self.lock:
            self.skipped += found.is_skipped
            self.failed += not found.is_skipped
        if self.screen.as_json:
            facts = {"status": word, "bucket": self.bucket, "key": key, "path": found.path}
            self.screen.result("", {**facts, "error": found.why})
        self.screen.note(f"{word}  {found.path}: {found.why}")

    def summary(self, took_s: float | None = None) -> str:
        """What was done, in a line."""
        word = "would be uploaded" if self.dry_run else "uploaded"
        text = f"{count(self.objects, 'object')}, {in_units(self.size_bytes)} {word} to {self.bucket}"
        if took_s and took_s >= RATE_LEAST_S and not self.dry_run:
            text += f" in {took_s:.1f} s, {in_units(self.size_bytes / took_s)}/s"
        text += f"; {self.failed:,} failed" if self.failed else ""
        return text + (f"; {self.skipped:,} skipped" if self.skipped else "")


class _Counted:
    """Counts what is read, and stops reading once the run has to stop."""

    def __init__(self, reading: Reading, run: Run) -> None:
        self._reading, self._run, self.count = reading, run, 0

    def read(self, count: int) -> bytes:
        if self._run.stop.is_set():
            raise Stopped
        data = self._reading.read(min(count, READ_BYTES))
        self.count += len(data)
        self._run.seen(len(data))
        return data


def _why(error: Exception) -> str:
    return (error.strerror if isinstance(error, OSError) else None) or str(error)


def part_bytes(length: int) -> int:
    """The size of the parts that a large object goes in: PARTS_MAX of them suffice."""
    needed = -(-length // PARTS_MAX)
    return max(PART_BYTES, -(-needed // MIB) * MIB)


def guess_type(name: str) -> str:
    """The content type by the name's ending. A packed file is what it is packed in, not what is in it."""
    kind, packed = mimetypes.guess_type(name.rpartition("/")[2])
    return PACKED.get(packed, BINARY) if packed else kind or BINARY


# ── where objects come from ──────────────────────────────────────────────────────────────────────────


def walk(
    path: Path, key: str, front: str, above: frozenset[tuple[int, int]] = frozenset()
) -> Iterator[tuple[str, Path] | Trouble]:
    """The file at a path with its key, or each file below it, `front` before their keys, in order of names.

    `above` are the folders that it is in, as device and inode. Troubles are yielded, none is raised.
    """
    try:
        found = _look(path, key, above)
    except OSError as error:
        found = Trouble(path=str(path), why=_why(error))
    if not isinstance(found, _Folder):
        yield found
        return
    for name in found.names:
        yield from walk(path / name, front + name, f"{front}{name}/", above | {found.here})


@dataclass(frozen=True, kw_only=True)
class _Folder:
    names: list[str]
    here: tuple[int, int]


def _look(path: Path, key: str, above: frozenset[tuple[int, int]]) -> _Folder | Trouble | tuple[str, Path]:
    """What is at a path. Raises: OSError."""
    if not is_text(key):
        return Trouble(path=str(path), why="its name is not UTF-8, as keys are; rename it")
    status = path.stat()
    if stat.S_ISREG(status.st_mode):
        return key, path
    if not stat.S_ISDIR(status.st_mode):
        return Trouble(path=str(path), why="neither a file nor a folder; - reads stdin", is_skipped=True)
    here = (status.st_dev, status.st_ino)
    if here in above:
        return Trouble(path=str(path), why="a link to a folder that it is in", is_skipped=True)
    if len(above) >= DEPTH_MAX:
        return Trouble(path=str(path), why=f"more than {DEPTH_MAX} folders deep")
    with os.scandir(path) as entries:
        return _Folder(names=sorted(entry.name for entry in entries), here=here)


@contextlib.contextmanager
def open_file(path: Path) -> Iterator[tuple[Reading, int]]:
    """A file and its size. Raises: OSError; Changed where another size was read, before it is sent if so."""
    with path.open("rb", buffering=0) as file:
        reading = _FileReading(file)
        yield reading, reading.size
        reading.check()


class _FileReading:
    """Reads a file that must keep its size."""

    def __init__(self, file: io.FileIO) -> None:
        self._file = file
        self.size = os.fstat(file.fileno()).st_size
        self._left = self.size

    def read(self, count: int) -> bytes:
        data = self._file.read(count) or b""
        self._left -= len(data)
        if not data or self._left <= 0:
            self.check()
        return data

    def check(self) -> None:
        """Raises: Changed."""
        now = os.fstat(self._file.fileno()).st_size
        if now != self.size:
            raise Changed(
                f"it changed from {self.size:,} to {now:,} bytes while it was read; upload it again"
            )


@contextlib.contextmanager
def open_stdin(stop: threading.Event) -> Iterator[tuple[Reading, int]]:
    """All of stdin, however much it is."""
    if sys.stdin is None:
        raise OSError("stdin is closed")
    yield _StdinReading(stop), -1


class _StdinReading:
    """Reads what is there, and notices while it waits that the run has to stop."""

    def __init__(self, stop: threading.Event) -> None:
        self._stop = stop

    def read(self, count: int) -> bytes:
        descriptor = sys.stdin.fileno()
        while not self._stop.is_set():
            if select.select([descriptor], [], [], STDIN_POLL_S)[0]:
                return os.read(descriptor, count)
        raise Stopped


@contextlib.contextmanager
def open_sample(key: str, length: int) -> Iterator[tuple[Reading, int]]:
    """Bytes that look random and are the same for the same key each time."""
    yield _SampleReading(key, length), length


class _SampleReading:
    def __init__(self, key: str, length: int) -> None:
        self._random, self._left = random.Random(key), length

    def read(self, count: int) -> bytes:
        count = min(count, self._left)
        self._left -= count
        return self._random.randbytes(count)


def find_items(options: argparse.Namespace) -> Iterator[Item | Trouble]:
    """All that the options name, with keys of which none comes twice."""
    keys: set[str] = set()
    for text in options.paths:
        for found in _at(text, options):
            if isinstance(found, Item) and len(options.paths) > 1:
                if found.key in keys:
                    yield Trouble(path=found.path, why=f"another one has the key {found.key!r} already")
                    continue
                keys.add(found.key)
            yield found
    yield from _samples(options)


def _at(text: str, options: argparse.Namespace) -> Iterator[Item | Trouble]:
    if text == "-":
        yield _item(options.key, "stdin", open_stdin, options)
        return
    path = Path(text)
    name = path.absolute().name if path.name not in ("", "..") else path.resolve().name
    for found in walk(path, name, f"{name}/" if options.keep_name else ""):
        if isinstance(found, Trouble):
            yield found
        else:
            yield _file_item(*found, options)


def _file_item(key: str, path: Path, options: argparse.Namespace) -> Item | Trouble:
    return _item(key, str(path), lambda _: open_file(path), options)


def _item(key: str, path: str, opener: Opener, options: argparse.Namespace) -> Item | Trouble:
    kind = options.content_type or guess_type(key)
    key = (options.prefix or "") + key
    if problem := key_problem(key):
        return Trouble(path=path, why=problem)
    return Item(key=key, content_type=kind, path=path, open=opener)


def _samples(options: argparse.Namespace) -> Iterator[Item]:
    prefix = SAMPLE_PREFIX if options.prefix is None else options.prefix
    for number in range(1, options.sample + 1):
        yield _sample(f"{prefix}{number:06}.bin", options)


def _sample(key: str, options: argparse.Namespace) -> Item:
    kind = options.content_type or BINARY
    return Item(
        key=key, content_type=kind, path="sample", open=lambda _: open_sample(key, options.sample_size)
    )


# ── the run ──────────────────────────────────────────────────────────────────────────────────────────


class _Rate(ProgressColumn):
    def render(self, task: Task) -> Text:
        """As rich has it, in the units of its other columns."""
        return Text(f"{in_units(task.finished_speed or task.speed or 0)}/s")


def upload_all(run: Run, options: argparse.Namespace) -> Code:
    """Uploads what the options name, several at once. Raises: Failure, Interrupted."""
    began = time.monotonic()
    total = options.sample * options.sample_size if not options.paths else None
    columns = ("{task.description}", BarColumn(), DownloadColumn(binary_units=True))
    threads = 1 if run.dry_run else options.threads  # one keeps the order of names
    try:
        with run.screen.progress(*columns, _Rate(), TimeElapsedColumn()) as progress:
            task = progress.add_task("uploading", total=total)
            run.seen = lambda size_bytes: progress.update(
                task, advance=size_bytes, description=count(run.objects, "object")
            )
            do_all(run.take, find_items(options), threads=threads, stop=run.stop)
    except Failure as error:
        raise Failure(f"{error} Until then: {run.summary()}.") from error
    except KeyboardInterrupt:
        raise Interrupted(f"Until then: {run.summary()}. Run it again to upload all.") from None
    run.screen.line(run.summary(time.monotonic() - began))
    return Code.FAILED if run.failed else Code.DONE


def prepare_bucket(run: Run, *, create: bool) -> None:
    """Raises: Failure where there is no such bucket; WrongUse where there can't be."""
    with run.store.asked():
        try:
            if run.store.client.bucket_exists(bucket_name=run.bucket):
                return
        except S3Error as error:
            if error.code != "AccessDenied":  # one may be allowed to write, and not to ask this
                raise
            return
        if not create:
            raise Failure(f"there is no bucket {run.bucket} at the source: --create-bucket makes it.")
        run.store.client.make_bucket(bucket_name=run.bucket)


def read_options(arguments: list[str] | None) -> argparse.Namespace:
    parser = _parser()
    options = parser.parse_args(arguments)
    from_stdin = options.paths.count("-")
    if not options.paths and not options.sample:
        parser.error("nothing to upload: give a PATH, - or --sample")
    if from_stdin > 1 or bool(from_stdin) != bool(options.key):
        parser.error("- and --key NAME belong together, once")
    if not is_text(f"{options.prefix}{options.key}{options.content_type}"):
        parser.error("--prefix, --key and --content-type must be UTF-8")
    return options


def _parser() -> Parser:
    parser = Parser(
        "upload_to_minio", __doc__ or "", examples=EXAMPLES, settings=SETTINGS, done=DONE, failed=FAILED
    )
    add = parser.add_argument
    add("paths", nargs="*", metavar="PATH", help="a file, a folder with all below it, or - for stdin")
    add("--bucket", help="where to (default: MINIO_BUCKET, if it names one bucket)")
    add("--create-bucket", action="store_true", help="make the bucket if there is none")
    add("--prefix", help="stands before every key as it is")
    add("--keep-name", action="store_true", help="keep a folder's own name in front of its files' keys")
    add("--key", metavar="NAME", help="the key for stdin, after --prefix")
    add("--content-type", metavar="TYPE", help="for all (default: guessed from each name)")
    add("--threads", type=whole(1, THREADS_MAX), default=THREADS, help="uploads at once (%(default)s)")
    add(
        "--sample",
        type=whole(1, SAMPLES_MAX),
        default=0,
        metavar="N",
        help=f"N objects of made-up data, the same each time (default --prefix: {SAMPLE_PREFIX})",
    )
    add("--sample-size", type=size, default=SAMPLE_BYTES, metavar="BYTES", help="of each: 4096, 4KiB, 1MiB …")
    add("--dry-run", action="store_true", help="say what would be uploaded, and under which keys")
    add("-q", "--quiet", action="store_true", help="only what failed, and the sum")
    add("--json", action="store_true", help="one JSON object a line, for each object")
    return parser


def main(arguments: list[str] | None = None) -> int:
    """The exit status, as --help lists them. Raises: WrongUse, SettingsError, Failure, Interrupted."""
    options = read_options(arguments)
    run = Run(
        store=Store("source", source_settings(), threads=options.threads),
        bucket=source_bucket() if options.bucket is None else options.bucket,
        screen=Screen(as_json=options.json),
        quiet=options.quiet,
        dry_run=options.dry_run,
    )
    if not options.dry_run:
        prepare_bucket(run, create=options.create_bucket)
    return upload_all(run, options)


if __name__ == "__main__":
    start(main)
