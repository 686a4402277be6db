"""Uploads that nobody knows of are ended at the target, and no others."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import pytest

from scripts.local_servers import S3Server
from tests.contract.steps import RULE, ask, buried, settled, take, take_one
from tests.integration.conftest import Permit
from webhook.database import connect
from webhook.ledger import Ledger
from webhook.objects import Properties
from webhook.rules import Rule
from webhook.strays import end_strays
from webhook.target import Attributes, Target

KEEP_S = 3600.0
KEY = "in/a key+ü%20&.bin"


@dataclass
class World:
    """A target, and a ledger whose time is `passed_s` ahead."""

    target: Target
    rule: Rule
    ledger: Ledger
    passed_s: list[float]

    def begin(self, target_key: str) -> str:
        """Begins an upload; gives its id."""
        attributes = Attributes(properties=Properties(), tags={})
        return self.target.create_upload(self.rule.target_bucket, target_key, attributes, permit=Permit())[0]

    def end(self) -> int:
        """How many are ended."""
        return end_strays(self.rule, self.target, self.ledger, keep_s=KEEP_S)

    def left(self) -> set[str]:
        """The keys of those that are there still."""
        return {each.key for each in self.target.uploads(self.rule.target_bucket, "")}


@pytest.fixture(params=["seaweed", "gateway"])
def world(
    request: pytest.FixtureRequest,
    tmp_path: Path,
    target_at: Callable[..., Target],
    new_bucket: Callable[[S3Server], str],
) -> Iterator[World]:
    server: S3Server = request.getfixturevalue(request.param)
    bucket = new_bucket(server)
    rule = Rule(
        name=RULE, source_bucket="s", target="t", target_bucket=bucket, prefix="in/", target_prefix="out/"
    )
    passed_s = [KEEP_S + 60]
    engine = connect(f"sqlite:///{tmp_path}/ledger.db")
    with closing(Ledger(engine, clock=lambda: time.time() + passed_s[0])) as ledger:
        yield World(target_at(server), rule, ledger, passed_s)


def test_an_upload_whose_id_never_arrived_is_ended_once_it_is_old(world: World) -> None:
    world.ledger.put([ask(KEY)])
    world.begin(world.rule.target_key(KEY))
    world.passed_s[0] = KEEP_S - 60
    assert (world.end(), len(world.left())) == (0, 1)
    world.passed_s[0] = KEEP_S + 60
    assert (world.end(), world.left()) == (1, set())
    assert world.end() == 0


def test_what_an_entry_has_noted_is_left_alone(world: World) -> None:
    world.ledger.put([ask(KEY)])
    claim = take_one(world.ledger, KEY)
    assert claim
    noted, forgotten = (world.begin(world.rule.target_key(KEY)) for _ in range(2))
    world.ledger.note_upload(claim, json.dumps({"id": noted}))
    assert world.end() == 0, "it is being copied"
    world.ledger.finish([buried(claim)])
    assert world.end() == 1
    assert [each.id for each in world.target.uploads(world.rule.target_bucket, "")] == [noted]
    assert forgotten != noted


def test_what_may_be_somebody_else_s_is_left_alone(world: World) -> None:
    world.ledger.put([ask(KEY)])
    world.ledger.finish([settled(claim) for claim in take(world.ledger)])
    elsewhere = {"out/not on record", "other/a key"}
    for key in elsewhere:
        world.begin(key)
    assert (world.end(), world.left()) == (0, elsewhere)


def test_all_pages_are_looked_at(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = world.target._ask
    monkeypatch.setattr(world.target, "_ask", lambda *args, **more: asked(*args, **more, MaxUploads=2))
    keys = [f"in/{number}" for number in range(5)]
    world.ledger.put([ask(key) for key in keys])
    for key in keys:
        world.begin(world.rule.target_key(key))
    monkeypatch.setattr(world.target, "abort_upload", lambda *_: None)
    assert world.end() == len(keys)
