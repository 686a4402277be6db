"""What a store can do, found out by trying, for people and for the service."""

from __future__ import annotations

import base64
import enum
import gzip
import hashlib
import unicodedata
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from webhook.conditions import IF_MATCH, IF_NEW, NO_ETAG
from webhook.digests import parts_etag
from webhook.errors import NoSuchKey, StoreError, StoreUnavailable, TargetChanged
from webhook.findings import Findings
from webhook.holdings import Holdings, traits
from webhook.objects import Properties, info_from_headers
from webhook.probes import COMPLETE, DELETE, PUT, Probes

BODY = b"Written by minio-replicator's doctor to see what this store can do; safe to delete.\n"
PART_BYTES = 5 * 1024 * 1024
"""S3's least for a part that is not the last (Amazon S3 User Guide, "Multipart upload limits")."""
METADATA_BYTES = 2000
"""S3 allows 2 KB (Amazon S3 User Guide, "Working with object metadata")."""
KEY_BYTES, SEGMENT_BYTES = 1024, 200
E_COMPOSED, E_DECOMPOSED = unicodedata.normalize("NFC", "é"), unicodedata.normalize("NFD", "é")
LONGEST = "1024 bytes"
ODD_KEYS = {
    "two slashes": "odd/a//b",
    "a backslash": "odd/a\\b",
    "a slash at the end (a folder's marker)": "odd/folder/",
    "..": "odd/up/../b",
    "%": "odd/100%41",
    "+ and a blank": "odd/a+b c",
    "é as one character": f"odd/{E_COMPOSED}",
    "é as two characters": f"odd/{E_DECOMPOSED}",
    LONGEST: "odd/long/",
}
PROPERTIES = Properties(
    content_type="text/plain",
    content_encoding="gzip",
    content_disposition='attachment; filename="doctor.txt"',
    content_language="en",
    cache_control="max-age=60",
    expires="Thu, 01 Jan 2037 00:00:00 GMT",
    metadata={"doctor": "probe", "in-other-letters": "=?utf-8?b?w6nigqw=?="},
)
HEADER_NAMES = {IF_NEW: "If-None-Match", IF_MATCH: "If-Match"}
PRICE = {
    f"{PUT} {IF_NEW}": "each new object costs one HEAD more",
    f"{PUT} {IF_MATCH}": "a worker that hung may put an older version there",
    f"{DELETE} {IF_MATCH}": "a worker that hung may delete a newer copy",
    f"{COMPLETE} {IF_NEW}": "a worker that hung may put an older version there",
    f"{COMPLETE} {IF_MATCH}": "a worker that hung may put an older version there",
}
"""Of a condition that is not heeded."""


class Grade(enum.StrEnum):
    """What a finding means for the service."""

    FINE = "fine"
    NOTE = "note"  # worth knowing: something is lost, refused or slower
    WRONG = "wrong"  # the service cannot work like this


@dataclass(frozen=True, kw_only=True)
class Ability:
    """One thing that a store can or cannot do."""

    name: str
    """For programs: "PutObject if-match"."""
    value: Any
    """What JSON can hold."""
    text: str
    grade: Grade = Grade.FINE
    mend: str = ""


