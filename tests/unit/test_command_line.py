"""What the scripts for people share."""

from __future__ import annotations

import argparse
import json
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import minio
import pytest
import urllib3

from scripts import ask_service, command_line, move_ledger
from scripts.command_line import Code, Failure, Interrupted, NoBucket, Screen, Store, WrongUse
from webhook.errors import SettingsError
from webhook.settings import StoreSettings


@pytest.fixture
def variables(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., None]:
    """Makes these variables the only ones of the scripts, in a folder of its own."""
    monkeypatch.chdir(tmp_path)

    def given(**values: str) -> None:
        monkeypatch.setattr("os.environ", values)

    return given


@pytest.fixture
def store() -> Iterator[Store]:
    settings = StoreSettings(
        endpoint_url="http://127.0.0.1:9", access_key="key-s3cr3t", secret_key="s3cr3t-word", region="r"
    )
    made = Store("source", settings)
    yield made
    made.client._http.clear()


def s3_error(code: str, message: str = "") -> minio.S3Error:
    response = urllib3.HTTPResponse(status=400)
    return minio.S3Error(
        response=response, code=code, message=message, resource="", request_id="", host_id=""
    )


# ── what is printed ──────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a b/ü+ 🚀.txt", "a b/ü+ 🚀.txt"),
        ("\x1b[31mred", "\\x1b[31mred"),
        ("a\nb\r\tc\x7f", "a\\nb\\r\\tc\\x7f"),
        ("\u202etxt.exe", "\\u202etxt.exe"),
        ("\x9b31m", "\\x9b31m"),
        ("not\udcffutf8", "not\\udcffutf8"),
    ],
)
def test_nothing_that_a_terminal_obeys_is_printed(text: str, shown: str) -> None:
    assert command_line.printable(text) == shown


@pytest.mark.parametrize(
    ("size_bytes", "shown"),
    [(0, "0 B"), (1023, "1023 B"), (1024, "1.0 KiB"), (1536 * 1024, "1.5 MiB"), (3 << 40, "3.0 TiB")],
)
def test_sizes_are_shown_in_units(size_bytes: int, shown: str) -> None:
    assert command_line.in_units(size_bytes) == shown


def test_sizes_are_read_with_and_without_units() -> None:
    texts = ("0", "4096", "4096B", "4KiB", "1 MiB", "2GiB")
    assert [command_line.size(text) for text in texts] == [0, 4096, 4096, 4096, 1 << 20, 2 << 30]


@pytest.mark.parametrize("text", ["", "4kb", "-1", "1.5MiB", "KiB", "٣", "9" * 30])
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match="4KiB"):
        command_line.size(text)


@pytest.mark.parametrize("text", ["0", "65", "x", "", "1e3", "٣"])
def test_numbers_have_bounds(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match="from 1 to 64"):
        command_line.whole(1, 64)(text)
    assert command_line.whole(1, 64)("64") == 64


def test_a_screen_prints_json_or_lines(capsys: pytest.CaptureFixture[str]) -> None:
    for as_json in (True, False):
        screen = Screen(as_json=as_json)
        screen.result("for\x1bpeople", {"key": "a\x7f\x1b\udcff"})
        screen.line("more")
        screen.note("beside\x1b")
    out, err = capsys.readouterr()
    first, *rest = out.splitlines()
    assert first.isprintable()
    assert json.loads(first) == {"key": "a\x7f\x1b\udcff"}
    assert rest == ["for\\x1bpeople", "more"]
    assert err == "beside\\x1b\n" * 2


def test_progress_draws_nothing_where_nobody_looks(capsys: pytest.CaptureFixture[str]) -> None:
    screen = Screen(as_json=False)
    with screen.progress("{task.description}") as progress:
        progress.advance(progress.add_task("working", total=3), 2)
        screen.line("a result")
    assert capsys.readouterr() == ("a result\n", "")


# ── settings ─────────────────────────────────────────────────────────────────────────────────────────


