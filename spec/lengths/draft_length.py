# mypy: allow-untyped-defs, allow-untyped-calls
# (numba infers the types of compiled functions; shapes are in the comments and docstrings)
"""Draft length: as long as verification pays, over the whole batch.

Let P(j) be the chance that a draft is right up to and with its token j, and c what verifying a
token costs, a step without drafts being 1. A draft that ends at token k and is all right emits one
token more, the model's own. So to end there costs a step only if the next token, k + 1, would
have been right as well: if it is wrong, any draft would have ended there. A token that the model
adds is one that was hard to draft, or one that was easy and would have been drafted, and perhaps
been in vain, later. To draft token j is therefore worth, in steps of its request,

    P(j) - P(j + 1)         what follows it is hard, and comes without a step of its own
    + e(c) P(j + 1)         what follows it is easy: e(c) = c (2 - c), between c and a step

and costs c. Drafts so end before hard tokens, not after them, and go through easy ones for the
sake of a hard one behind. The worth of the tokens along a draft is averaged, so that it falls; then
all requests' tokens compete for what the batch's step may cost.

What is measured is relative to a step without drafts; a step that is saved, however, is one as they
are: with the drafts of other requests, and with the time that looking for them takes. That time is
spent when lengths are chosen, and counts only in whether to look at all: where it does not pay, it
pauses for so many steps that what it costs stays about a fiftieth of them, or until a quarter of
the batch is new.

An engine that runs ahead (`Turn`) leaves no gap between steps without drafts, and one before and
after every step with drafts. n of these in a row so cost n + 1 gaps. One is part of what any draft
is measured to cost; the other is paid when drafts begin, which therefore takes a gain that is not
small, and is past where they go on or end: half a gap is then counted, for there is one either way.
"""

from enum import Enum, auto
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from reprise.spec.api.config import DraftConfig
from reprise.spec.lengths.cost_model import CostModel
from reprise.spec.lengths.step_times import PRIOR_COST
from reprise.spec.predictor.trail import open_trail
from reprise.spec.runtime.compiled import compiled
from reprise.spec.runtime.layout import DRAFTED

LEAST_CHANCE = 0.004
FIRST_USES = 16  # steps that share in what the first with as many tokens costs
PROBE_EVERY = 48
PROBE_SOON = 16  # as long as it is unsure what any draft costs
PROBE_LEAST = 0.25
MOST_OF_PROBE = 0.5  # in steps
NEVER = 2.0
WORTH_SHARE = 0.2
LONG_WORTH_SHARE = 0.02
MEAN_SHARE = 0.05
FIRST_SEARCHES = 8  # the shortest of which counts
SEARCH_SHARE = 0.1
MOST_OF_SEARCH = 2.0
LONGEST_PAUSE = 16
BEARABLE = 0.02
SUNK_SHARE = 0.5
LEAST_GAIN = 0.15  # in steps
NEW_SHARE = 4  # a pause ends when one in so many requests is new, or has new near answers


class Turn(Enum):
    """Where the engine is when it asks for drafts."""

    WAITED = auto()
    """It waits for every step before it launches the next."""
    SETTLED = auto()
    """It waited for this one, and runs ahead from the next one on if that has no drafts."""
    AHEAD = auto()
    """It runs ahead: the next step has been launched, without drafts. Those that are asked for now
    only tell whether it pays to wait for that step, and to have drafts after it."""


@compiled
def worth_of_easy(cost):
    """What a token is worth that would have been drafted later: what that costs, and nearly as much
    for drafts in vain. (c alone loses up to 1.2% of speed at costs of 0.1 and 0.2; 3 c, 3%.)"""
    return cost * (2.0 - cost) if cost < 1.0 else 1.0


@compiled
def falling_worths(chances, lengths, cost):
    """What each drafted token is worth, [B, n - 1], averaged so that it falls along each row.

    chances [B, n] fall along each row; those of the drafted tokens, `lengths` [B] of them, and of
    the one after them count. Averaged: the greatest sums up to a token stay what they are.
    """
    batch, most = chances.shape[0], chances.shape[1] - 1
    worths = np.zeros((batch, most))
    easy = worth_of_easy(cost)
    for i in range(batch):
        start = 0
        while start < lengths[i]:
            best, until, total = -1.0, start, 0.0
            for k in range(start, lengths[i]):
                total += chances[i, k] - (1.0 - easy) * chances[i, k + 1]
                mean = total / (k + 1 - start)
                if mean >= best:
                    best, until = mean, k + 1
            worths[i, start:until] = best
            start = until
    return worths


