"""The checker finds what is wrong: else a run of the lab would say nothing."""

from __future__ import annotations

import io
import sqlite3
from collections.abc import Iterator
from contextlib import closing

import pytest

from tests.acceptance.conftest import BUCKET, until
from tests.lab.checker import Sample, Side, check, rows
from tests.lab.stage import TARGET_BUCKET, Stage
from tests.lab.workload import Done

KEYS = [f"key/{number}" for number in range(8)]


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    """Some objects, copied, and nobody who would mend anything."""
    with Stage(tmp_path_factory.mktemp("stage"), engine="sqlite", seed=1) as running:
        for key in KEYS:
            running.source.client().put_object(
                bucket_name=BUCKET, object_name=key, data=io.BytesIO(b"content"), length=7
            )
        until(
            lambda: [row["state"] for row in rows(running)] == ["settled"] * len(KEYS),
            bound_s=60,
            what="copied",
        )
        assert running.keeper
        running.keeper.held.update(running.services)
        for service in running.services:
            service.kill()
        yield running


def wrong(stage: Stage, history: list[Done] | None = None, sample: Sample | None = None) -> set[str]:
    """The keys that something is wrong with."""
    return check(stage, history or [], [sample] if sample else []).keys


def test_equal_sides_and_true_claims_are_found_to_be_well(stage: Stage) -> None:
    verdict = check(stage, [], [])
    assert (verdict.wrong, verdict.objects, verdict.entries) == ([], len(KEYS), len(KEYS))


def test_each_way_of_being_wrong_is_found(stage: Stage) -> None:
    target = Side(stage.target, TARGET_BUCKET)
    target.s3.put_object(Bucket=TARGET_BUCKET, Key=KEYS[0], Body=b"damaged")
    target.s3.delete_object(Bucket=TARGET_BUCKET, Key=KEYS[1])
    target.s3.put_object(Bucket=TARGET_BUCKET, Key="extra", Body=b"")
    target.s3.put_object_tagging(
        Bucket=TARGET_BUCKET, Key=KEYS[2], Tagging={"TagSet": [{"Key": "a", "Value": "b"}]}
    )
    target.s3.create_multipart_upload(Bucket=TARGET_BUCKET, Key="upload")
    with closing(sqlite3.connect(stage.ledger, isolation_level=None)) as ledger:
        ledger.execute("UPDATE entries SET target_etag = 'other' WHERE key = ?", [KEYS[3]])
        ledger.execute("UPDATE entries SET state = 'failed' WHERE key = ?", [KEYS[4]])
        ledger.execute("UPDATE entries SET generation = generation + 1 WHERE key = ?", [KEYS[5]])
        ledger.execute("UPDATE entries SET upload = 'note' WHERE key = ?", [KEYS[6]])
    assert wrong(stage) == {*KEYS[:7], "extra", "upload"}


def test_tags_that_no_event_told_of_are_forgiven_and_nothing_else(stage: Stage) -> None:
    tagged = Done(began_at=10.0, ended_at=11.0, verb="tag", key=KEYS[2])
    damaged = Done(began_at=10.0, ended_at=11.0, verb="tag", key=KEYS[0])
    heard, unheard = (check(stage, [tagged, damaged], [], unheard=[(at, 20.0)]) for at in (10.5, 9.5))
    assert (KEYS[2] in heard.keys, heard.unlisted) == (True, 0)
    assert (KEYS[2] in unheard.keys, unheard.unlisted) == (False, 1)
    assert KEYS[0] in unheard.keys, "its content differs"


def test_a_recovery_point_is_found_to_be_untrue_where_something_older_is_not_there(stage: Stage) -> None:
    done = Done(began_at=10.0, ended_at=11.0, verb="put", key=KEYS[7], etag="other")
    before, after = (Sample(point=point, listed_at=100.0, etags={}) for point in (10.5, 11.5))
    assert "was not true" not in str(check(stage, [done], [before]).wrong)
    assert "was not true" in str(check(stage, [done], [after]).wrong)
    newer = Done(began_at=12.0, ended_at=13.0, verb="put", key=KEYS[7], etag="newer")
    assert "was not true" not in str(check(stage, [done, newer], [after]).wrong)
