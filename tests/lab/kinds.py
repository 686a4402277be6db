"""What can go wrong on a wire."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum, auto


class Kind(StrEnum):
    """What befalls a request. A reset is a TCP RST."""

    DELAY = auto()
    """It is passed on `delay_s` later."""
    BANDWIDTH = auto()
    """It and its answer pass at `bytes_per_s`."""
    RESET_BEFORE = auto()
    """Reset, and nothing of it is passed on."""
    RESET_DURING = auto()
    """Reset within its body; without a body, when the server did it, before the answer."""
    RESET_AFTER = auto()
    """The server did it, and the reset comes within the answer's body, or its head if it has none."""
    CUT_SHORT = auto()
    """The answer's body ends, with a FIN, before it is whole."""
    FLIP_REQUEST = auto()
    """One bit of its body is changed."""
    FLIP_ANSWER = auto()
    """One bit of the answer's body is changed."""
    ANSWER_LOST = auto()
    """The server did it, and the connection is closed without a byte."""
    ERROR_500 = auto()
    """InternalError."""
    SLOW_DOWN = auto()
    """503 SlowDown."""
    SLOW_DOWN_RETRY_AFTER = auto()
    """503 SlowDown, with Retry-After."""
    TOO_MANY = auto()
    """429."""
    FORBIDDEN = auto()
    """403 AccessDenied."""
    NOT_FOUND = auto()
    """404 `code`."""
    COMPLETE_FAILS_IN_200 = auto()
    """200 with an error for its body, as AWS documents for CompleteMultipartUpload; strikes nothing else."""
    DRIP = auto()
    """The answer comes at `bytes_per_s`, a few bytes at a time, its head too."""
    HALF_OPEN = auto()
    """It is read and never answered; the connection stays open until the fault ends, and is closed then."""
    REFUSED = auto()
    """The port is closed and all connections are reset, whatever `share` and `operations` say."""


RATES = {Kind.BANDWIDTH: 200_000, Kind.DRIP: 500}
"""`bytes_per_s` where the fault says nothing."""

_ERRORS = {
    Kind.ERROR_500: (500, "Internal Server Error", "InternalError"),
    Kind.SLOW_DOWN: (503, "Service Unavailable", "SlowDown"),
    Kind.SLOW_DOWN_RETRY_AFTER: (503, "Service Unavailable", "SlowDown"),
    Kind.TOO_MANY: (429, "Too Many Requests", "TooManyRequests"),
    Kind.FORBIDDEN: (403, "Forbidden", "AccessDenied"),
    Kind.NOT_FOUND: (404, "Not Found", ""),
    Kind.COMPLETE_FAILS_IN_200: (200, "OK", "InternalError"),
}


@dataclass(frozen=True)
class Fault:
    """Strikes `share` of the requests of these operations, all of them if none are named.

    Operations are named as `tests.proxy.operation_of` does, and `Event` is what goes to the webhook.
    """

    kind: Kind
    share: float = 1.0
    operations: frozenset[str] = frozenset()
    delay_s: float = 2.0
    bytes_per_s: int | None = None
    """Of one request; None is what RATES says."""
    retry_after_s: int = 1
    code: str = "NoSuchBucket"
    """Of NOT_FOUND: a store that is being restored. NoSuchKey would say that the object is gone."""

    def concerns(self, operation: str, *, has_body: bool) -> bool:
        """Whether it can strike such a request."""
        if self.kind is Kind.REFUSED or (self.kind is Kind.FLIP_REQUEST and not has_body):
            return False
        if self.kind is Kind.COMPLETE_FAILS_IN_200 and operation != "CompleteMultipartUpload":
            return False
        return not self.operations or operation in self.operations

    @property
    def rate(self) -> int | None:
        """Bytes in a second; None is as fast as can be."""
        return self.bytes_per_s or RATES[self.kind] if self.kind in RATES else None

    def answer(self, method: str) -> bytes | None:
        """What is answered in the server's stead, or None: the server answers, or nobody."""
        if self.kind not in _ERRORS:
            return None
        status, reason, code = _ERRORS[self.kind]
        xml = f"<Error><Code>{code or self.code}</Code><Message>The lab's proxy says so.</Message></Error>"
        body = f'<?xml version="1.0" encoding="UTF-8"?>\n{xml}'.encode() if method != "HEAD" else b""
        head = (
            f"HTTP/1.1 {status} {reason}\r\nContent-Type: application/xml\r\nContent-Length: {len(body)}\r\n"
        )
        if self.kind is Kind.SLOW_DOWN_RETRY_AFTER:
            head += f"Retry-After: {self.retry_after_s}\r\n"
        return f"{head}\r\n".encode() + body
