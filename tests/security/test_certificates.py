"""TLS: no word is said to a server whose certificate is not the right one, by anything that speaks TLS."""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import socket
import ssl
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import certifi
import pytest
import requests
import trustme

from scripts import command_line
from scripts.local_service import Replicator
from tests.integration.conftest import Permit
from tests.integration.test_stores import BODY, NOTHING, md5
from tests.security.conftest import EVENTS, HOOK, TOKENS, OnLoopback, serving
from tests.unit.test_app import body_of, record
from webhook import database, jetstream, traces
from webhook.errors import EventsUnavailable, LedgerUnavailable, StoreUnavailable
from webhook.jetstream import consuming
from webhook.settings import EventsSettings, StoreSettings, TracesSettings
from webhook.source import Source
from webhook.target import Target
from webhook.variables import NatsServers

BOUND_S = 20.0
HERE = "localhost"
LONG_AGO = datetime.datetime(2001, 1, 1, tzinfo=datetime.UTC)
Greeting = Callable[[socket.socket], None]


def greet_postgresql(connection: socket.socket) -> None:
    """PostgreSQL's protocol, SSLRequest: 8 bytes, answered by one."""
    connection.recv(8)
    connection.sendall(b"S")


def greet_nats(connection: socket.socket) -> None:
    """NATS speaks first, without TLS."""
    info = b'INFO {"server_id":"x","version":"2.10.0","tls_required":true,"headers":true}\r\n'
    connection.sendall(info)


class Listening:
    """A server that takes TLS connections, remembers the first words of each, and hangs up."""

    def __init__(self, certificate: trustme.LeafCert) -> None:
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        certificate.configure_cert(self._context)
        self._socket = socket.create_server(("127.0.0.1", 0), backlog=20)
        self.port = self._socket.getsockname()[1]
        self.greet: Greeting = lambda _connection: None
        self.heard: list[bytes] = []
        self._thread = threading.Thread(target=self._accept)
        self._thread.start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self._socket.accept()
                connection.settimeout(BOUND_S)
                with connection, contextlib.suppress(OSError):
                    self.greet(connection)
                    with self._context.wrap_socket(connection, server_side=True) as secured:
                        self.heard.append(secured.recv(65536))

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()
        self._thread.join(BOUND_S)


class Servers(NamedTuple):
    by_name: Mapping[str, Listening]
    ca_file: str
    """Of the authority that signed "good", "expired" and "other name"."""


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Servers]:
    """One with each kind of certificate."""
    ours, strange = trustme.CA(), trustme.CA()
    path = tmp_path_factory.mktemp("authority") / "ours.pem"
    ours.cert_pem.write_to_path(path)
    made = {
        "good": Listening(ours.issue_cert(HERE)),
        "unknown authority": Listening(strange.issue_cert(HERE)),
        "other name": Listening(ours.issue_cert("elsewhere.example")),
        "expired": Listening(
            ours.issue_cert(HERE, not_before=LONG_AGO, not_after=LONG_AGO.replace(year=2002))
        ),
    }
    yield Servers(made, str(path))
    for each in made.values():
        each.close()


# ── what speaks TLS ──────────────────────────────────────────────────────────────────────────────────


def store_at(port: int, ca_file: str) -> StoreSettings:
    url = f"https://{HERE}:{port}"
    return StoreSettings(
        endpoint_url=url, access_key="s3cr3t", secret_key="s3cr3t", region="us-east-1", ca_file=ca_file
    )


def source(port: int, ca_file: str) -> None:
    with contextlib.closing(Source(store_at(port, ca_file))) as made:
        made.head("bucket", "key")


def target(port: int, ca_file: str) -> None:
    with contextlib.closing(Target(store_at(port, ca_file))) as made:
        made.put("bucket", "key", BODY, md5(BODY), NOTHING, permit=Permit())


def target_by_boto3(port: int, ca_file: str) -> None:
    with contextlib.closing(Target(store_at(port, ca_file))) as made:
        made.uploaded_parts("bucket", "key", "upload")


def script(port: int, ca_file: str) -> None:
    with command_line.Store("source", store_at(port, ca_file)).asked() as _:
        command_line.Store("source", store_at(port, ca_file)).buckets()


def nats(port: int, ca_file: str) -> None:
    async def ask() -> None:
        servers = NatsServers(urls=(f"tls://{HERE}:{port}",), user="s3cr3t", password="s3cr3t")
        async with consuming(EventsSettings(servers=servers, subject="minio.events", ca_file=ca_file)):
            pass

    asyncio.run(ask())


def postgresql(port: int, ca_file: str) -> None:
    verified = f"sslmode=verify-full&sslrootcert={ca_file}&gssencmode=disable"
    database.connect(f"postgresql://user:s3cr3t@{HERE}:{port}/ledger?{verified}").dispose()


