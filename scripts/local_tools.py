"""Programs of other makes: rclone compares, mc sets MinIO up, Chromium shows pages."""

from __future__ import annotations

import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from scripts.local_processes import find_binary
from scripts.local_servers import REGION, S3Server

CHECK_BOUND_S = 600.0
VERSION_BOUND_S = 10.0
_TOOLS = Path(__file__).resolve().parent.parent / ".tools" / "bin"


@dataclass(frozen=True)
class CheckResult:
    """What `rclone check` found. `differences` are its lines, such as `* a/b.txt`.

    `-` is missing at the source, `+` is missing at the target, `*` differs, `!` could not be read.
    """

    ok: bool
    differences: tuple[str, ...]
    output: str


def rclone_check(
    source_server: S3Server,
    source_bucket: str,
    target_server: S3Server,
    target_bucket: str,
    *,
    download: bool = False,
) -> CheckResult:
    """Compares two buckets with the real rclone: sizes, and MD5s where both sides have one.

    Multipart objects have none, so only their sizes are compared; `download` reads every byte instead.
    """
    remotes = rclone_remotes(source_server, target_server)
    command = [find_binary("rclone"), "check", "--config=", "--combined=-", "--retries=1"]
    command += ["--download"] if download else []
    done = subprocess.run(
        [*command, f"source:{source_bucket}", f"target:{target_bucket}"],
        env={"PATH": os.defpath, "HOME": str(source_server.folder)} | remotes,
        timeout=CHECK_BOUND_S,
        capture_output=True,
        text=True,
    )
    differences = tuple(line for line in done.stdout.splitlines() if not line.startswith("= "))
    return CheckResult(done.returncode == 0, differences, done.stdout + done.stderr)


def rclone_remotes(source: S3Server, target: S3Server) -> dict[str, str]:
    """The environment in which rclone knows both as `source:` and `target:`."""
    return _rclone_remote("SOURCE", source) | _rclone_remote("TARGET", target)


def _rclone_remote(name: str, server: S3Server) -> dict[str, str]:
    settings = {"TYPE": "s3", "PROVIDER": "Other", "ENDPOINT": server.endpoint, "REGION": REGION}
    settings |= {"ACCESS_KEY_ID": server.access_key, "SECRET_ACCESS_KEY": server.secret_key}
    return {f"RCLONE_CONFIG_{name}_{key}": value for key, value in settings.items()}


def find_mc() -> Path | None:
    """The real MinIO client on PATH, else where scripts/get_mc.sh puts it, else None.

    `mc` may be Midnight Commander, which is refused.
    """
    found = [shutil.which(name) for name in ("mc", "mcli", "minio-client")]
    candidates = [path for path in (*found, str(_TOOLS / "minio-client")) if path]
    return next((Path(path) for path in candidates if _is_minio_client(path)), None)


def find_chromium() -> Path | None:
    """Chromium or Chrome on PATH, else what scripts/get_chromium.sh fetched, else None."""
    names = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
    found = [shutil.which(name) for name in names]
    candidates = [path for path in (*found, str(_TOOLS / "chromium")) if path]
    return next((Path(path) for path in candidates if _answers(path)), None)


def _answers(path: str) -> bool:
    try:
        done = subprocess.run([path, "--version"], timeout=VERSION_BOUND_S, capture_output=True)
    except (OSError, subprocess.TimeoutExpired):
        return False
    return done.returncode == 0


def _is_minio_client(path: str) -> bool:
    try:
        done = subprocess.run([path, "--version"], timeout=VERSION_BOUND_S, capture_output=True)
    except (OSError, subprocess.TimeoutExpired):
        return False
    return done.returncode == 0 and b"Midnight Commander" not in done.stdout and b"go1" in done.stdout
