"""What all tests share: the demo model, real engines and servers, and the reasons for skips."""

import functools
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

# Before anything imports vLLM: quiet engines, without a look at any hub.
os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# What is compared token for token must not depend on what is computed beside it: attention that
# shares out keys among threads rounds by the batch.
os.environ.setdefault("VLLM_CPU_ATTN_SPLIT_KV", "0")

from reprise.eval.demo_data.demo_model import DEMO_DTYPE, demo_model_path
from reprise.eval.live.engine_environment import engine_environment

REPOSITORY = Path(__file__).resolve().parent.parent
# Recorded traces and a trained model that some checkouts lie beside; no part of the project.
SHARED = REPOSITORY.parent / "shared"
# For 32 requests of 1,024 tokens; several engines are there at once.
KV_CACHE_BYTES = 1 << 28
_ENDS_WITHIN_S = 2.0


@pytest.fixture(scope="session")
def demo_model() -> Path:
    """The folder of the bundled demo model: the same weights on every machine."""
    return demo_model_path()


@pytest.fixture(scope="session")
def shared_folder() -> Path:
    """The folder of recorded traces, where there is one."""
    if not (SHARED / "traces").is_dir():
        pytest.skip("no folder of recorded traces beside this checkout")
    return SHARED


@pytest.fixture(autouse=True)
def _no_settings_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    """A developer's own REPRISE_* variables must not change what is tested."""
    for variable in [name for name in os.environ if name.startswith("REPRISE_")]:
        monkeypatch.delenv(variable)


def build_llm(model: Path, *, with_reprise: bool, **overrides: object) -> object:
    """A real vLLM engine on the CPU, in a process of its own, at most 8 requests at once.

    Without Reprise it is vLLM as its users get it: its processes do not load our plugin.
    """
    from vllm import LLM
    from vllm.plugins import load_general_plugins

    speculative = {
        "model": "reprise.engine_ext.proposer.CacheHitProposer",
        "num_speculative_tokens": 16,
    }
    settings: dict[str, object] = {
        "model": str(model),
        # In bfloat16 tokens tie, and the batch and the processor decide which of them wins.
        "dtype": DEMO_DTYPE,
        "enforce_eager": True,
        "max_num_seqs": 8,
        "max_model_len": 1024,
        "kv_cache_memory_bytes": KV_CACHE_BYTES,
        "disable_log_stats": False,
        "speculative_config": speculative if with_reprise else None,
        # Drafts, and many, whatever they cost on the machine at hand: they are what is tested.
        "additional_config": {"reprise": {"drafts": {"verify_cost": 0.02}}} if with_reprise else {},
        **overrides,
    }
    load_general_plugins()  # into this process, which all engines share, whichever comes first
    with pytest.MonkeyPatch.context() as monkeypatch:
        for name, value in engine_environment(with_reprise=with_reprise).items():
            monkeypatch.setenv(name, value)
        llm = LLM(**settings)
    # vLLM 0.32 gives an engine 5 s to end, waits as long for the worker, and kills both.
    core = llm.llm_engine.engine_core
    core.shutdown = functools.partial(core.shutdown, timeout=_ENDS_WITHIN_S)
    return llm


@pytest.fixture(scope="session")
def llm_builder() -> Callable[..., object]:
    """For tests that need an engine with settings of its own."""
    return build_llm


@pytest.fixture(scope="session")
def plain_llm(demo_model: Path) -> Iterator[object]:
    """vLLM as it comes; shared by all tests."""
    llm: Any = build_llm(demo_model, with_reprise=False)
    yield llm
    _end(llm)


@pytest.fixture(scope="session")
def reprise_llm(demo_model: Path) -> Iterator[object]:
    """vLLM with our proposer; shared by all tests."""
    llm: Any = build_llm(demo_model, with_reprise=True)
    yield llm
    _end(llm)


def _end(llm: Any) -> None:
    # A test that failed keeps the engine alive, and Python then waits for its process for ever.
    llm.llm_engine.engine_core.shutdown()
