"""Live work first, and the backfill all the same."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from scripts.local_servers import Gateway, PostgreSQL, SeaweedFS
from scripts.local_service import Replicator
from tests.acceptance.conftest import until
from webhook.entries import BACKFILL, LIVE, Request
from webhook.ledger import Ledger

LIVE_OBJECTS, OLD_OBJECTS = 120, 4
BOUND_S = 120.0


@pytest.mark.parametrize("engine", ["sqlite", "postgresql"])
@pytest.mark.parametrize("threads", [1, 4])
def test_the_backfill_moves_beside_live_work_that_fills_all_threads(
    engine: str,
    threads: int,
    tmp_path: Path,
    gateway: Gateway,
    seaweed: SeaweedFS,
    postgresql: PostgreSQL,
    new_bucket: Callable[[Gateway | SeaweedFS], str],
) -> None:
    source, target = new_bucket(gateway), new_bucket(seaweed)
    url = f"sqlite:///{tmp_path}/ledger.db"
    if engine == "postgresql":
        url = postgresql.create_database(f"lanes_{source.replace('-', '_')}")
    with closing(Ledger.open(url)) as ledger:  # all of it is due before anybody works
        ledger.put([Request(rule="default", key=f"live {n}") for n in range(LIVE_OBJECTS)], lane=LIVE)
        ledger.put([Request(rule="default", key=f"old {n}") for n in range(OLD_OBJECTS)], lane=BACKFILL)
    service = Replicator(
        tmp_path / "service",
        source=gateway,
        source_bucket=source,
        target=seaweed,
        target_bucket=target,
        environ={"DATABASE_URL": url, "WORKER_THREADS": str(threads), "RECONCILE_INTERVAL_S": "0"},
    )
    with service, closing(Ledger.open(url)) as ledger:
        # nothing of it is at the source, which is an outcome too, and as good as any
        until(lambda: ledger.counts()["settled"][BACKFILL] == OLD_OBJECTS, bound_s=BOUND_S, what="backfill")
        until(lambda: ledger.counts()["settled"][LIVE] == LIVE_OBJECTS, bound_s=BOUND_S, what="live work")
        settled_at = {
            name: [_settled_at(ledger, f"{name} {number}") for number in range(count)]
            for name, count in (("live", LIVE_OBJECTS), ("old", OLD_OBJECTS))
        }
    first_old = min(settled_at["old"])
    assert min(settled_at["live"]) < first_old, "live work comes first"
    assert sum(each > first_old for each in settled_at["live"]) > LIVE_OBJECTS / 4, "but not for ever"


def _settled_at(ledger: Ledger, key: str) -> float:
    entry = ledger.entry("default", key)
    assert entry is not None
    return float(entry["settled_at"])