def test_the_source_needs_no_setting_of_a_target(variables: Callable[..., None], tmp_path: Path) -> None:
    tmp_path.joinpath(".env").write_text("MINIO_ENDPOINT=https://Host:443\nMINIO_ACCESS_KEY=from-file\n")
    variables(MINIO_ACCESS_KEY="from-environment", MINIO_SECRET_KEY="s3cr3t")
    found = command_line.source_settings()
    assert (found.endpoint_url, found.access_key, found.region) == (
        "https://host",
        "from-environment",
        "us-east-1",
    )
    assert "s3cr3t" not in repr(found)


def test_what_the_source_lacks_is_said_at_once(variables: Callable[..., None]) -> None:
    variables(MINIO_ENDPOINT="host:9000", MINIO_ACCESS_KEY="s3cr3t")
    with pytest.raises(SettingsError) as caught:
        command_line.source_settings()
    endpoint, key = caught.value.problems
    assert endpoint.startswith("MINIO_ENDPOINT must be")
    assert key == "MINIO_SECRET_KEY is missing"


def test_scripts_read_secrets_from_files_as_the_service_does(
    variables: Callable[..., None], tmp_path: Path
) -> None:
    tmp_path.joinpath("key").write_text("s3cr3t\n")
    keys = {"MINIO_ACCESS_KEY_FILE": "key", "MINIO_SECRET_KEY_FILE": "key", "API_TOKEN_FILE": "key"}
    variables(MINIO_ENDPOINT="http://host", **keys)
    assert command_line.source_settings().secret_key == "s3cr3t"
    assert ask_service.read_service(None).token == "s3cr3t"
    variables(API_TOKEN_FILE="key", DATABASE_URL_FILE="key", OLD_DATABASE_URL="postgresql://a/b")
    with pytest.raises(WrongUse, match=r"the new ledger's URL must be like"):  # and does not repeat it
        move_ledger.main([])
    variables(API_TOKEN_FILE="none", DATABASE_URL_FILE="none")
    for read in (lambda: ask_service.read_service(None), lambda: move_ledger.main([])):
        with pytest.raises(SettingsError, match="none' cannot be read: No such file"):
            read()


def test_a_bucket_is_known_where_the_settings_name_one(variables: Callable[..., None]) -> None:
    variables(MINIO_BUCKET=" photos ")
    assert command_line.source_bucket() == "photos"


@pytest.mark.parametrize("value", ["", "a-bucket, b-bucket", "photos-*"])
def test_any_other_bucket_has_to_be_given(value: str, variables: Callable[..., None]) -> None:
    variables(MINIO_BUCKET=value)
    with pytest.raises(WrongUse, match="--bucket"):
        command_line.source_bucket()


def test_an_env_file_that_is_no_text_is_wrong_use(variables: Callable[..., None], tmp_path: Path) -> None:
    tmp_path.joinpath(".env").write_bytes(b"A=\xff\xfe")
    variables()
    for read in (command_line.environment, command_line.source_settings, command_line.all_settings):
        with pytest.raises(WrongUse, match="UTF-8"):
            read()


@pytest.mark.parametrize(
    ("url", "fits"),
    [
        ("http://localhost:8000", True),
        ("https://[::1]:8000/below", True),
        ("localhost:8000", False),
        ("http://user:word@host", False),
        ("http://host:99999", False),
        ("http://host?query", False),
        ("ftp://host", False),
        ("http://", False),
    ],
)
def test_an_address_is_scheme_and_host(url: str, fits: bool) -> None:
    assert command_line.is_address(url) is fits


def test_https_goes_through_the_proxy_that_the_environment_names(variables: Callable[..., None]) -> None:
    variables(https_proxy="proxy:3128", no_proxy="inside.example")
    assert command_line.proxy_for("https://host") == "http://proxy:3128"
    assert command_line.proxy_for("https://inside.example:9000") is None
    assert command_line.proxy_for("http://host") is None


def test_the_proxys_login_is_sent_to_the_proxy_alone(variables: Callable[..., None]) -> None:
    variables(https_proxy="http://me:wo%20rd@proxy:3128")
    settings = StoreSettings(endpoint_url="https://host", access_key="a", secret_key="b", region="r")
    pool = Store("source", settings).client._http
    assert isinstance(pool, urllib3.ProxyManager)
    assert pool.proxy_headers["proxy-authorization"] == "Basic bWU6d28gcmQ="
    assert not pool.headers


