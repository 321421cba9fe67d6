"""vLLM on the CPU is kept off AMX tiles, which round a token by what stands beside it."""

import os
from types import SimpleNamespace

import pytest
import torch

pytest.importorskip("vllm")

from vllm.v1.attention.backends import cpu_attn

from reprise.engine_ext import amx_repair

pytestmark = pytest.mark.engine


@pytest.fixture
def vllms_own(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """cpu_attn as if Reprise had not been installed, given back afterwards."""
    found = cpu_attn._get_attn_isa
    monkeypatch.setattr(cpu_attn, "_get_attn_isa", getattr(found, "__wrapped__", found))
    monkeypatch.delenv("ONEDNN_MAX_CPU_ISA", raising=False)
    return monkeypatch


@pytest.mark.parametrize("block_size", [16, 32, 128])
def test_attention_is_vllms_but_for_tiles(vllms_own: pytest.MonkeyPatch, block_size: int) -> None:
    vllms_own.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    without_amx = cpu_attn._get_attn_isa(torch.bfloat16, block_size, 64)
    vllms_own.setattr(torch.cpu, "_is_amx_tile_supported", lambda: True)
    assert amx_repair.install()
    assert amx_repair.install()
    assert cpu_attn._get_attn_isa(torch.bfloat16, block_size, 64) == without_amx
    assert os.environ["ONEDNN_MAX_CPU_ISA"] == "AVX512_CORE_BF16"


def test_a_limit_that_is_set_stays(vllms_own: pytest.MonkeyPatch) -> None:
    vllms_own.setattr(torch.cpu, "_is_amx_tile_supported", lambda: True)
    vllms_own.setenv("ONEDNN_MAX_CPU_ISA", "AVX2")
    assert amx_repair.install()
    assert os.environ["ONEDNN_MAX_CPU_ISA"] == "AVX2"


@pytest.mark.parametrize(("is_cpu", "has_tiles"), [(True, False), (False, True)])
def test_nothing_is_touched_elsewhere(
    vllms_own: pytest.MonkeyPatch, is_cpu: bool, has_tiles: bool
) -> None:
    vllms_own.setattr(torch.cpu, "_is_amx_tile_supported", lambda: has_tiles)
    vllms_own.setattr(amx_repair, "current_platform", SimpleNamespace(is_cpu=lambda: is_cpu))
    before = cpu_attn._get_attn_isa
    assert not amx_repair.install()
    assert cpu_attn._get_attn_isa is before
    assert "ONEDNN_MAX_CPU_ISA" not in os.environ
