"""Which engines are ours, on which model runner, whether requests go on in other engines, and how
ours must not be started."""

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from vllm import envs

from reprise.engine_ext.core.proposer_path import PROPOSER_PATH

if TYPE_CHECKING:
    from vllm.config import VllmConfig
    from vllm.v1.core.sched.interface import SchedulerInterface

__all__ = ["PROPOSER_PATH", "hand_over", "runs_on_v2", "unsupported_start", "uses_our_proposer"]


# vLLM's connectors that hand over KV, or hidden states, whatever role they are given.
_HAND_OVER = frozenset(
    {
        "ExampleHiddenStatesConnector",
        "MooncakeConnector",
        "MoRIIOConnector",
        "NixlConnector",
        "NixlPullConnector",
        "NixlPushConnector",
        "P2pNcclConnector",
    }
)


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


def hand_over(vllm_config: "VllmConfig") -> str | None:
    """Return how this engine hands requests' KV to another engine, or takes them from it, for a log
    line; None: it does not, whether it has a KV connector or none.

    One that keeps blocks for later, in host memory, on disk or in a store that engines share,
    changes only where a block comes from. One of disaggregated prefill changes what a request is:
    its other half waits for it elsewhere.
    """
    config = vllm_config.kv_transfer_config
    if config is None or config.kv_connector is None:
        return None
    for name, role in _connectors(
        config.kv_connector, config.kv_role, config.kv_connector_extra_config
    ):
        if name in _HAND_OVER:
            return f"the KV connector {name} hands KV to other engines"
        if role != "kv_both":
            return f"the KV connector {name} has the role {role}"
    return None


def _connectors(
    name: str | None, role: str | None, extra: Mapping[str, Any]
) -> Iterator[tuple[str | None, str | None]]:
    """Yield the name and the role of a connector, and of those that it is made of."""
    yield name, role
    for child in extra.get("connectors", ()):
        yield from _connectors(
            child.get("kv_connector"),
            child.get("kv_role", role),
            child.get("kv_connector_extra_config", {}),
        )


def unsupported_start(vllm_config: "VllmConfig") -> str | None:
    """Return why our proposer must not run as vLLM was started here; None if it may.

    The Rust front end would carry no namespaces to the workers: one tenant's answers would draft
    for another. With ranks that schedule by themselves, each would choose other lengths, and they
    would wait for one another for ever.
    """
    if envs.VLLM_USE_RUST_FRONTEND:
        return (
            "Reprise needs vLLM's Python front end, and VLLM_USE_RUST_FRONTEND asks for the other "
            "one: unset it."
        )
    parallel = vllm_config.parallel_config
    num_ranks = parallel.tensor_parallel_size * parallel.pipeline_parallel_size
    if parallel.distributed_executor_backend == "external_launcher" and num_ranks > 1:
        return (
            "Reprise cannot draft with --distributed-executor-backend external_launcher and "
            "several ranks, which schedule each by itself: use mp or ray."
        )
    return None
