"""Conditions on writes: only what was seen is replaced, or nothing, and never what came in between.

So a process that was stopped in the middle of a write, and wakes up long after another one has taken over,
cannot put its old version over a newer one. Stores differ in what they make of conditions. What is not known
is found out, at the cost of one request; where nothing is known, the condition is sent all the same.

Source: RFC 9110, 13.1.1 and 13.1.2; Amazon S3 User Guide, "Conditional writes".
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from typing import TypeVar

import structlog

from webhook.errors import NoSuchKey, StoreError, StoreRefused, TargetChanged

T = TypeVar("T")
Send = Callable[[Mapping[str, str]], T]
"""Sends a request with these headers besides its own."""

IF_NEW, IF_MATCH = "if-none-match", "if-match"
NO_ETAG = '"00000000000000000000000000000000"'
"""Of no object."""

log = structlog.get_logger("webhook.conditions")


class Conditions:
    """What a store makes of conditions on one operation. Thread-safe."""

    def __init__(self, target: str, operation: str, *, only_new: bool | None, match: bool | None) -> None:
        """`only_new` and `match`: whether it heeds `If-None-Match: *` and `If-Match`; None: not known."""
        self.operation = operation
        self._target = target
        self._heeds = {IF_NEW: only_new, IF_MATCH: match}
        self._tried: set[str] = set()
        self._trial = threading.Lock()
        self.learned: dict[str, bool] = {}
        """Header → whether it is heeded, as far as this process has seen it."""

    @property
    def only_new(self) -> bool | None:
        """Whether nothing is replaced where nothing is to be."""
        return self._heeds[IF_NEW]

    @property
    def match(self) -> bool | None:
        """Whether nothing else is replaced than what is to be."""
        return self._heeds[IF_MATCH]

    def send(self, replaces: str | None, send: Send[T]) -> T:
        """Writes if the target has what is to be replaced: the object of this ETag, without quotes; "":
        nothing; None: whatever there is.

        Raises: TargetChanged where it has something else, and as `send` does.
        """
        name, value = (IF_MATCH, f'"{replaces}"') if replaces else (IF_NEW, "*")
        if replaces is None or self._heeds[name] is False:
            return send({})
        if name == IF_MATCH and self._is_to_be_tried(name) and self._trial.acquire(blocking=False):
            try:
                return self._try_match(send)
            except TargetChanged:
                pass  # it is heeded
            finally:
                self._trial.release()
        return self._send(name, value, send)

    def try_only_new(self, send_again: Callable[[], object]) -> None:
        """Finds out by writing again what was just written, on the condition that nothing is there."""
        if not self._is_to_be_tried(IF_NEW) or not self._trial.acquire(blocking=False):
            return
        try:
            send_again()
            self.learn(IF_NEW, heeds=False)
        except TargetChanged:
            pass
        finally:
            self._trial.release()

    def expect(self, name: str, *, heeds: bool) -> None:
        """What was found before spares the trial. A condition that was ignored is sent all the same: where it
        is heeded by now, that shows.
        """
        self._tried.add(name)
        if heeds or self._heeds[name]:
            self._heeds[name] = heeds or None

    def learn(self, name: str, *, heeds: bool) -> None:
        """What was found out counts for as long as the process lives."""
        self.learned[name] = heeds
        if self._heeds[name] is not heeds:
            self._heeds[name] = heeds
            log.info(
                "found out whether conditions are heeded",
                target=self._target,
                operation=self.operation,
                header=name,
                heeds=heeds,
            )

    def _is_to_be_tried(self, name: str) -> bool:
        return self._heeds[name] is None and name not in self._tried

    def _try_match(self, send: Send[T]) -> T:
        """With an ETag that cannot be there: a store that ignores it has written what it was to write."""
        written = self._send(IF_MATCH, NO_ETAG, send)
        self.learn(IF_MATCH, heeds=False)
        return written

    def _send(self, name: str, value: str, send: Send[T]) -> T:
        try:
            return send({name: value})
        except TargetChanged:
            self.learn(name, heeds=True)
            raise
        except NoSuchKey as error:  # AWS's answer to If-Match where there is nothing
            self.learn(name, heeds=True)
            raise TargetChanged(
                "there is nothing any more", error.place, store_code=error.store_code, status=error.status
            ) from None
        except StoreError as error:
            if not _may_mind_the_condition(error):
                raise
        written = send({})  # where it was something else that the store minds, this raises it
        self.learn(name, heeds=False)
        return written


def _may_mind_the_condition(error: StoreError) -> bool:
    return error.status == 501 or (error.status == 400 and isinstance(error, StoreRefused))
