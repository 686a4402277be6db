"""The copy itself: from either real server to the other, with faults on each side's wire."""

from __future__ import annotations

import contextlib
import json
import random
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from tests.integration.conftest import SETTINGS, WHOLE_MAX, Permit, Scene
from tests.proxy import Exchange, Fault, after, answering, flip_answer, flip_request, lose_answer
from webhook.conditions import IF_NEW
from webhook.copier import KEPT, Known, Outcome, OutcomeKind
from webhook.errors import (
    IntegrityError,
    LeaseLost,
    SourceChanged,
    StoreDenied,
    StoreError,
    StoreFailed,
    StoreRefused,
    TargetChanged,
)
from webhook.layout import MIB
from webhook.memory import MemoryBudget
from webhook.objects import Properties
from webhook.store import Reading
from webhook.target import Attributes, Target

RANDOM = random.Random(1).randbytes(64 * MIB)
NOTHING = Attributes(properties=Properties(), tags={})
PARTS = 5 * MIB, 12 * MIB
"""Part size and size of an object of three parts."""


gateway_only = pytest.mark.parametrize("scene", ["gateway"], indirect=True)
seaweed_only = pytest.mark.parametrize("scene", ["seaweed"], indirect=True)
HEEDING, IGNORING = "gateway", "seaweed to gateway"
"""Where the target is SeaweedFS, which heeds conditions, and where it is the gateway, which ignores them."""

# ── all kinds of objects arrive, once ────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("size", [0, 1, 100_000, WHOLE_MAX])
def test_an_object_up_to_the_limit_goes_in_one_request_and_only_once(scene: Scene, size: int) -> None:
    etag = scene.put(RANDOM[:size])
    assert scene.replicates(RANDOM[:size]).source_etag == etag
    assert scene.target_wire.counted["PutObject"] == 1
    found = scene.target_head()
    assert found is not None
    assert (found.etag, found.stamp) == (etag, "")
    scene.is_unchanged()


@pytest.mark.parametrize("size", [WHOLE_MAX + 1, 17 * MIB])
def test_a_larger_single_put_goes_in_parts_and_is_known_again_by_stamp_or_record(
    scene: Scene, size: int
) -> None:
    etag = scene.put(RANDOM[:size])
    done = scene.replicates(RANDOM[:size])
    found = scene.target_head()
    assert found is not None
    assert found.stamp == done.source_etag == etag
    assert found.etag != etag
    scene.is_unchanged()
    scene.is_unchanged(source_etag=etag, target_etag=done.target_etag)


@pytest.mark.parametrize(
    ("part_size", "size"),
    [(5 * MIB, 5 * MIB), (5 * MIB, 12 * MIB), (8 * MIB, 9 * MIB), (8 * MIB, 20 * MIB), (16 * MIB, 33 * MIB)],
)
def test_parts_of_a_usual_size_are_repeated_so_that_both_etags_are_equal(
    scene: Scene, part_size: int, size: int
) -> None:
    etag = scene.put(RANDOM[:size], part_size=part_size)
    assert scene.replicates(RANDOM[:size]).target_etag == etag
    scene.is_unchanged()


@pytest.mark.parametrize(("part_size", "size"), [(7 * MIB, 21 * MIB), (7 * MIB, 9 * MIB), (6 * MIB, 7 * MIB)])
def test_parts_of_an_odd_size_arrive_whole_and_only_once(scene: Scene, part_size: int, size: int) -> None:
    etag = scene.put(RANDOM[:size], part_size=part_size)
    done = scene.replicates(RANDOM[:size])
    scene.is_unchanged(source_etag=etag, target_etag=done.target_etag)
    scene.is_unchanged()


