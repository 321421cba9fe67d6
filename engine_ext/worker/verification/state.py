"""What is in force about verification in one engine, whichever model runner it has.

A process may hold several engines. An engine's drafter makes an `Installation` and leaves it with
the engine's speculative config, from which the engine's rejection sampler is built: whatever is
sampled with that sampler is verified as its own engine says, and other samplers are vLLM's.

Ranks: whether verification works is found out before its first use and agreed on by all
tensor-parallel ranks. After an error later on vLLM verifies, where there is one rank; where there
are more, the worker ends, and so does the engine: one rank alone must not sample otherwise than the
others.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import torch
from vllm.logger import init_logger

from reprise.engine_ext.compat.engine_state import mark_of, set_mark
from reprise.engine_ext.worker.verification.rank_agreement import all_ranks_can, num_ranks
from reprise.kernels.config import VerifyConfig

logger = init_logger(__name__)

_MARK = "verification"


@dataclass
class VerificationCounts:
    """Batches since the engine began; those of vLLM's own warm-up are among them."""

    verified: int = 0
    """Batches that our kernels verified; their requests may have had no drafts."""
    undrafted: int = 0
    """Batches without any draft that vLLM's sampler sampled."""
    fallen_through: dict[str, int] = field(default_factory=dict)
    """Batches that vLLM verified itself, by the reason."""


class _NotOnAllRanksError(Exception):
    """A rank cannot verify: no rank does, from now on."""


class Installation:
    """What is in force in one engine. Without a lock: an engine samples in one thread.

    Args:
        config: how drafts are verified.
    """

    def __init__(self, config: VerifyConfig) -> None:
        from vllm.platforms import current_platform

        self.config = config
        self.active = config.enabled is not False
        self.samples = current_platform.is_cuda() or config.enabled is True
        """Whether requests that are not greedy are ours as well, on model runner V1."""
        self.keeps_samples = False
        """Whether drafts can be verified so that a seed keeps its sample, on model runner V1."""
        self.counts = VerificationCounts()
        self._is_warm = False
        self._noise: np.random.Generator | None = None

    @property
    def keeps_samples_now(self) -> bool:
        """Whether requests with a seed may have drafts, on model runner V1."""
        return self.active and self.keeps_samples

    def report(self) -> dict[str, Any]:
        """Count the batches that were verified, sampled or left to vLLM, and why."""
        return asdict(self.counts)

    def deactivate(self) -> None:
        """Leave all verification to vLLM from now on."""
        self.active = False

    def count_verified(self) -> None:
        """Count a batch that our kernels have verified."""
        self.counts.verified += 1

    def count_undrafted(self) -> None:
        """Count a batch without drafts that vLLM samples."""
        self.counts.undrafted += 1

    def count_fall_through(self, reason: str) -> None:
        """Count a batch that vLLM verifies itself."""
        fallen_through = self.counts.fallen_through
        fallen_through[reason] = fallen_through.get(reason, 0) + 1

    def leave_to_vllm(self, error: Exception) -> None:
        """Stop verifying: a kernel that fails must not end the engine, nor part it from others.

        Raises:
            SystemExit: other ranks sample with the kernel. vLLM ends an engine of which a worker
                ends; an exception of another kind it would only log, on all ranks but one.
        """
        self.active = False
        if num_ranks() > 1 and not isinstance(error, _NotOnAllRanksError):
            logger.critical(
                "Reprise: verification failed on one of several tensor-parallel ranks, whose "
                "tokens would differ from the others' from now on; the worker ends. With "
                "verification.enabled=false vLLM verifies by itself.",
                exc_info=error,
            )
            raise SystemExit("Reprise: verification failed on one tensor-parallel rank") from error
        logger.error("Reprise: verification failed; vLLM's own is used.", exc_info=error)

    def try_once(self, attempt: Callable[[], None]) -> None:
        """Try the kernels before the first batch, which all ranks have at the same time.

        Raises:
            _NotOnAllRanksError: this rank or another one cannot verify.
        """
        if self._is_warm:
            return
        self._is_warm = True
        failed: Exception | None = None
        try:
            attempt()
        except Exception as error:
            failed = error
        if not all_ranks_can(failed is None):
            raise _NotOnAllRanksError("the kernels do not run on all ranks") from failed

    def draw_noise(self, batch: int) -> torch.Tensor:
        """Draw fresh seeds, with offsets of 0: [2, batch] int64 on the CPU."""
        if self._noise is None:
            # vLLM has seeded torch with the engine's seed by now, on every rank with the same.
            self._noise = np.random.default_rng(torch.initial_seed() % 2**64)
        noise = np.zeros((2, batch), dtype=np.int64)
        noise[0] = self._noise.integers(-(2**63), 2**63, size=batch, dtype=np.int64)
        return torch.from_numpy(noise)


def announce(installation: Installation, speculative_config: Any) -> None:
    """Leave an installation where the engine's rejection sampler, built later, finds it."""
    set_mark(speculative_config, _MARK, installation)


def bind(sampler: Any, installation: Installation | None) -> None:
    """Have batches of a rejection sampler verified as an installation says; None: as vLLM does."""
    set_mark(sampler, _MARK, installation)


def installation_of(sampler: Any) -> Installation | None:
    """Return what is in force for the batches of a rejection sampler; None: it is none of ours."""
    installation: Installation | None = mark_of(sampler, _MARK)
    return installation


def init_sampler(original: Callable[..., None], sampler: Any, *args: Any, **kwargs: Any) -> None:
    """Build a rejection sampler, and bind it to its engine's installation: a hook of
    `Feature.VERIFICATION` and `Feature.VERIFICATION_V2`."""
    original(sampler, *args, **kwargs)
    announced = (mark_of(given, _MARK) for given in (*args, *kwargs.values()))
    bind(sampler, next((each for each in announced if each is not None), None))
