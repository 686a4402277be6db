"""GET /metrics, for Prometheus: of all processes on the ledger, whichever of them answers.

Names and units follow https://prometheus.io/docs/practices/naming/.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping
from datetime import datetime
from typing import Any

import sqlalchemy as sa
from flask import Blueprint, Response, request
from prometheus_client import CollectorRegistry
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
    Metric,
)
from prometheus_client.exposition import choose_encoder

from webhook import meter
from webhook.callers import configured, let_in, service
from webhook.copier import OutcomeKind
from webhook.ledger import Ledger
from webhook.meter import ALL_TIME, BUCKET, BUCKETS_S, SUM, Labels
from webhook.reconcile import DIFFERENCES
from webhook.service import Service
from webhook.status import facts
from webhook.sweeps import Sweeps
from webhook.tables import COUNTS

PREFIX = "minio_replicator_"
COUNTERS = {
    "events": ("Records of notifications, by what became of them.", ("outcome",)),
    "copies": ("Attempts that settled an object, by outcome.", ("rule", "outcome")),
    "copied_bytes": ("Object data written to the target.", ("rule",)),
    "retries": ("Attempts that are followed by another one, by the reason.", ("rule", "reason")),
    "failures": ("Objects put aside until a person acts, by the reason.", ("rule", "reason")),
    "lost_attributes": ("What the target could not hold of settled objects.", ("rule", "attribute")),
    "sweep_differences": ("Keys at which sweeps found both sides to differ.", ("rule", "kind")),
}
HISTOGRAMS = {
    "copy_duration_seconds": "From the begin of an attempt to its end, of those that settled an object.",
    "replication_seconds": "From the change at the source to its settling, of objects in the live lane.",
}

exposition = Blueprint("metrics", __name__)


@exposition.get("/metrics")
def metrics() -> Response:
    """In the text format, or OpenMetrics where that is asked for."""
    if not configured().web.metrics_public:
        let_in(lambda web: web.api_token, name="API_TOKEN")
    service().ledger.keep_counts()
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Families(families(service())))
    encode, content_type = choose_encoder(request.headers.get("Accept", ""))
    return Response(encode(registry), content_type=content_type)


class _Families:
    """What prometheus_client takes for a collector."""

    def __init__(self, found: Iterable[Metric]) -> None:
        self._found = list(found)

    def collect(self) -> Iterable[Metric]:
        """All of it."""
        return self._found


def families(of: Service) -> Iterable[Metric]:
    """All there is to tell. Raises: LedgerUnavailable."""
    found, totals = facts(of), _totals(of.ledger)
    begun = _begun(found["rules"])
    yield from (_counter(name, begun[name] | totals[name]) for name in COUNTERS)
    yield from (_histogram(name, totals[name]) for name in HISTOGRAMS)
    yield from _gauges(found, now=of.ledger.clock())
    ended = Sweeps(of.ledger).last_ended()
    at: dict[tuple[str, ...], float | None] = {(rule,): ended.get(rule) for rule in found["rules"]}
    text = "When the last sweep over all keys ended."
    yield _gauge("last_sweep_timestamp_seconds", text, at, labels=("rule",))


def minutes(ledger: Ledger, name: str, *, since_minute: int) -> dict[int, dict[Labels, float]]:
    """Minute since 1970 → labels → how much a counter of `meter.BY_MINUTE` grew in it, of all processes, from
    that minute on. What was counted in the last seconds may be missing. Raises: LedgerUnavailable.
    """
    columns = COUNTS.c
    wanted = sa.select(columns.minute, columns.labels, columns.value)
    wanted = wanted.where(columns.name == name, columns.minute >= max(since_minute, 1))
    found: dict[int, dict[Labels, float]] = defaultdict(dict)
    with ledger.reading() as connection:
        for minute, labels, value in connection.execute(wanted):
            found[minute][meter.labels_of(labels)] = float(value)
    return dict(found)


# ── counted ──────────────────────────────────────────────────────────────────────────────────────────


def _totals(ledger: Ledger) -> dict[str, dict[Labels, float]]:
    columns = COUNTS.c
    wanted = sa.select(columns.name, columns.labels, columns.value).where(columns.minute == ALL_TIME)
    found: dict[str, dict[Labels, float]] = defaultdict(dict)
    with ledger.reading() as connection:
        for name, labels, value in connection.execute(wanted):
            found[name][meter.labels_of(labels)] = float(value)
    return found


def _begun(rules: Collection[str]) -> dict[str, dict[Labels, float]]:
    """0 for all labels that are known beforehand: of a series that begins with more, that is no growth."""
    begun: dict[str, dict[Labels, float]] = defaultdict(dict)
    begun["events"] = {(("outcome", each),): 0.0 for each in meter.EVENTS}
    for rule in rules:
        begun["copied_bytes"][("rule", rule),] = 0.0
        begun["copies"] |= {(("outcome", str(each)), ("rule", rule)): 0.0 for each in OutcomeKind}
        begun["sweep_differences"] |= {(("kind", str(each)), ("rule", rule)): 0.0 for each in DIFFERENCES}
    return begun


def _counter(name: str, values: Mapping[Labels, float]) -> Metric:
    text, labels = COUNTERS[name]
    family = CounterMetricFamily(PREFIX + name, text, labels=labels)
    for found, value in sorted(values.items()):
        family.add_metric(_in_order(found, labels), value)
    return family


def _histogram(name: str, values: Mapping[Labels, float]) -> Metric:
    family = HistogramMetricFamily(PREFIX + name, HISTOGRAMS[name], labels=("rule",))
    names = [meter.bucket_name(index) for index in range(len(BUCKETS_S) + 1)]
    by_rule: dict[str, dict[str, float]] = defaultdict(dict)
    for found, value in values.items():
        by_rule[dict(found)["rule"]][dict(found)[BUCKET]] = value
    for rule, buckets in sorted(by_rule.items()):
        seen, cumulated = 0.0, []
        for each in names:
            seen += buckets.get(each, 0.0)
            cumulated.append((each, seen))
        family.add_metric((rule,), cumulated, buckets.get(SUM, 0.0))
    return family


def _in_order(found: Labels, labels: Iterable[str]) -> list[str]:
    named = dict(found)
    return [named.get(label, "") for label in labels]


# ── as it is now ─────────────────────────────────────────────────────────────────────────────────────


def _gauges(found: Mapping[str, Any], *, now: float) -> Iterable[Metric]:
    rules: Mapping[str, Mapping[str, Any]] = found["rules"]
    yield InfoMetricFamily(f"{PREFIX}build", "The release that answers.", value={"version": found["version"]})
    yield _entries(rules)
    yield _gauge("quarantined_records", "Records that nobody could act on.", {(): found["quarantined"]})
    yield from _fleet(found["workers"])
    for name, text, value in _OF_RULES:
        yield _gauge(
            name, text, {(rule,): value(each, now) for rule, each in rules.items()}, labels=("rule",)
        )


def _entries(rules: Mapping[str, Mapping[str, Any]]) -> Metric:
    text = "Objects on record; of a large ledger, as counted some seconds ago."
    values: dict[tuple[str, ...], float | None] = {
        (rule, state, lane): number
        for rule, each in rules.items()
        for state, lanes in each["entries"].items()
        for lane, number in lanes.items()
    }
    return _gauge("entries", text, values, labels=("rule", "state", "lane"))


def _fleet(workers: Iterable[Mapping[str, Any]]) -> Iterable[Metric]:
    members = list(workers)
    yield _gauge("workers", "Processes that replicate.", {(): len(members)})
    threads = sum(each["threads"] for each in members)
    yield _gauge("worker_threads", "Objects that all of them copy at once at most.", {(): threads})
    limits: dict[tuple[str, ...], int] = defaultdict(int)
    for member in members:
        for target, limit in member["limits"].items():
            if limit is not None:
                limits[target,] += limit
    text = "Requests at once that a busy target gets at most, from the processes that met its limit."
    yield _gauge("target_requests_limit", text, limits, labels=("target",))


def _gauge(
    name: str, text: str, values: Mapping[tuple[str, ...], float | None], *, labels: tuple[str, ...] = ()
) -> Metric:
    """None: there is no such value now."""
    family = GaugeMetricFamily(PREFIX + name, text, labels=labels)
    for found, value in values.items():
        if value is not None:
            family.add_metric(found, value)
    return family


def _seconds(at: str | None) -> float | None:
    return datetime.fromisoformat(at).timestamp() if at else None


def _age_s(rule: Mapping[str, Any], now: float) -> float | None:
    at = _seconds(rule["recovery_point"])
    return None if at is None else max(0.0, now - at)


_OF_RULES = (
    ("lag_seconds", "How long the oldest live work has been waiting.", lambda rule, _: rule["lag_s"]),
    (
        "recovery_point_timestamp_seconds",
        "Up to when the target is proved complete by a sweep.",
        lambda rule, _: _seconds(rule["recovery_point"]),
    ),
    ("recovery_point_age_seconds", "How long ago that was.", _age_s),
    (
        "events_recovery_point_timestamp_seconds",
        "Up to when the target is complete if the source told of every change.",
        lambda rule, _: _seconds(rule["recovery_point_by_events"]),
    ),
    ("events_missed", "Keys with a change that no event had told of.", lambda rule, _: rule["events_missed"]),
    ("rule_paused", "1: a person has paused the rule.", lambda rule, _: int(bool(rule["paused_since"]))),
    (
        "delete_breaker_open",
        "1: deletes wait for a person.",
        lambda rule, _: int(bool(rule["deletes"]["breaker"])),
    ),
    ("deletes_held", "Deletes that wait for a person.", lambda rule, _: rule["deletes"]["held"]),
    ("deletes_pending", "Deletes in their grace period.", lambda rule, _: rule["deletes"]["pending"]),
    (
        "sweep_running",
        "1: both sides are being compared, or are to be.",
        lambda rule, _: int(bool(rule["sweep"] and rule["sweep"]["state"] == "open")),
    ),
)
"""Name, text, and what of a rule's facts is its value."""
