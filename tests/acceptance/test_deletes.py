"""What is deleted at the source goes from the target only past all guards."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from scripts.local_servers import Gateway, SeaweedFS
from scripts.local_service import WEBHOOK_AUTH_TOKEN
from tests.acceptance.conftest import ARNS, BUCKET, Stack, add_reader, content, tell, until
from tests.proxy import Drop, Exchange, Fault, Proxy, after, answering, cut_answer, drop

ALWAYS = 10_000
LISTING = "GET bucket"
OPERATIONS = ("HeadObject", "GetObject", "HeadBucket", LISTING)


@pytest.fixture
def before_source() -> Iterator[Proxy]:
    """A proxy that is told its server once there is one."""
    with Proxy("") as proxy:
        yield proxy


def behind(proxy: Proxy, stack: Callable[..., Stack], **environ: str) -> Stack:
    """A stack whose service reaches the source through the proxy; only the service does."""
    running = stack(REPLICATE_DELETES="true", MINIO_ENDPOINT=proxy.endpoint, **environ)
    proxy.server = running.source.endpoint
    return running


def fill(running: Stack, count: int) -> list[str]:
    """That many objects at both sides."""
    keys = [f"kept/{number:03}" for number in range(count)]
    running.put_many(keys, content, clients=4)
    running.wait_until_settled(entries=count, bound_s=60)
    return keys


def tell_removals(running: Stack, keys: list[str]) -> None:
    """Events that tell of removals, whatever the source says."""
    records = [
        {
            "eventName": "s3:ObjectRemoved:Delete",
            "eventTime": datetime.now(UTC).isoformat(),
            "s3": {"bucket": {"name": BUCKET}, "object": {"key": quote(key)}},
        }
        for key in keys
    ]
    headers = {"Authorization": f"Bearer {WEBHOOK_AUTH_TOKEN}"}
    answer = running.service.post("/minio/events", json={"Records": records}, headers=headers)
    assert answer.json()["accepted"] == len(keys)


def deletes(running: Stack) -> dict[str, Any]:
    """What the status says of the rule's deletes."""
    return dict(running.rule()["deletes"])


def held_back(running: Stack, count: int) -> None:
    """Waits until that many deletes are held back and none is on its way."""

    def found() -> bool:
        now = deletes(running)
        return (now["held"], now["pending"]) == (count, 0)

    until(found, bound_s=60, what=f"{count} deletes are held back")


def decide(running: Stack, word: str) -> int:
    """A person's decision; gives how many deletes it was about."""
    answer = running.service.post(f"/v1/deletes/{word}").json()
    return int(answer["approved" if word == "approve" else "discarded"]["default"])


def gone_at_source(running: Stack, key: str) -> None:
    """Waits until the service has noticed that the source has it no more."""
    until(lambda: running.entry(key)["gone_at"], bound_s=30, what=f"{key} is noticed to be gone")


def sweep_fails(running: Stack, name: str) -> dict[str, Any]:
    """Asks for a sweep, or for the one that was put off, and waits until it fails; gives it then."""
    asked = running.ask_for_sweep()

    def failed() -> dict[str, Any] | None:
        now = running.service.get(asked["link"]).json()
        return dict(now) if now["error"] and now["due_at"] != asked["due_at"] else None

    return dict(until(failed, bound_s=30, what=f"{name}: the sweep fails"))


def all_settled(running: Stack) -> None:
    """Waits until nothing is to be done."""
    until(lambda: running.service.unsettled() == 0, bound_s=60, what="all is settled")


def tripped(running: Stack) -> list[str]:
    """The reasons that the log gives."""
    return [line["reason"] for line in running.log_lines() if line["event"] == "delete breaker tripped"]


def assert_that_a_single_delete_goes(running: Stack, key: str) -> None:
    running.remove(key)
    until(lambda: running.target_etag(key) is None, bound_s=30, what=f"{key} goes")
    until(lambda: running.entry(key)["outcome"] == "deleted", bound_s=30, what=f"{key} is settled")


# ── one object ───────────────────────────────────────────────────────────────────────────────────────


