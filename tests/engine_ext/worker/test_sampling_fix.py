"""The expansion of sampling parameters to drafted rows."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from reprise.engine_ext.worker.sampling_fix import expand_batch_to_tokens


@settings(deadline=None)
@given(st.lists(st.tuples(st.sampled_from([0.0, 0.5, 1.0, 3.0]), st.integers(0, 4)), min_size=1))
def test_it_repeats_each_value_as_often_as_said(rows: list[tuple[float, int]]) -> None:
    values = torch.tensor([value for value, _ in rows])
    cumulative = torch.tensor([n for _, n in rows], dtype=torch.int32).cumsum(0)
    expected = [value or 1.0 for value, count in rows for _ in range(count)]
    expanded = expand_batch_to_tokens(
        values, cumulative.int(), len(expected), replace_from=0, replace_to=1
    )
    assert expanded.tolist() == expected


@pytest.mark.engine
def test_once_applied_vllm_expands() -> None:
    from vllm.v1.sample import rejection_sampler

    from reprise.engine_ext.worker import sampling_fix, worker_installs

    worker_installs.fix_sampling()
    expanded = rejection_sampler.expand_batch_to_tokens(
        torch.tensor([0.8, 0.0]), torch.tensor([1, 3], dtype=torch.int32), 3, 0, 1
    )
    assert expanded.tolist() == pytest.approx([0.8, 1.0, 1.0])
    assert not sampling_fix.is_needed()