@pytest.mark.parametrize(("scene", "heeds"), [(HEEDING, True), (IGNORING, False)], indirect=["scene"])
def test_a_new_small_object_costs_one_get_and_one_put_and_a_head_where_the_store_heeds_no_condition(
    scene: Scene, heeds: bool
) -> None:
    scene.put(b"of the same type", key="first")
    scene.copier().copy_object(scene.rule, "first", permit=Permit(), known=Known(is_first=True))
    assert scene.target.puts.only_new is heeds
    scene.put()
    scene.source_wire.forget()
    scene.target_wire.counted.clear()
    scene.replicates(b"content", is_first=True)
    scene.target_wire.counted -= Counter(HeadObject=1)  # of the assertion above
    assert scene.source_wire.counted == {"GetObject": 1}
    assert scene.target_wire.counted == Counter(PutObject=1, HeadObject=0 if heeds else 1)


def test_a_store_that_is_busy_when_it_is_tried_is_tried_again(scene: Scene) -> None:
    scene.put()
    scene.target_wire.plan("PutObject", answering(503, "SlowDown"), nth=2)
    scene.replicates(b"content", is_first=True)
    assert scene.target.puts.only_new is None


@pytest.mark.parametrize("part_size", [64 * MIB, 5 * MIB])
@pytest.mark.parametrize("size", [100, 12 * MIB])
def test_what_the_target_has_already_is_looked_at_before_it_is_replaced(
    scene: Scene, size: int, part_size: int
) -> None:
    scene.target.puts.learn(IF_NEW, heeds=True)
    scene.put(RANDOM[:size], part_size=part_size)
    scene.replicates(RANDOM[:size], is_first=True)
    assert scene.copy(is_first=True).kind is OutcomeKind.UNCHANGED
    scene.put(RANDOM[1 : size + 1], part_size=part_size)
    scene.replicates(RANDOM[1 : size + 1], is_first=True)


def test_an_answer_lost_after_the_first_put_is_no_second_copy(scene: Scene) -> None:
    scene.target.puts.learn(IF_NEW, heeds=True)
    scene.put()
    scene.target_wire.plan("PutObject", lose_answer)
    assert scene.copy(is_first=True).kind is OutcomeKind.UNCHANGED
    assert scene.read_target() == b"content"


@pytest.mark.parametrize("what", ["metadata", "content_type", "tags"])
@pytest.mark.parametrize("size", [10, 12 * MIB])
def test_the_same_content_with_other_attributes_is_replicated_again(
    scene: Scene, what: str, size: int
) -> None:
    put: dict[str, Any] = {"body": RANDOM[:size], "part_size": 5 * MIB}
    scene.put(**put, content_type="text/a", metadata={"colour": "red"})
    scene.replicates(RANDOM[:size])
    if what == "tags":
        scene.tag("blue / ünï")
    elif what == "metadata":
        scene.put(**put, content_type="text/a", metadata={"colour": "blue"})
    else:
        scene.put(**put, content_type="text/b", metadata={"colour": "red"})
    scene.replicates(RANDOM[:size])
    found = scene.target_head()
    assert found is not None
    assert found.properties == scene.source.head(scene.rule.source_bucket, "key").properties
    if what == "tags":
        assert scene.target.tags(scene.rule.target_bucket, "key") == {"colour": "blue / ünï"}
    scene.is_unchanged()


@pytest.mark.parametrize("size", [3, 12 * MIB])
def test_an_overwritten_object_is_replicated_again_and_read_back_is_the_new_one(
    scene: Scene, size: int
) -> None:
    scene.put(RANDOM[:100])
    scene.replicates(RANDOM[:100])
    scene.put(RANDOM[1 : size + 1], part_size=5 * MIB)
    scene.replicates(RANDOM[1 : size + 1])


