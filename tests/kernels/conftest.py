"""Shared pieces of the kernel tests: a batch of arguments, an independent law, chi-square."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import chi2

ON_GPU = torch.cuda.is_available()

# Triton decides while it is imported whether kernels compile or are interpreted, and vLLM imports
# it too. So without a GPU the Triton tests run in a process of their own, which test_interpreter.py
# starts.
collect_ignore_glob = [] if ON_GPU or os.environ.get("TRITON_INTERPRET") == "1" else ["*_triton.py"]

FALSE_ALARM_RATE = 1e-5
"""Chance that one chi-square test here fails although the law holds; about a hundred are made."""


@pytest.fixture
def device() -> torch.device:
    """Where the Triton tests put their tensors."""
    return torch.device("cuda" if ON_GPU else "cpu")


@pytest.fixture
def make_batch() -> Callable[..., dict[str, Any]]:
    """Build the arguments of `verify_drafts` for requests with given drafts and random logits."""

    def build(
        drafts: Sequence[Sequence[int]],
        vocab: int,
        *,
        seed: int = 0,
        scale: float = 3.0,
        dtype: torch.dtype = torch.float32,
        temperature: float | Sequence[float] | None = 1.0,
        top_k: int | Sequence[int] | None = None,
        top_p: float | Sequence[float] | None = None,
        min_p: float | Sequence[float] | None = None,
        device: torch.device | str = "cpu",
    ) -> dict[str, Any]:
        generator = torch.Generator().manual_seed(seed)
        batch, num_draft = len(drafts), sum(map(len, drafts))
        logits = torch.randn(num_draft + batch, vocab, generator=generator) * scale

        def per_request(value: Any, dtype: torch.dtype) -> torch.Tensor | None:
            if value is None:
                return None
            return torch.as_tensor(value, dtype=dtype).expand(batch).contiguous().to(device)

        flat = [token for draft in drafts for token in draft]
        return {
            "logits": logits.to(dtype).to(device),
            "draft_token_ids": torch.tensor(flat, dtype=torch.int32, device=device),
            "cu_num_draft_tokens": torch.tensor(
                np.cumsum([len(draft) for draft in drafts]), dtype=torch.int32, device=device
            ),
            "temperature": per_request(temperature, torch.float32),
            "top_k": per_request(top_k, torch.int32),
            "top_p": per_request(top_p, torch.float32),
            "min_p": per_request(min_p, torch.float32),
            "seeds": torch.randint(-(2**62), 2**62, (batch,), generator=generator).to(device),
            "offsets": torch.randint(0, 2**40, (batch,), generator=generator).to(device),
        }

    return build


@pytest.fixture
def law_of_row() -> Callable[..., np.ndarray]:
    """The processed distribution of one row, in plain float64 loops, apart from the package."""

    def law(
        logits: Sequence[float],
        temperature: float = 1.0,
        top_k: int | None = None,
        top_p: float | None = None,
        min_p: float | None = None,
        *,
        splits_ties: bool = False,
    ) -> np.ndarray:
        x = np.asarray(logits, dtype=np.float64) / temperature
        p = np.exp(x - x.max())
        p /= p.sum()
        keep = [min_p is None or p[v] >= min_p * p.max() for v in range(len(p))]
        if top_k is not None and 1 <= top_k < len(p):
            kth = sorted(x, reverse=True)[top_k - 1]
            keep = [keep[v] and x[v] >= kth for v in range(len(p))]
            if splits_ties:  # of equals the first
                ties = [v for v in range(len(p)) if x[v] == kth]
                gone = set(ties[top_k - sum(x > kth) :])
                keep = [keep[v] and v not in gone for v in range(len(p))]
        p = np.where(keep, p, 0.0)
        p /= p.sum()
        if top_p is not None and top_p < 1:
            above = [sum(p[w] for w in range(len(p)) if x[w] > x[v]) for v in range(len(p))]
            p = np.where([above[v] < top_p for v in range(len(p))], p, 0.0)
            p /= p.sum()
        return p

    return law


@pytest.fixture
def assert_law() -> Callable[..., None]:
    """Fail if outcomes do not follow a law, at `FALSE_ALARM_RATE`; impossible ones fail at once."""

    def check(counts: dict[Any, int], law: dict[Any, float]) -> None:
        total = sum(counts.values())
        unexpected = [outcome for outcome in counts if law.get(outcome, 0.0) == 0.0]
        assert not unexpected, f"outcomes of probability 0: {unexpected[:5]}"
        rare_observed, rare_expected, statistic, cells = 0.0, 0.0, 0.0, 0
        for outcome, probability in law.items():
            expected, observed = probability * total, counts.get(outcome, 0)
            if expected < 8:  # pooled: chi-square needs a handful in every cell
                rare_observed, rare_expected = rare_observed + observed, rare_expected + expected
            else:
                statistic += (observed - expected) ** 2 / expected
                cells += 1
        if rare_expected >= 8:
            statistic += (rare_observed - rare_expected) ** 2 / rare_expected
            cells += 1
        limit = chi2.isf(FALSE_ALARM_RATE, max(cells - 1, 1))
        assert statistic <= limit, f"chi-square {statistic:.1f} > {limit:.1f} over {cells} cells"

    return check
