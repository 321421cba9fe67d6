"""Generators of requests whose prompts are not finished, on vLLM's own input batch."""

from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest

pytest.importorskip("vllm")

import torch

from reprise.engine_ext.compat.guarded import Original
from reprise.engine_ext.compat.hooks import DrafterHooks
from reprise.engine_ext.worker.unfinished_prompts import sample_without_unfinished


def runner(*, is_ours: bool = True) -> Any:
    """Five rows, of which those with even numbers have generators and the first two are not
    finished; the rest of the mask is of an earlier step."""
    batch = SimpleNamespace(
        num_reqs=5, generators={row: torch.Generator().manual_seed(row) for row in (0, 2, 4)}
    )
    return SimpleNamespace(
        input_batch=batch,
        drafter=Mock(spec=DrafterHooks) if is_ours else None,
        discard_request_mask=SimpleNamespace(np=np.array([1, 1, 0, 0, 0, 1, 1], dtype=bool)),
    )


def generators_while_sampling(runner: Any) -> list[int]:
    seen: list[int] = []
    own = dict(runner.input_batch.generators)

    def sample() -> str:
        seen.extend(sorted(runner.input_batch.generators))
        return "sampled"

    assert sample_without_unfinished(Original(sample), runner, None) == "sampled"
    assert runner.input_batch.generators == own
    return seen


def test_unfinished_rows_have_none_while_a_batch_is_sampled() -> None:
    assert generators_while_sampling(runner()) == [2, 4]


def test_another_drafter_keeps_what_vllm_does() -> None:
    assert generators_while_sampling(runner(is_ours=False)) == [0, 2, 4]


def test_they_are_back_where_sampling_fails() -> None:
    ours = runner()

    def fail() -> None:
        raise MemoryError

    with pytest.raises(MemoryError):
        sample_without_unfinished(Original(fail), ours, None)
    assert sorted(ours.input_batch.generators) == [0, 2, 4]
