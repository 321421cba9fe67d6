# mypy: allow-untyped-calls
"""Draft length: when to draft at all, and what drafts may cost, from what steps were seen to cost.

What is measured is relative to a step without drafts; a step that is saved, however, is one as they
are: with the drafts of other requests, and with the time that looking for them takes. That time is
spent when lengths are chosen, and counts only in whether to look at all: where it does not pay, it
pauses for so many steps that what it costs stays about a fiftieth of them, or until a quarter of
the batch is new.

An engine that schedules asynchronously (`SchedulingMode`) leaves no gap between steps without
drafts, and one before and after every step with drafts. n of these in a row so cost n + 1 gaps. One
is part of what any draft is measured to cost; the other is paid when drafts begin, which therefore
takes a gain that is not small, and is past where they go on or end: half a gap is then counted, for
there is one either way.
"""

import numpy as np
import numpy.typing as npt

from reprise.spec.api.config import DraftConfig
from reprise.spec.api.scheduling_mode import SchedulingMode
from reprise.spec.lengths.baseline_turns import BaselineTurns
from reprise.spec.lengths.best_lengths import LengthCosts, easy_token_gain
from reprise.spec.lengths.cost_model import CostModel
from reprise.spec.lengths.step_times import PRIOR_COST

MIN_PROB = 0.004  # below it no token is predicted, however little drafts cost
FIRST_USES = 16  # steps that share in what the first with as many tokens costs
PROBE_EVERY_STEPS = 48
PROBE_SOON_STEPS = 16  # as long as it is unsure what any draft costs
PROBE_MIN_PROB = 0.25
MAX_PROBE_COST_STEPS = 0.5
SKIP_MIN_PROB = 2.0  # no token is as likely: nothing is drafted
# Weights of the newest value in moving averages.
GAIN_EMA_WEIGHT = 0.2
LONG_GAIN_EMA_WEIGHT = 0.02
MEAN_EMA_WEIGHT = 0.05
SEARCH_EMA_WEIGHT = 0.1
FIRST_SEARCHES = 8  # the shortest of which counts
MAX_SEARCH_RATIO = 2.0  # of a search's time to the average, as far as it counts
MAX_SEARCH_SHARE = 0.02  # of the steps' time, where searches do not pay
MAX_PAUSE_STEPS = 16  # without a search
SUNK_GAP_SHARE = 0.5
MIN_GAIN_STEPS = 0.15  # expected of drafts for which the engine is to wait
NEW_REQUESTS_DIVISOR = 4  # a pause ends when one in so many has come, or has new near answers


