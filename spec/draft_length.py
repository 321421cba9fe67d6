# mypy: allow-untyped-defs, allow-untyped-calls
# (numba infers the types of compiled functions; shapes are in the comments and docstrings)
"""Draft length: as long as the expected gain pays for the verification, over the whole batch.

With e expected accepted tokens in all, d drafted ones and B requests, a step emits B + e tokens
for a cost of curve[d], where a step without drafts costs 1. In the long run tokens per time are
most if each step makes (1 + e / B) - speedup * curve[d] as large as it can, the speed-up being that
of the long run itself. So drafts are cut where the chance that a token is accepted falls below what
it costs, all requests' tokens competing for the same budget.

Looking for drafts costs time too. Where it is not worth that, it pauses for so many steps that what
it costs stays about a fiftieth of them, until another request begins.
"""

import numpy as np
import numpy.typing as npt

from .compiled import compiled
from .config import DraftConfig
from .cost_model import CostModel

FADE = 0.998
FIRST_SPEEDUP = 1.5
FIRST_WEIGHT = 40.0
LEAST_CHANCE = 0.004
PROBE_EVERY = 48
PROBE_LEAST = 0.25
RENEW_EVERY = 32
NEVER = 2.0
SPARE = 0.8
WORTH_SHARE = 0.2
LONGEST_PAUSE = 16
BEARABLE = 0.02


@compiled
def best_lengths(chances, lengths, curve, speedup):
    """The lengths [B] at which expected tokens less `speedup` times curve[drafted tokens] is most,
    and how much more that is, in tokens a request, than without drafts.

    chances [B, n] fall along each row, of which the first `lengths` [B] are drafted tokens'.
    """
    batch = len(lengths)
    ranked = np.empty(lengths.sum(), chances.dtype)
    count = 0
    for i in range(batch):
        for k in range(lengths[i]):
            ranked[count] = chances[i, k]
            count += 1
    ranked.sort()
    expected, best, at = 0.0, -speedup * curve[0], 0
    for d in range(1, count + 1):
        expected += ranked[count - d]
        value = expected / batch - speedup * curve[d]
        if value > best:
            best, at = value, d
    kept = np.zeros_like(lengths)
    if at > 0:
        for i in range(batch):
            while kept[i] < lengths[i] and chances[i, kept[i]] >= ranked[count - at]:
                kept[i] += 1
    return kept, best + speedup * curve[0]


class DraftLength:
    """Decides how likely a token must be to be drafted, and where the batch's drafts end."""

    def __init__(self, config: DraftConfig) -> None:
        self._fixed = config.verify_cost
        self._most = config.num_speculative_tokens
        self.costs = CostModel()
        self._gained = FIRST_SPEEDUP * FIRST_WEIGHT
        self._paid = FIRST_WEIGHT
        self._since_draft = 0
        self._curve = np.ones(1)
        self._rest_s: float | None = None
        self._curve_batch = 0
        self._curve_age = 0
        self._mean_drafted = 0.0
        self._probing = False
        self._search_s = 0.0
        self._worth = 0.0
        self._pause = 0

    @property
    def speedup(self) -> float:
        """Running mean of emitted tokens per unit of cost, 1 being a step without drafts."""
        return max(1.0, self._gained / self._paid)

    def least_chance(self, batch: int) -> float:
        """The chance below which no token is worth drafting now, for a batch of requests.

        Above 1 where a step without drafts is due.
        """
        self._probing = False
        if self._fixed is not None:
            return max(LEAST_CHANCE, self._fixed * self.speedup)
        self._renew_curve(batch)
        self._since_draft += 1
        if self._since_draft >= PROBE_EVERY:
            self._probing, self._since_draft = True, 0
            return PROBE_LEAST
        if self.costs.wants_rest(batch):
            return NEVER
        if self._pause > 0:
            self._pause -= 1
            return NEVER
        # Where the batch's drafts end is decided in `cut`; a few more tokens than pay on average
        # are predicted for it to choose from.
        far = min(len(self._curve) - 1, max(batch, round(2.0 * self._mean_drafted)))
        if far < 2:
            return LEAST_CHANCE
        slope = float(self._curve[far] - self._curve[1]) / (far - 1)
        return max(LEAST_CHANCE, SPARE * slope * batch * self.speedup)

    def _renew_curve(self, batch: int) -> None:
        self._curve_age += 1
        if batch != self._curve_batch or self._curve_age >= RENEW_EVERY:
            self._curve = self.costs.curve(batch, batch * self._most)
            self._rest_s = self.costs.rest_s(batch)
            self._curve_batch, self._curve_age = batch, 0

    def cut(
        self,
        chances: npt.NDArray[np.float32],  # [B, n]: falling along each row
        lengths: npt.NDArray[np.int64],  # [B]: tokens that were drafted
    ) -> npt.NDArray[np.int64]:
        """The lengths [B] that the drafts are cut to."""
        if self._fixed is not None or self._probing:
            return lengths
        kept, gain = best_lengths(chances, lengths, self._curve, self.speedup)
        self._note_worth(gain)
        cut: npt.NDArray[np.int64] = kept
        return cut

    def observe_search(self, seconds: float) -> None:
        """Take in how long it took to look for drafts."""
        share = 0.1 if self._search_s else 1.0
        self._search_s += share * (seconds - self._search_s)

    def resume(self) -> None:
        """Look for drafts again: there is a request or a near answer that there was not."""
        self._worth, self._pause = 0.0, 0

    def _note_worth(self, gain: float) -> None:
        """Take in what drafts are expected to gain in this step, in tokens a request, beyond all
        they cost; 0: there are none, and looking for them was in vain."""
        if self._rest_s is None:
            return
        cost = self._search_s / self._rest_s
        self._worth += WORTH_SHARE * ((gain or -self.speedup * cost) - self._worth)
        if self._worth < 0.0:
            self._pause = min(LONGEST_PAUSE, int(cost / BEARABLE))

    def observe_step(self, batch: int, drafted: int, emitted: int) -> None:
        """Take in what a step emitted for `batch` requests with `drafted` tokens."""
        if batch == 0:
            return
        if drafted:
            self._since_draft = 0
        self._mean_drafted += 0.05 * (drafted - self._mean_drafted)
        if self._fixed is not None:
            cost = 1.0 + self._fixed * drafted / batch
        else:
            cost = float(self._curve[min(drafted, len(self._curve) - 1)])
        fade = FADE**batch
        self._gained = fade * self._gained + emitted
        self._paid = fade * self._paid + cost * batch
