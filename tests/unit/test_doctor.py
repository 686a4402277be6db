"""The doctor's parts that need no server: its report, its keys, and what it reads of MinIO's words."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any

import pytest
from minio.notificationconfig import PrefixFilterRule, QueueConfig, SuffixFilterRule

from scripts import doctor, doctor_report
from scripts.command_line import Failure, Screen
from scripts.doctor_event import probe_key
from scripts.doctor_ledger import Tables, say_skew, say_tables
from scripts.doctor_report import Bound, Level, Report, mend_of
from scripts.doctor_source import _say_binding, _say_targets, _states, _targets, _tells_all
from scripts.doctor_target import variables_of
from webhook.errors import Place, StoreDenied
from webhook.probes import FOLDER
from webhook.rules import Rule

EVENTS = ["s3:ObjectCreated:*", "s3:ObjectRemoved:*"]
PLACE = Place(side="target", operation="HeadBucket", bucket="b")


@pytest.fixture
def report() -> Report:
    made = Report(Screen(as_json=True), secrets=["s3cr3t", ""])
    made.begin("part")
    return made


def said(capsys: pytest.CaptureFixture[str]) -> list[dict[str, Any]]:
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def rule(**terms: Any) -> Rule:
    return Rule(name="r", source_bucket="s", target_bucket="t", **terms)


# ── the report ───────────────────────────────────────────────────────────────────────────────────────────


def test_a_check_that_fails_is_said_and_hides_no_other(
    report: Report, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(_: Bound) -> None:
        raise StoreDenied("is not there", PLACE, hint="Make it.")

    def surprise(_: Bound) -> None:
        raise ZeroDivisionError("by s3cr3t")

    assert report.do("first", fail) is None
    assert report.do("second", surprise) is None
    assert report.do("third", lambda _: 3) == 3
    first, second = said(capsys)
    assert first == {
        "part": "part",
        "level": "wrong",
        "text": "first: target HeadBucket 'b': is not there",
        "mend": "Make it.",
    }
    assert "s3cr3t" not in second["text"]
    assert "ZeroDivisionError" in second["text"]
    assert report.end() == 1


def test_a_check_that_hangs_is_given_up_and_may_write_no_more(
    report: Report, capsys: pytest.CaptureFixture[str]
) -> None:
    over, writes = threading.Event(), []

    def hang(bound: Bound) -> None:
        over.wait(60)
        bound.check()
        writes.append("something")

    timer = threading.Timer(0.5, over.set)
    timer.start()
    assert report.do("waiting", hang, bound_s=0.2) is None
    timer.join()
    (line,) = said(capsys)
    assert line["text"] == "waiting: not done within 0 s"
    assert writes == []


def test_a_check_that_does_not_end_at_all_holds_nothing_up(
    report: Report, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor_report, "END_BOUND_S", 0.1)
    over = threading.Event()
    try:
        assert report.do("waiting", lambda _: over.wait(60), bound_s=0.1) is None
        assert report.do("another", lambda _: 3) == 3
    finally:
        over.set()
    (line,) = said(capsys)
    assert line["level"] == "wrong"


@pytest.mark.parametrize(
    ("level", "code"), [(Level.FINE, 0), (Level.NOTE, 0), (Level.SKIPPED, 0), (Level.WRONG, 1)]
)
def test_only_what_is_wrong_is_told_by_the_exit_status(report: Report, level: Level, code: int) -> None:
    report.say(level, "so it is")
    assert report.end() == code


def test_no_line_shows_a_secret_and_none_a_control_character(capsys: pytest.CaptureFixture[str]) -> None:
    made = Report(Screen(as_json=False), secrets=["s3cr3t"])
    made.begin("part")
    made.wrong("the key s3cr3t\x1b[31m is wrong", "Change s3cr3t.")
    printed = capsys.readouterr().out
    assert "s3cr3t" not in printed
    assert "\x1b" not in printed
    assert "✘ the key ***" in printed
    assert "→ Change ***." in printed


@pytest.mark.parametrize(
    ("code", "status", "mend"),
    [
        ("SignatureDoesNotMatch", 403, "Correct TARGET_A_B_SECRET_KEY."),
        ("InvalidAccessKeyId", 403, "Correct TARGET_A_B_ACCESS_KEY."),
        ("NoSuchBucket", 404, "make it"),
        ("AccessDenied", 403, "hint config/policies/aws-target.json has all that are needed."),
        ("AllAccessDisabled", 403, "hint"),
    ],
)
def test_what_is_wrong_with_a_store_leads_to_the_setting_that_mends_it(
    code: str, status: int, mend: str
) -> None:
    error = StoreDenied("no", PLACE, store_code=code, status=status, hint="hint")
    assert mend_of(error, variables_of("a-b"), "make it") == mend


# ── options ──────────────────────────────────────────────────────────────────────────────────────────────


def test_parts_are_looked_at_in_their_order_whatever_the_options_say() -> None:
    assert doctor.read_options(["--only", "work, source"]).only == ("source", "work")
    assert doctor.read_options([]).only == doctor.PARTS


@pytest.mark.parametrize("arguments", [["--only", "nonsense"], ["--only", ","], ["--unknown"], ["more"]])
def test_wrong_use_ends_with_two(arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        doctor.read_options(arguments)
    assert ended.value.code == 2


# ── keys of our own ──────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    "terms",
    [
        {},
        {"prefix": "a/"},
        {"suffix": ".jpg"},
        {"prefix": "a/", "suffix": ".jpg", "include": ("*/2026/??/*",)},
        {"include": ("*.png", "*.jpg"), "exclude": ("tmp/*",)},
        {"include": ("photos/*",)},
    ],
)
def test_a_key_of_our_own_is_one_that_the_rule_wants(terms: dict[str, Any]) -> None:
    key = probe_key(rule(**terms))
    assert key is not None
    assert rule(**terms).wants(key)
    assert FOLDER in key
    assert key != probe_key(rule(**terms)), "no two are alike"


@pytest.mark.parametrize(
    "terms", [{"include": ("one.txt",)}, {"exclude": ("*",)}, {"exclude": (f"*{FOLDER}*",)}]
)
def test_where_a_rule_wants_no_key_of_ours_there_is_none(terms: dict[str, Any]) -> None:
    assert probe_key(rule(**terms)) is None


# ── MinIO's words ────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("events", "prefix", "suffix", "terms", "tells"),
    [
        (EVENTS, "", "", {}, True),
        ([*EVENTS, "s3:ObjectAccessed:*"], "", "", {}, True),
        (EVENTS[:1], "", "", {}, False),
        (EVENTS, "a/", "", {}, False),
        (EVENTS, "a/", "", {"prefix": "a/b/"}, True),
        (EVENTS, "", ".jpg", {}, False),
        (EVENTS, "", ".jpg", {"suffix": ".jpg"}, True),
    ],
)
def test_a_binding_is_whole_where_it_tells_of_all_that_the_rules_want(
    events: list[str], prefix: str, suffix: str, terms: dict[str, Any], tells: bool
) -> None:
    queue = QueueConfig(
        queue="arn:minio:sqs::X:webhook",
        events=events,
        prefix_filter_rule=PrefixFilterRule(prefix) if prefix else None,
        suffix_filter_rule=SuffixFilterRule(suffix) if suffix else None,
    )
    assert _tells_all(queue, [rule(**terms)]) is tells


def test_targets_are_read_as_minio_stores_them_and_as_its_environment_has_them() -> None:
    stored = """\
