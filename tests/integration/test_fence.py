"""A write that was stopped on its way, and arrives when another copier has long written something newer."""

from __future__ import annotations

import hashlib
import io
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial

import pytest

from tests.integration.conftest import Permit, Scene
from tests.integration.test_copier import (
    HEEDING,
    IGNORING,
    PARTS,
    RANDOM,
    gateway_only,
    refusing,
    seaweed_only,
)
from tests.proxy import Exchange, Fault, after, answering, halfway
from webhook.conditions import IF_MATCH, IF_NEW
from webhook.copier import Copier, Outcome, OutcomeKind
from webhook.errors import LeaseLost, TargetChanged
from webhook.memory import MemoryBudget

BOUND_S = 60.0
KINDS = {"whole": (1000, 64 << 20, "PutObject"), "in parts": (PARTS[1], PARTS[0], "CompleteMultipartUpload")}
"""Size, part size, and the request that makes the object."""
heeding = pytest.mark.parametrize("scene", [HEEDING], indirect=True)
ignoring = pytest.mark.parametrize("scene", [IGNORING], indirect=True)
kinds = pytest.mark.parametrize("kind", KINDS)


@dataclass
class Stop:
    """Stops whoever comes first, until it is released."""

    is_there: threading.Event = field(default_factory=threading.Event)
    may_go: threading.Event = field(default_factory=threading.Event)

    def __call__(self) -> None:
        if not self.is_there.is_set():
            self.is_there.set()
            assert self.may_go.wait(BOUND_S)


def body_of(kind: str, version: int) -> bytes:
    return RANDOM[version : KINDS[kind][0] + version]


def put(scene: Scene, kind: str, version: int) -> None:
    scene.put(body_of(kind, version), part_size=KINDS[kind][1])


def other(scene: Scene, body: bytes, key: str = "key") -> None:
    """Somebody else writes to the target, past the proxy."""
    scene.target_server.client().put_object(
        bucket_name=scene.rule.target_bucket, object_name=key, data=io.BytesIO(body), length=len(body)
    )


def stop_midway(scene: Scene, kind: str, fault: Callable[[Stop], Fault], *, is_first: bool) -> None:
    """The older version is on its way to the target while the newer one is copied by somebody else; then it
    gets there."""
    operation, stop, permit = KINDS[kind][2], Stop(), Permit()
    put(scene, kind, 1)
    scene.target_wire.plan(operation, fault(stop))
    with ThreadPoolExecutor(1) as threads:
        late: Future[Outcome] = threads.submit(partial(scene.copy, permit=permit, is_first=is_first))
        try:
            assert stop.is_there.wait(BOUND_S)
            permit.lost_at = 1  # its lease is over
            put(scene, kind, 2)
            with_its_own = Copier(
                scene.source, scene.target, scene.copiers[0]._settings, MemoryBudget(64 << 20)
            )
            scene.copiers.append(with_its_own)
            done = scene.copy(copier=with_its_own)
            assert (done.kind, scene.read_target()) == (OutcomeKind.REPLICATED, body_of(kind, 2))
        finally:
            stop.may_go.set()
        error = late.exception(BOUND_S)
    assert error is None or isinstance(error, TargetChanged | LeaseLost)


def before(stop: Stop) -> Fault:
    """The request has not reached the store."""
    return after(stop)


@pytest.mark.parametrize("fault", [before, halfway], ids=["before it arrives", "halfway"])
@pytest.mark.parametrize("present", [True, False], ids=["replacing", "new"])
@pytest.mark.parametrize("knows", [True, False], ids=["known store", "unknown store"])
@kinds
@heeding
def test_an_old_version_that_arrives_late_does_not_replace_a_newer_one(
    scene: Scene, kind: str, present: bool, knows: bool, fault: Callable[[Stop], Fault]
) -> None:
    scene.copier()
    if knows:
        for conditions in (scene.target.puts, scene.target.completions):
            conditions.learn(IF_NEW, heeds=True)
            conditions.learn(IF_MATCH, heeds=True)
    if present:
        put(scene, kind, 0)
        scene.copy()
    stop_midway(scene, kind, fault, is_first=not present)
    assert scene.read_target() == body_of(kind, 2)
    assert scene.copy().kind is OutcomeKind.UNCHANGED


@pytest.mark.parametrize("present", [True, False], ids=["replacing", "new"])
@kinds
@ignoring
def test_at_a_store_that_ignores_conditions_the_old_version_stands_until_the_next_look(
    scene: Scene, kind: str, present: bool
) -> None:
    scene.copier()
    if present:
        put(scene, kind, 0)
        scene.copy()
    stop_midway(scene, kind, before, is_first=not present)
    assert scene.read_target() == body_of(kind, 1)
    assert scene.copy().kind is OutcomeKind.REPLICATED
    assert scene.read_target() == body_of(kind, 2)


# ── what changed under a copy ────────────────────────────────────────────────────────────────────────────


@kinds
@heeding
def test_what_somebody_else_wrote_after_the_look_is_looked_at_before_it_is_replaced(
    scene: Scene, kind: str
) -> None:
    put(scene, kind, 0)
    scene.copy()
    put(scene, kind, 1)
    scene.target_wire.plan(KINDS[kind][2], after(lambda: other(scene, b"of somebody else")))
    with pytest.raises(TargetChanged):
        scene.copy()
    assert scene.read_target() == b"of somebody else"
    assert scene.copy().kind is OutcomeKind.REPLICATED
    assert scene.read_target() == body_of(kind, 1)


