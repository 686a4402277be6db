"""gunicorn's settings; read once, in the parent, before any fork.

`WEB_CONCURRENCY` sets the number of processes (gunicorn's own variable), `PORT` where they listen.
"""

import contextlib
import errno
import os
import signal
import socket
import struct
import sys
import time
from typing import Any

from gunicorn.glogging import Logger
from gunicorn.workers.gthread import ThreadWorker

from webhook import database, logs, settings, startcheck
from webhook.errors import ReplicatorError

try:
    configured = settings.load()
except ReplicatorError as error:
    print(f"{error.message}\n{error.hint}", file=sys.stderr)
    sys.exit(2)


def _listen_on(port: int) -> str:
    """All addresses of both families where there is IPv6 (Railway's private network), else all of IPv4."""
    try:
        with socket.socket(socket.AF_INET6, socket.SOCK_STREAM) as probe:
            probe.bind(("::", 0))
    except OSError:
        return f"0.0.0.0:{port}"
    return f"[::]:{port}"


class BoundedWorker(ThreadWorker):  # type: ignore[misc] # gunicorn has no types
    """gunicorn's threads, which would wait for ever for the rest of a request: a few callers that send none,
    or are gone without a word, would have them all. It also waits for ever for one that does not read its
    answers.
    """

    READ_S = 30.0
    READ_BUSY_S = 2.0
    """While all threads are taken: a good request comes at once."""
    SEND_S = 5
    """For the next piece of an answer to be taken."""

    def __init__(self, *args: Any, **more: Any) -> None:
        super().__init__(*args, **more)
        self._since: dict[Any, float] = {}

    def handle(self, conn: Any) -> Any:
        """In a thread: reads a request and answers it."""
        self._since[conn] = time.monotonic()
        conn.sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("ll", self.SEND_S, 0))
        try:
            return super().handle(conn)
        finally:
            del self._since[conn]

    def handle_request(self, req: Any, conn: Any) -> Any:
        """In a thread: answers what was read. One that does not take it counts as gone."""
        try:
            return super().handle_request(req, conn)
        except BlockingIOError:
            raise BrokenPipeError(errno.EPIPE, "the answer is not read") from None

    def murder_pending(self) -> None:
        """In the main loop, about once a second. What was read is answered all the same."""
        super().murder_pending()
        running = self._since.copy()
        bound_s = self.READ_S if len(running) < self.cfg.threads else self.READ_BUSY_S
        for conn, since in running.items():
            if time.monotonic() - since > bound_s:
                with contextlib.suppress(OSError):
                    socket.socket.shutdown(conn.sock, socket.SHUT_RD)  # TLS's own would end the answer too


bind = _listen_on(configured.web.port)
worker_class = BoundedWorker
forwarder_headers = ""  # no caller says by a header what the path is, not even one on this machine
limit_request_line = 8190  # the most there is: a prefix, a part and a cursor, of 1,024 bytes each, escaped
threads = 16
keepalive = 75  # MinIO and proxies hold connections open; closing first costs them a failed request
graceful_timeout = int(configured.worker.drain_s) + 10
timeout = 60
accesslog = None  # one line for each settled object is the record
control_socket_disable = True
logs.configure(configured.log_format)


class OneLog(Logger):  # type: ignore[misc] # gunicorn has no types
    """gunicorn's own lines go where all others go, in the same format."""

    def setup(self, cfg: Any) -> None:
        """Leaves the root logger as it is, and passes everything up to it."""
        self.error_log.setLevel(self.LOG_LEVELS.get(cfg.loglevel.lower(), 20))
        self.error_log.handlers.clear()
        self.error_log.propagate = True


logger_class = OneLog


def on_starting(_server: Any) -> None:
    """Creates or upgrades the ledger's tables before any process needs them."""
    try:
        database.prepare(configured.database_url)
    except ReplicatorError as error:
        print(f"{error.message}\n{error.hint}", file=sys.stderr)
        sys.exit(2)


def when_ready(server: Any) -> None:
    """A second SIGTERM or SIGINT ends everything at once."""
    queued = server.signal
    stops: list[int] = []

    def handle(number: int, frame: Any) -> None:
        stops.append(number)
        if len(stops) > 1:
            server.kill_workers(signal.SIGKILL)
            os._exit(128 + number)
        queued(number, frame)

    signal.signal(signal.SIGTERM, handle)
    signal.signal(signal.SIGINT, handle)


def post_worker_init(worker: Any) -> None:
    """Starts to replicate, in the forked process; SIGTERM stops claiming before requests are drained."""
    service = worker.wsgi.extensions["service"]
    replicator = service.worker
    if configured.worker.embedded:
        service.start()
    else:
        replicator.start_keeper()
    startcheck.begin(service.checks(), service.sides, configured)
    service.records.count_beside()
    drain = worker.handle_exit

    def handle(number: int, frame: Any) -> None:
        replicator.stop_claiming()
        drain(number, frame)

    signal.signal(signal.SIGTERM, handle)


def worker_exit(_server: Any, worker: Any) -> None:
    """Finishes or hands back what is running; threads in the middle of a request do not hold it up."""
    app = getattr(worker, "wsgi", None)
    if app is not None:
        app.extensions["service"].stop()
        sys.stderr.flush()
        os._exit(0)
