"""Whether a linear layer computes a token alike whatever is computed beside it."""

from typing import Any

import pytest
import torch

pytest.importorskip("vllm")

from reprise.eval.real_model import layer_rows

pytestmark = pytest.mark.engine


def test_a_layer_that_rounds_by_the_number_of_tokens_is_found(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """One that computes a token alone otherwise than beside others."""
    from vllm.model_executor.layers import utils

    def product(x: torch.Tensor, weight: torch.Tensor, _: None) -> torch.Tensor:
        return x @ weight.T + (1e-3 if len(x) == 1 else 0)

    def dispatch(layer: Any, remove_weight: bool) -> None:
        assert not remove_weight
        layer.cpu_linear = product

    monkeypatch.setattr(utils, "dispatch_cpu_unquantized_gemm", dispatch)
    assert layer_rows.numbers_that_differ(torch.ones(3, 5)) == {1: 1.0}


def test_vllms_own_kernel_is_asked() -> None:
    """In a shape so small that one tile holds it, where nothing can be summed in another order."""
    assert layer_rows.numbers_that_differ(torch.eye(16)) == {}
