"""`python -m webhook.ingest` between a real NATS server and a real ledger; no store is asked for anything."""

from __future__ import annotations

import json
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
import trustme

from scripts.local_processes import LOOPBACK, free_port
from scripts.local_servers import Gateway, Nats
from scripts.local_service import ROOT, LoneIngest
from tests.jetstream import CONSUMER, STREAM, SUBJECT, JetStream
from webhook.ledger import Ledger

BOUND_S = 60.0
Start = Callable[..., LoneIngest]


def until(condition: Callable[[], Any], *, what: str, bound_s: float = BOUND_S) -> None:
    deadline = time.monotonic() + bound_s
    while not condition():
        assert time.monotonic() < deadline, f"not within {bound_s:.0f} s: {what}"
        time.sleep(0.05)


def event(key: str, bucket: str = "source") -> bytes:
    """A notification as MinIO sends it, less what nobody reads."""
    record = {
        "eventName": "s3:ObjectCreated:Put",
        "eventTime": "2026-01-02T03:04:05.678Z",
        "responseElements": {"x-amz-request-id": f"request of {key}"},
        "s3": {"bucket": {"name": bucket}, "object": {"key": key}},
    }
    return json.dumps({"EventName": "s3:ObjectCreated:Put", "Key": key, "Records": [record]}).encode()


def waiting(ledger: Ledger) -> int:
    return ledger.counts()["waiting"]["live"]


@pytest.fixture
def database_url(tmp_path: Path) -> str:
    """The acceptance tests have the other engine."""
    return f"sqlite:///{tmp_path}/ledger.db"


@pytest.fixture
def start(tmp_path: Path, nats: Nats) -> Iterator[Start]:
    """Starts an ingest process on a ledger; its stores are not there."""
    started: list[LoneIngest] = []

    def begin(database_url: str, *, ready_when: str = LoneIngest.ready_when, **environ: str) -> LoneIngest:
        nowhere = Gateway(tmp_path / "nowhere")
        nowhere.port = 9
        common = {"EVENTS_FROM": nats.url, "DATABASE_URL": database_url, "LOG_FORMAT": "json"}
        process = LoneIngest(
            tmp_path / f"ingest-{len(started)}",
            source=nowhere,
            source_bucket="source",
            target=nowhere,
            target_bucket="target",
            environ={**common, **environ},
        )
        process.ready_when = ready_when
        started.append(process)
        return process.start()

    yield begin
    for process in started:
        process.stop()


@pytest.fixture
def jetstream(nats: Nats) -> Iterator[JetStream]:
    """The other end of the server."""
    with JetStream(nats.url) as connected:
        yield connected


@contextmanager
def locked(database_url: str) -> Iterator[None]:
    """Nobody else can write to the ledger."""
    with closing(sqlite3.connect(database_url.removeprefix("sqlite:///"), isolation_level=None)) as holder:
        holder.execute("BEGIN IMMEDIATE")
        yield
        holder.rollback()


def lines(process: LoneIngest, event: str) -> list[dict[str, Any]]:
    """The lines of its log that tell of this."""
    found = [json.loads(line) for line in process.log_path.read_text().splitlines() if line.startswith("{")]
    return [line for line in found if line["event"] == event]


def test_it_makes_the_stream_and_records_what_comes(
    start: Start, jetstream: JetStream, ledger: Ledger, database_url: str
) -> None:
    process = start(database_url)
    (begun,) = lines(process, "consuming events")
    assert (begun["stream"], begun["consumer"], begun["pending"]) == (STREAM, CONSUMER, 0)
    made = jetstream.ask(lambda js: js.stream_info(STREAM)).config
    assert (made.subjects, made.storage, made.retention, made.max_age) == (
        [SUBJECT],
        "file",
        "limits",
        604_800,
    )
    jetstream.publish(*(event(f"k{number}") for number in range(1200)), event("other", bucket="elsewhere"))
    until(lambda: waiting(ledger) == 1200 and jetstream.left() == 0, what="all recorded and acknowledged")
    assert ledger.quarantined() == 0


