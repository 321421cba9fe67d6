# mypy: allow-untyped-calls
"""What a step costs, measured while serving: the times of steps with drafts against those without.

On a busy machine a step's time says little by itself: the same work takes half as long again in the
next minute, and some steps are held up while others are not. So steps are compared with those just
before them, whatever these verified, and what drafts cost is fitted to all such pairs together, for
like batch sizes, a factor of two wide (`step_times.py`). As long as it is not known well what any
draft costs at once, the least that is likely is believed, for drafts show what they cost, and steps
without them do not; and one step in a few goes without, to have something to compare with.

The first step with so many tokens in all may pay for what is made once for this number, such as
compiled kernels: half a step or more with a small model. That is estimated apart, so that drafts
keep to numbers that were there before.

How many tokens may be tried is bounded by how many were (`reach`): what a device does with eight
says nothing of three hundred. Steps that prefill are not to be taken in: a prompt's token needs no
verification, and costs far less.
"""

import math

import numpy as np
import numpy.typing as npt

from reprise.spec.lengths.step_times import (
    ANY_SD,
    FIRST,
    LATEST,
    LATEST_PAIRS,
    PRIOR_COST,
    baseline_seconds,
    cost_curve,
    fit,
    min_deviation,
    pair_up_all,
    start_costs,
)

BATCH_BINS = 12
FIRST_STEPS = 4  # of a like batch, before the first is without drafts
UNSURE = 0.05  # standard deviation of what drafts cost, where it is known best, in steps
BASELINE_SOON_STEPS = 8  # steps between those without drafts, as long as it is unsure
BASELINE_EVERY_STEPS = 128
FIRST_REACH = 16
REACH = 2
RECENT = 1024  # steps after which a pair is forgotten
FIRST_FITS = 64  # steps with a fit after each
FIT_EVERY = 8  # steps after those
MANY_STEPS = 512
FIT_SELDOM = 32  # steps, once there were many

Floats = npt.NDArray[np.float64]


class CostModel:
    """Step time as a function of drafted tokens, for each size of batch.

    Args:
        token_cost: of each drafted token of a batch, whatever its size, in steps, where nothing is
            known and that is more than `PRIOR_COST` for one of each request: devices that compute
            much at once have as many tokens for nearly nothing, and no more.
    """

    def __init__(self, *, token_cost: float = 0.0) -> None:
        self._token_cost = token_cost
        self._batches: dict[int, _LikeSteps] = {}
        self._nearest: dict[int, _LikeSteps | None] = {}
        self._is_new = np.ones(1024, np.bool_)
        self._steps = 0
        self.first_extra = 0.0
        """What the first step with so many tokens in all costs more, in steps without drafts."""

    def observe_step(self, batch: int, drafted: int, seconds: float) -> None:
        """Record a step of so many seconds that decoded for `batch` requests and verified
        `drafted` tokens in all."""
        if batch < 1 or drafted < 0 or not 0.0 < seconds < 60.0:
            return
        self._steps += 1
        like = self._batches.get(batch_bin(batch))
        if like is None:
            like = self._batches[batch_bin(batch)] = _LikeSteps(batch, self._token_cost)
        self._make_room(batch + drafted)
        is_first = bool(self._is_new[batch + drafted])
        self._is_new[batch + drafted] = False
        was_known = like.is_known()
        like.observe(self._steps, drafted, is_first, seconds)
        if not was_known and like.is_known():
            self._nearest.clear()
        self.first_extra = like.first_extra

    def is_new(self, batch: int, max_tokens: int) -> npt.NDArray[np.bool_]:
        """Return whether a step would be the first of its kind, [max_tokens + 1]: none was seen
        that verified 0..max_tokens drafted tokens for `batch` requests, nor one of other requests
        with as many tokens in all."""
        self._make_room(batch + max_tokens)
        return self._is_new[batch : batch + max_tokens + 1]

    def note_ready(self, num_tokens: int) -> None:
        """Record that the first step with up to so many tokens in all costs what others do."""
        self._make_room(num_tokens)
        self._is_new[: num_tokens + 1] = False

    def _make_room(self, num_tokens: int) -> None:
        """For steps of up to so many tokens in all."""
        while num_tokens >= len(self._is_new):
            self._is_new = np.append(self._is_new, np.ones_like(self._is_new))

    def needs_baseline_step(self, batch: int) -> bool:
        """Whether a step without drafts is due, to know what drafts are to be compared with."""
        like = self._batches.get(batch_bin(batch))
        return like is not None and like.needs_baseline_step()

    def is_unsure(self, batch: int) -> bool:
        """Whether it is not known well what any draft costs at once."""
        like = self._best_known(batch)
        return like is None or like.is_unsure()

    def reach(self, batch: int) -> int:
        """Most tokens that a step of `batch` requests is to verify in all: a token each, or a few,
        where nothing is known, and then twice as many as were seen."""
        like = self._best_known(batch)
        return max(FIRST_REACH, batch, REACH * (0 if like is None else like.max_drafted))

    def baseline_step_s(self, batch: int) -> float | None:
        """Seconds of a step without drafts for `batch` requests; None if none was seen yet."""
        like = self._best_known(batch)
        return None if like is None else like.baseline_step_s

    def curve(self, batch: int, max_tokens: int) -> Floats:
        """Return the relative cost [max_tokens + 1] of a step that verifies 0..max_tokens drafted
        tokens in all for `batch` requests: 1.0 without drafts. PRIOR_COST per token and request
        where steps with or without drafts were not seen yet.
        """
        like = self._best_known(batch)
        if like is None:
            cost = max(PRIOR_COST / batch, self._token_cost)
            return 1.0 + cost * np.arange(max_tokens + 1, dtype=np.float64)
        return like.curve(max_tokens)

    def _best_known(self, batch: int) -> "_LikeSteps | None":
        """The steps of the batch size nearest to `batch` of which something is known."""
        wanted = batch_bin(batch)
        if wanted not in self._nearest:
            known = [b for b, like in self._batches.items() if like.is_known()]
            nearest = min(known, key=lambda b: (abs(b - wanted), b), default=None)
            self._nearest[wanted] = None if nearest is None else self._batches[nearest]
        return self._nearest[wanted]


