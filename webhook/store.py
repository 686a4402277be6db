"""One S3 store over HTTP: one request at a time, signed, on connections that are kept open.

Keys and headers go out and come in as they are, bodies straight from and to the memory they are held in. What
failed is not repeated, save once what met a connection that was closed without an answer. Out of here come
the errors of `webhook.errors`. Holds open connections: create it after the fork.
"""

from __future__ import annotations

import contextlib
import http.client
import ssl
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from functools import cached_property
from typing import Any, Self
from urllib.parse import quote
from xml.etree import ElementTree

from webhook.answers import SILENT_HINT, answered, not_s3, read_xml
from webhook.connections import Connection, Connections, Request, Response
from webhook.errors import (
    IntegrityError,
    NoSuchKey,
    Place,
    StoreDenied,
    StoreFailed,
    StoreRefused,
    StoreUnavailable,
)
from webhook.listing import PAGE_MAX_BYTES, Page, read_page
from webhook.objects import DIGITS_MAX, ObjectInfo, info_from_headers
from webhook.pace import Pace, Right, Turn
from webhook.settings import StoreSettings
from webhook.sigv4 import Signer

TEXT_MAX_BYTES = 64 * 1024
"""Error documents and tags are far smaller."""
_CERTIFICATE_HINT = (
    "Check the store's certificate; name a certificate authority of your own in MINIO_CA_BUNDLE or "
    "FILEBASE_CA_BUNDLE, or for all in SSL_CERT_FILE."
)


@dataclass(frozen=True, slots=True)
class Answer:
    """A good answer of the store."""

    headers: Mapping[str, str]
    """Names in lower case; bytes as Latin-1."""
    text: bytes
    """The body: all of it, or at least its first TEXT_MAX_BYTES."""

    def xml(self, place: Place) -> ElementTree.Element:
        """The body as XML. Raises: StoreFailed."""
        root = read_xml(self.text)
        if root is None:
            raise not_s3(place)
        return root


