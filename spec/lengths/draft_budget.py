"""Draft budget: how much time drafts may lose, measured against steps without them.

A rule that chooses lengths by what it believes of costs and chances can be wrong for as long as its
beliefs are. This one believes nothing. For each step with drafts it adds up what it emitted for a
request, and takes off what it took, in steps of the same batch without drafts, as those were
measured:

    gain = (1 + accepted drafts of a request, on average) - seconds / seconds without drafts

Losses are paid from a budget, into which goes a share of all time, up to a step, and gains, up to
eight: so that no step that something else held up ends drafts that gain, nor do those between two
passages that are drafted well, where one request is alone. With nothing left there are no drafts.
So over any stretch of serving the steps with drafts lose no more than `SHARE` of its time, the
bound, and the few steps that had been sent before the last of it was spent; and what was gained
before buys no more than the bound (a token bucket, as networks limit rates with).

Steps are counted only against steps without drafts of about as many requests. Where none was
measured they wait for one, which is due after a few of them, and at once if those requests are gone
before and as many come back. What is owed is bounded as well, for many that waited may be counted
at once. A step that prefills is counted against what one without drafts would have taken that
prefills as much, by a line through those that were measured (`_PrefillSteps`).
"""

import math
from collections import deque

import numpy as np
import numpy.typing as npt

SHARE = 0.008  # of all time, that may be lost
FIRST = 1.0  # steps, that may be lost at first, and are saved up of the share
MOST = 8.0  # steps, that are saved up of gains, or owed
RESUME = 0.25  # steps, that there have to be before drafts are made again
MOST_A_STEP = 3.0  # one that took longer was held up by something else, and counts as this
NEW_BATCH = 0.1  # steps that as many new requests as a batch has are worth: they may be better
LATEST = 5  # steps without drafts, of those with about as many requests, that say what one takes
BINS_PER_DOUBLING = 4  # of numbers of requests
ABOUT = 1.3  # times as many requests as were measured, or as few, are about as many
SOON_UNCOUNTED = 4  # steps, until one without drafts is due
SELDOM = 128  # steps, until it is anyway
FEW_PREFILLED = 4  # steps without drafts that prefill, from which on the line says something
MOST_MORE = 1.0  # steps, that one that prefills is longer or shorter: no line is exact
LEAST_DECODING = 0.1  # of such a step's time, that decoding is taken to have at least
KEPT = 0.95  # of what they say, with each one more
_MAX_UNCOUNTED = 64  # steps that wait; one without drafts comes sooner

Floats = npt.NDArray[np.float64]


