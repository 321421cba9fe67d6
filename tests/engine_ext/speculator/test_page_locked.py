"""What is reserved covers every size that requests need; on a GPU, nothing more is asked for."""

from collections import Counter
from typing import Any

import pytest

pytest.importorskip("vllm")

import torch

from reprise.engine_ext.speculator import page_locked
from reprise.engine_ext.speculator.device_requests import largest_copy_bytes
from reprise.tests.engine_ext.speculator.test_device_requests import (
    ANSWER,
    MAX_LEN,
    NUM_SLOTS,
    World,
)

ON_GPU = torch.cuda.is_available()


def bucket(num_bytes: int) -> int:
    """The size that torch keeps such a block under: ATen/core/CachingHostAllocator.h."""
    return 1 << max(0, num_bytes - 1).bit_length()


def reserved(monkeypatch: pytest.MonkeyPatch, num_requests: int, max_bytes: int) -> Counter[int]:
    """How many blocks of each size are taken."""
    asked: Counter[int] = Counter()
    empty = torch.empty

    def note(size: int, *, dtype: torch.dtype, pin_memory: bool) -> Any:
        assert pin_memory
        asked[size] += 1
        return empty(size, dtype=dtype)

    with monkeypatch.context() as patched:
        patched.setattr(torch, "empty", note)
        taken = page_locked.reserve(num_requests, max_bytes=max_bytes)
    assert taken == sum(size * number for size, number in asked.items())
    return asked


def test_every_size_that_steps_ask_for_is_reserved(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: set[int] = set()
    empty = page_locked.empty

    def note(shape: Any, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
        made = empty(shape, dtype, device)
        asked.add(made.nbytes)
        return made

    monkeypatch.setattr(page_locked, "empty", note)
    world = World(monkeypatch)
    try:
        world.learn("first", "mine")
        world.step(begin=[world.request("mine", "mine"), world.request("other", "mine")])
        world.emit("mine", ANSWER)
        world.step(end=["mine"])
        assert world.requests.flush(60)
        world.step()
        max_bytes = largest_copy_bytes(world.state, MAX_LEN)
        assert world.errors.counts() == {}
    finally:
        world.retriever.close()
    # The counts of a slot and its length when a request ends; near answers when one begins.
    assert {4, 40} <= asked
    assert len(asked) >= 6
    blocks = reserved(monkeypatch, NUM_SLOTS, max_bytes)
    assert {bucket(size) for size in asked} <= set(blocks)


def test_lengths_of_any_request_are_reserved_within_bounds(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    context_bytes = 4 << 20  # a million tokens
    blocks = reserved(monkeypatch, 4096, context_bytes)
    for num_bytes in (4, 20, 40, 256, 600, 4 * 5000, 4 * 100_000, context_bytes):
        assert blocks[bucket(num_bytes)] >= 2, num_bytes
    assert blocks[64] == blocks[4096] == 256
    assert sum(size * number for size, number in blocks.items()) <= 72 << 20
    # A length that is no power of two is a block of the next one.
    assert max(reserved(monkeypatch, 1, 4 * 40_000)) == 1 << 18


@pytest.mark.gpu
@pytest.mark.skipif(not ON_GPU, reason="needs a CUDA device")
def test_requests_take_what_was_reserved() -> None:
    page_locked.reserve(4, max_bytes=4 * 8192)
    device = torch.device("cuda")
    before = torch.cuda.host_memory_stats()["num_host_alloc"]
    sizes = (1, 5, 11, 64, 5000, 8192)
    kept = [page_locked.empty(size, torch.int32, device) for size in sizes for _ in range(4)]
    assert torch.cuda.host_memory_stats()["num_host_alloc"] == before
    assert all(each.is_pinned() for each in kept)
