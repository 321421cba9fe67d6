"""Where the engine is when it asks for drafts."""

from enum import Enum, auto


class SchedulingMode(Enum):
    """Where the engine is when it asks for drafts."""

    SYNC = auto()
    """It waits for every step before it launches the next."""
    DRAINED = auto()
    """It waited for this one, and runs ahead from the next one on if that has no drafts."""
    IN_FLIGHT = auto()
    """It runs ahead: the next step has been launched, without drafts. Those that are asked for now
    only tell whether it pays to wait for that step, and to have drafts after it."""
