"""The Triton kernels against the reference: the same tokens for the same noise."""

from __future__ import annotations

import pytest
import torch

from reprise.kernels.verify import verify_drafts

pytestmark = pytest.mark.gpu  # and in the interpreter, by test_interpreter.py

CONSTRAINTS = {
    "greedy": {"temperature": None},
    "temperature": {"temperature": 0.7},
    "top_k": {"top_k": 5},
    "top_p": {"top_p": 0.85},
    "min_p": {"min_p": 0.05},
    "all": {"temperature": 1.4, "top_k": 9, "top_p": 0.9, "min_p": 0.01},
    "off": {"top_k": 0, "top_p": 1.0, "min_p": 0.0},
}


def both(arguments, **more):
    """Run the reference and the kernels, demand equality, and return the result."""
    expected = verify_drafts(**arguments, backend="torch", **more)
    got = verify_drafts(**arguments, backend="triton", **more)
    for name, one, other in zip(("tokens", "accepted"), expected, got, strict=True):
        assert torch.equal(one, other), f"{name}: expected {one.tolist()}, got {other.tolist()}"
        assert one.dtype == other.dtype
    return got


def likely_drafts(arguments, lengths):
    """Put each row's most likely token in as its draft, so that walks go beyond the first row."""
    best = arguments["logits"].float().argmax(dim=1)
    is_draft = torch.cat([torch.tensor([True] * n + [False]) for n in lengths])
    return arguments | {"draft_token_ids": best[is_draft.to(best.device)].int()}


SIZES = [(7, torch.bfloat16), (61, torch.float16), (4099, torch.bfloat16)]


@pytest.mark.parametrize("constraints", CONSTRAINTS.values(), ids=CONSTRAINTS)
@pytest.mark.parametrize(("vocab", "dtype"), SIZES)
def test_the_same_tokens_as_the_reference(make_batch, device, vocab, constraints, dtype):
    lengths = [2, 0, 3, 1]
    arguments = make_batch(
        [[0] * n for n in lengths], vocab, dtype=dtype, device=device, **constraints
    )
    _, accepted = both(likely_drafts(arguments, lengths))
    assert accepted.sum() > 0


@pytest.mark.parametrize("top_p", [None, 0.9])
def test_the_same_tokens_in_float32(make_batch, device, top_p):
    arguments = make_batch([[0, 0], [0]], 61, device=device, top_p=top_p, top_k=20)
    both(likely_drafts(arguments, [2, 1]))


@pytest.mark.parametrize("vocab", [50257, 128256, 151936])
def test_large_vocabularies(make_batch, device, vocab):
    arguments = make_batch(
        [[0], [0]], vocab, dtype=torch.bfloat16, device=device, temperature=[0.0, 0.8], top_p=0.95
    )
    both(likely_drafts(arguments, [1, 1]))
    both(likely_drafts(arguments, [1, 1]) | {"top_p": None})


def test_per_request_settings_in_one_batch(make_batch, device):
    lengths = [1, 2, 1, 0, 2, 1]
    arguments = make_batch(
        [[0] * n for n in lengths],
        97,
        device=device,
        temperature=[0.0, 0.5, 1.0, 2.0, 1.0, 0.3],
        top_k=[3, 0, 97, 1, 20, -1],
        top_p=[0.5, 1.0, 0.3, 0.9, 1e-6, 0.99],
        min_p=[0.5, 0.0, 0.2, 0.0, 0.01, 1.0],
    )
    both(likely_drafts(arguments, lengths))


@pytest.mark.parametrize("temperature", [None, 1.0])
def test_ties_in_bf16_go_to_the_lowest_id_or_stay_together(make_batch, device, temperature):
    arguments = make_batch(
        [[0, 0]], 9000, dtype=torch.bfloat16, device=device, temperature=temperature
    )
    arguments["logits"] = (
        arguments["logits"].clamp(max=4.0).round()
    )  # the maxima in all three tiles
    if temperature is None:
        tokens, _ = both(likely_drafts(arguments, [2]))
        best = [int((row == row.max()).nonzero()[0]) for row in arguments["logits"]]
        assert tokens.tolist() == [best]
    for name, value in (("top_k", 3), ("top_p", 0.2)):
        dtype = torch.int32 if name == "top_k" else torch.float32
        both(arguments | {name: torch.full((1,), value, dtype=dtype, device=device)})