@seaweed_only
def test_an_attribute_the_target_cannot_hold_is_named_and_does_not_make_it_copy_again(scene: Scene) -> None:
    scene.put()
    scene.tag("blue")
    scene.target_wire.plan("PutObject", refusing("x-amz-tagging"), times=9)
    scene.target_wire.plan("GetObjectTagging", answering(501, "NotImplemented"), times=9)
    first = scene.copy()
    assert (first.kind, first.lost) == (OutcomeKind.REPLICATED, ("tags",))
    again = scene.copy()
    assert (again.kind, again.lost) == (OutcomeKind.UNCHANGED, ("tags",))
    assert scene.target_wire.counted["PutObject"] == 3  # the condition might have been what it minds
    assert scene.target.puts.only_new is None
    scene.put(b"without tags")
    assert [scene.copy().lost for _ in range(2)] == [(), ()]


def test_tags_that_were_lost_once_are_not_named_where_the_target_has_them_now(scene: Scene) -> None:
    scene.put()
    scene.tag("blue")
    scene.replicates(b"content")
    again = scene.copy(lost=frozenset({"tags"}))
    assert (again.kind, again.lost) == (OutcomeKind.UNCHANGED, ())


def refusing(header: str, *, code: int = 501, word: str = "NotImplemented") -> Fault:
    """As stores do that know what the header asks for, and do not do it."""

    def fault(exchange: Exchange) -> None:
        if header in {name.lower() for name, _ in exchange.headers}:
            answering(code, word)(exchange)

    return fault


@seaweed_only
def test_an_outcome_names_both_objects_as_their_stores_do(scene: Scene) -> None:
    source_etag = scene.put()
    for operation in ("GetObject", "HeadObject"):
        scene.source_wire.plan(operation, naming("x-amz-version-id", "v7"), times=9)
    for operation in ("PutObject", "HeadObject"):
        scene.target_wire.plan(operation, naming("x-amz-meta-cid", "Qm1"), times=9)
    first = scene.copy()
    found = scene.target_head()
    assert found is not None
    assert first == Outcome(
        kind=OutcomeKind.REPLICATED,
        size=7,
        bytes_copied=7,
        source_etag=source_etag,
        source_version="v7",
        target_etag=found.etag,
        cid="Qm1",
    )
    assert scene.copy() == replace(first, kind=OutcomeKind.UNCHANGED, bytes_copied=0)


def naming(header: str, value: str) -> Fault:
    """The server's answer, with one header more."""

    def fault(exchange: Exchange) -> None:
        exchange.forward().headers[header] = value

    return fault


# ── nothing to copy, nowhere to copy to ──────────────────────────────────────────────────────────────────


def test_a_key_that_is_gone_leaves_the_target_as_it_is(scene: Scene) -> None:
    assert scene.copy().kind is OutcomeKind.GONE
    scene.put()
    scene.replicates(b"content")
    scene.server.client().remove_object(bucket_name=scene.rule.source_bucket, object_name="key")
    assert scene.copy().kind is OutcomeKind.GONE
    assert scene.read_target() == b"content"


@pytest.mark.parametrize("present", [False, True])
@pytest.mark.parametrize("missing", ["source_bucket", "target_bucket"])
def test_a_missing_bucket_is_denied_and_not_taken_for_a_missing_key(
    scene: Scene, missing: str, present: bool
) -> None:
    scene.put(RANDOM[: 12 * MIB] if present else b"content", part_size=5 * MIB)
    if present and missing == "source_bucket":
        scene.copy()
    scene.rule = replace(scene.rule, **{missing: "no-such-bucket"})
    with pytest.raises(StoreDenied):
        scene.copy()


def test_overwrite_never_leaves_an_existing_object_alone_and_copies_a_new_one(scene: Scene) -> None:
    scene.rule = replace(scene.rule, overwrite="never")
    scene.put(b"old")
    scene.replicates(b"old")
    scene.put(b"new")
    scene.source_wire.forget()
    outcome = scene.copy()
    assert outcome.kind is OutcomeKind.UNCHANGED
    assert outcome.lost
    assert scene.read_target() == b"old"
    assert not scene.source_wire.counted