@dataclass
class Trials:
    """Trials at one bucket. Each raises StoreUnavailable where the store is away, and as the permit does."""

    probes: Probes
    _holdings: Holdings = field(default_factory=Holdings)
    _heeds: dict[str, bool] = field(default_factory=dict)

    def findings(self, report: Mapping[str, Any]) -> Findings:
        """What the service may use of all that was found."""
        return Findings(
            conditions=dict(self._heeds),
            held=self._holdings.held,
            wants_digests=self.probes.wants_digests,
            report=report,
        )

    def content(self) -> list[Ability]:
        """An object is written, read as it was, and removed. Raises: StoreError where one of these fails."""
        key = self.probes.key("plain")
        written = self.probes.put(key, BODY)
        if self.probes.read(key) != BODY:
            return [
                _wrong("content", "what is read is not what was written: something on the way changes it")
            ]
        is_md5 = written.headers.get("etag", "").strip('"') == _md5(BODY).hex()
        self.probes.delete(key)
        if self.probes.is_there(key):
            return [_wrong("content", "an object that was deleted is still there")]
        means = "are MD5s" if is_md5 else "are no MD5s: copies are verified by their size"
        return [
            Ability(name="content", value=True, text="writes, reads and deletes"),
            _graded("etag is md5", is_md5, f"ETags of whole objects {means}"),
        ]

    def checksums(self) -> list[Ability]:
        """Whether bytes are refused that are not those a digest was made of."""
        checks = bool(self._refusal({"content-md5": base64.b64encode(_md5(b"other")).decode()}))
        how = "checked" if checks else "ignored: damage on the way shows only afterwards, in the ETag"
        if self._refusal({"x-amz-checksum-crc32": _crc32(BODY)}):
            crc = "refused"
        else:
            crc = "checked" if self._refusal({"x-amz-checksum-crc32": _crc32(b"other")}) else "ignored"
        return [
            _graded("checks content-md5", checks, f"Content-MD5 is {how}"),
            Ability(name="crc32", value=crc, text=f"x-amz-checksum-crc32 is {crc}; the service needs none"),
        ]

    def conditions(self) -> list[Ability]:
        """Whether PUT and DELETE heed conditions."""
        key = self.probes.key("conditions")
        self.probes.put(key, BODY)
        found = [
            self._heeded(PUT, IF_NEW, partial(self.probes.put, key, BODY, {IF_NEW: "*"})),
            self._heeded(PUT, IF_MATCH, partial(self.probes.put, key, BODY, {IF_MATCH: NO_ETAG})),
            self._heeded(DELETE, IF_MATCH, partial(self._delete_another, key)),
        ]
        self.probes.remove(key)
        return found

    def parts(self) -> list[Ability]:
        """Uploads in parts: the least size of one, what ETags mean, conditions at their end."""
        key, bodies = self.probes.key("parts"), (bytes(PART_BYTES), BODY)
        is_md5 = self.probes.upload(key, bodies) == parts_etag([_md5(body) for body in bodies])
        means = (
            "is the MD5 of the parts' MD5s" if is_md5 else "is none that can be computed: parts' ETags count"
        )
        small = self._said(lambda: self.probes.upload(self.probes.key("small parts"), (BODY, BODY)))
        return [
            Ability(name="multipart", value=True, text="uploads in parts of 5 MiB work"),
            _graded("parts etag is md5", is_md5, f"the ETag of an object in parts {means}"),
            Ability(
                name="small parts",
                value=not small,
                text="parts below 5 MiB are " + (f"refused ({small})" if small else "taken too"),
            ),
            self._heeded(COMPLETE, IF_NEW, partial(self.probes.upload, key, (BODY,), {IF_NEW: "*"})),
            self._heeded(COMPLETE, IF_MATCH, partial(self.probes.upload, key, (BODY,), {IF_MATCH: NO_ETAG})),
        ]

    def headers(self) -> list[Ability]:
        """Which headers and metadata are kept."""
        key = self.probes.key("headers")
        self.probes.put(key, gzip.compress(BODY, mtime=0), _headers(PROPERTIES))
        found = info_from_headers(self.probes.store.head(self.probes.bucket, key))
        lost = [_plain(name) for name in self._holdings.learn(PROPERTIES, found)]
        kept = [_plain(name) for name in traits(PROPERTIES) if _plain(name) not in lost]
        abilities = [Ability(name="headers kept", value=kept, text=f"keeps {_words(kept)}")]
        if lost:
            text = f"loses {_words(lost)}; each object that had it says so in its entry"
            abilities.append(_graded("headers lost", lost, text, is_fine=False))
        return [*abilities, self._long_metadata()]

    def tags(self) -> list[Ability]:
        """Whether tags are taken and shown."""
        key, shown = self.probes.key("tags"), {}
        refusal = self._said(lambda: self.probes.put(key, BODY, {"x-amz-tagging": "doctor=probe"}))
        if not refusal:
            refusal = self._said(lambda: shown.update(self.probes.store.tags(self.probes.bucket, key)))
        takes = shown == {"doctor": "probe"}
        why = f" ({refusal})" if refusal else ""
        text = "keeps tags" if takes else f"loses tags{why}; each object that had some says so in its entry"
        return [_graded("tags", takes, text)]

    def storage_class(self, name: str) -> list[Ability]:
        """Whether objects may be written with the class that a rule asks for."""
        refusal = self._refusal({"x-amz-storage-class": name})
        if refusal:
            mend = "Correct storage_class in the file of rules, or FILEBASE_STORAGE_CLASS."
            return [_wrong(f"storage class {name}", f"refuses the storage class {name} ({refusal})", mend)]
        return [Ability(name=f"storage class {name}", value=True, text=f"takes the storage class {name}")]

    def odd_keys(self) -> list[Ability]:
        """Which unusual keys are refused, or come back as another object's."""
        keys = {name: self._odd_key(name) for name in ODD_KEYS}
        said = {name: self._said(partial(self.probes.put, key, _body_of(key))) for name, key in keys.items()}
        troubles = {name: f"refused ({why})" for name, why in said.items() if why}
        listed = self.probes.listed(self.probes.key("odd/"))
        for name in keys.keys() - troubles.keys():
            if not self._reads(keys[name]):
                troubles[name] = "taken, but it reads as something else"
            elif keys[name] not in listed:
                troubles[name] = "taken, but listed under another name"
        fine = [name for name in keys if name not in troubles]
        return [
            Ability(name="odd keys", value=fine, text=f"takes keys with {_words(fine)}"),
            *(
                _graded(
                    f"odd key {name}", troubles[name], f"a key with {name} is {troubles[name]}", is_fine=False
                )
                for name in keys
                if name in troubles
            ),
        ]

    # ── what several trials do ───────────────────────────────────────────────────────────────────────

    def _said(self, send: Callable[[], object]) -> str:
        """What the store says against a request; "": it does it."""
        try:
            send()
        except StoreUnavailable:
            raise
        except StoreError as error:
            return f"{error.status or ''} {error.store_code or ''}".strip() or error.code
        return ""

    def _refusal(self, headers: Mapping[str, str]) -> str:
        return self._said(lambda: self.probes.put(self.probes.key("plain"), BODY, headers))

    def _reads(self, key: str) -> bool:
        read: list[bytes] = []
        self._said(lambda: read.append(self.probes.read(key)))
        return read == [_body_of(key)]

    def _odd_key(self, name: str) -> str:
        key = self.probes.key(ODD_KEYS[name])
        while name == LONGEST and (left := KEY_BYTES - len(key.encode())) > 0:
            key += "k" * (left if left <= SEGMENT_BYTES else SEGMENT_BYTES - 1)
            key += "/" if left > SEGMENT_BYTES else ""
        return key

    def _long_metadata(self) -> Ability:
        key, value = self.probes.key("metadata"), "v" * (METADATA_BYTES - len("long"))
        shown: dict[str, str] = {}

        def look() -> None:
            self.probes.put(key, BODY, {"x-amz-meta-long": value})
            found = info_from_headers(self.probes.store.head(self.probes.bucket, key))
            shown.update(found.properties.metadata)

        refusal = self._said(look)
        keeps = shown.get("long") == value
        why = f" ({refusal})" if refusal else ""
        text = "keeps 2 kB of metadata" if keeps else f"does not keep 2 kB of metadata{why}, as S3 does"
        return _graded("long metadata", keeps, text)

    # ── conditions ───────────────────────────────────────────────────────────────────────────────────

    def _delete_another(self, key: str) -> None:
        """Deletes on a condition that does not hold."""
        self.probes.delete(key, {IF_MATCH: NO_ETAG})

    def _heeded(self, operation: str, header: str, send: Callable[[], object]) -> Ability:
        """By a request that must be refused, because its condition does not hold."""
        try:
            send()
            how = "ignored"
        except (TargetChanged, NoSuchKey):
            how = "heeded"
        except StoreUnavailable:
            raise
        except StoreError:
            how = "refused"
        name = f"{operation} {header}"
        self._heeds[name] = how == "heeded"
        price = "" if how == "heeded" else f": {PRICE[name]}"
        text = f"{operation} with {HEADER_NAMES[header]} is {how}{price}"
        return _graded(name, how, text, is_fine=how == "heeded")


