"""The other end of NATS: what publishes events, and what looks at the stream and its consumer."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable, Coroutine
from concurrent.futures import Future
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self, TypeVar

from nats.aio.client import Client
from nats.js import JetStreamContext
from nats.js.api import ConsumerInfo

from scripts.local_processes import LOOPBACK

T = TypeVar("T")
SUBJECT, STREAM, CONSUMER = "minio.events", "MINIO_EVENTS", "replicator-minio-events"
BOUND_S = 60.0
PUBLISH_TIMEOUT_S = 3.0


class JetStream:
    """A connection that mends itself, for use by any thread."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever)
        self._client = Client()

    def __enter__(self) -> Self:
        self._thread.start()

        async def ignore(_error: Exception) -> None:
            """A server that is away is what is tested."""

        self._run(
            self._client.connect(
                self._url, error_cb=ignore, max_reconnect_attempts=-1, reconnect_time_wait=0.1
            )
        )
        return self

    def __exit__(self, *_: object) -> None:
        self._run(self._client.close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def _run(self, what: Coroutine[Any, Any, T]) -> T:
        future: Future[T] = asyncio.run_coroutine_threadsafe(what, self._loop)
        return future.result(BOUND_S)

    def ask(self, question: Callable[[JetStreamContext], Awaitable[T]]) -> T:
        """Its answer."""

        async def asked() -> T:
            return await question(self._client.jetstream())

        return self._run(asked())

    def publish(self, *bodies: bytes, subject: str = SUBJECT) -> None:
        """Returns when the stream has them all. Raises: nats' errors."""

        async def all_of_them(js: JetStreamContext) -> None:
            await asyncio.gather(*(js.publish(subject, body, timeout=PUBLISH_TIMEOUT_S) for body in bodies))

        self.ask(all_of_them)

    def consumer(self) -> ConsumerInfo:
        """The consumer that the service's processes share."""
        info: ConsumerInfo = self.ask(lambda js: js.consumer_info(STREAM, CONSUMER))
        return info

    def in_hand(self) -> int:
        """Messages that were delivered and not acknowledged."""
        return self.consumer().num_ack_pending or 0

    def left(self) -> int:
        """Messages that are not acknowledged."""
        return self.in_hand() + (self.consumer().num_pending or 0)


class Relay:
    """What the gateway lacks: MinIO's NATS target. Takes what the webhook target sends, which is the same
    JSON, and answers 200 when the stream has it; the gateway keeps it in its queue otherwise.
    """

    def __init__(self, jetstream: JetStream) -> None:
        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                try:
                    if body:
                        jetstream.publish(body)
                except Exception:  # noqa: BLE001 - whatever it is, the gateway has to try again
                    self.send_response(503)
                else:
                    self.send_response(200)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def do_GET(self) -> None:
                self.do_POST()

            def do_HEAD(self) -> None:
                self.do_POST()

            def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - its name
                pass

        self._server = ThreadingHTTPServer((LOOPBACK, 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05})

    @property
    def url(self) -> str:
        return f"http://{LOOPBACK}:{self._server.server_port}/events"

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()
