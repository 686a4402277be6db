"""MinIO's events in NATS JetStream: a connection, the stream, and a durable consumer that processes share.

The only module that knows nats-py. A connection that breaks is not mended here: its user begins anew, so that
there is one place that waits and tells of it.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress

import structlog
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.errors import Error as NatsError
from nats.errors import SecureConnWantedError
from nats.js import JetStreamContext
from nats.js.api import ConsumerConfig, ConsumerInfo, RetentionPolicy, StorageType
from nats.js.errors import NotFoundError

from webhook.errors import EventsUnavailable
from webhook.settings import EventsSettings

BATCH_MAX = 500
"""Messages that are fetched, and put into the ledger, together."""
FETCH_WAIT_S = 1.0
"""How long a fetch waits for a first message: a stop is noticed as soon."""
IDLE_FETCHES_MAX = 30
"""After so many fetches without a message, the server is asked whether it still has the consumer."""
ACK_WAIT_S = 30.0
"""What is not acknowledged by then is delivered again. A commit takes far less, or fails."""
ACK_PENDING_MAX = 50_000
"""Messages that all processes together may have in hand."""
KEPT_S = 7 * 86_400.0
"""How long a stream made here keeps a message, acknowledged or not."""
CONNECT_TIMEOUT_S, FLUSH_TIMEOUT_S, CLOSE_TIMEOUT_S = 5, 10, 5
PING_S, PINGS_MISSED_MAX = 20, 2

log = structlog.get_logger("webhook.jetstream")


class Consumer:
    """A durable consumer, over one connection. Not thread-safe."""

    def __init__(
        self, client: Client, pull: JetStreamContext.PullSubscription, info: ConsumerInfo, trouble: Trouble
    ) -> None:
        self.stream = info.stream_name
        self.name = info.name
        self.pending = info.num_pending or 0
        """How many messages waited when the connection was made."""
        self._client = client
        self._pull = pull
        self._trouble = trouble
        self._idle_fetches = 0

    async def fetch(self) -> list[Msg]:
        """Up to BATCH_MAX messages, as soon as there are some; none after FETCH_WAIT_S.

        Raises: EventsUnavailable.
        """
        with self._trouble.told("events cannot be fetched"):
            try:
                messages = await self._pull.fetch(BATCH_MAX, timeout=FETCH_WAIT_S)
            except TimeoutError:
                if self._trouble.last:
                    raise
                messages = []
            self._idle_fetches = 0 if messages else self._idle_fetches + 1
            if self._idle_fetches >= IDLE_FETCHES_MAX:
                self._idle_fetches = 0
                await self._pull.consumer_info()
        return messages

    async def acknowledge(self, messages: Sequence[Msg]) -> None:
        """Returns when the server has heard it. Raises: EventsUnavailable; they may be delivered again."""
        with self._trouble.told("events cannot be acknowledged"):
            for message in messages:
                await message.ack()
            await self._client.flush(FLUSH_TIMEOUT_S)


class Trouble:
    """What the client tells of by the way, which often says more than what it raises."""

    def __init__(self) -> None:
        self.last: Exception | None = None

    async def note(self, error: Exception) -> None:
        """Remembers the latest; the client calls it."""
        self.last = error

    @contextmanager
    def told(self, what: str, *, hint: str = "") -> Iterator[None]:
        """Turns what the client raises into EventsUnavailable: whatever it is, to begin anew is the cure."""
        try:
            yield
        except Exception as error:
            reason = str(self.last or error) or type(error).__name__
            raise EventsUnavailable(f"{what}: {reason}", hint=hint) from error


@asynccontextmanager
async def consuming(source: EventsSettings) -> AsyncIterator[Consumer]:
    """The consumer, over a connection that ends with the context. Raises: EventsUnavailable."""
    client, trouble = _Client(source), Trouble()
    try:
        with trouble.told(
            "NATS cannot be reached",
            hint="Check EVENTS_FROM, and that the server runs and lets this user in.",
        ):
            await client.begin(trouble)
        with trouble.told("the stream of events cannot be used", hint=_stream_hint(source.subject)):
            consumer = await _consumer(client, source.subject, trouble)
        yield consumer
    finally:
        with suppress(NatsError, OSError):  # TimeoutError is one
            await asyncio.wait_for(client.close(), CLOSE_TIMEOUT_S)


class _Client(Client):
    """nats-py's, which leaves it to the server whether there is TLS: a login must not go out without it."""

    def __init__(self, source: EventsSettings) -> None:
        super().__init__()
        self._source = source

    async def begin(self, trouble: Trouble) -> None:
        """Connects to one of the servers, each tried twice."""
        servers = self._source.servers
        await self.connect(
            list(servers.urls),
            user=servers.user if servers.password else None,
            password=servers.password or None,
            token=None if servers.password else servers.user or None,
            name="minio-replicator",
            tls=ssl.create_default_context(cafile=self._source.ca_file),
            error_cb=trouble.note,
            allow_reconnect=False,
            max_reconnect_attempts=1,
            reconnect_time_wait=0,
            connect_timeout=CONNECT_TIMEOUT_S,
            ping_interval=PING_S,
            max_outstanding_pings=PINGS_MISSED_MAX,
        )
        trouble.last = None

    def _connect_command(self) -> bytes:
        wants_tls = self._source.servers.urls[0].startswith("tls:")
        if wants_tls and not self._server_info.get("tls_required"):
            raise SecureConnWantedError
        return super()._connect_command()


async def _consumer(client: Client, subject: str, trouble: Trouble) -> Consumer:
    js = client.jetstream()
    stream = await _stream(js, subject)
    name = f"replicator-{subject.replace('.', '-')}"
    info = await js.add_consumer(
        stream,
        ConsumerConfig(
            name=name,
            durable_name=name,
            filter_subject=subject,
            ack_wait=ACK_WAIT_S,
            max_ack_pending=ACK_PENDING_MAX,
        ),
    )
    pull = await js.pull_subscribe_bind(consumer=name, stream=stream)
    return Consumer(client, pull, info, trouble)


async def _stream(js: JetStreamContext, subject: str) -> str:
    """The stream that holds the subject, whatever it is called and however it is kept; else a new one."""
    try:
        return await js.find_stream_name_by_subject(subject)
    except NotFoundError:
        name = _stream_name(subject)
        await js.add_stream(
            name=name,
            subjects=[subject],
            storage=StorageType.FILE,
            retention=RetentionPolicy.LIMITS,
            max_age=KEPT_S,
        )
        log.info("stream made", stream=name, subject=subject, kept_s=KEPT_S)
        return name


def _stream_name(subject: str) -> str:
    return subject.upper().replace(".", "_")


def _stream_hint(subject: str) -> str:
    command = f"nats stream add {_stream_name(subject)} --subjects {subject} --storage file --max-age 7d"
    return f"JetStream must be on. If this user may not make the stream, make it with: {command} --defaults"
