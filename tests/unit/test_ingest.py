"""What came by NATS is recorded as what came by the webhook."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from tests.unit.test_events import record as made
from webhook import ingest, settings
from webhook.app import create_app
from webhook.events import JUNK_KEPT_BYTES
from webhook.ledger import Ledger

COLUMNS = "rule, key, state, lane, generation, event_at, recent_events, removal_told"


def body_of(*records: Any) -> bytes:
    return json.dumps({"EventName": "s3:ObjectCreated:Put", "Records": records}).encode()


BODIES = [
    body_of(
        made("a%2Fb+c", "source-bucket"), made("b", "source-bucket", eventName="s3:ObjectRemoved:Delete")
    ),
    body_of(made("c", "source-bucket", eventName="s3:ObjectRemoved:NoOP"), made("d", "elsewhere")),
    body_of(made("e", "source-bucket", eventName="s3:ObjectAccessed:Get"), made("a%00", "source-bucket"), 7),
    body_of(made("a%2Fb+c", "source-bucket")),
    b"{}",
    b'{"Records": {}}',
]


@pytest.fixture
def ledgers(tmp_path: Path, environ: dict[str, str]) -> Iterator[tuple[Path, Path]]:
    """The files of two ledgers; the second was given BODIES by the webhook, one by one."""
    files = tmp_path / "by-nats.db", tmp_path / "by-webhook.db"
    app = create_app(settings.from_environ(environ | {"DATABASE_URL": f"sqlite:///{files[1]}"}))
    client = app.test_client()
    for body in BODIES:
        assert client.post("/minio/events", data=body).status_code == 200
    yield files
    app.extensions["service"].close()


def rows(file: Path, query: str) -> list[tuple[Any, ...]]:
    with closing(sqlite3.connect(file)) as connection:
        return connection.execute(query).fetchall()


def test_all_at_once_leave_what_the_webhook_leaves_one_by_one(
    ledgers: tuple[Path, Path], environ: dict[str, str]
) -> None:
    by_nats, by_webhook = ledgers
    with closing(Ledger.open(f"sqlite:///{by_nats}")) as ledger:
        ingest.record(BODIES, settings.from_environ(environ).rules, ledger)
    for query in (
        f"SELECT {COLUMNS} FROM entries ORDER BY key",  # noqa: S608 - it is ours
        "SELECT record_id, reason, raw, times_seen FROM quarantine ORDER BY record_id",
    ):
        assert rows(by_nats, query) == rows(by_webhook, query)
        assert len(rows(by_nats, query)) >= 3


def test_many_messages_are_put_at_once(
    tmp_path: Path, environ: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    puts = []
    with closing(Ledger.open(f"sqlite:///{tmp_path}/ledger.db")) as ledger:
        monkeypatch.setattr(
            ledger, "put", lambda requests, misfits: puts.append((len(requests), len(misfits)))
        )
        rules = settings.from_environ(environ).rules
        ingest.record([body_of(made(f"k{number}", "source-bucket")) for number in range(50)], rules, ledger)
        ingest.record([body_of(made("k", "elsewhere"))], rules, ledger)
    assert puts == [(50, 0)], "and none for what no rule wants"


@pytest.mark.parametrize("body", [b"", b"no json", b"[]", b"null", b"\xff\x00", b"[" * 100_000, b"7" * 5000])
def test_what_is_no_notification_is_kept_as_it_came(
    tmp_path: Path, environ: dict[str, str], body: bytes
) -> None:
    file = tmp_path / "ledger.db"
    with closing(Ledger.open(f"sqlite:///{file}")) as ledger:
        for _ in range(2):
            ingest.record([body], settings.from_environ(environ).rules, ledger)
        assert sum(ledger.counts()["waiting"].values()) == 0
    ((reason, raw, seen),) = rows(file, "SELECT reason, raw, times_seen FROM quarantine")
    assert reason.startswith("the body is not")
    assert raw.isascii()
    assert json.loads(raw) == body[:JUNK_KEPT_BYTES].decode("utf-8", "backslashreplace")
    assert seen == 2
