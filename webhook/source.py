"""The store that objects are read from."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from webhook.errors import SourceChanged, StoreFailed
from webhook.layout import Part, count
from webhook.memory import Body, body_of
from webhook.objects import ObjectInfo, info_from_headers
from webhook.settings import StoreSettings
from webhook.store import Store


class Source:
    """Thread-safe. Create it after the fork."""

    def __init__(self, settings: StoreSettings) -> None:
        self._store = Store(settings, side="source")

    def close(self) -> None:
        """Closes the connections that are not in use."""
        self._store.close()

    def head(self, bucket: str, key: str) -> ObjectInfo:
        """The object's headers. Raises: NoSuchKey (also where the bucket is missing), StoreError."""
        return self._store.info(bucket, key)

    def read(
        self, bucket: str, key: str, wants: Callable[[ObjectInfo], bool]
    ) -> tuple[ObjectInfo, Body | None]:
        """The object and its whole body; None for a body that `wants` does not want.

        `wants` is called once the object's headers are there, and may wait for memory to be free.
        Raises: NoSuchKey, StoreError, IntegrityError.
        """
        found: list[ObjectInfo] = []

        def room(headers: Mapping[str, str]) -> Body | None:
            info = info_from_headers(headers)
            found.append(info)
            if "content-length" not in headers or (info.size and not info.etag):
                raise StoreFailed(
                    "gave an object without a length or an ETag: is this an S3 store?",
                    self._store.place("GetObject", bucket, key),
                    hint="Check the endpoint in the settings, and what stands between.",
                )
            return body_of(info.size) if wants(info) else None

        answer = self._store.ask("GetObject", "GET", bucket, key, room=room)
        return found[0], answer.body

    def read_part(self, bucket: str, key: str, part: Part, *, etag: str) -> Body:
        """The bytes of one part, of the version that has this ETag and no other.

        Raises: SourceChanged where the object is another by now, StoreError, IntegrityError.
        """

        def room(headers: Mapping[str, str]) -> Body:
            if info_from_headers(headers).etag != etag:
                raise SourceChanged("the object was replaced", self._store.place("GetObject", bucket, key))
            return body_of(part.size)

        given = {"range": f"bytes={part.offset}-{part.offset + part.size - 1}", "if-match": f'"{etag}"'}
        return self._store.ask("GetObject", "GET", bucket, key, headers=given, room=room).body or body_of(0)

    def tags(self, bucket: str, key: str) -> dict[str, str]:
        """The object's tags. Raises: NoSuchKey, StoreError."""
        return self._store.tags(bucket, key)

    def part_size(self, bucket: str, key: str, info: ObjectInfo) -> int | None:
        """The size of the parts an object was uploaded in, where the store tells. Raises: StoreError.

        From HeadObject with partNumber=1, which answers with the first part's length and the number of
        parts (Amazon S3 API Reference, HeadObject). None where it does not, or parts differ in size.
        """
        headers = self._store.head(bucket, key, part=1)
        size = int(headers.get("content-length", "0"))
        if headers.get("x-amz-mp-parts-count") != str(info.parts_count) or size < 1:
            return None
        return size if count(info.size, size) == info.parts_count else None

    def check(self, bucket: str) -> None:
        """Raises StoreError unless the bucket is there and may be asked."""
        self._store.check(bucket, setting="MINIO_BUCKET")
