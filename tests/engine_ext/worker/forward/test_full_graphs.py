"""The mode of CUDA graphs: full ones where every attention backend can have them."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("vllm")

from vllm.config import CompilationMode, CUDAGraphMode
from vllm.v1.attention.backend import AttentionCGSupport
from vllm.v1.attention.backends.cpu_attn import CPUAttentionBackend
from vllm.v1.attention.backends.gdn_attn import GDNAttentionBackend
from vllm.v1.attention.backends.triton_attn import TritonAttentionBackend
from vllm.v1.kv_cache_interface import FullAttentionSpec, KVCacheConfig, KVCacheGroupSpec

from reprise.engine_ext.compat.patches import Feature, Role
from reprise.engine_ext.compat.registry import registry
from reprise.engine_ext.worker.forward import full_graphs
from reprise.tests.engine_ext.model_runner import engine_config, model_runner_of

pytestmark = pytest.mark.engine

DEFAULT = CUDAGraphMode.FULL_AND_PIECEWISE
# By what of a step a graph can hold.
ALWAYS, UNIFORM, NEVER = TritonAttentionBackend, GDNAttentionBackend, CPUAttentionBackend


@pytest.fixture(scope="module")
def real_runner(demo_model: Path) -> Iterator[Any]:
    with model_runner_of(engine_config(demo_model)) as runner:
        yield runner


@pytest.fixture
def runner(real_runner: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """vLLM's model runner, with graphs as by default on a GPU."""
    compilation = real_runner.compilation_config
    monkeypatch.setattr(compilation, "mode", CompilationMode.VLLM_COMPILE)
    monkeypatch.setattr(compilation, "cudagraph_mode", DEFAULT)
    for name in ("splitting_ops", "cudagraph_capture_sizes", "max_cudagraph_capture_size"):
        monkeypatch.setattr(compilation, name, getattr(compilation, name))
    compilation.splitting_ops = list(compilation._attention_ops)
    compilation.cudagraph_capture_sizes = [8, 16, 24]
    compilation.max_cudagraph_capture_size = 24
    return real_runner


def settled(runner: Any, *backends: type, is_ours: bool = True) -> CUDAGraphMode:
    """The mode with which vLLM goes on, for one group of layers a backend."""
    spec = FullAttentionSpec(block_size=16, num_kv_heads=1, head_size=64, dtype=torch.float32)
    groups = [KVCacheGroupSpec([f"layer {index}"], spec) for index in range(len(backends))]
    runner.kv_cache_config = KVCacheConfig(
        num_blocks=100, kv_cache_tensors=[], kv_cache_groups=groups
    )
    was_applied = registry.is_applied(Feature.FULL_GRAPHS, Role.WORKER)
    registry.revert(Feature.FULL_GRAPHS)
    if is_ours:
        assert registry.apply(Feature.FULL_GRAPHS, full_graphs, role=Role.WORKER)
    try:
        runner._check_and_update_cudagraph_mode([{backend} for backend in backends], groups)
    finally:
        if is_ours and not was_applied:
            registry.revert(Feature.FULL_GRAPHS)
        elif was_applied and not is_ours:
            registry.apply(Feature.FULL_GRAPHS, full_graphs, role=Role.WORKER)
    assert runner.cudagraph_dispatcher.cudagraph_mode == runner.compilation_config.cudagraph_mode
    mode: CUDAGraphMode = runner.compilation_config.cudagraph_mode
    return mode


def test_backends_hold_in_graphs_what_is_thought_of_them(runner: Any) -> None:
    """Else the tests below would be of other cases than they say."""
    spec = FullAttentionSpec(block_size=16, num_kv_heads=1, head_size=64, dtype=torch.float32)
    support = [
        backend.get_builder_cls().get_cudagraph_support(runner.vllm_config, spec)
        for backend in (ALWAYS, UNIFORM, NEVER)
    ]
    assert support == [
        AttentionCGSupport.ALWAYS,
        AttentionCGSupport.UNIFORM_BATCH,
        AttentionCGSupport.NEVER,
    ]


def test_graphs_are_full_where_all_backends_allow(runner: Any) -> None:
    assert settled(runner, ALWAYS, ALWAYS, is_ours=False) == DEFAULT
    assert settled(runner, ALWAYS, ALWAYS) == CUDAGraphMode.FULL


def another_drafter(runner: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner.vllm_config.speculative_config, "model", "ngram")


def cascade_attention(runner: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner.model_config, "disable_cascade_attn", False)


def mode(wanted: CUDAGraphMode) -> Callable[[Any, pytest.MonkeyPatch], None]:
    def set_mode(runner: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(runner.compilation_config, "cudagraph_mode", wanted)

    return set_mode


def as_it_is(runner: Any, monkeypatch: pytest.MonkeyPatch) -> None: ...


@pytest.mark.parametrize(
    ("change", "backends"),
    [
        pytest.param(as_it_is, (ALWAYS, UNIFORM), id="uniform"),
        pytest.param(as_it_is, (NEVER,), id="never"),
        pytest.param(another_drafter, (ALWAYS,), id="another drafter"),
        pytest.param(cascade_attention, (ALWAYS,), id="cascade"),
        pytest.param(mode(CUDAGraphMode.PIECEWISE), (ALWAYS,), id="piecewise"),
        pytest.param(mode(CUDAGraphMode.NONE), (ALWAYS,), id="none"),
    ],
)
def test_otherwise_the_mode_is_vllms_own(
    runner: Any,
    monkeypatch: pytest.MonkeyPatch,
    change: Callable[[Any, pytest.MonkeyPatch], None],
    backends: tuple[type, ...],
) -> None:
    change(runner, monkeypatch)
    before = runner.compilation_config.cudagraph_mode
    wanted = settled(runner, *backends, is_ours=False)
    runner.compilation_config.cudagraph_mode = before
    assert settled(runner, *backends) == wanted != CUDAGraphMode.FULL
    if NEVER not in backends:
        assert wanted == before
