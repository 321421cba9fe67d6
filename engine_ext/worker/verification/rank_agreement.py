"""What tensor-parallel ranks may only do alike is decided by all of them.

Each rank samples by itself and feeds its own token to its next step. A rank that samples otherwise
than the others, be it once, computes on another answer from then on, and no error says so.
"""

import torch
from vllm.distributed import parallel_state


def num_ranks() -> int:
    """Count the ranks that sample the same requests."""
    if not parallel_state.model_parallel_is_initialized():
        return 1
    return int(parallel_state.get_tp_group().world_size)


def all_ranks_can(can: bool) -> bool:
    """Return whether all ranks can do what this one can or cannot. To be called by all of them, at
    the same point: each waits for the others."""
    if num_ranks() == 1:
        return can
    votes = torch.tensor([int(can)])
    group = parallel_state.get_tp_group().cpu_group
    torch.distributed.all_reduce(votes, torch.distributed.ReduceOp.MIN, group=group)
    return bool(votes.item())
