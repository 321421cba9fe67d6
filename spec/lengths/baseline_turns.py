# mypy: allow-untyped-calls
"""Baseline turns: which steps go without drafts, so that it is known what such a step takes."""

from reprise.spec.lengths.cost_model import batch_bin

STEPS = 2  # without drafts in a row, of which the first may be one that cannot be measured
WAIT_DIVISOR = 8  # of the steps since they are due, until they are tried again
MAX_WAIT = 128  # steps


class BaselineTurns:
    """As long as none of like batch sizes can be measured, as where every step prefills or has a
    grammar, they come ever more seldom.

    Example:
        >>> turns = BaselineTurns()
        >>> [turns.is_due(8, is_needed=True) for _ in range(8)]
        [True, True, False, False, True, True, False, False]
    """

    def __init__(self) -> None:
        # By bin: steps since one is due, and after how many of them the next ones are without.
        self._waiting: dict[int, tuple[int, int]] = {}

    def is_due(self, batch: int, *, is_needed: bool) -> bool:
        """Return whether the next step is to be without drafts.

        Args:
            batch: requests of the step.
            is_needed: one is to be measured, and none has been yet.
        """
        like = batch_bin(batch)
        if not is_needed:
            self._waiting.pop(like, None)
            return False
        since, due = self._waiting.get(like, (0, 0))
        is_due = since >= due
        since += 1
        # What these come to is known when two more have been chosen.
        if since == due + STEPS:
            due = since + min(STEPS + since // WAIT_DIVISOR, MAX_WAIT)
        self._waiting[like] = since, due
        return is_due
