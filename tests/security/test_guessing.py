"""What stands between a stranger and a token: its length."""

from __future__ import annotations

from pathlib import Path

import pytest
from structlog.testing import capture_logs

from tests.security.conftest import ENVIRON, TOKENS
from webhook import startcheck
from webhook.service import assemble
from webhook.settings import from_environ

SHORT = "s3cr3t-15-chars"


def warnings_with(folder: Path, **tokens: str) -> list[str]:
    """What a process says of its tokens when it starts."""
    configured = from_environ(ENVIRON | tokens | {"DATABASE_URL": f"sqlite:///{folder}/ledger.db"})
    service = assemble(configured)
    with capture_logs() as lines:
        startcheck.begin({}, service.sides, configured).join(60)
    service.close()
    assert all(line["hint"].startswith("Make one") for line in lines)
    return [line["found"] for line in lines]


@pytest.mark.parametrize("name", TOKENS)
def test_a_short_token_is_warned_about_and_not_told(tmp_path: Path, name: str) -> None:
    (found,) = warnings_with(tmp_path, **TOKENS | {name: SHORT})
    assert found.startswith(f"{name} is shorter than 16 characters")
    assert SHORT not in found


def test_one_token_for_both_is_warned_about(tmp_path: Path) -> None:
    (found,) = warnings_with(tmp_path, **dict.fromkeys(TOKENS, "s3cr3t-for-everything"))
    assert found.startswith("API_TOKEN is WEBHOOK_AUTH_TOKEN")


@pytest.mark.parametrize("tokens", [TOKENS, {}])
def test_two_long_tokens_or_none_are_not(tmp_path: Path, tokens: dict[str, str]) -> None:
    assert warnings_with(tmp_path, **tokens) == []
