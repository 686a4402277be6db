"""What a store's answer means: an SDK's exceptions → those of `webhook.errors`.

Told apart by type, HTTP status and the store's own error code, never by the text of a message.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any
from xml.etree.ElementTree import ParseError

import urllib3
from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    HTTPClientError,
    NoCredentialsError,
    ParamValidationError,
)
from botocore.exceptions import (
    ConnectionError as BotoConnectionError,
)
from botocore.parsers import ResponseParserError
from minio.error import InvalidResponseError, S3Error, ServerError

from webhook.errors import (
    NoSuchKey,
    Place,
    SourceChanged,
    StoreDenied,
    StoreError,
    StoreFailed,
    StoreRefused,
    StoreUnavailable,
)

CONNECT_TIMEOUT_S = 5.0
READ_TIMEOUT_S = 60.0
"""Silence on a connection, not the length of a transfer."""
RETRY_AFTER_MAX_S = 3600.0

_COME_BACK = {
    *("SlowDown", "SlowDownRead", "SlowDownWrite", "ServiceUnavailable", "RequestTimeout", "TooManyRequests"),
    *("ServerNotInitialized", "XMinioServerNotInitialized", "Throttling", "ThrottlingException"),
}
_MENDABLE = {
    *("AccessDenied", "AccountProblem", "AllAccessDisabled", "ExpiredToken", "InvalidAccessKeyId"),
    *("InvalidToken", "NoSuchBucket", "NotSignedUp", "PermanentRedirect", "AuthorizationHeaderMalformed"),
    *("RequestTimeTooSkewed", "SignatureDoesNotMatch"),
}
_PASSING = {
    *("BadDigest", "IncompleteBody", "InternalError", "InvalidPart", "NoSuchUpload", "OperationAborted"),
    *("ConditionalRequestConflict", "XAmzContentSHA256Mismatch"),
}
_ABSENT = {"NoSuchKey", "404", "NoSuchObject", "NoSuchVersion"}

_HINTS = {
    "NoSuchBucket": "Create the bucket, or correct its name in the settings.",
    "InvalidAccessKeyId": "Correct the access key in the settings.",
    "SignatureDoesNotMatch": "Correct the secret key in the settings.",
    "AccessDenied": "Give the access key the permission this operation needs.",
    "RequestTimeTooSkewed": "Set this machine's clock.",
}
_DENIED_HINT = "Check the keys, their permissions, the region and the bucket's name in the settings."
_NOT_S3_HINT = "Check the endpoint in the settings, and what stands between it and this service."
_SILENT_HINT = "Check that the store runs and that its endpoint in the settings is right."


def _error_class(code: str, status: int, *, side: str) -> type[StoreError]:
    """Which error an answer of a store means."""
    if code in _COME_BACK or status in (429, 503):
        return StoreUnavailable
    if code in _MENDABLE or status in (401, 403, 301, 307):
        return StoreDenied
    if code in _ABSENT:
        return NoSuchKey
    if status == 412 and side == "source":
        return SourceChanged
    if code in _PASSING or status >= 500:
        return StoreFailed
    return StoreRefused


def _answered(code: str, status: int, text: str, place: Place, *, headers: Mapping[str, str]) -> StoreError:
    kind = _error_class(code, status, side=place.side)
    hint = _HINTS.get(code, _DENIED_HINT if kind is StoreDenied else "")
    return kind(
        f"answered {status} {code}" + (f": {text}" if text else ""),
        place,
        store_code=code,
        status=status,
        retry_after_s=_retry_after(headers),
        hint=hint,
    )


def _retry_after(headers: Mapping[str, str]) -> float | None:
    """Retry-After in seconds; its other form, a date, is not used by S3 stores (RFC 9110, 10.2.3)."""
    value = headers.get("retry-after") or headers.get("Retry-After") or ""
    is_number = value.isascii() and value.isdigit() and len(value) < 9
    return min(float(value), RETRY_AFTER_MAX_S) if is_number else None


class LastAnswer(threading.local):
    """The last answer of a store that this thread got; None: there was none."""

    response: urllib3.BaseHTTPResponse | None = None


@contextmanager
def minio_errors(operation: str, bucket: str, key: str, *, last: LastAnswer) -> Iterator[None]:
    """Translates what minio and urllib3 raise in the block."""
    place = Place(side="source", operation=operation, bucket=bucket, key=key)
    not_s3 = StoreFailed("gave an answer that is not S3's", place, hint=_NOT_S3_HINT)
    last.response = None
    try:
        yield
    except S3Error as error:
        answer = error.response
        raise _answered(
            error.code or "", answer.status, error.message or "", place, headers=answer.headers
        ) from error
    except (ServerError, InvalidResponseError) as error:
        said = last.response
        if said is None or said.status < 400:
            raise not_s3 from error
        raise _answered("", said.status, "", place, headers=said.headers) from error
    except (urllib3.exceptions.IncompleteRead, urllib3.exceptions.ProtocolError) as error:
        raise StoreFailed("broke off its answer", place) from error
    except (urllib3.exceptions.HTTPError, OSError) as error:
        raise StoreUnavailable(f"no answer ({_kind(error)})", place, hint=_SILENT_HINT) from error
    except ParseError as error:
        raise not_s3 from error
    except ValueError as error:
        if last.response is not None:  # it was asked, and answered what minio cannot read
            raise not_s3 from error
        raise StoreRefused(f"cannot be asked for: {error}", place) from error


@contextmanager
def boto_errors(
    operation: str, bucket: str, key: str, *, wanted: str = ""
) -> Iterator[Callable[[dict[str, Any]], dict[str, Any]]]:
    """Translates what botocore raises in the block; gives a check that an answer has what it must."""
    place = Place(side="target", operation=operation, bucket=bucket, key=key)
    not_s3 = StoreFailed("gave an answer that is not S3's", place, hint=_NOT_S3_HINT)

    def checked(answer: dict[str, Any]) -> dict[str, Any]:
        if wanted and wanted not in answer:
            raise not_s3
        return answer

    try:
        yield checked
    except ClientError as error:
        told, meta = error.response.get("Error", {}), error.response.get("ResponseMetadata", {})
        raise _answered(
            told.get("Code", ""),
            meta.get("HTTPStatusCode", 0),
            told.get("Message", ""),
            place,
            headers=meta.get("HTTPHeaders", {}),
        ) from error
    except ParamValidationError as error:
        raise StoreRefused(f"cannot be sent: {error}", place) from error
    except NoCredentialsError as error:
        raise StoreDenied("no credentials", place, hint=_DENIED_HINT) from error
    except (HTTPClientError, BotoConnectionError, OSError) as error:
        raise StoreUnavailable(f"no answer ({_kind(error)})", place, hint=_SILENT_HINT) from error
    except ResponseParserError as error:
        raise not_s3 from error
    except BotoCoreError as error:
        raise StoreFailed(f"{_kind(error)}: {error}", place) from error


def _kind(error: BaseException) -> str:
    """The innermost reason's class, which names no secret: MaxRetryError → NewConnectionError."""
    reason = getattr(error, "reason", None)
    return type(reason if isinstance(reason, Exception) else error).__name__
