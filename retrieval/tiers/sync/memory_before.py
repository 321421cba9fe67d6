"""The memory before a tier, as those see it that read and write the tier."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from reprise.retrieval.api.answer import Answer
from reprise.retrieval.api.invalidation import Forgotten
from reprise.retrieval.tiers.sync.write_queue import Key

OnAdded = Callable[[Sequence[Answer]], None]
OnForgotten = Callable[[Forgotten], None]
WaitForRoom = Callable[[float], bool]


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryBefore:
    """What is asked of it, and what it is told."""

    on_added: OnAdded
    """Called with answers found in the tier: all at start, then what others add. May wait, which
    slows the reading down."""
    on_forgotten: OnForgotten
    """Called with what others removed or had forgotten, and what left for want of room."""
    on_removed: Callable[[Sequence[Key]], object] = lambda _: None
    """Called with the (namespace, answer id) that this process had forgotten, once the tier has
    removed them: what it handed out before may have joined since."""
    held: Callable[[], set[Key]] = set
    """Returns the (namespace, answer id) held here that the tier should have, or had."""
    has_room: Callable[[], bool] | None = None
    """Whether more answers are wanted: at start the most valuable ones are taken first, until it
    says no, and what others add only while it says yes. None takes all."""
    wait_for_room: WaitForRoom = lambda _: True
    """Waits until `on_added` can be called, for so many seconds; returns whether it can."""
    take_orphans: Callable[[], Sequence[Key]] = tuple
    """Returns what is wanted of the tier again, by (namespace, answer id), each once."""
    on_orphans: OnAdded = lambda _: None
    """Called with what the tier holds of that."""
