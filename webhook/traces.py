"""OpenTelemetry traces, where OTEL_EXPORTER_OTLP_ENDPOINT says where to: event → claim → copy → settle.

What a change's event began, the worker that copies it goes on with, in whichever process: the context crosses
the ledger as a W3C traceparent (https://www.w3.org/TR/trace-context/). What no event and no person asked for
(sweeps) belongs to no trace. Where traces are off, nothing of OpenTelemetry is loaded.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from webhook.entries import Buried, Ending, Request, Retried, Settled
from webhook.errors import ReplicatorError
from webhook.settings import TracesSettings
from webhook.version import VERSION

FLUSH_S = 2.0
"""How long a process that ends waits for the collector to take what it has left."""
QUEUE_MAX, BATCH_MAX = 2048, 512
"""Spans; what comes when the queue is full is dropped."""
_S = 1_000_000_000


class _Off:
    """Traces are off."""

    provider: Any = None
    tracer: Any = None


_state = _Off()


def begin(settings: TracesSettings | None) -> None:
    """Spans are sent from now on, by a thread of its own. Call it after the fork. None: none are."""
    if settings is None or _state.provider:
        return
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    of_this = {"service.name": settings.service_name, "service.version": VERSION}
    provider = TracerProvider(resource=Resource.create(of_this), shutdown_on_exit=False)
    exporter = OTLPSpanExporter(
        endpoint=f"{settings.endpoint.rstrip('/')}/v1/traces", headers=dict(settings.headers)
    )
    provider.add_span_processor(
        BatchSpanProcessor(exporter, max_queue_size=QUEUE_MAX, max_export_batch_size=BATCH_MAX)
    )
    _state.provider, _state.tracer = provider, provider.get_tracer("webhook", VERSION)


def flush() -> None:
    """Sends what there is, for FLUSH_S at most."""
    if _state.provider:
        # the library's own bound is not kept: https://github.com/open-telemetry/opentelemetry-python/issues/4568
        flushing = threading.Thread(target=_state.provider.force_flush, name="flush of traces", daemon=True)
        flushing.start()
        flushing.join(FLUSH_S)


def is_on() -> bool:
    """Whether spans are sent."""
    return _state.tracer is not None


@contextmanager
def asking(name: str, *, parent: str | None = None) -> Iterator[str | None]:
    """The block is a span that asks the ledger for something; gives its traceparent, None where it is not
    recorded. `parent`: the caller's traceparent.
    """
    if _state.tracer is None:
        yield None
        return
    from opentelemetry.trace import SpanKind

    span = _state.tracer.start_span(name, context=_context(parent), kind=SpanKind.SERVER)
    try:
        yield _traceparent(span) if span.is_recording() else None
    except Exception as error:
        span.set_status(_error(_text(error)))
        raise
    finally:
        span.end()


def with_trace(requests: Sequence[Request], trace: str | None) -> Sequence[Request]:
    """The same requests, of this trace."""
    return [replace(request, trace=trace) for request in requests] if trace else requests


def attempt(ending: Ending, *, began_at: float, ended_at: float, settled_at: float) -> None:
    """The spans of an attempt that is on record, where its claim belongs to a trace. Times in seconds since
    1970, by the ledger's clock.
    """
    claim = ending.claim
    if _state.tracer is None or not claim.trace:
        return
    facts: dict[str, Any] = {"rule": claim.rule, "key": claim.key, "worker": claim.worker}
    context = _context(claim.trace)
    waited = {**facts, "lane": claim.lane, "attempt": claim.attempts, "claim": claim.number}
    _span("claim", context, claim.claimed_at, began_at, waited)
    match ending:
        case Settled():
            done = {"outcome": ending.outcome, "bytes": ending.bytes_copied, "size": ending.size or 0}
            _span("copy", context, began_at, ended_at, facts | done)
        case Retried() | Buried():
            _span("copy", context, began_at, ended_at, facts, error=f"{ending.error_code}: {ending.error}")
        case _:
            _span("copy", context, began_at, ended_at, facts)
    end = {"ending": type(ending).__name__.lower()}
    _span("settle", context, ended_at, settled_at, facts | end)


def _span(
    name: str, context: Any, begin_s: float, end_s: float, facts: dict[str, Any], *, error: str = ""
) -> None:
    from opentelemetry.trace import SpanKind

    begin_ns = int(begin_s * _S)
    span = _state.tracer.start_span(
        name, context=context, kind=SpanKind.CONSUMER, attributes=facts, start_time=begin_ns
    )
    if error:
        span.set_status(_error(error))
    span.end(max(begin_ns, int(end_s * _S)))


def _context(traceparent: str | None) -> Any:
    """What a traceparent stands for; one that is not well formed stands for nothing."""
    from opentelemetry.context import Context
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    carrier = {"traceparent": traceparent or ""}
    return TraceContextTextMapPropagator().extract(carrier, context=Context())


def _traceparent(span: Any) -> str:
    found = span.get_span_context()
    return f"00-{found.trace_id:032x}-{found.span_id:016x}-{int(found.trace_flags):02x}"


def _text(error: Exception) -> str:
    """No traceback, and of what nobody has foreseen the kind alone: anything may be quoted in it."""
    return f"{error.code}: {error.message}" if isinstance(error, ReplicatorError) else type(error).__name__


def _error(text: str) -> Any:
    from opentelemetry.trace import Status, StatusCode

    return Status(StatusCode.ERROR, text)
