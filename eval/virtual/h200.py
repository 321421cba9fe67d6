"""What steps of a model of 8 billion parameters take on an NVIDIA H200, as it was measured.

The model is the support model padded to the shape of Llama 3.1 8B, in bfloat16, with vLLM 0.26, on
a host of 16 cores; the runs are in docs/measurements.md (A live engine on a GPU) and in decision
17. All figures are from there unless a comment says otherwise.
"""

from __future__ import annotations

import numpy as np

from reprise.eval.virtual.captured import CAPTURED
from reprise.eval.virtual.engines import at_batch

# Matrix products of one step alone, in one CUDA graph: tokens computed, ms.
_PRODUCTS_MS = {
    1: 4.3,
    8: 4.5,
    17: 4.6,
    32: 4.6,
    128: 5.2,
    136: 5.4,
    160: 5.8,
    256: 7.2,
    288: 8.5,
}
# A token more beyond those: the slope from 128 to 288 tokens, which is 790 TFLOP/s.
_MORE_TOKENS_MS = (8.5 - 5.2) / (288 - 128)
# A whole step without drafts, launched while the one before it ran: requests, ms. At 128 it was not
# measured: what a step takes beside its products is continued from 8 and 32.
_STEP_MS = {1: 4.8, 8: 5.0, 32: 5.3, 128: 6.9}
# What the host takes for a step at 8 requests when the device takes next to nothing (the model of 4
# million parameters, vLLM's V2 runner): steps that are sent ahead are no faster.
_HOST_STEP_MS = 3.9
# And for one that has no graph of the whole step, whose pieces around every layer's attention it
# launches one by one. Not measured: a guess, with which the run at 128 comes out 14% too fast.
_HOST_PIECES_MS = 11.0
# `verify_drafts` with a batch's greedy drafts (docs/benchmarks.md, Verification on a GPU): medians
# of 0.08 to 0.24 ms at 8 to 128 requests on a host whose launches were slow, which a step that
# waits for the host pays. In an earlier run, on a quiet host, it was 0.05 to 0.07 ms in most shapes
# and 0.10 at 128 with 8 drafts each (`git show 018fc66:eval/results/bench_verify.csv`); a step that
# was sent ahead waits for no launch.
_VERIFY_MS = 0.2
_VERIFY_AHEAD_MS = {1: 0.06, 32: 0.06, 128: 0.1}


def products_ms(tokens: int) -> float:
    """Return what the matrix products of a step with so many tokens take."""
    known = list(_PRODUCTS_MS)
    beyond = max(0, tokens - known[-1]) * _MORE_TOKENS_MS
    return float(np.interp(tokens, known, list(_PRODUCTS_MS.values()))) + beyond


def captured_size(tokens: int) -> int:
    """Return how many tokens are computed where so many are asked for."""
    return next((size for size in CAPTURED if size >= tokens), tokens)


# What a step takes beside its products: requests, ms.
_BESIDE_MS = {batch: ms - products_ms(captured_size(batch)) for batch, ms in _STEP_MS.items()}


class H200:
    """Milliseconds turned into seconds of steps."""

    def __init__(self, *, prefill_ms: float) -> None:
        """`prefill_ms`: what a step takes longer in which a request is new, beside its tokens."""
        self._prefill_ms = prefill_ms

    def step_s(self, batch: int, drafted: int = 0, prefilled: int = 0) -> float:
        """Return what a step takes that the host has to launch: `batch` requests decode, so many
        drafted tokens are verified, and so many tokens of prompts are computed."""
        verify_ms = _VERIFY_MS if drafted else 0.0
        return (self._compute_ms(batch, drafted, prefilled) + verify_ms) / 1e3

    def sent_ahead_s(
        self, batch: int, drafted: int = 0, prefilled: int = 0, *, in_pieces: bool = False
    ) -> float:
        """Return what a step takes that waits for nothing but the device, or for the host to send
        it; `in_pieces`: it has no graph of its own."""
        verify_ms = at_batch(_VERIFY_AHEAD_MS, batch) if drafted else 0.0
        compute_ms = self._compute_ms(batch, drafted, prefilled)
        host_ms = _HOST_PIECES_MS if in_pieces else _HOST_STEP_MS
        return max(compute_ms + verify_ms, host_ms) / 1e3

    def _compute_ms(self, batch: int, drafted: int, prefilled: int) -> float:
        tokens = captured_size(batch + drafted) + prefilled
        return (
            products_ms(tokens)
            + at_batch(_BESIDE_MS, batch)
            + (self._prefill_ms if prefilled else 0.0)
        )
