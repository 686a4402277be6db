"""What a store's answer means: HTTP answers and boto3's exceptions → the errors of `webhook.errors`.

Told apart by type, HTTP status and the store's own error code, never by the text of a message.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any
from xml.etree import ElementTree

from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    ConnectTimeoutError,
    HTTPClientError,
    NoCredentialsError,
    ParamValidationError,
    ReadTimeoutError,
)
from botocore.exceptions import (
    ConnectionError as BotoConnectionError,
)
from botocore.parsers import ResponseParserError

from webhook.errors import (
    NoSuchKey,
    Place,
    SourceChanged,
    StoreDenied,
    StoreError,
    StoreFailed,
    StoreRefused,
    StoreUnavailable,
    TargetChanged,
)

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
_TELLING = {301, 307, 401, 403, 429}
"""HTTP statuses that need no code of S3's."""
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
SILENT_HINT = "Check that the store runs and that its endpoint in the settings is right."


def _error_class(code: str, status: int, *, side: str) -> type[StoreError]:
    """Which error an answer of a store means."""
    if code in _COME_BACK or status in (429, 503):
        return StoreUnavailable
    if code in _MENDABLE or status in (401, 403, 301, 307):
        return StoreDenied
    if code in _ABSENT:
        return NoSuchKey
    if status == 412 or (code == "ConditionalRequestConflict" and side == "target"):
        return SourceChanged if side == "source" else TargetChanged
    if code in _PASSING or status >= 500:
        return StoreFailed
    return StoreRefused


def _answered(code: str, status: int, text: str, place: Place, *, headers: Mapping[str, str]) -> StoreError:
    kind = _error_class(code, status, side=place.side)
    hint = _HINTS.get(code, _DENIED_HINT if kind is StoreDenied else "")
    return kind(
        f"answered {status} {code}".rstrip() + (f": {text}" if text else ""),
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


def answered(status: int, body: bytes, place: Place, headers: Mapping[str, str]) -> StoreError:
    """The error that an answer other than 2xx means. Header names are in lower case.

    Source of the format: Amazon S3 API Reference, "REST error responses".
    """
    root = read_xml(body)
    code, text = (
        ("", "") if root is None else [root.findtext(f"{{*}}{name}", "") for name in ("Code", "Message")]
    )
    if not body and status == 404:  # HEAD: there is no saying what is missing
        code = "404"
    if not code and status not in _TELLING and (body or status < 400) and status < 500:
        return not_s3(place)
    return _answered(code, status, text, place, headers=headers)


def read_xml(body: bytes) -> ElementTree.Element | None:
    """The root of a small document; None where it is none. Expat bounds what entities may grow to."""
    try:
        return ElementTree.fromstring(body)  # noqa: S314
    except ElementTree.ParseError:
        return None


def not_s3(place: Place) -> StoreFailed:
    """The error for an answer that no S3 store gives."""
    return StoreFailed("gave an answer that is not S3's", place, hint=_NOT_S3_HINT)


@contextmanager
def boto_errors(
    operation: str, bucket: str, key: str, *, wanted: str = ""
) -> Iterator[Callable[[dict[str, Any]], dict[str, Any]]]:
    """Translates what botocore raises in the block; gives a check that an answer has what it must."""
    place = Place(side="target", operation=operation, bucket=bucket, key=key)

    def checked(answer: dict[str, Any]) -> dict[str, Any]:
        if wanted and wanted not in answer:
            raise not_s3(place)
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
        text = f"no answer ({_kind(error)})"
        timed_out = isinstance(error, ReadTimeoutError | ConnectTimeoutError)
        # without its cause, which may quote a proxy's password
        raise StoreUnavailable(text, place, hint=SILENT_HINT, timed_out=timed_out) from None
    except ResponseParserError as error:
        raise not_s3(place) from error
    except BotoCoreError as error:
        raise StoreFailed(f"{_kind(error)}: {error}", place) from error


def _kind(error: BaseException) -> str:
    """The innermost reason's class, which names no secret: MaxRetryError → NewConnectionError."""
    reason = getattr(error, "reason", None)
    return type(reason if isinstance(reason, Exception) else error).__name__
