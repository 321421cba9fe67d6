"""The lines that say what is on: at the start, when near answers are ready, and at the end."""

import asyncio
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from vllm.logger import init_logger

from reprise import __version__
from reprise.engine_ext.compat.registry import registry
from reprise.engine_ext.core.identity import runs_on_v2
from reprise.retrieval.api.tier_url import redact

if TYPE_CHECKING:
    from vllm.config import VllmConfig

    from reprise.engine_ext.core.config import RepriseConfig
    from reprise.retrieval.api.retriever import Retriever

logger = init_logger(__name__)
_LOOK_S = 0.25
_EXACT_HITS = {
    "deterministic": "exact hits for temperature 0 or a seed",
    "always": "exact hits for all requests, sampled ones too",
    "off": "no exact hits",
}
_WHOSE = {
    "off": "of this process",
    "verified": "those of others verified",
    "trusted": "shared through the tier",
}
_TIERS = {"memory": "answers end with the server"}


def start_line(config: "RepriseConfig", vllm_config: "VllmConfig", *, searches_here: bool) -> str:
    """Say what is on in an engine that has just been built."""
    speculative = vllm_config.speculative_config
    length = speculative.num_speculative_tokens if speculative is not None else 0
    parts = [
        f"Reprise {__version__} on vLLM {registry.version}, model runner {runner_of(vllm_config)}",
        f"drafts of up to {length} tokens" if config.features.drafts else "no drafts",
        _exact_hits(config),
        f"one namespace for all requests: {config.namespace}"
        if config.namespace is not None
        else "namespaces from API keys that the server checks and from cache_salt",
        _tier(config.retrieval.url),
        _near_answers(config, searches_here=searches_here),
    ]
    if not config.features.monitoring:
        parts.append("no metrics")
    if config.kv_pins.enabled:
        parts.append(f"prefixes pinned in up to {config.kv_pins.max_share:.0%} of the KV blocks")
    return "; ".join(parts) + "."


def runner_of(vllm_config: "VllmConfig") -> str:
    """Name the model runner that an engine uses: V1 or V2."""
    return "V2" if runs_on_v2(vllm_config) else "V1"


async def announce_near_answers(retriever: "Retriever") -> None:
    """Log when near answers are ready, and how long retrieval took to start."""
    while (health := retriever.health()).ready_after_s is None:
        if health.state == "closed":
            return
        await asyncio.sleep(_LOOK_S)
    held = retriever.stats().answers
    without = f", {health.detail}" if health.detail else ""
    logger.info(
        "Reprise: near answers are ready after %.1f s (%s, %d answers held%s).",
        health.ready_after_s,
        health.embedder,
        held,
        without,
    )


def end_line(stats: Mapping[str, Any]) -> str | None:
    """Say what a front end has saved, by its `stats`; None: it was asked nothing."""
    counts: Mapping[str, int] = stats["counts"]
    num_exact, num_followed = counts.get("exact", 0), counts.get("followed", 0)
    total = num_exact + num_followed + counts.get("miss", 0)
    if not total:
        return None
    parts = [f"{num_exact} were exact hits", f"{num_followed} followed an identical one"]
    tokens = [f"{counts.get('tokens_saved', 0)} tokens were not generated"]
    if counts.get("checked"):
        parts.append(f"{counts.get('verified', 0)} began with a stored answer that was verified")
        tokens.append(f"{counts.get('tokens_verified', 0)} were verified, not generated one by one")
    near: Mapping[str, int] | None = stats["near_answers"]
    if near is not None:
        parts.append(f"{near.get('semantic', 0) + near.get('clause', 0)} had near answers")
    return f"Reprise: of {total} requests {', '.join(parts)}; {', '.join(tokens)}."


def _exact_hits(config: "RepriseConfig") -> str:
    serving = config.serving
    kind = serving.exact_hits if serving.enabled else "off"
    if kind == "off":
        return _EXACT_HITS[kind]
    has_tier = config.retrieval.has_tier
    return f"{_EXACT_HITS[kind]}, {_WHOSE[serving.exact_hits_from_others if has_tier else 'off']}"


def _near_answers(config: "RepriseConfig", *, searches_here: bool) -> str:
    if not config.drafts.max_near_answers:
        return "no near answers"
    if searches_here:
        return f"near answers once {config.retrieval.embedding_model} is loaded"
    return "near answers searched for by the workers"


def _tier(url: str) -> str:
    scheme = url.partition(":")[0]
    return _TIERS.get(scheme) or f"answers kept in {redact(url)}"
