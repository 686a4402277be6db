"""MinIO's events from NATS JetStream → the ledger, in a process of its own: `python -m webhook.ingest`.

A message is acknowledged when the ledger has committed what it asks for, and not before. Otherwise JetStream
delivers it again, to this process or another one; the ledger knows what it has seen. What nobody can use goes
into quarantine, and is acknowledged. Where NATS or the ledger is away, it waits for as long as it takes.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import sys
import threading
import time
from collections.abc import Sequence

import structlog

from webhook import events, logs, settings, traces
from webhook.errors import (
    BadRequest,
    EventsUnavailable,
    LedgerLost,
    LedgerUnavailable,
    ReplicatorError,
    SettingsError,
)
from webhook.events import Asked
from webhook.jetstream import Consumer, consuming
from webhook.ledger import Ledger
from webhook.processes import stop_on_signals
from webhook.rules import Rules
from webhook.settings import EventsSettings

PAUSE_FIRST_S, PAUSE_MAX_S = 1.0, 10.0
"""Between tries, each pause twice the one before."""
KEEP_COUNTS_S = 5.0

log = structlog.get_logger("webhook.ingest")


class Ingest:
    """Fetches events and records them, until it is told to stop."""

    def __init__(self, source: EventsSettings, rules: Rules, ledger: Ledger) -> None:
        self._source = source
        self._rules = rules
        self._ledger = ledger
        self._stopping = threading.Event()
        self._pause_s = 0.0
        self._keeps_counts_at = 0.0
        self._recorded = 0
        self.is_lost = False
        """Whether it ends because the ledger that it had open is not there any more."""

    def stop(self) -> None:
        """Fetches no more; what is in hand is still recorded, if the ledger can be written. From any thread,
        or a signal's handler.
        """
        self._stopping.set()

    def run(self) -> None:
        """Returns after `stop`."""
        log.info("ingest starts", servers=self._source.servers.urls, subject=self._source.subject)
        asyncio.run(self._sessions())
        self._keep_counts()
        traces.flush()
        log.info("ingest ended", messages=self._recorded)

    async def _sessions(self) -> None:
        while not self._stopping.is_set():
            try:
                async with consuming(self._source) as consumer:
                    log.info(
                        "consuming events",
                        stream=consumer.stream,
                        consumer=consumer.name,
                        pending=consumer.pending,
                    )
                    await self._consume(consumer)
            except EventsUnavailable as error:
                await self._wait("waiting for NATS", error)

    async def _consume(self, consumer: Consumer) -> None:
        while not self._stopping.is_set():
            messages = await consumer.fetch()
            self._pause_s = 0.0
            if time.monotonic() >= self._keeps_counts_at:
                await asyncio.to_thread(self._keep_counts)
            if messages and await self._record([message.data for message in messages]):
                await consumer.acknowledge(messages)
                self._recorded += len(messages)

    async def _record(self, bodies: Sequence[bytes]) -> bool:
        """True when it is on disk; False when it is time to stop and the ledger still cannot be written."""
        while True:
            try:
                await asyncio.to_thread(record, bodies, self._rules, self._ledger)
            except LedgerLost as error:
                log.critical("the ledger is lost", error=error.message, hint=error.hint)
                self.is_lost = True
                self.stop()
                return False
            except LedgerUnavailable as error:
                await self._wait("waiting for the ledger", error)
                if self._stopping.is_set():
                    return False
            else:
                self._pause_s = 0.0
                return True

    def _keep_counts(self) -> None:
        """What cannot be put on record now is so the next time."""
        self._keeps_counts_at = time.monotonic() + KEEP_COUNTS_S
        with contextlib.suppress(LedgerUnavailable):
            self._ledger.keep_counts()

    async def _wait(self, what: str, error: ReplicatorError) -> None:
        """A pause that `stop` cuts short."""
        self._pause_s = min(PAUSE_MAX_S, max(PAUSE_FIRST_S, self._pause_s * 2))
        log.warning(what, error=error.message, hint=error.hint, again_in_s=self._pause_s)
        await asyncio.to_thread(self._stopping.wait, self._pause_s)


def record(bodies: Sequence[bytes], rules: Rules, ledger: Ledger) -> None:
    """Puts what all of these notifications ask for, and those that are none, into the ledger at once.

    Safe to repeat. Raises: LedgerUnavailable.
    """
    found = [_asked(body, rules) for body in bodies]
    requests = [request for each in found for request in each.requests]
    misfits = [misfit for each in found for misfit in each.misfits]
    if requests or misfits:
        with traces.asking("event") as trace:
            ledger.put(traces.with_trace(requests, trace), misfits)
    ledger.meter.events(
        accepted=sum(each.accepted for each in found),
        ignored=sum(each.ignored for each in found),
        quarantined=len(misfits),
    )
    for misfit in misfits:
        log.warning("event quarantined", reason=misfit.reason, record=misfit.record_id)


def _asked(body: bytes, rules: Rules) -> Asked:
    """The webhook refuses what is no notification; here nobody would hear it, so it is kept."""
    try:
        return events.asked(body, rules)
    except BadRequest as error:
        return Asked(requests=(), misfits=(events.junk(body, error.message),), accepted=0, ignored=0)


def main(arguments: Sequence[str] | None = None) -> int:
    """Consumes events until SIGTERM or SIGINT. Exit code 2: settings or ledger cannot be used."""
    parser = argparse.ArgumentParser(
        prog="python -m webhook.ingest",
        description="Fetches MinIO's events from NATS JetStream (EVENTS_FROM, EVENTS_SUBJECT) and records "
        "them in the ledger, as POST /minio/events does. Any number of these processes share the events. "
        "config/minio-nats.sh has MinIO publish them. Settings come from the environment and .env, as for "
        "the web process; .env.example lists them. SIGTERM ends it once the events in hand are recorded, a "
        "second one ends it at once.",
    )
    parser.parse_args(arguments)
    try:
        configured = settings.load()
        if configured.events is None:
            raise SettingsError(
                ["EVENTS_FROM is missing: the NATS server, like nats://user:password@host:4222"]
            )
        logs.configure(configured.log_format)
        traces.begin(configured.traces)
        ledger = Ledger.open(configured.database_url)
    except ReplicatorError as error:
        print(f"{error.message}\n{error.hint}", file=sys.stderr)  # noqa: T201 - before there is a log
        return 2
    ingest = Ingest(configured.events, configured.rules, ledger)
    stop_on_signals(ingest.stop)
    ingest.run()
    ledger.close()
    return 1 if ingest.is_lost else 0


if __name__ == "__main__":
    sys.exit(main())