@seaweed_only
def test_overwrite_never_with_deletes_keeps_what_the_source_still_has_and_tells_what_it_has_not(
    scene: Scene,
) -> None:
    scene.put(b"old")
    scene.replicates(b"old")
    scene.rule = replace(scene.rule, overwrite="never", deletes=True)
    scene.put(b"newer")
    outcome = scene.copy()
    assert (outcome.kind, outcome.size, outcome.lost) == (OutcomeKind.UNCHANGED, 3, (KEPT,))
    remove_from_source(scene)
    assert scene.copy().kind is OutcomeKind.GONE
    assert scene.read_target() == b"old"


def remove_from_source(scene: Scene) -> None:
    scene.server.client().remove_object(bucket_name=scene.rule.source_bucket, object_name="key")


def test_a_copy_is_deleted_only_where_the_source_s_bucket_says_that_it_has_no_such_key(scene: Scene) -> None:
    scene.put()
    scene.replicates(b"content")
    copier, elsewhere = scene.copiers[0], replace(scene.rule, source_bucket="no-such-bucket")
    assert copier.remove_copy(scene.rule, "key", permit=Permit(), etag="") is False
    with pytest.raises(StoreDenied):
        copier.remove_copy(elsewhere, "key", permit=Permit(), etag="")
    remove_from_source(scene)
    with pytest.raises(LeaseLost):
        copier.remove_copy(scene.rule, "key", permit=Permit(lost_at=1), etag="")
    assert scene.read_target() == b"content"
    for _ in range(2):
        assert copier.remove_copy(scene.rule, "key", permit=Permit(), etag="") is True
        assert copier.present(scene.rule, "key") is None


def test_a_target_bucket_that_is_away_does_not_count_as_one_without_the_copy(scene: Scene) -> None:
    scene.put()
    scene.replicates(b"content")
    elsewhere = replace(scene.rule, target_bucket="no-such-bucket")
    with pytest.raises(StoreDenied):
        scene.copiers[0].present(elsewhere, "key")
    assert scene.copiers[0].present(scene.rule, "other key") is None


@gateway_only
def test_a_key_that_comes_back_while_its_copy_is_deleted_is_told(scene: Scene) -> None:
    scene.put()
    scene.replicates(b"content")
    remove_from_source(scene)
    scene.target_wire.plan("DeleteObject", after(scene.put))
    assert scene.copiers[0].remove_copy(scene.rule, "key", permit=Permit(), etag="") is False
    assert scene.target_head() is None


@seaweed_only
def test_the_target_s_object_vanishing_between_two_looks_is_not_taken_for_the_source_s(scene: Scene) -> None:
    scene.put()
    scene.tag("blue")
    scene.copy()
    scene.target_wire.plan("GetObjectTagging", answering(404, "NoSuchKey"))
    try:
        assert scene.copy().kind is not OutcomeKind.GONE
    except StoreError as error:
        assert error.place.side == "target"


# ── what changes or ends while it is copied ──────────────────────────────────────────────────────────────


@pytest.mark.parametrize("nth", [2, 4])
@pytest.mark.parametrize("part_size", [5 * MIB, 64 * MIB])
def test_an_object_overwritten_during_the_copy_is_never_mixed(scene: Scene, nth: int, part_size: int) -> None:
    copier = scene.copier(replace(SETTINGS, parts_in_flight=1))
    size = 12 * MIB if part_size == 5 * MIB else 40 * MIB
    scene.put(RANDOM[:size], part_size=part_size)
    newer = RANDOM[size : 2 * size] if size == 12 * MIB else RANDOM[7 : size + 7]
    scene.source_wire.plan("GetObject", after(lambda: scene.put(newer, part_size=part_size)), nth=nth)
    scene.fails_with(SourceChanged, copier=copier)
    scene.replicates(newer)