def test_without_being_asked_to_it_deletes_nothing(stack: Callable[..., Stack]) -> None:
    running = stack(DELETE_GRACE_S="0")
    told, unheard, _ = keys = fill(running, 3)
    running.remove(told)
    until(lambda: running.entry(told)["outcome"] == "gone", bound_s=30, what="the removal is settled")
    tell(running.source)
    running.remove(unheard)
    found = running.sweep()
    assert (found["extra"], found["put"]) == (2, 0)
    assert deletes(running) == {"propagated": False, "pending": 0, "held": 0, "breaker": None}
    assert set(running.target_keys()) == set(keys)


def test_a_removed_object_goes_after_the_grace_period_and_not_before(stack: Callable[..., Stack]) -> None:
    running = stack(REPLICATE_DELETES="true", DELETE_GRACE_S="3")
    removed, *others = fill(running, 3)
    began = time.monotonic()
    running.remove(removed)
    gone_at_source(running, removed)
    until(lambda: running.target_etag(removed) is None, bound_s=30, what="it is gone")
    assert time.monotonic() - began >= 3
    until(lambda: running.entry(removed)["state"] == "settled", bound_s=10, what="it is settled")
    assert running.entry(removed)["outcome"] == "deleted"
    assert deletes(running) == {"propagated": True, "pending": 0, "held": 0, "breaker": None}
    assert set(running.target_keys()) == set(others)


def test_an_object_that_comes_back_within_the_grace_period_is_copied_at_once(
    stack: Callable[..., Stack],
) -> None:
    running = stack(REPLICATE_DELETES="true", DELETE_GRACE_S="600")
    changed, same = keys = fill(running, 2)
    for key in keys:
        running.remove(key)
    until(lambda: deletes(running)["pending"] == 2, bound_s=30, what="both deletes are pending")
    etag = running.put(changed, b"another content")
    running.put(same, content(same))
    all_settled(running)
    assert running.target_etag(changed) == etag
    assert (running.entry(changed)["outcome"], running.entry(same)["outcome"]) == ("replicated", "unchanged")
    assert deletes(running)["pending"] == 0
    assert running.compare().ok


def test_a_sweep_takes_what_was_removed_unheard_and_leaves_what_others_wrote(
    stack: Callable[..., Stack],
) -> None:
    running = stack(REPLICATE_DELETES="true", DELETE_GRACE_S="1")
    removed, replaced, *others = fill(running, 4)
    running.service.stop()
    tell(running.source)
    running.remove(removed)
    running.remove(replaced)
    running.put_at_target(replaced, b"written by hand")
    running.put_at_target("by hand", b"never at the source")
    running.service.start()
    found = running.sweep()
    assert (found["extra"], found["put"]) == (3, 1)
    until(lambda: running.target_etag(removed) is None, bound_s=30, what="what was removed goes")
    all_settled(running)
    assert set(running.target_keys()) == {replaced, "by hand", *others}
    assert running.target_body(replaced) == b"written by hand"
    assert running.rule()["events_missed"] == 1


def test_no_removal_event_takes_what_somebody_put_in_the_place_of_the_copy(
    stack: Callable[..., Stack],
) -> None:
    running = stack(REPLICATE_DELETES="true", DELETE_GRACE_S="0")
    replaced, removed = fill(running, 2)
    running.put_at_target(replaced, b"written by hand")
    assert_that_a_single_delete_goes(running, removed)
    running.put_at_target(removed, b"written by hand")
    for times in (1, 2, 3):  # a store tells of removals of what is not there, too
        running.remove(replaced)
        running.remove(removed)

        def told(times: int = times) -> bool:
            asked = (running.entry(replaced)["generation"], running.entry(removed)["generation"])
            return asked == (1 + times, 2 + times)

        until(told, bound_s=30, what="the events are there")
        all_settled(running)
        entry = running.entry(replaced)
        assert entry["outcome"] == "gone"
        assert entry["lost"] == ["delete: what the target has is not what this service wrote"]
        assert running.target_body(replaced) == running.target_body(removed) == b"written by hand"


