"""The Triton kernels of coupled verification against the definition: the same tokens."""

from __future__ import annotations

import pytest
import torch

from reprise.kernels.verify import triton_coupled
from reprise.kernels.verify.coupled import verify_coupled

pytestmark = pytest.mark.gpu  # and in the interpreter, by test_interpreter.py

LIMITS = {
    "greedy": {"temperature": None},
    "temperature": {"temperature": 0.7},
    "hot": {"temperature": 5.0},
    "cold": {"temperature": 0.05},
    "top_k": {"top_k": 5},
    "top_p": {"top_p": 0.85},
    "min_p": {"min_p": 0.05},
    "all": {"temperature": 1.4, "top_k": 9, "top_p": 0.9, "min_p": 0.01},
    "off": {"top_k": 0, "top_p": 1.0, "min_p": 0.0},
}


def both(arguments, **more):
    """Run the definition and the kernels, demand equality, and return the result."""
    expected = verify_coupled(**arguments, **more, backend="torch")
    got = verify_coupled(**arguments, **more, backend="triton")
    for name, one, other in zip(("tokens", "num_sampled"), expected, got, strict=True):
        assert torch.equal(one, other), f"{name}: expected {one.tolist()}, got {other.tolist()}"
        assert one.dtype == other.dtype
    return got


SIZES = [(7, torch.bfloat16), (61, torch.float16), (9001, torch.bfloat16), (4099, torch.float32)]


@pytest.mark.parametrize("limits", LIMITS.values(), ids=LIMITS)
@pytest.mark.parametrize(("vocab", "dtype"), SIZES)
def test_the_same_tokens_as_the_definition(
    make_coupled, fed_with_samples, device, vocab, dtype, limits
):
    arguments = make_coupled([2, 0, 3, 1], vocab, dtype=dtype, device=device, **limits)
    both(arguments)
    _, num_sampled = both(fed_with_samples(arguments))
    assert num_sampled.tolist() == [3, 1, 4, 2]


def test_a_large_vocabulary(make_coupled, fed_with_samples, device):
    arguments = make_coupled([1, 1], 151936, device=device, temperature=[0.0, 0.8], top_p=0.95)
    both(fed_with_samples(arguments))
    both(fed_with_samples(arguments | {"top_p": None}))


def test_each_request_has_its_own_settings(make_coupled, fed_with_samples, device):
    arguments = make_coupled(
        [1, 2, 1, 0, 2, 1],
        97,
        device=device,
        temperature=[0.0, 0.5, 1.0, 2.0, 1.0, 0.3],
        top_k=[3, 0, 97, 1, 20, -1],
        top_p=[0.5, 1.0, 0.3, 0.9, 1e-6, 0.99],
        min_p=[0.5, 0.0, 0.2, 0.0, 0.01, 1.0],
    )
    both(fed_with_samples(arguments))


@pytest.mark.parametrize("limits", [{"top_k": 3}, {"top_k": 9, "top_p": 0.7}, {"min_p": 1.0}])
def test_ties_across_tiles(make_coupled, fed_with_samples, device, limits):
    arguments = make_coupled([3] * 6, 9000, device=device, **limits)
    # Two logits above all, and the next one many times in each tile.
    arguments["logits"] = arguments["logits"].clamp(max=4.0).round()
    arguments["logits"][:, [5000, 8999]] = 5.0
    both(fed_with_samples(arguments))


def test_many_samples_of_one_flat_row(make_coupled, device):
    arguments = make_coupled([0] * 60, 37, device=device, temperature=1.2)
    arguments["logits"] = arguments["logits"][:1].expand(60, -1)
    tokens, _ = both(arguments)
    assert len(set(tokens.flatten().tolist())) > 5


