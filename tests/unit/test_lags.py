"""Percentiles told from buckets: never too low, and at most a fifth too high."""

from __future__ import annotations

import math
from collections import Counter
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from webhook.lags import BUCKETS, FIRST_S, GROWTH, bucket_of, percentile_s, upper_s

SHARES = (Fraction(1, 2), Fraction(95, 100), Fraction(99, 100))
EXACTNESS = 1e-8
"""Of what is told; floating point has no more."""
LONGEST_S = upper_s(BUCKETS - 1)
LAGS = st.one_of(
    st.floats(FIRST_S, LONGEST_S),
    st.floats(math.log(FIRST_S), math.log(LONGEST_S)).map(
        lambda x: min(max(math.exp(x), FIRST_S), LONGEST_S)
    ),
    st.integers(0, BUCKETS - 1).map(upper_s),
)


@pytest.mark.parametrize("bucket", range(BUCKETS))
def test_a_bucket_ends_with_its_upper_end_and_the_next_begins_behind_it(bucket: int) -> None:
    end = upper_s(bucket)
    assert bucket_of(end) == bucket
    assert bucket_of(end * (1 + 1e-6)) == min(bucket + 1, BUCKETS - 1)
    assert bucket_of(end * (1 - 1e-6)) == bucket


@pytest.mark.parametrize("lag_s", [-5.0, 0.0, 1e-9, FIRST_S / 2, FIRST_S])
def test_what_is_shorter_than_the_first_bucket_or_lies_in_the_future_is_in_it(lag_s: float) -> None:
    assert (bucket_of(lag_s), upper_s(0)) == (0, FIRST_S)


@pytest.mark.parametrize("lag_s", [LONGEST_S * 1.01, 1e9, 1.8e9])
def test_what_is_longer_than_all_buckets_is_in_the_last_one(lag_s: float) -> None:
    assert bucket_of(lag_s) == BUCKETS - 1
    assert LONGEST_S > 26 * 86_400


@given(lags=st.lists(LAGS, min_size=1, max_size=300), share=st.sampled_from(SHARES))
def test_a_percentile_is_never_too_low_and_at_most_a_fifth_too_high(
    lags: list[float], share: Fraction
) -> None:
    exact = sorted(lags)[max(1, math.ceil(len(lags) * share)) - 1]
    told = percentile_s(Counter(map(bucket_of, lags)), float(share))
    assert told is not None
    assert exact * (1 - EXACTNESS) <= told <= exact * GROWTH * (1 + EXACTNESS)


@pytest.mark.parametrize("share", SHARES)
def test_no_number_of_lags_makes_the_share_round_to_one_more(share: Fraction) -> None:
    for count in range(1, 20_000):
        below = math.ceil(count * share)
        assert percentile_s({3: below, 90: count - below}, float(share)) == upper_s(3)
        assert percentile_s({3: below - 1, 90: count - below + 1}, float(share)) == upper_s(90)


def test_the_order_in_which_buckets_are_told_does_not_matter() -> None:
    assert percentile_s({40: 1, 7: 98, 20: 1}, 0.99) == upper_s(20)


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_of_one_lag_every_percentile_is_that_one(share: float) -> None:
    assert percentile_s({12: 1}, share) == upper_s(12)


@pytest.mark.parametrize("counts", [{}, {3: 0}, {3: 0, 9: 0}])
def test_of_nothing_there_is_no_percentile(counts: dict[int, int]) -> None:
    assert percentile_s(counts, 0.5) is None
