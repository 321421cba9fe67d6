"""Feeds those who follow a generation late what was generated before, in pieces."""

import asyncio
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from reprise.engine_ext.outputs.loop_turns import TOKENS_AT_ONCE, LoopTurns

if TYPE_CHECKING:
    from vllm.v1.engine.output_processor import OutputProcessor


class LateFollowers:
    """Holds the requests that are behind the generation that they follow. Event loop only."""

    def __init__(self, processor: "OutputProcessor", turns: LoopTurns) -> None:
        self._processor = processor
        self._turns = turns
        self._behind: set[str] = set()

    def __contains__(self, request_id: str) -> bool:
        return request_id in self._behind

    @property
    def ids(self) -> frozenset[str]:
        """Of requests that are behind, or have left since."""
        return frozenset(self._behind)

    def begin(
        self,
        request_id: str,
        token_ids: Sequence[int],
        num_fed: int,
        feed: Callable[[Sequence[int], bool], None],
    ) -> None:
        """Feed a request from a generation, until it has all that there is.

        Args:
            request_id: One that the processor knows.
            token_ids: [n] generated so far; more may come.
            num_fed: How many of them it was fed.
            feed: Called with the next ones, and whether these are the last for now: the request is
                behind no more then.
        """
        self._behind.add(request_id)
        self._turns.start(self._catch_up(request_id, token_ids, num_fed, feed))

    async def _catch_up(
        self,
        request_id: str,
        token_ids: Sequence[int],
        num_fed: int,
        feed: Callable[[Sequence[int], bool], None],
    ) -> None:
        while request_id in self._behind:
            async with self._turns.one_piece:
                await asyncio.sleep(0)
                if not self._processor.has_request(request_id):
                    self._behind.discard(request_id)
                    return
                piece = token_ids[num_fed : num_fed + TOKENS_AT_ONCE]
                num_fed += len(piece)
                if num_fed == len(token_ids):
                    self._behind.discard(request_id)
                feed(piece, num_fed == len(token_ids))
