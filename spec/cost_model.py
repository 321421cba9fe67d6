"""What a step costs, measured while serving: the time of steps with drafts against those without.

On a busy machine a step's time says little by itself: the same work takes half as long again in the
next minute, and for some steps whenever a request arrives or ends, which is when drafting begins.
So a step with drafts is compared with steps without that came just before or after it, and what is
kept is the ratio. Ratios are kept for like batch sizes together, a factor of two wide, and within
them in bins of drafted tokens, a factor of sqrt(2) wide. Each bin speaks by the median of its
latest ones, drawn to a line through all bins, the more so the more ratios of a bin differ; and a
step with more tokens is never taken to cost less. Where all steps have drafts, one in many goes
without, to have something to compare with.

The first step with so many tokens in all may pay for what is made once for this number, such as
compiled kernels: half a step or more with a small model. It does not count for the others, and what
such steps cost beyond them is known as well, so that drafts keep to numbers that were there before.

How many tokens may be tried is bounded by how many were (`reach`): what a device does with eight
says nothing of three hundred. Steps that prefill are not to be taken in: a prompt's token needs no
verification, and costs far less.
"""

import math
from collections import deque
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

PRIOR_COST = 0.02
BATCH_BINS = 12
DRAFT_BINS = 28
LATEST = 15
NEAR = 4  # steps of a like batch between two that are compared
FEWEST_RESTS = 3  # steps without drafts, below which nothing is known
FIRST_STEPS = 4  # of a like batch, before the first is without drafts
PRIOR_STEPS = 3.0  # as many steps of a bin lie on the line through all of them, at least
TRUSTED_SPREAD = 0.03  # of a bin's ratios; twice that, and four times as many lie on the line
NEWS = 4  # steps of a bin from which on another one says little that is new
FIRST_REACH = 16
REACH = 2
RECENT = 1024  # steps of a like batch after which a step is forgotten
REST_EVERY = 128
FEWEST_FIRSTS = 3  # first steps of a number of tokens, below which they cost what others do

Floats = npt.NDArray[np.float64]


class CostModel:
    """Step time as a function of drafted tokens, for each size of batch."""

    def __init__(self) -> None:
        self._batches = [_LikeSteps() for _ in range(BATCH_BINS)]
        self._is_new = np.ones(1024, np.bool_)
        self._firsts: deque[float] = deque(maxlen=LATEST)
        self.has_news = False
        """Whether the latest step told of a cost of which little was known."""
        self.first_extra = 0.0
        """What the first step with so many tokens in all costs more, in steps without drafts."""

    def observe_step(self, batch: int, drafted: int, seconds: float) -> None:
        """Take in a step of so many seconds that decoded for `batch` requests and verified
        `drafted` tokens in all."""
        self.has_news = False
        if batch < 1 or drafted < 0 or not 0.0 < seconds < 60.0:
            return
        if self.is_new(batch, drafted)[-1]:
            self._is_new[batch + drafted] = False
            self._observe_first(batch, drafted, seconds)
            return
        self.has_news = self._batches[_batch_bin(batch)].observe(drafted, seconds)

    def is_new(self, batch: int, most: int) -> npt.NDArray[np.bool_]:
        """Whether no step was seen yet [most + 1] that verified 0..most drafted tokens for `batch`
        requests, or as many tokens in all for more or fewer."""
        while batch + most >= len(self._is_new):
            self._is_new = np.append(self._is_new, np.ones_like(self._is_new))
        return self._is_new[batch : batch + most + 1]

    def wants_rest(self, batch: int) -> bool:
        """Whether a step without drafts is due, to know what drafts are to be compared with."""
        return self._batches[_batch_bin(batch)].wants_rest()

    def reach(self, batch: int) -> int:
        """Most tokens that a step of `batch` requests is to verify in all: a token each, or a few,
        where nothing is known, and then twice as many as were seen."""
        known = self._best_known(batch)
        seen = 0 if known is None else known.most_drafted()
        return max(FIRST_REACH, batch, REACH * seen)

    def rest_s(self, batch: int) -> float | None:
        """Seconds of a step without drafts for `batch` requests; None if none was seen yet."""
        known = self._best_known(batch)
        return None if known is None else known.rest_s()

    def curve(self, batch: int, most: int) -> Floats:
        """Relative cost [most + 1] of a step that verifies 0..most drafted tokens in all for
        `batch` requests: 1.0 without drafts. PRIOR_COST per token and request where steps with or
        without drafts were not seen yet.
        """
        counts = np.arange(most + 1, dtype=np.float64)
        known = self._best_known(batch)
        if known is None:
            return 1.0 + PRIOR_COST * counts / batch
        drafted, extra, steps, spread = known.bins()
        prior_steps = PRIOR_STEPS + (spread / TRUSTED_SPREAD) ** 2
        extra, slope = _drawn_to_a_line(drafted, extra, steps, prior_steps, batch)
        relative: Floats = np.interp(counts, drafted, extra)
        relative += slope * np.maximum(0.0, counts - drafted[-1])
        relative -= slope * np.maximum(0.0, drafted[0] - counts)
        relative = 1.0 + np.maximum(0.0, relative)
        relative[0] = 1.0
        return relative

    def _observe_first(self, batch: int, drafted: int, seconds: float) -> None:
        known = self._batches[_batch_bin(batch)]
        if known.is_known():
            extra = seconds / known.rest_s() - float(self.curve(batch, drafted)[-1])
            self._firsts.append(extra)
            if len(self._firsts) >= FEWEST_FIRSTS:
                self.first_extra = max(0.0, _lower_median(list(self._firsts)))

    def _best_known(self, batch: int) -> "_LikeSteps | None":
        """The steps of the batch size nearest to `batch` of which something is known."""
        wanted = _batch_bin(batch)
        for b in sorted(range(BATCH_BINS), key=lambda b: abs(b - wanted)):
            if self._batches[b].is_known():
                return self._batches[b]
        return None


