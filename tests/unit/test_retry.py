"""What follows an error."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from webhook import errors
from webhook.errors import (
    Advice,
    IntegrityError,
    LedgerUnavailable,
    Place,
    ReplicatorError,
    SourceChanged,
    StoreError,
    TargetChanged,
)
from webhook.retry import DELAY_MAX_S, FIRST_DELAY_S, UNAVAILABLE_DELAY_MAX_S, Bury, Retry, decide

PLACE = Place(side="target", operation="PutObject", bucket="b", key="k")
WAITING = ["StoreUnavailable"]
RETRIED = ["StoreFailed", "StoreDenied", "NoSuchKey", "SourceChanged", "TargetChanged"]
shares = st.floats(0, 1)


def store_error(name: str, *, retry_after_s: float | None = None) -> StoreError:
    """An error of that class."""
    error: StoreError = getattr(errors, name)("no", PLACE, retry_after_s=retry_after_s)
    return error


EVERY_ERROR: list[Exception] = [
    store_error(name) if issubclass(kind, StoreError) else kind("no")
    for name, kind in vars(errors).items()
    if isinstance(kind, type) and issubclass(kind, ReplicatorError)
] + [ValueError("no"), OSError("no")]


def delays(error: Exception, count: int, *, share: float) -> list[Retry]:
    """What is decided when the same error comes again and again."""
    decided: list[Retry] = []
    for attempts in range(2, count + 2):
        backoff_s = decided[-1].backoff_s if decided else FIRST_DELAY_S / 2  # of a first try anew
        decision = decide(
            error, attempts=attempts, attempts_max=10**6, backoff_s=backoff_s, random_share=share
        )
        assert isinstance(decision, Retry)
        decided.append(decision)
    return decided


@given(st.sampled_from(WAITING + RETRIED), shares)
def test_delays_grow_up_to_a_limit_and_stay_there(name: str, share: float) -> None:
    longest = UNAVAILABLE_DELAY_MAX_S if name in WAITING else DELAY_MAX_S
    chosen = [each.after_s for each in delays(store_error(name), 15, share=share)]
    assert chosen == sorted(chosen)
    assert FIRST_DELAY_S / 2 <= chosen[0] <= FIRST_DELAY_S
    assert longest / 2 <= chosen[-1] <= longest
    assert all(after <= 2 * before for before, after in pairwise(chosen))


@given(st.sampled_from(WAITING + RETRIED), st.integers(1, 9), st.floats(0, 1e6), st.floats(0, 1e6), shares)
def test_a_delay_is_within_bounds_and_never_undercuts_what_the_store_asked_for(
    name: str, attempts: int, backoff_s: float, asked_s: float, share: float
) -> None:
    error = store_error(name, retry_after_s=asked_s)
    decision = decide(error, attempts=attempts, attempts_max=10, backoff_s=backoff_s, random_share=share)
    assert isinstance(decision, Retry)
    if name.endswith("Changed") and backoff_s == 0:
        return
    longest = UNAVAILABLE_DELAY_MAX_S if name in WAITING else DELAY_MAX_S
    assert asked_s <= decision.after_s <= max(asked_s, longest)
    assert decision.after_s >= decision.backoff_s / 2
    assert FIRST_DELAY_S <= decision.backoff_s <= longest, "what was asked for once does not grow"


@given(
    st.sampled_from(EVERY_ERROR),
    *(st.integers(1, 20), st.integers(1, 20), st.just(0.0) | st.floats(0, 1e6), st.none() | shares),
)
def test_any_error_comes_again_or_is_buried_as_it_advises(
    error: Exception, attempts: int, attempts_max: int, backoff_s: float, share: float | None
) -> None:
    decision = decide(
        error, attempts=attempts, attempts_max=attempts_max, backoff_s=backoff_s, random_share=share
    )
    advice = getattr(error, "advice", Advice.RETRY)
    is_looked_at_anew = isinstance(error, SourceChanged | TargetChanged) and backoff_s == 0
    counts = advice is Advice.RETRY and not is_looked_at_anew
    is_over = advice is Advice.GIVE_UP or (counts and attempts >= attempts_max)
    assert (decision == Bury()) == is_over
    if isinstance(decision, Retry):
        assert decision.counts == counts
        assert 0 <= decision.after_s <= DELAY_MAX_S
        assert (decision.after_s == 0) == is_looked_at_anew


def test_chance_spreads_the_delays() -> None:
    error = store_error("StoreFailed")
    chosen = {
        decision.after_s
        for _ in range(20)
        if isinstance(decision := decide(error, attempts=2, attempts_max=9, backoff_s=100.0), Retry)
    }
    assert len(chosen) > 10
    assert all(100 <= delay <= 200 for delay in chosen)


@pytest.mark.parametrize("error", [IntegrityError("x"), KeyError("x"), *map(store_error, RETRIED)], ids=repr)
def test_what_may_pass_is_tried_the_allowed_number_of_times(error: Exception) -> None:
    outcomes = [decide(error, attempts=n, attempts_max=3, backoff_s=1.0) for n in (1, 2, 3, 4)]
    assert [type(each) for each in outcomes] == [Retry, Retry, Bury, Bury]
    assert all(each.counts for each in outcomes if isinstance(each, Retry))


@pytest.mark.parametrize("error", [LedgerUnavailable("x"), *map(store_error, WAITING)], ids=repr)
def test_an_outage_is_waited_for_without_end_and_without_counting(error: Exception) -> None:
    decision = decide(error, attempts=10**6, attempts_max=1, backoff_s=1.0)
    assert isinstance(decision, Retry)
    assert not decision.counts


@pytest.mark.parametrize("name", ["StoreRefused"])
def test_what_will_never_pass_is_given_up_at_once(name: str) -> None:
    assert decide(store_error(name), attempts=1, attempts_max=99, backoff_s=0.0) == Bury()


@pytest.mark.parametrize("name", ["SourceChanged", "TargetChanged"])
def test_what_changed_meanwhile_is_looked_at_anew_at_once_and_uncounted_but_only_once(name: str) -> None:
    error = store_error(name)
    first = decide(error, attempts=1, attempts_max=1, backoff_s=0.0)
    assert isinstance(first, Retry)
    assert (first.after_s, first.counts) == (0.0, False)
    second = decide(error, attempts=1, attempts_max=9, backoff_s=first.backoff_s)
    assert isinstance(second, Retry)
    assert second.counts
    assert FIRST_DELAY_S / 2 <= second.after_s <= FIRST_DELAY_S
    assert decide(error, attempts=1, attempts_max=1, backoff_s=first.backoff_s) == Bury()


@pytest.mark.parametrize(("share", "part"), [(0.0, 0.5), (0.5, 0.75), (1.0, 1.0)])
def test_a_delay_lies_between_half_of_what_it_grew_to_and_all_of_it(share: float, part: float) -> None:
    for backoff_s, grown_s in ((0.0, FIRST_DELAY_S), (50.0, 100.0)):
        decision = decide(
            store_error("StoreFailed"), attempts=1, attempts_max=9, backoff_s=backoff_s, random_share=share
        )
        assert decision == Retry(after_s=grown_s * part, backoff_s=grown_s, counts=True)
