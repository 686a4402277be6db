"""gunicorn's settings; read once, in the parent, before any fork.

`WEB_CONCURRENCY` sets the number of processes (gunicorn's own variable), `PORT` where they listen.
"""

import os
import signal
import socket
import sys
from typing import Any

from gunicorn.glogging import Logger

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


bind = _listen_on(configured.web.port)
worker_class = "gthread"
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
