"""Where answers differ, and what counts as a tie."""

import pytest

from reprise.engine_ext.cli.answer_difference import (
    TIE_STEPS,
    Difference,
    Gap,
    bfloat16_step,
    first_difference,
)


def test_where_answers_first_differ() -> None:
    assert first_difference([1, 2], [3, 4, 5], [3, 4, 5]) is None
    assert first_difference([1, 2], [3, 4, 5], [3, 9]) == Difference([1, 2, 3], (4, 9))
    assert first_difference([1], [7], [8, 8]) == Difference([1], (7, 8))
    with pytest.raises(ValueError, match="2 and 1 tokens agree as far as both go"):
        first_difference([1], [7, 8], [7])


@pytest.mark.parametrize("value", [0.077, 1.0, 15.95, -16.0, 30.45, 255.0])
def test_a_step_is_the_distance_of_neighbours_in_bfloat16(value: float) -> None:
    import torch

    here = torch.tensor(value, dtype=torch.bfloat16)
    bits = here.view(torch.int16)
    there = (bits + 1).to(torch.int16).view(torch.bfloat16)
    assert bfloat16_step(float(here)) == abs(float(there) - float(here))


def test_what_counts_as_a_tie() -> None:
    near = Gap((15.95, 15.95 - TIE_STEPS * 0.0625), best=15.95)
    assert near.bfloat16_steps == pytest.approx(TIE_STEPS)
    assert not Gap((15.95, 15.5), best=15.95).is_tie
    assert Gap((15.95, 15.9), best=15.95).is_tie
    assert Gap((15.95, 15.9), best=15.97).is_tie  # a third as near
    assert not Gap((15.95, 15.9), best=16.5).is_tie
