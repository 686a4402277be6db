"""What happened to a change, step by step, as a collector of OpenTelemetry is told."""

from __future__ import annotations

import gzip
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from tests.acceptance.conftest import Stack, content, until
from tests.acceptance.fleet import Fleet

BOUND_S = 60.0
STEPS = {"event", "claim", "copy", "settle"}
HEADERS = "authorization=Bearer%20s3cr3t"


class Collector:
    """Takes spans by OTLP over HTTP."""

    def __init__(self) -> None:
        self.spans: list[Any] = []
        self.services: set[str] = set()
        self.headers: list[str] = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                if self.headers.get("Content-Encoding") == "gzip":
                    body = gzip.decompress(body)
                outer.take(body, self.headers.get("Authorization", ""), self.path)
                self.send_response(200)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *_: object) -> None:
                """Not needed."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.endpoint = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def take(self, body: bytes, authorization: str, path: str) -> None:
        """One request of an exporter."""
        assert path == "/v1/traces"
        found = ExportTraceServiceRequest.FromString(body)
        self.headers.append(authorization)
        for each in found.resource_spans:
            self.services |= {
                a.value.string_value for a in each.resource.attributes if a.key == "service.name"
            }
            for scope in each.scope_spans:
                self.spans += scope.spans

    def of_key(self, key: str) -> list[Any]:
        """All spans of the traces in which this key was copied."""
        traces = {span.trace_id for span in self.spans if facts(span).get("key") == key}
        return [span for span in self.spans if span.trace_id in traces]

    def stop(self) -> None:
        """Takes no more."""
        self._server.shutdown()
        self._server.server_close()


def facts(span: Any) -> dict[str, Any]:
    """A span's attributes."""
    return {each.key: getattr(each.value, each.value.WhichOneof("value")) for each in span.attributes}


@pytest.fixture
def collector() -> Iterator[Collector]:
    """One that is there."""
    found = Collector()
    yield found
    found.stop()


def test_event_claim_copy_and_settle_are_one_trace_across_processes(
    fleet: Callable[..., Fleet], collector: Collector
) -> None:
    running = fleet(OTEL_EXPORTER_OTLP_ENDPOINT=collector.endpoint, OTEL_EXPORTER_OTLP_HEADERS=HEADERS)
    worker = running.add_worker("worker")
    running.start()
    running.put("a/ö", content("a/ö"))
    running.wait_until_all_settled(1, bound_s=BOUND_S)
    until(
        lambda: {span.name for span in collector.of_key("a/ö")} == STEPS, bound_s=BOUND_S, what="all is told"
    )
    spans = {span.name: span for span in collector.of_key("a/ö")}
    event = spans["event"]
    assert event.parent_span_id == b""
    for name in STEPS - {"event"}:
        assert spans[name].parent_span_id == event.span_id
        assert facts(spans[name])["key"] == "a/ö"
    order = [spans[name] for name in ("event", "claim", "copy", "settle")]
    begins = [span.start_time_unix_nano for span in order]
    assert begins == sorted(begins)
    assert all(span.end_time_unix_nano >= span.start_time_unix_nano for span in order)
    assert abs(event.start_time_unix_nano / 1e9 - time.time()) < BOUND_S * 2
    copy = facts(spans["copy"])
    assert copy["outcome"] == "replicated"
    assert copy["bytes"] == len(content("a/ö"))
    assert f":{worker.pid}:" in copy["worker"], "the lone worker did it"
    assert collector.services == {"minio-replicator"}
    assert set(collector.headers) == {"Bearer s3cr3t"}
    assert not any("s3cr3t" in each.log_path.read_text() for each in running.processes)


def test_a_caller_s_trace_is_gone_on_with_and_an_error_is_in_it(
    stack: Callable[..., Stack], collector: Collector
) -> None:
    running = stack(OTEL_EXPORTER_OTLP_ENDPOINT=collector.endpoint, OTEL_SERVICE_NAME="ours")
    running.put("here", b"1")
    trace, span = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
    traced = {"traceparent": f"00-{trace}-{span}-01"}
    running.service.post("/v1/replicate", json={"s3_key": "here"}, headers=traced)
    running.target.stop()
    try:
        answer = running.service.post("/v1/replicate", json={"s3_key": "other"}, headers=traced)
        assert answer.status_code in (404, 502)
        running.put("there", b"1")
        failed = running.service.post("/v1/replicate", json={"s3_key": "there"}, headers=traced)
        assert failed.status_code == 502
    finally:
        running.target.start()

    def errors() -> list[Any]:
        return [each for each in collector.spans if each.name == "copy" and each.status.code == 2]

    until(errors, bound_s=BOUND_S, what="the error is told")
    until(
        lambda: [each for each in collector.spans if each.name == "replicate"], bound_s=BOUND_S, what="asked"
    )
    asked = [each for each in collector.spans if each.name == "replicate"]
    assert {each.trace_id.hex() for each in asked} == {trace}
    assert {each.parent_span_id.hex() for each in asked} == {span}
    assert any(each.trace_id.hex() == trace and "target" in each.status.message for each in errors())
    assert collector.services == {"ours"}


def test_a_collector_that_is_not_there_holds_up_nothing(stack: Callable[..., Stack]) -> None:
    running = stack(OTEL_EXPORTER_OTLP_ENDPOINT="http://127.0.0.1:9")
    keys = [f"k{number}" for number in range(50)]
    running.put_many(keys, content, clients=4)
    running.wait_until_settled(entries=len(keys), bound_s=BOUND_S)
    assert running.compare().ok
    stopping = time.monotonic()
    running.service.stop()
    assert time.monotonic() - stopping < 25, "it waits for the collector for a moment only"
    told = [line for line in running.log_lines() if "/v1/traces" in line["event"]]
    assert len(told) == 1, "it is said, and not again and again"
