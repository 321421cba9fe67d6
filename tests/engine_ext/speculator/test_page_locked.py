"""What is reserved covers every size that requests need; on a GPU, nothing more is asked for."""

from typing import Any

import pytest
import torch

from reprise.engine_ext.speculator import page_locked

ON_GPU = torch.cuda.is_available()


def test_every_size_is_there_for_every_request(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    empty = torch.empty

    def note(size: int, *, dtype: torch.dtype, pin_memory: bool) -> Any:
        assert pin_memory
        asked.append(size)
        return empty(size, dtype=dtype)

    monkeypatch.setattr(torch, "empty", note)
    taken = page_locked.reserve(3, max_near_tokens=8192, max_model_len=1000)
    assert taken == sum(asked)
    for num_bytes in (4, 600, 1024, 4 * 5000, 4 * 8192):
        rounded = max(512, 1 << (num_bytes - 1).bit_length())
        assert asked.count(rounded) >= 3, num_bytes
    assert asked.count(4000) == 3
    many = page_locked.reserve(4096, max_near_tokens=8192, max_model_len=1000)
    assert many == 256 * taken // 3


@pytest.mark.gpu
@pytest.mark.skipif(not ON_GPU, reason="needs a CUDA device")
def test_requests_take_what_was_reserved() -> None:
    page_locked.reserve(4, max_near_tokens=8192, max_model_len=1024)
    before = torch.cuda.host_memory_stats()["num_host_alloc"]
    kept = [torch.empty(5000, dtype=torch.int32).pin_memory() for _ in range(4)]
    kept += [torch.empty(1024, dtype=torch.int32, pin_memory=True) for _ in range(4)]
    assert torch.cuda.host_memory_stats()["num_host_alloc"] == before
    assert len(kept) == 8
