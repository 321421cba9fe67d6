"""Kernels of the CPU: AMX tiles are asked for; batch invariance only on wish, in our engines."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

pytest.importorskip("vllm")

from vllm.model_executor.layers import utils as linear_layers
from vllm.v1.attention.backends import cpu_attn

from reprise.engine_ext.compat.patches import Feature
from reprise.engine_ext.compat.registry import registry
from reprise.engine_ext.core.config import load_config
from reprise.engine_ext.worker.forward import cpu_kernels
from reprise.eval.real_model.attention_rows import attention_in_pieces

pytestmark = pytest.mark.engine

OTHER_PROCESSOR = Path(__file__).parents[3] / "other_processor"
VARIABLES = ("ONEDNN_MAX_CPU_ISA", "VLLM_CPU_ATTN_SPLIT_KV")
LINEAR_LAYER = (576, 192, torch.bfloat16)


@pytest.fixture
def with_tiles(monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    """A processor with tiles, and vLLM given back afterwards."""
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: True)
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    yield monkeypatch
    registry.revert(Feature.BATCH_INVARIANCE)


def state() -> tuple[Any, ...]:
    """All that decides which kernels a process computes with."""
    isa, kernel = cpu_attn._get_attn_isa, linear_layers.check_cpu_sgl_kernel
    return isa, kernel, *map(os.environ.get, VARIABLES)


def test_tiles_are_used_by_default_and_linux_is_asked(with_tiles: pytest.MonkeyPatch) -> None:
    assert not load_config().cpu_batch_invariant
    asked = []
    with_tiles.setattr(torch.cpu, "_init_amx", lambda: asked.append(1) or True)
    before = state()
    cpu_kernels.prepare(batch_invariant=False)
    assert asked == [1]
    assert state() == before
    assert cpu_attn._get_attn_isa(torch.bfloat16, 32, 64) == "amx"


@pytest.mark.parametrize("block_size", [16, 32, 128])
def test_batch_invariant_vllm_computes_as_where_there_are_no_tiles(
    with_tiles: pytest.MonkeyPatch, block_size: int
) -> None:
    with with_tiles.context() as elsewhere:
        elsewhere.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
        wanted = cpu_attn._get_attn_isa(torch.bfloat16, block_size, 64)
        assert not linear_layers.check_cpu_sgl_kernel(*LINEAR_LAYER)
    assert linear_layers.check_cpu_sgl_kernel(*LINEAR_LAYER)
    for _ in range(2):
        cpu_kernels.prepare(batch_invariant=True)
    assert cpu_attn._get_attn_isa(torch.bfloat16, block_size, 64) == wanted
    assert not linear_layers.check_cpu_sgl_kernel(*LINEAR_LAYER)
    assert [os.environ[name] for name in VARIABLES] == ["AVX512_CORE_BF16", "0"]


def test_variables_that_are_set_stay(with_tiles: pytest.MonkeyPatch) -> None:
    for name, value in zip(VARIABLES, ("AVX2", "1"), strict=True):
        with_tiles.setenv(name, value)
    cpu_kernels.prepare(batch_invariant=True)
    assert [os.environ[name] for name in VARIABLES] == ["AVX2", "1"]


@pytest.mark.parametrize("batch_invariant", [True, False])
def test_nothing_is_touched_on_a_device(
    with_tiles: pytest.MonkeyPatch, batch_invariant: bool
) -> None:
    with_tiles.setattr(torch.cpu, "_init_amx", lambda: pytest.fail("nobody needs tiles"))
    with_tiles.setattr(cpu_kernels, "current_platform", SimpleNamespace(is_cpu=lambda: False))
    before = state()
    cpu_kernels.prepare(batch_invariant=batch_invariant)
    assert state() == before


def test_without_tiles_there_is_nothing_to_ask_for(with_tiles: pytest.MonkeyPatch) -> None:
    with_tiles.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    with_tiles.setattr(torch.cpu, "_init_amx", lambda: pytest.fail("there are none"))
    before = state()
    cpu_kernels.prepare(batch_invariant=False)
    assert state() == before
    cpu_kernels.prepare(batch_invariant=True)
    assert state() == (*before[:3], "0")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_unsplit_attention_rounds_alike_in_any_pieces(dtype: torch.dtype) -> None:
    """What the setting relies on: whole prompts, chunks and single tokens, with two threads."""
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        whole = attention_in_pieces(300, dtype)
        for size in (48, 7, 1):
            assert torch.equal(attention_in_pieces(size, dtype), whole), size
    finally:
        torch.set_num_threads(threads)


@pytest.mark.slow
def test_the_plugin_alone_keeps_nobody_off_tiles() -> None:
    """In a process of its own: what it loads is what every engine beside ours loads."""
    report = (
        "import json, os\n"
        "from reprise.engine_ext.plugin import register\n"
        "register()\n"
        "import torch\n"
        "from vllm.v1.attention.backends.cpu_attn import _get_attn_isa\n"
        "isa = _get_attn_isa(torch.bfloat16, 32, 64)\n"
        f"print(json.dumps([isa, *map(os.environ.get, {VARIABLES!r})]))"
    )
    environment = {**os.environ, "OTHER_PROCESSOR": "amx"}
    environment["PYTHONPATH"] = os.pathsep.join(
        [str(OTHER_PROCESSOR), *filter(None, [os.environ.get("PYTHONPATH")])]
    )
    for name in VARIABLES:
        environment.pop(name, None)
    done = subprocess.run(
        [sys.executable, "-c", report], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1]) == ["amx", None, None]


@pytest.mark.slow
def test_a_batch_invariant_engine_answers_in_bfloat16_as_without_drafts(
    demo_model: Path, llm_builder: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its processes take this CPU for one with AMX: what used a tile would end them."""
    from vllm import SamplingParams

    prompts = [f"How do I {what}?" for what in ("return a parcel", "pay by card", "log in")] * 4
    params = SamplingParams(temperature=0.0, max_tokens=80)

    def answers(llm: Any) -> list[tuple[int, ...]]:
        try:
            outputs = [llm.generate(prompts, params, use_tqdm=False) for _ in range(2)]
        finally:
            llm.llm_engine.engine_core.shutdown()
        return [tuple(output.outputs[0].token_ids) for given in outputs for output in given]

    expected = answers(llm_builder(demo_model, with_reprise=False, dtype="bfloat16"))
    paths = [str(OTHER_PROCESSOR), *filter(None, [os.environ.get("PYTHONPATH")])]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(paths))
    monkeypatch.setenv("OTHER_PROCESSOR", "amx")
    settings = {"cpu_batch_invariant": True, "drafts": {"verify_cost": 0.02}}
    ours = llm_builder(
        demo_model,
        with_reprise=True,
        dtype="bfloat16",
        additional_config={"reprise": settings},
    )
    assert answers(ours) == expected
