"""GET /metrics: read by Prometheus's own parsers, and true."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from flask.testing import FlaskClient
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_text

from tests.contract.steps import ask, bring_to, buried, held, removal, retried, settled, take
from tests.unit.conftest import MakeClient
from tests.unit.test_app import AFAR, API, TOKENS, body_of, ledger_of, record
from tests.unit.test_attempt import ending as ending_of
from webhook import metrics
from webhook.answers import answered
from webhook.attempt import Lease, Task, count_ending
from webhook.deletes import Deletes
from webhook.entries import Ending
from webhook.errors import Place, ReplicatorError
from webhook.fleet import Fleet
from webhook.ledger import Ledger
from webhook.meter import BUCKETS_S
from webhook.reconcile import shape
from webhook.settings import DeleteSettings
from webhook.sweeps import Sweeps

OPENMETRICS = {"Accept": "application/openmetrics-text; version=1.0.0"}
P = metrics.PREFIX


def samples(client: FlaskClient) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    """(name, labels) → value, by Prometheus's own parser."""
    answer = client.get("/metrics")
    assert answer.status_code == 200, answer.text
    assert answer.content_type.startswith("text/plain; version=")
    return {
        (each.name, tuple(sorted(each.labels.items()))): each.value
        for family in parse_text(answer.text)
        for each in family.samples
    }


def one(client: FlaskClient, name: str, **labels: str) -> float | None:
    """One value; None where there is none."""
    return samples(client).get((P + name, tuple(sorted(labels.items()))))


def end(ledger: Ledger, ending: Ending, *, took_s: float = 0.02) -> None:
    """What a worker does with an ending."""
    ledger.finish([ending])
    lease = Lease(ending.claim, ledger, taken_at=0.0, lease_s=60)
    task = Task(claim=ending.claim, lease=lease, began_at=100.0, ended_at=100.0 + took_s)
    count_ending(ledger.meter, task, ending, settled_at=ledger.clock())


def lively(client: FlaskClient) -> None:
    """Something of everything."""
    ledger = ledger_of(client)
    Sweeps(ledger).register({"default": "shape"})
    client.post(
        "/minio/events", data=body_of(record("a"), record("b"), {"eventName": "s3:ObjectCreated:Put"})
    )
    client.post("/minio/events", data=body_of(record("c", bucket="nobody-s")))
    first, second = take(ledger)
    lost = ("content-type: text/x", "content-type: text/y", "metadata")
    end(ledger, settled(first, bytes_copied=1500, lost=lost))
    end(ledger, retried(second))
    for key, kind in (("f", buried), ("g", buried), ("h", held)):
        claim = bring_to(ledger, "running", removal(key) if kind is held else ask(key))
        assert claim is not None
        end(ledger, kind(claim))
    Deletes(ledger, DeleteSettings(grace_s=0, breaker_max=1, breaker_share=0.1)).trip("default", "too many")
    Fleet(ledger).sign("host:1:2:boot/3", threads=16, limits={"filebase": 8})
    Fleet(ledger).sign("host:4:5:boot/3", threads=4, limits={"filebase": 2, "archive": None})
    client.application.extensions["service"].pauses.pause("default")


def proved(client: FlaskClient) -> None:
    """A sweep of the rule has ended."""
    ledger, (rule,) = ledger_of(client), client.application.extensions["service"].sides.concrete()
    sweeps = Sweeps(ledger)
    sweeps.register({rule.name: shape(rule)})
    sweeps.end(sweeps.prove_from(sweeps.request(rule.name, cause="start"), ledger.clock() - 600))


def test_the_recovery_point_and_its_age_are_told_once_there_is_one(client: FlaskClient) -> None:
    assert one(client, "recovery_point_age_seconds", rule="default") is None
    assert one(client, "recovery_point_timestamp_seconds", rule="default") is None
    proved(client)
    age_s = one(client, "recovery_point_age_seconds", rule="default")
    assert age_s == pytest.approx(600, abs=60)
    at = one(client, "recovery_point_timestamp_seconds", rule="default")
    now = ledger_of(client).clock()
    assert at == pytest.approx(now - 600, abs=60)
    assert one(client, "last_sweep_timestamp_seconds", rule="default") == pytest.approx(now, abs=60)


def test_every_value_is_that_of_what_happened(client: FlaskClient) -> None:
    lively(client)
    expected: list[tuple[str, dict[str, str], float]] = [
        ("events_total", {"outcome": "accepted"}, 2),
        ("events_total", {"outcome": "ignored"}, 1),
        ("events_total", {"outcome": "quarantined"}, 1),
        ("copies_total", {"rule": "default", "outcome": "replicated"}, 1),
        ("copies_total", {"rule": "default", "outcome": "deleted"}, 0),
        ("copied_bytes_total", {"rule": "default"}, 1500),
        ("retries_total", {"rule": "default", "reason": "target_store_failed"}, 1),
        ("failures_total", {"rule": "default", "reason": "target_store_refused"}, 2),
        ("lost_attributes_total", {"rule": "default", "attribute": "content-type"}, 2),
        ("lost_attributes_total", {"rule": "default", "attribute": "metadata"}, 1),
        ("entries", {"rule": "default", "state": "failed", "lane": "live"}, 2),
        ("entries", {"rule": "default", "state": "settled", "lane": "live"}, 1),
        ("entries", {"rule": "default", "state": "settled", "lane": "backfill"}, 0),
        ("quarantined_records", {}, 1),
        ("workers", {}, 2),
        ("worker_threads", {}, 20),
        ("target_requests_limit", {"target": "filebase"}, 10),
        ("delete_breaker_open", {"rule": "default"}, 1),
        ("rule_paused", {"rule": "default"}, 1),
        ("sweep_running", {"rule": "default"}, 0),
        ("copy_duration_seconds_count", {"rule": "default"}, 1),
        ("copy_duration_seconds_bucket", {"rule": "default", "le": "0.01"}, 0),
        ("copy_duration_seconds_bucket", {"rule": "default", "le": "0.025"}, 1),
        ("copy_duration_seconds_bucket", {"rule": "default", "le": "+Inf"}, 1),
    ]
    found = samples(client)
    for name, labels, value in expected:
        assert found[P + name, tuple(sorted(labels.items()))] == value, name
    assert (P + "target_requests_limit", (("target", "archive"),)) not in found, "no limit is in force"
    assert one(client, "copy_duration_seconds_sum", rule="default") == pytest.approx(0.02)
    lag = one(client, "lag_seconds", rule="default")
    assert lag is not None
    assert lag >= 0


