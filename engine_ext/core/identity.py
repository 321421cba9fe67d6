"""Which engines are ours, on which model runner, and how they must not be started."""

from typing import TYPE_CHECKING

from vllm import envs

from reprise.engine_ext.core.proposer_path import PROPOSER_PATH

if TYPE_CHECKING:
    from vllm.config import VllmConfig
    from vllm.v1.core.sched.interface import SchedulerInterface

__all__ = ["PROPOSER_PATH", "runs_on_v2", "unsupported_start", "uses_our_proposer"]


def uses_our_proposer(vllm_config: "VllmConfig") -> bool:
    """Return whether this engine's speculative config names `CacheHitProposer`."""
    speculative = vllm_config.speculative_config
    return speculative is not None and speculative.model == PROPOSER_PATH


def runs_on_v2(owner: "VllmConfig | SchedulerInterface") -> bool:
    """Return whether an engine gets model runner V2; older versions of vLLM know of none.

    Args:
        owner: the engine's config, which finds out at every look, or, in a step, its scheduler,
            which has kept what it found.
    """
    return bool(getattr(owner, "use_v2_model_runner", False))


def unsupported_start() -> str | None:
    """Return why our proposer must not run as vLLM was started here; None if it may.

    The Rust front end would carry no namespaces to the workers: one tenant's answers would draft
    for another.
    """
    if envs.VLLM_USE_RUST_FRONTEND:
        return (
            "Reprise needs vLLM's Python front end, and VLLM_USE_RUST_FRONTEND asks for the other "
            "one: unset it."
        )
    return None
