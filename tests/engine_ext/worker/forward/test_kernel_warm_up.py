"""Kernels are made for the numbers of tokens that drafts lead to, before the first request."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

pytest.importorskip("vllm")

from vllm.config import LoRAConfig
from vllm.platforms.interface import UnspecifiedPlatform

from reprise.engine_ext.worker.forward import kernel_warm_up
from reprise.engine_ext.worker.forward.kernel_warm_up import MAX_TOKENS, make_kernels
from reprise.tests.engine_ext.model_runner import engine_config, model_runner_of

pytestmark = pytest.mark.engine


@pytest.fixture(scope="module")
def real_runner(demo_model: Path) -> Iterator[Any]:
    with model_runner_of(engine_config(demo_model)) as runner:
        yield runner


class Watched(NamedTuple):
    """A model runner, and what it was asked to run."""

    runner: Any
    ran: list[int]
    """Numbers of tokens."""
    rows: list[int]
    """Numbers of rows that logits were computed of."""


@pytest.fixture
def watched(real_runner: Any, monkeypatch: pytest.MonkeyPatch) -> Watched:
    """vLLM's model runner, with at most 2 requests of 4 drafted tokens each."""
    seen = Watched(real_runner, [], [])
    run, compute_logits = real_runner._dummy_run, real_runner.model.compute_logits

    def watched_run(num_tokens: int, *args: Any, **kwargs: Any) -> Any:
        seen.ran.append(num_tokens)
        return run(num_tokens, *args, **kwargs)

    def watched_logits(hidden_states: Any) -> Any:
        logits = compute_logits(hidden_states)
        seen.rows.append(len(logits))
        return logits

    monkeypatch.setattr(real_runner, "_dummy_run", watched_run)
    monkeypatch.setattr(real_runner.model, "compute_logits", watched_logits)
    return seen


@pytest.mark.parametrize(
    ("limits", "most"),
    [
        ({"max_num_reqs": 2, "num_spec_tokens": 4}, 10),  # each of them with a full draft
        ({"max_num_reqs": 64, "num_spec_tokens": 16}, 12),
        ({"max_num_reqs": 64, "num_spec_tokens": 16, "max_num_tokens": 6}, 6),
    ],
)
def test_every_number_of_tokens_that_a_step_may_have(
    watched: Watched, monkeypatch: pytest.MonkeyPatch, limits: dict[str, int], most: int
) -> None:
    """128 of them on a real engine, see below."""
    monkeypatch.setattr(kernel_warm_up, "MAX_SECONDS", 100.0)
    monkeypatch.setattr(kernel_warm_up, "MAX_TOKENS", 12)
    for name, value in limits.items():
        monkeypatch.setattr(watched.runner, name, value)
    assert make_kernels(watched.runner) == most
    assert watched.ran == watched.rows == list(range(1, most + 1))


def test_a_slow_model_does_not_hold_up_the_start(
    watched: Watched, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kernel_warm_up, "MAX_SECONDS", 0.0)
    assert make_kernels(watched.runner) == 0
    assert not watched.ran


def test_several_workers_are_left_alone(watched: Watched, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watched.runner.parallel_config, "world_size", 2)
    assert make_kernels(watched.runner) == 0
    assert not watched.ran


def test_adapters_are_left_alone(watched: Watched, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watched.runner, "lora_config", LoRAConfig(max_loras=1))
    assert make_kernels(watched.runner) == 0
    assert not watched.ran


def test_a_device_is_left_alone(watched: Watched, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernel_warm_up, "current_platform", UnspecifiedPlatform())
    assert make_kernels(watched.runner) == 0
    assert not watched.ran


def test_a_real_engine_makes_them_at_its_start(reprise_llm: Any) -> None:
    (report,) = reprise_llm.collective_rpc("reprise_stats")
    # 128 for 8 requests with up to 16 drafted tokens; fewer where the machine is so busy that the
    # limit in seconds comes first.
    assert 16 < report["kernels_up_to"] <= MAX_TOKENS
    assert report["errors"] == {}
