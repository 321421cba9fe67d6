"""What a step costs, measured while serving: time against scheduled tokens.

The curve is kept as running means over bins of scheduled tokens, each a factor of sqrt(2) wide,
made non-decreasing, and straight between the bins' means. Old steps fade.
"""

import math

import numpy as np
import numpy.typing as npt

FADE = 0.97
PRIOR_COST = 0.02
MOST_BINS = 48
OUTLIER = 3.0


class CostModel:
    """Step time as a function of scheduled tokens."""

    def __init__(self) -> None:
        self._weights = np.zeros(MOST_BINS)
        self._tokens = np.zeros(MOST_BINS)
        self._seconds = np.zeros(MOST_BINS)
        self.draft_seconds = 0.0
        """Running mean of the drafter's own seconds per predicted token."""

    def observe_step(self, num_scheduled_tokens: int, seconds: float) -> None:
        """Take in one step; one that took far longer than its like counts as an outlier, cut."""
        if num_scheduled_tokens < 1 or not 0.0 < seconds < 60.0:
            return
        at = min(MOST_BINS - 1, round(2.0 * math.log2(num_scheduled_tokens)))
        weight = self._weights[at]
        if weight > 3.0:
            seconds = min(seconds, OUTLIER * self._seconds[at])
        self._weights[at] = FADE * weight + 1.0
        share = 1.0 / self._weights[at]
        self._tokens[at] += share * (num_scheduled_tokens - self._tokens[at])
        self._seconds[at] += share * (seconds - self._seconds[at])

    def observe_drafting(self, num_predicted: int, seconds: float) -> None:
        """Take in how long the drafter itself took."""
        if num_predicted > 0:
            each = seconds / num_predicted
            share = 0.05 if self.draft_seconds else 1.0
            self.draft_seconds += share * (min(each, 1e-3) - self.draft_seconds)

    def known(self) -> bool:
        """Whether any step was seen."""
        return bool(self._weights.any())

    def curve(self, batch: int, most: int) -> npt.NDArray[np.float64]:
        """Relative cost [most + 1] of a step that verifies 0..most drafted tokens for `batch`
        requests: 1.0 without drafts. Before two sizes were seen, PRIOR_COST per token and request.
        """
        counts = np.arange(most + 1, dtype=np.float64)
        near = (self._weights > 0.0) & (self._tokens <= 4.0 * (batch + most))
        tokens, seconds = self._tokens[near], np.maximum.accumulate(self._seconds[near])
        if len(tokens) < 2 or tokens[-1] < 1.25 * tokens[0]:
            return 1.0 + PRIOR_COST * counts / batch
        wanted = batch + counts
        times = np.interp(wanted, tokens, seconds)
        slope = (seconds[-1] - seconds[0]) / (tokens[-1] - tokens[0])
        times += slope * np.maximum(0.0, wanted - tokens[-1])
        times = np.maximum(times - slope * np.maximum(0.0, tokens[0] - wanted), 0.2 * times)
        relative: npt.NDArray[np.float64] = times / times[0]
        if self.draft_seconds:
            relative = relative + counts * self.draft_seconds / times[0]
        return relative
