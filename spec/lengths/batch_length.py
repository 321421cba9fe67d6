# mypy: allow-untyped-calls
"""Batch length: as many drafted tokens for every request of a batch, decided on the host, ahead.

Where drafts are made on the device and steps are sent ahead of what they come to, how many tokens
are drafted after a step is settled when that step is scheduled: the same number K for all requests,
and one of the few for which graphs of whole steps were captured. What is known then is what earlier
steps came to, and what steps cost. With q(j) the share of drafts whose token j was right among
those whose tokens before it were, a step with drafts of K tokens emits for each request

    1 + q(1) + q(1) q(2) + ... + q(1) ... q(K)

tokens, and costs what the cost curve says of K times the batch. The K is taken that emits most for
what it costs; none where no K emits more than a step without drafts does. Then a short draft is
tried now and then, so seldom that trying costs next to nothing.

Shares are of the latest drafts, about as many at any size of batch, so that chance moves them
little; one request alone would take hundreds of steps to unlearn them. Where the first tokens of
the latest steps are far better explained by a share of their own, what was known of them before is
therefore forgotten at once: a generalised likelihood ratio says so, and since when (Lorden,
"Procedures for reacting to a change in distribution", 1971). Of later tokens that says nothing.
"""

import math
from collections import deque
from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from reprise.spec.lengths.baseline_turns import BaselineTurns
from reprise.spec.lengths.cost_model import REACH, CostModel
from reprise.spec.lengths.draft_budget import DraftBudget

LENGTHS = (1, 3, 7, 15, 31, 63)
"""Those up to an engine's own maximum that are captured, beside none: with the model's own token
each, powers of two. Of the graphs that it has, vLLM looks at those of the smallest number of tokens
that a step fits, and at no larger ones. Among multiples of 2, 3, 5, 9 and 17 the smallest is often
one of another length, and half of all numbers of requests had no full graph, drafts or none; among
multiples of powers of two the smallest is one of every length."""

FIRST_SHARE = 0.5  # of first tokens that are right, where nothing is known
FIRST_WEIGHT = 4.0  # drafts that this counts as, until it is forgotten
NEXT_WEIGHT = 4.0  # drafts that a token is taken to be as right as the one before it for
MEMORY = 64  # drafts after which one counts 1 / e
MIN_KEPT = 0.75  # of what was known, in a step, however large its batch
CHANGE_EVIDENCE = 8.0  # log likelihood ratio from which on a share of first tokens has changed
CHANGE_STEPS = 64  # the latest, that may have another share
LEAST_SHARE = 0.01  # of first tokens, right or wrong, in that ratio: one draft is no evidence
MIN_GAIN = 0.01  # of drafts over none, as a share of the tokens a second
PROBE_SHARE = 0.005  # of all steps' time, that may go into trying
MIN_PROBE_STEPS = 8
FIRST_PROBE_STEPS = 2  # once drafts have ended, and twice as many from try to try
FIRST_PROBE_DIVISOR = 16  # of what is due, or that much, where drafts are dear
NEW_REQUESTS_DIVISOR = 4  # a try comes as much sooner once one in so many requests is new
READY_TOKENS = 1 << 16  # of a step: what it runs was captured or compiled at the start
TOKEN_COST = 1.0 / 512  # of each drafted token of a batch, in steps, where nothing is known

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]


