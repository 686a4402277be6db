"""Empties a bucket and deletes it: at the source, or with --target at a target.

Every object goes, with its versions and delete markers where the bucket has versions, and every unfinished
upload; then the bucket itself, unless --keep-bucket is given. What would be deleted is counted first, and the
bucket's name has to be typed; --yes is for programs. There is no way back.

Where a rule has deletes = true, the service then deletes the copies of a source bucket's objects too.
"""

from __future__ import annotations

import argparse
import itertools
import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from minio.datatypes import Object
from minio.deleteobjects import DeleteObject
from minio.error import S3Error
from rich.progress import BarColumn, MofNCompleteColumn, SpinnerColumn, TimeElapsedColumn

from scripts.command_line import (
    NOT_IMPLEMENTED,
    SOURCE_SETTINGS,
    STORE_ERRORS,
    Code,
    Failure,
    Interrupted,
    NoBucket,
    Parser,
    Screen,
    Store,
    WrongUse,
    all_settings,
    count,
    do_all,
    in_units,
    is_hopeless,
    source_settings,
    start,
)
from webhook.errors import SettingsError

BATCH_MAX = 1000
"""DeleteObjects takes so many (Amazon S3 API Reference)."""
SINGLE_THREADS = 8
PASSES_MAX = 5
"""Looks for what was written meanwhile."""
FAULTS_SHOWN_MAX = 20
GONE = frozenset({"NoSuchKey", "NoSuchVersion", "NoSuchUpload"})
SINGLY = re.compile("[\x00-\x1f\x7f-\x9f\ufffe\uffff]|/$")
"""Keys with these characters are refused, or turn into others, in DeleteObjects' XML (W3C, XML 1.0, 2.2 and
2.11). Of those that end with a slash, JuiceFS' gateway says there that they were deleted, and keeps them.
"""
COUNTING = (SpinnerColumn(), "{task.description} {task.completed:,.0f}", TimeElapsedColumn())
DELETING = ("{task.description}", BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())

EXAMPLES = """
  python scripts/delete_bucket.py try-out --dry-run
  python scripts/delete_bucket.py try-out
  python scripts/delete_bucket.py try-out-copy --target filebase --keep-bucket --yes
"""
SETTINGS = f"{SOURCE_SETTINGS}; for --target all that the service needs"
DONE, FAILED = "done", "something is left, or there is no such bucket, or another name was typed"


@dataclass(kw_only=True)
class Holdings:
    """What a bucket holds, or what of it was deleted."""

    objects: int = 0
    older_versions: int = 0
    delete_markers: int = 0
    unfinished_uploads: int = 0
    size_bytes: int = 0

    def add(self, found: Object) -> None:
        """Counts an entry of a listing."""
        if found.is_delete_marker:
            self.delete_markers += 1
        elif str(found.is_latest).lower() in ("none", "true"):  # without versions, nothing is said
            self.objects += 1
        else:
            self.older_versions += 1
        self.size_bytes += found.size or 0

    @property
    def entries(self) -> int:
        """All that a listing tells of: without the uploads."""
        return self.objects + self.older_versions + self.delete_markers

    def __str__(self) -> str:
        parts = [count(self.objects, "object")]
        parts += [count(self.older_versions, "older version")] if self.older_versions else []
        parts += [count(self.delete_markers, "delete marker")] if self.delete_markers else []
        parts += [count(self.unfinished_uploads, "unfinished upload")] if self.unfinished_uploads else []
        return f"{', '.join(parts)} ({in_units(self.size_bytes)})"


