"""Baseline turns: which steps go without drafts, so that it is known what such a step takes."""

STEPS = 2  # without drafts in a row, of which the first may be one that cannot be measured
WAIT_DIVISOR = 8  # of the steps since they are due, until they are tried again
MAX_WAIT = 128  # steps


class BaselineTurns:
    """As long as none can be measured, as where every step prefills or has a grammar, they come
    ever more seldom.

    Example:
        >>> turns = BaselineTurns()
        >>> [turns.is_due(is_needed=True) for _ in range(8)]
        [True, True, False, False, True, True, False, False]
    """

    def __init__(self) -> None:
        self._since_due = self._due = 0

    def is_due(self, *, is_needed: bool) -> bool:
        """Return whether the next step is to be without drafts.

        Args:
            is_needed: one is to be measured, and none has been yet.
        """
        if not is_needed:
            self._since_due = self._due = 0
            return False
        is_due = self._since_due >= self._due
        self._since_due += 1
        # What these come to is known when two more have been chosen.
        if self._since_due == self._due + STEPS:
            wait = STEPS + self._since_due // WAIT_DIVISOR
            self._due = self._since_due + min(wait, MAX_WAIT)
        return is_due
