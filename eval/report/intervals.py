"""How sure a median is."""

from __future__ import annotations

import math
from collections.abc import Sequence

_SURE = 0.95


def median_interval(values: Sequence[float]) -> tuple[float, float] | None:
    """Return between which of the values the median of their distribution lies, with a
    probability of at least 0.95, whatever the distribution is; None: they are too few.

    The n-th smallest of independent values is below the median as often as n coins show heads.
    """
    ordered, count = sorted(values), len(values)
    outside = 0.0
    found = None
    for rank in range(count // 2):
        outside += math.comb(count, rank) / 2.0**count
        if 1.0 - 2.0 * outside < _SURE:
            break
        found = (ordered[rank], ordered[count - 1 - rank])
    return found
