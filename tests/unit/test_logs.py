"""One line for each thing that happened, whatever is in it."""

from __future__ import annotations

import errno
import io
import json
import logging
import re

import pytest
import structlog

from webhook import logs

NASTY = ["a\nb", "\x1b[31mred", "\x00", "\x85\u2028\u2029", "\r", "é🪣", "'\"\\", "\ud800", "a b=c", ""]
TEXT_LINE = re.compile(r"\d{4}-\d\d-\d\dT[\d:.]+Z \[(info|warning|error)\] (?P<event>[^=]*?)( \w+=.*)?")


def lines(capsys: pytest.CaptureFixture[str]) -> list[str]:
    """What was logged."""
    written = capsys.readouterr()
    assert written.out == ""
    assert written.err.endswith("\n")
    return written.err[:-1].split("\n")


@pytest.mark.parametrize("value", NASTY, ids=ascii)
def test_json_lines_give_every_value_back(capsys: pytest.CaptureFixture[str], value: str) -> None:
    logs.configure("json")
    structlog.get_logger("webhook.x").warning("will retry", key=value, after_s=1.5)
    (line,) = lines(capsys)
    assert line.isprintable()
    found = json.loads(line)
    assert (found["event"], found["level"], found["key"]) == ("will retry", "warning", value)
    assert found["after_s"] == 1.5
    assert found["timestamp"].endswith("Z")


@pytest.mark.parametrize("value", NASTY, ids=ascii)
def test_text_lines_escape_every_control_character(capsys: pytest.CaptureFixture[str], value: str) -> None:
    logs.configure("text")
    structlog.get_logger("webhook.x").info("settled", key=value, bytes=3)
    (line,) = lines(capsys)
    assert line.isprintable()
    match = TEXT_LINE.fullmatch(line)
    assert match is not None
    assert match["event"] == "settled"
    assert f"key={value!r}" in line
    assert "bytes=3" in line


@pytest.mark.parametrize("log_format", ["json", "text"])
def test_lines_of_libraries_look_the_same(capsys: pytest.CaptureFixture[str], log_format: str) -> None:
    logs.configure(log_format)
    logging.getLogger("gunicorn.error").info("Listening at: %s", "here")
    (line,) = lines(capsys)
    event = json.loads(line)["event"] if log_format == "json" else TEXT_LINE.fullmatch(line)["event"]
    assert event == "Listening at: here"


@pytest.mark.parametrize("value", NASTY, ids=ascii)
@pytest.mark.parametrize("log_format", ["json", "text"])
def test_lines_of_libraries_are_one_line_too(
    capsys: pytest.CaptureFixture[str], log_format: str, value: str
) -> None:
    logs.configure(log_format)
    logging.getLogger("library").warning("could not read %s", value)
    (line,) = lines(capsys)
    assert line.isprintable()


def test_an_error_s_traceback_is_within_its_json_line(capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure("json")
    structlog.get_logger("webhook.x").error("unexpected error", exc_info=ZeroDivisionError("boom"))
    (line,) = lines(capsys)
    assert "ZeroDivisionError: boom" in json.loads(line)["exception"]


def test_an_error_s_traceback_follows_its_text_line(capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure("text")
    structlog.get_logger("webhook.x").error("unexpected error", exc_info=ZeroDivisionError("boom"))
    first, *rest = lines(capsys)
    assert TEXT_LINE.fullmatch(first)
    assert rest[-1] == "ZeroDivisionError: boom"


def test_configuring_again_changes_the_format_and_repeats_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    for log_format in ("text", "json", "json"):
        logs.configure(log_format)
    structlog.get_logger("webhook.y").info("once")
    assert len(lines(capsys)) == 1


@pytest.mark.parametrize("noisy", ["botocore.credentials", "urllib3.connectionpool", "alembic.runtime"])
def test_libraries_chatter_is_left_out(capsys: pytest.CaptureFixture[str], noisy: str) -> None:
    logs.configure("text")
    logging.getLogger(noisy).info("chatter")
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("log_format", ["json", "text"])
def test_a_log_that_cannot_be_written_stops_nobody(monkeypatch: pytest.MonkeyPatch, log_format: str) -> None:
    class Full(io.StringIO):
        def write(self, _text: str) -> int:
            raise OSError(errno.ENOSPC, "no space left on device")

    monkeypatch.setattr("sys.stderr", Full())
    logs.configure(log_format)
    structlog.get_logger("webhook.x").info("settled", key="any")
    structlog.get_logger("webhook.x").error("unexpected error", exc_info=ZeroDivisionError("boom"))
