"""Batches for the tests of coupled verification, in the layout of vLLM's V2 runner: fixtures that
are functions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch

from reprise.kernels.verify.coupled import verify_coupled


def _make_coupled(
    lengths: Sequence[int],
    vocab: int,
    *,
    seed: int = 0,
    dtype: torch.dtype = torch.bfloat16,
    device: torch.device | str = "cpu",
    temperature: float | Sequence[float] | None = 1.0,
    **limits: float | Sequence[float],
) -> dict[str, Any]:
    """Arguments of `verify_coupled` for requests with so many drafts each, in shuffled slots.

    Settings are given in the order of the requests; other slots hold what must not be read.
    """
    generator = torch.Generator().manual_seed(seed)
    batch, rows = len(lengths), sum(lengths) + len(lengths)
    slots = torch.randperm(batch + 3, generator=generator)[:batch]

    def per_slot(value: Any, dtype: torch.dtype) -> torch.Tensor | None:
        if value is None:
            return None
        spread = torch.full((batch + 3,), 3, dtype=dtype)
        spread[slots] = torch.as_tensor(value, dtype=dtype).expand(batch).clone()
        return spread.to(device)

    ends = torch.tensor([0, *(n + 1 for n in lengths)]).cumsum(0)
    return {
        "logits": (torch.randn(rows, vocab, generator=generator) * 3).to(dtype).to(device),
        "row_token_ids": torch.randint(0, vocab, (rows,), generator=generator).int().to(device),
        "positions": torch.randint(0, 5000, (rows,), generator=generator).to(device),
        "row_slots": slots.repeat_interleave(ends.diff()).int().to(device),
        "cu_num_logits": ends.int().to(device),
        "temperature": per_slot(temperature, torch.float32),
        "top_k": per_slot(limits.get("top_k"), torch.int32),
        "top_p": per_slot(limits.get("top_p"), torch.float32),
        "min_p": per_slot(limits.get("min_p"), torch.float32),
        "seeds": torch.randint(-(2**62), 2**62, (batch + 3,), generator=generator).to(device),
        "max_draft": max(lengths),
    }


def _sampled_rows(arguments: dict[str, Any], **more: Any) -> torch.Tensor:
    """What every row gives by itself, as a request without drafts: [rows]."""
    rows, device = arguments["logits"].shape[0], arguments["logits"].device
    alone = {"cu_num_logits": torch.arange(rows + 1, device=device), "max_draft": 0}
    tokens, num_sampled = verify_coupled(**arguments | alone, **more)
    assert (num_sampled == 1).all()
    return tokens[:, 0]


def _fed_with_samples(arguments: dict[str, Any]) -> dict[str, Any]:
    """The same batch with drafts that are what is sampled, so that walks go to the end."""
    fed = arguments["row_token_ids"].clone()
    fed[1:] = _sampled_rows(arguments, backend="torch")[:-1]
    return arguments | {"row_token_ids": fed}


@pytest.fixture
def make_coupled() -> Callable[..., dict[str, Any]]:
    return _make_coupled


@pytest.fixture
def sampled_rows() -> Callable[..., torch.Tensor]:
    return _sampled_rows


@pytest.fixture
def fed_with_samples() -> Callable[..., dict[str, Any]]:
    return _fed_with_samples
