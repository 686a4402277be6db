"""Notifications of all makes, and what becomes of broken ones by the real route into a ledger."""

from __future__ import annotations

import json
from pathlib import Path
from random import Random

import pytest
import sqlalchemy as sa
from flask.testing import FlaskClient
from hypothesis import given
from hypothesis import strategies as st

from tests.bounded import bounded
from tests.fuzz.fuzz_events import CORPUS, RULES, bodies, check, mutated, records_of
from tests.unit.conftest import MakeClient
from webhook.events import Unusable, asked, parse
from webhook.tables import ENTRIES, QUARANTINE

EXAMPLES = 400
WRITTEN, REMOVED, IGNORED, UNUSABLE = "written", "removed", "ignored", "unusable"
LONG = f"d/{'é' * 100}/{'x' * 240}"
EXPECTED: dict[str, list[tuple[str, str]]] = {
    "aws-delete-marker": [("✓/1+1.txt", REMOVED)],
    "aws-expiration": [("old.log", REMOVED)],
    "aws-put": [("red flower.jpg", WRITTEN)],
    "aws-several": [("a/../b", WRITTEN), ("/leading/slash", WRITTEN), ("..", WRITTEN)],
    "aws-tagging": [("red flower.jpg", WRITTEN)],
    "aws-test": [("", UNUSABLE)],
    "ceph-delete": [("a+b", REMOVED)],
    "ceph-key-as-it-is": [("Grüße/1+1=2 %41.txt", WRITTEN)],
    "ceph-lifecycle": [("old.log", REMOVED)],
    "ceph-put": [("myimage1.jpg", WRITTEN)],
    "minio-copy": [("copy of/hello.txt", WRITTEN)],
    "minio-delete": [("hello.txt", REMOVED)],
    "minio-delete-all-versions": [("hello.txt", REMOVED)],
    "minio-delete-noop": [("hello.txt", WRITTEN)],
    "minio-delete-nothing": [("never-there", REMOVED)],
    "minio-empty": [("empty", WRITTEN)],
    "minio-folder": [("a folder/", WRITTEN)],
    "minio-get": [("hello.txt", IGNORED)],
    "minio-head": [("hello.txt", IGNORED)],
    "minio-key-backslash": [("a\\b|c^`{}~.txt", WRITTEN)],
    "minio-key-control": [("bell\a\ttab\x7f.txt", WRITTEN)],
    "minio-key-html": [("<script>alert(1)</script>&\"'.txt", WRITTEN)],
    "minio-key-long": [(LONG, WRITTEN)],
    "minio-key-newline": [("line\nbreak\r.txt", WRITTEN)],
    "minio-key-percent": [("100%25 %zz %.txt", WRITTEN)],
    "minio-key-plus": [("1+1=2.txt", WRITTEN)],
    "minio-key-slashes": [("a//b", WRITTEN)],
    "minio-key-spaces": [(" two  words .txt", WRITTEN)],
    "minio-key-unicode": [("Grüße/日本/😀 e\u0301.txt", WRITTEN)],
    "minio-multipart": [("large/video.mp4", WRITTEN)],
    "minio-overwrite": [("hello.txt", WRITTEN)],
    "minio-put": [("hello.txt", WRITTEN)],
    "minio-tagging": [("hello.txt", WRITTEN)],
    "minio-tagging-delete": [("hello.txt", WRITTEN)],
    "rustfs-delete": [("hello.txt", REMOVED)],
    "rustfs-expiration": [("old.log", REMOVED)],
    "rustfs-multipart": [("large.bin", WRITTEN)],
    "rustfs-put": [("photos/2026/café 1+1.jpg", WRITTEN)],
    "rustfs-tagging": [("hello.txt", WRITTEN)],
    "seaweedfs-create": [("", UNUSABLE)],
}
"""File → key and kind of each of its records; the bucket is `source` in all."""


@pytest.fixture
def client(make_client: MakeClient) -> FlaskClient:
    """A client of a service that copies the corpus' bucket."""
    return make_client(MINIO_BUCKET="source")


def test_each_file_of_the_corpus_has_its_expectation() -> None:
    assert {path.stem for path in CORPUS.glob("*.json")} == set(EXPECTED)