def test_a_message_delivered_twice_asks_once(
    start: Start, jetstream: JetStream, ledger: Ledger, database_url: str
) -> None:
    start(database_url)
    jetstream.publish(event("twice"), event("twice"), event("once"))
    jetstream.publish(event("twice"))
    until(lambda: ledger.entry("default", "once") and jetstream.left() == 0, what="all acknowledged")
    assert [(ledger.entry("default", key) or {})["generation"] for key in ("twice", "once")] == [1, 1]


def test_junk_goes_into_quarantine_and_is_not_delivered_again(
    start: Start, jetstream: JetStream, ledger: Ledger, database_url: str
) -> None:
    process = start(database_url)
    junk = [b"no json \xff\x00", b"", b"[]", b"{}", b'{"Records": [{"s3": 7}]}', b"[" * 100_000]
    jetstream.publish(*junk, event("good"), junk[0])
    until(lambda: ledger.entry("default", "good") and jetstream.left() == 0, what="all acknowledged")
    assert ledger.quarantined() == len(junk)
    reasons = {line["reason"] for line in lines(process, "event quarantined")}
    assert "the body is not JSON, or is nested too deeply" in reasons
    assert "there is no list of Records" in reasons
    assert jetstream.consumer().num_redelivered == 0


def test_nothing_is_acknowledged_before_the_ledger_has_committed(
    start: Start, jetstream: JetStream, ledger: Ledger, database_url: str
) -> None:
    process = start(database_url)
    with locked(database_url):
        jetstream.publish(*(event(f"k{number}") for number in range(50)))
        until(lambda: lines(process, "waiting for the ledger"), what="it says that it waits")
        assert jetstream.in_hand() > 0
        assert jetstream.left() == 50
    until(lambda: waiting(ledger) == 50 and jetstream.left() == 0, what="recorded once it can be")
    assert process.alive


def test_with_its_ledger_lost_it_acknowledges_nothing_and_ends(
    start: Start, jetstream: JetStream, tmp_path: Path
) -> None:
    path = tmp_path / "ledger.db"
    process = start(f"sqlite:///{path}")
    path.unlink()
    jetstream.publish(event("a"))
    until(lambda: not process.alive, what="it ends")
    assert "was deleted or replaced" in lines(process, "the ledger is lost")[0]["error"]
    assert jetstream.left() == 1
    assert process.exit_code == 1
    process.start()
    until(lambda: jetstream.left() == 0, what="the next one records it")


def test_what_a_killed_process_had_in_hand_is_delivered_to_another(
    start: Start, jetstream: JetStream, ledger: Ledger, database_url: str
) -> None:
    first = start(database_url)
    with locked(database_url):
        jetstream.publish(*(event(f"k{number}") for number in range(50)))
        until(lambda: jetstream.in_hand() > 0, what="some are in hand")
        first.kill()
    start(database_url)
    until(lambda: waiting(ledger) == 50 and jetstream.left() == 0, what="all recorded", bound_s=120)
    assert all((ledger.entry("default", f"k{number}") or {})["generation"] == 1 for number in range(50))


def test_several_processes_share_the_events(
    start: Start, jetstream: JetStream, ledger: Ledger, database_url: str
) -> None:
    processes = [start(database_url) for _ in range(2)]
    for batch in range(20):
        jetstream.publish(*(event(f"{batch}/{number}") for number in range(100)))
    until(lambda: waiting(ledger) == 2000 and jetstream.left() == 0, what="all recorded and acknowledged")
    for process in processes:
        process.stop()
    shares = [lines(process, "ingest ended")[0]["messages"] for process in processes]
    assert sum(shares) == 2000
    assert all(shares), shares


def test_sigterm_lets_the_batch_in_hand_be_recorded(
    start: Start, jetstream: JetStream, ledger: Ledger, database_url: str
) -> None:
    process = start(database_url)
    with locked(database_url):
        jetstream.publish(event("in hand"))
        until(lambda: jetstream.in_hand() == 1, what="it is in hand")
        ended = end(process, signal.SIGTERM)
    assert ended() == 0
    assert (waiting(ledger), jetstream.left()) == (1, 0)


def test_sigterm_does_not_wait_for_a_ledger_that_is_away(
    start: Start, jetstream: JetStream, ledger: Ledger, database_url: str
) -> None:
    process = start(database_url)
    with locked(database_url):
        jetstream.publish(event("in hand"))
        until(lambda: lines(process, "waiting for the ledger"), what="it waits")
        assert end(process, signal.SIGTERM)() == 0
    assert (waiting(ledger), jetstream.left()) == (0, 1)


