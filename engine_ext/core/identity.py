"""Which engines are ours, and how they must not be started."""

from typing import TYPE_CHECKING

from vllm import envs

from reprise.engine_ext.core.proposer_path import PROPOSER_PATH

if TYPE_CHECKING:
    from vllm.config import VllmConfig

__all__ = ["PROPOSER_PATH", "unsupported_start", "uses_our_proposer"]


def uses_our_proposer(vllm_config: "VllmConfig") -> bool:
    """Return whether this engine's speculative config names `CacheHitProposer`."""
    speculative = vllm_config.speculative_config
    return speculative is not None and speculative.model == PROPOSER_PATH


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
