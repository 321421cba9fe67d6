"""Noise: Philox against its published vectors, uniforms against their law."""

from __future__ import annotations

from collections import Counter

import pytest
import torch

from reprise.kernels.verify.noise import philox, uniform

# Known answers of Random123's philox4x32, 10 rounds: counter, key, result.
VECTORS = [
    ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    (
        (0xFFFFFFFF,) * 4,
        (0xFFFFFFFF,) * 2,
        (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD),
    ),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]


@pytest.mark.parametrize(("counter", "key", "expected"), VECTORS)
def test_philox_gives_the_published_words(counter, key, expected):
    words = philox(
        tuple(torch.tensor([word]) for word in key),
        tuple(torch.tensor([word]) for word in counter),
    )
    assert tuple(int(word) for word in words) == expected


def test_uniform_takes_all_64_bits_of_seed_and_counter():
    base = uniform(torch.tensor([5]), torch.tensor([9]))
    for seed, counter in [(5 + 2**32, 9), (5, 9 + 2**32), (-5, 9), (6, 9), (5, 10)]:
        assert uniform(torch.tensor([seed]), torch.tensor([counter])) != base


def test_uniform_is_uniform_and_open(assert_law):
    draws = uniform(torch.full((200_000,), 7), torch.arange(200_000))
    assert draws.min() > 0
    assert draws.max() < 1
    assert_law(Counter((draws * 64).long().tolist()), dict.fromkeys(range(64), 1 / 64))
    # Neighbouring counters are what neighbouring rows get: their pairs must be uniform too.
    pairs = (draws[:-1:2] * 8).long() * 8 + (draws[1::2] * 8).long()
    assert_law(Counter(pairs.tolist()), dict.fromkeys(range(64), 1 / 64))


def test_the_law_check_itself_can_fail(assert_law):
    draws = uniform(torch.full((200_000,), 7), torch.arange(200_000)) ** 1.02
    with pytest.raises(AssertionError, match="chi-square"):
        assert_law(Counter((draws * 64).long().tolist()), dict.fromkeys(range(64), 1 / 64))
