"""Takes the pictures of the status page that the README shows, of a service that really runs.

A source, a target, the service with three rules and two processes, and Chromium. Objects are copied, both
sides compared, some copies refused by the target. Only the hour before is made up: nobody waits for that.

Exit status: 0 the pictures are there, 1 something could not be had.
"""

from __future__ import annotations

import argparse
import math
import random
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from playwright.sync_api import Browser, FloatRect

from scripts.bench_live import notify
from scripts.local_processes import ServerError
from scripts.local_servers import ACCESS_KEY, SECRET_KEY, Gateway, S3Server, SeaweedFS
from scripts.local_service import ROOT, LoneWorker, Replicator
from tests.browser import NoBrowserError, Visit, chromium
from tests.proxy import Answer, Exchange, Proxy
from webhook import metrics
from webhook.lags import bucket_of
from webhook.ledger import Ledger
from webhook.progress import HOUR_MINUTES
from webhook.tables import MINUTES

BOUND_S = 120.0
RULES = """
[targets.archive]
endpoint = "{endpoint}"

[rules.photos]
source = "photos"
bucket = "photos-copy"

[rules.invoices]
source = "invoices"
target = "archive"
bucket = "invoices-copy"
deletes = true

[rules.backups]
source = "backups"
target = "archive"
bucket = "backups-copy"
"""
OBJECTS = {
    "photos": ("2026/11/IMG_{:04}.jpg", 48),
    "invoices": ("2026/11/invoice-{:04}.pdf", 20),
    "backups": ("db/{:02}.dump", 12),
}
REFUSED = tuple(f"2026/11/scan-{number:03}.pdf" for number in range(3))
BACKFILL_MINUTES, BUSY_MINUTES = range(14, 28), range(34, 39)
DENIED = b"<Error><Code>AccessDenied</Code><Message>Access Denied</Message></Error>"
WIDTH = 1180
VIEWS: dict[str, dict[str, Any]] = {
    "page-light": {"color_scheme": "light", "viewport": {"width": WIDTH, "height": 900}},
    "page-dark": {"color_scheme": "dark", "viewport": {"width": WIDTH, "height": 900}},
}
PHONES: dict[str, dict[str, Any]] = {
    f"phone-{scheme}": {"color_scheme": scheme, "viewport": {"width": 360, "height": 740}}
    for scheme in ("light", "dark")
}