class Store:
    """Thread-safe. `side` is "source" or "target", for errors; `pace`: how fast it is asked."""

    def __init__(self, settings: StoreSettings, *, side: str, pace: Pace | None = None) -> None:
        self._side = side
        self._pace = pace
        self._connections = Connections(settings.endpoint_url, ca_file=settings.ca_file)
        self.host = self._connections.host
        """As the Host header has it."""
        self._signer = Signer(
            access_key=settings.access_key,
            secret_key=settings.secret_key,
            region=settings.region,
            host=self.host,
        )

    def head(
        self, bucket: str, key: str, *, part: int | None = None, permit: Right | None = None
    ) -> Mapping[str, str]:
        """The object's headers. Raises: NoSuchKey (also where the bucket is missing), StoreError."""
        query = [("partNumber", str(part))] if part else []
        return self.ask("HeadObject", "HEAD", bucket, key, query=query, permit=permit).headers

    def info(self, bucket: str, key: str, *, permit: Right | None = None) -> ObjectInfo:
        """The object as its headers describe it. Raises as `head` does."""
        return info_from_headers(self.head(bucket, key, permit=permit))

    def tags(self, bucket: str, key: str, *, permit: Right | None = None) -> dict[str, str]:
        """The object's tags. Raises: NoSuchKey, StoreError."""
        query = [("tagging", "")]
        answer = self.ask("GetObjectTagging", "GET", bucket, key, query=query, permit=permit)
        root = answer.xml(self.place("GetObjectTagging", bucket, key))
        if root.find("{*}TagSet") is None:
            raise not_s3(self.place("GetObjectTagging", bucket, key))
        found = root.iterfind("{*}TagSet/{*}Tag")
        return {tag.findtext("{*}Key", ""): tag.findtext("{*}Value", "") for tag in found}

    def page(self, bucket: str, prefix: str, *, token: str = "") -> Page:
        """A page of the keys with a prefix: the first one, or what follows a page's token.

        A page that is cut short is an error, never a shorter page. Raises: StoreError.
        """
        query = [("encoding-type", "url"), ("list-type", "2"), ("max-keys", "1000"), ("prefix", prefix)]
        if token:
            query.append(("continuation-token", token))
        with self.open("ListObjectsV2", "GET", bucket, query=query) as reading:
            answer = Answer(reading.headers, reading.text(PAGE_MAX_BYTES))
        place = self.place("ListObjectsV2", bucket, "")
        page = read_page(answer.xml(place))
        if page is None or page.token == token != "":
            raise not_s3(place)
        return page

    def buckets(self) -> list[str]:
        """The names of all buckets there are. Raises: StoreError."""
        answer = self.ask("ListBuckets", "GET", "")
        root = answer.xml(self.place("ListBuckets", "", ""))
        return [each.text or "" for each in root.iterfind("{*}Buckets/{*}Bucket/{*}Name")]

    def has_notification(self, bucket: str) -> bool:
        """Whether the bucket is configured to tell anybody of anything. Raises: StoreError."""
        operation = "GetBucketNotificationConfiguration"
        answer = self.ask(operation, "GET", bucket, query=[("notification", "")])
        return len(answer.xml(self.place(operation, bucket, ""))) > 0

    def check(self, bucket: str, *, setting: str) -> float:
        """Raises StoreError unless the bucket is there and may be asked; gives the store's own time, in
        seconds since 1970 and not later than it is there, 0.0 where it does not tell.
        """
        try:
            return _seconds(self.ask("HeadBucket", "HEAD", bucket).headers.get("date", ""))
        except NoSuchKey as error:
            raise StoreDenied(
                "the bucket does not exist",
                error.place,
                status=error.status,
                hint=f"Create the bucket, or correct {setting}.",
            ) from None

    def place(self, operation: str, bucket: str, key: str) -> Place:
        """For errors."""
        return Place(side=self._side, operation=operation, bucket=bucket, key=key)

    def ask(self, operation: str, method: str, bucket: str, key: str = "", **given: Any) -> Answer:
        """One request whose answer is short; arguments and errors as those of `open`."""
        with self.open(operation, method, bucket, key, **given) as reading:
            return Answer(reading.headers, reading.text())

    def open(
        self,
        operation: str,
        method: str,
        bucket: str,
        key: str = "",
        *,
        query: Sequence[tuple[str, str]] = (),
        headers: Mapping[str, str] | None = None,
        body: memoryview | None = None,
        permit: Right | None = None,
    ) -> Reading:
        """One request; gives its good answer, whose body is still to be read.

        Header names are given in lower case, values as bytes in Latin-1. What writes is sent only if `permit`
        still allows it, asked after all waiting, and right before it is sent. Raises: StoreError, LeaseLost;
        where the store is paced, LedgerUnavailable.
        """
        place = self.place(operation, bucket, key)
        path = f"/{bucket}/{quote(key, safe='/~')}" if key else f"/{bucket}"
        check = permit.check if permit and method not in ("GET", "HEAD") else None
        turn = self._pace.turn(place, permit, length=len(body or b"")) if self._pace else Turn()
        try:
            with self._errors(place):
                given = _checked(headers or {})
                encoded, signed = self._signer.sign(method, path, query, given, at=time.time())
                signed["host"] = self.host
            target = f"{path}?{encoded}" if encoded else path
            reading = self.carry(Request(method, target, signed, body, check), place)
        except BaseException as error:
            turn.end(error)
            raise
        reading.turn = turn
        return reading

    def carry(self, request: Request, place: Place) -> Reading:
        """Sends a request that is signed, without waiting for the pace; gives its good answer, whose body is
        still to be read. Raises: StoreError, and what its check does.
        """
        with self._errors(place):
            connection, response = self._connections.send(request)
        reading = Reading(self._connections, connection, response, place)
        _raise_unless_good(reading, response.status, place)
        return reading

    def close(self) -> None:
        """Closes the connections that are not in use."""
        self._connections.close()

    @contextlib.contextmanager
    def _errors(self, place: Place) -> Iterator[None]:
        """What a request meets before there is an answer."""
        try:
            yield
        except ssl.SSLCertVerificationError as error:
            text = f"no answer ({error.verify_message or error.reason})"
            raise StoreUnavailable(text, place, hint=_CERTIFICATE_HINT) from None
        except OSError as error:
            reason = error.strerror or str(error) or type(error).__name__
            text = f"no answer from {self.host} ({reason})"
            timed_out = isinstance(error, TimeoutError)
            raise StoreUnavailable(text, place, hint=SILENT_HINT, timed_out=timed_out) from None
        except http.client.HTTPException:
            raise not_s3(place) from None
        except UnicodeEncodeError:
            raise StoreRefused("cannot be sent: a header holds what is not Latin-1", place) from None
        except ValueError as error:
            raise StoreRefused(f"cannot be sent: {error}", place) from None


