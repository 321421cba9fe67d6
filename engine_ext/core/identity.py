"""Which engines are ours, and how they must not be started."""

from typing import TYPE_CHECKING

from vllm import envs

if TYPE_CHECKING:
    from vllm.config import VllmConfig

PROPOSER_PATH = "reprise.engine_ext.proposer.CacheHitProposer"


def uses_our_proposer(vllm_config: "VllmConfig") -> bool:
    """Whether this engine's speculative config names `CacheHitProposer`."""
    speculative = vllm_config.speculative_config
    return speculative is not None and speculative.model == PROPOSER_PATH


def unsupported_start() -> str | None:
    """Why our proposer must not run as vLLM was started here; None if it may.

    The Rust front end would carry no namespaces to the workers: one tenant's answers would draft
    for another.
    """
    if envs.VLLM_USE_RUST_FRONTEND:
        return (
            "Reprise needs vLLM's Python front end, and VLLM_USE_RUST_FRONTEND asks for the other "
            "one: unset it."
        )
    return None
