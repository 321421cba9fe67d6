"""All kernels that verification may launch on model runner V2 are compiled before it serves."""

from __future__ import annotations

import os
from collections.abc import Callable
from itertools import combinations
from typing import Any

import pytest
import torch

from reprise.engine_ext.worker.verification import on_v2
from reprise.kernels.verify import triton_coupled
from reprise.kernels.verify.coupled import verify_coupled

pytestmark = pytest.mark.skipif(
    os.environ.get("TRITON_INTERPRET") == "1", reason="nothing is compiled there"
)

KERNELS = ("scan_kernel", "threshold_kernel", "noise_kernel", "choose_kernel")
VOCAB, PADDED = 50257, 50304
MAX_DRAFT = 4
LIMITS = {"top_k": torch.int32, "top_p": torch.float32, "min_p": torch.float32}

Key = tuple[Any, ...]


def key_of(name: str, kernel: Any, given: dict[str, Any]) -> Key:
    """What Triton compiles a kernel anew for, addresses aside: all tensors are aligned."""

    def of_one(parameter: Any, value: Any) -> Any:
        if isinstance(value, torch.Tensor):
            return value.dtype
        if parameter.is_constexpr or value is None:
            return value
        return "int" if parameter.do_not_specialize else (value == 1, value % 16 == 0)

    return name, *(of_one(each, given[each.name]) for each in kernel.params)


@pytest.fixture
def compiled(monkeypatch: pytest.MonkeyPatch) -> set[Key]:
    """Keys of what was launched, which is not run."""
    found: set[Key] = set()

    def spy(name: str) -> Any:
        kernel = getattr(triton_coupled, name)

        def launch(*args: Any, **options: Any) -> None:
            names = (parameter.name for parameter in kernel.params)
            found.add(key_of(name, kernel, dict(zip(names, args, strict=False)) | options))

        return type("Spy", (), {"__getitem__": lambda _, __: launch})()

    for name in KERNELS:
        monkeypatch.setattr(triton_coupled, name, spy(name))
    return found


def logits_of(rows: int, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
    """Logits as a model computes them: without what pads its vocabulary."""
    return torch.empty((rows, PADDED), dtype=dtype)[:, :VOCAB]


def verify_as_served(logits: torch.Tensor, *, samples: bool, names: Any, is_scaled: bool) -> None:
    """Launch what a batch of two requests is verified by, of types as vLLM hands them over."""
    rows, slots = logits.shape[0], 5
    per_slot = {name: torch.zeros(slots, dtype=LIMITS[name]) for name in names}
    verify_coupled(
        logits,
        torch.zeros(rows, dtype=torch.int32),
        torch.zeros(rows, dtype=torch.int64),
        torch.zeros(rows, dtype=torch.int64),
        torch.zeros(3, dtype=torch.int32),
        temperature=torch.zeros(slots) if samples else None,
        **dict.fromkeys(LIMITS) | per_slot,
        seeds=torch.zeros(slots, dtype=torch.int64),
        max_draft=MAX_DRAFT,
        is_scaled=is_scaled,
        backend="triton",
    )


def serve() -> None:
    """Launch all that batches may ask for."""
    for rows in (2, 40, 400, 2000):
        logits = logits_of(rows)
        for samples in (False, True):
            for number in range(len(LIMITS) + 1):
                for names in combinations(LIMITS, number):
                    verify_as_served(logits, samples=samples, names=names, is_scaled=False)
            for like in (logits, torch.empty_like(logits, dtype=torch.float32)):
                verify_as_served(like, samples=samples, names=(), is_scaled=True)


def keys_of(compiled: set[Key], launch: Callable[[], None]) -> set[Key]:
    """What a function launches."""
    compiled.clear()
    launch()
    return set(compiled)


def test_nothing_is_compiled_while_serving(compiled: set[Key]) -> None:
    tried = keys_of(
        compiled,
        lambda: on_v2.compile_kernels(logits_of(7), MAX_DRAFT, backend="triton"),
    )
    served = keys_of(compiled, serve)
    assert {key[0] for key in served} == set(KERNELS)
    assert served - tried == set()
    assert tried - served == set()