@gateway_only
@pytest.mark.parametrize("lost_at", range(1, 9))
def test_a_lost_lease_ends_the_copy_before_its_next_write(scene: Scene, lost_at: int) -> None:
    """Checks: before the upload, before the read and the write of each of three parts, before completing."""
    scene.put(RANDOM[: PARTS[1]], part_size=PARTS[0])
    copier = scene.copier(replace(SETTINGS, parts_in_flight=1))
    leaves = ["key"] if lost_at > 1 else []  # for whoever has the lease now to go on with
    scene.fails_with(LeaseLost, copier=copier, permit=Permit(lost_at=lost_at), leaves=leaves)
    assert scene.target_wire.counted["CompleteMultipartUpload"] == 0
    assert scene.target_wire.counted["UploadPart"] == max(0, (lost_at - 2) // 2)
    permit = Permit(lost_at=9)
    scene.copy(copier=copier, permit=permit)
    assert permit.checks == 8


def test_a_lost_lease_keeps_a_small_object_from_being_written(scene: Scene) -> None:
    scene.put()
    scene.fails_with(LeaseLost, permit=Permit(lost_at=1))
    assert scene.target_wire.counted["PutObject"] == 0


def test_the_upload_under_way_is_noted_and_one_left_over_is_aborted(scene: Scene) -> None:
    scene.put(RANDOM[: PARTS[1]], part_size=PARTS[0])
    left_over, _ = scene.target.create_upload(scene.rule.target_bucket, "key", NOTHING, permit=Permit())
    assert scene.uploads() == ["key"]
    note = json.dumps({"id": left_over, "plan": "of another version", "lost": []})
    permit = Permit()
    scene.copy(permit=permit, upload=note)
    assert scene.uploads() == []
    dropped, note = permit.notes
    assert dropped is None
    assert note is not None
    assert json.loads(note)["id"] != left_over
    outlived = scene.copy(upload=note)
    assert outlived.kind is OutcomeKind.UNCHANGED


# ── what goes wrong on the wire ──────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("part_size", "size", "nth"),
    [(64 * MIB, 1000, 1), (64 * MIB, 20 * MIB, 3), (5 * MIB, 12 * MIB, 2), (5 * MIB, 12 * MIB, 4)],
    ids=["whole", "large-single-put", "first-part", "last-part"],
)
def test_a_bit_flipped_while_reading_is_noticed_and_the_next_copy_is_good(
    scene: Scene, part_size: int, size: int, nth: int
) -> None:
    scene.put(RANDOM[:size], part_size=part_size)
    scene.source_wire.plan("GetObject", flip_answer, nth=nth)
    scene.fails_with(IntegrityError)
    scene.replicates(RANDOM[:size])


@pytest.mark.parametrize("is_retry", [False, True])
@pytest.mark.parametrize(("operation", "size"), [("PutObject", 1000), ("UploadPart", 12 * MIB)])
def test_a_bit_flipped_on_the_way_to_the_target_is_noticed_and_the_next_copy_is_good(
    scene: Scene, operation: str, size: int, is_retry: bool
) -> None:
    """A retry notices it with the part, and keeps the others; else the object's ETag tells, at the end."""
    scene.put(RANDOM[:size], part_size=5 * MIB)
    scene.target_wire.plan(operation, flip_request, nth=1 if size == 1000 else 2)
    permit, leaves = Permit(), ["key"] if operation == "UploadPart" and is_retry else []
    scene.fails_with((StoreFailed, IntegrityError), leaves=leaves, permit=permit, is_retry=is_retry)
    done = scene.copy(upload=permit.notes[-1] or "" if leaves else "", is_retry=True)
    assert done.kind is OutcomeKind.REPLICATED
    assert 0 < done.bytes_copied < size or not leaves
    assert scene.read_target() == RANDOM[:size]
    assert scene.uploads() == []


