"""Pages are read as the store meant them, walked one ahead, and sorted in bounded memory."""

from __future__ import annotations

import itertools
import sqlite3
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any
from urllib.parse import quote, quote_plus
from xml.etree import ElementTree
from xml.sax.saxutils import escape

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from webhook.answers import read_xml
from webhook.listing import Listed, OutOfOrder, Page, in_order, read_page, sorted_on_disk, walk

BOUND_S = 30.0
NAMESPACE = ' xmlns="http://s3.amazonaws.com/doc/2006-03-01/"'
ETAG = "9dd4e461268c8034f5c8564e155c67a6"
MODIFIED = "2026-11-25T00:00:54.389Z"
KEYS = st.text(st.characters(codec="utf-8"), min_size=1, max_size=12)
ODD_KEYS = (
    "a b",
    "a+b",
    "a%b",
    "a%20b",
    "a/b//c",
    "é/ü",
    "漢字",
    "🎉",
    "\x01\x1b\x7f",
    "a\nb\tc\r",
    " a ",
    "&<>\"'",
)


def contents(key: str, *, size: str = "1", etag: str = f"&quot;{ETAG}&quot;") -> str:
    return (
        f"<Contents><Key>{key}</Key><LastModified>{MODIFIED}</LastModified><ETag>{etag}</ETag>"
        f"<Size>{size}</Size><Owner><ID>x</ID></Owner><StorageClass>STANDARD</StorageClass></Contents>"
    )


def listing(*inside: str, space: str = NAMESPACE, truncated: str | None = "false", more: str = "") -> str:
    """As stores send it: what is asked for comes back, too."""
    told = "" if truncated is None else f"<IsTruncated>{truncated}</IsTruncated>"
    return (
        f'<?xml version="1.0" encoding="UTF-8"?>\n<ListBucketResult{space}><Name>b</Name><Prefix></Prefix>'
        f"<KeyCount>{len(inside)}</KeyCount><MaxKeys>1000</MaxKeys>{told}{more}{''.join(inside)}"
        f"</ListBucketResult>"
    )


def root_of(text: str) -> ElementTree.Element:
    root = read_xml(text.encode())
    assert root is not None
    return root


def page_of(text: str) -> Page:
    page = read_page(root_of(text))
    assert page is not None
    return page


ENCODED = "<EncodingType>url</EncodingType>"
with_and_without_a_namespace = pytest.mark.parametrize("space", [NAMESPACE, ""], ids=["namespace", "none"])


# ── one page ─────────────────────────────────────────────────────────────────────────────────────────────


@with_and_without_a_namespace
def test_an_object_is_read_with_all_that_is_compared(space: str) -> None:
    page = page_of(listing(contents("a/b", size="5497558138880"), space=space))
    assert page == Page([Listed("a/b", 5 * 1024**4, ETAG, MODIFIED)], token="")
    assert page.objects[0].modified_at == 1795564854.389


@with_and_without_a_namespace
@pytest.mark.parametrize(
    "encode", [quote, quote_plus, lambda key: quote(key, safe="/+*").replace("+", "%2B")]
)
@pytest.mark.parametrize("key", ODD_KEYS, ids=ascii)
def test_an_escaped_key_is_read_as_it_is(key: str, encode: Callable[[str], str], space: str) -> None:
    assert [
        each.key for each in page_of(listing(contents(encode(key)), space=space, more=ENCODED)).objects
    ] == [key]


@given(key=KEYS, encode=st.sampled_from([quote, quote_plus]))
def test_any_key_comes_back_from_its_escaped_form(key: str, encode: Callable[[str], str]) -> None:
    assert page_of(listing(contents(encode(key)), more=ENCODED)).objects[0].key == key


def test_a_key_that_is_not_utf_8_is_read_so_that_no_two_are_the_same() -> None:
    page = page_of(listing(contents("x%80"), contents("x%81"), contents("x%EF%BF%BD"), more=ENCODED))
    assert [each.key.encode(errors="surrogateescape") for each in page.objects] == [
        *(b"x\x80", b"x\x81", "x\ufffd".encode())
    ]


