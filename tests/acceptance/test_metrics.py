"""GET /metrics of a fleet: whichever process is asked tells what all of them did."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
from prometheus_client.parser import text_string_to_metric_families as parse_text

from scripts.local_servers import SeaweedFS
from scripts.local_service import Replicator
from tests.acceptance.conftest import Stack, content, until
from tests.acceptance.fleet import Fleet
from tests.proxy import Exchange, Fault, Proxy, answering
from webhook.metrics import PREFIX

Values = dict[tuple[str, frozenset[tuple[str, str]]], float]
BOUND_S = 60.0
RULE = {"rule": "default"}


@pytest.fixture
def gate(seaweed: SeaweedFS) -> Iterator[Proxy]:
    """Between a worker and the target."""
    with Proxy(seaweed.endpoint) as listening:
        yield listening


def told_by(web: Replicator) -> Values:
    """(name, labels) → value."""
    answer = web.get("/metrics")
    assert answer.status_code == 200, answer.text
    return {
        (each.name.removeprefix(PREFIX), frozenset(each.labels.items())): each.value
        for family in parse_text(answer.text)
        for each in family.samples
    }


def value(values: Values, name: str, **labels: str) -> float:
    """One of them; 0 where there is none."""
    return values.get((name, frozenset(labels.items())), 0.0)


def copied(values: Values) -> float:
    """How many copies are counted."""
    return value(values, "copies_total", outcome="replicated", **RULE)


def counters(values: Values) -> Values:
    """Those that only grow."""
    ends = ("_total", "_count", "_sum", "_bucket")
    return {key: each for key, each in values.items() if key[0].endswith(ends)}


def failing_once(key: str) -> Fault:
    """The first write of that key is answered with an error; the service's own probes are let through."""
    struck: list[str] = []

    def fault(exchange: Exchange) -> None:
        if exchange.path.endswith(f"/{key}") and not struck:
            struck.append(key)
            answering(500, "InternalError")(exchange)

    return fault


def test_every_process_tells_of_all_and_no_counter_ever_goes_back(
    fleet: Callable[..., Fleet], gate: Proxy
) -> None:
    running = fleet(MAX_ATTEMPTS="2")
    worker = running.add_worker("worker", through=gate)
    keys = [f"first/{number}" for number in range(20)]
    gate.plan("PutObject", failing_once(keys[3]), times=100)
    running.start()
    running.put_many(keys, content, clients=4)
    running.wait_until_all_settled(len(keys), bound_s=BOUND_S)
    first, second = running.webs
    until(lambda: copied(told_by(first)) == len(keys), bound_s=BOUND_S, what="all copies are counted")
    until(
        lambda: counters(told_by(first)) == counters(told_by(second)),
        bound_s=BOUND_S,
        what="both processes tell the same",
    )
    before = told_by(first)
    size = sum(len(content(key)) for key in keys)
    assert value(before, "copied_bytes_total", **RULE) == size
    assert value(before, "events_total", outcome="accepted") == 2 * len(keys), "each comes both ways"
    retries = [each for (name, _), each in before.items() if name == "retries_total"]
    assert sum(retries) == 1
    assert value(before, "copy_duration_seconds_count", **RULE) == len(keys)
    assert value(before, "replication_seconds_count", **RULE) == len(keys)
    assert value(before, "workers") == 1
    assert value(before, "entries", state="settled", lane="live", **RULE) == len(keys)

    worker.kill()
    worker.start()
    gate.plan("PutObject", answering(403, "<Error><Code>AccessDenied</Code></Error>"), times=10**6)
    running.put("refused", b"x")
    failed = {"state": "failed", "lane": "live", **RULE}
    until(lambda: value(told_by(second), "entries", **failed) == 1, bound_s=BOUND_S, what="one has failed")

    def counted_as_failed() -> bool:
        return sum(each for (name, _), each in told_by(second).items() if name == "failures_total") == 1

    until(counted_as_failed, bound_s=BOUND_S, what="the failure is counted")
    after = told_by(first)
    for key, each in counters(before).items():
        assert after[key] >= each, key
    assert copied(after) == len(keys)


def test_what_a_sweep_finds_is_counted_and_its_proof_is_told(stack: Callable[..., Stack]) -> None:
    running = stack()
    running.service.post("/v1/pause", json={})
    running.put("a", b"1")
    running.put("b", b"2")
    running.service.post("/v1/resume", json={})
    running.wait_until_settled(entries=2, bound_s=BOUND_S)
    running.put_at_target("extra", b"3")
    assert value(told_by(running.service), "recovery_point_timestamp_seconds", **RULE) == 0.0
    running.sweep()
    found = told_by(running.service)
    assert value(found, "sweep_differences_total", kind="extra", **RULE) == 1
    assert value(found, "sweep_differences_total", kind="missing", **RULE) == 0
    assert value(found, "recovery_point_timestamp_seconds", **RULE) > 1_700_000_000
    assert value(found, "recovery_point_age_seconds", **RULE) < BOUND_S * 5
    assert value(found, "last_sweep_timestamp_seconds", **RULE) > 1_700_000_000
    assert value(found, "sweep_running", **RULE) == 0
