"""What a collector of traces is told, and what it costs where there is none."""

from __future__ import annotations

import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF
from opentelemetry.trace import StatusCode

from tests.contract.steps import ask, buried, retried, settled
from tests.unit.test_attempt import task
from webhook import traces
from webhook.entries import Claim, Ending, Released
from webhook.errors import LedgerUnavailable
from webhook.settings import TracesSettings

TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
TRACEPARENT = f"00-{TRACE}-{PARENT}-01"


@pytest.fixture(autouse=True)
def _off_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(traces, "_state", traces._Off())


@pytest.fixture
def told() -> Iterator[InMemorySpanExporter]:
    """Traces are on; what would be sent."""
    exporter = InMemorySpanExporter()
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    traces._state.provider, traces._state.tracer = provider, provider.get_tracer("webhook")
    yield exporter
    provider.shutdown()


def spans(told: InMemorySpanExporter) -> dict[str, Any]:
    """Name → span."""
    found = {span.name: span for span in told.get_finished_spans()}
    assert len(found) == len(told.get_finished_spans())
    return found


def traced(trace: str | None = TRACEPARENT) -> Claim:
    """A claim at 100 s since 1970."""
    return task(trace=trace, claimed_at=100.0).claim


def test_where_traces_are_off_nothing_of_opentelemetry_is_loaded() -> None:
    program = """
import sys
import webhook.app, webhook.ingest, webhook.service
from webhook import traces
traces.begin(None)
with traces.asking("event") as trace:
    assert trace is None
traces.flush()
print(not traces.is_on(), sorted(name for name in sys.modules if name.startswith("opentelemetry")))
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout == "True []\n"


def test_what_asks_the_ledger_is_the_parent_of_what_comes_of_it(told: InMemorySpanExporter) -> None:
    with traces.asking("event") as trace:
        (request,) = traces.with_trace([ask()], trace)
    traces.attempt(settled(traced(request.trace)), began_at=101.0, ended_at=102.0, settled_at=103.0)
    found = spans(told)
    assert list(found) == ["event", "claim", "copy", "settle"]
    event = found.pop("event").context
    assert {span.parent.span_id for span in found.values()} == {event.span_id}
    assert {span.context.trace_id for span in found.values()} == {event.trace_id}
    times = [(span.start_time / 1e9, span.end_time / 1e9) for span in found.values()]
    assert times == [(100.0, 101.0), (101.0, 102.0), (102.0, 103.0)]


def test_a_caller_s_trace_is_gone_on_with(told: InMemorySpanExporter) -> None:
    with traces.asking("replicate", parent=TRACEPARENT) as trace:
        assert trace is not None
        assert trace.startswith(f"00-{TRACE}-")
        assert trace != TRACEPARENT
    assert f"{spans(told)['replicate'].parent.span_id:016x}" == PARENT


@pytest.mark.parametrize(
    "malformed", ["", "x", f"00-{'0' * 32}-{PARENT}-01", f"ff-{TRACE}-{PARENT}-01", TRACEPARENT + "\n" * 9999]
)
def test_what_is_no_traceparent_begins_a_trace_of_its_own(malformed: str, told: InMemorySpanExporter) -> None:
    with traces.asking("replicate", parent=malformed) as trace:
        assert trace is not None
    span = spans(told)["replicate"]
    assert span.parent is None
    assert f"{span.context.trace_id:032x}" in trace


def test_a_trace_that_its_caller_does_not_record_is_not_recorded_here(told: InMemorySpanExporter) -> None:
    with traces.asking("replicate", parent=f"00-{TRACE}-{PARENT}-00") as trace:
        assert trace is None
    assert traces.with_trace([ask()], trace) == [ask()]
    assert spans(told) == {}


def test_what_is_not_sampled_does_not_cross_the_ledger() -> None:
    provider = TracerProvider(sampler=ALWAYS_OFF, shutdown_on_exit=False)
    traces._state.provider, traces._state.tracer = provider, provider.get_tracer("webhook")
    with traces.asking("event") as trace:
        assert trace is None


@pytest.mark.parametrize(
    ("ending", "error"),
    [
        (settled(traced(), bytes_copied=3, size=3), None),
        (retried(traced()), "target_store_failed: 500"),
        (buried(traced()), "target_store_refused: it said no"),
        (Released(claim=traced()), None),
    ],
)
def test_how_an_attempt_ended_is_told(ending: Ending, error: str | None, told: InMemorySpanExporter) -> None:
    traces.attempt(ending, began_at=101.0, ended_at=102.0, settled_at=103.0)
    found = spans(told)
    copy = found["copy"]
    assert copy.status.description == error
    assert copy.status.status_code is (StatusCode.ERROR if error else StatusCode.UNSET)
    assert (copy.attributes["rule"], copy.attributes["key"]) == ("default", "k")
    assert copy.attributes.get("bytes") == (3 if isinstance(ending, type(settled(traced()))) else None)
    assert found["settle"].attributes["ending"] == type(ending).__name__.lower()


def test_a_clock_that_was_set_back_makes_no_span_end_before_it_begins(told: InMemorySpanExporter) -> None:
    traces.attempt(settled(traced()), began_at=99.0, ended_at=98.0, settled_at=97.0)
    for span in spans(told).values():
        assert span.end_time >= span.start_time


def test_what_belongs_to_no_trace_is_not_told(told: InMemorySpanExporter) -> None:
    traces.attempt(settled(traced(None)), began_at=101.0, ended_at=102.0, settled_at=103.0)
    assert spans(told) == {}


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (LedgerUnavailable("the database is away"), "ledger_unavailable: the database is away"),
        (RuntimeError("password=s3cr3t"), "RuntimeError"),
    ],
)
def test_an_error_is_told_without_what_could_be_a_secret(
    error: Exception, text: str, told: InMemorySpanExporter
) -> None:
    with pytest.raises(type(error)), traces.asking("event"):
        raise error
    span = spans(told)["event"]
    assert (span.status.status_code, span.status.description) == (StatusCode.ERROR, text)
    assert "s3cr3t" not in span.to_json()


def test_a_collector_that_does_not_answer_holds_up_no_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(traces, "FLUSH_S", 0.1)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        endpoint = f"http://127.0.0.1:{silent.getsockname()[1]}"
        traces.begin(TracesSettings(endpoint=endpoint, headers={}, service_name="ours"))
        assert traces.is_on()
        with traces.asking("event"):
            pass
        traces.flush()
        (flushing,) = [each for each in threading.enumerate() if each.name == "flush of traces"]
        assert flushing.is_alive(), "it is not waited for"
        assert flushing.daemon
        connection, _ = silent.accept()
        with connection:
            connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
            flushing.join(30)
    traces._state.provider.shutdown()
    assert not flushing.is_alive()


def test_to_begin_twice_is_to_begin_once() -> None:
    asked = TracesSettings(endpoint="http://127.0.0.1:9", headers={}, service_name="ours")
    traces.begin(asked)
    provider = traces._state.provider
    traces.begin(asked)
    assert traces._state.provider is provider
    provider.shutdown()