class _LikeSteps:
    """Steps of like batch sizes: what they take, and what drafts cost."""

    def __init__(self, batch: int, token_cost: float) -> None:
        self.max_drafted = 0
        self.baseline_step_s = 0.0
        self.first_extra = 0.0
        self._start, self._spread = start_costs(batch, token_cost)
        self._costs = self._start.copy()
        self._deviation = ANY_SD
        self._latest = np.zeros((LATEST, 4))
        # Kinds apart, so that many without rests do not drive out few with one.
        self._pairs = np.zeros((3, LATEST_PAIRS, 8))
        self._counts = np.zeros(4, np.int64)
        self._unpaired: list[tuple[float, float, float, float]] = []
        self._curve: Floats | None = None
        self._steps = 0
        self._last_baseline = 0

    def observe(self, number: int, drafted: int, is_first: bool, seconds: float) -> None:
        self._steps += 1
        self._unpaired.append((number, drafted, is_first, math.log(seconds)))
        if drafted > self.max_drafted:
            self.max_drafted, self._curve = drafted, None
        if drafted == 0:
            self._last_baseline = self._steps
        every = FIT_EVERY if self._steps < MANY_STEPS else FIT_SELDOM
        if self._steps < FIRST_FITS or self._steps % every == 0:
            self._fit(number - RECENT)

    def needs_baseline_step(self) -> bool:
        since = self._steps - self._last_baseline
        if self._last_baseline == 0:
            return since >= FIRST_STEPS
        return since >= BASELINE_EVERY_STEPS or (since >= BASELINE_SOON_STEPS and self.is_unsure())

    def is_known(self) -> bool:
        return self._last_baseline > 0 and self.max_drafted > 0

    def is_unsure(self) -> bool:
        return self._deviation > UNSURE

    def curve(self, max_tokens: int) -> Floats:
        """Not to be written to."""
        if self._curve is None or len(self._curve) != max_tokens + 1:
            self._curve = cost_curve(self._costs, max_tokens, self.max_drafted, self._deviation)
        return self._curve

    def _fit(self, since: int) -> None:
        pair_up_all(self._latest, self._pairs, self._counts, np.array(self._unpaired, np.float64))
        self._unpaired.clear()
        covariance = fit(self._costs, self._start, self._spread, self._pairs, self._counts, since)
        self._deviation = min_deviation(covariance, max(1, self.max_drafted))
        self.baseline_step_s = baseline_seconds(self._latest, self._steps, self._costs)
        self.first_extra = max(0.0, float(self._costs[FIRST]))
        self._curve = None


def batch_bin(batch: int) -> int:
    """Return the number of the batch sizes that are like this one."""
    return min(BATCH_BINS - 1, round(math.log2(batch)))