@compiled
def best_lengths(chances, lengths, curve, cost, step=1.0):
    """The lengths [B] that are worth most, less what the step then costs, and how much that is, in
    steps, beyond a step without drafts.

    None where a draft costs more than as many steps without drafts as it is expected to save: what
    steps cost with drafts must not be what makes drafts seem worth it.

    chances [B, n], lengths [B]: as for `falling_worths`; curve [m + 1]: relative cost of a step by
    all drafted tokens, of which there may be m; cost: of one, in steps of its request; step: what
    one costs, as they are, in steps without drafts.
    """
    batch = len(lengths)
    worths = falling_worths(chances, lengths, cost)
    ranked = np.empty(lengths.sum())
    count = 0
    for i in range(batch):
        for k in range(lengths[i]):
            ranked[count] = worths[i, k]
            count += 1
    ranked.sort()
    gained, best, at = 0.0, 0.0, 0
    for d in range(1, min(count, len(curve) - 1) + 1):
        gained += ranked[count - d]
        value = gained / batch - (curve[d] - curve[0])
        if value > best:
            best, at = value, d
    kept = np.zeros_like(lengths)
    if at > 0:
        least, left = ranked[count - at], at
        for i in range(batch):
            while kept[i] < lengths[i] and worths[i, kept[i]] > least:
                kept[i] += 1
            left -= kept[i]
        for i in range(batch):
            while left > 0 and kept[i] < lengths[i] and worths[i, kept[i]] == least:
                kept[i] += 1
                left -= 1
        saved = 0.0
        for i in range(batch):
            saved += chances[i, : kept[i]].sum()
        if saved / batch < (curve[at] - curve[0]) * step:
            kept[:] = 0
            best = 0.0
    return kept, best


@compiled
def curve_now(curve, is_new, first_extra, sunk, step):
    """The cost [m + 1] of the next step by all drafted tokens, in steps as they are.

    Args:
        curve: [m + 1] float64, in steps without drafts; 1 for none.
        is_new: [m + 1] bool, what `first_extra` is added to.
        first_extra: in steps without drafts.
        sunk: share of what any draft costs at once that is spent either way.
        step: what a step costs as they are, in steps without drafts.
    """
    costs = np.empty_like(curve)
    costs[0] = 1.0 / step
    for d in range(1, len(curve)):
        costs[d] = curve[d] + (first_extra if is_new[d] else 0.0)
    at_once = sunk * (costs[1] - 1.0) if len(curve) > 1 else 0.0
    for d in range(1, len(curve)):
        costs[d] = (costs[d] - at_once) / step
    return costs


@compiled
def cut_drafts(slots, requests, trail_table, curve, is_new, first_extra, sunk, step, cost):
    """Cut the drafts of slots [B] to the lengths that are worth most.

    Returns the lengths [B], the tokens [B, n] and what they gain; curve to step: as for
    `curve_now`, cost: as for `best_lengths`.
    """
    trail = open_trail(trail_table)
    lengths = requests[slots, DRAFTED]
    longest = lengths.max()
    chances = np.empty((len(slots), longest + 1), np.float32)
    tokens = np.empty((len(slots), longest), np.int32)
    for i in range(len(slots)):
        chances[i] = trail.chances[slots[i], : longest + 1]
        tokens[i] = trail.tokens[slots[i], :longest]
    costs = curve_now(curve, is_new, first_extra, sunk, step)
    kept, gain = best_lengths(chances, lengths, costs, cost, step)
    for i in range(len(slots)):
        requests[slots[i], DRAFTED] = kept[i]
    return kept, tokens, gain


class Terms(NamedTuple):
    """What drafts are cut by, as `cut_drafts` takes it."""

    curve: npt.NDArray[np.float64]  # [m + 1]
    is_new: npt.NDArray[np.bool_]  # [m + 1]
    first_extra: float
    sunk: float
    step: float
    cost: float