@pytest.mark.parametrize("size", [1000, 12 * MIB])
def test_damage_is_noticed_also_where_only_the_target_digests(scene: Scene, size: int) -> None:
    """Once the target's ETags are known to be MD5s, and the source's are, nothing is digested here."""
    scene.put(key="first")
    scene.copier().copy_object(scene.rule, "first", permit=Permit())
    scene.put(RANDOM[:size], part_size=5 * MIB)
    scene.source_wire.plan("GetObject", flip_answer, nth=1 if size == 1000 else 3)  # whole, then in parts
    scene.fails_with(IntegrityError)
    if size == 1000:
        scene.target_wire.plan("PutObject", flip_request)
        scene.fails_with(StoreFailed)
    scene.replicates(RANDOM[:size])


@pytest.mark.parametrize("code", ["MalformedXML", "InvalidPart", "InvalidPartOrder"])
def test_a_list_of_parts_that_arrived_damaged_is_no_reason_to_give_up(scene: Scene, code: str) -> None:
    """One bit that flips on the way does that; the next attempt goes on with the parts that are there."""
    scene.put(RANDOM[: PARTS[1]], part_size=PARTS[0])
    scene.target_wire.plan("CompleteMultipartUpload", answering(400, code))
    scene.fails_with(StoreFailed, leaves=["key"])


def test_an_etag_that_arrived_damaged_is_not_recorded(scene: Scene) -> None:
    """The answer that names it is a document, and nothing digests those."""
    scene.put(RANDOM[: 12 * MIB], part_size=5 * MIB)
    etag = scene.source.head(scene.rule.source_bucket, "key").etag

    def damage(exchange: Exchange) -> None:
        answer = exchange.forward()
        assert etag.encode() in answer.body
        answer.body = answer.body.replace(etag.encode(), b"!" + etag[1:].encode())

    scene.target_wire.plan("CompleteMultipartUpload", damage)
    assert scene.copy().target_etag == etag
    assert scene.target_wire.counted["CompleteMultipartUpload"] == 1


def test_a_store_that_insists_on_content_md5_gets_it(scene: Scene) -> None:
    """As Amazon S3 does for buckets under object lock."""
    scene.put(RANDOM[: 12 * MIB], part_size=5 * MIB)
    asked: list[bool] = []

    def insist(exchange: Exchange) -> None:
        asked.append(any(name.lower() == "content-md5" for name, _ in exchange.headers))
        if not asked[-1]:
            answering(400, "InvalidRequest")(exchange)

    scene.target_wire.plan("UploadPart", insist, times=20)
    scene.replicates(RANDOM[: 12 * MIB])
    assert asked.count(True) == 3


@pytest.mark.parametrize(
    ("operation", "size", "says"),
    [
        ("PutObject", 1000, r": object sent was [0-9a-f]{32}, the store has 0{32}$"),
        ("UploadPart", 12 * MIB, ": what arrived at the target is not what the source has$"),
    ],
)
def test_a_target_that_names_another_etag_than_was_sent_is_not_believed(
    scene: Scene, operation: str, size: int, says: str
) -> None:
    def other_etag(exchange: Exchange) -> None:
        exchange.forward().headers["ETag"] = f'"{"0" * 32}"'

    scene.put(RANDOM[:size], part_size=5 * MIB)
    scene.target_wire.plan(operation, other_etag)
    with pytest.raises(IntegrityError, match=says):
        scene.copy()
    assert scene.uploads() == []


@seaweed_only
def test_where_an_etag_says_nothing_the_size_is_looked_at_and_the_next_one_is_not_believed(
    scene: Scene,
) -> None:
    def encrypted(exchange: Exchange) -> None:
        exchange.forward().headers |= {"ETag": f'"{"0" * 32}"', "x-amz-server-side-encryption": "aws:kms"}

    def shorter(exchange: Exchange) -> None:
        exchange.forward().headers["Content-Length"] = "1"

    scene.put()
    scene.target_wire.plan("PutObject", encrypted)
    scene.target_wire.plan("HeadObject", shorter, nth=2)
    with pytest.raises(IntegrityError):
        scene.copy()
    (copier,) = scene.copiers
    assert not copier._target_shows_md5
    scene.put(b"another")
    scene.replicates(b"another")
    assert copier._target_shows_md5


