"""Calls of several threads that share one run: a group commit."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Generic, TypeVar

Item = TypeVar("Item")


class Together(Generic[Item]):
    """Calls `run` for the items of all who came while its last run was on its way.

    Who comes alone is served at once. A call returns when the run with its item has; what that run raises,
    each of its callers is told. Thread-safe; a run has no more items than there are threads.
    """

    def __init__(self, run: Callable[[list[Item]], None]) -> None:
        self._run = run
        self._one_run = threading.Lock()
        self._joining = threading.Lock()
        self._open: tuple[list[Item], Future[None]] | None = None

    def __call__(self, item: Item) -> None:
        """Raises: what `run` does."""
        with self._joining:
            leads = self._open is None
            items, done = self._open = self._open or ([], Future())
            items.append(item)
        if leads:
            self._lead(items, done)
        done.result()

    def _lead(self, items: list[Item], done: Future[None]) -> None:
        """Its thread came first: it waits for the last run to end, and others join it meanwhile."""
        try:
            with self._one_run:
                with self._joining:
                    self._open = None
                self._run(items)
        except BaseException as error:  # noqa: BLE001 - raised to all who wait, this thread among them
            done.set_exception(error)
        else:
            done.set_result(None)
