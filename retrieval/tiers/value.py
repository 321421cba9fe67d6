"""What an answer is worth keeping, as one number that only changes when the answer is used.

Worth is halved for every half-life without use and divided by the bytes that it takes:

    value(now) = worth * 2 ** -((now - last_used) / HALF_LIFE) / bytes

Its logarithm is `rank - now / HALF_LIFE` with a rank that time does not change, so that answers may
lie sorted by rank, in memory, in SQLite and in Redis alike: the lowest is the least valuable.
"""

from __future__ import annotations

import math

HALF_LIFE_S = 6 * 3600.0


def rank_of(*, uses: int, accepted_tokens: int, num_bytes: int, used_s: float) -> float:
    """Return the rank of an answer last used at `used_s`, in seconds since the epoch."""
    worth = 1.0 + max(0, uses) + max(0, accepted_tokens)
    return math.log2(worth / max(1, num_bytes)) + used_s / HALF_LIFE_S


def add_worth(rank: float, worth: float, now_s: float) -> float:
    """Return the rank of a namespace once more has been put into it or earned by it.

    Args:
        rank: What it was; `-math.inf` for a new namespace.
        worth: Positive: 1 for an answer or a use, and the tokens that were accepted.
        now_s: Seconds since the epoch.
    """
    now = now_s / HALF_LIFE_S
    return math.log2(2.0 ** min(1000.0, rank - now) + worth) + now
