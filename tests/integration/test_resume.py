"""A copy in parts goes on where an earlier attempt ended."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from tests.integration.conftest import SETTINGS, Permit, Scene
from tests.integration.test_copier import RANDOM
from tests.proxy import flip_answer
from webhook.attempt import Means
from webhook.deletes import Deletes
from webhook.entries import Buried, Request
from webhook.errors import IntegrityError, LeaseLost
from webhook.layout import MIB
from webhook.ledger import Ledger
from webhook.pauses import Pauses
from webhook.rules import Rules, Template
from webhook.settings import DeleteSettings, WorkerSettings
from webhook.worker import Worker


def interrupted(scene: Scene, *, after_parts: int) -> str:
    """Loses the lease when that many parts are sent; gives the note that the ledger would keep."""
    copier = scene.copier(replace(SETTINGS, parts_in_flight=1))
    permit = Permit(lost_at=3 + 2 * after_parts)
    with pytest.raises(LeaseLost):
        scene.copy(copier=copier, permit=permit)
    assert scene.target_wire.counted["UploadPart"] == after_parts
    scene.target_wire.forget()
    scene.source_wire.forget()
    note = permit.notes[-1]
    assert note is not None
    return note


def test_a_copy_goes_on_with_the_parts_already_there(scene: Scene) -> None:
    scene.put(RANDOM[: 32 * MIB], part_size=5 * MIB)
    note = interrupted(scene, after_parts=4)
    scene.replicates(RANDOM[: 32 * MIB], sent=12 * MIB, upload=note)
    assert scene.target_wire.counted["UploadPart"] == 3
    assert scene.source_wire.counted["GetObject"] == 1 + 3  # once for the headers
    assert scene.target_wire.counted["CreateMultipartUpload"] == 0


def test_a_large_single_put_sends_only_what_is_missing_and_is_still_verified_whole(scene: Scene) -> None:
    scene.put(RANDOM[: 60 * MIB])
    note = interrupted(scene, after_parts=2)
    scene.source_wire.plan("GetObject", flip_answer, nth=2)  # of a part that is there already
    with pytest.raises(IntegrityError):
        scene.copy(upload=note)
    assert scene.uploads() == []
    scene.target_wire.forget()
    scene.replicates(RANDOM[: 60 * MIB])


def test_a_source_that_changed_meanwhile_starts_anew(scene: Scene) -> None:
    scene.put(RANDOM[: 12 * MIB], part_size=5 * MIB)
    note = interrupted(scene, after_parts=2)
    scene.put(RANDOM[1 : 12 * MIB + 1], part_size=5 * MIB)
    scene.replicates(RANDOM[1 : 12 * MIB + 1], upload=note)
    assert scene.target_wire.counted["UploadPart"] == 3
    assert scene.uploads() == []


def test_other_metadata_starts_anew(scene: Scene) -> None:
    scene.put(RANDOM[: 12 * MIB], part_size=5 * MIB, metadata={"colour": "red"})
    note = interrupted(scene, after_parts=2)
    scene.put(RANDOM[: 12 * MIB], part_size=5 * MIB, metadata={"colour": "blue"})
    scene.replicates(RANDOM[: 12 * MIB], upload=note)
    found = scene.target_head()
    assert found is not None
    assert found.properties.metadata == {"colour": "blue"}


def test_an_upload_that_vanished_starts_anew(scene: Scene) -> None:
    scene.put(RANDOM[: 12 * MIB], part_size=5 * MIB)
    note = interrupted(scene, after_parts=2)
    scene.target.abort_upload(scene.rule.target_bucket, "key", json.loads(note)["id"])
    scene.replicates(RANDOM[: 12 * MIB], upload=note)
    assert scene.target_wire.counted["UploadPart"] == 3


@pytest.mark.parametrize("note", ["", "{", "[]", "null", '{"id": 1}', '{"id": "x", "plan": "y", "lost": []}'])
def test_a_note_that_means_nothing_does_no_harm(scene: Scene, note: str) -> None:
    scene.put(RANDOM[: 12 * MIB], part_size=5 * MIB)
    scene.replicates(RANDOM[: 12 * MIB], upload=note)


@pytest.mark.parametrize("what", ["gone", "small", "equal"])
def test_what_needs_no_parts_any_more_ends_the_upload(scene: Scene, what: str) -> None:
    scene.put(RANDOM[: 12 * MIB], part_size=5 * MIB)
    note = interrupted(scene, after_parts=1)
    if what == "gone":
        scene.server.client().remove_object(bucket_name=scene.rule.source_bucket, object_name="key")
    elif what == "small":
        scene.put(b"small")
    else:
        scene.copy()
    permit = Permit()
    scene.copy(upload=note, permit=permit)
    assert scene.uploads() == []
    assert permit.notes == [None]


def test_the_upload_of_an_object_that_failed_is_ended_when_its_time_is_over(
    scene: Scene, tmp_path: Path
) -> None:
    ledger = Ledger.open(f"sqlite:///{tmp_path}/ledger.db")
    bucket, target = scene.rule.source_bucket, scene.rule.target_bucket
    scene.put(RANDOM[: 12 * MIB], part_size=5 * MIB)
    note = interrupted(scene, after_parts=1)
    ledger.put([Request(rule=scene.rule.name, key="key")])
    (claim,) = ledger.claim(1, worker="w", lease_s=60)
    ledger.note_upload(claim, note)
    ledger.finish([Buried(claim=claim, error_code="x", error="y")])
    for keep_s, left in ((3600.0, ["key"]), (0.0, [])):
        options = WorkerSettings(
            threads=1,
            embedded=True,
            lease_s=60,
            attempts_max=1,
            drain_s=0,
            upload_keep_s=keep_s,
            keep_settled_s=0,
        )
        rules = Rules(templates=(Template(name="default", sources=(bucket,), target_bucket=target),))
        means = Means(
            rules=rules,
            copiers={scene.rule.target: scene.copier()},
            deletes=Deletes(ledger, DeleteSettings(grace_s=0, breaker_max=0, breaker_share=0.0)),
            pauses=Pauses(ledger),
            attempts_max=1,
            clock=ledger.clock,
        )
        Worker(means, ledger, options).end_old_uploads()
        assert scene.uploads() == left
    ledger.close()
