"""MinIO's notifications, as they come and as they should never come."""

from __future__ import annotations

import json
import re
import time
from typing import Any
from urllib.parse import quote, quote_plus

import pytest
from hypothesis import given
from hypothesis import strategies as st

from webhook.errors import BadRequest
from webhook.events import (
    BUCKET_MAX_CHARS,
    DEPTH_MAX,
    JUNK_KEPT_BYTES,
    KEY_MAX_BYTES,
    Change,
    Notification,
    asked,
    junk,
    key_problem,
    parse,
)
from webhook.rules import Rules, Template

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=12,
)
KEYS = st.text(min_size=1, max_size=200).filter(lambda key: key_problem(key) is None)


def record(key: Any = "a/b", bucket: Any = "photos", **more: Any) -> dict[str, Any]:
    """A record as MinIO sends it, less what nobody reads."""
    return {
        "eventVersion": "2.0",
        "eventSource": "minio:s3",
        "eventTime": "2026-01-02T03:04:05.678Z",
        "eventName": "s3:ObjectCreated:Put",
        "responseElements": {"x-amz-request-id": "18B1"},
        "s3": {"bucket": {"name": bucket}, "object": {"key": key, "size": 3, "eTag": "e"}},
        **more,
    }


def parse_records(*records: Any) -> Notification:
    """The notification of these records."""
    return parse(json.dumps({"EventName": "s3:ObjectCreated:Put", "Records": records}).encode())


def change_of(one: Any) -> Change:
    """The change that a usable record is."""
    (change,) = parse_records(one).changes
    return change


def test_a_record_becomes_a_change() -> None:
    change = change_of(record("photos%2F2026/caf%C3%A9+1%2B1.jpg"))
    assert (change.bucket, change.key) == ("photos", "photos/2026/café 1+1.jpg")
    assert (change.event_name, change.event_at) == ("s3:ObjectCreated:Put", 1767323045.678)
    assert len(change.event_id) == 16


@pytest.mark.parametrize(
    ("told", "etag"),
    [
        ("d41d-2", "d41d-2"),
        ('"d41d"', "d41d"),
        ("", ""),
        (None, ""),
        (7, ""),
        ("a b", ""),
        ("é", ""),
        ("a\n", ""),
    ],
)
def test_the_etag_is_read_where_it_is_one(told: Any, etag: str) -> None:
    described = {"bucket": {"name": "photos"}, "object": {"key": "a", "eTag": told}}
    assert change_of(record(s3=described)).etag == etag
    bare = {"bucket": {"name": "photos"}, "object": {"key": "a"}}
    assert change_of(record(s3=bare)).etag == ""


@given(KEYS, st.sampled_from([quote_plus, lambda key: quote(key, safe="/"), lambda key: quote(key, safe="")]))
def test_any_key_is_read_back_from_how_it_was_escaped(key: str, escape: Any) -> None:
    assert change_of(record(escape(key))).key == key


@pytest.mark.parametrize(("source", "key"), [("minio:s3", "1 1 A"), ("ceph:s3", "1+1 %41"), (None, "1 1 A")])
def test_a_key_is_read_as_its_sender_writes_it(source: Any, key: str) -> None:
    assert change_of(record("1+1 %41", eventSource=source)).key == key


def test_records_are_kept_apart_and_in_order() -> None:
    found = parse_records(record("a"), 7, record("b"), {}, record("a", eventName="s3:ObjectRemoved:Delete"))
    assert [change.key for change in found.changes] == ["a", "b", "a"]
    assert len(found.unusable) == 2
    assert all(each.reason for each in found.unusable)
    assert [json.loads(each.raw) for each in found.unusable] == [7, {}]


@pytest.mark.parametrize("other", [record("b"), record(eventTime="2026-01-02T03:04:05.679Z"), record(more=1)])
def test_only_a_repeated_record_has_the_same_id(other: dict[str, Any]) -> None:
    first = change_of(record())
    reordered = dict(reversed(record().items()))
    assert change_of(reordered).event_id == first.event_id
    assert change_of(other).event_id != first.event_id
    ids = [parse_records({"no": number}).unusable[0].record_id for number in (1, 1, 2)]
    assert ids[0] == ids[1] != ids[2]


