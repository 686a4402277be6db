"""(error, what went before) → try again after n seconds, or bury.

A decision, returned; nothing happens here.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

from webhook.errors import Advice, ReplicatorError, SourceChanged, TargetChanged

FIRST_DELAY_S = 1.0
DELAY_MAX_S = 300.0
UNAVAILABLE_DELAY_MAX_S = 60.0
"""A store that comes back is noticed within a minute."""


@dataclass(frozen=True, kw_only=True)
class Retry:
    """Try again, not before `after_s` seconds have passed."""

    after_s: float
    backoff_s: float
    """What the next delay grows from."""
    counts: bool
    """Whether this try counts towards the allowed number."""


@dataclass(frozen=True, kw_only=True)
class Bury:
    """Put the entry aside until a person, or a new event, revives it."""


def decide(
    error: Exception,
    *,
    attempts: int,
    attempts_max: int,
    backoff_s: float,
    random_share: float | None = None,
) -> Retry | Bury:
    """What to do after a failed attempt.

    `attempts` includes the one that failed, `backoff_s` is the delay chosen last time (0.0: none yet).
    Delays double, up to a limit, and are spread over [half, whole] so that entries that failed together
    do not come back together. What a store asks for in Retry-After is never undercut. `random_share`
    in [0, 1] replaces chance. What changed while it was copied is looked at anew at once, uncounted, if that
    is the first error.
    """
    if isinstance(error, SourceChanged | TargetChanged) and backoff_s == 0.0:
        return Retry(after_s=0.0, backoff_s=FIRST_DELAY_S / 2, counts=False)
    advice = error.advice if isinstance(error, ReplicatorError) else Advice.RETRY
    if advice is Advice.GIVE_UP:
        return Bury()
    counts = advice is Advice.RETRY
    if counts and attempts >= attempts_max:
        return Bury()
    longest = DELAY_MAX_S if counts else UNAVAILABLE_DELAY_MAX_S
    grown = min(longest, max(FIRST_DELAY_S, backoff_s * 2))
    share = random.random() if random_share is None else random_share
    asked_for = getattr(error, "retry_after_s", None) or 0.0
    return Retry(after_s=max(grown * (0.5 + share / 2), asked_for), backoff_s=grown, counts=counts)
