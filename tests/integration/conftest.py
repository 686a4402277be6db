"""Stores behind proxies, and the scene of a copy: a source and a target with a bucket each."""

from __future__ import annotations

import io
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
from minio.commonconfig import Tags

from scripts.local_servers import S3Server, SeaweedFS
from tests.proxy import Proxy
from webhook.copier import Copier, Known, Outcome, OutcomeKind
from webhook.errors import LeaseLost, ReplicatorError
from webhook.layout import MIB
from webhook.memory import MemoryBudget
from webhook.objects import ObjectInfo
from webhook.pace import Slots
from webhook.rules import Rule
from webhook.settings import CopySettings, StoreSettings
from webhook.source import Source
from webhook.target import Target

WHOLE_MAX = 5 * MIB
SETTINGS = CopySettings(memory_budget_bytes=64 * MIB, whole_max_bytes=WHOLE_MAX)


@pytest.fixture(scope="module")
def proxy_for() -> Iterator[Callable[[S3Server], Proxy]]:
    """Puts a proxy before a server."""
    with ExitStack() as stack:
        yield lambda server: stack.enter_context(Proxy(server.endpoint))


@pytest.fixture(scope="module")
def source_at() -> Iterator[Callable[..., Source]]:
    """A Source for a server; keywords replace parts of its StoreSettings."""
    with ExitStack() as stack:
        yield lambda server, **changes: stack.enter_context(closing(Source(_settings(server, changes))))


@pytest.fixture(scope="module")
def target_at() -> Iterator[Callable[..., Target]]:
    """A Target for a server; keywords replace parts of its StoreSettings, `slots` are its limits'."""
    with _targets() as make:
        yield make


@pytest.fixture
def own_target_at() -> Iterator[Callable[..., Target]]:
    """The same, for Targets of one test: each holds some 10 MB of boto3's."""
    with _targets() as make:
        yield make


@contextmanager
def _targets() -> Iterator[Callable[..., Target]]:
    def make(server: S3Server, *, slots: Slots | None = None, **changes: Any) -> Target:
        made = Target(_settings(server, changes), slots=slots)
        return stack.enter_context(closing(made))

    with ExitStack() as stack:
        yield make


def _settings(server: S3Server, changes: dict[str, Any]) -> StoreSettings:
    settings = StoreSettings(
        endpoint_url=server.endpoint,
        access_key=server.access_key,
        secret_key=server.secret_key,
        region="us-east-1",
    )
    return replace(settings, **changes)


def read_object(source: Source, bucket: str, key: str) -> bytes:
    """The whole object."""
    with source.open(bucket, key) as reading:
        body = bytearray(reading.info.size)
        reading.read_into(memoryview(body))
        return bytes(body)


@dataclass
class Permit:
    """Counts the checks, keeps the notes; the lease is lost at check number `lost_at`."""

    lost_at: int = 0
    checks: int = 0
    notes: list[str | None] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def check(self) -> None:
        with self.lock:
            self.checks += 1
            if self.lost_at and self.checks >= self.lost_at:
                raise LeaseLost("the lease is over")

    def note_upload(self, note: str | None) -> None:
        self.notes.append(note)


@dataclass
class Scene:
    """A source and a target with a bucket each, behind proxies."""

    server: S3Server
    target_server: S3Server
    source_wire: Proxy
    target_wire: Proxy
    source: Source
    target: Target
    rule: Rule
    copiers: list[Copier] = field(default_factory=list)

    def copier(self, settings: CopySettings = SETTINGS) -> Copier:
        budget = MemoryBudget(settings.memory_budget_bytes)
        self.copiers.append(Copier(self.source, self.target, settings, budget))
        return self.copiers[-1]

    def put(self, body: bytes = b"content", *, part_size: int = 64 * MIB, key: str = "key", **kw: Any) -> str:
        """Writes to the source, past the proxy; gives the ETag. As a single PUT if it fits one part."""
        client, bucket = self.server.client(), self.rule.source_bucket
        done = client.put_object(
            bucket_name=bucket,
            object_name=key,
            data=io.BytesIO(body),
            length=len(body),
            part_size=part_size,
            **kw,
        )
        return str(done.etag)

    def tag(self, colour: str) -> None:
        """Gives the source's object one tag, past the proxy."""
        tags = Tags(for_object=True)
        tags["colour"] = colour
        self.server.client().set_object_tags(
            bucket_name=self.rule.source_bucket, object_name="key", tags=tags
        )

    def copy(self, *, copier: Copier | None = None, permit: Permit | None = None, **known: Any) -> Outcome:
        copier = copier or (self.copiers or [self.copier()])[0]
        return copier.copy_object(self.rule, "key", permit=permit or Permit(), known=Known(**known))

    def read_target(self, key: str = "key") -> bytes:
        client = self.target_server.client()
        with client.get_object(bucket_name=self.rule.target_bucket, object_name=key) as response:
            return response.read()

    def target_head(self) -> ObjectInfo | None:
        return self.target.head(self.rule.target_bucket, "key")

    def uploads(self) -> list[str]:
        listed = self.target_server.client()._list_multipart_uploads(self.rule.target_bucket)
        return [upload.object_name for upload in listed.uploads]

    def fails_with(
        self,
        kind: type[ReplicatorError] | tuple[type[ReplicatorError], ...],
        *,
        leaves: Sequence[str] = (),
        **kw: Any,
    ) -> None:
        """The copy fails in this way, and leaves no object behind, and uploads of these keys only."""
        with pytest.raises(kind):
            self.copy(**kw)
        assert self.target_head() is None
        assert self.uploads() == list(leaves)

    def is_unchanged(self, **known: str) -> None:
        """One more copy finds nothing to do, and writes nothing."""
        self.target_wire.forget()
        self.source_wire.forget()
        assert self.copy(**known).kind is OutcomeKind.UNCHANGED
        assert set(self.target_wire.counted) <= {"HeadObject", "GetObjectTagging"}
        assert set(self.source_wire.counted) <= {"HeadObject", "GetObjectTagging"}

    def replicates(self, body: bytes, *, sent: int | None = None, **known: Any) -> Outcome:
        """The copy writes the object, and the target has it."""
        done = self.copy(**known)
        found = self.target_head()
        assert found is not None
        assert done.kind is OutcomeKind.REPLICATED
        assert (done.size, done.lost) == (len(body), ())
        assert done.bytes_copied == (len(body) if sent is None else sent)
        assert (found.etag, found.size) == (done.target_etag, len(body))
        assert self.read_target() == body
        assert self.uploads() == []
        return done


@pytest.fixture(params=["gateway", "seaweed"])
def scene(
    request: pytest.FixtureRequest,
    seaweed: SeaweedFS,
    new_bucket: Callable[[S3Server], str],
    source_at: Callable[..., Source],
    own_target_at: Callable[..., Target],
) -> Iterator[Scene]:
    """Each server in turn as the source, SeaweedFS as the target; or as the parameter says: "a to b"."""
    names = request.param.split(" to ")
    server: S3Server = request.getfixturevalue(names[0])
    target_server: S3Server = request.getfixturevalue(names[1]) if len(names) > 1 else seaweed
    rule = Rule(name="default", source_bucket=new_bucket(server), target_bucket=new_bucket(target_server))
    with Proxy(server.endpoint) as here, Proxy(target_server.endpoint) as there:
        source = source_at(server, endpoint_url=here.endpoint)
        target = own_target_at(target_server, endpoint_url=there.endpoint)
        made = Scene(server, target_server, here, there, source, target, rule)
        yield made
        for copier in made.copiers:
            copier.close()
