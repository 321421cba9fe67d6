"""Page-locked memory for what requests bring along and leave behind, taken before there are any.

torch keeps such memory for reuse, in blocks whose sizes are powers of two, and gives out none that
is larger than it has to be. What it does not have yet it asks CUDA for, which takes its time and
may wait for the device: in a step, when many requests begin or end at once. Only the thread that
launches steps asks for blocks: while graphs are captured, no other one may call CUDA.
"""

from collections.abc import Sequence

import torch

_SMALLEST_BYTES = 4
_FOR_EACH = 2
"""Blocks of a size that a request needs at once: near answers' tokens and their tags."""
_MAX_BLOCKS = 256
"""Of a size."""
_MAX_BYTES = 8 << 20
"""Of all blocks of a size: there are fewer of the large ones, and two at least."""


def empty(shape: Sequence[int] | int, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """Return memory of the host that the device can copy from or to without anyone waiting."""
    return torch.empty(shape, dtype=dtype, pin_memory=device.type == "cuda")


def reserve(num_requests: int, *, max_bytes: int) -> int:
    """Have torch take as much as so many requests need that begin or end at once, within bounds.

    Args:
        max_bytes: of the largest block that is asked for.

    Returns:
        Bytes that were taken.
    """
    at_once = min(_FOR_EACH * num_requests, _MAX_BLOCKS)
    blocks = []
    size = _SMALLEST_BYTES
    while size < 2 * max_bytes:
        number = max(2, min(at_once, _MAX_BYTES // size))
        blocks += [torch.empty(size, dtype=torch.uint8, pin_memory=True) for _ in range(number)]
        size *= 2
    return sum(block.numel() for block in blocks)
