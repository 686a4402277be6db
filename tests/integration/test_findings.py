"""How many requests findings spare at a target, and that wrong ones cost requests only."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from tests.integration.conftest import Permit, Scene
from tests.integration.test_copier import HEEDING, IGNORING, PARTS, RANDOM
from tests.integration.test_fence import other
from tests.proxy import Exchange, after, answering
from webhook.abilities import Trials
from webhook.conditions import IF_MATCH, IF_NEW
from webhook.copier import Known, Outcome, OutcomeKind
from webhook.entries import Settled
from webhook.errors import TargetChanged
from webhook.findings import Archive, Findings
from webhook.layout import MIB
from webhook.ledger import Ledger
from webhook.probes import FOLDER, Probes
from webhook.service import assemble
from webhook.settings import from_environ

heeding = pytest.mark.parametrize("scene", [HEEDING], indirect=True)
ignoring = pytest.mark.parametrize("scene", [IGNORING], indirect=True)
KINDS = ("text/plain", "text/html", "application/json")


def found(scene: Scene) -> Findings:
    """What the trials find at the target, which is clean after them."""
    probes = Probes(scene.target.store, scene.rule.target_bucket, f"{FOLDER}test/", Permit())
    trials = Trials(probes)
    for trial in (trials.content, trials.conditions, trials.parts, trials.headers, trials.tags):
        trial()
    assert probes.clean_up(Permit()) == []
    return trials.findings({})


def copy_all(scene: Scene, findings: Findings | None) -> Counter[str]:
    """The requests that the target gets while a new process copies new objects, then their successors."""
    if findings:
        scene.copier().expect(findings)
    for number, kind in enumerate(KINDS):
        scene.put(b"new", key=f"key {number}", content_type=kind, metadata={"name": "value"})
    scene.put(RANDOM[: PARTS[1]], key="large", part_size=PARTS[0])
    scene.target_wire.forget()
    _copy(scene, is_first=True)
    for number, kind in enumerate(KINDS):
        scene.put(b"changed", key=f"key {number}", content_type=kind, metadata={"name": "value"})
    scene.put(RANDOM[1 : PARTS[1] + 1], key="large", part_size=PARTS[0])
    _copy(scene, is_first=False)
    return +scene.target_wire.counted


def _copy(scene: Scene, *, is_first: bool) -> None:
    for key in [f"key {number}" for number in range(len(KINDS))] + ["large"]:
        copier = (scene.copiers or [scene.copier()])[0]
        done = copier.copy_object(scene.rule, key, permit=Permit(), known=Known(is_first=is_first))
        assert (done.kind, done.lost) == (OutcomeKind.REPLICATED, ())


@pytest.fixture
def trait_findings() -> Findings:
    return Findings(held=frozenset({"metadata", *(f"content-type: {kind}" for kind in KINDS)}))


@heeding
def test_at_a_store_that_heeds_conditions_findings_spare_the_trials_and_the_looks(
    scene: Scene, trait_findings: Findings
) -> None:
    """Without: HEAD before the first object, and after the first of each kind; the first PUT of a new object
    twice, the first PUT and the first CompleteMultipartUpload that replace something twice.
    """
    without = copy_all(scene, None)
    assert without == {
        "HeadObject": 1 + 3 + 1 + 4,
        "PutObject": 3 + 3 + 2,
        "CreateMultipartUpload": 2,
        "UploadPart": 6,
        "CompleteMultipartUpload": 2 + 1,
    }


@heeding
def test_with_findings_a_new_process_asks_nothing_but_what_the_copies_need(
    scene: Scene, trait_findings: Findings
) -> None:
    findings = found(scene).plus(trait_findings)
    assert copy_all(scene, findings) == {
        "HeadObject": 1 + 4,  # before a new object in parts, and before each that may replace something
        "PutObject": 3 + 3,
        "CreateMultipartUpload": 2,
        "UploadPart": 6,
        "CompleteMultipartUpload": 2,
    }


@ignoring
@pytest.mark.parametrize(("has_findings", "puts"), [(False, 3 + 3 + 1), (True, 3 + 3)])
def test_at_a_store_that_ignores_conditions_findings_spare_the_second_write_of_the_trial(
    scene: Scene, trait_findings: Findings, has_findings: bool, puts: int
) -> None:
    findings = found(scene).plus(trait_findings) if has_findings else None
    assert copy_all(scene, findings)["PutObject"] == puts


def test_a_service_takes_what_the_ledger_has_and_keeps_what_it_learns(scene: Scene, tmp_path: Path) -> None:
    """As its processes are put together; on one ledger, one after the other."""
    url = f"sqlite:///{tmp_path}/ledger.db"
    variables = {"DATABASE_URL": url, "MINIO_BUCKET": scene.rule.source_bucket}
    variables |= {"FILEBASE_BUCKET": scene.rule.target_bucket}
    for name, server in (("MINIO", scene.server), ("FILEBASE", scene.target_server)):
        variables |= {f"{name}_ENDPOINT": server.endpoint, f"{name}_ACCESS_KEY": server.access_key}
        variables |= {f"{name}_SECRET_KEY": server.secret_key}
    known: list[tuple[bool | None, Findings]] = []
    for body in (b"content", b"changed"):
        scene.put(body, content_type="text/plain")
        service = assemble(from_environ(variables))
        known.append((service.sides.targets["filebase"].puts.only_new, service.copiers["filebase"].learned()))
        service.start()
        try:
            done = service.worker.replicate_now(scene.rule, "key", wait_s=60)
        finally:
            service.stop()
            service.close()
        assert isinstance(done, Settled)
    ledger = Ledger.open(url)
    kept = Archive(ledger).load("filebase", scene.target_server.endpoint)
    ledger.close()
    assert known == [(None, Findings()), (True, Findings())], "told, and not seen yet by itself"
    assert kept is not None
    assert "content-type: text/plain" in kept.held
    assert set(kept.conditions) == {f"PutObject {IF_NEW}", f"PutObject {IF_MATCH}"}


# ── findings that are wrong by now ───────────────────────────────────────────────────────────────────────


ALL = [
    f"{operation} {name}"
    for operation in ("PutObject", "CompleteMultipartUpload")
    for name in (IF_NEW, IF_MATCH)
]


@ignoring
def test_a_store_that_ignores_what_it_was_found_to_heed_ends_up_with_what_the_source_has(
    scene: Scene,
) -> None:
    scene.copier().expect(Findings(conditions=dict.fromkeys(ALL, True)))
    scene.put(b"content")
    scene.replicates(b"content", is_first=True)
    scene.put(b"changed")
    scene.replicates(b"changed", is_first=True)
    scene.is_unchanged()


@pytest.mark.parametrize("size", [1000, 12 * MIB])
@heeding
def test_a_store_that_refuses_what_it_was_found_to_heed_is_not_asked_again(scene: Scene, size: int) -> None:
    scene.copier().expect(Findings(conditions=dict.fromkeys(ALL, True)))

    def refuse(exchange: Exchange) -> None:
        if any(name.lower() in (IF_NEW, IF_MATCH) for name, _ in exchange.headers):
            answering(501, "NotImplemented")(exchange)

    for operation in ("PutObject", "CompleteMultipartUpload"):
        scene.target_wire.plan(operation, refuse, times=100)
    for body in (RANDOM[:size], RANDOM[1 : size + 1]):
        scene.put(body, part_size=5 * MIB)
        scene.replicates(body)
    learned = scene.copiers[0].learned().conditions
    assert set(learned.values()) == {False}
    assert len(learned) == 2


@heeding
def test_a_store_that_heeds_what_it_was_found_to_ignore_is_soon_known_to(scene: Scene) -> None:
    """The condition is sent all the same, so nothing newer is replaced meanwhile."""
    scene.copier().expect(Findings(conditions=dict.fromkeys(ALL, False)))
    scene.put(b"content")
    scene.replicates(b"content", is_first=True)
    scene.put(b"changed")
    scene.target_wire.plan("PutObject", after(lambda: other(scene, b"of somebody else")))
    with pytest.raises(TargetChanged):
        scene.copy()
    assert scene.read_target() == b"of somebody else"
    assert scene.target.puts.match is True


@ignoring
def test_a_trait_that_is_lost_by_now_is_copied_in_vain_once_and_then_known_to_be(scene: Scene) -> None:
    """The gateway drops Content-Language; a finding says that it keeps it."""
    scene.copier().expect(Findings(held=frozenset({"content-language", "content-type: text/plain"})))
    scene.put(b"content", content_type="text/plain", metadata={"Content-Language": "de"})
    known = _known(scene.copy())
    assert scene.copy(**known).kind is OutcomeKind.REPLICATED
    done = scene.copy(**known)
    assert (done.kind, done.lost) == (OutcomeKind.UNCHANGED, ("content-language",))


def _known(done: Outcome) -> dict[str, object]:
    return {"source_etag": done.source_etag, "target_etag": done.target_etag, "lost": frozenset(done.lost)}


@heeding
def test_a_delete_is_conditional_where_the_store_was_found_to_heed_it(scene: Scene) -> None:
    sent: list[dict[str, str]] = []
    scene.put(b"content")
    scene.copy()
    found = scene.target_head()
    assert found is not None
    scene.target_wire.plan(
        "DeleteObject", lambda exchange: sent.append({k.lower(): v for k, v in exchange.headers}), times=9
    )
    scene.target.expect(Findings(conditions={f"DeleteObject {IF_MATCH}": True}))
    scene.target.delete(scene.rule.target_bucket, "key", permit=Permit(), etag=found.etag)
    assert sent[0][IF_MATCH] == f'"{found.etag}"'
    assert scene.target_head() is None


@heeding
def test_a_delete_goes_on_without_its_condition_where_that_is_refused_by_now(scene: Scene) -> None:
    scene.put(b"content")
    scene.copy()
    scene.target.expect(Findings(conditions={f"DeleteObject {IF_MATCH}": True}))
    scene.target_wire.plan("DeleteObject", answering(501, "NotImplemented"))
    scene.target.delete(scene.rule.target_bucket, "key", permit=Permit(), etag="0" * 32)
    assert scene.target_head() is None
    assert scene.target_wire.counted["DeleteObject"] == 2
