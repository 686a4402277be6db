"""Listings and sweeps against real servers: one lists as S3 does, the other folder by folder."""

from __future__ import annotations

import hashlib
import io
import re
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.parse import quote

import pytest
import sqlalchemy as sa

from scripts.local_servers import Gateway, S3Server, SeaweedFS
from tests.contract.steps import Clock, buried
from tests.integration.conftest import SETTINGS, Permit
from tests.proxy import Exchange, Fault, Proxy, after, answering, cut_answer, drop
from webhook.compare import Kind
from webhook.copier import Copier, Known, OutcomeKind
from webhook.database import connect
from webhook.deletes import Deletes
from webhook.entries import BACKFILL, Request, Settled
from webhook.errors import LedgerUnavailable, StoreDenied, StoreError, StoreFailed, StoreUnavailable
from webhook.layout import MIB
from webhook.ledger import Ledger
from webhook.listing import Page
from webhook.memory import MemoryBudget
from webhook.objects import Properties
from webhook.processes import own_name
from webhook.reconcile import BATCH_KEYS, DOWNTIME_S, PUT_OFF_MAX_S, PUT_OFF_S, Sides, Sweeper, shape
from webhook.rules import Rule, Rules, Template
from webhook.settings import DeleteSettings
from webhook.source import Source
from webhook.sweeps import COMPLETE, COUNTS, DROPPED, OPEN, Sweep, Sweeps
from webhook.tables import ENTRIES, RULES
from webhook.target import Attributes, Target

BOUND_S = 60.0
LEASE_S = 60.0
UPLOAD_KEEP_S = 3600.0
LIST, UPLOADS = "GET bucket", "ListMultipartUploads"
"""What the proxy calls a listing, of objects and of unfinished uploads."""
NOTHING = Attributes(properties=Properties(), tags={})
ODD_KEYS = (
    "a b",
    "a+b",
    "a%b",
    "a%20b",
    "a%2Bb",
    "a&b=c#d?e",
    "é/ü",
    "e\u0301",
    "漢字/かな",
    "🎉/x",
    " lead",
    "trail ",
)
ODD_KEYS += ("\x01control", "tab\tbed", "new\nline", "del\x7f", "<&>\"'", "\ufffe", "..." + "x" * 200)
FOLDERS = [f"{number:02d}" for number in range(21)]
SEPARATORS = "/-."
"""Of these, bytes say "-" < "." < "/"; a store that lists folder by folder says "/" first."""


def many(first: int, last: int) -> frozenset[str]:
    """Keys in many small folders, and others that begin as those folders do."""
    return frozenset(f"{a}{sep}{n:02d}" for a in FOLDERS for sep in SEPARATORS for n in range(first, last))


IN_ORDER, BY_FOLDERS = many(0, 40), many(10, 50)
"""What the bucket of each server holds: 2,520 keys, so three pages."""


def put_all(target: Target, bucket: str, objects: Iterable[tuple[str, bytes]]) -> None:
    """Writes objects, 16 at once."""

    def put(key: str, body: bytes) -> None:
        md5 = hashlib.md5(body, usedforsecurity=False).digest()
        target.put(bucket, key, memoryview(bytearray(body)), md5, NOTHING, permit=Permit())

    with ThreadPoolExecutor(16) as pool:
        list(pool.map(lambda each: put(*each), objects))


def filled(server: S3Server, target: Target, name: str, keys: Iterable[str]) -> str:
    server.client().make_bucket(bucket_name=name)
    put_all(target, name, ((key, key.encode()) for key in keys))
    return name


@pytest.fixture(scope="module")
def in_order(gateway: Gateway, target_at: Callable[..., Target]) -> str:
    """A bucket that is listed as S3 does."""
    return filled(gateway, target_at(gateway), "listed-in-order", IN_ORDER)


@pytest.fixture(scope="module")
def by_folders(seaweed: SeaweedFS, target_at: Callable[..., Target]) -> str:
    """A bucket that is listed folder by folder."""
    return filled(seaweed, target_at(seaweed), "listed-by-folders", BY_FOLDERS)


FLAT = frozenset(f"{number:05d}" for number in range(1200))


@pytest.fixture(scope="module")
def flat(seaweed: SeaweedFS, target_at: Callable[..., Target]) -> str:
    """Two pages without folders, quickly listed."""
    return filled(seaweed, target_at(seaweed), "listed-flat", FLAT)


# ── one store's listing ──────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class Listing:
    """A server behind a proxy."""

    server: S3Server
    wire: Proxy
    source: Source
    target: Target

    def pages(self, bucket: str, prefix: str = "") -> list[Page]:
        found = [self.source.page(bucket, prefix)]
        while found[-1].token:
            found.append(self.source.page(bucket, prefix, token=found[-1].token))
        return found

    def keys(self, bucket: str, prefix: str = "") -> list[str]:
        return [each.key for page in self.pages(bucket, prefix) for each in page.objects]


@pytest.fixture(scope="module", params=["gateway", "seaweed"])
def opened(
    request: pytest.FixtureRequest,
    proxy_for: Callable[[S3Server], Proxy],
    source_at: Callable[..., Source],
    target_at: Callable[..., Target],
) -> Listing:
    server: S3Server = request.getfixturevalue(request.param)
    wire = proxy_for(server)
    source = source_at(server, endpoint_url=wire.endpoint)
    return Listing(server, wire, source, target_at(server, endpoint_url=wire.endpoint))


@pytest.fixture
def listing(opened: Listing) -> Listing:
    """Each server in turn."""
    opened.wire.forget()
    return opened


def bucket_of(listing: Listing, request: pytest.FixtureRequest) -> tuple[str, frozenset[str]]:
    if isinstance(listing.server, Gateway):
        return request.getfixturevalue("in_order"), IN_ORDER
    return request.getfixturevalue("by_folders"), BY_FOLDERS


