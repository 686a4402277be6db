"""Keys that try to be something else: a path, a header, a line of the log, a word to the terminal, a tag."""

from __future__ import annotations

import ast
import io
import json
import re
import sys
import unicodedata
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any
from urllib.parse import unquote_to_bytes

import pytest
from flask.testing import FlaskClient

from config import configure_minio
from scripts import command_line
from scripts.local_service import Replicator
from tests.acceptance.conftest import until
from tests.integration.conftest import Permit
from tests.integration.test_stores import BODY, NOTHING, md5
from tests.integration.test_wire import request_on
from tests.security.conftest import API, EVENTS, HOOK, Listen
from tests.unit.test_app import body_of, ledger_of, record
from tests.unit.test_pages import end
from webhook.entries import Buried, Claim
from webhook.errors import StoreError
from webhook.listing import Listed, Page, sorted_on_disk
from webhook.target import Target

ROOT = Path(command_line.__file__).parents[1]
SPEAKING = {
    "colours": "a\x1b[31;5mred",
    "a title": "a\x1b]0;title\x07b",
    "a link": "a\x1b]8;;http://evil.example\x1b\\b\x1b]8;;\x1b\\",
    "the clipboard": "a\x1b]52;c;ZXZpbA==\x07",
    "one byte": "a\x9b31mred\x90\x9d0;t\x9c",
    "lines": "a\n2026-01-01T00:00:00Z [info] settled key='forged'\r\x0b\x0c\x85\u2028\u2029b",
    "direction": "photo\u202egpj.exe\u2066\u2069\u200f\u061c",
    "nothing": "a\u200b\u200d\ufeff\u00ad\U000e0041b",
    "markup": "[bold red]a[/] [link=http://evil.example]b[/link] :smile: [not closed",
    "tags": "</title><script>alert(1)</script><img src=x onerror=alert(1)>\"'&lt;",
    "templates": "{{ 7*7 }}{% raw %}${7*7}%s%(key)s{0}",
}
keys = pytest.mark.parametrize("key", SPEAKING.values(), ids=list(SPEAKING))


def unprintable(text: str) -> set[str]:
    """What a terminal might obey, or not show; line ends apart."""
    return {char for char in text if not char.isprintable() and char != "\n"}


# ── the log ──────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("which", ["served", "open_here"])
def test_no_key_speaks_through_the_log(request: pytest.FixtureRequest, which: str) -> None:
    """As text, and as JSON: whatever is done with the key, each line of the log is one, and can be read."""
    server: Replicator = request.getfixturevalue(which)
    for key in SPEAKING.values():
        answer = server.post(EVENTS, data=body_of(record(key, "source")), headers=HOOK)
        assert answer.json()["accepted"] == 1
    server.post(EVENTS, data=body_of(record("\x1b\0", "source")), headers=HOOK)

    def is_told() -> bool:
        log = server.log_path.read_text()
        return log.count("will retry") >= len(SPEAKING) and "quarantined" in log

    until(is_told, bound_s=30, what="each attempt has failed, and says so")
    log = server.log_path.read_text()
    assert unprintable(log) == set()
    begin = '{"' if which == "open_here" else "20"
    assert all(line.startswith(begin) for line in log.splitlines())
    assert not any(line.startswith("2026-01-01T00:00:00Z") for line in log.splitlines()), "forged"


# ── the pages ────────────────────────────────────────────────────────────────────────────────────────


@keys
def test_no_key_and_no_store_s_words_speak_through_a_page(client: FlaskClient, key: str) -> None:
    def failing(claim: Claim) -> Buried:
        return Buried(claim=claim, error_code="target_refused", error=f"it said {key}")

    end(client, key, failing)
    client.post(EVENTS, data=body_of(record(key + "\0")))
    client.get("/")
    where = {"rule": "default", "key": key}
    paths = [("/", {}), ("/failures", {}), ("/quarantine", {}), ("/object", where), ("/objects", {"q": key})]
    paths += [
        ("/failures", {"reason": key}),
        ("/sign-in", {"back": key}),
        ("/object", {"rule": key, "key": "a"}),
    ]
    for path, query in paths:
        shown = client.get(path, query_string=query, follow_redirects=True).text
        asked_for = re.sub(
            r'value="[^"]*"', "", shown
        )  # what was typed into a field is in it again as it was
        for char in unprintable(asked_for):
            assert unicodedata.category(char) == "Zs", (path, char)
        assert "<script>" not in shown
        assert "<img" not in shown


# ── the scripts ──────────────────────────────────────────────────────────────────────────────────────


class Terminal(io.StringIO):
    """What a person would see."""

    def isatty(self) -> bool:
        return True


@keys
@pytest.mark.parametrize("has_bar", [False, True])
def test_no_key_speaks_to_the_terminal(monkeypatch: pytest.MonkeyPatch, key: str, has_bar: bool) -> None:
    """Nor does it vanish as rich's markup: it is there, letter by letter."""
    seen = Terminal(), Terminal()
    for name, stream in zip(("stdout", "stderr"), seen, strict=True):
        monkeypatch.setattr(sys, name, stream)
    monkeypatch.setenv("COLUMNS", "500")
    monkeypatch.setenv("TERM", "dumb")
    screen = command_line.Screen(as_json=False)
    if has_bar:
        with screen.progress("working"):
            print_all(screen, key)
    else:
        print_all(screen, key)
    for shown in (stream.getvalue() for stream in seen):
        ours = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]|\r", "", shown) if has_bar else shown  # rich's own, of the bar
        assert unprintable(ours) == set()
        assert command_line.printable(key) in shown.replace("\n", "") if not has_bar else True
    told = "".join(re.sub(r"\x1b\[[0-9;?]*[A-Za-z]|\s", "", stream.getvalue()) for stream in seen)
    assert told.count(re.sub(r"\s", "", command_line.printable(key))) >= 3