class Reading:
    """An answer whose body is still to be read. Close it."""

    def __init__(
        self, connections: Connections, connection: Connection, response: Response, place: Place
    ) -> None:
        self._connections = connections
        self._connection = connection
        self._response = response
        self._place = place
        self._is_open = True
        self.turn = Turn()
        """Ended when it is closed."""
        self.headers: dict[str, str] = {}
        for name, value in response.getheaders():
            known, value = self.headers.get(name.lower()), value.strip(" \t\r\n")
            self.headers[name.lower()] = value if known in (None, value) else f"{known}, {value}"

    @cached_property
    def info(self) -> ObjectInfo:
        """The object that the headers describe."""
        return info_from_headers(self.headers)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def read_into(self, body: memoryview) -> None:
        """Fills `body`. Raises: IntegrityError where the answer has another length, StoreFailed."""
        announced = self._response.length
        if announced not in (None, len(body)):
            self._wrong_length(body, f"{announced} are sent")
        with self._errors():
            self._response.restart_clock()
            filled = self._response.readinto(body)
            if filled < len(body):
                raise EOFError
            if self._response.read(1):
                self._wrong_length(body, "more are sent")

    def text(self, length_max: int = TEXT_MAX_BYTES) -> bytes:
        """The body, or at least its first `length_max` bytes. Raises: StoreFailed."""
        with self._errors():
            self._response.restart_clock()
            return self._response.read(length_max)

    def chunks(self, size: int) -> Iterator[bytes]:
        """The body, piece by piece. Raises: StoreFailed, also where it is shorter than announced."""
        with self._errors():
            self._response.restart_clock()
            while piece := self._response.read(size):
                yield piece
            if self._response.length:
                raise EOFError

    def close(self) -> None:
        """Gives the connection back where the body was read, else drops it. Safe to repeat."""
        if self._is_open:
            self._is_open = False
            self._connections.give_back(self._connection, is_clean=self._response.isclosed())
            self._response.close()
            self.turn.end()

    @contextlib.contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except (OSError, EOFError, ValueError, http.client.HTTPException):
            raise StoreFailed("broke off its answer", self._place) from None

    def _wrong_length(self, body: memoryview, found: str) -> None:
        raise IntegrityError(
            f"{self._place}: {len(body)} bytes announced, {found}",
            hint="It is read again. If this stays, something on the way changes the data.",
        )


def _raise_unless_good(reading: Reading, status: int, place: Place) -> None:
    """Raises the error that an answer other than 2xx means, and closes it then."""
    length = reading.headers.get("content-length", "0")
    is_s3 = length.isascii() and length.isdigit() and len(length) <= DIGITS_MAX
    if is_s3 and 200 <= status < 300:
        return
    with reading:
        raise answered(status, reading.text(), place, reading.headers) if is_s3 else not_s3(place)


def _seconds(date: str) -> float:
    try:
        return parsedate_to_datetime(date).timestamp()
    except (ValueError, OverflowError):
        return 0.0


def _checked(headers: Mapping[str, str]) -> Mapping[str, str]:
    """Raises: ValueError where a value would end its line."""
    for name, value in headers.items():
        if any(character in value for character in "\r\n\0"):
            raise ValueError(f"the header {name} holds a line break")
    return headers
