"""The mode of CUDA graphs: full ones where every attention backend can have them."""

from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("vllm")

from vllm.config import CUDAGraphMode
from vllm.v1.attention.backend import AttentionCGSupport
from vllm.v1.worker.gpu_model_runner import GPUModelRunner

from reprise.engine_ext.compat.patches import Feature, Role
from reprise.engine_ext.compat.registry import registry
from reprise.engine_ext.core.identity import PROPOSER_PATH
from reprise.engine_ext.worker import full_graphs

pytestmark = pytest.mark.engine

DEFAULT = CUDAGraphMode.FULL_AND_PIECEWISE


def backend(support: AttentionCGSupport) -> Any:
    builder = SimpleNamespace(get_cudagraph_support=lambda *_: support)
    return SimpleNamespace(get_builder_cls=lambda: builder)


def runner(
    *, mode: CUDAGraphMode = DEFAULT, drafter: str = PROPOSER_PATH, cascade: bool = False
) -> Any:
    return SimpleNamespace(
        vllm_config=SimpleNamespace(speculative_config=SimpleNamespace(model=drafter)),
        compilation_config=SimpleNamespace(cudagraph_mode=mode),
        model_config=SimpleNamespace(is_encoder_decoder=False, disable_cascade_attn=not cascade),
    )


def settled(
    monkeypatch: pytest.MonkeyPatch, engine: Any, *support: AttentionCGSupport
) -> CUDAGraphMode:
    """The mode with which vLLM goes on, for one group of layers a backend."""

    def original(
        self: Any,
        attention_backends: Any,  # noqa: ARG001
        kv_cache_groups: Any,  # noqa: ARG001
        is_profiling: bool = False,  # noqa: ARG001
    ) -> None:
        self.settled = self.compilation_config.cudagraph_mode

    monkeypatch.setattr(GPUModelRunner, "_check_and_update_cudagraph_mode", original)
    assert registry.apply(Feature.FULL_GRAPHS, full_graphs, role=Role.WORKER)
    backends = [[backend(one)] for one in support]
    groups = [SimpleNamespace(kv_cache_spec=None) for _ in support]
    GPUModelRunner._check_and_update_cudagraph_mode(engine, backends, groups)
    mode: CUDAGraphMode = engine.settled
    return mode


ALWAYS, UNIFORM = AttentionCGSupport.ALWAYS, AttentionCGSupport.UNIFORM_BATCH


def test_graphs_are_full_where_all_backends_allow(monkeypatch: pytest.MonkeyPatch) -> None:
    assert settled(monkeypatch, runner(), ALWAYS, ALWAYS) == CUDAGraphMode.FULL


@pytest.mark.parametrize(
    ("engine", "support"),
    [
        (runner(), (ALWAYS, UNIFORM)),
        (runner(), (AttentionCGSupport.NEVER,)),
        (runner(drafter="ngram"), (ALWAYS,)),
        (runner(cascade=True), (ALWAYS,)),
        (runner(mode=CUDAGraphMode.PIECEWISE), (ALWAYS,)),
        (runner(mode=CUDAGraphMode.NONE), (ALWAYS,)),
    ],
)
def test_otherwise_the_mode_stays(
    monkeypatch: pytest.MonkeyPatch, engine: Any, support: tuple[AttentionCGSupport, ...]
) -> None:
    before = engine.compilation_config.cudagraph_mode
    assert settled(monkeypatch, engine, *support) == before