def test_buckets_hold_what_is_not_longer_than_their_upper_end(client: FlaskClient) -> None:
    meter = ledger_of(client).meter
    for seconds in (0.0, 0.005, 0.0051, *BUCKETS_S, 1e6):
        meter.observe("replication_seconds", seconds, rule="default")
    counts = [
        one(client, "replication_seconds_bucket", rule="default", le=le)
        for le in ("0.005", "0.01", "3600.0", "+Inf")
    ]
    assert counts == [3, 5, len(BUCKETS_S) + 3, len(BUCKETS_S) + 4]
    assert one(client, "replication_seconds_count", rule="default") == len(BUCKETS_S) + 4


def test_what_can_grow_is_told_before_it_does(client: FlaskClient) -> None:
    found = samples(client)
    of_rule = {key: value for key, value in found.items() if key[0].endswith("_total")}
    assert set(of_rule.values()) == {0.0}
    assert {name.removeprefix(P) for name, _ in of_rule} == {
        *("events_total", "copies_total", "copied_bytes_total", "sweep_differences_total")
    }
    assert len(of_rule) == 3 + 4 + 1 + 4


def test_reasons_are_few_whatever_a_store_says() -> None:
    """Each is another time series: a store's own codes are told in the entry alone."""
    strange = "".join(chr(33 + number) for number in range(90))
    words = [each.code for each in known_errors()]
    assert len(words) > 10
    assert all(re.fullmatch(r"[a-z_]{1,32}", word) for word in words)
    for side in ("source", "target"):
        place = Place(side=side, operation="PutObject", bucket="b", key="k")
        error = answered(500, f"<Error><Code><![CDATA[{strange}]]></Code></Error>".encode(), place, {})
        assert error.store_code == strange
        assert ending_of(error).error_code.removeprefix(f"{side}_") in words


def known_errors(kind: type[ReplicatorError] = ReplicatorError) -> list[type[ReplicatorError]]:
    """An error and all that are kinds of it."""
    return [kind, *(each for one in kind.__subclasses__() for each in known_errors(one))]


def test_counters_never_go_back(client: FlaskClient) -> None:
    for expected in (2, 4, 6):
        client.post("/minio/events", data=body_of(record("a"), record("b")))
        assert one(client, "events_total", outcome="accepted") == expected
        assert one(client, "events_total", outcome="accepted") == expected


@pytest.mark.parametrize("fill", [lambda _: None, lively])
def test_both_formats_are_those_of_prometheus(client: FlaskClient, fill: Callable[[Any], None]) -> None:
    fill(client)
    text = client.get("/metrics").text
    families = {family.name: family for family in parse_text(text)}
    assert f"{P}lag_seconds" in families
    assert all(family.documentation for family in families.values())
    assert all(family.type in ("counter", "gauge", "histogram", "info") for family in families.values())
    answer = client.get("/metrics", headers=OPENMETRICS)
    assert answer.content_type.startswith("application/openmetrics-text")
    told = {
        (each.name, tuple(sorted(each.labels.items())))
        for family in parse_openmetrics(answer.text)
        for each in family.samples
    }
    assert told == set(samples(client))


def test_promtool_finds_nothing_to_say(client: FlaskClient) -> None:
    if shutil.which("promtool") is None:
        pytest.skip("promtool is not on PATH: Prometheus's own linter is not asked")
    lively(client)
    done = subprocess.run(
        ["promtool", "check", "metrics"],
        input=client.get("/metrics").text,
        text=True,
        capture_output=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_names_are_as_prometheus_wants_them(client: FlaskClient) -> None:
    lively(client)
    for family in parse_text(client.get("/metrics").text):
        name = family.name
        assert name.startswith(P)
        assert not name.endswith("_total"), "the parser takes it from counters alone"
        assert not any(unit in name for unit in ("_ms", "milli", "mib", "_mb")), "base units"


def test_only_who_has_the_token_is_told_unless_it_is_open_to_all(make_client: MakeClient) -> None:
    closed = make_client(**TOKENS)
    assert closed.get("/metrics").status_code == 401
    assert closed.get("/metrics", headers=API).status_code == 200
    unset = make_client()
    assert unset.get("/metrics", environ_overrides=AFAR).status_code == 401
    assert (
        make_client(METRICS_PUBLIC="true", **TOKENS).get("/metrics", environ_overrides=AFAR).status_code
        == 200
    )


def test_without_the_ledger_there_are_no_false_numbers(client: FlaskClient, tmp_path: Path) -> None:
    ledger_of(client).close()
    for each in tmp_path.rglob("*.db*"):
        each.unlink()
    assert client.get("/metrics").status_code == 503
