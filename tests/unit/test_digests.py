"""The digest of a whole that is read in parts, side by side."""

from __future__ import annotations

import hashlib
from concurrent.futures import ThreadPoolExecutor

from hypothesis import given
from hypothesis import strategies as st

from webhook.digests import WholeDigest

BOUND_S = 10.0


@given(st.permutations(range(1, 7)), st.lists(st.binary(max_size=5), min_size=6, max_size=6))
def test_the_whole_digest_is_that_of_the_parts_in_order(order: list[int], bodies: list[bytes]) -> None:
    whole = WholeDigest()
    with ThreadPoolExecutor(6) as threads:
        for future in [threads.submit(whole.add, each, bytearray(bodies[each - 1])) for each in order]:
            future.result(BOUND_S)
    assert whole.hexdigest() == hashlib.md5(b"".join(bodies), usedforsecurity=False).hexdigest()


def test_giving_up_lets_waiting_parts_go() -> None:
    whole = WholeDigest()
    with ThreadPoolExecutor(2) as threads:
        futures = [threads.submit(whole.add, number, bytearray(b"x")) for number in (2, 3)]
        whole.give_up()
        for future in futures:
            future.result(BOUND_S)
    whole.add(5, bytearray(b"x"))