@kinds
@heeding
def test_with_overwrite_never_not_even_what_comes_after_the_look_is_overwritten(
    scene: Scene, kind: str
) -> None:
    object.__setattr__(scene.rule, "overwrite", "never")
    put(scene, kind, 1)
    scene.target_wire.plan(KINDS[kind][2], after(lambda: other(scene, b"of somebody else")))
    with pytest.raises(TargetChanged):
        scene.copy()
    assert scene.copy().kind is OutcomeKind.UNCHANGED
    assert scene.read_target() == b"of somebody else"


@heeding
def test_an_upload_whose_object_came_in_between_is_gone_on_with(scene: Scene) -> None:
    put(scene, "in parts", 1)
    permit = Permit()
    scene.target_wire.plan("CompleteMultipartUpload", after(lambda: other(scene, b"of somebody else")))
    with pytest.raises(TargetChanged):
        scene.copy(permit=permit)
    (note,) = permit.notes
    assert note is not None
    scene.target_wire.forget()
    scene.replicates(body_of("in parts", 1), sent=0, upload=note)
    assert scene.target_wire.counted["UploadPart"] == 0


@heeding
def test_an_upload_that_is_not_to_be_gone_on_with_is_ended(scene: Scene) -> None:
    put(scene, "in parts", 1)
    permit = Permit()
    scene.target_wire.plan("CompleteMultipartUpload", answering(409, "ConditionalRequestConflict"))
    scene.fails_with(TargetChanged, permit=permit)
    assert permit.notes[-1] is None


@pytest.mark.parametrize("answer", [(404, "NoSuchKey"), (409, "ConditionalRequestConflict")])
@seaweed_only
def test_other_answers_that_mean_a_change_are_understood(scene: Scene, answer: tuple[int, str]) -> None:
    put(scene, "whole", 0)
    scene.copy()
    put(scene, "whole", 1)
    scene.target.puts.learn(IF_MATCH, heeds=True)

    def fault(exchange: Exchange) -> None:
        other(scene, b"of somebody else")
        answering(*answer)(exchange)

    scene.target_wire.plan("PutObject", fault)
    with pytest.raises(TargetChanged):
        scene.copy()


# ── what a store makes of conditions ─────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(("scene", "heeds"), [(HEEDING, True), (IGNORING, False)], indirect=["scene"])
@kinds
def test_whether_if_match_is_heeded_costs_one_request_once(scene: Scene, kind: str, heeds: bool) -> None:
    operation = KINDS[kind][2]
    conditions = scene.target.puts if kind == "whole" else scene.target.completions
    put(scene, kind, 0)
    scene.copy()
    for version, requests in ((1, 2 if heeds else 1), (2, 1)):
        put(scene, kind, version)
        scene.target_wire.forget()
        scene.replicates(body_of(kind, version))
        assert conditions.match is heeds
        assert scene.target_wire.counted[operation] == requests
    scene.is_unchanged()


@pytest.mark.parametrize(("code", "word"), [(501, "NotImplemented"), (400, "InvalidArgument")])
@pytest.mark.parametrize("header", ["if-match", "if-none-match"])
@kinds
@gateway_only
def test_a_store_that_minds_a_condition_gets_the_object_without_it(
    scene: Scene, kind: str, header: str, code: int, word: str
) -> None:
    operation = KINDS[kind][2]
    conditions = scene.target.puts if kind == "whole" else scene.target.completions
    scene.target_wire.plan(operation, refusing(header, code=code, word=word), times=20)
    for version, requests in ((0, None), (1, None), (2, 1)):
        put(scene, kind, version)
        counted = scene.target_wire.counted[operation]
        scene.replicates(body_of(kind, version))
        assert requests in (None, scene.target_wire.counted[operation] - counted)
    assert (conditions.match if header == IF_MATCH else conditions.only_new) is False


@pytest.mark.parametrize("is_first", [True, False])
@gateway_only
def test_a_key_that_is_a_folder_of_other_keys_too_is_copied(scene: Scene, is_first: bool) -> None:
    """SeaweedFS takes a folder for an object where nothing is to be replaced, and shows none. (An upload in
    parts it does not complete there, with conditions or without.)
    """
    other(scene, b"beside it", key="key/beside it")
    scene.target.puts.learn(IF_NEW, heeds=True)
    put(scene, "whole", 1)
    scene.replicates(body_of("whole", 1), is_first=is_first)
    scene.is_unchanged()


@pytest.mark.parametrize(
    ("scene", "preset", "heeds"),
    [(HEEDING, True, True), (HEEDING, False, False), (IGNORING, True, False)],
    indirect=["scene"],
)
def test_a_delete_spares_what_came_after_the_look_where_the_store_heeds_that(
    scene: Scene, preset: bool, heeds: bool
) -> None:
    scene.target.deletes.expect(IF_MATCH, heeds=preset)
    other(scene, b"copied")
    looked_at = scene.target_head()
    assert looked_at is not None
    other(scene, b"newer")

    def remove(etag: str) -> None:
        scene.copier().remove_copy(scene.rule, "key", permit=Permit(), etag=etag)

    if heeds:
        with pytest.raises(TargetChanged):
            remove(looked_at.etag)
        assert scene.read_target() == b"newer"
        remove(hashlib.md5(b"newer", usedforsecurity=False).hexdigest())
    else:
        remove(looked_at.etag)
    assert scene.target_head() is None
    remove(looked_at.etag if not heeds else "")  # one that is gone already is fine
