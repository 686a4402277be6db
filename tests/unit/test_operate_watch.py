"""The live view of scripts/operate.py: what it shows on a small terminal, and when nothing answers."""

from __future__ import annotations

import io
from typing import Any

import pytest
from rich.console import Console

from scripts import operate_watch
from scripts.command_line import Failure
from scripts.operate_watch import Rates, View
from webhook.entries import LANES, STATES
from webhook.sweeps import COUNTS

AT = "2026-11-24T23:59:59.000Z"


def status(*, rules: int = 1, workers: int = 1, failed: int = 0, objects: int = 0) -> dict[str, Any]:
    """A status of the service, as far as it is shown."""
    counts = {state: dict.fromkeys(LANES, 0) for state in STATES}
    counts["failed"]["live"] = failed
    sweep = dict.fromkeys(COUNTS, 1) | {"id": 1, "rule": "r", "prefix": "", "state": "open", "error": None}
    rule = {
        "recovery_point": AT,
        "recovery_point_by_events": AT,
        "lag_s": 0.4,
        "entries": counts,
        "last_hour": {"objects": objects, "bytes": objects * 1024, "lag_s": {"p99": 1.0}},
        "sweep": sweep,
    }
    worker = {"host": "h", "pid": 1, "threads": 16, "started_at": AT, "limits": {"filebase": 7}}
    named = {f"rule-{number}": rule for number in range(rules)}
    bad = {"ok": False, "text": "Behind since then: 1 object failed.", "action": "retry"}
    return {
        "summary": [{**bad, "rule": None}, *({**bad, "rule": name} for name in named)],
        "entries": counts,
        "workers": [worker] * workers,
        "rules": named,
    }


def failure(key: str, ended_at: float) -> dict[str, Any]:
    """A failed entry, as far as it is shown."""
    return {"key": key, "error": "no", "attempts_made": [{"ended_at": ended_at}]}


def drawn(view: View, width: int = 80) -> list[str]:
    """The lines on the screen."""
    console = Console(file=io.StringIO(), width=width, height=24, markup=False, highlight=False)
    with console.capture() as captured:
        console.print(view.picture())
    return captured.get().splitlines()


def view_of(*answers: Any, failed: tuple[dict[str, Any], ...] = ()) -> View:
    """A view of a service that gives these answers in turn; an exception is raised."""
    left = list(answers)

    def look() -> dict[str, Any]:
        answer = left.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return dict(answer)

    return View(look=look, failures=lambda: {"failures": list(failed)})


def test_all_of_it_fits_on_a_small_terminal() -> None:
    view = view_of(status(workers=9, failed=2), failed=tuple(failure(f"k{n}", n) for n in range(9)))
    view.refresh()
    lines = drawn(view)
    assert len(lines) <= 24
    assert all(len(line) <= 80 for line in lines)
    for words in (
        "Behind since",
        "scripts/operate.py failures",
        "rule-0",
        "filebase: 7",
        "and 5 more",
        "sweep 1",
    ):
        assert any(words in line for line in lines), words


def test_the_latest_failures_come_first() -> None:
    view = view_of(status(failed=3), failed=(failure("old", 1.0), failure("new", 3.0), failure("mid", 2.0)))
    view.refresh()
    assert [line.split()[1] for line in drawn(view) if line.startswith("failed ")] == ["new:", "mid:", "old:"]


def test_a_key_cannot_speak_to_the_terminal() -> None:
    view = view_of(status(failed=1), failed=(failure("a\x1b[2Jb\u202e\n", 1.0),))
    view.refresh()
    assert any("failed a\\x1b[2Jb\\u202e\\n: no" in line for line in drawn(view))


def test_a_service_that_stops_answering_is_said_so_and_what_was_seen_last_stays() -> None:
    view = view_of(status(), Failure("no answer."), Failure("still none."), status())
    view.refresh()
    view.refresh()
    first = drawn(view)
    assert "no answer." in first[0]
    assert any("rule-0" in line for line in first)
    view.refresh()
    assert drawn(view)[0] == first[0], "since when stays"
    assert "no answer." in view.line()
    view.refresh()
    assert not any("no answer." in line for line in drawn(view))


def test_a_service_that_never_answered_ends_it() -> None:
    with pytest.raises(Failure, match="no answer"):
        view_of(Failure("no answer")).refresh()


def test_throughput_is_that_of_the_last_minute() -> None:
    rates = Rates()
    assert rates.told() == "–"
    for now, objects in ((0, 100), (10, 200), (20, 300)):
        rates.add(float(now), status(objects=objects))
    assert rates.told() == "10.0 objects/s, 10.0 KiB/s"
    rates.add(30.0, status(objects=50))  # the hour's first minute has gone
    rates.add(40.0, status(objects=150))
    assert rates.told() == "7.5 objects/s, 7.5 KiB/s"
    rates.add(90.0, status(objects=150))
    assert rates.told() == "1.7 objects/s, 1.7 KiB/s", "since 30 s before, when 100 came"


def test_a_line_has_the_numbers_and_the_sentence() -> None:
    view = view_of(status(failed=2))
    view.refresh()
    assert view.line().endswith("  failed 2; –; Behind since then: 1 object failed.")


def test_failures_are_asked_for_seldom(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(operate_watch.time, "monotonic", lambda: now[0])
    asked = []
    view = view_of(*[status(failed=1)] * 3)
    view.failures = lambda: asked.append(now[0]) or {"failures": []}
    for at in (100.0, 101.0, 106.0):
        now[0] = at
        view.refresh()
    assert asked == [100.0, 106.0]
