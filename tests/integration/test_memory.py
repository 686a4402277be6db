"""A copy that waits for memory while the source's answer waits for it."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest

from tests.integration.conftest import SETTINGS, Scene
from tests.unit.test_memory import BOUND_S, becomes
from webhook.copier import OutcomeKind
from webhook.layout import MIB

BODY = b"b" * 3 * MIB
TIGHT = replace(SETTINGS, memory_budget_bytes=4 * MIB, whole_max_bytes=4 * MIB)


@pytest.mark.parametrize("scene", ["seaweed"], indirect=True)
def test_an_answer_waits_for_memory_and_the_object_is_copied_with_one_read(scene: Scene) -> None:
    etag, copier = scene.put(BODY), scene.copier(TIGHT)
    with ThreadPoolExecutor(1) as threads:
        with copier._budget.body(4 * MIB):
            copying = threads.submit(scene.copy, copier=copier)
            assert becomes(lambda: bool(copier._budget._queue))
        done = copying.result(BOUND_S)
    assert (done.kind, done.target_etag, scene.read_target()) == (OutcomeKind.REPLICATED, etag, BODY)
    assert scene.source_wire.counted == {"GetObject": 1}
    assert copier._budget._lent == 0, "all memory was given back"