def test_a_second_sigterm_ends_it_at_once(
    start: Start, jetstream: JetStream, ledger: Ledger, database_url: str
) -> None:
    process = start(database_url)
    with locked(database_url):
        jetstream.publish(event("in hand"))
        until(lambda: jetstream.in_hand() == 1, what="it is in hand")
        ended = end(process, signal.SIGTERM, signal.SIGTERM)
        assert ended() == 128 + signal.SIGTERM
    assert (waiting(ledger), jetstream.left()) == (0, 1)


def end(process: LoneIngest, *signals: signal.Signals) -> Callable[[], int]:
    """Sends the signals; gives a call that waits for the exit code."""
    running = process._process
    assert running is not None
    for each in signals:
        running.send_signal(each)
        time.sleep(0.2)  # two at once are one to the process
    return lambda: running.wait(BOUND_S)


def test_it_comes_back_when_the_server_does(
    start: Start, nats: Nats, jetstream: JetStream, ledger: Ledger, database_url: str
) -> None:
    process = start(database_url)
    for number, end_it in enumerate((nats.stop, nats.kill), start=1):
        before = len(lines(process, "waiting for NATS"))
        end_it()
        until(lambda: len(lines(process, "waiting for NATS")) > before, what="it says so")  # noqa: B023
        nats.start()
        jetstream.publish(event(f"after {number}"))
        until(lambda: waiting(ledger) == number, what="recorded")  # noqa: B023
        assert len(lines(process, "consuming events")) == number + 1
    assert process.alive


def test_a_stream_that_was_made_by_others_is_used_as_it_is(
    start: Start, jetstream: JetStream, ledger: Ledger, database_url: str
) -> None:
    jetstream.ask(lambda js: js.add_stream(name="THEIRS", subjects=["minio.>"], retention="workqueue"))
    jetstream.publish(event("before"), subject="minio.photos")
    process = start(database_url, EVENTS_SUBJECT="minio.photos")
    until(lambda: waiting(ledger) == 1, what="recorded")
    (begun,) = lines(process, "consuming events")
    assert (begun["stream"], begun["consumer"], begun["pending"]) == ("THEIRS", "replicator-minio-photos", 1)
    until(lambda: jetstream.ask(lambda js: js.stream_info("THEIRS")).state.messages == 0, what="done with")


PASSWORD = "s3cr3t/@:"
USERS = """
authorization { users: [
  {user: admin, password: admin}
  {user: maker, password: "s3cr3t/@:"}
  {user: reader, password: "s3cr3t/@:", permissions: {publish: {deny: "$JS.API.STREAM.CREATE.>"}}}
] }
"""


def test_who_may_not_make_the_stream_is_told_how_to_and_goes_on_when_there_is_one(
    tmp_path: Path, start: Start, ledger: Ledger, database_url: str
) -> None:
    with Nats(tmp_path / "guarded", options=USERS) as guarded:
        login = f"nats://reader:{quote(PASSWORD, safe='')}@{guarded.address}"
        process = start(database_url, ready_when="waiting for NATS", EVENTS_FROM=login)
        told = lines(process, "waiting for NATS")[0]
        assert "ermission" in told["error"]
        assert "nats stream add MINIO_EVENTS --subjects minio.events" in told["hint"]
        with JetStream(f"nats://admin:admin@{guarded.address}") as admin:
            admin.ask(lambda js: js.add_stream(name=STREAM, subjects=[SUBJECT]))
            admin.publish(event("k"))
        until(lambda: waiting(ledger) == 1, what="recorded")
        assert "s3cr3t" not in process.log_path.read_text()


def test_a_wrong_password_is_said_and_not_shown(tmp_path: Path, start: Start, database_url: str) -> None:
    with Nats(tmp_path / "guarded", options=USERS) as guarded:
        wrong = f"nats://maker:s3cr3t-but-wrong@{guarded.address}"
        process = start(database_url, ready_when="waiting for NATS", EVENTS_FROM=wrong)
        told = lines(process, "waiting for NATS")[0]
        assert "Authorization Violation" in told["error"]
        assert "EVENTS_FROM" in told["hint"]
        assert "s3cr3t" not in process.log_path.read_text()