notify_webhook enable=off endpoint= auth_token= queue_limit=0 queue_dir=
notify_webhook:REPLICATOR_NOW endpoint=http://here:8000/minio/events auth_token=t queue_dir= queue_limit=0
# MINIO_NOTIFY_WEBHOOK_ENDPOINT_REPLICATOR_QUEUE=http://here:8000/minio/events
# MINIO_NOTIFY_WEBHOOK_QUEUE_DIR_REPLICATOR_QUEUE="/data/.events"
"""
    found = _targets(stored)
    assert found["REPLICATOR_NOW"]["queue_dir"] == ""
    assert found["REPLICATOR_QUEUE"] == {
        "endpoint": "http://here:8000/minio/events",
        "queue_dir": "/data/.events",
    }


def test_which_targets_are_live_is_found_wherever_the_server_puts_it() -> None:
    told = {
        "mode": "online",
        "services": {
            "notifications": [
                {"webhook": [{"REPLICATOR_NOW": {"status": "online"}}, {"OTHER": {"status": "offline"}}]},
                {"webhook": [{"REPLICATOR_QUEUE": {"status": "offline"}}]},
            ]
        },
    }
    assert dict(_states(told)) == {"REPLICATOR_NOW": "online", "REPLICATOR_QUEUE": "offline"}


@pytest.mark.parametrize(
    ("ids", "levels"),
    [
        (("REPLICATOR_NOW", "REPLICATOR_QUEUE"), ["fine"]),
        (("REPLICATOR_NOW",), ["wrong"]),
        (("OTHER",), ["fine", "note"]),
        (("A", "B"), ["fine"]),
        ((), []),
    ],
)
def test_a_bucket_is_bound_to_both_of_our_targets_or_to_two_of_somebodys_own(
    report: Report, capsys: pytest.CaptureFixture[str], ids: tuple[str, ...], levels: list[str]
) -> None:
    queues = [QueueConfig(queue=f"arn:minio:sqs::{each}:webhook", events=EVENTS) for each in ids]
    assert _say_binding("bucket", queues, [rule()], report) is bool(ids)
    assert [line["level"] for line in said(capsys)] == levels


def test_the_target_of_the_guarantee_must_have_a_queue(
    report: Report, capsys: pytest.CaptureFixture[str]
) -> None:
    endpoint = {"endpoint": "http://here:8000/minio/events", "auth_token": "t0ken"}
    _say_targets({"REPLICATOR_QUEUE": endpoint, "OTHER": endpoint}, report)
    shown, wrong = said(capsys)
    assert (shown["level"], wrong["level"]) == ("fine", "wrong")
    assert "queue_dir" in wrong["text"]
    assert "t0ken" not in str(shown)
    _say_targets({"REPLICATOR_QUEUE": {**endpoint, "queue_dir": "/data/.events"}}, report)
    assert [line["level"] for line in said(capsys)] == ["fine"]


# ── clocks, and the ledger's tables ──────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("ahead_s", "exact_s", "level"),
    [
        (0.0, 1.0, "fine"),
        (-5.5, 1.0, "fine"),
        (30.0, 1.0, "note"),
        (-30.0, 1.0, "note"),
        (3600.0, 1.0, "wrong"),
    ],
)
def test_clocks_may_differ_a_little(
    report: Report, capsys: pytest.CaptureFixture[str], ahead_s: float, exact_s: float, level: str
) -> None:
    say_skew(report, "its clock", ahead_s, exact_s=exact_s)
    (line,) = said(capsys)
    assert (line["level"], line["skew_s"]) == (level, ahead_s)
    assert level == "fine" or ("ahead of" in line["text"]) == (ahead_s > 0)


@pytest.mark.parametrize(
    ("facts", "usable", "mend"),
    [
        ({"exists": True, "found": "0004", "wanted": "0004"}, True, ""),
        ({"exists": True, "found": "0003", "wanted": "0004"}, False, "newest release"),
        ({"exists": True, "found": "0003 (half moved)", "wanted": "0003"}, False, "move_ledger"),
        ({"exists": True, "found": None, "wanted": "0004"}, False, "make run"),
        ({"exists": False, "found": None, "wanted": "0004"}, False, "make run"),
    ],
)
def test_a_ledger_of_another_release_is_left_alone_and_the_way_out_is_said(
    report: Report, capsys: pytest.CaptureFixture[str], facts: dict[str, Any], usable: bool, mend: str
) -> None:
    tables = Tables(place="sqlite:///x.db", **facts)
    say_tables(tables, report)
    (line,) = said(capsys)
    assert tables.are_usable is usable
    assert line["level"] == ("fine" if usable else "wrong")
    assert mend in line["mend"]


def test_a_failure_of_the_scripts_is_said_in_its_own_words(
    report: Report, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    def fail(_: Bound) -> None:
        raise Failure(f"nothing at {tmp_path}")

    report.do("looking", fail)
    assert said(capsys)[0]["text"] == f"looking: nothing at {tmp_path}"
