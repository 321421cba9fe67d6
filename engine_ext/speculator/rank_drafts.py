"""All tensor-parallel ranks verify the drafts that the first of them has made.

Each rank feeds drafts into its own part of the model. Near answers, which come when they come, and
corpora, which grow in a thread, are never the same on two ranks at the same step; so only the first
rank has any, and hands its drafts to the others, on the device and without the host waiting.
"""

import torch
from vllm.distributed import parallel_state

from reprise.engine_ext.worker.verification.rank_agreement import num_ranks


class RankDrafts:
    """Hands drafts and their chances from the first rank to all.

    Args:
        drafts: [max_num_reqs, K] int64.
        chances: [max_num_reqs, K] float32.
    """

    def __init__(self, drafts: torch.Tensor, chances: torch.Tensor) -> None:
        self._drafts = drafts
        self._chances = chances
        self._is_shared = num_ranks() > 1
        self.is_first = not self._is_shared or parallel_state.get_tp_group().is_first_rank
        """Whether this rank makes the drafts."""
        width = 2 * drafts.shape[1] if self._is_shared else 0
        self._message = torch.zeros(
            (drafts.shape[0], width), dtype=torch.int32, device=drafts.device
        )

    def share(self, num_reqs: int) -> None:
        """Have all ranks' first rows alike. To be called by all of them in every step."""
        if not self._is_shared:
            return
        drafts, chances = self._drafts[:num_reqs], self._chances[:num_reqs]
        message, length = self._message[:num_reqs], drafts.shape[1]
        if self.is_first:
            message[:, :length].copy_(drafts)
            message[:, length:].copy_(chances.view(torch.int32))
        parallel_state.get_tp_group().broadcast(message, src=0)
        if not self.is_first:
            drafts.copy_(message[:, :length])
            chances.view(torch.int32).copy_(message[:, length:])
