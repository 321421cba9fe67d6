"""Coupled verification: samples are those without drafts, and arguments are checked."""

from __future__ import annotations

import pytest
import torch

from reprise.kernels.verify.coupled import verify_coupled
from reprise.kernels.verify.gumbel import gumbel

LIMITS = {
    "plain": {},
    "top_k": {"top_k": 7},
    "top_p": {"top_p": 0.8},
    "min_p": {"min_p": 0.02},
    "all": {"temperature": 1.3, "top_k": 30, "top_p": 0.9, "min_p": 0.001},
    "greedy": {"temperature": None},
}


@pytest.mark.parametrize("limits", LIMITS.values(), ids=LIMITS)
def test_what_is_emitted_is_what_is_sampled_without_drafts(make_coupled, sampled_rows, limits):
    arguments = make_coupled([3, 0, 1, 4], 61, **limits)
    samples = sampled_rows(arguments)
    arguments["row_token_ids"][2:4] = samples[1:3]  # the first request's last two drafts are right
    for first_draft, num in ((int(samples[0]), 4), (60 - int(samples[0]), 1), (-1, 1)):
        arguments["row_token_ids"][1] = first_draft
        tokens, num_sampled = verify_coupled(**arguments)
        assert num_sampled[0] == num
        assert tokens[0].tolist() == [*samples[:num].tolist(), *[-1] * (5 - num)]
        ends = arguments["cu_num_logits"].tolist()
        for request, n in enumerate(num_sampled.tolist()):
            assert tokens[request, :n].tolist() == samples[ends[request] :][:n].tolist()


def test_all_drafts_that_are_what_is_sampled_are_accepted(make_coupled, fed_with_samples):
    arguments = fed_with_samples(make_coupled([3, 0, 1, 4], 61, top_p=0.9))
    _, num_sampled = verify_coupled(**arguments)
    assert num_sampled.tolist() == [4, 1, 2, 5]


def test_a_sample_is_the_argmax_of_logit_and_noise(make_coupled, sampled_rows):
    arguments = make_coupled([2, 1], 40, temperature=[0.7, 1.6])
    slots = arguments["row_slots"].long()
    noise = gumbel(arguments["seeds"][slots], arguments["positions"], 40)
    temperature = arguments["temperature"][slots][:, None]
    expected = (arguments["logits"].float() / temperature + noise).argmax(dim=1)
    assert torch.equal(sampled_rows(arguments), expected)


def test_of_equal_logits_top_k_keeps_the_lowest_ids(make_coupled, sampled_rows):
    arguments = make_coupled([0] * 300, 9, top_k=3)
    arguments["logits"] = torch.tensor([0, 5, 2, 2, 5, 2, 0, 2, 2]).float().expand(300, -1)
    assert set(sampled_rows(arguments).tolist()) == {1, 2, 4}


def test_settings_are_those_of_a_requests_slot(make_coupled, sampled_rows):
    limits = {"top_k": [1, 61, 2], "min_p": [0.0, 1.0, 0.0], "top_p": [1.0, 1.0, 1e-6]}
    arguments = make_coupled([0, 0, 0], 61, temperature=[1.0, 1.0, 5.0], **limits)
    assert torch.equal(sampled_rows(arguments), arguments["logits"].float().argmax(dim=1))
    arguments = make_coupled([0] * 40, 61, temperature=[0.0, 9.0] * 20)
    is_best = sampled_rows(arguments) == arguments["logits"].float().argmax(dim=1)
    assert is_best[::2].all()
    assert is_best[1::2].sum() < 10


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_a_row_without_a_finite_maximum_is_taken_greedily(make_coupled, bad):
    arguments = make_coupled([1], 20)
    arguments["logits"][0] = float("-inf") if bad < 0 else 0.0
    arguments["logits"][0, [7, 9]] = bad
    arguments["row_token_ids"][1] = 0 if bad < 0 else 7
    tokens, num_sampled = verify_coupled(**arguments)
    assert num_sampled.tolist() == [2]
    assert tokens[0, 0] == arguments["row_token_ids"][1]


def test_logits_that_are_scaled_already_are_not_divided_again(make_coupled, sampled_rows):
    arguments = make_coupled([2, 1], 61, dtype=torch.float32, temperature=[0.5, 2.0])
    slots = arguments["row_slots"].long()
    scaled = arguments["logits"] / arguments["temperature"][slots][:, None]
    expected = sampled_rows(arguments)
    assert torch.equal(sampled_rows(arguments | {"logits": scaled}, is_scaled=True), expected)


WRONG = {
    "no seeds": ({"seeds": None}, "seeds"),
    "flat logits": ({"logits": torch.zeros(5)}, "logits"),
    "other rows": ({"positions": torch.zeros(4).long()}, "positions"),
    "float ids": ({"row_token_ids": torch.zeros(5)}, "row_token_ids"),
    "no request": ({"cu_num_logits": torch.zeros(1).int()}, "request"),
    "slots of requests": ({"row_slots": torch.zeros(2).int()}, "row_slots"),
    "float sums": ({"cu_num_logits": torch.tensor([0.0, 3.0, 5.0])}, "cu_num_logits"),
    "scaled and limited": ({"is_scaled": True, "top_k": torch.ones(5).int()}, "is_scaled"),
    "backend": ({"backend": "cuda"}, "backend"),
}


@pytest.mark.parametrize(("change", "named"), WRONG.values(), ids=WRONG)
def test_arguments_that_do_not_fit_are_refused(make_coupled, change, named):
    with pytest.raises(ValueError, match=named):
        verify_coupled(**make_coupled([2, 1], 61) | change)