@pytest.mark.parametrize("more", ["", "<EncodingType></EncodingType>", "<EncodingType>none</EncodingType>"])
@pytest.mark.parametrize("key", ["a+b", "a%20b", "a b", "é%", "&<>"])
def test_what_the_store_did_not_escape_is_not_unescaped(key: str, more: str) -> None:
    assert page_of(listing(contents(escape(key)), more=more)).objects[0].key == key


@with_and_without_a_namespace
def test_a_page_that_others_follow_names_the_next_one(space: str) -> None:
    token = "<NextContinuationToken>1/&lt;+=</NextContinuationToken>"
    page = page_of(listing(contents("a"), space=space, truncated="true", more=token))
    assert (page.token, len(page.objects)) == ("1/<+=", 1)


def test_a_token_on_the_last_page_is_not_followed() -> None:
    token = "<NextContinuationToken>left over</NextContinuationToken>"
    assert page_of(listing(truncated="false", more=token)) == Page([], "")


@with_and_without_a_namespace
def test_an_empty_bucket_is_an_empty_page(space: str) -> None:
    assert page_of(listing(space=space)) == Page([], "")


@pytest.mark.parametrize(
    "text",
    [
        listing(contents("a"), truncated="true"),
        listing(contents("a"), truncated="true", more="<NextContinuationToken></NextContinuationToken>"),
        listing(contents("a"), truncated="true", more="<NextMarker>a</NextMarker>"),
        listing(contents("a"), truncated=None),
        listing(contents("a"), truncated=""),
        listing(contents("a"), truncated="perhaps"),
        listing(contents("a"), contents("")),
        listing(contents("a"), "<Contents></Contents>"),
        listing(contents("a"), "<Contents><Size>1</Size><ETag>x</ETag></Contents>"),
        listing(contents("a", size="")),
        listing(contents("a", size="much")),
        listing(contents("a", size="1.5")),
        "<Error><Code>AccessDenied</Code></Error>",
        "<ListAllMyBucketsResult><Buckets/></ListAllMyBucketsResult>",
        "<html><body>welcome</body></html>",
        "<Error><IsTruncated>false</IsTruncated></Error>",
    ],
    ids=itertools.count(),
)
def test_what_is_no_listing_or_not_whole_is_no_page(text: str) -> None:
    assert read_page(root_of(text)) is None


@pytest.mark.parametrize("cut", range(1, 400, 7))
def test_a_page_that_breaks_off_is_no_page(cut: int) -> None:
    whole = listing(contents("a"), contents("b"))
    root = read_xml(whole.encode()[:-cut])
    assert root is None or read_page(root) is None


def test_objects_without_an_etag_or_a_time_are_listed_all_the_same() -> None:
    page = page_of(listing("<Contents><Key>a</Key><Size>0</Size></Contents>"))
    assert page.objects == [Listed("a", 0, "", "")]
    assert page.objects[0].modified_at == 0.0


def test_quotes_around_an_etag_are_no_part_of_it() -> None:
    tags = ('"x-2"', "x-2", "&#34;x-2&#34;")
    page = page_of(listing(*(contents(str(number), etag=tag) for number, tag in enumerate(tags))))
    assert {each.etag for each in page.objects} == {"x-2"}


@pytest.mark.parametrize("modified", ["yesterday", "", "2026-13-01T00:00:00Z"])
def test_a_time_that_is_none_counts_as_unknown(modified: str) -> None:
    assert Listed("a", 1, "", modified).modified_at == 0.0


# ── in order ─────────────────────────────────────────────────────────────────────────────────────────────


def objects(keys: list[str]) -> list[Listed]:
    return [Listed(key, len(key), f"etag of {key!a}", MODIFIED) for key in keys]


def pages(keys: list[str], size: int = 2) -> list[Page]:
    """The keys in this order, some to a page; also pages with nothing on them."""
    cut = [keys[start : start + size] for start in range(0, len(keys), size)]
    return [Page(objects(each), "more") for part in cut for each in (part, [])]


@given(keys=st.sets(KEYS), after=st.one_of(st.just(""), KEYS), size=st.integers(1, 5))
def test_ascending_keys_behind_a_key_pass_as_they_come(keys: set[str], after: str, size: int) -> None:
    behind = sorted(key for key in keys if key > after)
    assert [each.key for each in in_order(pages(sorted(keys), size), after=after)] == behind


