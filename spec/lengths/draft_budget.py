"""Draft budget: how much time drafts may lose, measured against steps without them.

A rule that chooses lengths by what it believes of costs and chances can be wrong for as long as its
beliefs are. This one believes nothing. For each step with drafts it adds up what it emitted for a
request, and takes off what it took, in steps of the same batch without drafts, as those were
measured:

    gain = (1 + accepted drafts of a request, on average) - seconds / seconds without drafts

Losses are paid from a budget, into which goes a share of all time, and gains, up to a small bound.
With nothing left there are no drafts. So over any stretch of serving the steps with drafts lose no
more than `SHARE` of its time, the bound, and the few steps that had been sent before the last of it
was spent; and what was gained before buys no more than the bound (a token bucket, as networks limit
rates with).
"""

import math
from collections import deque
from typing import NamedTuple

SHARE = 0.008  # of all time, that may be lost
MOST = 1.0  # steps, that are saved up
RESUME = 0.25  # steps, that there have to be before drafts are made again
MOST_A_STEP = 3.0  # one that took longer was held up by something else, and counts as this
NEW_BATCH = 0.1  # steps that as many new requests as a batch has are worth: they may be better
WEIGHT = 0.2  # of the latest step without drafts, of those with as many requests
BINS_PER_DOUBLING = 4  # of numbers of requests
_MAX_UNCOUNTED = 64  # steps; the first without drafts comes sooner


class _Undrafted(NamedTuple):
    """Steps without drafts of about as many requests."""

    batch: float
    seconds: float


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
        self._left = MOST
        self._is_spent = False
        self._undrafted: dict[int, _Undrafted] = {}
        self._uncounted: deque[tuple[int, float, float]] = deque(maxlen=_MAX_UNCOUNTED)

    @property
    def left(self) -> float:
        """Steps that may be lost before drafts end."""
        return self._left

    def allows_drafts(self) -> bool:
        """Return whether the next step may have drafts."""
        return not self._is_spent

    def note_undrafted(self, batch: int, seconds: float) -> None:
        """Record a step without drafts, and without any made at its end."""
        number = round(BINS_PER_DOUBLING * math.log2(batch))
        known = self._undrafted.get(number)
        if known is None:
            self._undrafted[number] = _Undrafted(batch, seconds)
        else:
            # One that was held up is no measure.
            seconds = min(seconds, 2.0 * known.seconds)
            self._undrafted[number] = _Undrafted(
                known.batch + WEIGHT * (batch - known.batch),
                known.seconds + WEIGHT * (seconds - known.seconds),
            )
        self._add(SHARE)
        while self._uncounted:
            batch, emitted, seconds = self._uncounted.popleft()
            self.note_drafted(batch, emitted=emitted, seconds=seconds)

    def note_drafted(self, batch: int, *, emitted: float, seconds: float) -> None:
        """Record a step with drafts, or with drafts made at its end: what it emitted for a request,
        on average. It is counted once a step without drafts was measured."""
        baseline_s = self.undrafted_s(batch)
        if baseline_s is None:
            self._uncounted.append((batch, emitted, seconds))
            return
        steps = min(seconds / baseline_s, MOST_A_STEP)
        self._add(SHARE * steps + emitted - steps)

    def note_new_requests(self, share: float) -> None:
        """Record that so many requests are new, as a share of the batch."""
        if self._left < RESUME:
            self._add(NEW_BATCH * min(1.0, share))

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

    def _add(self, steps: float) -> None:
        self._left = min(MOST, self._left + steps)
        if self._left <= 0.0:
            self._is_spent = True
        elif self._left >= RESUME:
            self._is_spent = False
