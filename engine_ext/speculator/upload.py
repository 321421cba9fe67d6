"""Writes from the host into the device's memory, in order on the stream that drafts.

Only in the thread that launches steps: both functions may ask something of CUDA.
"""

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from reprise.engine_ext.speculator import page_locked


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
    source = page_locked.empty(target.shape, target.dtype, target.device)
    source.numpy()[...] = values
    return Upload(target, source)
