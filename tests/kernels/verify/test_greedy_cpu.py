"""Compiled verification of greedy requests against the definition in torch."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from reprise.kernels.verify import verify_drafts
from reprise.kernels.verify.greedy_cpu import verify_drafts_greedy

VALUES = [-torch.inf, -1.0, 0.0, 1.0, 2.0]
BATCHES = st.lists(st.lists(st.integers(-1, 4), max_size=6), min_size=1, max_size=5)


def greedy(logits, drafts, **others):
    """What `verify_drafts` makes of the requests' drafts, all greedy."""
    flat = [token for draft in drafts for token in draft]
    names = ("temperature", "top_k", "top_p", "min_p", "seeds", "offsets")
    return verify_drafts(
        logits,
        torch.tensor(flat, dtype=torch.int32),
        torch.tensor([len(draft) for draft in drafts], dtype=torch.int32).cumsum(0).int(),
        **dict.fromkeys(names),
        **others,
    )


@settings(deadline=None)  # the first example compiles
@given(drafts=BATCHES, data=st.data(), dtype=st.sampled_from([torch.float32, torch.bfloat16]))
def test_it_is_the_definition(drafts, data, dtype):
    rows = sum(map(len, drafts)) + len(drafts)
    values = [*VALUES, torch.inf, torch.nan] if data.draw(st.booleans()) else VALUES
    row = st.lists(st.sampled_from(values), min_size=4, max_size=4)
    logits = torch.tensor(data.draw(st.lists(row, min_size=rows, max_size=rows))).to(dtype)
    tokens, accepted = greedy(logits, drafts)
    expected_tokens, expected_accepted = greedy(logits, drafts, backend="torch")
    assert torch.equal(tokens, expected_tokens)
    assert torch.equal(accepted, expected_accepted)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_what_is_no_number_is_left_to_the_definition_where_numpy_differs(bad):
    logits = torch.tensor([[0.0, 1.0, torch.inf, bad]])
    none = torch.tensor([], dtype=torch.int32)
    verified = verify_drafts_greedy(logits, none, torch.tensor([0]), max_draft=0)
    assert (verified is None) == (bad is torch.nan)
    assert greedy(logits, [[]])[0].tolist() == [[2]]
