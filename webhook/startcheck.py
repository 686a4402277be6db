"""What a process finds when it starts: one line for each part, fine or what is wrong and what to do.

In the background: nothing waits for it, nothing fails by it. It writes no objects; scripts/doctor.py does.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import structlog

from webhook.database import parse_url
from webhook.disks import worries
from webhook.errors import ReplicatorError
from webhook.reconcile import Sides
from webhook.settings import Settings, WebSettings

SKEW_MAX_S = 5.0
BUCKETS_MAX = 20
"""Asked whether they tell of changes."""
TOKEN_MIN_CHARS = 16
Said = tuple[str, str]
"""What is wrong, and what to do about it."""

log = structlog.get_logger("webhook.startcheck")


def begin(checks: Mapping[str, Callable[[], object]], sides: Sides, configured: Settings) -> threading.Thread:
    """Starts to look, and to log; `checks`: part → a call that raises where it does not work."""
    thread = threading.Thread(target=_look, args=(checks, sides, configured), name="start check", daemon=True)
    thread.start()
    return thread


def _look(checks: Mapping[str, Callable[[], object]], sides: Sides, configured: Settings) -> None:
    for text, hint in _tokens(configured.web):
        log.warning("checked at start", part="tokens", found=text, hint=hint)
    for part, check in checks.items():
        found = [_failed(check), *_more(part, sides, configured)]
        wrong = [said for said in found if said]
        for text, hint in wrong:
            log.warning("checked at start", part=part, found=text, hint=hint)
        if not wrong:
            log.info("checked at start", part=part, found="fine")


def _tokens(web: WebSettings) -> Iterator[Said]:
    """Nothing limits how often somebody may guess: that it is hopeless lies in the tokens."""
    hint = "Make one of its own: openssl rand -hex 32."
    for name, token in (("WEBHOOK_AUTH_TOKEN", web.webhook_auth_token), ("API_TOKEN", web.api_token)):
        if 0 < len(token) < TOKEN_MIN_CHARS:
            yield f"{name} is shorter than {TOKEN_MIN_CHARS} characters, and can be guessed", hint
    if web.api_token and web.api_token == web.webhook_auth_token:
        yield "API_TOKEN is WEBHOOK_AUTH_TOKEN: who reads MinIO's configuration may do everything here", hint


def _failed(check: Callable[[], object]) -> Said | None:
    try:
        check()
    except ReplicatorError as error:
        return error.message, error.hint
    except Exception as error:  # noqa: BLE001 - a check must not end the others
        return f"something unforeseen: {type(error).__name__}", "See scripts/doctor.py."
    return None


def _more(part: str, sides: Sides, configured: Settings) -> Iterator[Said]:
    """What else there is to say of a part that answers; what cannot be told is no matter here."""
    try:
        if part == "ledger":
            yield from _disk(configured)
        elif part.startswith("source"):
            buckets = [part.partition(" ")[2]] if " " in part else sides.rules.literal_buckets
            yield from _source(sides, buckets[:BUCKETS_MAX])
    except (ReplicatorError, OSError):
        return


def _disk(configured: Settings) -> Iterator[Said]:
    url = parse_url(configured.database_url)
    if url.get_backend_name() == "sqlite":
        for worry in worries(Path(url.database or ""), platform=configured.platform):
            yield worry.text, worry.hint


def _source(sides: Sides, buckets: tuple[str, ...] | list[str]) -> Iterator[Said]:
    for bucket in buckets:
        asked_at = time.time()
        told, took_s = sides.source.time(bucket), time.time() - asked_at
        off_s = told - asked_at
        if told and abs(off_s) > SKEW_MAX_S + took_s:
            side = "ahead of" if off_s > 0 else "behind"
            text = f"its clock is {abs(off_s):.0f} s {side} this machine's"
            yield text, "Set both clocks by NTP."
        if sides.source.tells_of_changes(bucket) is False:
            text = f"bucket {bucket} tells nobody of changes: only sweeps find them"
            yield text, "python config/configure_minio.py (or config/minio-nats.sh), once."