def test_what_cannot_win_is_left_out_without_a_difference(make_coupled, device):
    # One logit far above its tile; the other tiles from hopeless to equal.
    arguments = make_coupled([0] * 24, 4096 * 3, device=device, temperature=1.0)
    arguments["logits"] = arguments["logits"] * 0.1
    arguments["logits"][:, 4096 + 17] += torch.linspace(0, 30, 24, device=device)
    tokens, _ = both(arguments)
    is_top = tokens[:, 0] == 4096 + 17
    assert 0 < is_top.sum() < 24


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("limits", [{}, {"top_k": 3, "top_p": 0.9, "min_p": 0.1}])
def test_rows_without_a_finite_maximum(make_coupled, device, bad, limits):
    arguments = make_coupled([2, 1, 1], 5000, device=device, temperature=[1.0, 1.0, 0.0], **limits)
    arguments["logits"][0] = bad
    arguments["logits"][3, 4500] = bad
    arguments["logits"][5, 4097:] = bad
    arguments["row_token_ids"][1] = 0
    _, num_sampled = both(arguments)
    assert num_sampled[0] >= 2


def test_masked_and_strided_logits_and_drafts_that_are_no_tokens(make_coupled, device):
    arguments = make_coupled([2, 2, 1, 1], 29, device=device, min_p=0.01)
    wide = torch.full((10, 64), 50.0, device=device, dtype=torch.bfloat16)
    wide[:, :29] = arguments["logits"]
    wide[:, 3:20] = -torch.inf
    wide[6] = -torch.inf
    wide[6, 17] = 1.0
    arguments["row_token_ids"][[1, 4, 7, 9]] = torch.tensor([-1, -2, 2**30, 4]).int().to(device)
    tokens, num_sampled = both(arguments | {"logits": wide[:, :29]})
    assert tokens[2, 0] == 17
    assert num_sampled[:3].tolist() == [1, 1, 1]
    assert not set(tokens[0].tolist()) & set(range(3, 20))


def test_logits_that_are_scaled_already(make_coupled, device):
    arguments = make_coupled([2, 1], 5000, dtype=torch.float32, device=device, temperature=0.4)
    arguments["logits"][:, 100:4000] = -torch.inf
    both(arguments, is_scaled=True)


def test_no_drafts_and_a_larger_width(make_coupled, device):
    arguments = make_coupled([0, 1], 13, device=device)
    tokens, _ = both(arguments | {"max_draft": 5})
    assert tokens.shape == (2, 6)
    assert tokens[0, 1:].tolist() == [-1] * 5
    both(make_coupled([0], 13, device=device))


def test_programs_are_as_many_as_rows_however_long_drafts_may_be(make_coupled, device, monkeypatch):
    launched = {}

    def spy(name):
        kernel = getattr(triton_coupled, name)

        def launch(grid):
            launched[name] = grid
            return kernel[grid]

        made = type("Spy", (), {"__getitem__": staticmethod(launch)})()
        monkeypatch.setattr(triton_coupled, name, made)

    for name in ("scan_kernel", "threshold_kernel", "noise_kernel", "choose_kernel"):
        spy(name)
    both(make_coupled([1, 0, 1], 9000, device=device, top_p=0.9) | {"max_draft": 16})
    assert launched == {
        "scan_kernel": (3, 5), "threshold_kernel": (5,), "noise_kernel": (3, 5),
        "choose_kernel": (3,),
    }  # fmt: skip


def test_a_request_has_the_same_tokens_in_another_batch(make_coupled, fed_with_samples, device):
    arguments = fed_with_samples(make_coupled([2, 2, 2], 5003, device=device))
    tokens, _ = verify_coupled(**arguments, backend="triton")
    alone = {
        "logits": arguments["logits"][6:],
        "row_token_ids": arguments["row_token_ids"][6:],
        "positions": arguments["positions"][6:],
        "cu_num_logits": arguments["cu_num_logits"][:2],
        "row_slots": arguments["row_slots"][6:],
    }
    one, _ = verify_coupled(**arguments | alone, backend="triton")
    assert torch.equal(one[0], tokens[2])
