"""On the CPU no token is computed alone: steps and logits of few rows are padded, ours alone."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("vllm")

from vllm.config import set_current_vllm_config

from reprise.engine_ext.compat.patches import Feature, Role
from reprise.engine_ext.compat.registry import registry
from reprise.engine_ext.worker.forward import lone_tokens
from reprise.tests.engine_ext.model_runner import engine_config, model_runner_of

pytestmark = pytest.mark.engine


@pytest.fixture(scope="module")
def runner(demo_model: Path) -> Iterator[Any]:
    with model_runner_of(engine_config(demo_model)) as runner:
        yield runner


def padded(runner: Any, num_tokens: int) -> int:
    """How many tokens vLLM's model runner computes in a step of one request's so many."""
    _, descriptor, *_ = runner._determine_batch_execution_and_padding(
        num_tokens=num_tokens,
        num_reqs=1,
        num_scheduled_tokens_np=np.array([num_tokens]),
        max_num_scheduled_tokens=num_tokens,
    )
    return int(descriptor.num_tokens)


def test_a_step_of_few_tokens_is_padded(runner: Any) -> None:
    assert registry.is_applied(Feature.LONE_TOKENS, Role.WORKER)
    assert [padded(runner, num_tokens) for num_tokens in (1, 2, 3, 4, 17)] == [4, 4, 4, 4, 17]


def test_a_step_of_another_drafter_is_not(runner: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner, "drafter", object())
    assert padded(runner, 1) == 1


@pytest.mark.parametrize("kind", ["is_hybrid", "has_inner_state", "use_mla", "is_encoder_decoder"])
def test_models_that_were_not_tried_are_left_alone(
    runner: Any, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    monkeypatch.setattr(type(runner.model_config), kind, property(lambda _: True))
    assert padded(runner, 1) == 1


def test_engines_with_adapters_are_left_alone(runner: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner, "lora_config", object())
    assert padded(runner, 1) == 1


def rows_multiplied(runner: Any, config: Any, num_rows: int) -> tuple[list[int], torch.Tensor]:
    """With how many rows the logits' layer is called for so many, and what comes of it."""
    layer, called = runner.model.lm_head, []

    def dispatch(layer: Any, _: bool) -> None:
        def product(x: torch.Tensor, *_: Any) -> torch.Tensor:
            called.append(len(x))
            return x * 2

        layer.cpu_linear = product

    with pytest.MonkeyPatch.context() as monkeypatch, set_current_vllm_config(config):
        monkeypatch.setattr(layer, "cpu_linear", layer.cpu_linear)
        lone_tokens.dispatch_linear_layer(dispatch, layer, False)
        rows = torch.arange(num_rows * 3.0).reshape(num_rows, 3)
        return called, layer.cpu_linear(rows, layer.weight, None)


@pytest.mark.parametrize(("num_rows", "multiplied"), [(1, 4), (3, 4), (4, 4), (5, 5)])
def test_few_rows_of_logits_are_padded(runner: Any, num_rows: int, multiplied: int) -> None:
    called, product = rows_multiplied(runner, runner.vllm_config, num_rows)
    assert called == [multiplied]
    assert torch.equal(product, 2 * torch.arange(num_rows * 3.0).reshape(num_rows, 3))


def test_logits_of_another_engine_are_not(demo_model: Path, runner: Any) -> None:
    called, _ = rows_multiplied(runner, engine_config(demo_model, speculative_config=None), 1)
    assert called == [1]


def test_the_model_that_is_served_has_padded_logits(runner: Any) -> None:
    """As loaded by vLLM: logits of one row are the first of many, to the bit."""
    rows = torch.randn(9, runner.model_config.get_hidden_size())
    assert runner.model.lm_head.cpu_linear.__module__ == lone_tokens.__name__
    assert torch.equal(runner.model.compute_logits(rows[:1]), runner.model.compute_logits(rows)[:1])
