"""The benchmark's third part: how many notifications are accepted, each on disk before its answer.

One gunicorn process of this service, which does not replicate meanwhile, beside one with the same settings
whose route does nothing but parse the JSON. Both hear from the same clients, by connections kept open.
"""

from __future__ import annotations

import json
import socket
import time
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any, ClassVar

from scripts.bench_peers import BenchError, reading
from scripts.local_processes import LOOPBACK, find_binary
from scripts.local_servers import S3Server
from scripts.local_service import WEBHOOK_AUTH_TOKEN, Replicator

CLIENTS, CONNECTIONS_PER_CLIENT = 4, 4
WARM_UP_S, GATHER_S, ANSWER_BOUND_S = 0.5, 1.0, 30.0


def measure_accepting(
    source: S3Server, target: S3Server, folder: Path, *, seconds: float, rounds: int
) -> dict[str, list[float]]:
    """Answers per second, round by round, of this service and of a route that only parses."""
    rates: dict[str, list[float]] = {"ours": [], "parsing": []}
    stores: dict[str, Any] = {"source": source, "source_bucket": "absent", "target": target}
    stores["target_bucket"] = "absent-copy"
    web = {"WORKER_EMBEDDED": "false"}
    service = Replicator(folder / "accepting", environ=web, **stores)
    parsing = ParsingOnly(folder / "parsing", environ=web, **stores)
    with ProcessPoolExecutor(CLIENTS, mp_context=get_context("spawn")) as pool, service, parsing:
        accepted = _offer(pool, service, WARM_UP_S, 0) + 0 * _offer(pool, parsing, WARM_UP_S, 0)
        for number in range(1, rounds + 1):
            count = _offer(pool, service, seconds, number)
            accepted += count
            rates["ours"].append(count / seconds)
            rates["parsing"].append(_offer(pool, parsing, seconds, number) / seconds)
        with reading(service.folder / "data" / "replicator.db") as ledger:
            (kept,) = ledger.execute("SELECT count(*) FROM entries WHERE state = 'waiting'").fetchone()
    if kept != accepted:
        raise BenchError(f"{accepted} notifications were accepted, {kept} are in the ledger")
    return rates


def _offer(pool: ProcessPoolExecutor, server: Replicator, seconds: float, number: int) -> int:
    begin_at = time.time() + GATHER_S  # by then all client processes are there
    firsts = [(number * CLIENTS + client) * CONNECTIONS_PER_CLIENT for client in range(CLIENTS)]
    sent = [pool.submit(send_notifications, server.port, "absent", n, begin_at, seconds) for n in firsts]
    return sum(each.result() for each in sent)


class ParsingOnly(Replicator):
    """The least a Flask route can do with a notification: parse its JSON. Same settings of gunicorn."""

    name = "parsing only"
    SHARED: ClassVar[str] = "bind worker_class threads keepalive graceful_timeout timeout accesslog"
    CONFIG: ClassVar[str] = (
        "from runpy import run_path\n"
        "service = run_path('config/gunicorn.conf.py')\n"
        "globals().update({name: service[name] for name in '" + SHARED + "'.split()})\n"
        "control_socket_disable = True\n"
    )
    APP: ClassVar[str] = (
        "from flask import Flask, jsonify, request\n"
        "app = Flask('parsing')\n"
        "@app.post('/minio/events')\n"
        "def accept():\n"
        "    request.get_json()\n"
        "    return jsonify(accepted=1, ignored=0, quarantined=0)\n"
        "@app.get('/healthz')\n"
        "def healthy():\n"
        "    return jsonify(status='ok')\n"
    )

    def _prepare(self) -> None:
        super()._prepare()
        (self.folder / "gunicorn.parsing.py").write_text(self.CONFIG)
        (self.folder / "parsing.py").write_text(self.APP)

    def _command(self) -> list[str]:
        return [find_binary("gunicorn"), "--config=gunicorn.parsing.py", "parsing:app"]


_USER = {"principalId": "minioadmin"}
_WHERE = {"principalId": "minioadmin", "region": "", "sourceIPAddress": LOOPBACK}
_DONE = {"x-amz-id-2": "", "x-amz-request-id": "@NUMBER@", "x-minio-deployment-id": "8a0b-4bc2"}
_DONE |= {"x-minio-origin-endpoint": "http://127.0.0.1:9000"}
_OBJECT = {"key": "photos%2F2026%2F@NUMBER@.jpg", "size": 4096, "eTag": "1f3870be274f6c49b3e31a0c6728957f"}
_OBJECT |= {
    "contentType": "image/jpeg",
    "userMetadata": {"content-type": "image/jpeg"},
    "sequencer": "@NUMBER@",
}
_S3 = {"s3SchemaVersion": "1.0", "configurationId": "Config", "object": _OBJECT}
_S3["bucket"] = {"name": "@BUCKET@", "ownerIdentity": _USER, "arn": "arn:aws:s3:::@BUCKET@"}
_RECORD = {"eventVersion": "2.0", "eventSource": "minio:s3", "awsRegion": "", "requestParameters": _WHERE}
_RECORD |= {"eventTime": "2026-01-02T03:04:05.678Z", "eventName": "s3:ObjectCreated:Put", "s3": _S3}
_RECORD |= {"userIdentity": _USER, "responseElements": _DONE}
_RECORD |= {"source": {"host": LOOPBACK, "port": "", "userAgent": "MinIO (linux; amd64) minio-go/v7.0.10"}}
_NOTIFICATION = {"EventName": "s3:ObjectCreated:Put", "Key": "@BUCKET@/photos/2026/@NUMBER@.jpg"}


def send_notifications(port: int, bucket: str, first: int, begin_at: float, seconds: float) -> int:
    """Sends as many as are answered in that time, each for another key; gives how many were accepted.

    By CONNECTIONS_PER_CLIENT connections, kept open. `begin_at` is in seconds since 1970.
    """
    body = json.dumps({**_NOTIFICATION, "Records": [_RECORD]}).replace("@BUCKET@", bucket)
    length = len(body.replace("@NUMBER@", f"{0:016x}"))
    head = f"POST /minio/events HTTP/1.1\r\nHost: {LOOPBACK}\r\nContent-Type: application/json\r\n"
    head += f"Authorization: Bearer {WEBHOOK_AUTH_TOKEN}\r\nContent-Length: {length}\r\n\r\n"
    template = (head + body).encode()

    def send(connection_number: int) -> int:
        base, sent = (first + connection_number) << 32, 0
        with socket.create_connection((LOOPBACK, port), timeout=ANSWER_BOUND_S) as connection:
            time.sleep(max(0.0, begin_at - time.time()))
            while time.time() < begin_at + seconds:
                connection.sendall(template.replace(b"@NUMBER@", b"%016x" % (base + sent)))
                _expect_accepted(connection)
                sent += 1
        return sent

    with ThreadPoolExecutor(CONNECTIONS_PER_CLIENT) as pool:
        return sum(pool.map(send, range(CONNECTIONS_PER_CLIENT)))


def _expect_accepted(connection: socket.socket) -> None:
    answer = b""
    while not answer.endswith(b"}\n"):
        received = connection.recv(65_536)
        answer += received
        if not received:
            break
    if not answer.startswith(b"HTTP/1.1 200 ") or b'"accepted":1' not in answer:
        raise BenchError(f"a notification was answered with {answer[:300]!r}")