class _Undrafted:
    """Steps without drafts of about as many requests."""

    def __init__(self) -> None:
        self._steps: deque[tuple[int, float]] = deque(maxlen=LATEST)
        self.batch = 0.0
        self.seconds = 0.0

    def add(self, batch: int, seconds: float) -> None:
        """Record one. A few that were held up are no measure: the median counts, of an even number
        the lower one."""
        self._steps.append((batch, seconds))
        self.batch = sum(each for each, _ in self._steps) / len(self._steps)
        self.seconds = sorted(each for _, each in self._steps)[(len(self._steps) - 1) // 2]


class _PrefillSteps:
    """Steps without drafts that prefill take a + b requests + c tokens, by fading least squares."""

    def __init__(self) -> None:
        self._products: Floats = 1e-3 * np.eye(3)
        self._sums: Floats = np.zeros(3)
        self._count = 0

    def is_known(self) -> bool:
        return self._count >= FEW_PREFILLED

    def add(self, batch: int, num_tokens: int, seconds: float) -> None:
        """Record one; if it took far longer than others it was held up, and says less. A line that
        has it take no time at all, as one of small steps may say of a large one, is no measure."""
        if self.is_known() and (expected_s := self.seconds(batch, num_tokens)) > 0.0:
            seconds = min(seconds, 2.0 * expected_s)
        parts = _parts(batch, num_tokens)
        self._products = KEPT * self._products + np.outer(parts, parts)
        self._sums = KEPT * self._sums + parts * seconds
        self._count += 1

    def seconds(self, batch: int, num_tokens: int) -> float:
        """Return what one takes."""
        line = np.linalg.solve(self._products + 1e-6 * np.eye(3), self._sums)
        return float(line @ _parts(batch, num_tokens))


def _parts(batch: int, num_tokens: int) -> Floats:
    return np.array([1.0, batch / 64, num_tokens / 512])


class DraftBudget:
    """Says whether there may be drafts.

    Example:
        >>> budget = DraftBudget()
        >>> budget.note_undrafted(8, 0.005)
        >>> budget.note_drafted(8, emitted=1.0, seconds=0.015)
        >>> budget.allows_drafts()
        False
    """

    def __init__(self) -> None:
        self._left = FIRST
        self._is_spent = False
        self._undrafted: dict[int, _Undrafted] = {}
        self._prefilled = _PrefillSteps()
        self._uncounted: deque[tuple[int, float, float]] = deque(maxlen=_MAX_UNCOUNTED)
        self._prefills_in_a_row = 0
        self._since_undrafted = 0

    @property
    def left(self) -> float:
        """Steps that may be lost before drafts end."""
        return self._left

    def allows_drafts(self) -> bool:
        """Return whether the next step may have drafts."""
        return not self._is_spent

    def needs_undrafted(self, batch: int) -> bool:
        """Whether a step of so many requests without drafts is due, to count others by."""
        if len(self._uncounted) >= SOON_UNCOUNTED and not self._is_measured(batch):
            return True
        return self._prefills_in_a_row >= SOON_UNCOUNTED or self._since_undrafted >= SELDOM

    def note_undrafted(self, batch: int, seconds: float, *, prefilled: int = 0) -> None:
        """Record a step without drafts, and without any made at its end; `prefilled`: so many
        tokens of prompts were computed in it."""
        self._add(1.0, 1.0)
        self._prefills_in_a_row = self._since_undrafted = 0
        if prefilled:
            self._prefilled.add(batch, prefilled, seconds)
            return
        number = round(BINS_PER_DOUBLING * math.log2(batch))
        self._undrafted.setdefault(number, _Undrafted()).add(batch, seconds)
        for _ in range(len(self._uncounted)):
            self._count_or_wait(*self._uncounted.popleft())

    def note_drafted(
        self, batch: int, *, emitted: float, seconds: float, prefilled: int = 0
    ) -> None:
        """Record a step with drafts, or with drafts made at its end: what it emitted for a request,
        on average. It is counted once a step without drafts was measured; one that prefills, if
        some were that do."""
        self._since_undrafted += 1
        if not prefilled:
            self._count_or_wait(batch, emitted, seconds)
        elif self._prefilled.is_known():
            self._count_prefilled(batch, prefilled, emitted, seconds)
        else:
            self._prefills_in_a_row += 1

    def _count_or_wait(self, batch: int, emitted: float, seconds: float) -> None:
        if not self._is_measured(batch):
            self._uncounted.append((batch, emitted, seconds))
            return
        baseline_s = self.undrafted_s(batch)
        assert baseline_s is not None
        self._prefills_in_a_row = 0
        self._add(emitted, min(seconds / baseline_s, MOST_A_STEP))

    def _count_prefilled(self, batch: int, num_tokens: int, emitted: float, seconds: float) -> None:
        """Count what drafts added to the step: what it prefilled is to be computed anyway."""
        expected_s = self._prefilled.seconds(batch, num_tokens)
        if expected_s <= 0.0:
            return
        decoding_s = self.undrafted_s(batch) or self._prefilled.seconds(batch, 0)
        # The line may end anywhere where few tokens are computed seldom.
        decoding_s = max(decoding_s, LEAST_DECODING * seconds)
        more = (seconds - expected_s) / decoding_s
        self._add(emitted, 1.0 + min(max(-MOST_MORE, more), MOST_MORE))

    def note_new_requests(self, share: float) -> None:
        """Record that so many requests are new, as a share of the batch."""
        if self._left < RESUME:
            self._set_left(self._left + NEW_BATCH * min(1.0, share))

    def undrafted_s(self, batch: int) -> float | None:
        """Return what a step of so many requests takes without drafts, in seconds: straight lines
        between numbers of requests that were measured. None: none was."""
        if not self._undrafted:
            return None
        below: _Undrafted | None = None
        above: _Undrafted | None = None
        for known in self._undrafted.values():
            if known.batch <= batch and (below is None or known.batch > below.batch):
                below = known
            if known.batch >= batch and (above is None or known.batch < above.batch):
                above = known
        if below is None or above is None:
            nearest = below or above
            assert nearest is not None
            return nearest.seconds
        if above.batch == below.batch:
            return below.seconds
        part = (batch - below.batch) / (above.batch - below.batch)
        return below.seconds + part * (above.seconds - below.seconds)

    def _is_measured(self, batch: int) -> bool:
        """Return whether steps without drafts of about so many requests, or of fewer and of more,
        were measured."""
        known = [each.batch for each in self._undrafted.values()]
        return bool(known) and min(known) / ABOUT <= batch <= max(known) * ABOUT

    def _add(self, emitted: float, steps: float) -> None:
        """Record what took so many steps without drafts, and emitted as much as so many."""
        left = min(max(FIRST, self._left), self._left + SHARE * steps)
        self._set_left(left + emitted - steps)

    def _set_left(self, steps: float) -> None:
        self._left = min(MOST, max(-MOST, steps))
        if self._left <= 0.0:
            self._is_spent = True
        elif self._left >= RESUME:
            self._is_spent = False
