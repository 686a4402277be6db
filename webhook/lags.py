"""How long things took, in few numbers: counts in buckets that grow by a fifth each.

A percentile told from them is at most a fifth too high, and never too low.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

FIRST_S = 0.001
"""What is shorter is in the first bucket."""
GROWTH = 1.2
BUCKETS = 120
"""The last one holds what is longer than some 26 days."""
_LOG_GROWTH = math.log(GROWTH)


def bucket_of(lag_s: float) -> int:
    """The bucket of a time: the first whose upper end is not below it."""
    if lag_s <= FIRST_S:
        return 0
    return min(BUCKETS - 1, math.ceil(math.log(lag_s / FIRST_S) / _LOG_GROWTH - 1e-9))


def upper_s(bucket: int) -> float:
    """The upper end of a bucket."""
    return float(FIRST_S * GROWTH**bucket)


def percentile_s(counts: Mapping[int, int], share: float) -> float | None:
    """The time that this share (0 to 1) of all did not exceed; None where there are none."""
    wanted = math.ceil(sum(counts.values()) * share)
    seen = 0
    for bucket in sorted(counts):
        seen += counts[bucket]
        if seen >= max(1, wanted):
            return upper_s(bucket)
    return None