def test_a_copy_whose_write_was_not_answered_goes_with_its_object(
    stack: Callable[..., Stack], seaweed: SeaweedFS
) -> None:
    with Proxy(seaweed.endpoint) as proxy:
        running = stack(REPLICATE_DELETES="true", DELETE_GRACE_S="0", FILEBASE_ENDPOINT=proxy.endpoint)
        (key,) = fill(running, 1)
        written: list[str] = []

        def lose(exchange: Exchange) -> None:
            if exchange.forward().status == 200:  # a probe is refused
                written.append(running.target_etag(key) or "")
                running.remove(key)
                raise Drop

        proxy.plan("PutObject", lose, times=ALWAYS)
        etag = running.put(key, b"overwritten")
        until(lambda: running.entry(key)["target_etag"] is None, bound_s=60, what="the delete is done")
        all_settled(running)
        assert set(written) == {etag}
        assert (running.entry(key)["outcome"], running.target_keys()) == ("deleted", {})


def test_a_service_killed_within_the_grace_period_deletes_once_and_nothing_else(
    stack: Callable[..., Stack],
) -> None:
    running = stack(REPLICATE_DELETES="true", DELETE_GRACE_S="5")
    removed, *others = fill(running, 10)
    running.remove(removed)
    gone_at_source(running, removed)
    running.service.kill()
    assert running.target_etag(removed), "it took longer than the grace period to look"
    running.service.start()
    until(lambda: running.target_etag(removed) is None, bound_s=30, what="it is gone")
    all_settled(running)
    results = [attempt["result"] for attempt in running.entry(removed)["attempts_made"]]
    assert results == ["replicated", "deleted"]
    assert set(running.target_keys()) == set(others)
    assert running.compare().ok


# ── the breaker ──────────────────────────────────────────────────────────────────────────────────────


def test_more_deletes_than_allowed_wait_for_a_person_who_lets_them_go(stack: Callable[..., Stack]) -> None:
    running = stack(REPLICATE_DELETES="true", DELETE_GRACE_S="2", DELETE_BREAKER_MAX="5")
    keys = fill(running, 20)
    removed = keys[:10]
    running.remove_many(removed, clients=4)
    held_back(running, 10)
    assert set(running.target_keys()) == set(keys)
    breaker = deletes(running)["breaker"]
    assert datetime.fromisoformat(breaker["tripped_at"]).timestamp() <= time.time()
    assert breaker["reason"] == "more than 5 keys would go within an hour"
    assert tripped(running) == [breaker["reason"]]
    told, unheard, *really = removed
    etag = running.put(told, b"came back, and an event told of it")
    until(lambda: running.target_etag(told) == etag, bound_s=30, what="what came back is copied")
    held_back(running, 9)
    tell(running.source)
    running.put(unheard, b"came back unheard")
    assert decide(running, "approve") == 9
    until(lambda: not set(really) & running.target_keys().keys(), bound_s=30, what="the others go")
    all_settled(running)
    assert running.target_body(unheard) == b"came back unheard"
    assert deletes(running) == {"propagated": True, "pending": 0, "held": 0, "breaker": None}
    tell(running.source, *ARNS)
    assert_that_a_single_delete_goes(running, keys[-1])
    assert running.compare().ok


