"""Copies that wait for memory while the source's answer waits for them."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace

import pytest

from tests.integration.conftest import SETTINGS, Scene
from tests.unit.test_memory import BOUND_S, becomes
from webhook import copier as copier_module
from webhook.copier import Copier, Outcome, OutcomeKind
from webhook.layout import MIB

BODY = b"b" * 3 * MIB
TIGHT = replace(SETTINGS, memory_budget_bytes=4 * MIB, whole_max_bytes=4 * MIB)
on_one_server = pytest.mark.parametrize("scene", ["seaweed"], indirect=True)


def copy_while_full(scene: Scene, copier: Copier, meanwhile: Callable[[], object]) -> Outcome:
    """Copies while others hold all memory; it is free again after `meanwhile`."""
    copier._budget.take(4 * MIB)
    with ThreadPoolExecutor(1) as threads:
        try:
            copying: Future[Outcome] = threads.submit(scene.copy, copier=copier)
            meanwhile()
        finally:
            copier._budget.give_back(4 * MIB)
        return copying.result(BOUND_S)


@on_one_server
def test_an_answer_that_waited_too_long_for_memory_is_asked_for_again_and_no_more(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(copier_module, "MEMORY_WAIT_S", 0.1)
    etag, copier = scene.put(BODY), scene.copier(TIGHT)

    def has_given_up_the_answer() -> None:
        assert becomes(lambda: bool(copier._budget._queue))
        first = copier._budget._queue[0]
        assert becomes(lambda: bool(copier._budget._queue) and copier._budget._queue[0] is not first)

    done = copy_while_full(scene, copier, has_given_up_the_answer)
    assert (done.kind, done.target_etag, scene.read_target()) == (OutcomeKind.REPLICATED, etag, BODY)
    assert scene.source_wire.counted == {"GetObject": 2}
    assert copier._budget.take(4 * MIB, wait_s=0), "all memory was given back"


@on_one_server
def test_an_answer_waits_for_memory_that_becomes_free_in_time(scene: Scene) -> None:
    etag, copier = scene.put(BODY), scene.copier(TIGHT)
    done = copy_while_full(scene, copier, lambda: becomes(lambda: bool(copier._budget._queue)))
    assert (done.kind, done.target_etag) == (OutcomeKind.REPLICATED, etag)
    assert scene.source_wire.counted == {"GetObject": 1}
    assert copier._budget.take(4 * MIB, wait_s=0), "all memory was given back"


@on_one_server
def test_an_object_that_grows_while_it_waits_is_copied_as_it_is_then(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(copier_module, "MEMORY_WAIT_S", 0.1)
    scene.put(b"small")
    copier, grown = scene.copier(TIGHT), threading.Event()

    def grow() -> None:
        assert becomes(lambda: scene.source_wire.counted["GetObject"] == 1 and bool(copier._budget._queue))
        scene.put(BODY)
        grown.set()

    done = copy_while_full(scene, copier, grow)
    assert grown.is_set()
    assert scene.read_target() in (BODY, b"small")
    assert done.size == len(scene.read_target())
    assert copier._budget.take(4 * MIB, wait_s=0), "all memory was given back"
