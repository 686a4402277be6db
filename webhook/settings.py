"""Environment → Settings. The only place that reads the environment, and only when asked to.

Every problem is reported in one `SettingsError`; no message and no repr contains a secret.
"""

from __future__ import annotations

import os
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import certifi
from dotenv import dotenv_values

from webhook import conflicts, presets, rulesfile
from webhook.errors import SettingsError
from webhook.presets import Preset
from webhook.rules import Rules, Template
from webhook.rulesfile import (
    ENVIRONMENT_TARGET,
    LIMIT_MAX,
    OVERWRITE,
    Defaults,
    TargetTable,
    source_problem,
    target_bucket_problem,
)
from webhook.variables import NatsServers, Variables

MIB = 1024 * 1024
THREADS_MAX = 256
DAY_S = 86_400
PLATFORMS = {"RAILWAY_ENVIRONMENT_ID": "Railway", "KUBERNETES_SERVICE_HOST": "Kubernetes"}
"""Variables that these set in every container."""


@dataclass(frozen=True, kw_only=True)
class StoreSettings:
    """How to reach one S3 store."""

    endpoint_url: str
    """Scheme, host and port, no path: "https://s3.filebase.com"."""
    access_key: str = field(repr=False)
    secret_key: str = field(repr=False)
    region: str
    ca_file: str = field(default_factory=certifi.where)
    """The certificates that the store is checked against: a PEM file."""
    preset: Preset = presets.OTHER
    """What is known beforehand of the store."""
    max_rps: int = 0
    """Requests that a target gets in a second, from all processes that share a ledger; 0: no limit."""
    max_mbps: int = 0
    """Megabytes (10^6 bytes) of object data that it gets in a second, from all of them; 0: no limit."""


@dataclass(frozen=True, kw_only=True)
class WebSettings:
    """The HTTP side."""

    webhook_auth_token: str = field(repr=False)
    """What MinIO sends as `Authorization: Bearer …`; empty: callers from this machine only."""
    api_token: str = field(repr=False)
    """What callers of /v1 send; empty: callers from this machine only."""
    port: int
    metrics_public: bool = False
    """Whether GET /metrics is open to all."""
    body_max_bytes: int = MIB
    """MinIO sends one record of a few kB at a time."""


@dataclass(frozen=True, kw_only=True)
class EventsSettings:
    """Where events are fetched from, besides those that come to the HTTP side."""

    servers: NatsServers
    subject: str
    """What MinIO publishes to."""
    ca_file: str
    """The certificates that servers are checked against: a PEM file."""


@dataclass(frozen=True, kw_only=True)
class TracesSettings:
    """Where spans are sent: OpenTelemetry's own variables, which https://opentelemetry.io/docs/specs/otel/protocol/
    exporter/ has. Its other ones, such as OTEL_TRACES_SAMPLER, its library reads from the environment.
    """

    endpoint: str
    headers: Mapping[str, str] = field(repr=False)
    service_name: str


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
    keep_settled_s: float
    """How long an object's record is kept after it was settled; 0: for ever."""
    drain_s: float
    """How long a stopping process lets running copies finish before it hands them back."""


@dataclass(frozen=True, kw_only=True)
class CopySettings:
    """How objects are carried over."""

    memory_budget_bytes: int
    """Object data held in memory by one process, at most."""
    whole_max_bytes: int
    """Objects up to this size go in one request; larger ones in parts."""
    parts_in_flight: int = 4
    """Parts of one object under way at once."""