@pytest.mark.parametrize(
    ("keys", "after"),
    [
        (["b", "a"], ""),
        (["a", "b", "b"], ""),
        (["a", "b", "a", "c"], ""),
        (["a/x", "a-b"], ""),
        (["b", "a"], "m"),
        (["a", "a"], "m"),
        (["b", "c", "aa"], "a"),
        (["n", "a"], "m"),
        (["", "a"], ""),
    ],
)
@pytest.mark.parametrize("size", [1, 2, 9])
def test_keys_that_descend_or_come_twice_are_out_of_order_wherever_it_begins(
    keys: list[str], after: str, size: int
) -> None:
    with pytest.raises(OutOfOrder):
        list(in_order(pages(keys, size), after=after))


def test_what_comes_before_the_disorder_is_given_first() -> None:
    found = in_order(pages(["a", "c", "b"]), after="")
    assert [next(found).key, next(found).key] == ["a", "c"]
    with pytest.raises(OutOfOrder):
        next(found)


# ── sorted on disk ───────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where files that do not stay are made."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


@settings(max_examples=60, deadline=None)
@given(keys=st.lists(KEYS, unique=True), after=st.one_of(st.just(""), KEYS), size=st.integers(1, 5))
def test_any_keys_are_sorted_as_python_sorts_them(keys: list[str], after: str, size: int) -> None:
    expected = objects(sorted(key for key in keys if key > after))
    assert list(sorted_on_disk(pages(keys, size), after=after)) == expected


def test_keys_that_python_and_utf_16_sort_differently_come_in_the_order_of_their_bytes(folder: Path) -> None:
    keys = ["\U00010000", "\uffff", "\ue000", "é", "z", "a-b", "a/x", "a", "\x01", "e\u0301"]
    assert [each.key for each in sorted_on_disk(pages(keys), after="")] == sorted(keys, key=str.encode)
    assert sorted(keys) == sorted(keys, key=str.encode)


def test_keys_that_are_not_utf_8_come_in_the_order_in_which_they_are_compared(folder: Path) -> None:
    keys = [
        raw.decode(errors="surrogateescape") for raw in (b"\xc3\xa9", b"\x80", b"\xff", b"a", b"\xee\x80\x80")
    ]
    assert [each.key for each in sorted_on_disk(pages(keys), after="")] == sorted(keys)


def test_a_key_that_comes_twice_is_given_once_as_it_came_last(folder: Path) -> None:
    twice = [
        Page([Listed("k", 1, "old", ""), Listed("a", 1, "", "")], "t"),
        Page([Listed("k", 2, "new", "")], ""),
    ]
    assert list(sorted_on_disk(twice, after="")) == [Listed("a", 1, "", ""), Listed("k", 2, "new", "")]


def test_more_keys_than_are_written_at_once_all_come_back(folder: Path) -> None:
    keys = [f"{number * 7919 % 2503:05d}" for number in range(2503)]
    assert [each.key for each in sorted_on_disk(pages(keys, 999), after="00100")] == sorted(keys)[101:]


@pytest.mark.parametrize("taken", [0, 1, 3])
def test_the_file_is_gone_with_the_iterator(folder: Path, taken: int) -> None:
    found = sorted_on_disk(pages(["c", "b", "a"]), after="")
    for _ in range(taken):
        next(found)
    assert len(list(folder.iterdir())) == (1 if taken else 0)
    found.close()  # type: ignore[attr-defined]
    assert list(folder.iterdir()) == []


def test_the_file_is_gone_where_a_page_fails(folder: Path) -> None:
    def failing() -> Iterator[Page]:
        yield from pages(["b", "a"])
        raise RuntimeError

    with pytest.raises(RuntimeError):
        list(sorted_on_disk(failing(), after=""))
    assert list(folder.iterdir()) == []


def test_without_a_folder_for_the_file_it_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "missing"))
    with pytest.raises(OSError):
        list(sorted_on_disk(pages(["a"]), after=""))


