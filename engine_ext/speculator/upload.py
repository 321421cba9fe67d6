"""Writes from the host into the device's memory, in order on the stream that drafts."""

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

_DTYPES = {torch.int32: np.int32, torch.float32: np.float32}


class Upload(NamedTuple):
    """One write that is ready to be enqueued."""

    target: torch.Tensor
    source: torch.Tensor
    """Of the same shape; page-locked where the target is on a GPU, so that nothing waits."""

    def enqueue(self) -> None:
        """Have it written before what is launched next."""
        self.target.copy_(self.source, non_blocking=True)


def prepare(target: torch.Tensor, values: NDArray[np.int32] | NDArray[np.float32]) -> Upload:
    """Copy `values`, int32 or float32 like the target and of its shape, to where the device can
    fetch them.

    torch keeps page-locked memory for reuse until the device has read it.
    """
    source = torch.from_numpy(np.array(values, _DTYPES[target.dtype]))
    return Upload(target, source.pin_memory() if target.is_cuda else source)