class DraftLength:
    """Decides how likely a token must be to be predicted, and where the batch's drafts end."""

    def __init__(self, config: DraftConfig) -> None:
        self._fixed = config.verify_cost
        self._max_draft = config.num_speculative_tokens
        self.costs = CostModel()
        self._baseline_turns = BaselineTurns()
        self._since_draft = 0
        self._curve: npt.NDArray[np.float64] = np.ones(1)
        self._step_cost = 1.0  # mean, of which a step without drafts is 1
        self._cost = PRIOR_COST
        self._baseline_step_s: float | None = None
        self._curve_batch = 0
        self._mean_drafted = 0.0
        self._probing = False
        self._search_s = 0.0
        self._saved_s = 0.0
        self._searches = 0
        self._searched = False
        self._recent_gain = 0.0  # beyond what searches cost, in steps
        self._long_gain = 0.0  # for long: a few poor steps among good ones are no reason to pause
        self._pause = 0
        self._num_new = 0

    def min_prob(self, batch: int, mode: SchedulingMode = SchedulingMode.SYNC) -> float:
        """Return the probability below which no token is worth predicting now, for a batch.

        Above 1 where a step without drafts is due; not `IN_FLIGHT`, where the next one has none.
        """
        self._probing = False
        self._renew_curve(batch)
        if self._fixed is None:
            self._since_draft += 1
            since = PROBE_SOON_STEPS if self.costs.is_unsure(batch) else PROBE_EVERY_STEPS
            if self._since_draft >= since:
                self._probing, self._since_draft = True, 0
                return PROBE_MIN_PROB
            if mode is not SchedulingMode.IN_FLIGHT and self._baseline_turns.is_due(
                batch, is_needed=self.costs.needs_baseline_step(batch)
            ):
                return SKIP_MIN_PROB
            if NEW_REQUESTS_DIVISOR * self._num_new >= max(1, batch):
                self._recent_gain, self._pause = 0.0, 0
            if self._pause > 0:
                self._pause -= 1
                return SKIP_MIN_PROB
            self._num_new = 0
            self._cost = self._cost_around(max(batch, round(2.0 * self._mean_drafted)), batch)
        return max(MIN_PROB, float(easy_token_gain(self._cost)))

    def _renew_curve(self, batch: int) -> None:
        if self._fixed is None:
            reach = min(batch * self._max_draft, self.costs.reach(batch))
            self._curve = self.costs.curve(batch, reach)
            self._baseline_step_s = self.costs.baseline_step_s(batch)
        elif batch != self._curve_batch:
            self._cost = self._fixed
            drafted = np.arange(batch * self._max_draft + 1, dtype=np.float64)
            self._curve = 1.0 + self._fixed / batch * drafted
            self._curve_batch = batch

    def _cost_around(self, drafted: int, batch: int) -> float:
        """Of one drafted token, in steps of its request, up to so many in all; that any draft may
        cost at once is left to `best_lengths`."""
        far = min(len(self._curve) - 1, drafted)
        if far < 2:
            return 0.0
        return float(self._curve[far] - self._curve[1]) / (far - 1) * batch / self._step_cost

    def _token_cost(self) -> float:
        """Of one drafted token, in steps of its request, to judge what an easy one is worth: left
        for later, it takes its share of a step then, however little it costs to verify."""
        return (
            self._cost if self._fixed is not None else max(self._cost, 0.5 / (self._max_draft + 1))
        )

    def length_costs(self, batch: int, mode: SchedulingMode = SchedulingMode.SYNC) -> LengthCosts:
        """Return what the lengths of `batch` requests' drafts are selected by."""
        curve, is_new = self._curve, self.costs.is_new(batch, len(self._curve) - 1)
        if self._probing:
            # A probe is to show what drafts cost, but not to cost much itself; a token for every
            # second request it may have, else a wrong belief that drafts are expensive would last.
            affordable = int(np.count_nonzero(curve <= 1.0 + MAX_PROBE_COST_STEPS))
            free = np.ones(max(affordable, 1 + (batch + 1) // 2))
            return LengthCosts(
                free, np.zeros(len(free), np.bool_), 0.0, 0.0, 1.0, self._token_cost()
            )
        return LengthCosts(
            curve,
            is_new,
            self.costs.first_extra / FIRST_USES,
            SUNK_GAP_SHARE if mode is SchedulingMode.DRAINED else 0.0,
            self._step_cost,
            self._token_cost(),
        )

    def observe_gain(
        self, gain: float, mode: SchedulingMode = SchedulingMode.SYNC, saved_s: float = 0.0
    ) -> bool:
        """Record what the drafts, at the lengths selected, are expected to gain, in steps, beyond
        what verifying them costs; 0: there are none. Looking for them cost `saved_s`
        seconds less than it took.

        Returns:
            Whether to have them; `IN_FLIGHT`: whether to wait for the next step and have such.
        """
        self._saved_s = saved_s
        pays = mode is not SchedulingMode.IN_FLIGHT or gain > MIN_GAIN_STEPS or self._probing
        if self._probing and mode is SchedulingMode.IN_FLIGHT:
            self._since_draft = PROBE_EVERY_STEPS  # it is still to be made
        if self._probing or self._baseline_step_s is None:
            return pays
        cost = self._lost_s() / (self._baseline_step_s * self._step_cost)
        self._recent_gain += GAIN_EMA_WEIGHT * (gain - cost - self._recent_gain)
        self._long_gain += LONG_GAIN_EMA_WEIGHT * (gain - cost - self._long_gain)
        if self._recent_gain < 0.0 and self._long_gain < 0.0:
            self._pause = min(MAX_PAUSE_STEPS, int(cost / MAX_SEARCH_SHARE))
        return pays

    def _lost_s(self) -> float:
        """What looking for drafts adds to a step, in seconds, as far as it is known."""
        return max(0.0, self._search_s - self._saved_s) if self._searches > 1 else 0.0

    def observe_search(self, seconds: float) -> None:
        """Record how long the drafter took for a step in which it looked for drafts."""
        # What held the process up is no part of it.
        if self._searches < FIRST_SEARCHES:
            self._search_s = min(seconds, self._search_s) if self._searches else seconds
        else:
            seconds = min(seconds, MAX_SEARCH_RATIO * self._search_s)
            self._search_s += SEARCH_EMA_WEIGHT * (seconds - self._search_s)
        self._searches += 1
        self._searched = True

    def resume(self) -> None:
        """There is a request that there was not, or there are near answers for one."""
        self._num_new += 1

    def observe_step(self, batch: int, drafted: int) -> None:
        """Record that a step verified `drafted` tokens for `batch` requests."""
        if batch == 0:
            return
        if drafted:
            self._since_draft = 0
        self._mean_drafted += MEAN_EMA_WEIGHT * (drafted - self._mean_drafted)
        if self._baseline_step_s is not None:
            cost = float(self._curve[min(drafted, len(self._curve) - 1)])
            cost += self._lost_s() / self._baseline_step_s if self._searched else 0.0
            self._step_cost += MEAN_EMA_WEIGHT * (cost - self._step_cost)
        self._searched = False