class Bucket:
    """One bucket of a store. Its methods raise one of STORE_ERRORS."""

    def __init__(self, store: Store, name: str) -> None:
        self.store, self.name, self._client = store, name, store.client
        self._has_versions = False
        self._takes_batches = True

    def look(self) -> None:
        """Finds out whether it has versions. Raises: NoBucket."""
        if not self._client.bucket_exists(bucket_name=self.name):
            raise NoBucket(f"there is no bucket {self.name} at the {self.store.name}: nothing was deleted.")
        try:
            status = self._client.get_bucket_versioning(bucket_name=self.name).status
        except S3Error as error:
            if error.code not in NOT_IMPLEMENTED:
                raise
            status = None
        self._has_versions = status in ("Enabled", "Suspended")

    def entries(self) -> Iterator[Object]:
        """All objects, with their older versions and delete markers."""
        found: Iterator[Object] = self._client.list_objects(
            bucket_name=self.name, recursive=True, include_version=self._has_versions
        )
        return found

    def uploads(self) -> Iterator[tuple[str, str]]:
        """Keys and ids of the unfinished uploads that the store tells of; MinIO tells of none."""
        key_mark = id_mark = None
        while True:
            try:
                page = self._client._list_multipart_uploads(  # minio has it under no public name
                    self.name, key_marker=key_mark, upload_id_marker=id_mark
                )
            except S3Error as error:
                if error.code not in NOT_IMPLEMENTED:
                    raise
                return
            yield from ((each.object_name, each.upload_id or "") for each in page.uploads)
            key_mark, id_mark = page.next_key_marker, page.next_upload_id_marker
            if not page.is_truncated or not key_mark:
                return

    def abort(self, key: str, upload_id: str) -> None:
        """Removes one unfinished upload; fine where it is gone."""
        try:
            self._client._abort_multipart_upload(self.name, key, upload_id)
        except S3Error as error:
            if error.code not in GONE:
                raise

    def delete(self, batch: list[DeleteObject]) -> dict[DeleteObject, str]:
        """Deletes up to BATCH_MAX entries; gives those that remain, and why."""
        if not self._takes_batches:
            return self._delete_singly(batch)
        singly = [each for each in batch if SINGLY.search(each.name)]
        together = [each for each in batch if not SINGLY.search(each.name)]
        try:
            remaining = self._delete_together(together)
        except S3Error as error:
            if error.code not in NOT_IMPLEMENTED:
                raise
            self._takes_batches = False
            return self._delete_singly(batch)
        return remaining | self._delete_singly(singly)

    def _delete_together(self, batch: list[DeleteObject]) -> dict[DeleteObject, str]:
        errors = self._client.remove_objects(bucket_name=self.name, delete_object_list=batch)
        return {
            DeleteObject(error.name or "", error.version_id or None): f"{error.code}: {error.message}"
            for error in errors
            if error.code not in GONE
        }

    def _delete_singly(self, batch: list[DeleteObject]) -> dict[DeleteObject, str]:
        remaining: dict[DeleteObject, str] = {}

        def delete(each: DeleteObject) -> None:
            if why := self._delete_one(each):
                remaining[each] = why

        do_all(delete, batch, threads=SINGLE_THREADS)
        return remaining

    def _delete_one(self, each: DeleteObject) -> str:
        try:
            self._client.remove_object(
                bucket_name=self.name, object_name=each.name, version_id=each.version_id
            )
        except STORE_ERRORS as error:
            if is_hopeless(error):
                raise
            return "" if getattr(error, "code", "") in GONE else self.store.why(error)
        return ""

    def remove(self) -> None:
        """Removes the empty bucket."""
        self._client.remove_bucket(bucket_name=self.name)