class BatchDraftLength:
    """Decides one draft length for a whole batch, a step or two before it is verified.

    Args:
        choices: the lengths that may be chosen, above 0, rising; 0 always may be.
        costs: what steps cost; may be filled beforehand from a profile of the device.

    Example:
        >>> length = BatchDraftLength((1, 3, 7, 15))
        >>> num_spec_tokens = length.choose(batch=8)
        >>> length.observe([num_spec_tokens] * 8, [0] * 8)
    """

    def __init__(self, choices: Sequence[int], costs: CostModel | None = None) -> None:
        if not choices or choices[0] < 1 or list(choices) != sorted(set(choices)):
            raise ValueError(f"choices: expected rising lengths above 0, got {list(choices)}")
        self.costs = costs or CostModel(token_cost=TOKEN_COST)
        self.costs.note_ready(READY_TOKENS)
        self.budget = DraftBudget()
        self._choices: Ints = np.array(choices, np.int64)
        self._tried: Floats = np.zeros(choices[-1])
        self._right: Floats = np.zeros(choices[-1])
        self._tried[0], self._right[0] = FIRST_WEIGHT, FIRST_WEIGHT * FIRST_SHARE
        self._latest: deque[tuple[int, int]] = deque(
            maxlen=CHANGE_STEPS
        )  # first tokens: all, right
        self._since_draft = 0
        self._baseline_turns = BaselineTurns()
        self._num_new = 0
        self._num_probes = 0
        self._batch = 1

    def choose(
        self,
        batch: int,
        allowed: Callable[[int], bool] | None = None,
        *,
        with_drafts: int | None = None,
    ) -> int:
        """Return how many tokens to draft for requests in the step to be scheduled; 0 for none.

        Args:
            batch: how many requests decode in the step that verifies them.
            allowed: whether a length may be chosen for this batch; None: all may be.
            with_drafts: how many of them have drafts, if there are any; None: all.
        """
        with_drafts = batch if with_drafts is None else with_drafts
        return self._choose(batch, with_drafts, allowed) if with_drafts > 0 else 0

    def _choose(self, batch: int, with_drafts: int, allowed: Callable[[int], bool] | None) -> int:
        self._batch = batch
        self._since_draft += 1
        choices = self._choices
        if allowed is not None:
            choices = np.array([k for k in choices.tolist() if allowed(k)], np.int64)
        if not len(choices) or not self.budget.allows_drafts():
            return 0
        needs = self.costs.needs_baseline_step(batch) or self.budget.needs_undrafted(batch)
        if self._baseline_turns.is_due(batch, is_needed=needs):
            return 0
        # Beside those that were tried in a like batch, the next one.
        tried = np.count_nonzero(choices * with_drafts * REACH <= self.costs.reach(batch))
        choices = choices[: tried + 1]
        costs = self.costs.curve(batch, with_drafts * int(choices[-1]))[choices * with_drafts]
        emitted = 1.0 + with_drafts / batch * np.cumsum(self.survival())
        speeds = emitted[choices - 1] / costs
        best = int(np.argmax(speeds))
        if speeds[best] > 1.0 + MIN_GAIN:
            self._since_draft, self._num_new, self._num_probes = 0, 0, 0
            return int(choices[best])
        return self._probe(batch, int(choices[0]), float(costs[0]) - 1.0)

    def _probe(self, batch: int, length: int, cost: float) -> int:
        """Return `length`, which costs as many steps more than none, or 0 where it is too soon."""
        wait = cost / PROBE_SHARE
        if NEW_REQUESTS_DIVISOR * self._num_new >= batch:
            wait /= NEW_REQUESTS_DIVISOR
        else:
            wait = max(MIN_PROBE_STEPS, wait)
            first = max(FIRST_PROBE_STEPS, wait / FIRST_PROBE_DIVISOR)
            wait = min(wait, first * 2.0 ** min(self._num_probes, FIRST_PROBE_DIVISOR))
        if self._since_draft < wait:
            return 0
        self._since_draft, self._num_new = 0, 0
        self._num_probes += 1
        return length

    def survival(self) -> Floats:
        """Return the probability [n] that a draft is right up to and with each of its tokens."""
        shares = self._right / np.maximum(self._tried, 1e-9)
        for j in range(1, len(shares)):
            # Where a token was seldom drafted, it is taken to be as right as the one before it.
            right = self._right[j] + NEXT_WEIGHT * shares[j - 1]
            shares[j] = right / (self._tried[j] + NEXT_WEIGHT)
        survival: Floats = np.asarray(np.cumprod(shares), np.float64)
        return survival

    def observe(
        self,
        verified: Sequence[int],
        accepted: Sequence[int],
        *,
        step_time_s: float | None = None,
        drafts_follow: bool | None = None,
        prefilled: int = 0,
    ) -> None:
        """Record a step, once it is known what it came to.

        Args:
            verified: [B] drafted tokens of each request that were verified; 0: it had none.
            accepted: [B] how many of these were right.
            step_time_s: what it took, in seconds, if it did nothing but decode for these requests
                and prefill, and its beginning did not wait for the host; None: it teaches nothing
                of costs.
            drafts_follow: whether drafts were made at its end, for which the host may have worked
                in its time; None: if it had some.
            prefilled: how many tokens of prompts it computed.
        """
        lengths, right = np.array(verified, np.int64), np.array(accepted, np.int64)
        if step_time_s is not None and len(lengths):
            self._note_time(lengths, right, step_time_s, drafts_follow, prefilled)
        drafts = int(np.count_nonzero(lengths))
        if not drafts:
            return
        places = np.arange(1, len(self._tried) + 1)[:, None]
        kept = max(MIN_KEPT, np.exp(-drafts / MEMORY))
        # Token j was tried where those before it were right.
        tried = (places <= lengths) & (places <= right + 1)
        share = float(self._right[0] / self._tried[0])
        self._tried *= kept
        self._tried += tried.sum(axis=1)
        self._right *= kept
        self._right += ((places <= lengths) & (places <= right)).sum(axis=1)
        self._latest.append((drafts, int(np.count_nonzero(right[lengths > 0]))))
        self._forget_before_a_change(share)

    def _note_time(
        self,
        lengths: Ints,
        right: Ints,
        seconds: float,
        drafts_follow: bool | None,
        prefilled: int,
    ) -> None:
        """Record what a step took: for the budget, and for what lengths cost."""
        if not seconds > 0.0:
            return  # no clock says that
        batch, drafted = len(lengths), int(lengths.sum())
        follow = drafted > 0 if drafts_follow is None else drafts_follow
        if drafted or follow:
            emitted = 1.0 + float(right.sum()) / batch
            self.budget.note_drafted(batch, emitted=emitted, seconds=seconds, prefilled=prefilled)
        else:
            self.budget.note_undrafted(batch, seconds, prefilled=prefilled)
        # One at whose end drafts are made is no measure of steps without.
        if (drafted or not follow) and not prefilled:
            self.costs.observe_step(batch, drafted, seconds)

    def _forget_before_a_change(self, known: float) -> None:
        """Forget what was known of first tokens before their share changed, if it has; `known`:
        the share before this step."""
        sums = np.cumsum(np.array(self._latest, np.float64)[::-1], axis=0)
        evidence = likelihood_ratio(sums[:, 0], sums[:, 1], known)
        since = int(np.argmax(evidence))
        # Of several drafts a step, chance is to mislead as seldom a step.
        if evidence[since] <= CHANGE_EVIDENCE + math.log(self._latest[-1][0]):
            return
        self._tried[0], self._right[0] = sums[since]
        while len(self._latest) > since + 1:
            self._latest.popleft()

    def note_new_requests(self, count: int) -> None:
        """Record that so many requests have begun, or got near answers: what was known of others
        says less."""
        self._num_new += count
        if count:
            self.budget.note_new_requests(count / max(1, self._batch))