@dataclass(frozen=True, kw_only=True)
class DeleteSettings:
    """What guards deletes, for the rules that propagate them."""

    grace_s: float
    """How long an object must stay gone at the source before the target's is deleted."""
    breaker_max: int
    """More keys of one rule than this, if they would go within an hour, wait for a person."""
    breaker_share: float
    """So does more than this share of a rule's keys; from 0 to 1."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """All settings of one process."""

    source: StoreSettings
    targets: Mapping[str, StoreSettings]
    """The target stores, by name; "filebase" is the one of the FILEBASE_* variables."""
    rules: Rules
    web: WebSettings
    worker: WorkerSettings
    copy: CopySettings
    deletes: DeleteSettings
    events: EventsSettings | None
    """None: no events are fetched."""
    traces: TracesSettings | None
    """None: no spans are sent."""
    reconcile_interval_s: float
    """How often both sides are listed and compared; 0: never."""
    database_url: str = field(repr=False)
    log_format: str
    platform: str = ""
    """Whose container this runs in, where the environment tells: its disk is not kept, but for volumes."""


def load(folder: Path | None = None) -> Settings:
    """Settings from the environment, with `.env` in `folder` (default: the current one) filling the gaps.

    Raises: SettingsError.
    """
    env_file = (folder or Path.cwd()) / ".env"
    values = {name: value for name, value in dotenv_values(env_file).items() if value is not None}
    return from_environ({**values, **os.environ}, folder)


def from_environ(environ: Mapping[str, str], folder: Path | None = None) -> Settings:
    """Settings from a mapping of variables. RULES_FILE and the files of secrets, such as API_TOKEN_FILE, are
    paths from `folder` (default: the current one).

    Raises: SettingsError, naming every problem at once.
    """
    folder = folder or Path.cwd()
    read = Variables(environ, folder)
    source = _store(read, "MINIO")
    targets, templates = _replication(read, folder, source.endpoint_url)
    settings = Settings(
        source=source,
        targets=targets,
        rules=Rules(templates=templates),
        web=WebSettings(
            webhook_auth_token=read.secret("WEBHOOK_AUTH_TOKEN", ""),
            api_token=read.secret("API_TOKEN", ""),
            port=read.whole("PORT", 8000, least=1, most=65535),
            metrics_public=read.flag("METRICS_PUBLIC", default=False),
        ),
        worker=WorkerSettings(
            threads=read.whole("WORKER_THREADS", 16, least=1, most=THREADS_MAX),
            embedded=read.flag("WORKER_EMBEDDED", default=True),
            lease_s=read.whole("LEASE_S", 60, least=2, most=3600),
            attempts_max=read.whole("MAX_ATTEMPTS", 20, least=1, most=10_000),
            upload_keep_s=read.whole("UPLOAD_KEEP_S", 86_400, least=0, most=31_536_000),
            keep_settled_s=read.whole("KEEP_SETTLED_DAYS", 0, least=0, most=36_500) * DAY_S,
            drain_s=read.whole("DRAIN_S", 25, least=0, most=3600),
        ),
        copy=CopySettings(
            memory_budget_bytes=read.whole("MEMORY_BUDGET_MIB", 128, least=32, most=1_048_576) * MIB,
            whole_max_bytes=read.whole("WHOLE_OBJECT_MAX_MIB", 16, least=5, most=1024) * MIB,
        ),
        deletes=DeleteSettings(
            grace_s=read.whole("DELETE_GRACE_S", 60, least=0, most=86_400),
            breaker_max=read.whole("DELETE_BREAKER_MAX", 1000, least=0, most=10_000_000),
            breaker_share=read.whole("DELETE_BREAKER_SHARE", 10, least=0, most=100) / 100,
        ),
        events=_events(read),
        traces=_traces(read),
        reconcile_interval_s=read.whole("RECONCILE_INTERVAL_S", 21_600, least=0, most=31_536_000),
        database_url=read.database_url("DATABASE_URL", "sqlite:///data/replicator.db"),
        log_format=read.choice("LOG_FORMAT", ("text", "json")),
        platform=next((each for name, each in PLATFORMS.items() if read.text(name, "")), ""),
    )
    if settings.copy.whole_max_bytes > settings.copy.memory_budget_bytes:
        read.problems.append("WHOLE_OBJECT_MAX_MIB must not be larger than MEMORY_BUDGET_MIB")
    if read.problems:
        raise SettingsError(list(dict.fromkeys(read.problems)))  # what holds for each target, once
    return settings


def _store(read: Variables, prefix: str, *, preset: Preset = presets.OTHER) -> StoreSettings:
    return StoreSettings(
        endpoint_url=read.endpoint(f"{prefix}_ENDPOINT"),
        access_key=read.secret(f"{prefix}_ACCESS_KEY"),
        secret_key=read.secret(f"{prefix}_SECRET_KEY"),
        region=read.text(f"{prefix}_REGION", preset.region),
        ca_file=ca_file(read, prefix),
        preset=preset,
    )


def ca_file(read: Variables, prefix: str) -> str:
    """The certificate authorities that a store is checked against: its own, those for all, the usual ones."""
    return read.certificates(f"{prefix}_CA_BUNDLE", "SSL_CERT_FILE", default=certifi.where())


def _events(read: Variables) -> EventsSettings | None:
    servers = read.nats_servers("EVENTS_FROM")
    subject = read.nats_subject("EVENTS_SUBJECT", "minio.events")
    trusted = read.certificates("SSL_CERT_FILE", default=certifi.where())
    return EventsSettings(servers=servers, subject=subject, ca_file=trusted) if servers else None


def _traces(read: Variables) -> TracesSettings | None:
    endpoint = read.text("OTEL_EXPORTER_OTLP_ENDPOINT", "")
    if not endpoint:
        return None
    return TracesSettings(
        endpoint=read.http_url("OTEL_EXPORTER_OTLP_ENDPOINT", endpoint),
        headers=read.pairs("OTEL_EXPORTER_OTLP_HEADERS"),
        service_name=read.text("OTEL_SERVICE_NAME", "minio-replicator"),
    )


def _environment_target(read: Variables) -> StoreSettings:
    if read.text("FILEBASE_PRESET", ""):
        preset = presets.named(read.choice("FILEBASE_PRESET", presets.NAMES)) or presets.OTHER
    else:
        preset = presets.of_endpoint(read.text("FILEBASE_ENDPOINT", ""))
    return _with_limits(read, _store(read, "FILEBASE", preset=preset))


def _file_target(read: Variables, table: TargetTable) -> StoreSettings:
    preset = presets.named(table.preset) or presets.of_endpoint(table.endpoint)
    if table.preset and not presets.named(table.preset):
        names = ", ".join(presets.NAMES)
        read.problems.append(f"{table.title} preset must be one of {names}, not {table.preset!r}")
    region = table.region or preset.region
    endpoint = table.endpoint or preset.endpoint.replace("{region}", region)
    store = StoreSettings(
        endpoint_url=read.as_endpoint(f"{table.title} endpoint", endpoint),
        access_key=read.secret(f"{table.variables}_ACCESS_KEY"),
        secret_key=read.secret(f"{table.variables}_SECRET_KEY"),
        region=region,
        ca_file=ca_file(read, table.variables),
        preset=preset,
    )
    return _with_limits(read, store, table)


def _with_limits(read: Variables, store: StoreSettings, table: TargetTable | None = None) -> StoreSettings:
    """A target with its limits: its table's, else those for all, else what is known of the store."""
    max_rps = read.whole("TARGET_MAX_RPS", store.preset.max_rps, least=0, most=LIMIT_MAX)
    max_mbps = read.whole("TARGET_MAX_MBPS", 0, least=0, most=LIMIT_MAX)
    if table and table.max_rps is not None:
        max_rps = table.max_rps
    if table and table.max_mbps is not None:
        max_mbps = table.max_mbps
    return replace(store, max_rps=max_rps, max_mbps=max_mbps)


