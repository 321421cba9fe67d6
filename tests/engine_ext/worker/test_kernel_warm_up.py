"""Kernels are made for the numbers of tokens that drafts lead to, before the first request."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch

pytest.importorskip("vllm")

from reprise.engine_ext.worker import kernel_warm_up
from reprise.engine_ext.worker.kernel_warm_up import MAX_TOKENS, make_kernels

pytestmark = pytest.mark.engine


class _Runner:
    """A model runner that notes what it is asked to run."""

    def __init__(
        self, *, requests: int = 2, drafted: int = 4, tokens: int = 1000, workers: int = 1
    ) -> None:
        self.parallel_config = SimpleNamespace(world_size=workers)
        self.lora_config: object = None
        self.max_num_tokens, self.max_num_reqs, self.num_spec_tokens = tokens, requests, drafted
        self.model = SimpleNamespace(compute_logits=lambda rows: self.rows.append(len(rows)))
        self.ran: list[int] = []
        self.rows: list[int] = []

    def _dummy_run(self, num_tokens: int) -> tuple[torch.Tensor, None]:
        self.ran.append(num_tokens)
        return torch.zeros(max(8, num_tokens), 1), None  # vLLM may pad


@pytest.mark.parametrize(
    ("limits", "most"),
    [
        ({"requests": 2, "drafted": 4}, 10),  # each of them with a full draft
        ({"requests": 64, "drafted": 16}, MAX_TOKENS),
        ({"requests": 64, "drafted": 16, "tokens": 48}, 48),
    ],
)
def test_every_number_of_tokens_that_a_step_may_have(limits: dict[str, int], most: int) -> None:
    runner = _Runner(**limits)
    assert make_kernels(runner) == most
    assert runner.ran == runner.rows == list(range(1, most + 1))


def test_a_slow_model_does_not_hold_up_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernel_warm_up, "MAX_SECONDS", 0.0)
    runner = _Runner()
    assert make_kernels(runner) == 0
    assert not runner.ran


def test_several_workers_are_left_alone() -> None:
    runner = _Runner(workers=2)
    assert make_kernels(runner) == 0
    assert not runner.ran


def test_adapters_are_left_alone() -> None:
    runner = _Runner()
    runner.lora_config = SimpleNamespace(max_loras=1)
    assert make_kernels(runner) == 0
    assert not runner.ran


def test_a_device_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernel_warm_up, "current_platform", SimpleNamespace(is_cpu=lambda: False))
    runner = _Runner()
    assert make_kernels(runner) == 0
    assert not runner.ran


def test_a_real_engine_makes_them_at_its_start(reprise_llm: Any) -> None:
    (report,) = reprise_llm.collective_rpc("reprise_stats")
    assert report["kernels_up_to"] == MAX_TOKENS  # 8 requests with up to 16 drafted tokens
    assert report["errors"] == {}
