"""How answers that differ are judged."""

import pytest

from reprise.eval.demo_data.demo_model import BUNDLED
from reprise.eval.real_model.first_differences import (
    TIE_STEPS,
    Difference,
    Gap,
    JudgeError,
    bfloat16_step,
    first_difference,
    judge,
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
    near = Gap((15.95, 15.95 - TIE_STEPS * 0.0625), are_best=True)
    assert near.bfloat16_steps == pytest.approx(TIE_STEPS)
    assert not Gap((15.95, 15.5), are_best=True).is_tie
    assert not Gap((15.95, 15.9), are_best=False).is_tie
    assert Gap((15.95, 15.9), are_best=True).is_tie


def test_a_model_that_is_not_there_is_one_line() -> None:
    assert judge("no/such/folder", []) == []
    with pytest.raises(JudgeError, match=r"^judging the differences: .+$"):
        judge("/no/such/folder", [Difference([1], (1, 2))])


@pytest.mark.slow
def test_the_judge_sees_the_best_two() -> None:
    """By the logits of transformers' own model, for a token that is best and one that is not."""
    import torch
    from transformers import LlamaForCausalLM

    prompt = [5, 6, 7, 8]
    model = LlamaForCausalLM.from_pretrained(BUNDLED, dtype=torch.float32)
    with torch.inference_mode():
        logits = model(input_ids=torch.tensor([prompt])).logits[0, -1]
    best, second, *_, worst = (int(token) for token in logits.argsort(descending=True))
    near, far = judge(
        str(BUNDLED), [Difference(prompt, (second, best)), Difference(prompt, (best, worst))]
    )
    assert near.logits == pytest.approx((float(logits[best]), float(logits[second])), abs=1e-4)
    assert near.are_best
    assert far.logits[1] == pytest.approx(float(logits[worst]), abs=1e-4)
    assert not far.are_best
