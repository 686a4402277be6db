"""What is made of a store's answers to conditions."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import pytest

from webhook.conditions import IF_MATCH, IF_NEW, NO_ETAG, Conditions
from webhook.errors import (
    NoSuchKey,
    Place,
    StoreDenied,
    StoreError,
    StoreFailed,
    StoreRefused,
    StoreUnavailable,
    TargetChanged,
)

PLACE = Place(side="target", operation="PutObject", bucket="b", key="k")
MATCH, NEW = {IF_MATCH: '"e"'}, {IF_NEW: "*"}


@dataclass
class Store:
    """Holds the ETag of one object, "" for none; `sent` are the conditions of all requests."""

    etag: str = "e"
    heeds: bool = True
    minds: StoreError | None = None
    """What it answers to any condition."""
    missing: type[StoreError] = TargetChanged
    """What it answers to If-Match where there is nothing."""
    sent: list[Mapping[str, str]] = field(default_factory=list)

    def write(self, condition: Mapping[str, str]) -> str:
        self.sent.append(condition)
        if condition and self.minds:
            raise self.minds
        wanted = condition.get(IF_MATCH, "").strip('"')
        if self.heeds and wanted and wanted != self.etag:
            raise (TargetChanged if self.etag else self.missing)("no", PLACE)
        if self.heeds and IF_NEW in condition and self.etag:
            raise TargetChanged("no", PLACE)
        self.etag = "written"
        return "written"


def unknown(only_new: bool | None = None, match: bool | None = None) -> Conditions:
    return Conditions("t", "PutObject", only_new=only_new, match=match)


def test_whatever_is_there_is_replaced_without_a_condition() -> None:
    store = Store()
    assert unknown().send(None, store.write) == "written"
    assert store.sent == [{}]


@pytest.mark.parametrize("heeds", [True, None])
def test_nothing_is_replaced_where_nothing_is_to_be(heeds: bool | None) -> None:
    store, conditions = Store(), unknown(only_new=heeds)
    with pytest.raises(TargetChanged):
        conditions.send("", store.write)
    assert (store.etag, store.sent) == ("e", [NEW])
    assert conditions.only_new is True
    store.etag = ""
    assert conditions.send("", store.write) == "written"
    assert store.sent == [NEW, NEW]


def test_a_store_is_asked_once_whether_it_heeds_if_match_and_the_object_is_written_all_the_same() -> None:
    store, conditions = Store(), unknown()
    assert conditions.send("e", store.write) == "written"
    assert store.sent == [{IF_MATCH: NO_ETAG}, MATCH]
    assert conditions.match is True
    with pytest.raises(TargetChanged):
        conditions.send("e", store.write)
    assert store.sent[2:] == [MATCH]


def test_a_store_that_ignores_if_match_has_the_object_after_one_request_and_gets_no_condition_any_more() -> (
    None
):
    store, conditions = Store(heeds=False), unknown()
    assert conditions.send("e", store.write) == "written"
    assert conditions.send("other", store.write) == "written"
    assert store.sent == [{IF_MATCH: NO_ETAG}, {}]
    assert conditions.match is False


@pytest.mark.parametrize("missing", [TargetChanged, NoSuchKey])
def test_what_is_to_be_replaced_and_is_gone_has_changed(missing: type[StoreError]) -> None:
    store = Store(etag="", missing=missing)
    for conditions in (unknown(match=True), unknown()):
        with pytest.raises(TargetChanged):
            conditions.send("e", store.write)
        assert conditions.match is True
    assert store.etag == ""


@pytest.mark.parametrize("replaces", ["", "e"])
@pytest.mark.parametrize(
    "answer",
    [
        StoreFailed("no", PLACE, status=501, store_code="NotImplemented"),
        StoreRefused("no", PLACE, status=501),
        StoreRefused("no", PLACE, status=400, store_code="InvalidArgument"),
    ],
    ids=repr,
)
def test_a_store_that_minds_a_condition_gets_the_object_without_and_is_not_sent_it_again(
    answer: StoreError, replaces: str
) -> None:
    store, conditions = Store(minds=answer), unknown(only_new=True, match=None)
    for _ in range(2):
        assert conditions.send(replaces, store.write) == "written"
    assert [bool(condition) for condition in store.sent] == [True, False, False]
    assert (conditions.only_new, conditions.match) == ((False, None) if replaces == "" else (True, False))


@pytest.mark.parametrize(
    "answer",
    [
        StoreFailed("no", PLACE, status=400, store_code="BadDigest"),
        StoreFailed("no", PLACE, status=500),
        StoreDenied("no", PLACE, status=403),
        StoreUnavailable("no", PLACE, status=503),
        StoreRefused("no", PLACE, status=405),
    ],
    ids=repr,
)
def test_an_error_that_is_not_about_the_condition_is_one_and_nothing_is_learned(answer: StoreError) -> None:
    store, conditions = Store(minds=answer), unknown()
    for replaces in ("", "e"):
        with pytest.raises(type(answer)):
            conditions.send(replaces, store.write)
    assert len(store.sent) == 2
    assert (conditions.only_new, conditions.match) == (None, None)


def test_a_store_that_minds_the_object_itself_is_not_taken_to_mind_the_condition() -> None:
    conditions = unknown()

    def refuse(_: Mapping[str, str]) -> None:
        raise StoreRefused("no", PLACE, status=400)

    with pytest.raises(StoreRefused):
        conditions.send("", refuse)
    assert conditions.only_new is None


@pytest.mark.parametrize("heeds", [True, False])
def test_only_new_is_found_out_by_writing_again_once(heeds: bool) -> None:
    store, conditions = Store(heeds=heeds), unknown()
    again: Callable[[], object] = lambda: conditions.send("", store.write)  # noqa: E731
    conditions.try_only_new(again)
    assert conditions.only_new is heeds
    conditions.try_only_new(again)
    assert len(store.sent) == 1


def test_a_trial_that_ends_in_an_error_is_made_again() -> None:
    store, conditions = Store(minds=StoreUnavailable("no", PLACE)), unknown()
    for _ in range(2):
        with pytest.raises(StoreUnavailable):
            conditions.try_only_new(lambda: conditions.send("", store.write))
    assert len(store.sent) == 2


def test_while_one_thread_finds_out_another_sends_its_condition() -> None:
    store, conditions = Store(), unknown()

    def slow(condition: Mapping[str, str]) -> str:
        if condition == {IF_MATCH: NO_ETAG}:
            assert conditions.send("e", store.write) == "written"  # of another thread, as it were
            assert store.sent == [MATCH]
            store.etag = "e"
        return store.write(condition)

    assert conditions.send("e", slow) == "written"
    assert store.sent == [MATCH, {IF_MATCH: NO_ETAG}, MATCH]
