"""One line of log for each thing that happened, as text for people or JSON for programs.

Values are data: control characters in keys come out escaped, and no caller passes a secret.
"""

from __future__ import annotations

import contextlib
import logging
import logging.config
import sys
import time
from collections.abc import MutableMapping
from typing import Any, TextIO, cast

import structlog

SELDOM_S = 300.0
_SHARED: list[Any] = [
    structlog.contextvars.merge_contextvars,
    structlog.processors.add_log_level,
    structlog.processors.TimeStamper(fmt="iso", utc=True),
    structlog.processors.format_exc_info,
]


def _one_line(_logger: object, _method: str, line: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """A library's message may have anything put into it; values are escaped by the renderers."""
    text = str(line.get("event", ""))
    if not text.isprintable():
        line["event"] = "".join(each if each.isprintable() else ascii(each)[1:-1] for each in text)
    return line


def _text(_logger: object, _method: str, line: MutableMapping[str, Any]) -> str:
    """`2026-01-02T03:04:05Z [info] settled key='a b' bytes=3`; a traceback follows on lines of its own."""
    head = f"{line.pop('timestamp')} [{line.pop('level')}] {line.pop('event')}"
    exception = line.pop("exception", None)
    facts = "".join(f" {name}={value!r}" for name, value in line.items())
    return f"{head}{facts}\n{exception}" if exception else head + facts


class _StandardError:
    """A log that cannot be written is lost; what it tells of goes on."""

    def write(self, text: str) -> None:
        """Raises nothing."""
        with contextlib.suppress(OSError, ValueError):
            sys.stderr.write(text)

    def flush(self) -> None:
        """Raises nothing."""
        with contextlib.suppress(OSError, ValueError):
            sys.stderr.flush()


class _Seldom(logging.Filter):
    """Lets a library's lines pass once in a while: a collector of traces that is away is no more news."""

    def __init__(self, library: str, *, every_s: float) -> None:
        super().__init__()
        self._library = library
        self._every_s = every_s
        self._next_at = 0.0

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether the line is written."""
        if not record.name.startswith(self._library):
            return True
        if time.monotonic() < self._next_at:
            return False
        self._next_at = time.monotonic() + self._every_s
        return True


def configure(log_format: str, *, least: int = logging.INFO) -> None:
    """Sends this process's log lines, its libraries' too, to standard error. Safe to repeat.

    `least`: the lowest of logging's levels that is written.
    """
    renderer: Any = structlog.processors.JSONRenderer() if log_format == "json" else _text
    formatter = structlog.stdlib.ProcessorFormatter(
        processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, _one_line, renderer],
        foreign_pre_chain=[structlog.stdlib.ExtraAdder(), *_SHARED],
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(formatter)
    handler.addFilter(_Seldom("opentelemetry", every_s=SELDOM_S))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(least)
    for noisy in ("botocore", "boto3", "urllib3", "alembic"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    # a retried connection is urllib3's warning and this service's own line: one is enough
    logging.getLogger("urllib3.connectionpool").setLevel(logging.ERROR)
    # Our own lines do not go through the standard library's logging: that takes twice the time.
    structlog.configure(
        processors=[*_SHARED, _one_line, renderer],
        logger_factory=structlog.WriteLoggerFactory(cast(TextIO, _StandardError())),
        wrapper_class=structlog.make_filtering_bound_logger(least),
        cache_logger_on_first_use=True,
    )
