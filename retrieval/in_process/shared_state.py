"""What a retriever's callers and its worker thread share."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field

from reprise.retrieval.in_process.awaited_results import AwaitedResults
from reprise.retrieval.in_process.work_queue import WorkQueue
from reprise.retrieval.query.query_reader import QueryReader


@dataclass(frozen=True, kw_only=True)
class SharedState:
    """What waits for the worker, what it has found, and the lock that guards both."""

    queue: WorkQueue
    """Prompts to answer, answers that joined and left; the lock guards it."""
    results: AwaitedResults
    """Where near answers are picked up; the lock guards it."""
    queries: QueryReader
    """Prompts to queries."""
    count: Callable[..., None]
    """Adds to counts by name; called with the lock held."""
    changed: threading.Condition = field(default_factory=threading.Condition)
    """The lock, notified whenever there is something to do."""
    closing: threading.Event = field(default_factory=threading.Event)
    """Set, with the lock held, when the retriever closes."""
