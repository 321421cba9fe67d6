"""Keeps pinned blocks at the end of vLLM's queue of free blocks, from whose head it evicts.

A block that no request uses stays in the prefix cache until the queue's head comes to it. Pinned
blocks are passed over there: they go to the end again, and the next in line is taken. No reference
is held, so a pinned block counts as free all the same: no request waits, and none is preempted, for
the sake of a pin. Where nothing but pinned blocks is left, the pins worth least are let go.
"""

import time
from collections.abc import Iterable
from typing import Any

from vllm.v1.core.kv_cache_utils import get_block_hash, make_block_hash_with_group_id

from reprise.engine_ext.kv_pins.pin_table import PinTable


class EvictionOrder:
    """Orders the free blocks of one block pool of vLLM's.

    Args:
        pool: vLLM's.
        num_groups: KV cache groups, which share the pool.
        table: says which hashes are pinned.
    """

    def __init__(self, pool: Any, num_groups: int, table: PinTable) -> None:
        self._pool = pool
        self._num_groups = num_groups
        self._table = table
        # Blocks that were passed over since they were last used, by the hash of their content.
        self._spared: dict[bytes, int] = {}
        self.num_released = 0
        """Free blocks that were let go of, because nothing else was free."""

    def spare(self, num_blocks: int) -> None:
        """Have the next so many blocks at the queue's head be such that may be evicted."""
        if num_blocks > self._pool.free_block_queue.num_free_blocks:
            return  # vLLM refuses
        while self._table.num_blocks:
            num_found, moved = self._pass_over(num_blocks)
            if num_found >= num_blocks or not moved:
                break
            free = {get_block_hash(block.block_hash) for block in moved}
            if not self._table.let_go_least(free, time.monotonic()):
                break
            self.num_released += sum(block_hash not in self._table for block_hash in free)
        if self._spared:
            self._forget_next(num_blocks)

    def take_spared(self, block_hashes: Iterable[bytes]) -> int:
        """Count blocks that a request has found in the prefix cache, and that would have been
        evicted since they were last used, had they not been pinned."""
        if not self._spared:
            return 0
        return sum(self._spared.pop(block_hash, None) is not None for block_hash in block_hashes)

    def forget_spared(self) -> None:
        """Count none of the blocks that are in the prefix cache by now as spared."""
        self._spared.clear()

    def num_resident(self) -> int:
        """Count pinned blocks that really are in the prefix cache."""
        return len(self.resident(self._table.block_hashes()))

    def resident(self, block_hashes: Iterable[bytes]) -> list[Any]:
        """Return the blocks with these hashes that are in the prefix cache."""
        cache = self._pool.cached_block_hash_to_block
        keys = (
            make_block_hash_with_group_id(block_hash, group)
            for block_hash in block_hashes
            for group in range(self._num_groups)
        )
        found = ((key, cache.get_one_block(key)) for key in keys)
        return [block for key, block in found if block is not None and block.block_hash == key]

    def evict_pinned(self) -> None:
        """Take all pinned blocks out of the prefix cache; requests that use them go on."""
        blocks = self.resident(self._table.block_hashes())
        self._pool.evict_blocks({block.block_id for block in blocks})
        self.forget_spared()

    def _pass_over(self, num_blocks: int) -> tuple[int, list[Any]]:
        """Move pinned blocks from the head of the queue to its end, until so many others are there.

        Returns:
            How many others there are, up to so many, and the blocks that were moved.
        """
        queue = self._pool.free_block_queue
        block, end = queue.fake_free_list_head.next_free_block, queue.fake_free_list_tail
        num_found = 0
        moved: list[Any] = []
        while num_found < num_blocks and block is not end:
            following = block.next_free_block
            if self._is_pinned(block):
                if moved and block is moved[0]:
                    break  # all have been seen
                queue.remove(block)
                queue.append(block)
                moved.append(block)
                self._spared[get_block_hash(block.block_hash)] = block.block_id
            else:
                num_found += 1
            block = following
        return num_found, moved

    def _forget_next(self, num_blocks: int) -> None:
        """Forget that blocks were spared that are taken now."""
        block = self._pool.free_block_queue.fake_free_list_head
        for _ in range(num_blocks):
            block = block.next_free_block
            if block.block_hash is not None:
                content = get_block_hash(block.block_hash)
                if self._spared.get(content) == block.block_id:
                    del self._spared[content]

    def _is_pinned(self, block: Any) -> bool:
        """Return whether a block is pinned: of several with one content, the one that vLLM
        finds."""
        key = block.block_hash
        if key is None or get_block_hash(key) not in self._table:
            return False
        return self._pool.cached_block_hash_to_block.get_one_block(key) is block
