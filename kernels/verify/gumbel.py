"""The noise of vLLM's V2 sampler: one Gumbel variate per (seed, position, token).

A row's sample is the token with the largest `logit + noise`; which is a sample of softmax(logits).
The noise of a position does not depend on what was drafted, so that the same sample comes out with
drafts as without.

The 32 random bits are MurmurHash3 (x86, 32 bits; Appleby, public domain) of the four words seed
(low, high), position and token. All steps are those that vLLM takes, in float32, because samples
are to be equal to vLLM's token for token.
"""

from __future__ import annotations

import torch

_MASK = 0xFFFFFFFF
_NUM_BYTES = 16

MAX_GUMBEL = 22.9
"""No noise is as large: the least uniform, 2**-33, gives 22.87."""


def _rotate(x: torch.Tensor, by: int) -> torch.Tensor:
    return (x << by | x >> (32 - by)) & _MASK


def _mix(state: torch.Tensor, word: torch.Tensor) -> torch.Tensor:
    """Take in one word; all are int64 in [0, 2**32)."""
    word = _rotate(word * 0xCC9E2D51 & _MASK, 15) * 0x1B873593 & _MASK
    return _rotate(state ^ word, 13) * 5 + 0xE6546B64 & _MASK


def murmur3(words: list[torch.Tensor]) -> torch.Tensor:
    """Hash four words, int64 in [0, 2**32) that can be broadcast: 32 bits, likewise."""
    state = torch.zeros_like(words[0])
    for word in words:
        state = _mix(state, word)
    state = state ^ _NUM_BYTES
    state = (state ^ state >> 16) * 0x85EBCA6B & _MASK
    state = (state ^ state >> 13) * 0xC2B2AE35 & _MASK
    return state ^ state >> 16


def gumbel(
    seeds: torch.Tensor,  # [n] int64
    positions: torch.Tensor,  # [n] int64
    vocab: int,
) -> torch.Tensor:
    """Return the noise of every token: [n, vocab] float32."""
    seeds, positions = seeds.long()[:, None], positions.long()[:, None]
    tokens = torch.arange(vocab, device=seeds.device)[None]
    bits = murmur3([seeds & _MASK, seeds >> 32 & _MASK, positions & _MASK, tokens])
    high, low = (bits >> 16).float(), (bits & 0xFFFF).float()
    uniform = high * 2.0**-16 + (low + 0.5) * 2.0**-32
    return -(-_log1p_of_minus(uniform)).log()


def _log1p_of_minus(x: torch.Tensor) -> torch.Tensor:
    """Return log(1 - x) of float32 in (0, 1]: a series of eight terms below 0.25."""
    series = torch.full_like(x, 1 / 8)
    for divisor in range(7, 0, -1):
        series = 1 / divisor + x * series
    return torch.where(x < 0.25, -x * series, (1 - x).clamp(min=2.0**-24).log())