def likelihood_ratio(tried: Floats, right: Floats, known: float) -> Floats:
    """Return the log of how much likelier it is that `right` [n] of `tried` [n] were right if the
    share that they are was to be expected than if `known` was."""
    known = min(max(known, LEAST_SHARE), 1.0 - LEAST_SHARE)
    wrong = tried - right
    # 0 log 0 is 0.
    of_right = right * np.log(np.maximum(right, 1.0) / tried / known)
    of_wrong = wrong * np.log(np.maximum(wrong, 1.0) / tried / (1.0 - known))
    ratio: Floats = of_right + of_wrong
    return ratio


def capture_schedule(
    choices: Sequence[int], max_num_seqs: int, *, longest: int
) -> list[tuple[int, int, int]]:
    """Return ranges of batch sizes with a draft length each, so that a device that captures graphs
    for every length among them captures all of `choices`, and none.

    It is no schedule to serve by: which length a batch gets is left to `BatchDraftLength`. The form
    is that of vLLM's `num_speculative_tokens_per_batch_size`: (first size, last size, length), both
    sizes included, from 1 to `max_num_seqs`. Of more lengths than sizes the shortest are left out,
    0 is not; lengths above `longest` are too.
    """
    lengths = sorted({length for length in choices if length <= longest}, reverse=True)
    lengths = [*lengths[: max(0, max_num_seqs - 1)], 0]
    last = len(lengths)
    return [
        (size, max_num_seqs if size == last else size, length)
        for size, length in enumerate(lengths, start=1)
    ]