@seaweed_only
def test_a_folder_marker_that_the_target_keeps_without_its_content_is_not_taken_for_copied(
    scene: Scene,
) -> None:
    rule = replace(scene.rule, prefix="key", target_prefix="mark/")
    scene.put()
    with pytest.raises(IntegrityError):
        scene.copier().copy_object(rule, "key", permit=Permit(), known=Known())


@seaweed_only
def test_what_others_saw_at_the_target_is_not_doubted_where_all_is_as_it_was_left(scene: Scene) -> None:
    scene.put(content_type="text/plain")
    done = scene.replicates(b"content")
    (first,) = scene.copiers
    another = scene.copier()
    another._holdings.expect(first._holdings.held)
    known = {"source_etag": done.source_etag, "target_etag": done.target_etag}
    assert scene.copy(copier=another, **known).kind is OutcomeKind.UNCHANGED
    scene.put(b"another", content_type="text/plain")
    scene.target_wire.forget()
    assert scene.copy(copier=another).kind is OutcomeKind.REPLICATED
    assert scene.target_wire.counted["HeadObject"] == 1


@pytest.mark.parametrize(("operation", "size"), [("PutObject", 1000), ("CompleteMultipartUpload", 12 * MIB)])
def test_an_answer_lost_after_the_work_was_done_is_an_error_and_then_unchanged(
    scene: Scene, operation: str, size: int
) -> None:
    scene.put(RANDOM[:size], part_size=5 * MIB)
    scene.target_wire.plan(operation, lose_answer, times=5)
    with pytest.raises(StoreError):
        scene.copy()
    scene.is_unchanged()
    assert scene.read_target() == RANDOM[:size]
    assert scene.uploads() == []


# ── memory ───────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def held(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """Counts the bytes that bodies hold, "now" and at the "peak", from the read to the end of the write."""
    held: Counter[str] = Counter()
    lock = threading.Lock()

    def watch(owner: type, name: str, change: Callable[[Any], int], *, is_read: bool) -> None:
        original = getattr(owner, name)

        def watched(self: Any, *args: Any, **kw: Any) -> Any:
            size = change(args)
            try:
                with lock:
                    held["now"] += size if is_read else 0
                    held["peak"] = max(held["peak"], held["now"])
                return original(self, *args, **kw)
            finally:
                with lock:
                    held["now"] -= 0 if is_read else size

        monkeypatch.setattr(owner, name, watched)

    def watched_borrow(self: MemoryBudget, size: int) -> memoryview:
        body = borrow(self, size)
        held["budget"] = max(held["budget"], self._lent)
        return body

    borrow = MemoryBudget.borrow
    monkeypatch.setattr(MemoryBudget, "borrow", watched_borrow)
    watch(Reading, "read_into", lambda args: len(args[0]), is_read=True)  # of parts too
    watch(Target, "put", lambda args: len(args[2]), is_read=False)
    watch(Target, "put_part", lambda args: len(args[4]), is_read=False)
    return held


def test_many_copies_of_all_sizes_finish_under_a_small_budget_and_keep_to_it(
    scene: Scene, held: Counter[str]
) -> None:
    sizes = [0, 10, 12 * MIB, 12 * MIB, 11 * MIB, WHOLE_MAX + 1, 20 * MIB, 30 * MIB]
    for size in sizes:
        is_single = size in (12 * MIB, 20 * MIB)
        scene.put(RANDOM[:size], part_size=64 * MIB if is_single else 5 * MIB, key=f"{size}")
    copier = scene.copier(replace(SETTINGS, memory_budget_bytes=32 * MIB, whole_max_bytes=12 * MIB))
    copied: list[Outcome] = []

    def work(size: int) -> None:
        with contextlib.suppress(TargetChanged):  # four copy the same key
            copied.append(copier.copy_object(scene.rule, f"{size}", permit=Permit()))
            return
        work(size)

    threads = [threading.Thread(target=work, args=(size,), daemon=True) for size in sizes * 4]
    for thread in threads:
        thread.start()
    deadline = time.monotonic() + 120
    for thread in threads:
        thread.join(max(0, deadline - time.monotonic()))
    assert len(copied) == len(threads)
    assert 16 * MIB < held["peak"] <= 32 * MIB
    assert copier._budget._lent == 0  # all came back
    for size in sizes:
        assert scene.read_target(f"{size}") == RANDOM[:size]


