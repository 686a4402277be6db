"""Applications in this process, and one service as it is run for real, between two stores that are there."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from scripts.local_servers import Gateway, SeaweedFS
from scripts.local_service import Replicator
from tests.unit.conftest import _logging_as_it_was, client, environ, make_client

__all__ = ["_logging_as_it_was", "client", "environ", "make_client"]
BUCKETS = ("fuzz-source", "fuzz-target")


@pytest.fixture(scope="package")
def service(
    tmp_path_factory: pytest.TempPathFactory, gateway: Gateway, seaweed: SeaweedFS
) -> Iterator[Replicator]:
    """One process of gunicorn with its worker; sweeps only when asked for."""
    for server, bucket in zip((gateway, seaweed), BUCKETS, strict=True):
        server.client().make_bucket(bucket_name=bucket)
    with Replicator(
        tmp_path_factory.mktemp("fuzzed"),
        source=gateway,
        source_bucket=BUCKETS[0],
        target=seaweed,
        target_bucket=BUCKETS[1],
        environ={"LOG_FORMAT": "json", "RECONCILE_INTERVAL_S": "0", "REPLICATE_DELETES": "true"},
    ) as running:
        yield running