def _replication(
    read: Variables, folder: Path, source: str
) -> tuple[dict[str, StoreSettings], tuple[Template, ...]]:
    """The target stores and the rules: those of RULES_FILE, else what the environment says."""
    defaults = Defaults(
        deletes=read.flag("REPLICATE_DELETES", default=False),
        overwrite=read.choice("OVERWRITE", OVERWRITE),
        storage_class=read.text("FILEBASE_STORAGE_CLASS", ""),
    )
    file_name = read.text("RULES_FILE", "")
    if file_name:
        return _from_file(read, folder / file_name, defaults, source)
    return _from_variables(read, defaults, source)


def _from_variables(
    read: Variables, defaults: Defaults, source: str
) -> tuple[dict[str, StoreSettings], tuple[Template, ...]]:
    targets = {ENVIRONMENT_TARGET: _environment_target(read)}
    buckets = read.names("MINIO_BUCKET", source_problem)
    target_bucket = read.text("FILEBASE_BUCKET")
    read.check("FILEBASE_BUCKET", target_bucket, target_bucket_problem)
    if not buckets:
        return targets, ()
    template = Template(
        name="default",
        sources=buckets,
        target_bucket=target_bucket,
        deletes=defaults.deletes,
        overwrite=defaults.overwrite,
        storage_class=defaults.storage_class,
    )
    endpoints = {name: store.endpoint_url for name, store in targets.items()}
    if conflicts.loops([template], source=source, targets=endpoints):
        why = "nothing to copy to" if template.only_bucket else "copies would be copied again"
        read.problems.append(f"FILEBASE_ENDPOINT and FILEBASE_BUCKET name the source itself: {why}")
    return targets, (template,)


def _from_file(
    read: Variables, path: Path, defaults: Defaults, source: str
) -> tuple[dict[str, StoreSettings], tuple[Template, ...]]:
    document = _toml(read, path)
    if document is None:
        return {}, ()
    contents = rulesfile.parse(document, defaults)
    read.problems += contents.problems
    targets = {table.name: _file_target(read, table) for table in contents.targets}
    if contents.needs_environment_target:
        targets[ENVIRONMENT_TARGET] = _environment_target(read)
    endpoints = {name: store.endpoint_url for name, store in targets.items()}
    read.problems += conflicts.problems(contents.templates, source=source, targets=endpoints)
    return targets, contents.templates


def _toml(read: Variables, path: Path) -> Mapping[str, object] | None:
    problem = f"RULES_FILE {str(path)!r}"
    try:
        return tomllib.loads(path.read_text("utf-8"))
    except OSError as error:
        read.problems.append(f"{problem} cannot be read: {error.strerror}")
    except UnicodeDecodeError as error:
        read.problems.append(f"{problem} is not UTF-8 (at byte {error.start})")
    except tomllib.TOMLDecodeError as error:
        read.problems.append(f"{problem} is not TOML: {error}")
    except RecursionError:
        read.problems.append(f"{problem} is nested too deeply")
    return None
