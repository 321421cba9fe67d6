"""Which engines get ahead of themselves, and how: async_scheduling.py decides it."""

from collections.abc import Iterator
from contextlib import contextmanager
from enum import Enum
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vllm.config import VllmConfig

_MARK = "_reprise_ahead"


class Ahead(Enum):
    """How an engine gets ahead of itself."""

    RUN = "steps without drafts are launched before the step before them is known"
    SCHEDULE = "steps are scheduled while the one before them runs"


def ahead_of(config: "VllmConfig") -> Ahead | None:
    """The way of an engine of this config, in any of its processes; None: it goes step by step."""
    return getattr(config.scheduler_config, _MARK, None)


def set_ahead(config: "VllmConfig", ahead: Ahead | None) -> None:
    """Note the way in the config, which other processes get copies of from then on."""
    setattr(config.scheduler_config, _MARK, ahead)


@contextmanager
def without_requests(scheduler: Any) -> Iterator[None]:
    """Let the engine core find nothing to schedule."""
    scheduler.has_requests = lambda: False
    try:
        yield
    finally:
        del scheduler.has_requests