def main() -> int:
    """Takes the pictures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--folder", type=Path, default=ROOT / "docs", help="where they go (default: docs)")
    parser.add_argument("--all", action="store_true", help="all pages, also as on a phone")
    options = parser.parse_args()
    try:
        with ExitStack() as stack:
            service = _lively(stack)
            _shoot(stack.enter_context(chromium()), service, options.folder, every=options.all)
    except (NoBrowserError, ServerError, TimeoutError) as error:
        print(error, file=sys.stderr)
        return 1
    return 0


# ── the service ──────────────────────────────────────────────────────────────────────────────────────


def _lively(stack: ExitStack) -> Replicator:
    folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="screenshots-")))
    source = stack.enter_context(Gateway(folder / "source"))
    target = stack.enter_context(SeaweedFS(folder / "target"))
    proxy = stack.enter_context(Proxy(target.endpoint))
    for name in OBJECTS:
        source.client().make_bucket(bucket_name=name)
        target.client().make_bucket(bucket_name=f"{name}-copy")
    service = _service(Replicator, folder, source, target, proxy.endpoint)
    _make_up_the_hour(service)
    stack.enter_context(service)
    stack.enter_context(_service(LoneWorker, folder, source, target, proxy.endpoint))
    for name in OBJECTS:
        notify(source, name, service.events_url)
    for name, (pattern, number) in OBJECTS.items():
        _put(source, name, [pattern.format(each) for each in range(number)])
    total = sum(number for _, number in OBJECTS.values())
    _until(lambda: service.settled() == total, "all is copied")
    _sweep(service)
    proxy.plan("PutObject", _deny, times=1000)
    _put(source, "invoices", list(REFUSED))
    _until(lambda: _failed(service) == len(REFUSED), "some objects failed")
    with closing(Ledger.open(service.environ["DATABASE_URL"])) as ledger:
        counted = partial(metrics.minutes, ledger, "failures", since_minute=1)
        _until(lambda: bool(counted()), "failures are counted")
    return service


def _service(
    kind: type[Replicator], folder: Path, source: Gateway, target: SeaweedFS, endpoint: str
) -> Replicator:
    (folder / "rules.toml").write_text(RULES.format(endpoint=endpoint))
    environ = {
        "DATABASE_URL": f"sqlite:///{folder}/replicator.db",
        "RULES_FILE": str(folder / "rules.toml"),
        "RECONCILE_INTERVAL_S": "0",
        "MAX_ATTEMPTS": "1",
        "TARGET_ARCHIVE_ACCESS_KEY": ACCESS_KEY,
        "TARGET_ARCHIVE_SECRET_KEY": SECRET_KEY,
    }
    stores: dict[str, Any] = {"source_bucket": "", "target_bucket": ""}
    return kind(folder / kind.name, source=source, target=target, environ=environ, **stores)


def _deny(exchange: Exchange) -> None:
    exchange.answer = Answer(403, {"Content-Type": "application/xml"}, DENIED)


def _put(server: S3Server, bucket: str, keys: list[str]) -> None:
    for key in keys:
        body = key.encode() * 200
        server.client().put_object(bucket_name=bucket, object_name=key, data=BytesIO(body), length=len(body))


def _sweep(service: Replicator) -> None:
    numbers = {each["id"] for each in service.post("/v1/sweeps").json()["sweeps"]}

    def is_over() -> bool:
        found = service.get("/v1/sweeps").json()["sweeps"]
        return all(each["state"] == "complete" for each in found if each["id"] in numbers)

    _until(is_over, "both sides are compared")


def _failed(service: Replicator) -> int:
    return int(sum(service.get("/v1/status").json()["entries"]["failed"].values()))


def _until(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + BOUND_S
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"not within {BOUND_S:.0f} s: {what}")
        time.sleep(0.1)


# ── the hour before ──────────────────────────────────────────────────────────────────────────────────


def _make_up_the_hour(service: Replicator) -> None:
    with closing(Ledger.open(service.environ["DATABASE_URL"])) as ledger:
        first = int(ledger.clock() // 60) - HOUR_MINUTES + 1
        ledger.run(sa.insert(MINUTES).values([each | {"share": 0} for each in _settled(first)]))
        ledger.meter.give_back(dict(_errors(first)))
        ledger.keep_counts()


def _settled(first: int) -> Iterator[dict[str, Any]]:
    """Rows of live work, with a sweep's for a while and a burst of events later."""
    chance = random.Random(1)  # the same picture each time
    for minute in range(HOUR_MINUTES - 1):
        is_busy = minute in BUSY_MINUTES
        number = round(80 + 18 * math.sin(minute / 5) + chance.uniform(-8, 8)) + 110 * is_busy
        typical_s = chance.uniform(0.03, 0.05) * (6 if is_busy else 1)
        slow_s = typical_s * chance.uniform(2.5, 4.5)
        for lag_s, part in ((typical_s, number - 3), (slow_s, 3)):
            yield _row(first + minute, "photos", "live", bucket_of(lag_s), part)
        if minute in BACKFILL_MINUTES:
            yield _row(first + minute, "backups", "backfill", 0, round(chance.uniform(130, 190)))


def _row(minute: int, rule: str, lane: str, bucket: int, objects: int) -> dict[str, Any]:
    size = {"minute": minute, "objects": objects, "bytes": objects * 98_000}
    return {**size, "rule": rule, "lane": lane, "bucket": bucket}


def _errors(first: int) -> Iterator[tuple[tuple[str, tuple[tuple[str, str], ...], int], float]]:
    """Attempts that were repeated in the burst."""
    labels = (("reason", "target_store_throttled"), ("rule", "photos"))
    for minute, number in zip(BUSY_MINUTES, (9, 14, 6, 11, 4), strict=True):
        yield ("retries", labels, first + minute), float(number)


# ── the pictures ─────────────────────────────────────────────────────────────────────────────────────


def _shoot(browser: Browser, service: Replicator, folder: Path, *, every: bool) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, more in (VIEWS | PHONES if every else VIEWS).items():
        with closing(browser.new_context(timezone_id="UTC", **more)) as context:
            visit = Visit(service.url, context.new_page())
            visit.sign_in()
            for page, path in (_pages() if every else {}).items():
                visit.go(path)
                visit.page.screenshot(path=folder / f"{name}-{page}.png", full_page=True)
            if not every:
                end = visit.page.locator("#rules").evaluate("each => each.getBoundingClientRect().bottom")
                top: FloatRect = {"x": 0, "y": 0, "width": WIDTH, "height": end + 16}
                visit.page.screenshot(path=folder / f"{name}.png", full_page=True, clip=top)


def _pages() -> dict[str, str]:
    key = REFUSED[0].replace("/", "%2F")
    return {
        "status": "/",
        "found": "/objects?q=invoice",
        "object": "/object?rule=photos&key=2026%2F11%2FIMG_0001.jpg",
        "failed": f"/object?rule=invoices&key={key}",
        "failures": "/failures",
        "quarantine": "/quarantine",
        "deletes": "/deletes?rule=invoices",
        "nothing": "/object?rule=photos&key=nobody",
    }


if __name__ == "__main__":
    sys.exit(main())
