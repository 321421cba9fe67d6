"""Page-locked memory for what requests bring along and leave behind, taken before there are any.

torch keeps such memory for reuse, by sizes that are powers of two. What it does not have yet it
asks CUDA for, which takes its time and may wait for the device: in a step, when many requests begin
or end at once.
"""

import torch

_SMALL_BYTES, _NUM_SMALL = 512, 8
"""What is known of near answers, counts and lengths, at a time for each request."""
_MAX_REQUESTS = 256


def reserve(num_requests: int, *, max_near_tokens: int, max_model_len: int) -> int:
    """Have torch take as much as so many requests need that begin or end at once; 256 at most.

    Returns:
        Bytes that were taken.
    """
    sizes = [_SMALL_BYTES] * _NUM_SMALL
    sizes += _powers_of_two(4 * max_near_tokens)  # near answers may be of any length
    sizes.append(4 * max_model_len)
    blocks = [
        torch.empty(size, dtype=torch.uint8, pin_memory=True)
        for _ in range(min(num_requests, _MAX_REQUESTS))
        for size in sizes
    ]
    return sum(block.numel() for block in blocks)


def _powers_of_two(limit: int) -> list[int]:
    """Return those above the small size, up to the first that is not below `limit`."""
    sizes, size = [], _SMALL_BYTES
    while size < limit:
        size *= 2
        sizes.append(size)
    return sizes