def test_a_wiped_source_takes_nothing_along_and_what_a_person_keeps_is_kept_for_good(
    stack: Callable[..., Stack],
) -> None:
    running = stack(REPLICATE_DELETES="true", DELETE_GRACE_S="2")
    keys = fill(running, 160)
    wiped, last = keys[:150], keys[-1]
    running.remove_many(wiped, clients=6)
    held_back(running, 150)
    assert set(running.target_keys()) == set(keys)
    (reason,) = tripped(running)
    assert re.fullmatch(r"\d+ keys would go within an hour, more than 10% of its 160 keys", reason)
    assert deletes(running)["breaker"]["reason"] == reason
    assert decide(running, "discard") == 150
    assert deletes(running) == {"propagated": True, "pending": 0, "held": 0, "breaker": None}
    found = running.sweep()
    assert (found["extra"], found["put"]) == (150, 0)
    again = wiped[:20]  # told of once more
    running.remove_many(again, clients=4)
    until(
        lambda: all(running.entry(key)["generation"] == 3 for key in again),
        bound_s=30,
        what="the events are there",
    )
    all_settled(running)
    assert set(running.target_keys()) == set(keys)
    etag = running.put(wiped[0], b"new")
    until(lambda: running.target_etag(wiped[0]) == etag, bound_s=30, what="what came back is copied")
    running.remove(wiped[0])
    assert_that_a_single_delete_goes(running, last)
    all_settled(running)
    assert set(running.target_keys()) == set(keys) - {wiped[0], last}
    assert len(tripped(running)) == 1


def test_a_source_wiped_unheard_takes_nothing_along_until_a_person_says_so(
    stack: Callable[..., Stack],
) -> None:
    running = stack(REPLICATE_DELETES="true", DELETE_GRACE_S="1")
    keys = fill(running, 150)
    tell(running.source)
    running.remove_many(keys[:149], clients=6)
    assert running.sweep()["put"] == 149
    held_back(running, 149)
    assert set(running.target_keys()) == set(keys)
    assert running.sweep()["extra"] == 149
    held_back(running, 149)
    assert set(running.target_keys()) == set(keys)
    assert len(tripped(running)) == 1
    assert decide(running, "approve") == 149
    all_settled(running)
    assert set(running.target_keys()) == {keys[-1]}
    assert deletes(running)["breaker"] is None


@pytest.mark.parametrize("look", [1, 2])
def test_what_is_discarded_stays_though_its_delete_is_on_its_way(
    stack: Callable[..., Stack], before_source: Proxy, look: int
) -> None:
    running = behind(before_source, stack, DELETE_GRACE_S="1")
    (removed,) = fill(running, 1)
    arrived, goes_on = threading.Event(), threading.Event()

    def hold() -> None:
        arrived.set()
        assert goes_on.wait(30)

    before_source.plan("HeadObject", after(hold), nth=1 + look)  # the first one begins the grace period
    running.remove(removed)
    assert arrived.wait(30), "nobody asked the source before the delete"
    assert running.entry(removed)["gone_at"]
    assert deletes(running)["pending"] == 0
    running.service.post("/v1/deletes/discard", json={"rule": "default"})
    goes_on.set()
    all_settled(running)
    assert running.target_body(removed) == content(removed)
    assert running.entry(removed)["outcome"] == "gone"


# ── the source is not what it was ────────────────────────────────────────────────────────────────────


def test_a_source_bucket_that_is_removed_takes_nothing_along(stack: Callable[..., Stack]) -> None:
    running = stack(REPLICATE_DELETES="true", DELETE_GRACE_S="8")
    keys = fill(running, 120)
    running.remove_many(keys, clients=6)
    until(lambda: deletes(running)["pending"] == 120, bound_s=7.5, what="all deletes are pending")
    running.client().remove_bucket(bucket_name=BUCKET)
    assert "the bucket does not exist" in sweep_fails(running, "no bucket")["error"]

    def tried() -> set[str]:
        return {line["key"] for line in running.log_lines() if line["event"] == "will retry"}

    until(lambda: len(tried()) == 120, bound_s=60, what="all have been tried after the grace period")
    assert set(running.target_keys()) == set(keys)
    running.client().make_bucket(bucket_name=BUCKET)
    held_back(running, 120)
    assert set(running.target_keys()) == set(keys)
    assert deletes(running)["breaker"]["tripped_at"]


class Emptied(Gateway):
    """A new server at the address of another."""

    def __init__(self, folder: Path, old: Gateway) -> None:
        super().__init__(folder, environ=old.environ)
        self.port = old.port

    def _choose_ports(self) -> None:
        """It has one."""


