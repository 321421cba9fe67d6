"""What is in force about verification in this process, whichever model runner it has.

Ranks: whether verification works is found out before its first use and agreed on by all
tensor-parallel ranks. After an error later on vLLM verifies, where there is one rank; where there
are more, the worker ends, and so does the engine: one rank alone must not sample otherwise than the
others.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch
from vllm.logger import init_logger

from reprise.engine_ext.worker.verification.rank_agreement import all_ranks_can, num_ranks
from reprise.kernels.config import VerifyConfig

logger = init_logger(__name__)


@dataclass
class VerificationCounts:
    """Batches since the process began; those of vLLM's own warm-up are among them."""

    verified: int = 0
    """Batches that our kernels verified; their requests may have had no drafts."""
    undrafted: int = 0
    """Batches without any draft that vLLM's sampler sampled."""
    fallen_through: dict[str, int] = field(default_factory=dict)
    """Batches that vLLM verified itself, by the reason."""


class _NotOnAllRanksError(Exception):
    """A rank cannot verify: no rank does, from now on."""


class Installation:
    """What is in force in this process. Without a lock: an engine samples in one thread."""

    def __init__(self) -> None:
        self.config = VerifyConfig()
        self.active = False
        self.samples = False
        """Whether requests that are not greedy are ours as well, on model runner V1."""
        self.keeps_samples = False
        """Whether drafts can be verified so that a seed keeps its sample, on model runner V1."""
        self.is_warm = False
        self.counts = VerificationCounts()
        self.noise: np.random.Generator | None = None

    @property
    def keeps_samples_now(self) -> bool:
        """Whether requests with a seed may have drafts, on model runner V1."""
        return self.active and self.keeps_samples


installed = Installation()


def configure(config: VerifyConfig) -> bool:
    """Verify with our kernels from now on, as `config` says; the latest call holds.

    Returns:
        Whether the feature is to be applied.
    """
    from vllm.platforms import current_platform

    installed.active = config.enabled is not False
    installed.samples = current_platform.is_cuda() or config.enabled is True
    installed.config = config
    return installed.active


def deactivate() -> None:
    """Leave all verification to vLLM from now on."""
    installed.active = False


def verification_counts() -> VerificationCounts:
    """Return the counts of this process; the caller must not change them."""
    return installed.counts


def count_verified() -> None:
    """Count a batch that our kernels have verified."""
    installed.counts.verified += 1


def count_undrafted() -> None:
    """Count a batch without drafts that vLLM samples."""
    installed.counts.undrafted += 1


def count_fall_through(reason: str) -> None:
    """Count a batch that vLLM verifies itself."""
    fallen_through = installed.counts.fallen_through
    fallen_through[reason] = fallen_through.get(reason, 0) + 1


def leave_to_vllm(error: Exception) -> None:
    """Stop verifying: a kernel that fails must not end the engine, nor part it from other ranks.

    Raises:
        SystemExit: other ranks sample with the kernel. vLLM ends an engine of which a worker ends;
            an exception of another kind it would only log, on all ranks but one.
    """
    installed.active = False
    if num_ranks() > 1 and not isinstance(error, _NotOnAllRanksError):
        logger.critical(
            "Reprise: verification failed on one of several tensor-parallel ranks, whose tokens "
            "would differ from the others' from now on; the worker ends. With "
            "verification.enabled=false vLLM verifies by itself.",
            exc_info=error,
        )
        raise SystemExit("Reprise: verification failed on one tensor-parallel rank") from error
    logger.error("Reprise: verification failed; vLLM's own is used.", exc_info=error)


def try_once(attempt: Callable[[], None]) -> None:
    """Try the kernels before the first batch, which all ranks have at the same time.

    Raises:
        _NotOnAllRanksError: this rank or another one cannot verify.
    """
    if installed.is_warm:
        return
    installed.is_warm = True
    failed: Exception | None = None
    try:
        attempt()
    except Exception as error:
        failed = error
    if not all_ranks_can(failed is None):
        raise _NotOnAllRanksError("the kernels do not run on all ranks") from failed


def draw_noise(batch: int) -> torch.Tensor:
    """Draw fresh seeds, with offsets of 0: [2, batch] int64 on the CPU."""
    if installed.noise is None:
        # vLLM has seeded torch with the engine's seed by now, on every rank with the same.
        installed.noise = np.random.default_rng(torch.initial_seed() % 2**64)
    noise = np.zeros((2, batch), dtype=np.int64)
    noise[0] = installed.noise.integers(-(2**63), 2**63, size=batch, dtype=np.int64)
    return torch.from_numpy(noise)
