"""A latency histogram that costs a binary search to feed and a few hundred bytes to keep."""

from bisect import bisect_left
from collections.abc import Mapping
from typing import Any

# Upper bounds in microseconds, each a quarter octave above the last: 1 µs to 16.8 s.
BOUNDS_US = tuple(2 ** (quarter / 4) for quarter in range(97))


class LatencyHistogram:
    """Counts of latencies in quarter-octave buckets: quantiles within 19%."""

    def __init__(self) -> None:
        self._counts = [0] * (len(BOUNDS_US) + 1)
        self._total_us = 0.0

    def observe(self, latency_us: float) -> None:
        """Add one latency, in microseconds."""
        self._counts[bisect_left(BOUNDS_US, latency_us)] += 1
        self._total_us += latency_us

    def quantile(self, q: float) -> float:
        """Return the bucket bound, in microseconds, below which a share `q` lies."""
        remaining = q * sum(self._counts)
        for bound, count in zip(BOUNDS_US, self._counts, strict=False):
            remaining -= count
            if remaining <= 0:
                return bound
        return BOUNDS_US[-1]

    def summary(self) -> dict[str, Any]:
        """`count`, `sum`, `p50` and `p99`, times in microseconds, and `buckets`: the counts."""
        count = sum(self._counts)
        return {
            "count": count,
            "sum": self._total_us,
            "p50": self.quantile(0.5) if count else 0.0,
            "p99": self.quantile(0.99) if count else 0.0,
            "buckets": list(self._counts),
        }


def summary_between(before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, Any]:
    """Return the summary of what a histogram was fed between two summaries of it.

    Example:
        >>> histogram = LatencyHistogram()
        >>> histogram.observe(1000.0)
        >>> before = histogram.summary()
        >>> histogram.observe(4.0)
        >>> summary_between(before, histogram.summary())["p99"]
        4.0
    """
    between = LatencyHistogram()
    pairs = zip(after["buckets"], before["buckets"], strict=True)
    between._counts = [count - earlier for count, earlier in pairs]
    between._total_us = after["sum"] - before["sum"]
    return between.summary()
