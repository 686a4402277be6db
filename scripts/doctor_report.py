"""How scripts/doctor.py runs its checks, one after the other, and says what came of each.

A check has a time bound and never hides the others: what it raises is one more thing to say.
"""

from __future__ import annotations

import contextlib
import enum
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from rich.progress import Progress, SpinnerColumn, TextColumn

from scripts.command_line import STORE_ERRORS, Code, Failure, Screen, WrongUse
from webhook.errors import ReplicatorError, StoreError

CHECK_BOUND_S = 90.0
"""For a check of a few requests."""
END_BOUND_S = 5.0
"""A check whose time is up sends nothing more, and is waited for this long."""
T = TypeVar("T")


class Level(enum.StrEnum):
    """What is said of one thing."""

    FINE = "fine"
    NOTE = "note"  # worth knowing; nothing has to be done
    SKIPPED = "skipped"  # could not be checked
    WRONG = "wrong"  # has to be mended


MARKS = {Level.FINE: "✔", Level.NOTE: "!", Level.SKIPPED: "–", Level.WRONG: "✘"}


class TimeIsUp(ReplicatorError):
    """A check took longer than it may."""


@dataclass
class Bound:
    """The right to write for a while: see webhook.pace.Right. Thread-safe."""

    seconds: float
    _ends_at: float = field(init=False)

    def __post_init__(self) -> None:
        self._ends_at = time.monotonic() + self.seconds

    def check(self) -> None:
        """Raises TimeIsUp after the end."""
        if time.monotonic() >= self._ends_at:
            raise TimeIsUp(
                f"not done within {self.seconds:.0f} s", hint="Run this again; is it slow, or away?"
            )

    @property
    def left_s(self) -> float:
        """Seconds until then, never negative."""
        return max(0.0, self._ends_at - time.monotonic())

    def end(self) -> None:
        """Ends it now."""
        self._ends_at = time.monotonic()


class Report:
    """What was found, part by part; printed as it comes. Not for several threads at once."""

    def __init__(self, screen: Screen, *, secrets: Sequence[str]) -> None:
        """`secrets` are never printed, whoever says them."""
        self._screen = screen
        self._secrets = [each for each in secrets if each]
        self._part = ""
        self._bar: Progress | None = None
        self.counted: Counter[Level] = Counter()

    @contextlib.contextmanager
    def watched(self) -> Iterator[None]:
        """Shows on a terminal what is waited for, while the block runs."""
        with self._screen.progress(SpinnerColumn(), TextColumn("{task.description}")) as bar:
            self._bar = bar
            try:
                yield
            finally:
                self._bar = None

    def begin(self, part: str, what: str = "") -> None:
        """All that follows is said of this part."""
        self._part = part
        self._screen.line(f"{part}  {what}".rstrip())

    def fine(self, text: str, **facts: Any) -> None:
        """All is well there."""
        self.say(Level.FINE, text, **facts)

    def note(self, text: str, mend: str = "", **facts: Any) -> None:
        """Worth knowing."""
        self.say(Level.NOTE, text, mend, **facts)

    def skipped(self, text: str, mend: str = "", **facts: Any) -> None:
        """Could not be checked."""
        self.say(Level.SKIPPED, text, mend, **facts)

    def wrong(self, text: str, mend: str = "", **facts: Any) -> None:
        """Has to be mended, and how."""
        self.say(Level.WRONG, text, mend, **facts)

    def say(self, level: Level, text: str, mend: str = "", **facts: Any) -> None:
        """One line, and another on what to do about it."""
        self.counted[level] += 1
        text, mend = self._safe(text), self._safe(mend)
        said = {"part": self._part, "level": str(level), "text": text, "mend": mend}
        self._screen.result(f"  {MARKS[level]} {text}", {**said, **facts})
        for line in mend.splitlines():
            self._screen.line(f"      → {line}")

    def failed(self, what: str, error: Exception) -> None:
        """A check that ended in this error."""
        text, hint = in_words(error)
        self.wrong(f"{what}: {text}", hint)

    def do(self, what: str, check: Callable[[Bound], T], *, bound_s: float = CHECK_BOUND_S) -> T | None:
        """What a check gives; None where it failed or took too long, which is said then.

        It runs in a thread, so that Ctrl-C and the bound end the wait for it.
        """
        bound, ended, found, errors = Bound(bound_s), threading.Event(), [], []

        def run() -> None:
            try:
                found.append(check(bound))
            except Exception as error:  # noqa: BLE001 - said, whatever it is
                errors.append(error)
            ended.set()

        with self._shown(what):
            threading.Thread(target=run, name="check", daemon=True).start()
            try:
                ended.wait(bound_s)
            finally:
                bound.end()
                ended.wait(END_BOUND_S)  # not `join`: of a thread, Ctrl-C makes one that seems to have ended
        if not ended.is_set():
            errors.append(TimeIsUp(f"not done within {bound_s:.0f} s", hint="Run this again; is it away?"))
        if errors:
            self.failed(what, errors[0])
        return found[0] if found and not errors else None

    @contextlib.contextmanager
    def _shown(self, what: str) -> Iterator[None]:
        task = self._bar.add_task(f"{self._part}: {what} …") if self._bar else None
        try:
            yield
        finally:
            if self._bar and task is not None:
                self._bar.remove_task(task)

    def end(self) -> int:
        """The last line; gives the exit status."""
        wrong, notes, skipped = (self.counted[each] for each in (Level.WRONG, Level.NOTE, Level.SKIPPED))
        words = [f"{wrong} wrong" if wrong else "nothing is wrong"]
        words += [f"{notes} worth knowing"] if notes else []
        words += [f"{skipped} not checked"] if skipped else []
        self._screen.line(f"{self.counted[Level.FINE]} fine, {', '.join(words)}.")
        return Code.FAILED if wrong else Code.DONE

    def _safe(self, text: str) -> str:
        for secret in self._secrets:
            text = text.replace(secret, "***")
        return text


def mend_of(error: ReplicatorError, variables: str, missing: str) -> str:
    """What to do about a store's error. `variables`: what the names of its settings begin with; `missing`:
    what to do where the bucket is not there.
    """
    code = error.store_code if isinstance(error, StoreError) else ""
    if code == "NoSuchBucket" or (isinstance(error, StoreError) and error.status == 404):
        return missing
    if code == "AccessDenied":
        policy = "minio-source" if variables == "MINIO" else "aws-target"
        return f"{error.hint} config/policies/{policy}.json has all that are needed."
    names = {"InvalidAccessKeyId": "ACCESS_KEY", "SignatureDoesNotMatch": "SECRET_KEY"}
    return f"Correct {variables}_{names[code]}." if code in names else error.hint


def in_words(error: Exception) -> tuple[str, str]:
    """What happened, and what to do; never a stack trace."""
    if isinstance(error, ReplicatorError):
        return error.message, error.hint
    if isinstance(error, Failure | WrongUse):
        return str(error), ""
    if isinstance(error, OSError) and error.strerror:
        return f"{error.strerror}: {error.filename}" if error.filename else error.strerror, ""
    if isinstance(error, (*STORE_ERRORS, OSError)):  # their text may quote a proxy's password
        return f"no usable answer ({type(error).__name__})", "Check the endpoint in the settings."
    return f"something unforeseen: {type(error).__name__}: {error}", "Please report this."
