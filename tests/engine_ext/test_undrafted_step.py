"""A step without drafts is described as vLLM describes it, and more cheaply."""

from dataclasses import fields
from types import MethodType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("vllm")

from vllm.v1.spec_decode.metadata import SpecDecodeMetadata
from vllm.v1.worker.gpu_model_runner import GPUModelRunner

from reprise.engine_ext import undrafted_step

pytestmark = pytest.mark.engine


@pytest.fixture
def runner() -> Any:
    """As much of vLLM's runner as describes drafts, wrapped."""
    undrafted_step.install()
    numbers = np.arange(4096, dtype=np.int64)
    runner = SimpleNamespace(
        device=torch.device("cpu"),
        arange_np=numbers,
        _arange_scratch=numbers.copy(),
        input_ids=SimpleNamespace(gpu=torch.arange(4096, dtype=torch.int32)),
    )
    runner._get_cumsum_and_arange = MethodType(GPUModelRunner._get_cumsum_and_arange, runner)
    return runner


def describe(method: Any, runner: Any, drafts: list[int], scheduled: list[int]) -> Any:
    return method(
        runner,
        np.array(drafts, np.int32),
        np.cumsum(np.array(scheduled, np.int32), dtype=np.int32),
    )


def assert_same(one: SpecDecodeMetadata, other: SpecDecodeMetadata) -> None:
    for field in fields(SpecDecodeMetadata):
        a, b = getattr(one, field.name), getattr(other, field.name)
        if isinstance(a, torch.Tensor):
            assert a.dtype == b.dtype
            assert torch.equal(a, b), field.name
        else:
            assert a == b
    assert one.max_spec_len == other.max_spec_len


@pytest.mark.parametrize("scheduled", [[1], [1, 1, 1], [7, 1, 300, 1], [1] * 64])
def test_without_drafts_it_is_what_vllm_says(runner: Any, scheduled: list[int]) -> None:
    wrapped: Any = GPUModelRunner._calc_spec_decode_metadata
    none = [0] * len(scheduled)
    for _ in range(2):
        assert_same(
            describe(wrapped, runner, none, scheduled),
            describe(wrapped.__wrapped__, runner, none, scheduled),
        )


def test_with_drafts_it_is_vllms_own(runner: Any) -> None:
    wrapped: Any = GPUModelRunner._calc_spec_decode_metadata
    metadata = describe(wrapped, runner, [2, 0, 1], [3, 1, 2])
    assert metadata.num_draft_tokens == [2, 0, 1]
    assert metadata.draft_token_ids.tolist() == [1, 2, 5]


def test_another_vllm_is_left_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    def other(self: Any, drafts: Any) -> None: ...

    monkeypatch.setattr(GPUModelRunner, "_calc_spec_decode_metadata", other)
    with pytest.raises(RuntimeError, match="_calc_spec_decode_metadata"):
        undrafted_step.install()
    assert GPUModelRunner._calc_spec_decode_metadata is other
