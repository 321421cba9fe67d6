"""The noise of vLLM's V2 sampler: its hash against another implementation, and its law."""

from __future__ import annotations

import struct

import numpy as np
import pytest
import torch
from scipy import stats

from reprise.kernels.verify.gumbel import MAX_GUMBEL, gumbel, murmur3


def murmur3_of_bytes(data: bytes, seed: int = 0) -> int:
    """MurmurHash3_x86_32 of any bytes, as published."""

    def rotated(x: int, by: int) -> int:
        return (x << by | x >> (32 - by)) & 0xFFFFFFFF

    def mixed(word: int) -> int:
        return rotated(word * 0xCC9E2D51 & 0xFFFFFFFF, 15) * 0x1B873593 & 0xFFFFFFFF

    state, whole = seed, len(data) // 4 * 4
    for (word,) in struct.iter_unpack("<I", data[:whole]):
        state = rotated(state ^ mixed(word), 13) * 5 + 0xE6546B64 & 0xFFFFFFFF
    state ^= mixed(int.from_bytes(data[whole:], "little")) ^ len(data)
    for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35), (16, 1)):
        state = (state ^ state >> shift) * factor & 0xFFFFFFFF
    return state


@pytest.mark.parametrize(
    ("data", "seed", "expected"),
    [
        (b"", 0, 0),
        (b"", 1, 0x514E28B7),
        (b"\xff\xff\xff\xff", 0, 0x76293B50),
        (b"\x21\x43\x65\x87", 0, 0xF55B516B),
        (b"Hello, world!", 0x9747B28C, 0x24884CBA),
    ],
)
def test_the_other_implementation_gives_the_published_vectors(data, seed, expected):
    assert murmur3_of_bytes(data, seed) == expected


def test_the_hash_is_murmur3_of_four_words():
    generator = np.random.default_rng(1)
    words = generator.integers(0, 2**32, size=(200, 4))
    words[0], words[1] = 0, 2**32 - 1
    ours = murmur3([torch.from_numpy(column) for column in words.T.copy()])
    assert ours.tolist() == [murmur3_of_bytes(struct.pack("<4I", *row)) for row in words.tolist()]


def test_a_token_has_its_noise_whatever_else_there_is():
    seeds, positions = torch.tensor([3, -(2**63), 2**63 - 1]), torch.tensor([0, 7, 2**31])
    noise = gumbel(seeds, positions, 100)
    assert torch.equal(noise[1:2, :40], gumbel(seeds[1:2], positions[1:2], 40))
    assert len(set(noise.flatten().tolist())) > 290


def test_noise_follows_gumbels_law_and_is_finite():
    seeds = torch.arange(-20, 20) * 12345678901
    noise = gumbel(seeds, torch.arange(40), 5000).flatten()
    assert noise.max() < MAX_GUMBEL
    assert noise.isfinite().all()
    assert stats.kstest(noise.numpy(), stats.gumbel_r.cdf).pvalue > 1e-4


def test_the_largest_noise_is_bounded():
    # What the least and the largest hash give.
    uniform = torch.tensor([0.5 * 2**-32, 1 - 2**-24], dtype=torch.float64)
    low, high = (-(-torch.log1p(-uniform)).log()).tolist()
    assert high < -2.8
    assert MAX_GUMBEL - 0.1 < low < MAX_GUMBEL