class _Ratio(NamedTuple):
    """A step with drafts, compared."""

    step: int
    drafted: int
    ratio: float


class _LikeSteps:
    """Steps of like batch sizes, those with drafts as ratios to those without beside them."""

    def __init__(self) -> None:
        self._bins = [deque[_Ratio](maxlen=LATEST) for _ in range(DRAFT_BINS)]
        self._rests: deque[tuple[int, float]] = deque(maxlen=LATEST)
        self._waiting: deque[tuple[int, int, float]] = deque(maxlen=NEAR)
        self._steps = 0
        self._last_rest = 0
        self._last_ratio = -RECENT

    def observe(self, drafted: int, seconds: float) -> bool:
        """Take in a step; whether it told something new."""
        self._steps += 1
        has_news = False
        if drafted:
            beside = [s for when, s in self._rests if when >= self._steps - NEAR]
            if beside:
                return self._compare(drafted, seconds / _lower_median(beside))
            self._waiting.append((self._steps, drafted, seconds))
            return False
        self._rests.append((self._steps, seconds))
        self._last_rest = self._steps
        while self._waiting:
            when, earlier, its_seconds = self._waiting.popleft()
            if when >= self._steps - NEAR:
                has_news |= self._compare(earlier, its_seconds / seconds)
        return has_news

    def wants_rest(self) -> bool:
        if self._steps - self._last_rest >= REST_EVERY:
            return True
        return self._steps >= FIRST_STEPS and not self._has_rests()

    def is_known(self) -> bool:
        return self._last_ratio > self._steps - RECENT and self._has_rests()

    def most_drafted(self) -> int:
        return max(ratio.drafted for ratios in self._recent() for ratio in ratios)

    def rest_s(self) -> float:
        return _lower_median([seconds for _, seconds in self._rests])

    def bins(self) -> tuple[Floats, Floats, Floats, float]:
        """Of each bin that saw steps: mean drafted tokens, what they cost beyond a step without,
        and how many steps those were; and how far from its bin's median a ratio is in the middle.
        """
        drafted: list[float] = []
        extra: list[float] = []
        steps: list[float] = []
        off: list[float] = []
        for ratios in self._recent():
            middle = _lower_median([ratio.ratio for ratio in ratios])
            drafted.append(sum(ratio.drafted for ratio in ratios) / len(ratios))
            extra.append(max(0.0, middle - 1.0))
            steps.append(float(len(ratios)))
            off.extend(abs(ratio.ratio - middle) for ratio in ratios)
        return np.array(drafted), np.array(extra), np.array(steps), _lower_median(off)

    def _compare(self, drafted: int, ratio: float) -> bool:
        ratios = self._bins[_draft_bin(drafted)]
        is_news = len(ratios) < NEWS or ratios[-NEWS].step <= self._steps - RECENT
        ratios.append(_Ratio(self._steps, drafted, ratio))
        self._last_ratio = self._steps
        return is_news

    def _recent(self) -> list[list[_Ratio]]:
        """The ratios that still count, by bin; bins without are left out."""
        since = self._steps - RECENT
        recent = ([ratio for ratio in ratios if ratio.step > since] for ratios in self._bins)
        return [ratios for ratios in recent if ratios]

    def _has_rests(self) -> bool:
        rests = self._rests
        return len(rests) >= FEWEST_RESTS and rests[-FEWEST_RESTS][0] > self._steps - RECENT


def _drawn_to_a_line(
    drafted: Floats, extra: Floats, steps: Floats, prior_steps: float, batch: int
) -> tuple[Floats, float]:
    """The bins' `extra` drawn to the line through them, as if `prior_steps` of each lay on it, and
    made non-decreasing; and the line's slope, PRIOR_COST at least. A bin weighs by the square of
    its steps, so that one of few cannot turn the line; two points of the prior's have a small part
    in it."""
    at = np.append(drafted, (0.0, batch))
    cost = np.append(extra, (0.0, PRIOR_COST))
    weight = np.append(steps**2, (1.0, 0.1))
    centre, mean = np.average(at, weights=weight), np.average(cost, weights=weight)
    slope = float(weight @ ((at - centre) * (cost - mean))) / float(weight @ (at - centre) ** 2)
    slope = max(0.0, slope)
    first = float(mean - slope * centre)
    if first < 0.0:
        slope, first = float(weight @ (at * cost)) / float(weight @ at**2), 0.0
    line = first + slope * drafted
    drawn = (prior_steps * line + steps * extra) / (prior_steps + steps)
    return non_decreasing(drawn, prior_steps + steps), max(PRIOR_COST / batch, slope)


def _lower_median(values: list[float]) -> float:
    return sorted(values)[(len(values) - 1) // 2]


def _batch_bin(batch: int) -> int:
    return min(BATCH_BINS - 1, round(math.log2(batch)))


def _draft_bin(drafted: int) -> int:
    return min(DRAFT_BINS - 1, round(2.0 * math.log2(drafted)))


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
