"""What the mixture keeps in the device's memory beside `DraftState`, never made anew."""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np
import numpy.typing as npt
import torch

from reprise.kernels.mixture.layout import MAX_NEAR, NUM_CHOICE, NUM_MIXTURE
from reprise.kernels.mixture.scratch import FLOATS_IN_ALL, NUM_PIECES, WORDS_IN_ALL

NEAR_LENGTH, NUM_NEAR, NEAR_VERSION, SALT, MIXTURE_FIELDS = range(5)
"""Fields of a slot: tokens of its first MAX_NEAR near answers, marks included; how many these are;
a number that changes with them; the salt of its namespace's hashed features, 32 bits."""

NEAR_START, NEAR_SIMILARITY, NEAR_RANK, NEAR_CLAUSE, NEAR_FIELDS = range(5)
"""Fields of a near answer: index of its BOS, buckets of its similarity and of its rank among those
of its clause, and the clause."""

TAG_KIND, TAG_FIRST = 256, 1024
"""Parts of a near token's tag: index of its near answer, TAG_KIND * (in our prompt + 2 in theirs),
TAG_FIRST where it is the answer's first token of its kind."""

KEPT_VERSION, KEPT_FIELDS = range(2)


@dataclass(frozen=True)
class MixtureState:
    """Tensors on one device: what the host writes, and what predicting itself keeps."""

    mixture_weights: torch.Tensor
    """[NUM_MIXTURE] float32, see `layout`; written by the host."""
    choice_weights: torch.Tensor
    """[NUM_CHOICE] float32; written by the host."""
    slots: torch.Tensor
    """[num_slots, MIXTURE_FIELDS] int32; written by the host."""
    near_tags: torch.Tensor
    """[num_slots, max_near_tokens] int32: of each of a slot's near tokens; written by the host."""
    near_info: torch.Tensor
    """[num_slots, MAX_NEAR, NEAR_FIELDS] int32; written by the host."""

    kept: torch.Tensor
    """[num_slots, KEPT_FIELDS] int32: the version of the near answers that are kept for."""
    pointers: torch.Tensor
    """[num_slots, max_draft + 1, MAX_NEAR] int32: of each near answer the place that is expected
    next, at the beginning of the slot's last draft and after each of its tokens; -1: none."""
    hits: torch.Tensor
    """[num_slots, max_draft + 1, MAX_NEAR] float32: how often each was right there of late."""

    words: torch.Tensor
    """[num_slots, WORDS_IN_ALL] int32: scratch of each row of a batch, see `scratch`."""
    floats: torch.Tensor
    """[num_slots, FLOATS_IN_ALL] float32: likewise."""
    shares: torch.Tensor
    """[num_slots, 2 * NUM_PIECES] int64: likewise."""

    @classmethod
    def create(
        cls,
        *,
        mixture_weights: npt.NDArray[np.float32],
        choice_weights: npt.NDArray[np.float32],
        num_slots: int,
        max_draft: int,
        max_near_tokens: int,
        device: torch.device | str = "cpu",
    ) -> MixtureState:
        """Allocate everything, with these weights and no near answers.

        Raises:
            ValueError: weights are not of the predictor's tables.
        """
        if mixture_weights.shape != (NUM_MIXTURE,) or choice_weights.shape != (NUM_CHOICE,):
            raise ValueError(
                f"expected weights [{NUM_MIXTURE}] and [{NUM_CHOICE}], "
                f"came {list(mixture_weights.shape)} and {list(choice_weights.shape)}"
            )

        def zeros(*shape: int, dtype: torch.dtype = torch.int32) -> torch.Tensor:
            return torch.zeros(shape, dtype=dtype, device=device)

        return cls(
            mixture_weights=torch.from_numpy(mixture_weights.copy()).to(device),
            choice_weights=torch.from_numpy(choice_weights.copy()).to(device),
            slots=zeros(num_slots, MIXTURE_FIELDS),
            near_tags=zeros(num_slots, max_near_tokens),
            near_info=zeros(num_slots, MAX_NEAR, NEAR_FIELDS),
            kept=zeros(num_slots, KEPT_FIELDS),
            pointers=zeros(num_slots, max_draft + 1, MAX_NEAR),
            hits=zeros(num_slots, max_draft + 1, MAX_NEAR, dtype=torch.float32),
            words=zeros(num_slots, WORDS_IN_ALL),
            floats=zeros(num_slots, FLOATS_IN_ALL, dtype=torch.float32),
            shares=zeros(num_slots, 2 * NUM_PIECES, dtype=torch.int64),
        )

    @property
    def num_bytes(self) -> int:
        """Memory of all tensors."""
        tensors = (getattr(self, field.name) for field in fields(self))
        return sum(tensor.numel() * tensor.element_size() for tensor in tensors)
