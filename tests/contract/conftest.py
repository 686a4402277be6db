"""The ledger under contract, with a clock that stands still."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.contract.steps import Clock
from webhook.database import connect
from webhook.ledger import Ledger


@pytest.fixture
def clock() -> Clock:
    """The time the ledger sees."""
    return Clock()


@pytest.fixture
def ledger(database_url: str, clock: Clock) -> Iterator[Ledger]:
    """An empty ledger on each engine in turn."""
    opened = Ledger(connect(database_url), clock=clock)
    yield opened
    opened.close()
