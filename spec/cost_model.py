"""What a step costs, measured while serving: the time of steps with drafts against those without.

Times are kept for like batch sizes together, a factor of two wide, and within them in bins of
drafted tokens, a factor of sqrt(2) wide. What a step with d drafted tokens costs is read off the
bins' latest steps after they were made non-decreasing. Other work on the machine makes single steps
several times as long, and not those with many drafts more than others: so each bin speaks by a low
quantile of its steps, and old steps are forgotten, else a few unlucky ones would forbid long drafts
for ever. A bin of few steps is drawn to what all steps together say of a token. How many tokens may
be tried is bounded by how many were (`reach`): what a device does with eight says nothing of three
hundred. Steps that prefill are not to be taken in: a prompt's token needs no verification, and
costs far less.
"""

import math

import numpy as np
import numpy.typing as npt

PRIOR_COST = 0.02
BATCH_BINS = 12
DRAFT_BINS = 28  # the first is that of steps without drafts
LATEST = 15
FEWEST_RESTS = 3  # steps without drafts, below which nothing is known
FIRST_STEPS = 4  # of a like batch, before the first is without drafts
PRIOR_STEPS = 2.0  # as many steps of a bin lie on the line through all of them
QUANTILE = 3  # a third of a bin's steps are quicker than what it says
NEWS = 4  # steps of a bin from which on another one says little that is new
FIRST_REACH = 16
REACH = 2
RECENT = 1024  # steps of a like batch after which a step is forgotten
REST_EVERY = 128

Floats = npt.NDArray[np.float64]


class CostModel:
    """Step time as a function of drafted tokens, for each size of batch."""

    def __init__(self) -> None:
        shape = (BATCH_BINS, DRAFT_BINS)
        self._seconds = np.zeros((*shape, LATEST))
        self._drafted = np.zeros((*shape, LATEST))
        self._when = np.full((*shape, LATEST), -RECENT, np.int64)
        self._next = np.zeros(shape, np.int64)
        self._steps = np.zeros(BATCH_BINS, np.int64)
        self._since_rest = np.zeros(BATCH_BINS, np.int64)
        self.has_news = False
        """Whether the latest step was one of the first of its bins."""

    def observe_step(self, batch: int, drafted: int, seconds: float) -> None:
        """Take in a step that decoded for `batch` requests and verified `drafted` tokens in all;
        `seconds` includes what the drafter took."""
        if batch < 1 or drafted < 0 or not 0.0 < seconds < 60.0:
            return
        b, d = _batch_bin(batch), _draft_bin(drafted)
        at = b, d, int(self._next[b, d])
        earlier = self._when[b, d, at[2] - NEWS]
        self.has_news = bool(earlier <= self._steps[b] - RECENT)
        self._seconds[at], self._drafted[at], self._when[at] = seconds, drafted, self._steps[b]
        self._next[b, d] = (at[2] + 1) % LATEST
        self._steps[b] += 1
        self._since_rest[b] = self._since_rest[b] + 1 if drafted else 0

    def wants_rest(self, batch: int) -> bool:
        """Whether a step without drafts is due, to know what drafts are to be compared with."""
        b = _batch_bin(batch)
        if self._since_rest[b] >= REST_EVERY:
            return True
        if int(self._steps[b]) < FIRST_STEPS:
            return False
        # Asked before every step: rests alone are counted, not all bins.
        return int(np.count_nonzero(self._recent(b)[0])) < FEWEST_RESTS

    def reach(self, batch: int) -> int:
        """Most tokens that a step of `batch` requests is to verify in all: a token each, or a few,
        where nothing is known, and then twice as many as were seen."""
        b = self._best_known(batch)
        seen = 0 if b is None else int(self._drafted[b][self._recent(b)].max())
        return max(FIRST_REACH, batch, REACH * seen)

    def rest_s(self, batch: int) -> float | None:
        """Seconds of a step without drafts for `batch` requests; None if none was seen yet."""
        b = self._best_known(batch)
        return None if b is None else self._quick(b, 0)

    def curve(self, batch: int, most: int) -> Floats:
        """Relative cost [most + 1] of a step that verifies 0..most drafted tokens in all for
        `batch` requests: 1.0 without drafts. PRIOR_COST per token and request where steps with or
        without drafts were not seen yet.
        """
        counts = np.arange(most + 1, dtype=np.float64)
        b = self._best_known(batch)
        if b is None:
            return 1.0 + PRIOR_COST * counts / batch
        held = self._recent(b).sum(axis=1)
        seen = np.flatnonzero(held[1:]) + 1
        drafted = np.array([self._drafted[b, d][self._recent(b)[d]].mean() for d in seen])
        rest = self._quick(b, 0)
        extra = np.array([max(0.0, self._quick(b, int(d)) / rest - 1.0) for d in seen])
        steps = held[seen].astype(np.float64)
        prior = PRIOR_STEPS * PRIOR_COST + float(steps @ extra)
        line = drafted * prior / (PRIOR_STEPS * batch + float(steps @ drafted))
        extra = non_decreasing(
            (PRIOR_STEPS * line + steps * extra) / (PRIOR_STEPS + steps), PRIOR_STEPS + steps
        )
        if len(seen) == 1:
            drafted, extra = np.append(0.0, drafted), np.append(0.0, extra)
        slope = max(PRIOR_COST / batch, float((extra[-1] - extra[0]) / (drafted[-1] - drafted[0])))
        relative: Floats = np.interp(counts, drafted, extra)
        relative += slope * np.maximum(0.0, counts - drafted[-1])
        relative -= slope * np.maximum(0.0, drafted[0] - counts)
        relative = 1.0 + np.maximum(0.0, relative)
        relative[0] = 1.0
        return relative

    def _recent(self, b: int) -> npt.NDArray[np.bool_]:
        """Which of a batch bin's steps [DRAFT_BINS, LATEST] still count."""
        recent: npt.NDArray[np.bool_] = self._when[b] > self._steps[b] - RECENT
        return recent

    def _quick(self, b: int, d: int) -> float:
        """What a step of these bins takes when nothing else holds it up."""
        seconds = sorted(self._seconds[b, d][self._recent(b)[d]].tolist())
        return float(seconds[(len(seconds) - 1) // QUANTILE])

    def _best_known(self, batch: int) -> int | None:
        """The batch bin nearest to `batch` that has seen steps with drafts and without."""
        held = (self._when > (self._steps - RECENT)[:, None, None]).sum(axis=2)
        known = (held[:, 0] >= FEWEST_RESTS) & held[:, 1:].any(axis=1)
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