def test_a_source_that_comes_up_empty_takes_nothing_along_however_few_its_objects_were(
    stack: Callable[..., Stack], tmp_path: Path
) -> None:
    running = stack(REPLICATE_DELETES="true", DELETE_GRACE_S="1")
    keys = fill(running, 12)
    running.source.stop()
    with Emptied(tmp_path / "empty", running.source) as empty:
        add_reader(empty)
        sweep_fails(running, "no bucket")
        empty.client().make_bucket(bucket_name=BUCKET)
        found = running.sweep()
        assert (found["extra"], found["put"]) == (12, 12)
        held_back(running, 12)
        assert set(running.target_keys()) == set(keys)
        assert deletes(running)["breaker"]["reason"] == "the source lists no object at all"
        assert tripped(running) == ["the source lists no object at all"]
    running.source.start()
    running.sweep()
    all_settled(running)
    assert deletes(running)["held"] == 0
    assert decide(running, "approve") == 0
    assert running.entry(keys[0])["outcome"] == "unchanged"
    assert running.compare().ok


PAGE = b"<html><body>It works!</body></html>"
REFUSALS = {
    "a bucket of which nothing is told": (("HeadBucket",), answering(403, "AccessDenied")),
    "access denied": (OPERATIONS, answering(403, "AccessDenied")),
    "no bucket": (OPERATIONS, answering(404, "NoSuchBucket")),
    "a fault of the store": (OPERATIONS, answering(500, "InternalError")),
    "no answer": (OPERATIONS, drop),
    "a proxy that knows no such page": (OPERATIONS, answering(404, PAGE)),
    "a page that is not S3's": (OPERATIONS, answering(200, PAGE)),
}  # fmt: skip


def test_a_source_that_does_not_answer_as_it_should_takes_nothing_along(
    stack: Callable[..., Stack], before_source: Proxy
) -> None:
    running = behind(before_source, stack, DELETE_GRACE_S="0")
    keys = fill(running, 12)
    for number, (name, (operations, fault)) in enumerate(REFUSALS.items()):
        removed, *others = keys[number:]
        for operation in operations:
            before_source.plan(operation, fault, times=ALWAYS)
        running.remove(removed)
        tell_removals(running, others)  # of what is there still

        def failed(key: str = removed) -> bool:
            return running.entry(key)["state"] == "waiting" and bool(running.entry(key)["error"])

        until(failed, bound_s=30, what=f"{name}: the removal is tried")
        sweep_fails(running, name)
        assert set(running.target_keys()) == {removed, *others}, name
        before_source.forget()
        all_settled(running)
        assert set(running.target_keys()) == set(others), name
    running.sweep()
    assert running.compare().ok
    assert not tripped(running)


def test_revoked_credentials_take_nothing_along(stack: Callable[..., Stack]) -> None:
    running = stack(REPLICATE_DELETES="true", DELETE_GRACE_S="0")
    removed, *others = keys = fill(running, 8)
    running.service.stop()
    running.service.environ["MINIO_SECRET_KEY"] = "revoked-" * 4
    running.service.start()
    running.remove(removed)
    tell_removals(running, others)
    for key in keys:
        until(lambda key=key: running.entry(key)["error"], bound_s=30, what="the removals are tried")
        assert running.entry(key)["error_code"] == "source_store_denied"
    assert "source HeadBucket" in sweep_fails(running, "revoked")["error"]
    assert set(running.target_keys()) == set(keys)
    running.service.stop()
    del running.service.environ["MINIO_SECRET_KEY"]
    running.service.start()
    all_settled(running)
    assert set(running.target_keys()) == set(others)
    assert running.compare().ok


# ── listings that are not what is there ──────────────────────────────────────────────────────────────


def changed_listing(change: Callable[[bytes], bytes]) -> Fault:
    """The listing's XML is another one when it arrives."""

    def fault(exchange: Exchange) -> None:
        answer = exchange.forward()
        answer.headers = {name: value for name, value in answer.headers.items() if name != "Content-Length"}
        answer.body = change(answer.body)

    return fault


