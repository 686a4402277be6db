"""What a store's answer means: HTTP answers and boto3's exceptions → the errors of `webhook.errors`.

Told apart by type, HTTP status and the store's own error code, never by the text of a message.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from xml.etree import ElementTree

from botocore.exceptions import BotoCoreError, ClientError, ParamValidationError
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
MARKS_MAX = 100_000
"""Tags and attributes of one document: a page of 1,000 keys has some 15,000. Each takes memory."""
_SWELLING = re.compile(rb"""<!DOCTYPE|\sxmlns(?:[^=]{0,100}=\s*["'][^"']{200}|[^=]{100})""")
"""What makes much of few bytes: entities, and a long name that is put before each element's."""

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
    *("BadDigest", "IncompleteBody", "InternalError", "InvalidPart", "InvalidPartOrder", "MalformedXML"),
    *("NoSuchUpload", "OperationAborted"),
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
    """The root of a small document in UTF-8; None where it is none, or nothing that S3 would send."""
    if body.count(b"<") + body.count(b"=") > MARKS_MAX or _SWELLING.search(body) or b"\0" in body:
        return None  # NUL: it is UTF-16, whatever the parser is told, and hides the rest
    try:
        parser = ElementTree.XMLParser(encoding="utf-8")  # noqa: S314 - what swells was refused # nosec B314
        return ElementTree.fromstring(body, parser)  # noqa: S314 # nosec B314
    except ElementTree.ParseError:
        return None


def not_s3(place: Place) -> StoreFailed:
    """The error for an answer that no S3 store gives."""
    return StoreFailed("gave an answer that is not S3's", place, hint=_NOT_S3_HINT)


@contextmanager
def boto_errors(place: Place) -> Iterator[None]:
    """Translates what botocore raises in the block: for what it cannot send, and for a 200 that it does not
    understand, or that holds an error (Amazon S3 API Reference, CompleteMultipartUpload).
    """
    try:
        yield
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
    except ResponseParserError as error:
        raise not_s3(place) from error
    except BotoCoreError as error:
        raise StoreFailed(f"{type(error).__name__}: {error}", place) from error
