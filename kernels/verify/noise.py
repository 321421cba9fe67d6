"""Counter-based noise: one uniform per (seed, counter), whatever else is in the batch.

Philox-4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011). A
counter-based generator has no state to advance, so one row's noise cannot depend on another row.
"""

from __future__ import annotations

import torch

_MASK = 0xFFFFFFFF
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)
_ROUNDS = 10


def philox(
    key: tuple[torch.Tensor, torch.Tensor],  # two of [n] int64, values in [0, 2**32)
    counter: tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor],  # four of the same kind
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Four random 32-bit words, [n] int64 each in [0, 2**32), for every key and counter."""
    k0, k1 = key
    c0, c1, c2, c3 = counter
    for _ in range(_ROUNDS):
        # The 64-bit product may wrap to a negative int64; its bits are right, and the mask after
        # the arithmetic shift removes the copies of the sign.
        product0, product1 = c0 * _MULTIPLIERS[0], c2 * _MULTIPLIERS[1]
        c0, c2 = (product1 >> 32) & _MASK ^ c1 ^ k0, (product0 >> 32) & _MASK ^ c3 ^ k1
        c1, c3 = product1 & _MASK, product0 & _MASK
        k0, k1 = (k0 + _WEYL[0]) & _MASK, (k1 + _WEYL[1]) & _MASK
    return c0, c1, c2, c3


def uniform(
    seeds: torch.Tensor,  # [n] int64
    counters: torch.Tensor,  # [n] int64
) -> torch.Tensor:
    """One uniform in the open interval (0, 1) per (seed, counter): [n] float64 on a grid of 2**-53.

    The first Philox word gives the high 27 bits and the second the low 26; half a step is added so
    that neither end can be hit.
    """
    zero = torch.zeros_like(counters)
    word0, word1, _, _ = philox(
        (seeds & _MASK, (seeds >> 32) & _MASK),
        (counters & _MASK, (counters >> 32) & _MASK, zero, zero),
    )
    high, low = (word0 >> 5).to(torch.float64), (word1 >> 6).to(torch.float64)
    return (high * 2.0**26 + low + 0.5) * 2.0**-53