@pytest.mark.parametrize(
    "broken",
    [
        *(None, 7, "text", [], {}, {"s3": None}, {"s3": {}}, {"s3": {"bucket": {"name": "b"}}}),
        *(record(key) for key in (None, "", 7, ["a"], "a%00", "%FF", "a%ED%A0%80", "\ud800", "x" * 1025)),
        *(record("é" * 513), record("%C3%A9" * 513)),
        *(record(bucket=bucket) for bucket in (None, "", 7, "x" * 256, "b\0", "\ud800")),
        *(
            record(s3={"bucket": "b", "object": {"key": "k"}}),
            record(s3={"bucket": {"name": "b"}, "object": 1}),
        ),
    ],
    ids=repr,
)
def test_a_record_nobody_can_use_is_kept_with_its_reason(broken: Any) -> None:
    found = parse_records(record("good"), broken)
    assert [change.key for change in found.changes] == ["good"]
    (unusable,) = found.unusable
    assert unusable.reason
    assert unusable.raw.isascii()
    assert "\0" not in unusable.raw
    assert json.loads(unusable.raw) == broken


@pytest.mark.parametrize(
    "document", [{}, {"Records": []}, {"Records": None}, {"Records": {}}, {"records": [1]}]
)
def test_an_object_without_records_is_kept_whole(document: dict[str, Any]) -> None:
    found = parse(json.dumps(document).encode())
    assert found.changes == ()
    assert json.loads(found.unusable[0].raw) == document


@pytest.mark.parametrize(
    "body", [b"", b" ", b"{", b"[]", b"1", b'"text"', b"null", b"\xff\xfe", b"{}{}", b"\x80", b"1" * 5000]
)
def test_what_is_no_json_object_is_a_bad_request(body: bytes) -> None:
    with pytest.raises(BadRequest) as caught:
        parse(body)
    assert caught.value.hint


@pytest.mark.parametrize(
    ("moment", "seconds"),
    [
        ("1970-01-01T00:01:00Z", 60.0),
        ("1970-01-01T00:01:00", 60.0),
        ("1970-01-01T01:01:00+01:00", 60.0),
        *((value, 0.0) for value in (None, 7, "", "yesterday", "2026-13-01T00:00:00Z", [], "\ud800")),
    ],
)
def test_an_event_has_a_time_or_none(moment: Any, seconds: float) -> None:
    assert change_of(record(eventTime=moment)).event_at == seconds


@pytest.mark.parametrize("name", [None, 7, "", "a\0b", "\ud800"])
def test_an_event_without_a_name_is_still_a_change(name: Any) -> None:
    assert change_of(record(eventName=name)).event_name == ""


@pytest.mark.parametrize(
    ("key", "is_usable"),
    [("x" * KEY_MAX_BYTES, True), ("é" * 512, True), ("é" * 513, False), ("", False), ("\n", True)],
)
def test_a_key_is_measured_in_bytes(key: str, is_usable: bool) -> None:
    assert (key_problem(key) is None) == is_usable


def _survives(body: bytes) -> None:
    try:
        found = parse(body)
    except BadRequest:
        return
    assert found.changes or found.unusable
    for each in found.changes:
        assert key_problem(each.key) is None


@given(JSON)
def test_no_json_document_breaks_it(document: Any) -> None:
    for whole in (document, {"Records": document}, {"Records": [document]}):
        _survives(json.dumps(whole).encode())


@given(st.data())
def test_no_record_breaks_it(data: st.DataObject) -> None:
    broken = record(data.draw(JSON), data.draw(JSON), eventTime=data.draw(JSON), eventName=data.draw(JSON))
    found = parse_records(broken)
    assert len(found.changes) + len(found.unusable) == 1