def test_parts_larger_than_the_budget_are_copied_in_smaller_ones(scene: Scene, held: Counter[str]) -> None:
    scene.put(RANDOM[: 41 * MIB], part_size=20 * MIB)
    copier = scene.copier(replace(SETTINGS, memory_budget_bytes=32 * MIB))
    scene.replicates(RANDOM[: 41 * MIB])
    assert held["budget"] <= 32 * MIB
    assert copier._budget._lent == 0
    scene.is_unchanged()


@seaweed_only
def test_an_object_whose_parts_cannot_fit_the_budget_is_refused_with_a_hint(scene: Scene) -> None:
    def claim_400_gib(exchange: Exchange) -> None:
        answer = exchange.forward()
        answer.headers["Content-Length"], answer.sent_bytes = str(400 * 1024 * MIB), 0

    scene.put()
    scene.source_wire.plan("GetObject", claim_400_gib)
    copier = scene.copier(replace(SETTINGS, memory_budget_bytes=32 * MIB))
    with pytest.raises(StoreRefused) as raised:
        scene.copy(copier=copier)
    assert "MEMORY_BUDGET_MIB" in raised.value.hint


MEASURED = """
import json, psutil, sys, threading
from webhook.copier import Copier
from webhook.memory import MemoryBudget
from webhook.rules import Rule
from webhook.settings import CopySettings, StoreSettings
from webhook.source import Source
from webhook.target import Target
class Permit:
    check = lambda self: None
    note_upload = lambda self, note: None
given = json.loads(sys.argv[1])
source = Source(StoreSettings(**given["source"]))
target = Target(StoreSettings(**given["target"]))
copy = CopySettings(**given["copy"])
copier = Copier(source, target, copy, MemoryBudget(copy.memory_budget_bytes))
copy = lambda key: print(copier.copy_object(Rule(**given["rule"]), key, permit=Permit()).bytes_copied)
copy("small")
this = psutil.Process()
before = peak = this.memory_info().rss
threads = [threading.Thread(target=copy, args=(key,)) for key in ("large-1", "large-2")]
[thread.start() for thread in threads]
while any(thread.is_alive() for thread in threads):
    threads[0].join(0.002) if threads[0].is_alive() else threads[1].join(0.002)
    peak = max(peak, this.memory_info().rss)
copier.close()
print(peak - before)
"""


@seaweed_only
def test_two_objects_of_200_mib_at_once_take_no_more_memory_than_the_budget(scene: Scene) -> None:
    body = bytes(200 * MIB)
    scene.put(key="small")
    for key in ("large-1", "large-2"):
        scene.put(body, part_size=16 * MIB, key=key)
    store = {"endpoint_url": scene.server.endpoint, "region": "us-east-1"}
    store |= {"access_key": scene.server.access_key, "secret_key": scene.server.secret_key}
    copy = vars(replace(SETTINGS, parts_in_flight=8))
    given = {"source": store, "target": store, "rule": asdict(scene.rule), "copy": copy}
    command = [sys.executable, "-c", MEASURED, json.dumps(given)]
    root = Path(__file__).parents[2]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=300, check=True)
    *copied, growth = [int(line) for line in done.stdout.split()]
    assert sorted(copied) == [7, 200 * MIB, 200 * MIB]
    assert growth < (64 + 24) * MIB  # 24: what connections and threads take
