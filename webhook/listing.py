"""Pages of a bucket's listing, and a listing brought into the order of its keys.

Format: Amazon S3 API Reference, ListObjectsV2. Keys come in ascending order of their UTF-8 bytes there, which
is the order of Python's strings too. Some stores list folder by folder instead ("a/b" before "a-b", as
SeaweedFS does): theirs are sorted in a file on disk, so that memory stays bounded for any number of keys.
"""

from __future__ import annotations

import sqlite3
import tempfile
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, Future
from contextlib import closing, contextmanager
from dataclasses import dataclass
from datetime import datetime
from itertools import islice
from pathlib import Path
from typing import NamedTuple
from urllib.parse import unquote_to_bytes
from xml.etree import ElementTree

from webhook.objects import DIGITS_MAX

PAGE_MAX_BYTES = 8 * 1024 * 1024
"""1,000 keys of 1,024 bytes, each byte escaped, and what else is told of them, are half of it."""
SPOOL_ROWS = 1000


class Listed(NamedTuple):
    """One object of a listing; `size` in bytes, `etag` without quotes, `modified` as the store wrote it."""

    key: str
    size: int
    etag: str
    modified: str

    @property
    def modified_at(self) -> float:
        """Seconds since 1970; 0.0 where the store does not tell."""
        try:
            return datetime.fromisoformat(self.modified).timestamp()
        except ValueError:
            return 0.0


@dataclass(frozen=True, slots=True)
class Page:
    """Up to 1,000 objects."""

    objects: list[Listed]
    token: str
    """Of the next page; "" on the last one."""


class OutOfOrder(Exception):
    """Keys do not come in ascending order, or come twice."""


def read_page(root: ElementTree.Element) -> Page | None:
    """The page that an answer's XML holds; None where it is no listing, or not whole."""
    space = root.tag.partition("ListBucketResult")[0]
    is_truncated = root.findtext(f"{space}IsTruncated")
    token = root.findtext(f"{space}NextContinuationToken", "") if is_truncated == "true" else ""
    if is_truncated not in ("true", "false") or (is_truncated == "true" and not token):
        return None
    is_escaped = root.findtext(f"{space}EncodingType") == "url"
    names = [f"{space}{name}" for name in ("Key", "Size", "ETag", "LastModified")]
    try:
        objects = [_listed(each, names, is_escaped) for each in root.iterfind(f"{space}Contents")]
    except ValueError:
        return None
    return Page(objects, token)


def _listed(contents: ElementTree.Element, names: list[str], is_escaped: bool) -> Listed:
    key, size, etag, modified = [contents.findtext(name, "") for name in names]
    if is_escaped:
        key = unquote_to_bytes(key.replace("+", " ")).decode(errors="surrogateescape")
    if not key or not (size.isascii() and size.isdigit()) or len(size) > DIGITS_MAX:
        raise ValueError("an object without a key or a size")
    return Listed(key, int(size), etag.strip('"'), modified)


def walk(ask: Callable[[str], Page], reader: Executor) -> Iterator[Page]:
    """All pages, the next one asked for while this one is worked on; `ask` takes a page's token.

    Raises: what `ask` does.
    """
    page = ask("")
    while page.token:
        following: Future[Page] = reader.submit(ask, page.token)
        try:
            yield page
        except GeneratorExit:
            following.cancel()
            raise
        page = following.result()
    yield page


def in_order(pages: Iterable[Page], *, after: str) -> Iterator[Listed]:
    """The objects behind a key, of all pages; their order is watched from the first one on.

    Stores are not asked to begin behind a key: one with an order of its own would leave out what it lists
    before that key. Raises: OutOfOrder.
    """
    last = ""
    for page in pages:
        for each in page.objects:
            if each.key <= last:
                raise OutOfOrder
            last = each.key
            if last > after:
                yield each


def sorted_on_disk(pages: Iterable[Page], *, after: str) -> Iterator[Listed]:
    """The objects behind a key in ascending order, each key once; the file is gone with the iterator.

    Raises: OSError where there is no room for it.
    """
    with tempfile.TemporaryDirectory(prefix="listing-") as folder, _file(folder) as file:
        objects = ((_bytes(each.key), *each[1:]) for page in pages for each in page.objects)
        while rows := list(islice(objects, SPOOL_ROWS)):
            file.executemany("INSERT OR REPLACE INTO listed VALUES (?, ?, ?, ?)", rows)
        behind = file.execute("SELECT * FROM listed WHERE key > ? ORDER BY key", (_bytes(after),))
        for key, *rest in behind:
            yield Listed(key.decode(errors="surrogatepass"), *rest)


@contextmanager
def _file(folder: str) -> Iterator[sqlite3.Connection]:
    """An empty table in a file that need not survive anything. Raises: OSError."""
    try:
        with closing(sqlite3.connect(Path(folder) / "listing.db", check_same_thread=False)) as file:
            file.executescript(
                "PRAGMA journal_mode=OFF; PRAGMA synchronous=OFF;"
                "CREATE TABLE listed (key BLOB PRIMARY KEY, size, etag, modified) WITHOUT ROWID;"
            )
            yield file
    except sqlite3.Error as error:
        raise OSError(f"a listing cannot be sorted in {folder}: {error}") from None


def _bytes(key: str) -> bytes:
    """In the order of the text, also where the key is not UTF-8."""
    return key.encode(errors="surrogatepass")
