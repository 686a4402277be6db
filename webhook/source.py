"""The store that objects are read from."""

from __future__ import annotations

from webhook.errors import SourceChanged, StoreError, StoreFailed
from webhook.layout import Part, count
from webhook.listing import Page
from webhook.objects import ObjectInfo
from webhook.settings import StoreSettings
from webhook.store import Reading, Store


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

    def open(self, bucket: str, key: str) -> Reading:
        """Starts reading the whole object. Raises: NoSuchKey, StoreError."""
        found = self._store.open("GetObject", "GET", bucket, key)
        if "content-length" not in found.headers or (found.info.size and not found.info.etag):
            found.close()
            raise StoreFailed(
                "gave an object without a length or an ETag: is this an S3 store?",
                self._store.place("GetObject", bucket, key),
                hint="Check the endpoint in the settings, and what stands between.",
            )
        return found

    def read_part(self, bucket: str, key: str, part: Part, body: memoryview, *, etag: str) -> None:
        """Fills `body` with one part, of the version that has this ETag and no other.

        Raises: SourceChanged where the object is another by now, StoreError, IntegrityError.
        """
        given = {"range": f"bytes={part.offset}-{part.offset + part.size - 1}", "if-match": f'"{etag}"'}
        with self._store.open("GetObject", "GET", bucket, key, headers=given) as found:
            if found.info.etag != etag:
                raise SourceChanged("the object was replaced", self._store.place("GetObject", bucket, key))
            found.read_into(body)

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

    def page(self, bucket: str, prefix: str, *, token: str = "") -> Page:
        """A page of the bucket's listing; see `Store.page`. Raises: StoreError."""
        return self._store.page(bucket, prefix, token=token)

    def buckets(self) -> list[str]:
        """The names of all buckets that the credentials may see. Raises: StoreError."""
        return self._store.buckets()

    def tells_of_changes(self, bucket: str) -> bool | None:
        """Whether anybody is notified of what changes in the bucket; None where the source does not say."""
        try:
            return self._store.has_notification(bucket)
        except StoreError:
            return None

    def check(self, bucket: str) -> None:
        """Raises StoreError unless the bucket is there and may be asked."""
        self.time(bucket)

    def time(self, bucket: str) -> float:
        """The source's own time, as `Store.check` gives it, which it raises like, too."""
        return self._store.check(bucket, setting="the source bucket's name in the settings")