def _graded(name: str, value: Any, text: str, *, is_fine: bool | None = None) -> Ability:
    is_fine = bool(value) if is_fine is None else is_fine
    return Ability(name=name, value=value, text=text, grade=Grade.FINE if is_fine else Grade.NOTE)


def _wrong(name: str, text: str, mend: str = "") -> Ability:
    return Ability(name=name, value=False, text=text, grade=Grade.WRONG, mend=mend)


def _plain(trait: str) -> str:
    return trait.partition(":")[0]


def _words(names: list[str]) -> str:
    return ", ".join(names) or "nothing of that"


def _headers(properties: Properties) -> dict[str, str]:
    named = {
        "content-type": properties.content_type,
        "content-encoding": properties.content_encoding,
        "content-disposition": properties.content_disposition,
        "content-language": properties.content_language,
        "cache-control": properties.cache_control,
        "expires": properties.expires,
    }
    return named | {f"x-amz-meta-{name}": value for name, value in properties.metadata.items()}


def _body_of(key: str) -> bytes:
    """Another one for each key; folder markers are empty."""
    return b"" if key.endswith("/") else BODY + key.encode()


def _md5(body: bytes) -> bytes:
    return hashlib.md5(body, usedforsecurity=False).digest()


def _crc32(body: bytes) -> str:
    return base64.b64encode(zlib.crc32(body).to_bytes(4)).decode()