def test_keys_of_any_characters_are_listed_as_they_are(
    listing: Listing, new_bucket: Callable[[S3Server], str]
) -> None:
    bucket, began_at = new_bucket(listing.server), time.time()
    put_all(listing.target, bucket, ((key, key.encode()) for key in ODD_KEYS))
    listed = {each.key: each for each in listing.source.page(bucket, "").objects}
    assert set(listed) == set(ODD_KEYS)
    for key in ODD_KEYS:
        body = key.encode()
        assert (listed[key].size, listed[key].etag) == (len(body), hashlib.md5(body).hexdigest())  # noqa: S324
        assert began_at - 1 <= listed[key].modified_at <= time.time()
        assert listing.target.page(bucket, key).objects == [listed[key]]


def test_all_pages_together_hold_every_key_once(listing: Listing, request: pytest.FixtureRequest) -> None:
    bucket, keys = bucket_of(listing, request)
    pages = listing.pages(bucket)
    assert [len(page.objects) for page in pages] == [1000, 1000, 520]
    assert sorted(each.key for page in pages for each in page.objects) == sorted(keys)
    assert listing.wire.counted == {LIST: 3}


def test_one_server_lists_in_the_order_of_keys_and_one_does_not(
    listing: Listing, request: pytest.FixtureRequest
) -> None:
    """Else the tests below would test less than they say."""
    bucket, keys = bucket_of(listing, request)
    listed = listing.keys(bucket)
    assert (listed == sorted(keys)) == isinstance(listing.server, Gateway)
    assert listed == sorted(keys) or listed == sorted(keys, key=lambda key: key.replace("/", "\0"))


@pytest.mark.parametrize("prefix", ["", "0", "03", "03/", "03-1", "03.1", "no such"])
def test_a_prefix_narrows_the_listing_to_the_keys_that_begin_with_it(
    listing: Listing, request: pytest.FixtureRequest, prefix: str
) -> None:
    bucket, keys = bucket_of(listing, request)
    assert sorted(listing.keys(bucket, prefix)) == sorted(key for key in keys if key.startswith(prefix))


def test_an_empty_bucket_is_one_empty_page(listing: Listing, new_bucket: Callable[[S3Server], str]) -> None:
    assert listing.pages(new_bucket(listing.server)) == [Page([], "")]


def test_a_missing_bucket_is_denied_and_no_empty_listing(listing: Listing) -> None:
    for call in (listing.source.page, listing.target.page):
        with pytest.raises(StoreDenied) as caught:
            call("no-such-bucket", "")
        assert caught.value.hint
    with pytest.raises(StoreDenied):
        listing.source.time("no-such-bucket")


def test_the_names_of_all_buckets_are_told(listing: Listing, new_bucket: Callable[[S3Server], str]) -> None:
    made = {new_bucket(listing.server) for _ in range(3)}
    names = listing.source.buckets()
    assert made <= set(names)
    assert len(names) == len(set(names))


def test_the_store_s_time_is_not_later_than_now(
    listing: Listing, new_bucket: Callable[[S3Server], str]
) -> None:
    bucket = new_bucket(listing.server)
    before = time.time()
    assert before - 2 < listing.source.time(bucket) <= time.time()


def without_an_end(exchange: Exchange) -> None:
    """The last pages say that one more follows, and it is always the same."""
    answer = exchange.forward()
    more = b"<IsTruncated>true</IsTruncated><NextContinuationToken>x</NextContinuationToken>"
    answer.body = answer.body.replace(b"<IsTruncated>false</IsTruncated>", more)
    answer.headers["Content-Length"] = str(len(answer.body))


