"""The live view of scripts/operate.py: how it stands, drawn anew every second; q or Ctrl-C ends it."""

from __future__ import annotations

import contextlib
import os
import select
import sys
import termios
import time
import tty
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.text import Text

from scripts.command_line import Code, Failure, Screen, in_units, printable
from scripts.operate_views import console, help_for, limits, rules_table, sentences, short, sweep_line, table
from webhook.entries import STATES
from webhook.verdict import duration

WINDOW_S = 60.0
"""Over which throughput is told."""
FAILURES_EVERY_S = 5.0
FAILURES_LOOKED_AT = 100
ROWS_MAX = 4
"""Of each table: all of it must fit on 24 lines."""
KEYS_THAT_END = b"qQ\x1b\x03"

Facts = Mapping[str, Any]
Look = Callable[[], Facts]
"""Asks the service. Raises: Failure."""


@dataclass(kw_only=True)
class Rates:
    """Throughput, from what the last hour's sums grow by."""

    samples: deque[tuple[float, int, int]] = field(default_factory=deque)
    """When, objects and bytes since the sample before."""
    last: tuple[float, int, int] | None = None

    def add(self, now: float, status: Facts) -> None:
        """Notes the sums of a status."""
        hours = [each["last_hour"] for each in status["rules"].values()]
        sums = (now, sum(each["objects"] for each in hours), sum(each["bytes"] for each in hours))
        if self.last and sums[1] >= self.last[1]:  # else the hour's first minute has just gone from them
            self.samples.append((self.last[0], sums[1] - self.last[1], max(0, sums[2] - self.last[2])))
        self.last = sums
        while self.samples and self.samples[0][0] < now - WINDOW_S:
            self.samples.popleft()

    def told(self) -> str:
        """ "12.5 objects/s, 3.1 MiB/s" """
        if not self.samples or not self.last:
            return "–"
        took_s = max(self.last[0] - self.samples[0][0], 0.001)
        objects, size = (sum(each[at] for each in self.samples) / took_s for at in (1, 2))
        return f"{objects:,.1f} objects/s, {in_units(size)}/s"


@dataclass(kw_only=True)
class View:
    """What was heard last, and how it is shown."""

    look: Look
    failures: Look
    rates: Rates = field(default_factory=Rates)
    status: Facts = field(default_factory=dict)
    failed: Sequence[Facts] = ()
    failed_at: float = -FAILURES_EVERY_S
    silent: str = ""
    """Why nothing newer was heard; "": it was."""

    def refresh(self) -> None:
        """Asks the service. Raises: Failure where it has never answered."""
        now = time.monotonic()
        try:
            self.status = self.look()
            self.rates.add(now, self.status)
            if now - self.failed_at >= FAILURES_EVERY_S:
                self.failed = self.failures()["failures"] if self.number("failed") else ()
                self.failed_at = now
            self.silent = ""
        except Failure as error:
            if not self.status:
                raise
            self.silent = self.silent or f"Since {datetime.now(UTC):%H:%M:%S}: {error}"

    def number(self, state: str) -> int:
        """How many entries there are in a state."""
        return int(sum(self.status["entries"][state].values()))

    def line(self) -> str:
        """All of it in a line."""
        at = f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}"
        if self.silent:
            return f"{at}  {self.silent}"
        states = ", ".join(f"{state} {self.number(state):,}" for state in STATES if self.number(state))
        return f"{at}  {states or 'no entries'}; {self.rates.told()}; {self.status['summary'][0]['text']}"

    def picture(self) -> RenderableType:
        """All of it on a screen."""
        parts: list[RenderableType] = []
        if self.silent:
            parts.append(Text(printable(self.silent), style="bold red"))
        for verdict, text in list(sentences(self.status))[:ROWS_MAX]:
            parts.append(Text(printable(text), style="green" if verdict["ok"] else "bold red"))
            if help_text := help_for(verdict):
                parts.append(Text(f"→ {help_text}"))
        lag_s = max((each["lag_s"] for each in self.status["rules"].values()), default=0.0)
        parts.append(Text(f"\nlast minute: {self.rates.told()}    lag: {duration(lag_s)}    q ends"))
        parts += [Text(), self._rules(), Text(), self._workers(), Text()]
        parts += [*self._sweeps(), *self._failures()]
        return Group(*parts)

    def _rules(self) -> RenderableType:
        rules = self.status["rules"]
        some = dict(sorted(rules.items(), key=lambda each: -each[1]["lag_s"])[:ROWS_MAX])
        return rules_table({**self.status, "rules": some})

    def _workers(self) -> RenderableType:
        rows = [
            [
                f"{each['host']} {each['pid']}",
                each["threads"],
                short(each["started_at"]),
                limits(each["limits"]),
            ]
            for each in self.status["workers"]
        ]
        more = [[f"and {len(rows) - ROWS_MAX} more", "", "", ""]] if len(rows) > ROWS_MAX else []
        return table("process", "threads", "since", "requests at once", rows=[*rows[:ROWS_MAX], *more])

    def _sweeps(self) -> Iterator[RenderableType]:
        swept = (each["sweep"] for each in self.status["rules"].values())
        running = [each for each in swept if each and each["state"] == "open"]
        for each in running[:ROWS_MAX]:
            yield Text(printable(sweep_line(each)))

    def _failures(self) -> Iterator[RenderableType]:
        latest = sorted(self.failed, key=lambda each: -each["attempts_made"][-1]["ended_at"])
        for each in latest[:ROWS_MAX]:
            yield Text(printable(f"failed {each['key']}: {each['error']}"), style="red", no_wrap=True)


def watch(view: View, screen: Screen, *, interval_s: float) -> Code:
    """Until somebody ends it. Raises: Failure where the service does not answer at the start."""
    with contextlib.suppress(KeyboardInterrupt):  # which is how it is meant to end
        view.refresh()
        if screen.as_json or not sys.stdout.isatty():
            _print_lines(view, screen, interval_s)
        else:
            _draw(view, console(), interval_s)
    return Code.DONE


def _print_lines(view: View, screen: Screen, interval_s: float) -> None:
    while True:
        screen.result(view.line(), {**view.status, "error": view.silent or None})
        sys.stdout.flush()
        time.sleep(interval_s)
        view.refresh()


def _draw(view: View, terminal: Console, interval_s: float) -> None:
    picture = Live(console=terminal, screen=True, auto_refresh=False, vertical_overflow="crop")
    with _keys_at_once(), picture as live:
        while True:
            live.update(view.picture(), refresh=True)
            if _is_over(interval_s):
                return
            view.refresh()


def _is_over(interval_s: float) -> bool:
    """Whether a key that ends it is pressed within that time."""
    if not sys.stdin.isatty():
        time.sleep(interval_s)
        return False
    until = time.monotonic() + interval_s
    while (left_s := until - time.monotonic()) > 0:
        if select.select([sys.stdin], [], [], left_s)[0]:
            pressed = os.read(sys.stdin.fileno(), 64)
            if not pressed or pressed[:1] in [bytes([each]) for each in KEYS_THAT_END]:
                return True
    return False


@contextlib.contextmanager
def _keys_at_once() -> Iterator[None]:
    """Keys are heard without Enter and not shown, and the terminal is as before after it."""
    if not sys.stdin.isatty():
        yield
        return
    before = termios.tcgetattr(sys.stdin)
    try:
        tty.setcbreak(sys.stdin)
        yield
    finally:
        termios.tcsetattr(sys.stdin, termios.TCSADRAIN, before)
