"""Parts cover an object exactly, and S3's limits hold."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from webhook.layout import (
    MIB,
    OBJECT_MAX_BYTES,
    OWN_PART_BYTES,
    PART_MAX_BYTES,
    PART_MIN_BYTES,
    PARTS_MAX,
    USUAL_PART_BYTES,
    count,
    likely_part_sizes,
    own_part_size,
    parts,
)

sizes = st.integers(0, OBJECT_MAX_BYTES) | st.integers(0, 200 * MIB) | st.just(OBJECT_MAX_BYTES)
memories = st.integers(16 * MIB, 1024**4)


@given(sizes, memories)
def test_any_object_is_covered_exactly_within_the_limits(size: int, memory: int) -> None:
    part_size = own_part_size(size, memory_bytes=memory)
    assert PART_MIN_BYTES <= part_size <= PART_MAX_BYTES
    layout = list(parts(size, part_size))
    assert 1 <= len(layout) == count(size, part_size) <= PARTS_MAX
    assert [part.number for part in layout] == list(range(1, len(layout) + 1))
    assert [part.offset for part in layout] == [index * part_size for index in range(len(layout))]
    assert {part.size for part in layout[:-1]} <= {part_size}
    assert sum(part.size for part in layout) == size
    assert layout[-1].size <= part_size
    assert layout[-1].size > 0 or size == 0
    if part_size > memory:
        assert memory * PARTS_MAX < size, "more than the memory only where S3 leaves no choice"


@given(st.integers(0, 500) | sizes, st.integers(1, 200), st.integers(0, PART_MAX_BYTES))
def test_parts_of_any_size_begin_where_the_one_before_ends(size: int, number: int, more: int) -> None:
    end = 0
    for expected, part in enumerate(parts(size, -(-size // number) + more + (size == 0)), 1):
        assert (part.number, part.offset) == (expected, end)
        assert part.size > 0 or size == 0
        end += part.size
    assert end == size


@given(st.sampled_from(USUAL_PART_BYTES), st.integers(1, PARTS_MAX), st.integers(1, 5 * MIB))
def test_a_usual_part_size_is_among_the_likely_ones(part_size: int, number: int, last: int) -> None:
    size = min((number - 1) * part_size + last, OBJECT_MAX_BYTES)
    found = likely_part_sizes(size, count(size, part_size))
    assert part_size in found
    assert {count(size, each) for each in found} == {count(size, part_size)}


@pytest.mark.parametrize(
    ("size", "parts_count", "part_size"),
    [
        (100 * MIB, 13, 8 * MIB),  # boto3
        (100 * MIB, 7, 16 * MIB),  # minio-go, rather than 15
        (100 * MIB, 20, 5 * MIB),
        (9 * MIB, 2, 8 * MIB),  # boto3 rather than rclone
        (6 * 1024 * MIB, 2, 4096 * MIB),
    ],
)
def test_well_known_clients_are_recognised(size: int, parts_count: int, part_size: int) -> None:
    assert likely_part_sizes(size, parts_count)[0] == part_size


def test_a_number_of_parts_that_nobody_makes_gives_none() -> None:
    assert likely_part_sizes(100 * MIB, 99) == []


def test_our_own_parts_fit_in_memory_and_are_larger_only_for_huge_objects() -> None:
    assert own_part_size(100 * MIB, memory_bytes=64 * MIB) == OWN_PART_BYTES
    assert own_part_size(100 * MIB, memory_bytes=8 * MIB) == 8 * MIB
    assert own_part_size(OBJECT_MAX_BYTES, memory_bytes=64 * MIB) == 525 * MIB


def test_the_limits_are_s3_s() -> None:
    assert (PART_MIN_BYTES, PART_MAX_BYTES) == (5 * 2**20, 5 * 2**30)
    assert (PARTS_MAX, OBJECT_MAX_BYTES) == (10_000, 5 * 2**40)


def test_what_s3_cannot_hold_is_refused() -> None:
    with pytest.raises(ValueError, match="5 TiB"):
        own_part_size(OBJECT_MAX_BYTES + 1, memory_bytes=PART_MAX_BYTES)