def halved(body: bytes) -> bytes:
    """A listing of the first half of the objects, which says that it is whole."""
    objects = re.findall(rb"<Contents>.*?</Contents>", body, re.DOTALL)
    for each in objects[len(objects) // 2 :]:
        body = body.replace(each, b"")
    return body


def truncated(token: bytes) -> Callable[[bytes], bytes]:
    """The first half of the objects, and that there are more."""
    more = b"<IsTruncated>true</IsTruncated>" + token
    return lambda body: re.sub(rb"<IsTruncated>false</IsTruncated>", more, halved(body))


FIRST_OF_TWO = changed_listing(truncated(b"<NextContinuationToken>more</NextContinuationToken>"))
BROKEN_LISTINGS = {
    "the second page fails": (FIRST_OF_TWO, answering(500, "InternalError")),
    "the second page is cut": (FIRST_OF_TWO, cut_answer),
    "the second page is the first again": (FIRST_OF_TWO, FIRST_OF_TWO),
    "the connection breaks": (cut_answer,),
    "the XML ends too early": (changed_listing(lambda body: body[: len(body) // 2]),),
    "there is no next page": (changed_listing(truncated(b"")),),
    "it does not say whether it is whole": (
        changed_listing(lambda body: halved(body).replace(b"<IsTruncated>false</IsTruncated>", b"")),
    ),
    "it is empty": (changed_listing(lambda _: b""),),
    "it is no listing": (answering(200, PAGE),),
}


def test_a_listing_that_breaks_off_proves_nothing_and_is_made_again(
    stack: Callable[..., Stack], before_source: Proxy
) -> None:
    running = behind(before_source, stack, DELETE_GRACE_S="0")
    keys = fill(running, 12)
    running.sweep()
    proved = running.rule()["recovery_point"]
    assert proved
    tell(running.source)
    removed, *others = keys
    running.remove(removed)
    first = True
    for name, faults in BROKEN_LISTINGS.items():
        for nth, fault in enumerate(faults, start=1):
            before_source.plan(LISTING, fault, nth=nth, times=ALWAYS if nth == len(faults) else 1)
        sweep = sweep_fails(running, name)
        assert (sweep["state"], sweep["put"]) == ("open", 0), name
        listed = {each["id"]: each for each in running.service.get("/v1/sweeps").json()["sweeps"]}
        assert listed[sweep["id"]]["error"] == sweep["error"]
        assert running.rule()["recovery_point"] == proved, name
        assert set(running.target_keys()) == {removed, *others}, name
        before_source.forget()
        if first:  # by itself, when the source is well again

            def over(link: str = sweep["link"]) -> bool:
                return bool(running.service.get(link).json()["state"] == "complete")

            until(over, bound_s=30, what="the sweep is complete")
            until(lambda: running.target_etag(keys[0]) is None, bound_s=30, what="what was removed goes")
            assert running.rule()["recovery_point"] > proved
            proved = running.rule()["recovery_point"]
            removed, *others = others
            running.remove(removed)
            first = False
    assert running.sweep()["error"] is None
    until(lambda: running.target_etag(removed) is None, bound_s=30, what="what was removed goes")
    assert set(running.target_keys()) == set(others)


def test_a_listing_that_leaves_keys_out_takes_nothing_along(
    stack: Callable[..., Stack], before_source: Proxy
) -> None:
    running = behind(before_source, stack, DELETE_GRACE_S="0")
    keys = fill(running, 12)
    before_source.plan(LISTING, changed_listing(halved))
    found = running.sweep()
    assert (found["extra"], found["put"]) == (6, 6)
    all_settled(running)
    assert set(running.target_keys()) == set(keys)
    assert deletes(running)["breaker"] is None

    def emptied(body: bytes) -> bytes:
        return re.sub(rb"<Contents>.*</Contents>", b"", body, flags=re.DOTALL)

    before_source.plan(LISTING, changed_listing(emptied))
    assert running.sweep()["put"] == 12
    all_settled(running)
    assert deletes(running)["breaker"]["reason"] == "the source lists no object at all"
    decide(running, "approve")
    all_settled(running)
    assert set(running.target_keys()) == set(keys)
    assert running.compare().ok
