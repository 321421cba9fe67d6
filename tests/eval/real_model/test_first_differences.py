"""How answers that differ are judged."""

import pytest

from reprise.engine_ext.cli.answer_difference import (
    Difference,
)
from reprise.eval.demo_data.demo_model import BUNDLED
from reprise.eval.real_model.first_differences import JudgeError, judge


@pytest.mark.slow
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
    assert near.best == near.logits[0]
    assert far.logits[1] == pytest.approx(float(logits[worst]), abs=1e-4)
    assert far.best == far.logits[0]
    assert not far.is_tie