def test_one_of_several_servers_is_enough(start: Start, nats: Nats, database_url: str) -> None:
    nowhere = f"nats://{LOOPBACK}:{free_port()}"
    process = start(database_url, EVENTS_FROM=f"{nowhere},{nats.url}")
    assert process.alive


def test_tls_is_checked_against_the_authorities_given(
    tmp_path: Path, start: Start, ledger: Ledger, database_url: str
) -> None:
    authority, stranger = trustme.CA(), trustme.CA()
    for name, each in (("ours", authority), ("other", stranger)):
        each.cert_pem.write_to_path(tmp_path / f"{name}.pem")
    certificate = authority.issue_cert(LOOPBACK)
    certificate.private_key_and_cert_chain_pem.write_to_path(tmp_path / "server.pem")
    options = f"tls {{ cert_file: {tmp_path}/server.pem, key_file: {tmp_path}/server.pem }}"
    with Nats(tmp_path / "tls", options=options) as server:
        address = f"tls://{server.address}"
        start(database_url, EVENTS_FROM=address, SSL_CERT_FILE=str(tmp_path / "ours.pem"))
        wrong = {"EVENTS_FROM": address, "SSL_CERT_FILE": str(tmp_path / "other.pem")}
        refused = start(database_url, ready_when="waiting for NATS", **wrong)
        assert "CERTIFICATE_VERIFY_FAILED" in lines(refused, "waiting for NATS")[0]["error"]


def test_a_login_is_not_sent_without_tls_where_tls_is_asked_for(start: Start, database_url: str) -> None:
    heard: list[bytes] = []
    with socket.create_server((LOOPBACK, 0)) as plain:
        listener = threading.Thread(target=greet, args=(plain, heard))
        listener.start()
        address = f"tls://maker:s3cr3t@{LOOPBACK}:{plain.getsockname()[1]}"
        process = start(database_url, ready_when="waiting for NATS", EVENTS_FROM=address)
        process.stop()
        listener.join()
    assert heard == [b""]
    assert "secure connection not available" in lines(process, "waiting for NATS")[0]["error"]


def greet(server: socket.socket, heard: list[bytes]) -> None:
    """A server without TLS: hears what one client says."""
    connection, _ = server.accept()
    with connection:
        connection.sendall(
            b'INFO {"server_id":"x","version":"2.10.0","auth_required":true,"headers":true}\r\n'
        )
        heard.append(connection.recv(4096))


def test_without_a_server_named_it_says_what_to_set(tmp_path: Path) -> None:
    done = run_it(tmp_path)
    assert done.returncode == 2
    assert "EVENTS_FROM is missing" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_server_that_cannot_be_one_is_refused_without_its_password(tmp_path: Path) -> None:
    done = run_it(tmp_path, EVENTS_FROM="nats://me:s3cr3t@host:port")
    assert done.returncode == 2
    assert "EVENTS_FROM must be like" in done.stderr
    assert "s3cr3t" not in done.stderr


def test_help_says_what_it_does(tmp_path: Path) -> None:
    done = run_it(tmp_path, "--help")
    assert done.returncode == 0
    assert "EVENTS_FROM" in done.stdout


def run_it(folder: Path, *options: str, **environ: str) -> subprocess.CompletedProcess[str]:
    """To its end, with a complete environment but for what is given."""
    stores = {
        f"{store}_{name}": value
        for store in ("MINIO", "FILEBASE")
        for name, value in (("ENDPOINT", "http://127.0.0.1:9"), ("ACCESS_KEY", "k"), ("SECRET_KEY", "k"))
    }
    buckets = {"MINIO_BUCKET": "source", "FILEBASE_BUCKET": "target"}
    return subprocess.run(
        [sys.executable, "-m", "webhook.ingest", *options],
        cwd=folder,
        env={
            "PYTHONPATH": str(ROOT),
            **stores,
            **buckets,
            "FILEBASE_ENDPOINT": "http://127.0.0.1:8",
            **environ,
        },
        timeout=BOUND_S,
        capture_output=True,
        text=True,
    )
