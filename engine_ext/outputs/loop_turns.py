"""Does long work on the event loop in pieces, one in each turn of the loop, whoever's it is.

To make the text of a token takes microseconds; of an answer of 30,000, a tenth of a second and more
in which no other request is read, fed or aborted.
"""

import asyncio
from collections.abc import Coroutine
from typing import Any

from vllm.utils.async_utils import cancel_task_threadsafe

TOKENS_AT_ONCE = 256
"""Of one request, that are made into text before the loop turns."""


class LoopTurns:
    """Has tasks share the loop, a piece of one of them at a time."""

    def __init__(self) -> None:
        self.one_piece = asyncio.Lock()
        """Held for a turn of the loop and the piece after it, which does not wait for anything."""
        self._tasks: set[asyncio.Task[None]] = set()

    def start(self, work: Coroutine[Any, Any, None]) -> None:
        """Have work done in a task."""
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def close(self) -> None:
        """Stop work in progress."""
        for task in list(self._tasks):
            cancel_task_threadsafe(task)