@given(st.data())
def test_a_record_is_recognised_however_its_json_is_written(data: st.DataObject) -> None:
    records = data.draw(st.lists(st.builds(record, KEYS, more=JSON) | JSON, min_size=1, max_size=3))
    plain = parse(json.dumps({"Records": records}).encode())
    written = json.dumps(
        data.draw(st.permutations([("Records", records), ("other", 1)]).map(dict)),
        ensure_ascii=data.draw(st.booleans()),
        indent=data.draw(st.none() | st.integers(0, 3)),
        sort_keys=data.draw(st.booleans()),
    )
    again = parse(written.encode(data.draw(st.sampled_from(["utf-8", "utf-16", "utf-32"]))))
    assert again.changes == plain.changes
    assert [each.record_id for each in again.unusable] == [each.record_id for each in plain.unusable]


@given(st.binary())
def test_no_bytes_break_it(body: bytes) -> None:
    _survives(body)


@pytest.mark.parametrize("opening", [b"[", b'{"a":', b'{"Records":', b'{"Records":[{"a":'])
def test_no_depth_breaks_it(opening: bytes) -> None:
    closing = {ord("["): b"]", ord("{"): b"}"}
    end = b"".join(closing[char] for char in reversed(opening) if char in closing)
    for depth in (*range(1, 10), *range(850, 1010), 100_000):
        _survives(opening * depth + b"1" + end * depth)
        _survives(b'{"Records":[' + opening * depth + b"1" + end * depth + b"]}")


def test_what_is_kept_is_read_again_on_any_stack_and_what_is_deeper_is_refused() -> None:
    def nested(lists: int) -> bytes:
        return b'{"Records":[' + b"[" * lists + b"]" * lists + b"]}"

    (kept,) = parse(nested(DEPTH_MAX - 2)).unusable
    assert json.loads(kept.raw) is not None
    for lists in (DEPTH_MAX - 1, 500, 960, 100_000):
        with pytest.raises(BadRequest):
            parse(nested(lists))


def test_many_lists_beside_each_other_are_not_deep() -> None:
    def nested(lists: int) -> bytes:
        return b'{"Records":[' + b"[]," * DEPTH_MAX + b"[" * lists + b"]" * lists + b"]}"

    for lists in (1, DEPTH_MAX - 2):
        assert len(parse(nested(lists)).unusable) == DEPTH_MAX + 1
    with pytest.raises(BadRequest):
        parse(nested(DEPTH_MAX - 1))


# ── what they ask of the ledger ──────────────────────────────────────────────────────────────────────

RULES = Rules(
    templates=(
        Template(name="all", sources=("photos",), target_bucket="copy", exclude=("*.part",)),
        Template(name="raw", sources=("photos",), prefix="raw/", target_bucket="long-term"),
    )
)


def body_of(*records: Any) -> bytes:
    return json.dumps({"Records": records}).encode()


def test_a_change_asks_once_for_each_rule_that_wants_it() -> None:
    found = asked(body_of(record("raw/a"), record("b"), record("b.part"), record("c", "elsewhere"), 7), RULES)
    assert [(each.rule, each.key) for each in found.requests] == [
        ("all", "raw/a"),
        ("raw", "raw/a"),
        ("all", "b"),
    ]
    assert (found.accepted, found.ignored) == (2, 2)
    (misfit,) = found.misfits
    assert (misfit.raw, len(misfit.record_id)) == ("7", 64)
    (change,) = parse_records(record("b")).changes
    of_it = found.requests[2]
    assert (of_it.event_id, of_it.event_at, of_it.etag) == (change.event_id, change.event_at, "e")


@given(st.lists(st.tuples(KEYS, st.sampled_from(["photos", "else"])).map(lambda it: record(*it)) | JSON))
def test_every_record_is_accepted_ignored_or_kept(records: list[Any]) -> None:
    found = asked(body_of(*records), RULES)
    if records:
        assert found.accepted + found.ignored + len(found.misfits) == len(records)
    assert len({(each.event_id, each.key) for each in found.requests}) <= found.accepted
    assert found.accepted <= len(found.requests) <= found.accepted * len(RULES.templates)


