"""This service itself on loopback, as a deployment runs it, for the demo, the benchmark and the tests."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import requests

from scripts.local_processes import LOOPBACK, Server
from scripts.local_servers import S3Server

ROOT = Path(__file__).resolve().parent.parent
WEBHOOK_AUTH_TOKEN = "loopback-webhook-token"  # noqa: S105 - for servers that live for minutes
API_TOKEN = "loopback-api-token"  # noqa: S105
ANSWER_BOUND_S = 60.0


class Replicator(Server):
    """The web process with its embedded worker, started by the Procfile's own command.

    It runs in `folder`, where the program is linked to: no `.env` of a developer reaches it, and its
    ledger is at `data/replicator.db` there unless `environ` says otherwise.
    """

    name = "replicator"

    def __init__(
        self,
        folder: Path,
        *,
        source: S3Server,
        source_bucket: str,
        target: S3Server,
        target_bucket: str,
        keys: Mapping[str, str] | None = None,
        environ: Mapping[str, str] | None = None,
    ) -> None:
        """`keys`: the variables of users of the stores, in place of their administrators'."""
        super().__init__(folder)
        self._stores = (source, source_bucket, target, target_bucket)
        self._keys = dict(keys or {})
        self.environ = dict(environ or {})

    @property
    def url(self) -> str:
        """`http://127.0.0.1:PORT`, the same after every restart."""
        return f"http://{LOOPBACK}:{self.port}"

    @property
    def events_url(self) -> str:
        """Where MinIO sends its notifications."""
        return f"{self.url}/minio/events"

    def settings(self) -> dict[str, str]:
        """The variables it runs with, secrets among them."""
        source, source_bucket, target, target_bucket = self._stores
        return {
            "MINIO_ENDPOINT": source.endpoint,
            "MINIO_ACCESS_KEY": source.access_key,
            "MINIO_SECRET_KEY": source.secret_key,
            "MINIO_BUCKET": source_bucket,
            "FILEBASE_ENDPOINT": target.endpoint,
            "FILEBASE_ACCESS_KEY": target.access_key,
            "FILEBASE_SECRET_KEY": target.secret_key,
            "FILEBASE_BUCKET": target_bucket,
            "WEBHOOK_AUTH_TOKEN": WEBHOOK_AUTH_TOKEN,
            "API_TOKEN": API_TOKEN,
            "PORT": str(self.port),
            **self._keys,
            **self.environ,
        }

    def get(self, path: str, **more: Any) -> requests.Response:
        """GET with the API token."""
        return self._ask("GET", path, **more)

    def post(self, path: str, **more: Any) -> requests.Response:
        """POST with the API token; `json=…` as requests takes it."""
        return self._ask("POST", path, **more)

    def unsettled(self) -> int:
        """How many entries are waiting, running or failed."""
        counts = self.get("/v1/status").json()["entries"]
        return sum(sum(lanes.values()) for state, lanes in counts.items() if state != "settled")

    def settled(self) -> int:
        """How many entries are settled."""
        return int(sum(self.get("/v1/status").json()["entries"]["settled"].values()))

    def _ask(self, method: str, path: str, **more: Any) -> requests.Response:
        headers = {"Authorization": f"Bearer {API_TOKEN}", **more.pop("headers", {})}
        return requests.request(method, self.url + path, headers=headers, timeout=ANSWER_BOUND_S, **more)

    def _prepare(self) -> None:
        for name in ("webhook", "config"):
            link = self.folder / name
            if not link.exists():
                link.symlink_to(ROOT / name)

    def _environment(self) -> dict[str, str]:
        path = f"{Path(sys.executable).parent}:{os.defpath}"
        return super()._environment() | {"PATH": path, "PYTHONDONTWRITEBYTECODE": "1"} | self.settings()

    def _command(self) -> list[str]:
        return shlex.split((ROOT / "Procfile").read_text().removeprefix("web: "))

    def _probe(self) -> None:
        requests.get(f"{self.url}/healthz", timeout=1).raise_for_status()


class LoneWorker(Replicator):
    """`python -m webhook.worker` beside a `Replicator`, on the same ledger (give it `DATABASE_URL`)."""

    name = "worker"
    _logged_before = 0

    def _command(self) -> list[str]:
        return [sys.executable, "-m", "webhook.worker"]

    def _spawn(self) -> None:
        self._logged_before = self.log_path.stat().st_size if self.log_path.exists() else 0
        super()._spawn()

    def _probe(self) -> None:
        if b"worker starts" not in self.log_path.read_bytes()[self._logged_before :]:
            raise ConnectionError("not yet")


class LoneIngest(Replicator):
    """`python -m webhook.ingest` on a `Replicator`'s ledger: give it `DATABASE_URL` and `EVENTS_FROM`."""

    name = "ingest"
    ready_when = "consuming events"
    """What it writes when it is taken to be started."""
    _runs_before = 0

    def log_of_this_run(self) -> str:
        """What it wrote since it was started last."""
        return self.log_path.read_text(errors="replace").rpartition("ingest starts")[2]

    def _command(self) -> list[str]:
        return [sys.executable, "-m", "webhook.ingest"]

    def _spawn(self) -> None:
        self._runs_before = self._runs()
        super()._spawn()

    def _runs(self) -> int:
        return (
            self.log_path.read_text(errors="replace").count("ingest starts") if self.log_path.exists() else 0
        )

    def _probe(self) -> None:
        if self._runs() == self._runs_before or self.ready_when not in self.log_of_this_run():
            raise ConnectionError("not yet")
