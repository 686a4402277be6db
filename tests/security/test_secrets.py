"""No secret leaves the service: each here is a value of its own, which is looked for in all that comes out.

The service runs as a deployment runs it, on real stores, PostgreSQL and NATS; then with wrong keys, without
its ledger, and without its stores; the scripts run beside it.
"""

from __future__ import annotations

import base64
import html
import json
import logging
import os
import re
import secrets
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote, quote_plus

import psycopg
import pytest
import requests
from psycopg import sql

from scripts.local_processes import LOOPBACK, free_port
from scripts.local_servers import Gateway, Nats, PostgreSQL, SeaweedFS
from scripts.local_service import ROOT, LoneIngest, Replicator
from tests.acceptance.test_traces import Collector
from tests.policies import User, add_seaweed_user, admin_of, merged, policy
from tests.security.conftest import ENVIRON
from tests.unit.conftest import MakeClient
from tests.unit.test_app import body_of, record
from webhook import settings
from webhook.connections import Connections, Request
from webhook.database import prepare
from webhook.errors import ReplicatorError
from webhook.pages.sessions import TOKEN_FIELD

BOUND_S, PROGRAM_BOUND_S = 60.0, 180.0
PAGES = ("/", "/objects", "/failures", "/quarantine", "/deletes", "/object?rule=default&key=a.txt")
CALLS = (
    "/v1/status",
    "/v1/failures",
    "/v1/entries",
    "/v1/quarantine",
    "/v1/sweeps",
    "/metrics",
    "/openapi.json",
)
STAY = {"allow_redirects": False}
OPEN = ("/healthz", "/readyz", "/sign-in", "/minio/events")


def canary(name: str) -> str:
    """A secret that is nowhere else, with signs in it that are written otherwise in URLs, HTML and JSON."""
    return f"c4n4ry-{name}-{secrets.token_hex(8)}+&=x"


