"""Environment → Settings. The only place that reads the environment, and only when asked to.

Every problem is reported in one `SettingsError`; no message and no repr contains a secret.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar
from urllib.parse import urlsplit

import certifi
from dotenv import dotenv_values

from webhook.errors import SettingsError

MIB = 1024 * 1024
T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class StoreSettings:
    """How to reach one S3 store."""

    endpoint_url: str
    """Scheme, host and port, no path: "https://s3.filebase.com"."""
    access_key: str = field(repr=False)
    secret_key: str = field(repr=False)
    region: str
    bucket: str
    ca_file: str = field(default_factory=certifi.where)
    """The certificates that the store is checked against: a PEM file."""
    storage_class: str = ""
    """What objects are written with; empty: whatever the store gives them."""


@dataclass(frozen=True, kw_only=True)
class WebSettings:
    """The HTTP side."""

    webhook_auth_token: str = field(repr=False)
    """What MinIO sends as `Authorization: Bearer …`; empty: callers from this machine only."""
    api_token: str = field(repr=False)
    """What callers of /v1 send; empty: callers from this machine only."""
    port: int
    body_max_bytes: int = MIB
    """MinIO sends one record of a few kB at a time."""


@dataclass(frozen=True, kw_only=True)
class WorkerSettings:
    """How much is done at once, and for how long it is tried."""

    threads: int
    embedded: bool
    """Whether the web process replicates too."""
    lease_s: float
    """How long a claim holds without a sign of life."""
    attempts_max: int
    """Tries an object gets before it is put aside as failed. Waiting for an unreachable store is no try."""
    upload_keep_s: float
    """How long an unfinished upload of a failed object is kept, to be gone on with."""
    drain_s: float
    """How long a stopping process lets running copies finish before it hands them back."""


@dataclass(frozen=True, kw_only=True)
class CopySettings:
    """How objects are carried over."""

    overwrite: str
    """"changed": the target follows the source; "never": an existing key at the target is left alone."""
    memory_budget_bytes: int
    """Object data held in memory by one process, at most."""
    whole_max_bytes: int
    """Objects up to this size go in one request; larger ones in parts."""
    parts_in_flight: int = 4
    """Parts of one object under way at once."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """All settings of one process."""

    source: StoreSettings
    target: StoreSettings
    web: WebSettings
    worker: WorkerSettings
    copy: CopySettings
    database_url: str = field(repr=False)
    log_format: str


def load(folder: Path | None = None) -> Settings:
    """Settings from the environment, with `.env` in `folder` (default: the current one) filling the gaps.

    Raises: SettingsError.
    """
    env_file = (folder or Path.cwd()) / ".env"
    values = {name: value for name, value in dotenv_values(env_file).items() if value is not None}
    return from_environ({**values, **os.environ})


def from_environ(environ: Mapping[str, str]) -> Settings:
    """Settings from a mapping of variables. Raises: SettingsError, naming every problem at once."""
    read = _Reader(environ)
    settings = Settings(
        source=_store(read, "MINIO"),
        target=_store(read, "FILEBASE"),
        web=WebSettings(
            webhook_auth_token=read.text("WEBHOOK_AUTH_TOKEN", ""),
            api_token=read.text("API_TOKEN", ""),
            port=read.whole("PORT", 8000, least=1, most=65535),
        ),
        worker=WorkerSettings(
            threads=read.whole("WORKER_THREADS", 16, least=1, most=256),
            embedded=read.flag("WORKER_EMBEDDED", default=True),
            lease_s=read.whole("LEASE_S", 60, least=2, most=3600),
            attempts_max=read.whole("MAX_ATTEMPTS", 20, least=1, most=10_000),
            upload_keep_s=read.whole("UPLOAD_KEEP_S", 86_400, least=0, most=31_536_000),
            drain_s=read.whole("DRAIN_S", 25, least=0, most=3600),
        ),
        copy=CopySettings(
            overwrite=read.choice("OVERWRITE", ("changed", "never")),
            memory_budget_bytes=read.whole("MEMORY_BUDGET_MIB", 128, least=32, most=1_048_576) * MIB,
            whole_max_bytes=read.whole("WHOLE_OBJECT_MAX_MIB", 16, least=5, most=1024) * MIB,
        ),
        database_url=read.database_url("DATABASE_URL", "sqlite:///data/replicator.db"),
        log_format=read.choice("LOG_FORMAT", ("text", "json")),
    )
    if settings.copy.whole_max_bytes > settings.copy.memory_budget_bytes:
        read.problems.append("WHOLE_OBJECT_MAX_MIB must not be larger than MEMORY_BUDGET_MIB")
    _refuse_a_loop(settings, read.problems)
    if read.problems:
        raise SettingsError(read.problems)
    return settings


def _store(read: _Reader, prefix: str) -> StoreSettings:
    return StoreSettings(
        endpoint_url=read.endpoint(f"{prefix}_ENDPOINT"),
        access_key=read.text(f"{prefix}_ACCESS_KEY"),
        secret_key=read.text(f"{prefix}_SECRET_KEY"),
        region=read.text(f"{prefix}_REGION", "us-east-1"),
        bucket=read.text(f"{prefix}_BUCKET"),
        ca_file=read.text("SSL_CERT_FILE", certifi.where()),
        storage_class=read.text(f"{prefix}_STORAGE_CLASS", "") if prefix == "FILEBASE" else "",
    )


def _refuse_a_loop(settings: Settings, problems: list[str]) -> None:
    source, target = settings.source, settings.target
    if source.bucket and (source.endpoint_url, source.bucket) == (target.endpoint_url, target.bucket):
        problems.append("FILEBASE_ENDPOINT and FILEBASE_BUCKET name the source itself: nothing to copy to")


class _Reader:
    """Takes variables one by one and collects what is wrong with them."""

    def __init__(self, environ: Mapping[str, str]) -> None:
        self._environ = environ
        self.problems: list[str] = []

    def text(self, name: str, default: str | None = None) -> str:
        value = self._environ.get(name, "").strip()
        if value:
            return value
        if default is None:
            self.problems.append(f"{name} is missing")
        return default or ""

    def endpoint(self, name: str) -> str:
        value = self.text(name)
        if not value:
            return ""
        return self._parsed(name, value, _endpoint_url, 'must be like "https://host:9000"', "")

    def database_url(self, name: str, default: str) -> str:
        value = self.text(name, default)
        if not value.startswith(("sqlite:///", "postgres://", "postgresql://", "postgresql+psycopg://")):
            self.problems.append(f"{name} must begin with sqlite:/// or postgresql://")
        return value

    def whole(self, name: str, default: int, *, least: int, most: int) -> int:
        value = self.text(name, str(default))
        number = self._parsed(name, value, int, f"must be a whole number, not {value!r}", default)
        if not least <= number <= most:
            self.problems.append(f"{name} must be between {least} and {most}, not {number}")
        return number

    def flag(self, name: str, *, default: bool) -> bool:
        words = {"true": True, "1": True, "yes": True, "on": True}
        words |= {"false": False, "0": False, "no": False, "off": False}
        value = self.text(name, str(default)).lower()
        return self._parsed(name, value, words.__getitem__, f"must be true or false, not {value!r}", default)

    def choice(self, name: str, choices: tuple[str, ...]) -> str:
        value = self.text(name, choices[0]).lower()
        if value not in choices:
            self.problems.append(f"{name} must be one of {', '.join(choices)}, not {value!r}")
        return value

    def _parsed(self, name: str, value: str, parse: Callable[[str], T], problem: str, fallback: T) -> T:
        try:
            return parse(value)
        except (ValueError, KeyError):
            self.problems.append(f"{name} {problem}")
            return fallback


def _endpoint_url(value: str) -> str:
    parts = urlsplit(value)
    usable = parts.scheme in ("http", "https") and parts.hostname and parts.path in ("", "/")
    if not usable or parts.query or parts.fragment or "@" in parts.netloc or parts.port == 0:
        raise ValueError(value)
    standard = {"http": ":80", "https": ":443"}[parts.scheme]
    return f"{parts.scheme}://{parts.netloc.lower().removesuffix(standard)}"