@pytest.mark.parametrize(
    ("name", "is_wanted", "is_removal"),
    [
        ("s3:ObjectCreated:Put", True, False),
        ("s3:ObjectCreated:CompleteMultipartUpload", True, False),
        ("s3:ObjectTagging:Put", True, False),
        ("s3:ObjectRemoved:Delete", True, True),
        ("s3:ObjectRemoved:DeleteMarkerCreated", True, True),
        ("s3:ObjectRemoved:NoOP", True, False),
        ("s3:LifecycleExpiration:Delete", True, True),
        ("s3:ObjectAccessed:Get", False, False),
        ("ObjectCreated:Put", True, False),
        ("ObjectRemoved:Delete", True, True),
        ("ObjectRemoved:NoOP", True, False),
        ("ObjectAccessed:Get", False, False),
        ("", False, False),
    ],
)
def test_only_events_that_change_an_object_ask_for_something(
    name: str, is_wanted: bool, is_removal: bool
) -> None:
    found = asked(body_of(record("b", eventName=name)), RULES)
    assert [each.is_removal for each in found.requests] == [is_removal] * is_wanted
    assert (found.accepted, found.ignored) == (int(is_wanted), int(not is_wanted))


def test_what_is_no_notification_asks_for_nothing_and_can_be_kept() -> None:
    with pytest.raises(BadRequest):
        asked(b"no json", RULES)
    kept = junk(b"\xff\x00" * JUNK_KEPT_BYTES, "why")
    assert kept.reason == "why"
    assert kept.raw.isascii()
    assert "\0" not in kept.raw
    assert json.loads(kept.raw) == "\\xff\0" * (JUNK_KEPT_BYTES // 2)
    assert junk(b"a", "").record_id == junk(b"a", "").record_id != junk(b"b", "").record_id


# ── what a person reads ──────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("broken", "reason"),
    [
        (7, "the record is missing or not an object"),
        ({}, "s3 is missing or not an object"),
        ({"s3": {}}, "s3.bucket is missing or not an object"),
        ({"s3": {"bucket": {"name": "b"}}}, "s3.object is missing or not an object"),
        (record(bucket="x" * 256), "s3.bucket.name is missing or no bucket name"),
        (record(None), "s3.object.key is missing"),
        (record("%FF"), "s3.object.key is not UTF-8"),
        (record("a%00"), "the key holds a NUL character or is not UTF-8"),
        (record("x" * 1025), "the key is longer than 1024 bytes"),
    ],
    ids=repr,
)
def test_a_record_nobody_can_use_says_why(broken: Any, reason: str) -> None:
    (misfit,) = asked(body_of(broken), RULES).misfits
    assert misfit.reason == reason


def test_an_object_without_records_and_an_empty_key_say_why() -> None:
    (unusable,) = parse(b"{}").unusable
    assert unusable.reason == "there is no list of Records"
    assert key_problem("") == "the key is empty"


@pytest.mark.parametrize(
    ("body", "says"),
    [(b"{", "the body is not JSON, or is nested too deeply"), (b"[]", "the body is not a JSON object")],
)
def test_a_bad_request_says_what_is_wrong_and_what_to_send(body: bytes, says: str) -> None:
    with pytest.raises(BadRequest, match=f"^{re.escape(says)}$") as caught:
        parse(body)
    assert caught.value.hint == "Send MinIO's notification as it is."


@pytest.mark.parametrize("bucket", ["b", "x" * BUCKET_MAX_CHARS])
def test_the_shortest_and_the_longest_name_of_a_bucket_can_be_used(bucket: str) -> None:
    assert change_of(record(bucket=bucket)).bucket == bucket


@pytest.mark.parametrize(
    ("moment", "seconds"), [("1970-01-01T00:01:00", 60.0), ("9999-12-31T23:30:00Z", 253402299000.0)]
)
def test_the_time_zone_of_this_machine_does_not_matter(
    monkeypatch: pytest.MonkeyPatch, moment: str, seconds: float
) -> None:
    with monkeypatch.context() as here:
        here.setenv("TZ", "XXX-9")
        time.tzset()
        try:
            assert change_of(record(eventTime=moment)).event_at == seconds
        finally:
            here.undo()
            time.tzset()