def print_all(screen: command_line.Screen, key: str) -> None:
    screen.line(f"copied {key}")
    screen.result(f"copied {key}", {"key": key})
    screen.note(f"failed {key}")


PRINTS = {
    *(("command_line", name) for name in ("say", "error", "_print", "progress")),
    *(("operate_views", "console"), ("operate", "show"), ("delete_bucket", "confirm")),
}
"""All that prints, each looked at: it escapes what it prints, or prints our own words alone."""
FOR_DEVELOPERS = re.compile(r"audit|bench.*|demo.*|local_.*|screenshots|mutants")


def test_nothing_is_printed_past_what_escapes_it() -> None:
    found = set()
    for path in (ROOT / "scripts").glob("*.py"):
        if FOR_DEVELOPERS.fullmatch(path.stem):
            continue
        for function in ast.walk(ast.parse(path.read_text())):
            if isinstance(function, ast.FunctionDef) and any(map(is_print, ast.walk(function))):
                found.add((path.stem, function.name))
    assert found <= PRINTS


def is_print(node: ast.AST) -> bool:
    if not isinstance(node, ast.Call):
        return False
    name = ast.unparse(node.func)
    return name in ("print", "Console") or name.endswith((".print", "stdout.write", "stderr.write"))


@keys
def test_no_answer_of_minio_speaks_through_its_set_up(capsys: pytest.CaptureFixture[str], key: str) -> None:
    configure_minio.say(f"bucket {key}")
    configure_minio.warn(f"MinIO said {key}")
    printed = capsys.readouterr()
    assert unprintable(printed.out + printed.err) == set()


# ── paths ────────────────────────────────────────────────────────────────────────────────────────────

PATHS = [
    "..",
    "../../../etc/passwd",
    "a/../../b",
    "/etc/passwd",
    "//host/share",
    "a//b",
    "./a",
    "a/.",
    "~root/x",
]
PATHS += [
    "C:\\windows",
    "\\\\host\\share",
    "a\\..\\b",
    "file:///etc/passwd",
    "a?b#c",
    "a%2e%2e%2fb",
    "%00",
    "a;b",
]
PATHS += ["a\r\nHost: evil\r\n\r\nGET / HTTP/1.1", "a HTTP/1.1\r\nX: y", "a b", "é\u202e", "k" * 1024, "a\0b"]


@pytest.mark.parametrize("key", PATHS, ids=ascii)
def test_a_key_is_asked_for_at_the_target_exactly_as_it_is_or_not_at_all(listening: Listen, key: str) -> None:
    heads: list[bytes] = []

    def talk(connection: Any, _number: int) -> None:
        while request := request_on(connection):
            heads.append(request)
            connection.sendall(b'HTTP/1.1 200 OK\r\nContent-Length: 0\r\nETag: "e"\r\n\r\n')

    settings = listening(talk).settings
    origin = settings.endpoint_url.encode()
    with closing(Target(settings)) as target:
        for call in (
            lambda: target.put("bucket", key, BODY, md5(BODY), NOTHING, permit=Permit()),
            lambda: target.delete("bucket", key, permit=Permit()),
            lambda: target.abort_upload("bucket", key, "upload"),
        ):
            try:
                call()
            except StoreError:
                pass
    for head in heads:
        line, *headers = head.split(b"\r\n")
        _method, where, version = line.split(b" ")
        path = where.partition(b"?")[0].removeprefix(origin)  # boto3 names it
        assert version == b"HTTP/1.1"
        assert path.startswith(b"/bucket/")
        assert unquote_to_bytes(path.removeprefix(b"/bucket/")).decode(errors="surrogateescape") == key
        assert [each.lower() for each in headers].count(b"host: evil") == 0
    assert heads


@pytest.fixture
def opened_paths() -> Iterator[list[str]]:
    """All that this process opens, makes or removes in the file system while the test runs."""
    found: list[str] = []
    is_on = [True]

    def hear(event: str, args: tuple[Any, ...]) -> None:
        if is_on and event.startswith(("open", "os.", "shutil.", "sqlite3.connect", "subprocess", "glob")):
            found.extend(str(each) for each in args if isinstance(each, str | bytes | Path))

    sys.addaudithook(hear)
    yield found
    is_on.clear()  # a hook stays for ever


def test_no_key_ever_names_a_file(client: FlaskClient, opened_paths: list[str]) -> None:
    marks = [f"mark-{number}-{key}" for number, key in enumerate(PATHS[:-1])]
    marks += [f"../mark-{number}" for number in range(3)]
    client.post(EVENTS, data=body_of(*(record(key) for key in marks)))
    for key in marks:
        if ledger_of(client).entry("default", key):
            client.post("/v1/replicate", json={"s3_key": key})
        client.get("/object", query_string={"rule": "default", "key": key})
        client.get("/objects", query_string={"q": key})
    listed = [Listed(key, 1, "e", "") for key in marks]
    assert len(list(sorted_on_disk([Page(listed, "")], after=""))) == len(marks)
    assert any("ledger.db" in path or "listing" in path for path in opened_paths), "the hook hears of files"
    assert [path for path in opened_paths if "mark-" in path] == []


def test_a_key_that_no_ledger_could_hold_is_refused_clearly(client: FlaskClient) -> None:
    for key in ("", "a\0b", "\udc80", "k" * 1025):
        answer = client.post("/v1/replicate", data=json.dumps({"s3_key": key}), headers=API)
        assert answer.status_code == 400
        assert "s3_key cannot be used" in answer.json["error"]["message"]