class DraftLength:
    """Decides how likely a token must be to be predicted, and where the batch's drafts end."""

    def __init__(self, config: DraftConfig) -> None:
        self._fixed = config.verify_cost
        self._most = config.num_speculative_tokens
        self.costs = CostModel()
        self._since_draft = 0
        self._curve: npt.NDArray[np.float64] = np.ones(1)
        self._step_cost = 1.0  # mean, of which a step without drafts is 1
        self._cost = PRIOR_COST
        self._rest_s: float | None = None
        self._curve_batch = 0
        self._mean_drafted = 0.0
        self._probing = False
        self._search_s = 0.0
        self._saved_s = 0.0
        self._searches = 0
        self._searched = False
        self._worth = 0.0  # lately
        self._long_worth = 0.0  # for long: a few poor steps among good ones are no reason to pause
        self._pause = 0
        self._num_new = 0

    def least_chance(self, batch: int, turn: Turn = Turn.WAITED) -> float:
        """The chance below which no token is worth predicting now, for a batch of requests.

        Above 1 where a step without drafts is due; not `AHEAD`, where the next one has none.
        """
        self._probing = False
        self._renew_curve(batch)
        if self._fixed is None:
            self._since_draft += 1
            since = PROBE_SOON if self.costs.is_unsure(batch) else PROBE_EVERY
            if self._since_draft >= since:
                self._probing, self._since_draft = True, 0
                return PROBE_LEAST
            if turn is not Turn.AHEAD and self.costs.wants_rest(batch):
                return NEVER
            if NEW_SHARE * self._num_new >= max(1, batch):
                self._worth, self._pause = 0.0, 0
            if self._pause > 0:
                self._pause -= 1
                return NEVER
            self._num_new = 0
            self._cost = self._cost_around(max(batch, round(2.0 * self._mean_drafted)), batch)
        return max(LEAST_CHANCE, float(worth_of_easy(self._cost)))

    def _renew_curve(self, batch: int) -> None:
        if self._fixed is None:
            reach = min(batch * self._most, self.costs.reach(batch))
            self._curve = self.costs.curve(batch, reach)
            self._rest_s = self.costs.rest_s(batch)
        elif batch != self._curve_batch:
            self._cost = self._fixed
            drafted = np.arange(batch * self._most + 1, dtype=np.float64)
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
        return self._cost if self._fixed is not None else max(self._cost, 0.5 / (self._most + 1))

    def terms(self, batch: int, turn: Turn = Turn.WAITED) -> Terms:
        """What the drafts of `batch` requests are to be cut by."""
        curve, is_new = self._curve, self.costs.is_new(batch, len(self._curve) - 1)
        if self._probing:
            # A probe is to show what drafts cost, but not to cost much itself; a token for every
            # second request it may have, else a wrong belief that drafts are dear would last.
            bearable = int(np.count_nonzero(curve <= 1.0 + MOST_OF_PROBE))
            free = np.ones(max(bearable, 1 + (batch + 1) // 2))
            return Terms(free, np.zeros(len(free), np.bool_), 0.0, 0.0, 1.0, self._token_cost())
        return Terms(
            curve,
            is_new,
            self.costs.first_extra / FIRST_USES,
            SUNK_SHARE if turn is Turn.SETTLED else 0.0,
            self._step_cost,
            self._token_cost(),
        )

    def note_gain(self, gain: float, turn: Turn = Turn.WAITED, saved_s: float = 0.0) -> bool:
        """Take in what the drafts as they were cut are expected to gain in this step, in steps,
        beyond what verifying them costs; 0: there are none. Looking for them cost `saved_s`
        seconds less than it took.

        Returns:
            Whether to have them; `AHEAD`: whether to wait for the next step and have such.
        """
        self._saved_s = saved_s
        pays = turn is not Turn.AHEAD or gain > LEAST_GAIN or self._probing
        if self._probing and turn is Turn.AHEAD:
            self._since_draft = PROBE_EVERY  # it is still to be made
        if self._probing or self._rest_s is None:
            return pays
        cost = self._lost_s() / (self._rest_s * self._step_cost)
        self._worth += WORTH_SHARE * (gain - cost - self._worth)
        self._long_worth += LONG_WORTH_SHARE * (gain - cost - self._long_worth)
        if self._worth < 0.0 and self._long_worth < 0.0:
            self._pause = min(LONGEST_PAUSE, int(cost / BEARABLE))
        return pays

    def _lost_s(self) -> float:
        """What looking for drafts adds to a step, in seconds, as far as it is known."""
        return max(0.0, self._search_s - self._saved_s) if self._searches > 1 else 0.0

    def observe_search(self, seconds: float) -> None:
        """Take in how long the drafter took for a step in which it looked for drafts."""
        # What held the process up is no part of it.
        if self._searches < FIRST_SEARCHES:
            self._search_s = min(seconds, self._search_s) if self._searches else seconds
        else:
            seconds = min(seconds, MOST_OF_SEARCH * self._search_s)
            self._search_s += SEARCH_SHARE * (seconds - self._search_s)
        self._searches += 1
        self._searched = True

    def resume(self) -> None:
        """There is a request that there was not, or there are near answers for one."""
        self._num_new += 1

    def observe_step(self, batch: int, drafted: int) -> None:
        """Take in that a step verified `drafted` tokens for `batch` requests."""
        if batch == 0:
            return
        if drafted:
            self._since_draft = 0
        self._mean_drafted += MEAN_SHARE * (drafted - self._mean_drafted)
        if self._rest_s is not None:
            cost = float(self._curve[min(drafted, len(self._curve) - 1)])
            cost += self._lost_s() / self._rest_s if self._searched else 0.0
            self._step_cost += MEAN_SHARE * (cost - self._step_cost)
        self._searched = False