@dataclass(kw_only=True)
class Deletion:
    """What a bucket held, what of it was deleted until now, and what the last look left."""

    bucket: Bucket
    screen: Screen
    found: Holdings = field(default_factory=Holdings)
    deleted: Holdings = field(default_factory=Holdings)
    left: int = 0
    faults: dict[DeleteObject, str] = field(default_factory=dict)
    """Why, for the first FAULTS_SHOWN_MAX of those that are left."""
    is_bucket_deleted: bool = False

    def count(self) -> None:
        """Looks at all that is there. Raises: Failure, NoBucket."""
        with self.bucket.store.asked(), self.screen.progress(*COUNTING) as progress:
            task = progress.add_task("counting", total=None)
            self.bucket.look()
            for found in self.bucket.entries():
                self.found.add(found)
                progress.advance(task)
            self.found.unfinished_uploads = sum(1 for _ in self.bucket.uploads())

    def run(self, *, keep_bucket: bool) -> None:
        """Deletes all that is there; the bucket too, if nothing is left. Raises: Failure."""
        with self.bucket.store.asked(), self.screen.progress(*DELETING) as progress:
            task = progress.add_task("deleting", total=self.found.entries)
            self._abort_uploads()
            self._empty(lambda number: progress.advance(task, number))
            if not self.left and not keep_bucket:
                self._remove()

    def _abort_uploads(self) -> None:
        for key, upload_id in self.bucket.uploads():
            self.bucket.abort(key, upload_id)
            self.deleted.unfinished_uploads += 1

    def _empty(self, seen: Callable[[int], None]) -> None:
        """Deletes what is listed, until nothing is, or nothing that can be deleted."""
        listed = 0
        for number in range(PASSES_MAX):
            listed = self._pass(seen, is_first=number == 0)
            if listed == self.left:
                return
        self.left = listed  # the store said each time that it was deleted

    def _pass(self, seen: Callable[[int], None], *, is_first: bool) -> int:
        """Deletes what one listing tells of; gives how many entries that were."""
        entries, listed = self.bucket.entries(), 0
        self.left, self.faults = 0, {}
        while batch := list(itertools.islice(entries, BATCH_MAX)):
            asked = [DeleteObject(found.object_name or "", found.version_id) for found in batch]
            remaining = self.bucket.delete(asked)
            for found, each in zip(batch, asked, strict=True):
                if each in remaining or DeleteObject(each.name) in remaining:  # not all name the version
                    self._leave(each, remaining)
                elif is_first or not each.name.endswith("/"):  # some show folders once they are empty
                    self.deleted.add(found)
            listed += len(batch)
            seen(len(batch))
        return listed

    def _leave(self, each: DeleteObject, remaining: dict[DeleteObject, str]) -> None:
        self.left += 1
        if len(self.faults) < FAULTS_SHOWN_MAX:
            self.faults[each] = remaining.get(each) or remaining[DeleteObject(each.name)]

    def _remove(self) -> None:
        try:
            self.bucket.remove()
        except S3Error as error:
            if error.code != "BucketNotEmpty":
                raise
            raise Failure(f"{self}, but something was written meanwhile: run this again.") from None
        self.is_bucket_deleted = True

    def report(self, *, dry_run: bool) -> None:
        """What is left to stderr, the outcome to stdout."""
        for each, why in self.faults.items():
            self.screen.note(f"not deleted  {each.name}: {why}")
        if self.left:
            self.screen.note(f"{count(self.left, 'entry is', 'entries are')} left; run this again.")
        would = f"would be deleted of {self.bucket.name}: {self.found}. Nothing was changed."
        self.screen.result(would if dry_run else f"{self}.", self.facts(dry_run=dry_run))

    def facts(self, *, dry_run: bool) -> dict[str, Any]:
        """For programs."""
        faults = [
            {"key": each.name, "version_id": each.version_id, "why": why} for each, why in self.faults.items()
        ]
        return {
            "store": self.bucket.store.name,
            "bucket": self.bucket.name,
            "dry_run": dry_run,
            "found": asdict(self.found),
            "deleted": asdict(self.deleted),
            "bucket_deleted": self.is_bucket_deleted,
            "left": self.left,
            "faults": faults,
        }

    def __str__(self) -> str:
        what = "the bucket and " if self.is_bucket_deleted else ""
        return f"deleted {what}{self.deleted} of {self.bucket.name} at the {self.bucket.store.name}"


# ── before it begins ─────────────────────────────────────────────────────────────────────────────────


