"""AMX tiles: asked for, or not used, and in no other engine either."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

pytest.importorskip("vllm")

from vllm.model_executor.layers import utils as linear_layers
from vllm.v1.attention.backends import cpu_attn

from reprise.engine_ext import amx_tiles
from reprise.engine_ext.config import load_config

pytestmark = pytest.mark.engine

OTHER_PROCESSOR = Path(__file__).parents[1] / "other_processor"
LINEAR_LAYER = (576, 192, torch.bfloat16)


@pytest.fixture
def with_tiles(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """A processor with tiles, and vLLM given back afterwards."""
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: True)
    monkeypatch.setattr(cpu_attn, "_get_attn_isa", cpu_attn._get_attn_isa)
    monkeypatch.setattr(linear_layers, "check_cpu_sgl_kernel", linear_layers.check_cpu_sgl_kernel)
    monkeypatch.delenv("ONEDNN_MAX_CPU_ISA", raising=False)
    return monkeypatch


def state() -> tuple[Any, ...]:
    """All that could keep a process off its tiles."""
    isa, kernel = cpu_attn._get_attn_isa, linear_layers.check_cpu_sgl_kernel
    return isa, kernel, os.environ.get("ONEDNN_MAX_CPU_ISA")


def test_tiles_are_used_by_default_and_linux_is_asked(with_tiles: pytest.MonkeyPatch) -> None:
    assert load_config().amx_tiles
    asked = []
    with_tiles.setattr(torch.cpu, "_init_amx", lambda: asked.append(1) or True)
    before = state()
    amx_tiles.prepare(use_tiles=True)
    assert asked == [1]
    assert state() == before
    assert cpu_attn._get_attn_isa(torch.bfloat16, 32, 64) == "amx"


@pytest.mark.parametrize("block_size", [16, 32, 128])
def test_without_tiles_vllm_computes_as_where_there_are_none(
    with_tiles: pytest.MonkeyPatch, block_size: int
) -> None:
    with with_tiles.context() as elsewhere:
        elsewhere.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
        wanted = cpu_attn._get_attn_isa(torch.bfloat16, block_size, 64)
        assert not linear_layers.check_cpu_sgl_kernel(*LINEAR_LAYER)
    assert linear_layers.check_cpu_sgl_kernel(*LINEAR_LAYER)
    for _ in range(2):
        amx_tiles.prepare(use_tiles=False)
    assert cpu_attn._get_attn_isa(torch.bfloat16, block_size, 64) == wanted
    assert not linear_layers.check_cpu_sgl_kernel(*LINEAR_LAYER)
    assert os.environ["ONEDNN_MAX_CPU_ISA"] == "AVX512_CORE_BF16"


def test_a_limit_that_is_set_stays(with_tiles: pytest.MonkeyPatch) -> None:
    with_tiles.setenv("ONEDNN_MAX_CPU_ISA", "AVX2")
    amx_tiles.prepare(use_tiles=False)
    assert os.environ["ONEDNN_MAX_CPU_ISA"] == "AVX2"


@pytest.mark.parametrize(("is_cpu", "has_tiles"), [(True, False), (False, True)])
@pytest.mark.parametrize("use_tiles", [True, False])
def test_nothing_is_touched_elsewhere(
    with_tiles: pytest.MonkeyPatch, is_cpu: bool, has_tiles: bool, use_tiles: bool
) -> None:
    with_tiles.setattr(torch.cpu, "_is_amx_tile_supported", lambda: has_tiles)
    with_tiles.setattr(torch.cpu, "_init_amx", lambda: pytest.fail("nobody needs tiles"))
    with_tiles.setattr(amx_tiles, "current_platform", SimpleNamespace(is_cpu=lambda: is_cpu))
    before = state()
    amx_tiles.prepare(use_tiles=use_tiles)
    assert state() == before


def test_the_plugin_alone_keeps_nobody_off_tiles() -> None:
    """In a process of its own: what it loads is what every engine beside ours loads."""
    report = (
        "import json, os\n"
        "from reprise.engine_ext.plugin import register\n"
        "register()\n"
        "import torch\n"
        "from vllm.v1.attention.backends.cpu_attn import _get_attn_isa\n"
        "isa = _get_attn_isa(torch.bfloat16, 32, 64)\n"
        "print(json.dumps([isa, os.environ.get('ONEDNN_MAX_CPU_ISA')]))"
    )
    environment = {**os.environ, "OTHER_PROCESSOR": "amx"}
    environment["PYTHONPATH"] = os.pathsep.join(
        [str(OTHER_PROCESSOR), *filter(None, [os.environ.get("PYTHONPATH")])]
    )
    environment.pop("ONEDNN_MAX_CPU_ISA", None)
    done = subprocess.run(
        [sys.executable, "-c", report], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1]) == ["amx", None]


@pytest.mark.slow
def test_an_engine_kept_off_tiles_answers_in_bfloat16_as_without_drafts(
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
    settings = {"amx_tiles": False, "drafts": {"verify_cost": 0.02}}
    ours = llm_builder(
        demo_model,
        with_reprise=True,
        dtype="bfloat16",
        additional_config={"reprise": settings},
    )
    assert answers(ours) == expected