def test_256_requests_of_which_most_have_no_draft(make_batch, device):
    lengths = [1 if i % 16 == 0 else 0 for i in range(256)]
    arguments = make_batch([[0] * n for n in lengths], 11, device=device, temperature=0.9)
    tokens, _ = both(likely_drafts(arguments, lengths))
    assert len(set(tokens[:, 0].tolist())) > 3


def test_no_drafts_at_all_and_a_given_max_draft(make_batch, device):
    arguments = make_batch([[]], 13, device=device)
    tokens, accepted = both(arguments, max_draft=0)
    assert tokens.shape == (1, 1)
    tokens, accepted = both(arguments, max_draft=5)
    assert tokens[0, 1:].tolist() == [-1] * 5
    assert accepted.tolist() == [0]


def test_settings_that_are_views(make_batch, device):
    arguments = make_batch([[0], [0], []], 61, dtype=torch.bfloat16, device=device, top_k=7)
    arguments |= {
        "temperature": torch.tensor(0.6, device=device).expand(3),
        "top_k": torch.arange(2, 14, device=device)[::4],
        "seeds": torch.arange(9, device=device).view(3, 3)[:, 1],
        "cu_num_draft_tokens": torch.tensor([[1, 9], [2, 9], [2, 9]], device=device)[:, 0],
    }
    both(likely_drafts(arguments, [1, 1, 0]))


def test_masked_and_strided_logits_and_drafts_that_are_no_tokens(make_batch, device):
    arguments = make_batch([[-1, 2], [-2, -2], [2**30], [4]], 29, device=device, min_p=0.01)
    wide = torch.full((10, 64), 50.0, device=device)
    wide[:, :29] = arguments["logits"]
    wide[:, 3:20] = -torch.inf
    wide[6] = -torch.inf  # the row of the third request's draft
    wide[6, 17] = 1.0
    tokens, accepted = both(arguments | {"logits": wide[:, :29]})
    assert tokens[2, 0] == 17
    assert accepted[:3].tolist() == [0, 0, 0]
    assert not set(tokens[0].tolist()) & set(range(3, 20))


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("constraints", [{}, {"top_k": 3, "top_p": 0.9}], ids=["plain", "top"])
def test_rows_without_a_finite_maximum(make_batch, device, bad, constraints):
    arguments = make_batch(
        [[0, 0], [0], [0]],
        5000,
        dtype=torch.bfloat16,
        device=device,
        temperature=[1.0, 1.0, 0.0],
        **constraints,
    )
    arguments["logits"][0, :] = bad
    arguments["logits"][3, 4500] = bad
    arguments["logits"][5, 4097:] = bad
    tokens, accepted = both(arguments)
    assert tokens[0].tolist() == [0, -1, -1]
    assert accepted[0] == 0


def test_a_seed_gives_the_same_tokens_in_another_batch(make_batch, device):
    arguments = make_batch([[1, 1]] * 3, 5003, scale=0.1, device=device)
    tokens, _ = verify_drafts(**arguments, backend="triton")
    last = arguments | {
        "logits": arguments["logits"][6:],
        "draft_token_ids": arguments["draft_token_ids"][4:],
        "cu_num_draft_tokens": arguments["cu_num_draft_tokens"][:1],
        **{name: arguments[name][2:] for name in ("temperature", "seeds", "offsets")},
    }
    alone, _ = verify_drafts(**last, backend="triton")
    assert torch.equal(alone[0], tokens[2])


def test_many_samples_of_one_row_agree(make_batch, device):
    # Far more different uniforms through one distribution than the other tests take.
    arguments = make_batch([[]] * 60, 37, device=device, temperature=1.2)
    row = arguments["logits"][:1]
    tokens, _ = both(arguments | {"logits": row.expand(60, -1)})
    assert len(set(tokens.flatten().tolist())) > 5