def collector(port: int, ca_file: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of traces; its library has a setting of its own."""
    for name in ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"):  # they would win
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_CERTIFICATE", ca_file)
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "3")
    state = traces._state
    monkeypatch.setattr(traces, "_state", type(state)())
    traces.begin(TracesSettings(endpoint=f"https://{HERE}:{port}", headers={"a": "s3cr3t"}, service_name="x"))
    with traces.asking("event"):
        pass
    traces._state.provider.force_flush(3000)
    traces._state.provider.shutdown()


FAILS = (StoreUnavailable, EventsUnavailable, LedgerUnavailable, command_line.Failure)
SPEAKERS: dict[str, tuple[Any, Greeting | None]] = {
    "source": (source, None),
    "target": (target, None),
    "target, by boto3": (target_by_boto3, None),
    "a script": (script, None),
    "NATS": (nats, greet_nats),
    "PostgreSQL": (postgresql, greet_postgresql),
    "a collector of traces": (collector, None),
}


def speak(name: str, server: Listening, ca_file: str, monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """What the server hears of it."""
    call, greet = SPEAKERS[name]
    server.greet = greet or (lambda _connection: None)
    server.heard.clear()
    monkeypatch.setattr(jetstream, "CLOSE_TIMEOUT_S", 0.2)
    more = (monkeypatch,) if call is collector else ()
    with contextlib.suppress(*FAILS):  # nobody here gives an answer
        call(server.port, ca_file, *more)
    return [each for each in server.heard if each]


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # SDKs leave sockets open
@pytest.mark.parametrize("name", SPEAKERS)
def test_a_server_with_the_right_certificate_is_spoken_to(
    servers: Servers, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else the test below would show nothing."""
    assert speak(name, servers.by_name["good"], servers.ca_file, monkeypatch)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.filterwarnings(
    "ignore::urllib3.exceptions.InsecureRequestWarning"
)  # this test is to find it out
@pytest.mark.parametrize("wrong", ["unknown authority", "other name", "expired"])
@pytest.mark.parametrize("name", SPEAKERS)
def test_a_server_with_a_wrong_certificate_hears_nothing(
    servers: Servers, name: str, wrong: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert speak(name, servers.by_name[wrong], servers.ca_file, monkeypatch) == []


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("name", SPEAKERS)
def test_an_authority_of_one_s_own_is_trusted_only_where_it_is_named(
    servers: Servers, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert speak(name, servers.by_name["good"], certifi.where(), monkeypatch) == []


# ── the service's own ────────────────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def mutual(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Replicator, Path]]:
    """The service as docs/SECURITY.md has it speak TLS by itself: only to callers with a certificate."""
    folder = tmp_path_factory.mktemp("mutual")
    authority, strange = trustme.CA(), trustme.CA()
    authority.cert_pem.write_to_path(folder / "ca.pem")
    for name, leaf in (
        ("server", authority.issue_cert(HERE, "127.0.0.1")),
        ("minio", authority.issue_cert("minio")),
    ):
        leaf.private_key_and_cert_chain_pem.write_to_path(folder / f"{name}.pem")
    strange.issue_cert("minio").private_key_and_cert_chain_pem.write_to_path(folder / "stranger.pem")

    class SpeakingTls(OnLoopback):
        def _environment(self) -> dict[str, str]:
            files = f"--certfile {folder}/server.pem --keyfile {folder}/server.pem --ca-certs {folder}/ca.pem"
            options = f"--bind 127.0.0.1:{self.port} {files} --cert-reqs 2"
            return super()._environment() | {"GUNICORN_CMD_ARGS": options}

        def _probe(self) -> None:
            ask_mutual(self, folder, "minio").raise_for_status()

    with serving(folder / "service", SpeakingTls, **TOKENS) as running:
        yield running, folder


def ask_mutual(
    server: Replicator, folder: Path, who: str, path: str = "/healthz", **more: Any
) -> requests.Response:
    certificate = str(folder / f"{who}.pem") if who else None
    url = f"https://127.0.0.1:{server.port}{path}"
    method = "POST" if more else "GET"
    with requests.Session() as session:
        session.trust_env = False
        return session.request(
            method, url, verify=str(folder / "ca.pem"), cert=certificate, timeout=BOUND_S, **more
        )


@pytest.mark.parametrize("who", ["", "stranger"])
def test_where_certificates_are_asked_for_nobody_comes_in_without_one_of_that_authority(
    mutual: tuple[Replicator, Path], who: str
) -> None:
    for path in ("/healthz", "/v1/status"):
        with pytest.raises((requests.exceptions.ConnectionError, requests.exceptions.SSLError)):
            ask_mutual(*mutual, who, path)


def test_a_certificate_alone_is_not_enough(mutual: tuple[Replicator, Path]) -> None:
    event = {"data": body_of(record(bucket="source"))}
    assert ask_mutual(*mutual, "minio", EVENTS, **event).status_code == 401
    assert ask_mutual(*mutual, "minio", EVENTS, headers=HOOK, **event).json()["accepted"] == 1
    assert ask_mutual(*mutual, "minio", "/v1/status").status_code == 401