def half(exchange: Exchange) -> None:
    """What the page says of itself is cut off, with a length that is right."""
    answer = exchange.forward()
    answer.body = answer.body[: len(answer.body) // 2]
    answer.headers["Content-Length"] = str(len(answer.body))


BUSY = answering(503, "SlowDown")
FAULTS: dict[str, tuple[Fault, tuple[type[StoreError], ...]]] = {
    "cut": (cut_answer, (StoreFailed, StoreUnavailable)),
    "half": (half, (StoreFailed,)),
    "busy": (BUSY, (StoreUnavailable,)),
    "fault": (answering(500, "InternalError"), (StoreFailed,)),
    "denied": (answering(403, "AccessDenied"), (StoreDenied,)),
    "junk": (answering(200, b"<html>welcome</html>", Content_Type="text/html"), (StoreFailed,)),
    "drop": (drop, (StoreUnavailable,)),
}


@pytest.mark.parametrize("opened", ["seaweed"], indirect=True)
@pytest.mark.parametrize("name", FAULTS)
def test_a_page_that_fails_is_an_error_and_no_shorter_page(
    listing: Listing, by_folders: str, name: str
) -> None:
    fault, kinds = FAULTS[name]
    listing.wire.plan(LIST, fault, nth=2, times=5)
    with pytest.raises(StoreError) as caught:
        listing.pages(by_folders)
    assert isinstance(caught.value, kinds)
    assert listing.wire.counted[LIST] <= 3, "asked again once at most, where there was no answer"


@pytest.mark.parametrize("opened", ["seaweed"], indirect=True)
def test_a_listing_without_an_end_is_given_up(
    listing: Listing, new_bucket: Callable[[S3Server], str]
) -> None:
    bucket = new_bucket(listing.server)
    listing.wire.plan(LIST, without_an_end, times=100)
    with pytest.raises(StoreFailed):
        listing.pages(bucket)


# ── the scene of a sweep ─────────────────────────────────────────────────────────────────────────────────


@dataclass
class World:
    """Both sides of a rule behind proxies, and a ledger whose time only a test moves."""

    source_server: S3Server
    target_server: S3Server
    here: Proxy
    there: Proxy
    source: Source
    target: Target
    source_writer: Target
    template: Template
    ledger: Ledger
    clock: Clock
    sweepers: list[Sweeper] = field(default_factory=list)

    @property
    def rule(self) -> Rule:
        return self.template.rule(self.template.sources[0])

    @property
    def sweeps(self) -> Sweeps:
        return Sweeps(self.ledger)

    @property
    def deletes(self) -> Deletes:
        return Deletes(self.ledger, DeleteSettings(grace_s=0.0, breaker_max=1000, breaker_share=1.0))

    def sides(self, *templates: Template) -> Sides:
        rules = Rules(templates=templates or (self.template,))
        return Sides(rules=rules, source=self.source, targets={self.template.target: self.target})

    def sweeper(self, *templates: Template, interval_s: float = 0.0) -> Sweeper:
        """Every one is another process."""
        made = Sweeper(
            self.sides(*templates),
            self.ledger,
            self.deletes,
            interval_s=interval_s,
            lease_s=LEASE_S,
            upload_keep_s=UPLOAD_KEEP_S,
        )
        made._name = f"another-host:{len(self.sweepers)}:1:"
        self.sweepers.append(made)
        return made

    def sweep(self, *, prefix: str = "") -> Sweep:
        """One whole sweep."""
        asked = self.sweeps.request(self.rule.name, prefix=prefix, cause="request")
        assert self.sweeper().run_due()
        return self.get(asked)

    def get(self, sweep: Sweep) -> Sweep:
        found = self.sweeps.get(sweep.id)
        assert found is not None
        return found

    def put_here(self, **bodies: bytes) -> None:
        """Objects at the source, past the proxy."""
        put_all(self.source_writer, self.rule.source_bucket, bodies.items())

    def put_there(self, **bodies: bytes) -> None:
        """Objects at the target."""
        put_all(self.target, self.rule.target_bucket, bodies.items())

    def record(self, key: str, *, source_etag: str, target_etag: str, etag: str = "") -> None:
        """The ledger has a copy of the key on record; `etag`: what it was told of the source."""
        self.ledger.put([Request(rule=self.rule.name, key=key, etag=etag)])
        claim = self.ledger.claim_one(self.rule.name, key, worker="w", lease_s=LEASE_S)
        assert claim is not None
        ending = Settled(claim=claim, outcome="replicated", source_etag=source_etag, target_etag=target_etag)
        assert self.ledger.finish([ending]) == 1

    def entries(self) -> dict[str, Any]:
        """All there are, by key."""
        with self.ledger.reading() as connection:
            found = connection.execute(sa.select(ENTRIES)).mappings().all()
        return {row["key"]: dict(row) for row in found}

    def asked(self) -> set[str]:
        """The keys the workers are to look at."""
        entries = self.entries().items()
        return {key for key, row in entries if (row["state"], row["lane"]) == ("waiting", BACKFILL)}


@pytest.fixture
def world_of(
    tmp_path: Path,
    source_at: Callable[..., Source],
    target_at: Callable[..., Target],
    new_bucket: Callable[[S3Server], str],
) -> Iterator[Callable[..., World]]:
    """A world of two servers; buckets that are not named are new ones."""
    with ExitStack() as stack:

        def make(
            source: S3Server, target: S3Server, source_bucket: str = "", target_bucket: str = "", **terms: Any
        ) -> World:
            here, there = (stack.enter_context(Proxy(server.endpoint)) for server in (source, target))
            clock = Clock()
            clock.now = time.time()
            ledger = Ledger(connect(f"sqlite:///{tmp_path}/ledger.db"), clock=clock)
            stack.enter_context(closing(ledger))
            return World(
                *(source, target, here, there),
                source=source_at(source, endpoint_url=here.endpoint),
                target=target_at(target, endpoint_url=there.endpoint),
                source_writer=target_at(source),
                template=Template(
                    name="default",
                    sources=(source_bucket or new_bucket(source),),
                    target_bucket=target_bucket or new_bucket(target),
                    **terms,
                ),
                ledger=ledger,
                clock=clock,
            )

        yield make


@pytest.fixture
def world(world_of: Callable[..., World], gateway: Gateway) -> World:
    """Two empty buckets of one server."""
    return world_of(gateway, gateway)


def found(sweep: Sweep) -> dict[str, int]:
    """What it found and put, without what is zero."""
    return {name: number for name in COUNTS[2:] if (number := getattr(sweep, name))}


# ── what it costs, and what it finds ─────────────────────────────────────────────────────────────────────


def test_equal_sides_cost_the_pages_of_both_listings_and_one_look_at_the_source_s_clock(
    world_of: Callable[..., World], gateway: Gateway, in_order: str
) -> None:
    world = world_of(gateway, gateway, in_order, in_order)
    began_at = time.time()
    sweep = world.sweep()
    assert world.here.counted == {"HeadBucket": 1, LIST: 3}
    assert world.there.counted == {LIST: 3, UPLOADS: 1}
    assert (sweep.state, found(sweep), sweep.on_disk) == (COMPLETE, {}, "")
    assert (sweep.compared, sweep.compared_bytes) == (len(IN_ORDER), sum(map(len, IN_ORDER)))
    assert sweep.proves_at is not None
    assert began_at - 1 <= sweep.proves_at <= time.time()
    assert world.sweeps.last_proofs({"default": shape(world.rule)}) == {"default": sweep}
    assert world.entries() == {}


def test_a_listing_that_is_sorted_on_disk_costs_as_much_once_that_is_known(
    world_of: Callable[..., World], seaweed: SeaweedFS, by_folders: str
) -> None:
    world = world_of(seaweed, seaweed, by_folders, by_folders)
    first = world.sweep()
    assert (first.state, first.compared, found(first)) == (COMPLETE, len(BY_FOLDERS), {})
    assert first.on_disk == "source,target"
    world.here.forget()
    world.there.forget()
    second = world.sweep()
    assert (second.state, second.compared, found(second)) == (COMPLETE, len(BY_FOLDERS), {})
    assert world.here.counted == {"HeadBucket": 1, LIST: 3}
    assert world.there.counted == {LIST: 3, UPLOADS: 1}


def test_what_is_missing_different_extra_and_unproven_is_found_and_put_and_nothing_else(
    world_of: Callable[..., World], seaweed: SeaweedFS
) -> None:
    world = world_of(seaweed, seaweed, deletes=True)
    same = {"equal": b"equal", "empty": b"", "a/equal": b"x", "a-equal": b"x"}
    world.put_here(**same, missing=b"1", longer=b"22", other=b"one", known=b"old", stale=b"new")
    world.put_there(**same, longer=b"2", other=b"two", known=b"OLD", stale=b"NEW")
    world.put_there(ours=b"ours", theirs=b"theirs", changed=b"changed since")
    etags = {name: hashlib.md5(name.encode()).hexdigest() for name in ("ours", "old", "OLD", "NEW")}  # noqa: S324
    world.record("ours", source_etag=etags["ours"], target_etag=etags["ours"])
    world.record("changed", source_etag="s", target_etag="as it was written")
    world.put_there(unanswered=b"old")
    world.record("unanswered", etag=etags["old"], source_etag="s", target_etag="as it was before")
    world.record("known", source_etag=etags["old"], target_etag=etags["OLD"])
    world.record("stale", source_etag="as it was", target_etag=etags["NEW"])
    world.here.forget()
    world.there.forget()
    sweep = world.sweep()
    assert found(sweep) == {"missing": 1, "different": 2, "unproven": 1, "extra": 4, "put": 6}
    assert (sweep.state, sweep.compared) == (COMPLETE, 13)
    assert world.asked() == {"missing", "longer", "stale", "other", "ours", "unanswered"}
    assert world.entries()["missing"]["told_etags"] == f"{hashlib.md5(b'1').hexdigest()} "  # noqa: S324
    assert set(world.here.counted) | set(world.there.counted) == {LIST, "HeadBucket", UPLOADS}
    again = world.sweep()
    assert found(again) == found(sweep) | {"put": 4}, "what is to be deleted is on its way"
    assert world.asked() == {"missing", "longer", "stale", "other", "ours", "unanswered"}


def test_extra_keys_are_left_alone_where_the_rule_deletes_nothing(world: World) -> None:
    world.put_there(ours=b"ours")
    etag = hashlib.md5(b"ours").hexdigest()  # noqa: S324
    world.record("ours", source_etag=etag, target_etag=etag)
    assert (found(world.sweep()), world.asked()) == ({"extra": 1}, set())


LONG_AGO, AHEAD = 1_577_836_800.0, 1_893_456_000.0


def modified(at: float) -> Fault:
    """All objects of the page were modified then."""
    moment = time.strftime("%Y-%m-%dT%H:%M:%S.000Z", time.gmtime(at)).encode()

    def fault(exchange: Exchange) -> None:
        answer = exchange.forward()
        given = rb"<LastModified>[^<]*</LastModified>"
        answer.body = re.sub(given, b"<LastModified>" + moment + b"</LastModified>", answer.body)
        answer.headers["Content-Length"] = str(len(answer.body))

    return fault


@pytest.mark.parametrize("at", [LONG_AGO, AHEAD])
@pytest.mark.parametrize("is_proved", [False, True])
def test_the_target_is_behind_since_the_change_or_the_last_proof_before_it(
    world: World, at: float, is_proved: bool
) -> None:
    """In between may have been a version that was not copied either; 0.0: nothing is proved yet."""
    proved_at = world.sweep().proves_at if is_proved else 0.0
    world.put_here(k=b"1")
    world.here.plan(LIST, modified(at))
    world.clock.now += 3600
    world.sweep()
    entry = world.entries()["k"]
    assert (entry["event_at"], entry["lane"], entry["due_at"]) == (at, BACKFILL, world.clock.now)
    assert entry["asked_at"] == min(at, proved_at)


def test_a_change_of_which_no_event_told_counts_as_missed_unless_it_is_from_before_the_rule(
    world: World,
) -> None:
    world.put_here(before=b"1")
    world.clock.now = time.time() + 60
    world.sweeps.register({"default": shape(world.rule)})
    world.sweep()
    assert world.entries()["before"]["missed_at"] is None
    changed = replace(world.template, deletes=True)
    assert shape(changed.rule(world.rule.source_bucket)) == shape(world.rule), "the rule is the same"
    world.ledger.run(sa.update(RULES).values(first_seen_at=time.time() - 60))
    world.put_here(told=b"2", missed=b"3")
    world.ledger.put([Request(rule="default", key="told", event_id="e" * 16)])
    world.sweep()
    noted = {key: entry["missed_at"] for key, entry in world.entries().items()}
    assert noted == {"before": None, "told": None, "missed": world.clock.now}


def test_what_failed_is_found_but_left_to_a_person(world: World) -> None:
    world.put_here(failed=b"1")
    world.ledger.put([Request(rule="default", key="failed")])
    claim = world.ledger.claim_one("default", "failed", worker="w", lease_s=LEASE_S)
    assert claim is not None
    world.ledger.finish([buried(claim)])
    assert found(world.sweep())["missing"] == 1
    assert world.entries()["failed"]["state"] == "failed"


def test_etags_that_cannot_be_compared_are_compared_by_what_was_copied_last(
    world: World, source_at: Callable[..., Source]
) -> None:
    body = bytes(6 * MIB)
    client = world.source_server.client()
    source_etag = client.put_object(
        bucket_name=world.rule.source_bucket,
        object_name="parts",
        data=io.BytesIO(body),
        length=len(body),
        part_size=5 * MIB,
    ).etag
    assert source_etag.endswith("-2")
    md5 = hashlib.md5(body, usedforsecurity=False).digest()
    stamped = replace(NOTHING, stamp=source_etag)
    world.target.put(
        world.rule.target_bucket, "parts", memoryview(bytearray(body)), md5, stamped, permit=Permit()
    )
    assert found(world.sweep()) == {"unproven": 1, "put": 1}
    claim = world.ledger.claim_one("default", "parts", worker="w", lease_s=LEASE_S)
    assert claim is not None
    with closing(Copier(world.source, world.target, SETTINGS, MemoryBudget(64 * MIB))) as copier:
        outcome = copier.copy_object(world.rule, "parts", permit=Permit(), known=Known())
    assert outcome.kind is OutcomeKind.UNCHANGED, "the stamp proved it"
    ending = Settled(
        claim=claim, outcome="unchanged", source_etag=outcome.source_etag, target_etag=outcome.target_etag
    )
    world.ledger.finish([ending])
    world.here.forget()
    world.there.forget()
    assert found(world.sweep()) == {}
    assert world.here.counted + world.there.counted == {"HeadBucket": 1, LIST: 2, UPLOADS: 1}


def test_where_nothing_is_overwritten_what_differs_is_kept(
    world_of: Callable[..., World], seaweed: SeaweedFS
) -> None:
    world = world_of(seaweed, seaweed, overwrite="never")
    world.put_here(longer=b"22", other=b"one", missing=b"1", equal=b"x")
    world.put_there(longer=b"2", other=b"two", extra=b"1", equal=b"x")
    assert found(world.sweep()) == {"kept": 2, "missing": 1, "extra": 1, "put": 1}
    assert world.asked() == {"missing"}


# ── which keys ───────────────────────────────────────────────────────────────────────────────────────────


def test_a_sweep_below_a_prefix_compares_nothing_else_and_proves_nothing(
    world_of: Callable[..., World], gateway: Gateway, seaweed: SeaweedFS, in_order: str, by_folders: str
) -> None:
    world = world_of(gateway, seaweed, in_order, by_folders)
    sweep = world.sweep(prefix="07")
    here, there = ({key for key in keys if key.startswith("07")} for keys in (IN_ORDER, BY_FOLDERS))
    assert (sweep.state, sweep.compared) == (COMPLETE, len(here | there))
    missing = here - there
    assert found(sweep) == {"missing": len(missing), "extra": len(there - here), "put": len(missing)}
    assert missing <= world.asked() <= here
    assert world.sweeps.last_proofs({"default": shape(world.rule)}) == {}
    assert (sweep.on_disk, world.here.counted[LIST]) == ("target", 2), "begun anew where the order showed"


def test_keys_are_compared_where_the_rule_puts_them(
    world_of: Callable[..., World], gateway: Gateway, seaweed: SeaweedFS, in_order: str
) -> None:
    world = world_of(gateway, seaweed, in_order, prefix="07", target_prefix="copies/x-")
    there = {f"copies/x-{key[2:]}": key.encode() for key in IN_ORDER if key[:2] == "07" and key < "07/20"}
    put_all(world.target, world.rule.target_bucket, there.items())
    put_all(
        world.target, world.rule.target_bucket, [("07/00", b"x"), ("copies/y", b"x"), ("copies/x-zz", b"")]
    )
    sweep = world.sweep()
    missing = {key for key in IN_ORDER if key[:2] == "07" and key >= "07/20"}
    assert (found(sweep), world.asked()) == ({"missing": 20, "extra": 1, "put": 20}, missing)
    assert sweep.compared == 3 * 40 + 1


def test_keys_the_rule_does_not_want_are_neither_missing_nor_extra(
    world_of: Callable[..., World], gateway: Gateway, seaweed: SeaweedFS, in_order: str, by_folders: str
) -> None:
    world = world_of(gateway, seaweed, in_order, by_folders, include=("0*",), exclude=("*.*", "*9"))
    here, there = ({key for key in keys if world.rule.wants(key)} for keys in (IN_ORDER, BY_FOLDERS))
    assert 0 < len(here - there) < len(IN_ORDER - BY_FOLDERS)
    sweep = world.sweep()
    assert sweep.compared == len(here | there)
    assert (sweep.missing, sweep.extra) == (len(here - there), len(there - here))
    assert here - there <= world.asked() <= here


def rewritten(key: str, escaped: str) -> Fault:
    """The page names this key otherwise."""

    def fault(exchange: Exchange) -> None:
        answer = exchange.forward()
        given = f"<Key>{quote(key)}</Key>".encode()
        assert given in answer.body
        answer.body = answer.body.replace(given, f"<Key>{escaped}</Key>".encode())
        answer.headers["Content-Length"] = str(len(answer.body))

    return fault


@pytest.mark.parametrize(
    ("side", "escaped"),
    [*(("source", key) for key in ("zz%80", "zz%00", "z" * 1025, "%ED%A0%80")), ("target", "zz%80")],
)
def test_a_key_no_ledger_or_store_could_hold_is_kept_as_it_is_and_stops_nothing(
    world: World, side: str, escaped: str
) -> None:
    world.put_here(a=b"1", m=b"1", z=b"1")
    world.put_there(b=b"1", z=b"1")
    (world.here if side == "source" else world.there).plan(LIST, rewritten("z", escaped), times=10)
    sweep = world.sweep()
    is_here = side == "source"
    expected = {"missing": 2 if is_here else 3, "extra": 2 if is_here else 1, "kept": 1}
    assert sweep.state == COMPLETE
    assert found(sweep) == expected | {"put": expected["missing"]}
    assert world.asked() == ({"a", "m"} if is_here else {"a", "m", "z"})


# ── stopped, and gone on with ────────────────────────────────────────────────────────────────────────────


def test_what_was_compared_before_a_stop_is_not_compared_again_and_the_rest_is(
    world_of: Callable[..., World], gateway: Gateway, seaweed: SeaweedFS, in_order: str
) -> None:
    world = world_of(gateway, seaweed, in_order)
    asked = world.sweeps.request("default", cause="request")
    first = world.sweeper()
    world.here.plan(LIST, after(first.stop), nth=3)
    assert first.run_due()
    stopped = world.get(asked)
    assert (stopped.state, stopped.error, stopped.due_at) == (OPEN, None, world.clock.now)
    before = world.asked()
    assert BATCH_KEYS <= len(before) == stopped.put == stopped.missing == stopped.compared < len(IN_ORDER)
    assert before == {key for key in IN_ORDER if key <= stopped.cursor}
    world.clock.now += 1
    assert world.sweeper().run_due()
    done = world.get(asked)
    assert (done.state, done.compared, done.proves_at) == (COMPLETE, len(IN_ORDER), stopped.proves_at)
    assert found(done) == {"missing": len(IN_ORDER), "put": len(IN_ORDER)}
    assert world.asked() == IN_ORDER
    assert {entry["generation"] for entry in world.entries().values()} == {1}
    assert world.here.counted["HeadBucket"] == 1, "what it proves was noted when it first began"


STOPS: dict[str, Callable[[Sweeper], Fault]] = {
    "error": lambda _: BUSY,
    "stop": lambda each: after(each.stop),
}


@pytest.mark.parametrize(
    ("side", "nth", "stop"),
    [("source", 3, "error"), ("source", 4, "stop"), ("target", 2, "stop"), ("target", 4, "error")],
)
@pytest.mark.parametrize("is_source_in_order", [True, False], ids=["target by folders", "source by folders"])
def test_wherever_it_is_stopped_no_key_is_passed_by(
    request: pytest.FixtureRequest,
    world_of: Callable[..., World],
    is_source_in_order: bool,
    side: str,
    nth: int,
    stop: str,
) -> None:
    servers = [("gateway", "in_order", IN_ORDER), ("seaweed", "by_folders", BY_FOLDERS)]
    (source, source_bucket, here), (target, target_bucket, there) = servers[
        :: 1 if is_source_in_order else -1
    ]
    names = (source, target, source_bucket, target_bucket)
    world = world_of(*(request.getfixturevalue(name) for name in names))
    asked = world.sweeps.request("default", cause="request")
    first = world.sweeper()
    (world.here if side == "source" else world.there).plan(LIST, STOPS[stop](first), nth=nth)
    assert first.run_due()
    assert world.get(asked).state == OPEN
    world.clock.now += PUT_OFF_S
    assert world.sweeper().run_due()
    done = world.get(asked)
    assert (done.state, done.compared) == (COMPLETE, len(here | there))
    missing = here - there
    assert found(done) == {"missing": len(missing), "extra": len(there - here), "put": len(missing)}
    assert missing <= world.asked() <= here, "more where the order had not shown yet"


def test_with_both_sides_by_folders_every_key_is_compared_once(
    world_of: Callable[..., World], seaweed: SeaweedFS, by_folders: str
) -> None:
    """All are missing: the cursor is far behind where the disorder shows."""
    world = world_of(seaweed, seaweed, by_folders)
    put_all(world.target, world.rule.target_bucket, [("zz/1", b""), ("zz-1", b""), ("00/10", b"00/10")])
    sweep = world.sweep()
    assert sweep.compared == len(BY_FOLDERS | {"zz/1", "zz-1"})
    missing = BY_FOLDERS - {"00/10"}
    assert found(sweep) == {"missing": len(missing), "extra": 2, "put": len(missing)}
    assert world.asked() == missing


@pytest.mark.parametrize("name", ["cut", "busy", "denied", "junk"])
@pytest.mark.parametrize("side", ["source", "target"])
def test_a_page_that_fails_puts_the_sweep_off_and_nothing_follows_from_what_was_not_seen(
    world_of: Callable[..., World], seaweed: SeaweedFS, flat: str, side: str, name: str
) -> None:
    world = world_of(seaweed, seaweed, flat, flat, deletes=True)
    last = max(FLAT)
    etag = hashlib.md5(last.encode()).hexdigest()  # noqa: S324
    world.record(last, source_etag=etag, target_etag=etag)
    before = world.entries()
    wire = world.here if side == "source" else world.there
    wire.plan(LIST, FAULTS[name][0], nth=2, times=2)
    sweep = world.sweep()
    assert (sweep.state, sweep.due_at, found(sweep)) == (OPEN, world.clock.now + PUT_OFF_S, {})
    assert sweep.error
    assert "ListObjectsV2" in sweep.error
    assert world.entries() == before
    assert world.deletes.breakers()["default"].tripped_at is None
    wire.forget()
    assert not world.sweeper().run_due(), "not before its time"
    world.clock.now += PUT_OFF_S
    assert world.sweeper().run_due()
    done = world.get(sweep)
    assert (done.state, done.error, done.compared, found(done)) == (COMPLETE, None, len(FLAT), {})
    assert world.entries() == before


def test_a_sweep_that_keeps_failing_is_put_off_for_longer_each_time_up_to_a_bound(world: World) -> None:
    asked = world.sweeps.request("default", cause="request")
    sweeper = world.sweeper()
    world.here.plan("HeadBucket", answering(403, ""), times=100)
    waits = []
    for _ in range(9):
        assert sweeper.run_due()
        waits.append(world.get(asked).due_at - world.clock.now)
        world.clock.now = world.get(asked).due_at
    assert waits == [*(PUT_OFF_S * 2**times for times in range(6)), *[PUT_OFF_MAX_S] * 3]


@pytest.mark.parametrize("side", ["source", "target"])
def test_a_bucket_that_is_missing_is_no_empty_one(
    world_of: Callable[..., World], seaweed: SeaweedFS, side: str
) -> None:
    world = world_of(seaweed, seaweed, **{f"{side}_bucket": "missing-for-now"}, deletes=True)
    body = {"a": b"1"}
    (world.put_there if side == "source" else world.put_here)(**body)
    etag = hashlib.md5(b"1").hexdigest()  # noqa: S324
    world.record("a", source_etag=etag, target_etag=etag)
    before = world.entries()
    sweep = world.sweep()
    assert (sweep.state, found(sweep), world.entries()) == (OPEN, {}, before)
    assert sweep.error
    assert "bucket" in sweep.error
    assert world.deletes.breakers()["default"].tripped_at is None


def test_one_rule_s_trouble_does_not_keep_another_s_sweep(world: World) -> None:
    world.put_here(a=b"1")
    lost = replace(world.template, name="lost", target_bucket="missing")
    world.sweeps.request("lost", cause="request")
    world.clock.now += 1
    asked = world.sweeps.request("default", cause="request")
    sweeper = world.sweeper(lost, world.template)
    assert [sweeper.run_due() for _ in range(3)] == [True, True, False]
    assert (world.get(asked).state, world.asked()) == (COMPLETE, {"a"})


def test_without_a_ledger_it_says_so(world: World) -> None:
    world.sweeps.request("default", cause="request")
    world.here.plan(LIST, after(lambda: world.ledger.run(sa.text("DROP TABLE sweeps"))))
    world.put_here(a=b"1")
    with pytest.raises(LedgerUnavailable):
        world.sweeper().run_due()


# ── deletes ──────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("prefix", ["", "a"])
def test_a_source_without_any_object_stops_the_deletes_of_its_rule(
    world_of: Callable[..., World], seaweed: SeaweedFS, prefix: str
) -> None:
    world = world_of(seaweed, seaweed, deletes=True)
    world.put_there(a1=b"1", a2=b"1")
    etag = hashlib.md5(b"1").hexdigest()  # noqa: S324
    for key in ("a1", "a2"):
        world.record(key, source_etag=etag, target_etag=etag)
    if prefix:
        world.put_here(b=b"1")
    assert found(world.sweep(prefix=prefix)) == {"extra": 2, "put": 2}
    breaker = world.deletes.breakers()["default"]
    assert breaker.reason == ("" if prefix else "the source lists no object at all")
    assert world.asked() == {"a1", "a2"}, "the workers ask the source, and find the breaker"


def test_what_is_held_back_is_looked_at_again_after_a_sweep(world: World) -> None:
    world.sweeps.register({"default": shape(world.rule)})
    world.ledger.put([Request(rule="default", key="k")])
    world.ledger.run(sa.update(ENTRIES).values(state="held", gone_at=1.0, due_at=None))
    world.sweep()
    assert (world.entries()["k"]["state"], world.entries()["k"]["due_at"]) == ("waiting", world.clock.now)


# ── one at a time ────────────────────────────────────────────────────────────────────────────────────────


def test_while_one_sweeps_no_other_does_and_afterwards_any_may(world: World) -> None:
    world.put_here(a=b"1")
    world.sweeps.request("default", cause="request")
    world.sweeps.request("default", prefix="a", cause="request")
    one, other = world.sweeper(), world.sweeper()
    tried: list[bool] = []
    world.here.plan(LIST, after(lambda: tried.append(other.run_due())))
    assert one.run_due()
    assert tried == [False]
    assert other.run_due()
    assert {sweep.state for sweep in world.sweeps.latest()} == {COMPLETE}


def test_a_lease_is_prolonged_while_pages_come(
    world_of: Callable[..., World], seaweed: SeaweedFS, flat: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = world_of(seaweed, seaweed, flat, flat)
    monkeypatch.setattr("webhook.reconcile.time", SimpleNamespace(monotonic=world.clock))
    asked = world.sweeps.request("default", cause="request")
    other, tried = world.sweeper(), []

    def some_time_passes() -> None:
        world.clock.now += LEASE_S / 2
        tried.append(other.run_due())

    world.here.plan(LIST, after(some_time_passes), times=2)
    assert world.sweeper().run_due()
    assert (tried, world.get(asked).state) == ([False] * 2, COMPLETE)


def test_a_sweep_whose_lease_was_lost_stops_and_its_new_owner_goes_on_with_it(
    world_of: Callable[..., World],
    seaweed: SeaweedFS,
    flat: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    world = world_of(seaweed, seaweed, flat)
    monkeypatch.setattr("webhook.reconcile.time", SimpleNamespace(monotonic=world.clock))
    asked = world.sweeps.request("default", cause="request")
    slow, quick = world.sweeper(), world.sweeper()

    def it_hangs() -> None:
        world.clock.now += LEASE_S
        assert world.sweeps.take_lease(worker=quick._name, lease_s=LEASE_S, is_dead=lambda _: False)

    world.here.plan(LIST, after(it_hangs), nth=2)
    assert slow.run_due()
    assert (world.get(asked).state, world.get(asked).error) == (OPEN, None)
    assert len(world.asked()) < len(FLAT)
    assert not world.sweeper().run_due(), "the new owner has the lease"
    assert quick.run_due()
    assert (world.get(asked).state, world.asked()) == (COMPLETE, FLAT)


def test_the_lease_of_a_process_of_this_machine_that_is_dead_is_taken_at_once(world: World) -> None:
    host, pid, _, place = own_name().split(":")
    dead = f"{host}:{pid}:1:{place}"
    assert world.sweeps.take_lease(worker=dead, lease_s=LEASE_S, is_dead=lambda _: False)
    assert world.sweep().state == COMPLETE


def test_a_sweep_waits_for_room_and_its_backlog_stays_bounded(
    world_of: Callable[..., World],
    seaweed: SeaweedFS,
    flat: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    most = 150
    monkeypatch.setattr("webhook.reconcile.WAITING_MAX", most)
    monkeypatch.setattr("webhook.reconcile.FULL_PAUSE_S", 0.005)
    world = world_of(seaweed, seaweed, flat)
    asked = world.sweeps.request("default", cause="request")
    backlogs: list[int] = []
    with ThreadPoolExecutor(1) as pool:
        sweeping, until = pool.submit(world.sweeper().run_due), time.monotonic() + BOUND_S
        while (backlog := world.ledger.backlog(BACKFILL, limit=10_000)) or not sweeping.done():
            assert time.monotonic() < until
            backlogs.append(backlog)
            if backlog >= most or sweeping.done():
                claims = world.ledger.claim(60, worker="w", lease_s=LEASE_S)
                world.ledger.finish([Settled(claim=claim, outcome="replicated") for claim in claims])
        assert sweeping.result(BOUND_S)
    assert most <= max(backlogs) < most + BATCH_KEYS
    assert world.get(asked).put == len(FLAT)
    assert world.ledger.counts()["settled"][BACKFILL] == len(FLAT)


def test_a_sweep_that_waits_for_room_stops_with_its_process(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("webhook.reconcile.WAITING_MAX", 1)
    world.put_here(a=b"1")
    world.ledger.put([Request(rule="default", key="waits")], lane=BACKFILL)
    asked = world.sweeps.request("default", cause="request")
    sweeper = world.sweeper()
    with ThreadPoolExecutor(1) as pool:
        sweeping = pool.submit(sweeper.run_due)
        until = time.monotonic() + BOUND_S
        while not world.there.counted[LIST]:
            assert time.monotonic() < until
        sweeper.stop()
        assert sweeping.result(BOUND_S)
    assert (world.get(asked).state, world.asked()) == (OPEN, {"waits"})


# ── rules that change ────────────────────────────────────────────────────────────────────────────────────


def test_a_sweep_of_a_rule_that_is_no_more_is_dropped_and_others_go_on(world: World) -> None:
    dropped = world.sweeps.request("no-more", cause="request")
    world.clock.now += 1
    asked = world.sweeps.request("default", cause="request")
    assert world.sweeper().run_due()
    assert world.get(dropped).state == DROPPED
    assert world.sweeper().run_due(), "the lease was given up"
    assert world.get(asked).state == COMPLETE


def test_a_sweep_of_what_the_rule_said_before_is_dropped_where_it_is(world: World) -> None:
    world.put_here(a=b"1")
    asked = world.sweeps.request("default", cause="request")
    changed = replace(world.template, prefix="a")
    shapes = {"default": shape(changed.rule(world.rule.source_bucket))}
    world.here.plan(LIST, after(lambda: world.sweeps.register(shapes)))
    assert world.sweeper().run_due()
    assert world.get(asked).state == DROPPED
    assert world.sweeps.last_proofs(shapes) == {}
    world.sweeps.register({"default": shape(world.rule)})
    assert world.sweep().state == COMPLETE


def test_one_that_meets_an_error_after_it_was_dropped_is_left_as_it_is(world: World) -> None:
    asked = world.sweeps.request("default", cause="request")

    def fault(exchange: Exchange) -> None:
        world.sweeps.register({"default": "another shape"})
        BUSY(exchange)

    world.here.plan(LIST, fault)
    assert world.sweeper().run_due()
    assert world.get(asked).state == DROPPED


def test_one_that_was_open_when_its_rule_changed_is_not_begun(world: World) -> None:
    world.sweeps.register({"default": shape(world.rule)})
    asked = world.sweeps.request("default", cause="request")
    world.sweeps.register({"default": "another shape"})
    assert not world.sweeper().run_due()
    open_again = world.sweeps.request("default", cause="request")
    assert world.sweeper().run_due()
    assert {world.get(asked).state, world.get(open_again).state} == {DROPPED}
    assert world.here.counted[LIST] == 0


@pytest.mark.parametrize("name", [field for field in Rule.__dataclass_fields__ if field != "source_bucket"])
def test_what_of_a_rule_decides_which_object_lies_where_is_its_shape(name: str) -> None:
    rule = Rule(name="r", source_bucket="s", target_bucket="t")
    others = {"include": ("a",), "exclude": ("a",), "deletes": True, "overwrite": "never", "tags": False}
    changed = replace(rule, **{name: others.get(name, "other")})
    is_the_same = name in ("name", "deletes", "storage_class", "tags")
    assert (shape(changed) == shape(rule)) == is_the_same


# ── when ─────────────────────────────────────────────────────────────────────────────────────────────────


def until_complete(world: World, rules: Iterable[str], *, more_than: int = 0) -> list[Sweep]:
    """The sweeps, once each of the rules has so many complete ones and one more."""
    until = time.monotonic() + BOUND_S
    while True:
        done = [sweep for sweep in world.sweeps.latest() if sweep.state == COMPLETE]
        if all(sum(sweep.rule == rule for sweep in done) > more_than for rule in rules):
            return done
        assert time.monotonic() < until, "no sweep was done"
        threading.Event().wait(0.02)


def test_rules_that_were_never_swept_are_swept_at_the_start_also_those_of_buckets_named_by_globs(
    world_of: Callable[..., World], seaweed: SeaweedFS
) -> None:
    for name in ("globbed-one", "globbed-two", "other-one"):
        seaweed.client().make_bucket(bucket_name=name)
    world = world_of(seaweed, seaweed)
    globbed = replace(world.template, name="globbed", sources=("globbed-*",), target_prefix="{bucket}/")
    put_all(world.source_writer, "globbed-two", [("k", b"1")])
    sweeper = world.sweeper(world.template, globbed, interval_s=3600)
    sweeper.start()
    try:
        done = until_complete(world, ["default", "globbed.globbed-one", "globbed.globbed-two"])
    finally:
        sweeper.stop()
    assert {(sweep.rule, sweep.cause) for sweep in done} == {
        *(("default", "start"), ("globbed.globbed-one", "start"), ("globbed.globbed-two", "start"))
    }
    assert world.asked() == {"k"}


@pytest.mark.parametrize(
    ("passed_s", "down_s", "cause"),
    [
        (60.0, 0.0, None),
        (3601.0, 0.0, "interval"),
        (60.0, 30.0, None),
        (DOWNTIME_S + 60, DOWNTIME_S + 30, "start"),
    ],
)
def test_a_rule_is_swept_again_after_its_interval_or_a_downtime(
    world: World, passed_s: float, down_s: float, cause: str | None
) -> None:
    world.sweep()
    world.clock.now += passed_s
    marker = world.sweeps.request("default", prefix="marker", cause="request")
    sweeper = world.sweeper(interval_s=3600)
    sweeper.start(last_seen_at=world.clock.now - down_s)
    try:
        until_complete(world, ["default"], more_than=1 if cause is None else 2)
    finally:
        sweeper.stop()
    newest = next(sweep for sweep in world.sweeps.latest() if not sweep.prefix)
    assert newest.cause == (cause or "request")
    assert world.get(marker).state == COMPLETE


def test_without_an_interval_rules_are_known_but_swept_only_when_asked_for(world: World) -> None:
    sweeper = world.sweeper(interval_s=0)
    sweeper.start(last_seen_at=world.clock.now - 10 * DOWNTIME_S)
    try:
        until = time.monotonic() + BOUND_S
        while "default" not in world.deletes.breakers():
            assert time.monotonic() < until
        assert world.sweeps.latest() == []
        world.sweeps.request("default", cause="request")
        assert [sweep.cause for sweep in until_complete(world, ["default"])] == ["request"]
    finally:
        sweeper.stop()


def test_kinds_are_what_a_sweep_counts() -> None:
    assert {kind.value for kind in Kind} <= set(COUNTS)