def test_where_the_disk_is_full_it_says_so(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    connect = sqlite3.connect

    def connect_to_a_small_disk(*args: Any, **more: Any) -> sqlite3.Connection:
        file = connect(*args, **more)
        file.execute("PRAGMA max_page_count=16")
        return file

    monkeypatch.setattr(sqlite3, "connect", connect_to_a_small_disk)
    with pytest.raises(OSError, match=r"listing.*full"):
        list(sorted_on_disk(pages([f"{number:099d}" for number in range(2000)]), after=""))
    assert list(folder.iterdir()) == []


def test_nothing_sorted_is_nothing(folder: Path) -> None:
    assert list(sorted_on_disk([], after="")) == []


SORT_MANY = """
import re, sys
from pathlib import Path
from webhook.listing import Listed, Page, sorted_on_disk

def pages(count):
    for start in range(0, count, 1000):
        numbers = ((start + at) * 7919 % count for at in range(1000))
        yield Page([Listed(f"folder/with/a/name/{n:050d}", n, "e" * 32, "t" * 24) for n in numbers], "t")

def sort(count):
    last, seen = "", 0
    for each in sorted_on_disk(pages(count), after=""):
        assert each.key > last
        last, seen = each.key, seen + 1
    assert seen == count
    return int(re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1])

few = sort(10_000)
print(sort(300_000) - few)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is read from /proc")
def test_memory_stays_bounded_however_many_keys_there_are(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", SORT_MANY],
        capture_output=True,
        text=True,
        timeout=BOUND_S * 4,
        check=False,
        env={"TMPDIR": str(tmp_path), "PYTHONPATH": str(Path(__file__).parents[2])},
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 16 * 1024, "kB more for thirty times the keys, which alone are above 100 MB"


# ── page by page ─────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def reader() -> Iterator[ThreadPoolExecutor]:
    """A thread to read ahead."""
    with ThreadPoolExecutor(1) as pool:
        yield pool


class Asked:
    """Pages by token: "" leads to "1", that to "2", and so on; each can be held back, or fail."""

    def __init__(self, count: int, *, fails_at: str | None = None) -> None:
        self.last = count - 1
        self.fails_at = fails_at
        self.tokens: list[str] = []
        self.came = threading.Semaphore(0)

    def __call__(self, token: str) -> Page:
        self.tokens.append(token)
        self.came.release()
        if token == self.fails_at:
            raise RuntimeError(token)
        number = int(token or 0)
        return Page(objects([f"{number}"]), str(number + 1) if number < self.last else "")


@pytest.mark.parametrize("count", [1, 2, 5])
def test_all_pages_come_in_order_each_asked_for_once(reader: ThreadPoolExecutor, count: int) -> None:
    ask = Asked(count)
    assert [page.objects[0].key for page in walk(ask, reader)] == [str(number) for number in range(count)]
    assert ask.tokens == ["", *(str(number) for number in range(1, count))]


def test_the_next_page_is_read_while_this_one_is_worked_on_and_no_more(reader: ThreadPoolExecutor) -> None:
    ask = Asked(5)
    with closing(walk(ask, reader)) as walked:
        for number in range(1, 4):
            next(walked)
            for _ in range(2 if number == 1 else 1):
                assert ask.came.acquire(timeout=BOUND_S)
            reader.submit(lambda: None).result(BOUND_S)  # nothing else stands in its line
            assert len(ask.tokens) == number + 1


@pytest.mark.parametrize("fails_at", ["", "1", "3"])
def test_the_error_of_a_page_comes_after_the_pages_before_it(
    reader: ThreadPoolExecutor, fails_at: str
) -> None:
    found = []
    with pytest.raises(RuntimeError, match=f"^{fails_at}$"):
        for page in walk(Asked(5, fails_at=fails_at), reader):
            found.append(page.objects[0].key)  # noqa: PERF401 - what came before the error counts
    assert found == [str(number) for number in range(int(fails_at or 0))]


def test_who_stops_in_the_middle_asks_for_nothing_more(reader: ThreadPoolExecutor) -> None:
    ask = Asked(5)
    walked = walk(ask, reader)
    next(walked)
    walked.close()  # type: ignore[attr-defined]
    reader.submit(lambda: None).result(BOUND_S)
    assert ask.tokens in ([""], ["", "1"])