@pytest.mark.parametrize("name", EXPECTED)
def test_a_notification_is_read_as_what_its_sender_meant(name: str) -> None:
    body = (CORPUS / f"{name}.json").read_bytes()
    found = parse(body)
    read = [(change.key, "source") for change in found.changes]
    assert read == [(key, "source") for key, kind in EXPECTED[name] if kind != UNUSABLE]
    assert [change.bucket for change in found.changes] == ["source"] * len(found.changes)
    assert all(change.event_at > 1.7e9 for change in found.changes)
    meant = asked(body, RULES)
    of_all = [request for request in meant.requests if request.rule == "all"]
    kinds = [(each.key, REMOVED if each.is_removal else WRITTEN) for each in of_all]
    assert kinds == [pair for pair in EXPECTED[name] if pair[1] in (WRITTEN, REMOVED)]
    assert meant.ignored == [kind for _, kind in EXPECTED[name]].count(IGNORED)
    assert len(meant.misfits) == [kind for _, kind in EXPECTED[name]].count(UNUSABLE)


def test_no_two_notifications_are_taken_for_one_event() -> None:
    changes = [change for body in bodies() for change in parse(body).changes]
    unusable = [record for body in bodies() for record in parse(body).unusable]
    ids = [change.event_id for change in changes] + [_id(record) for record in unusable]
    assert len(set(ids)) == len(ids) == sum(len(records) for records in EXPECTED.values())


def _id(record: Unusable) -> str:
    return record.record_id


# ── broken ones, into a ledger ───────────────────────────────────────────────────────────────────────


class Books:
    """What has to be in the ledger after all that was sent, and what is."""

    def __init__(self, client: FlaskClient) -> None:
        self.client = client
        self.keys: set[str] = set()
        self.records: set[str] = set()
        self._service = client.application.extensions["service"]

    def send(self, body: bytes) -> int:
        """The answer's status, held against the body and the ledger."""
        answer = self.client.post("/minio/events", data=body)
        count = records_of(body)
        assert answer.status_code == (200 if count or not body else 400), answer.text
        assert answer.mimetype == "application/json"
        if answer.status_code == 400:
            assert answer.json["error"]["code"] == "bad_request"
            assert answer.json["error"]["hint"]
        elif body:
            found = asked(body, self._service.sides.rules)
            self.keys |= {request.key for request in found.requests}
            self.records |= {misfit.record_id for misfit in found.misfits}
            assert sum(answer.json.values()) == count
        self.assert_right()
        return int(answer.status_code)

    def assert_right(self) -> None:
        """The ledger has all that was accepted or put aside, and nothing else."""
        with self._service.ledger.reading() as connection:
            keys = connection.execute(sa.select(ENTRIES.c.key)).scalars().all()
            records = connection.execute(sa.select(QUARANTINE.c.record_id)).scalars().all()
        assert sorted(keys) == sorted(self.keys)
        assert sorted(records) == sorted(self.records)


def test_the_whole_corpus_is_taken_and_put_on_record(client: FlaskClient) -> None:
    books = Books(client)
    assert {books.send(body) for body in bodies()} == {200}
    wanted = {key for pairs in EXPECTED.values() for key, kind in pairs if kind in (WRITTEN, REMOVED)}
    assert books.keys == wanted
    assert len(books.records) == 2


def test_whatever_is_broken_in_a_notification_it_is_put_on_record_or_refused(client: FlaskClient) -> None:
    corpus, books, statuses = bodies(), Books(client), set()

    @bounded(EXAMPLES)
    @given(st.sampled_from(corpus), st.integers(0, 2**32))
    def send(body: bytes, seed: int) -> None:
        broken = mutated(body, Random(seed))
        check(broken)
        statuses.add(books.send(broken))

    send()
    assert statuses == {200, 400}
    assert len(books.keys) > 20
    assert len(books.records) > 20
    retried = client.post("/v1/quarantine/retry", json={"all": True})
    assert retried.json == {"accepted": 0, "ignored": 0, "kept": len(books.records)}
    books.assert_right()
    for url in ("/v1/quarantine?limit=100", "/v1/entries?limit=1000"):
        assert client.get(url).status_code == 200


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-be", "utf-32", "utf-32-le"])
def test_a_notification_may_come_in_any_encoding_of_json(client: FlaskClient, encoding: str) -> None:
    books = Books(client)
    body = (CORPUS / "ceph-key-as-it-is.json").read_bytes().decode().encode(encoding)
    assert books.send(body) == 200
    assert books.keys == {"Grüße/1+1=2 %41.txt"}


def test_a_notification_that_is_too_large_leaves_nothing_behind(client: FlaskClient, tmp_path: Path) -> None:
    books = Books(client)
    body = (CORPUS / "minio-put.json").read_bytes()
    limit = client.application.config["MAX_CONTENT_LENGTH"]
    assert client.post("/minio/events", data=body + b" " * (limit - len(body) + 1)).status_code == 413
    books.assert_right()
    assert books.send(body + b" " * (limit - len(body))) == 200
    many = {"Records": json.loads(body)["Records"] * 1000}
    assert books.send(json.dumps(many).encode()) == 200
    assert books.keys == {"hello.txt"}