def open_bucket(name: str, target: str | None) -> Bucket:
    """The bucket at the source, or at a target. Raises: SettingsError, WrongUse."""
    if target is None:
        store = Store("source", source_settings(), threads=SINGLE_THREADS, repeats_posts=True)
        return Bucket(store, name)
    targets = all_settings().targets
    if target not in targets:
        raise WrongUse(f"there is no target {target!r}: the settings have {', '.join(sorted(targets))}.")
    store = Store(f"target {target}", targets[target], threads=SINGLE_THREADS, repeats_posts=True)
    return Bucket(store, name)


def warnings(name: str, target: str | None) -> Iterator[str]:
    """What the service will do about it, a line for each rule; nothing where not all settings are there."""
    try:
        rules = all_settings().rules
    except SettingsError:
        return
    for rule in rules.of_buckets([*rules.literal_buckets, *([] if target else [name])]):
        copies = f"{rule.target_bucket} at the target {rule.target}"
        if target is None and rule.source_bucket == name and rule.deletes:
            yield f"Warning: rule {rule.name} has deletes = true: its copies in {copies} will be deleted too."
        if target == rule.target and rule.target_bucket == name:
            yield f"Warning: rule {rule.name} copies {rule.source_bucket} to it, and will go on with that."


def confirm(name: str) -> None:
    """Asks for the bucket's name. Raises: Failure where another one is typed."""
    question = "There is no way back. To delete all this, type the bucket's name: "
    print(question, end="", file=sys.stderr, flush=True)
    if sys.stdin.readline().removesuffix("\n") != name:
        raise Failure("that is not the bucket's name: nothing was deleted.")


# ── the run ──────────────────────────────────────────────────────────────────────────────────────────


def delete(deletion: Deletion, options: argparse.Namespace) -> Code:
    """Counts, asks, deletes and reports. Raises: Failure, Interrupted."""
    bucket = deletion.bucket
    try:
        deletion.count()
        for warning in warnings(options.bucket, options.target):
            deletion.screen.note(warning)
        if not options.dry_run:
            rest = "The bucket stays." if options.keep_bucket else "The bucket goes too."
            deletion.screen.note(
                f"{options.bucket} at the {bucket.store.name} holds {deletion.found}. {rest}"
            )
            if not options.yes:
                confirm(options.bucket)
            deletion.run(keep_bucket=options.keep_bucket)
    except KeyboardInterrupt:
        raise Interrupted(f"Until then: {deletion}. Run it again to go on.") from None
    deletion.report(dry_run=options.dry_run)
    return Code.FAILED if deletion.left else Code.DONE


def read_options(arguments: list[str] | None) -> argparse.Namespace:
    parser = Parser(
        "delete_bucket", __doc__ or "", examples=EXAMPLES, settings=SETTINGS, done=DONE, failed=FAILED
    )
    add = parser.add_argument
    add("bucket", metavar="BUCKET", help="the bucket's name")
    add("--target", metavar="NAME", help="at this target, not at the source; FILEBASE_*'s is called filebase")
    add("--keep-bucket", action="store_true", help="delete what is in it, and keep the empty bucket")
    add("--dry-run", action="store_true", help="count what would be deleted, and change nothing")
    add("--yes", action="store_true", help="don't ask for the bucket's name")
    add("--json", action="store_true", help="one JSON document in the end")
    options = parser.parse_args(arguments)
    if not (options.yes or options.dry_run or (sys.stdin and sys.stdin.isatty())):
        parser.error("there is no terminal to type the bucket's name at: give --yes, or --dry-run to look")
    return options


def main(arguments: list[str] | None = None) -> int:
    """The exit status, as --help lists them. Raises: WrongUse, SettingsError, Failure, Interrupted."""
    options = read_options(arguments)
    bucket = open_bucket(options.bucket, options.target)
    return delete(Deletion(bucket=bucket, screen=Screen(as_json=options.json)), options)


if __name__ == "__main__":
    start(main)