def forms(secret: str) -> Iterator[bytes]:
    """All the ways in which a secret may be written."""
    plain = {
        secret,
        quote(secret, safe=""),
        quote_plus(secret),
        html.escape(secret),
        json.dumps(secret)[1:-1],
    }
    yield from (each.encode() for each in plain)
    yield secret.encode().hex().encode()
    for before in range(3):  # Base64 writes three bytes as four signs: what stands before moves it
        written = base64.b64encode(b"-" * before + secret.encode())
        yield written[-(-before * 4 // 3) : -4]
        yield written[-(-before * 4 // 3) : -4].translate(bytes.maketrans(b"+/", b"-_"))


@dataclass
class Evidence:
    """What came out, by where; and the secrets that must not be in it."""

    secrets: dict[str, str] = field(default_factory=dict)
    seen: dict[str, bytes] = field(default_factory=dict)

    def note(self, where: str, content: bytes) -> None:
        """Keeps what came out there."""
        self.seen[where] = self.seen.get(where, b"") + content

    def new(self, name: str) -> str:
        """Another secret."""
        self.secrets[name] = canary(name)
        return self.secrets[name]

    def leaks(self, where: str) -> list[str]:
        """The names of the secrets that came out there."""
        return [
            name
            for name, each in self.secrets.items()
            if any(form in self.seen[where] for form in forms(each))
        ]


@pytest.mark.parametrize(
    "written",
    [
        lambda secret: secret,
        lambda secret: f"postgresql://user:{quote(secret, safe='')}@host/db",
        lambda secret: f"<p>{html.escape(secret)}</p>",
        lambda secret: json.dumps({"error": f'"{secret}"'}),
        *(
            lambda secret, n=n: base64.b64encode(b"u" * n + secret.encode() + b"!!").decode()
            for n in range(4)
        ),
    ],
)
def test_a_secret_is_found_however_it_is_written(written: Callable[[str], str]) -> None:
    evidence = Evidence()
    evidence.note("here", written(evidence.new("one")).encode())
    evidence.note("elsewhere", written(canary("two")).encode())
    assert evidence.leaks("here") == ["one"]
    assert evidence.leaks("elsewhere") == []


# ── the running service ──────────────────────────────────────────────────────────────────────────────


class Scene:
    """The service with its surroundings, and what comes out of it."""

    def __init__(
        self, folder: Path, stack: ExitStack, *, gateway: Gateway, seaweed: SeaweedFS, postgresql: PostgreSQL
    ) -> None:
        self.evidence = Evidence()
        self.folder = folder
        self.stack = stack
        self.gateway, self.postgresql = gateway, postgresql
        self.database = f"canary_{secrets.token_hex(4)}"
        self.bucket = self.database.replace("_", "-")
        gateway.client().make_bucket(bucket_name=self.bucket)
        self.target_bucket = f"{self.bucket}-copy"
        seaweed.client().make_bucket(bucket_name=self.target_bucket)
        self.collector = Collector()
        stack.callback(self.collector.stop)
        self.bodies: list[bytes] = []
        self._keep_bodies()
        nats_login = f"user: me, password: {json.dumps(self.evidence.new('nats'))}"
        self.nats = stack.enter_context(Nats(folder / "nats", options=f"authorization {{ {nats_login} }}"))
        self.right = {
            **self._minio_user().variables("MINIO"),
            **self._seaweed_user(seaweed).variables("FILEBASE"),
            "WEBHOOK_AUTH_TOKEN": self.evidence.new("hook"),
            "API_TOKEN": self.evidence.new("api"),
            "DATABASE_URL": self._database_url(self._role()),
            "EVENTS_FROM": self.events_from(self.evidence.secrets["nats"]),
            "OTEL_EXPORTER_OTLP_ENDPOINT": self.collector.endpoint,
            "OTEL_EXPORTER_OTLP_HEADERS": f"authorization={quote(self.evidence.new('collector'), safe='')}",
            "MAX_ATTEMPTS": "1",
        }
        wrong = (self.evidence.new("wrong-key"), self.evidence.new("wrong-secret"))
        self.wrong = User(*wrong).variables("MINIO") | User(*wrong).variables("FILEBASE")
        nobody = f"{LOOPBACK}:{free_port()}"
        self.away = {
            "MINIO_ENDPOINT": f"http://{nobody}",
            "FILEBASE_ENDPOINT": "https://target.invalid",
            "HTTPS_PROXY": f"http://me:{quote(self.evidence.new('proxy'), safe='')}@{nobody}",
        }
        self.service = self._replicator(Replicator, seaweed)
        self.ingest = self._replicator(LoneIngest, seaweed)

    def _keep_bodies(self) -> None:
        take = self.collector.take

        def keep(body: bytes, authorization: str, path: str) -> None:
            self.bodies.append(body)
            take(body, authorization, path)

        self.collector.take = keep  # type: ignore[method-assign]

    def _minio_user(self) -> User:
        user = User(self.evidence.new("minio-key"), self.evidence.new("minio-secret"))
        allowed = merged(policy("minio-source", self.bucket), policy("minio-setup", self.bucket))
        admin = admin_of(self.gateway)
        admin.user_add(access_key=user.access_key, secret_key=user.secret_key)
        admin.policy_add(policy_name=self.database, policy=allowed)
        admin.policy_set(policy_name=self.database, user=user.access_key)
        return user

    def _seaweed_user(self, seaweed: SeaweedFS) -> User:
        user = add_seaweed_user(seaweed, self.database, policy("aws-target", self.target_bucket))
        self.evidence.secrets |= {"target-key": user.access_key, "target-secret": user.secret_key}
        return user

    def _role(self) -> str:
        """A user of the database whose password is asked for; gives that."""
        password = self.evidence.new("database")
        rules = self.postgresql.folder / "data" / "pg_hba.conf"
        rules.write_text(f"host all {self.database} all scram-sha-256\n{rules.read_text()}")
        name = sql.Identifier(self.database)
        with psycopg.connect(self.postgresql.url, autocommit=True) as connection:
            connection.execute(
                sql.SQL("CREATE ROLE {} LOGIN PASSWORD {}").format(name, sql.Literal(password))
            )
            connection.execute(sql.SQL("CREATE DATABASE {} OWNER {}").format(name, name))
            connection.execute("SELECT pg_reload_conf()")
        return password

    def _database_url(self, password: str) -> str:
        login = f"{self.database}:{quote(password, safe='')}"
        return f"postgresql://{login}@{LOOPBACK}:{self.postgresql.port}/{self.database}"

    def events_from(self, password: str) -> str:
        """The server of events, with this password."""
        return f"nats://me:{quote(password, safe='')}@{self.nats.address}"

    def _replicator(self, kind: type[Any], seaweed: SeaweedFS) -> Any:
        made = kind(
            self.folder / kind.name,
            source=self.gateway,
            source_bucket=self.bucket,
            target=seaweed,
            target_bucket=self.target_bucket,
            environ=self.right,
        )
        self.stack.callback(made.stop)
        return made

    def begin(self, process: Replicator, **changes: str) -> None:
        """Starts a process with other variables than the right ones."""
        process.stop()
        process.environ = self.right | changes
        process.start()
        self.evidence.note("command line", Path(f"/proc/{process.pid}/cmdline").read_bytes())

    def ask(self, method: str, path: str, *, by: str = "api", where: str = "answers", **more: Any) -> int:
        """One call, whose answer is kept; gives its status."""
        session = more.pop("session", requests)
        headers = {"Authorization": f"Bearer {self.evidence.secrets[by]}"} if by else {}
        got = session.request(method, self.service.url + path, headers=headers, timeout=BOUND_S, **more)
        self.evidence.note(where, f"{method} {path} {got.status_code} {got.headers}\n".encode() + got.content)
        return int(got.status_code)

    def ask_all(self) -> None:
        """Everything that can be looked at."""
        for path in (*CALLS, *OPEN):
            self.ask("GET", path)
        with requests.Session() as browser:
            form = browser.get(f"{self.service.url}/sign-in", timeout=BOUND_S).text
            proof = re.search(f'name="{TOKEN_FIELD}" value="([0-9a-f]+)"', form)
            assert proof
            for name in ("hook", "api"):  # the wrong one first
                sent = {"token": self.evidence.secrets[name], TOKEN_FIELD: proof[1]}
                self.ask("POST", "/sign-in", by="", where="pages", session=browser, data=sent, **STAY)
            status = self.ask("GET", "/", by="", where="pages", session=browser, **STAY)
            assert status in (200, 503), f"not signed in: {self.service.log_tail()}"
            for path in PAGES:
                self.ask("GET", path, by="", where="pages", session=browser)
            self.evidence.note("pages", repr(browser.cookies).encode())

    def notify(self, key: str) -> int:
        """Tells of an object, as MinIO does."""
        sent = body_of(record(key, bucket=self.bucket))
        return self.ask("POST", "/minio/events", by="hook", data=sent)

    def copy_now(self, key: str) -> int:
        """Asks for one copy, and waits for it."""
        return self.ask("POST", "/v1/replicate", json={"s3_key": key})

    def until(self, process: Replicator, words: str) -> None:
        """Until its log has them."""
        deadline = time.monotonic() + BOUND_S
        while words not in process.log_path.read_text(errors="replace"):
            assert time.monotonic() < deadline, f"{words!r} is not in the log:\n{process.log_tail()}"
            time.sleep(0.05)

    def run(self, *command: str, **changes: str) -> None:
        """Runs a program to its end beside the service, and keeps what it says."""
        environ = {"PATH": os.defpath, "LANG": "C.UTF-8", **self.service.settings(), **self.right, **changes}
        environ |= {"PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"}
        done = subprocess.run(
            [sys.executable, *command],
            cwd=self.folder,
            env=environ,
            capture_output=True,
            timeout=PROGRAM_BOUND_S,
        )
        said = done.stdout + done.stderr
        assert b"Traceback" not in said, said.decode()
        assert b"See --help" not in said, said.decode()
        self.evidence.note("programs", f"{command} {done.returncode}\n".encode() + said)

    def run_all(self, *programs: tuple[tuple[str, ...], dict[str, str]]) -> None:
        """Several, two at a time."""
        with ThreadPoolExecutor(2) as pool:
            list(pool.map(lambda each: self.run(*each[0], **each[1]), programs))


def all_is_well(scene: Scene) -> None:
    """Good requests and bad ones, while everything is there."""
    scene.gateway.client().fput_object(bucket_name=scene.bucket, object_name="a.txt", file_path=__file__)
    scene.begin(scene.service)
    scene.begin(scene.ingest)
    assert scene.notify("a.txt") == 200
    assert scene.copy_now("a.txt") in (200, 409)
    assert scene.copy_now("none") == 404
    assert scene.ask("POST", "/v1/replicate", data=b"{", json=None) == 400
    assert scene.ask("POST", "/v1/replicate", by="hook", json={"s3_key": "a.txt"}) == 401
    assert scene.ask("POST", "/minio/events", by="api", data=b"{}") == 401
    assert scene.ask("POST", "/minio/events", by="hook", data=b"{") == 400
    assert scene.ask("POST", "/minio/events", by="hook", data=body_of({"s3": 1})) == 200
    scene.ask_all()
    scene.run_all(
        (("scripts/doctor.py", "--only", "source,ledger,target,work"), {}),
        (("scripts/replicate_one.py", "a.txt"), {"API_TOKEN": scene.evidence.new("wrong-token")}),
        (("scripts/operate.py", "status"), {}),
    )


DOCTOR = ("scripts/doctor.py", "--read-only", "--only", "source,target")
HOOK = {"WEBHOOK_URL": f"http://{LOOPBACK}:9/minio/events", "WEBHOOK_QUEUE_DIR": "/tmp/events"}


def nats_lets_nobody_in(scene: Scene) -> None:
    """The server goes away; then it does not know the password."""
    scene.nats.stop()
    scene.until(scene.ingest, "cannot be")
    scene.nats.start()
    scene.ingest.ready_when = "NATS cannot be reached"
    scene.begin(scene.ingest, EVENTS_FROM=scene.events_from(scene.evidence.new("wrong-nats")))
    scene.ingest.stop()


def the_ledger_lets_nobody_in(scene: Scene) -> None:
    """Its password is changed under the running service; then it does not start; then there is no server."""
    another = sql.SQL("ALTER ROLE {} PASSWORD {}").format(
        sql.Identifier(scene.database), sql.Literal("another")
    )
    back = sql.SQL("ALTER ROLE {} PASSWORD {}").format(
        sql.Identifier(scene.database), sql.Literal(scene.evidence.secrets["database"])
    )
    with psycopg.connect(scene.postgresql.url, autocommit=True) as connection:
        connection.execute(another)
        end = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = %s"
        connection.execute(end, [scene.database])
        assert scene.notify("b.txt") == 503
        scene.ask_all()
        gunicorn = ("-m", "gunicorn", "--config", "config/gunicorn.conf.py", "webhook:create_app()")
        spoilt = canary("spoilt")
        scene.evidence.secrets["spoilt"] = spoilt.partition("+")[0]  # what follows is cut in some of these
        scene.run_all(
            (("scripts/doctor.py", "--only", "ledger"), {}),
            (("scripts/move_ledger.py",), {"OLD_DATABASE_URL": "sqlite:///none.db"}),
            (gunicorn, {}),
            (gunicorn, dict.fromkeys(SPOILT, f"http://{spoilt}@host:{spoilt}/{spoilt}")),
        )
        connection.execute(back)


SPOILT = ("MINIO_ENDPOINT", "DATABASE_URL", "EVENTS_FROM", "OTEL_EXPORTER_OTLP_HEADERS")


def stores_refuse(scene: Scene) -> None:
    """Both have other keys than the service."""
    scene.begin(scene.service, **scene.wrong)
    assert scene.copy_now("a.txt") == 502
    assert scene.notify("a.txt") == 200
    scene.ask_all()
    wrong = scene.wrong | HOOK
    scene.run_all((DOCTOR, wrong), (("config/configure_minio.py",), wrong))


def stores_are_away(scene: Scene) -> None:
    """Neither answers, nor does the proxy before one of them."""
    scene.begin(scene.service, **scene.away, LOG_FORMAT="json")
    assert scene.copy_now("a.txt") == 502
    scene.ask_all()
    scene.run_all(((*DOCTOR, "--json"), scene.away), (("config/configure_minio.py",), scene.away | HOOK))


@pytest.fixture(scope="module")
def evidence(
    tmp_path_factory: pytest.TempPathFactory, gateway: Gateway, seaweed: SeaweedFS, postgresql: PostgreSQL
) -> Iterator[Evidence]:
    """All that came out while all of this happened."""
    folder = tmp_path_factory.mktemp("canaries")
    for name in ("scripts", "config", "webhook"):
        (folder / name).symlink_to(ROOT / name)
    with ExitStack() as stack:
        scene = Scene(folder, stack, gateway=gateway, seaweed=seaweed, postgresql=postgresql)
        for happens in (
            all_is_well,
            nats_lets_nobody_in,
            the_ledger_lets_nobody_in,
            stores_refuse,
            stores_are_away,
        ):
            happens(scene)
        scene.service.stop()
        scene.evidence.note("rows", _rows(postgresql, scene.database))
        for process in (scene.service, scene.ingest):
            scene.evidence.note("logs", process.log_path.read_bytes())
        scene.evidence.note("spans", b"".join(scene.bodies))
        assert scene.collector.headers[0] == scene.evidence.secrets["collector"], "it was sent"
        yield scene.evidence


def _rows(postgresql: PostgreSQL, database: str) -> bytes:
    """All that the ledger holds."""
    with psycopg.connect(postgresql.url.removesuffix("postgres") + database) as connection:
        tables = connection.execute("SELECT tablename FROM pg_tables WHERE schemaname = 'public'").fetchall()
        rows = [
            connection.execute(sql.SQL("SELECT t::text FROM {} t").format(sql.Identifier(*table))).fetchall()
            for table in tables
        ]
    return repr(rows).encode()


@pytest.mark.parametrize(
    ("where", "words"),
    [
        (
            "logs",
            (
                "a.txt",
                "password authentication failed",
                "NATS cannot be reached",
                "answered 403",
                "target.invalid",
            ),
        ),
        ("answers", ("POST /minio/events 503", "POST /v1/replicate 502", "_denied", "openapi")),
        ("pages", ("POST /sign-in 303|POST /sign-in 302", "GET /failures 200", "a.txt")),
        (
            "programs",
            ("doctor.py", "password authentication failed", "InvalidAccessKeyId|AccessKey", "attention"),
        ),
        ("rows", ("a.txt", "denied")),
        ("spans", ("settle", "a.txt")),
        ("command line", ("gunicorn",)),
    ],
)
def test_no_secret_comes_out_whatever_happens(evidence: Evidence, where: str, words: tuple[str, ...]) -> None:
    seen = evidence.seen[where]
    for word in words:
        assert re.search(word.encode(), seen), f"{word} did not happen"
    assert evidence.leaks(where) == []


# ── in one process ───────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def given() -> tuple[Evidence, dict[str, str]]:
    """Secrets, and the variables that hold them."""
    known = Evidence()
    names = ("MINIO_ACCESS_KEY", "MINIO_SECRET_KEY", "FILEBASE_ACCESS_KEY", "FILEBASE_SECRET_KEY")
    variables = ENVIRON | {name: known.new(name) for name in (*names, "WEBHOOK_AUTH_TOKEN", "API_TOKEN")}
    variables["EVENTS_FROM"] = f"nats://me:{quote(known.new('nats'), safe='')}@host"
    return known, variables


def _ours(root: object) -> Iterator[object]:
    """All objects of the service's own classes that can be reached through each other's attributes."""
    found: dict[int, object] = {}
    left = [root]
    while left:
        each = left.pop()
        if isinstance(each, dict):
            left += each.values()
        elif isinstance(each, list | tuple | set | frozenset):
            left += each
        elif type(each).__module__.startswith("webhook") and id(each) not in found:
            found[id(each)] = each
            slots = [getattr(each, name, None) for name in getattr(each, "__slots__", ())]
            left += [*vars(each).values(), *slots] if hasattr(each, "__dict__") else slots
            yield each


def test_nothing_that_the_service_is_made_of_shows_a_secret(
    given: tuple[Evidence, dict[str, str]], make_client: MakeClient
) -> None:
    known, variables = given
    app = make_client(**variables).application
    collector = (
        f"a={quote(known.new('collector'), safe='')}"  # not for the app: spans would be sent by this process
    )
    traced = {"OTEL_EXPORTER_OTLP_ENDPOINT": f"http://{LOOPBACK}:9", "OTEL_EXPORTER_OTLP_HEADERS": collector}
    seen = [*_ours(settings.from_environ(variables | traced)), *_ours(app.extensions["service"])]
    kinds = {type(each).__name__ for each in seen}
    assert {"StoreSettings", "WebSettings", "NatsServers", "TracesSettings", "Source", "Target"} <= kinds
    for each in seen:
        known.note(type(each).__name__, f"{each!r} {each}".encode())
    assert {where: known.leaks(where) for where in known.seen if known.leaks(where)} == {}


def test_nor_does_the_database_with_its_password(given: tuple[Evidence, dict[str, str]]) -> None:
    known, variables = given
    url = f"postgresql://me:{quote(known.new('database'), safe='')}@{LOOPBACK}:9/db"
    configured = settings.from_environ(variables | {"DATABASE_URL": url})
    known.note("settings", repr(configured).encode())
    with pytest.raises(ReplicatorError) as caught:
        prepare(configured.database_url)
    known.note(
        "error", f"{caught.value!r} {caught.value} {caught.value.hint} {caught.value.__cause__!r}".encode()
    )
    assert known.leaks("settings") == known.leaks("error") == []


@pytest.mark.parametrize("log_format", ["text", "json"])
def test_a_crash_is_told_without_what_was_at_hand(
    given: tuple[Evidence, dict[str, str]],
    make_client: MakeClient,
    capsys: pytest.CaptureFixture[str],
    log_format: str,
) -> None:
    known, variables = given
    client = make_client(**variables, LOG_FORMAT=log_format)

    def crash() -> None:
        configured = client.application.extensions["settings"]
        token = configured.web.api_token
        raise RuntimeError(f"{len(token)} {configured}", configured)

    client.application.view_functions["health.healthz"] = crash
    answer = client.get("/healthz")
    known.note("answer", answer.data)
    logging.getLogger("webhook").exception(
        "and by the other way", exc_info=RuntimeError(client.application.extensions["settings"])
    )
    said = capsys.readouterr()
    known.note("log", (said.out + said.err).encode())
    assert answer.status_code == 500
    assert b"RuntimeError" in known.seen["log"]
    assert known.leaks("answer") == known.leaks("log") == []


def test_a_proxy_s_login_that_is_no_url_is_not_repeated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTPS_PROXY", "http://me:s3cr3t/more@proxy:1")
    connections = Connections("https://target.invalid", ca_file=settings.certifi.where())
    with pytest.raises(OSError, match="HTTPS_PROXY") as caught:
        connections.send(Request(method="GET", target="/", headers={}, body=None))
    assert "s3cr3t" not in f"{caught.value!r} {caught.value.__cause__!r}"