# ── words for errors ─────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (
            s3_error("InvalidAccessKeyId", "No key-s3cr3t here."),
            ["InvalidAccessKeyId: No *** here.", "Check"],
        ),
        (s3_error("Strange"), ["The source answered Strange."]),
        (minio.error.InvalidResponseError(502, "text/html", "<p>s3cr3t-word"), ["not S3's", "endpoint"]),
        (minio.error.ServerError("failed", 500), ["not S3's"]),
        (urllib3.exceptions.ConnectTimeoutError("s3cr3t-word"), ["does not answer", "ConnectTimeoutError"]),
        (urllib3.exceptions.SSLError("no"), ["SSL_CERT_FILE"]),
        (ValueError("invalid bucket name"), ["invalid bucket name"]),
    ],
)
def test_a_stores_error_is_said_without_a_secret(error: Exception, words: list[str], store: Store) -> None:
    said = store.why(error)
    assert all(word in said for word in words)
    assert "s3cr3t" not in said
    with pytest.raises(Failure, match="source"), store.asked():
        raise error


def test_a_missing_bucket_is_told_from_other_failures(store: Store) -> None:
    with pytest.raises(NoBucket), store.asked():
        raise s3_error("NoSuchBucket")


def test_some_errors_would_meet_every_other_request_too() -> None:
    same_for_all = (s3_error("SignatureDoesNotMatch"), urllib3.exceptions.HTTPError())
    for_one = (s3_error("AccessDenied"), s3_error("KeyTooLongError"), ValueError())
    assert all(map(command_line.is_hopeless, same_for_all))
    assert not any(map(command_line.is_hopeless, for_one))


# ── how a script ends ────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (Failure("the \x1bstore."), Code.FAILED, "the \\x1bstore."),
        (WrongUse("give --bucket."), Code.WRONG_USE, "give --bucket."),
        (SettingsError(["A is missing"]), Code.WRONG_USE, "A is missing"),
        (Interrupted("Until then: 3 objects."), Code.INTERRUPTED, "interrupted. Until then: 3 objects."),
        (KeyboardInterrupt(), Code.INTERRUPTED, "interrupted."),
        (PermissionError(13, "Permission denied", "a-file"), Code.FAILED, "a-file: Permission denied"),
        (BrokenPipeError(), Code.UNREAD, ""),
    ],
)
def test_an_ending_has_its_code_and_its_words(
    error: BaseException, code: Code, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    def main() -> int:
        raise error

    assert command_line._ended(main) == code
    err = capsys.readouterr().err
    assert said in err
    assert "Traceback" not in err
    assert bool(err) == bool(said)


# ── work in several threads ──────────────────────────────────────────────────────────────────────────


def test_all_work_is_done() -> None:
    done: list[int] = []
    command_line.do_all(done.append, range(100), threads=4)
    assert sorted(done) == list(range(100))


def test_work_is_taken_as_threads_become_free() -> None:
    taken: list[int] = []
    may_end = threading.Event()

    def items() -> Iterator[int]:
        for number in range(100):
            taken.append(number)
            if len(taken) == 3 * command_line.AHEAD:
                may_end.set()  # nothing was done yet, so no more was taken than may be ahead
            yield number

    command_line.do_all(lambda _: assert_set(may_end), items(), threads=3)
    assert len(taken) == 100


def assert_set(event: threading.Event) -> None:
    assert event.wait(10)


def test_the_first_failure_ends_the_work_that_is_left() -> None:
    stop = threading.Event()
    begun: list[int] = []

    def work(number: int) -> None:
        begun.append(number)
        if number == 5:
            raise Failure("no more")

    with pytest.raises(Failure, match="no more"):
        command_line.do_all(work, range(10_000), threads=2, stop=stop)
    assert stop.is_set()
    assert len(begun) < 100


def test_an_interrupt_waits_for_what_is_under_way(capsys: pytest.CaptureFixture[str]) -> None:
    stop = threading.Event()
    ended: list[Any] = []

    def items() -> Iterator[int]:
        yield 1
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        command_line.do_all(lambda _: ended.append(stop.wait(10)), items(), threads=1, stop=stop)
    assert ended == [True]
    assert "Ctrl-C again" in capsys.readouterr().err
