"""The switches of `features`, each on and off on a real engine."""

import asyncio
import os
import time
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("vllm")

from prometheus_client import REGISTRY
from vllm.engine.arg_utils import AsyncEngineArgs
from vllm.sampling_params import RequestOutputKind, SamplingParams

from reprise.engine_ext.async_llm import EnhancedAsyncLLM, create_enhanced_system
from reprise.engine_ext.core.config import RepriseConfig, load_config
from reprise.engine_ext.request import draft_counts_fetcher

FEATURES = ("exact", "near", "clauses", "drafts", "monitoring")
COMPOUND = "How do I cancel my order and where do I find my invoice?"
ALIKE = "How do I cancel my order {} and where do I find my invoice?"
"""Asked with other numbers until what is near comes in time, which on a busy machine takes some."""
IN_TIME_WITHIN_S = 90.0


def test_each_wins_over_the_settings_of_what_it_switches_off() -> None:
    plain = load_config()
    assert plain == load_config({"features": dict.fromkeys(FEATURES, True)})
    chosen: dict[str, Any] = {
        "serving": {"exact_hits": "always"},
        "retrieval": {"clauses": True, "embedding_model": "a", "near_answers": 3},
        "drafts": {"max_near_answers": 7, "num_threads": 2},
    }
    off = {name: load_config({**chosen, "features": {name: False}}) for name in FEATURES}
    assert off["exact"].serving.exact_hits == "off"
    assert off["clauses"].retrieval.clauses is False
    assert off["clauses"].drafts.max_near_answers == 7
    for name in ("near", "drafts"):
        assert off[name].drafts.max_near_answers == 0
        assert off[name].retrieval.embedding_model == "lexical"
        assert off[name].retrieval.clauses is False
    for name, config in off.items():
        assert config.drafts.num_threads == 2
        assert config.retrieval.near_answers == 3
        assert (config.serving.exact_hits == "off") is (name == "exact")


async def ask(engine: EnhancedAsyncLLM, number: int, prompt: str) -> tuple[list[int], Any]:
    """The answer's tokens, and the information on the request."""
    settings = SamplingParams(
        temperature=0,
        max_tokens=80,
        ignore_eos=True,
        output_kind=RequestOutputKind.FINAL_ONLY,
        extra_args={"reprise_info": "on"},
    )
    outputs = [each async for each in engine.generate(prompt, settings, str(number))]
    (completion,) = outputs[-1].outputs
    return list(completion.token_ids), outputs[-1].reprise_info  # type: ignore[attr-defined]


def num_counted() -> float:
    """Requests that the metrics have counted in this process."""
    return sum(
        REGISTRY.get_sample_value(
            "reprise:requests_total", {"model_name": "features", "kind": kind}
        )
        or 0.0
        for kind in ("exact", "followed", "miss")
    )


async def seen(
    engine: EnhancedAsyncLLM, *, waits_for_near: bool
) -> tuple[set[str], list[list[int]]]:
    """What is on, by what comes back, and the answers."""
    before, found = num_counted(), set()
    first, _ = await ask(engine, 1, COMPOUND)
    again, info = await ask(engine, 2, COMPOUND)
    if info.cache == ("exact",):
        found.add("exact")
        assert info.drafts.steps == 0
    await engine.collective_rpc("reprise_flush", args=(60.0,))
    others, asked = [], 2
    deadline_s = time.monotonic() + IN_TIME_WITHIN_S
    while True:
        asked += 1
        answer, info = await ask(engine, asked, ALIKE.format(asked))
        others.append(answer)
        found |= seen_of_a_like_one(info)
        if "near" in found or not waits_for_near or time.monotonic() > deadline_s:
            break
        await asyncio.sleep(1.0)
    await engine.report()
    if num_counted() > before:
        found.add("monitoring")
        assert num_counted() == before + asked
    deadline_s = time.monotonic() + 60.0
    while (health := await engine.health_check())["state"] != "ready":
        assert time.monotonic() < deadline_s, health
        await asyncio.sleep(0.1)
    return found, [first, again, others[0]]


def seen_of_a_like_one(info: Any) -> set[str]:
    """What is on, by the information on a request that an earlier one is like."""
    found = set()
    drafted = {source: counts.drafted for source, counts in info.drafts.by_source.items()}
    if info.cache in (("semantic",), ("clause",)):
        found.add("near")
    else:
        assert info.cache == ("miss",)
    if info.clauses:
        found.add("clauses")
    if sum(drafted.values()):
        found.add("drafts")
    return found


@pytest.fixture(scope="module")
def answers() -> dict[str, list[list[int]]]:
    """What engines have answered so far, by what was off."""
    return {}


@pytest.mark.slow
@pytest.mark.engine
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("off", ["nothing", *FEATURES])
async def test_on_a_real_engine(
    off: str, demo_model: Path, answers: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """All that belongs to it is off, and nothing else; no answer changes."""
    monkeypatch.setenv("REPRISE_RETRIEVAL__EMBEDDING_MODEL", "lexical")
    monkeypatch.setattr(draft_counts_fetcher, "_TIMEOUT_S", 60.0)  # a busy machine stands still
    features = {} if off == "nothing" else {off: False}
    config = RepriseConfig.model_validate({"features": features, "drafts": {"verify_cost": 0.02}})
    args = AsyncEngineArgs(
        model=str(demo_model),
        served_model_name="features",
        dtype="float32",
        enforce_eager=True,
        max_num_seqs=8,
        max_model_len=512,
        kv_cache_memory_bytes=1 << 28,
    )
    async with create_enhanced_system(args, config) as engine:
        waits = off not in ("near", "drafts")
        found, answers[off] = await seen(engine, waits_for_near=waits)
        (worker,) = (await engine.get_stats())["workers"]
        assert worker["errors"] == {}
    gone = {
        "nothing": set(),
        "near": {"near", "clauses"},
        "drafts": {"near", "clauses", "drafts"},
    }.get(off, {off})
    assert found == set(FEATURES) - gone
    assert answers[off] == next(iter(answers.values()))
    assert "REPRISE_RETRIEVAL_ADDRESS" not in os.environ
