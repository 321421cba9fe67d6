"""What a step costs, measured while serving: the time of steps with drafts against those without.

Times are kept for like batch sizes together, a factor of two wide, and within them in bins of
drafted tokens, a factor of sqrt(2) wide. What a step with d drafted tokens costs is read off the
medians of the bins' latest steps after they were made non-decreasing: other work on the machine
makes single steps several times as long. Steps that prefill are not to be taken in: a prompt's
token needs no verification, and costs far less.
"""

import math

import numpy as np
import numpy.typing as npt

PRIOR_COST = 0.02
BATCH_BINS = 12
DRAFT_BINS = 28  # the first is that of steps without drafts
LATEST = 15
FEWEST = 3  # steps in a bin, below which it says nothing
ENOUGH_STEPS = 8
REST_EVERY = 256

Floats = npt.NDArray[np.float64]


class CostModel:
    """Step time as a function of drafted tokens, for each size of batch."""

    def __init__(self) -> None:
        shape = (BATCH_BINS, DRAFT_BINS)
        self._latest = np.zeros((*shape, LATEST))
        self._counts = np.zeros(shape, np.int64)
        self._drafted = np.zeros(shape)
        self._seconds = np.zeros(shape)
        self._since_rest = np.zeros(BATCH_BINS, np.int64)

    def observe_step(self, batch: int, drafted: int, seconds: float) -> None:
        """Take in a step that decoded for `batch` requests and verified `drafted` tokens in all;
        `seconds` includes what the drafter took."""
        if batch < 1 or drafted < 0 or not 0.0 < seconds < 60.0:
            return
        at = _batch_bin(batch), _draft_bin(drafted)
        self._since_rest[at[0]] = self._since_rest[at[0]] + 1 if drafted else 0
        self._latest[at][self._counts[at] % LATEST] = seconds
        self._counts[at] += 1
        count = min(int(self._counts[at]), LATEST)
        self._seconds[at] = sorted(self._latest[at][:count].tolist())[count // 2]
        self._drafted[at] += (drafted - self._drafted[at]) / count

    def wants_rest(self, batch: int) -> bool:
        """Whether a step without drafts is due, to know what drafts are to be compared with."""
        at = _batch_bin(batch)
        if self._counts[at, 0] < FEWEST:
            return bool(self._counts[at].sum() >= ENOUGH_STEPS)
        return bool(self._since_rest[at] >= REST_EVERY)

    def rest_s(self, batch: int) -> float | None:
        """Seconds of a step without drafts for `batch` requests; None if none was seen yet."""
        at = self._best_known(batch)
        return None if at is None else float(self._seconds[at, 0])

    def curve(self, batch: int, most: int) -> Floats:
        """Relative cost [most + 1] of a step that verifies 0..most drafted tokens in all for
        `batch` requests: 1.0 without drafts. PRIOR_COST per token and request where steps with or
        without drafts were not seen yet.
        """
        counts = np.arange(most + 1, dtype=np.float64)
        at = self._best_known(batch)
        if at is None:
            return 1.0 + PRIOR_COST * counts / batch
        rest = float(self._seconds[at, 0])
        seen = np.flatnonzero(self._counts[at, 1:] >= FEWEST) + 1
        weights = np.minimum(self._counts[at, seen], LATEST).astype(np.float64)
        drafted = self._drafted[at, seen]
        seconds = np.maximum(rest, non_decreasing(self._seconds[at, seen], weights))
        if len(seen) == 1:
            drafted, seconds = np.append(0.0, drafted), np.append(rest, seconds)
        slope = (seconds[-1] - seconds[0]) / (drafted[-1] - drafted[0])
        times = np.interp(counts, drafted, seconds)
        times += slope * np.maximum(0.0, counts - drafted[-1])
        times -= slope * np.maximum(0.0, drafted[0] - counts)
        relative: Floats = np.maximum(1.0, times / rest)
        relative[0] = 1.0
        return relative

    def _best_known(self, batch: int) -> int | None:
        """The batch bin nearest to `batch` that has seen steps with drafts and without."""
        enough = self._counts >= FEWEST
        known = enough[:, 0] & enough[:, 1:].any(axis=1)
        bins = np.flatnonzero(known)
        return int(bins[np.argmin(np.abs(bins - _batch_bin(batch)))]) if len(bins) else None


def _batch_bin(batch: int) -> int:
    return min(BATCH_BINS - 1, round(math.log2(batch)))


def _draft_bin(drafted: int) -> int:
    return min(DRAFT_BINS - 1, 1 + round(2.0 * math.log2(drafted))) if drafted else 0


def non_decreasing(values: Floats, weights: Floats) -> Floats:
    """The non-decreasing sequence [n] nearest to `values` [n] in weighted least squares."""
    blocks: list[tuple[float, float, int]] = []
    for value, weight in zip(values.tolist(), weights.tolist(), strict=True):
        size = 1
        while blocks and blocks[-1][0] >= value:
            before, its_weight, its_size = blocks.pop()
            value = (before * its_weight + value * weight) / (its_weight + weight)
            weight, size = weight + its_weight, size + its_size
        blocks.append((value, weight, size))
    return np.repeat([block[0] for block in blocks], [block[2] for block in blocks])
