"""Where two answers to the same prompt first differ, and how near the two tokens were to a tie.

bfloat16 has eight significant bits, so that the logits of an engine lie on a grid; the gap of two
logits is given in steps of that grid.
"""

import math
from collections.abc import Sequence

import msgspec

TIE_STEPS = 4
"""Steps of bfloat16 within which rounding decides between two tokens."""
_BFLOAT16_BITS = 8
_FLOAT32_TIE = 1e-3


class Difference(msgspec.Struct, frozen=True):
    """The first token in which two answers differ."""

    token_ids: list[int]
    """The prompt, and what both answers say after it."""
    said: tuple[int, int]
    """What each says next."""


class Gap(msgspec.Struct, frozen=True):
    """How a judge sees a difference."""

    logits: tuple[float, float]
    """Of the two tokens that were said, the higher one first."""
    best: float
    """The highest of all tokens' logits: three may be as near to one another as two."""

    @property
    def bfloat16_steps(self) -> float:
        """Their distance in steps of bfloat16, at the height where they are."""
        return (self.logits[0] - self.logits[1]) / bfloat16_step(self.logits[0])

    @property
    def is_tie(self) -> bool:
        """Whether rounding alone may have decided, in bfloat16."""
        return self.is_tie_in("bfloat16")

    def is_tie_in(self, dtype: str) -> bool:
        """Return whether rounding in this precision may have decided: both tokens are that close
        to the best one."""
        gap = self.best - self.logits[1]
        if gap == 0:
            return True
        if dtype == "float32":
            return gap <= _FLOAT32_TIE
        # float16 has three bits more.
        return gap <= TIE_STEPS * bfloat16_step(self.best) / (8 if dtype == "float16" else 1)


def bfloat16_step(value: float) -> float:
    """Return the distance of two neighbouring numbers in bfloat16, at this height."""
    if value == 0:
        raise ValueError("the steps around 0 have no one size")
    return float(2.0 ** (math.floor(math.log2(abs(value))) - _BFLOAT16_BITS + 1))


def first_difference(
    prompt_token_ids: Sequence[int], one: Sequence[int], other: Sequence[int]
) -> Difference | None:
    """Return the first difference of two answers to a prompt; None if they are the same.

    Raises:
        ValueError: one ends where the other goes on, which no choice between two tokens explains.
    """
    for number, said in enumerate(zip(one, other, strict=False)):
        if said[0] != said[1]:
            return Difference([*prompt_token_ids, *one[:number]], (said[0], said[1]))
    if len(one) != len(other):
        raise ValueError(f"answers of {len(one)} and {len(other)} tokens agree as far as both go")
    return None
