"""A batch's drafts are described as vLLM describes them."""

from dataclasses import fields
from types import MethodType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("vllm")

from vllm.v1.spec_decode.metadata import SpecDecodeMetadata
from vllm.v1.worker.gpu_model_runner import GPUModelRunner

from reprise.engine_ext.compat.patches import Feature
from reprise.engine_ext.compat.registry import registry
from reprise.engine_ext.worker import worker_installs

pytestmark = pytest.mark.engine


@pytest.fixture
def runner() -> Any:
    worker_installs.describe_drafts_in_one_copy()
    return make_runner()


def make_runner() -> Any:
    """As much of vLLM's runner as describes drafts."""
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


@pytest.mark.parametrize(
    ("drafts", "scheduled"),
    [
        ([2, 0, 1], [3, 1, 2]),
        ([0], [1]),
        ([16], [17]),
        ([0, 0, 0, 0], [7, 1, 300, 1]),
        ([0, 3, 0, 5, 2], [100, 4, 1, 6, 3]),
        ([0] * 64, [1] * 64),
        ([4] * 64, [5] * 64),
    ],
)
def test_drafts_are_described_as_by_vllm(
    runner: Any, drafts: list[int], scheduled: list[int]
) -> None:
    wrapped: Any = GPUModelRunner._calc_spec_decode_metadata
    metadata = describe(wrapped, runner, drafts, scheduled)
    assert_same(metadata, describe(wrapped.__wrapped__, runner, drafts, scheduled))
    for field in fields(SpecDecodeMetadata):
        value = getattr(metadata, field.name)
        if isinstance(value, torch.Tensor):
            assert value.is_contiguous()
            assert value.numel() == 0 or value.data_ptr() % 16 == 0, field.name


@given(st.data())
def test_any_drafts_are_described_as_by_vllm(data: st.DataObject) -> None:
    drafts = data.draw(st.lists(st.integers(0, 16), min_size=1, max_size=40))
    context = data.draw(st.lists(st.integers(0, 60), min_size=len(drafts), max_size=len(drafts)))
    scheduled = [d + 1 + more * (d == 0) for d, more in zip(drafts, context, strict=True)]
    worker_installs.describe_drafts_in_one_copy()
    wrapped: Any = GPUModelRunner._calc_spec_decode_metadata
    runner = make_runner()
    assert_same(
        describe(wrapped, runner, drafts, scheduled),
        describe(wrapped.__wrapped__, runner, drafts, scheduled),
    )


def test_another_vllm_is_left_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    def other(self: Any, drafts: Any) -> None: ...

    registry.revert(Feature.DRAFT_METADATA)
    monkeypatch.setattr(GPUModelRunner, "_calc_spec_decode_metadata", other)
    with pytest.raises(RuntimeError, match="_calc_spec_decode_metadata"):
        worker_installs.describe_drafts_in_one_copy()
    assert GPUModelRunner._calc_spec_decode_metadata is other
