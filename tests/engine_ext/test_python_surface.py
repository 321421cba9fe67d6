"""What programs import from `reprise`, and the ways to make an engine."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import reprise

pytest.importorskip("vllm")

from vllm.engine.arg_utils import AsyncEngineArgs
from vllm.v1.engine.async_llm import AsyncLLM

from reprise.engine_ext.async_llm import EnhancedAsyncLLM, create_enhanced_system
from reprise.engine_ext.core.config import RepriseConfig, engine_config
from reprise.engine_ext.core.identity import uses_our_proposer


def test_every_name_is_there_and_importing_the_package_costs_nothing() -> None:
    for name in reprise.__all__:
        assert getattr(reprise, name).__name__ == name
    with pytest.raises(AttributeError, match="no attribute 'Reprise'"):
        _ = reprise.Reprise  # type: ignore[attr-defined]
    heavy = "{'vllm', 'torch', 'numpy', 'numba', 'pydantic'}"
    code = f"import sys, reprise; print({heavy} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"


@pytest.fixture
def built(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """What an `AsyncLLM` is built with: nothing is started."""
    calls: list[dict[str, Any]] = []

    def start(_self: Any, vllm_config: Any, *_args: Any, **kwargs: Any) -> None:
        calls.append({"vllm_config": vllm_config, **kwargs})

    monkeypatch.setattr(AsyncLLM, "__init__", start)
    monkeypatch.setattr(EnhancedAsyncLLM, "_attach_front_end", lambda _self: None)
    monkeypatch.setattr(EnhancedAsyncLLM, "__del__", lambda _self: None, raising=False)
    monkeypatch.setattr(EnhancedAsyncLLM, "shutdown", lambda _self: None)
    return calls


async def test_an_engine_from_engine_arguments_belongs_to_its_program(
    built: list[dict[str, Any]], demo_model: Path
) -> None:
    engine = EnhancedAsyncLLM(model=str(demo_model), max_model_len=512)
    (call,) = built
    assert uses_our_proposer(call["vllm_config"])
    assert call["vllm_config"].model_config.max_model_len == 512
    assert call["executor_class"] is not None
    assert engine.is_sole_tenant
    bare = EnhancedAsyncLLM(call["vllm_config"], call["executor_class"], True)
    assert not bare.is_sole_tenant
    with pytest.raises(TypeError, match="needs a vllm_config, or the arguments"):
        EnhancedAsyncLLM(max_model_len=512)


async def test_a_config_given_in_the_program_wins(
    built: list[dict[str, Any]], demo_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REPRISE_RETRIEVAL__NEAR_ANSWERS", "5")
    monkeypatch.setenv("REPRISE_RETRIEVAL__BATCH_SIZE", "6")
    ours = RepriseConfig.model_validate({"retrieval": {"near_answers": 8}})
    arguments = AsyncEngineArgs(model=str(demo_model), additional_config={"other": 1})
    async with create_enhanced_system(arguments, ours):
        (call,) = built
    config = engine_config(call["vllm_config"])
    assert (config.retrieval.near_answers, config.retrieval.batch_size) == (8, 6)
    assert call["vllm_config"].additional_config["other"] == 1
