"""The look-up kernel against the reference."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from reprise.kernels.lookup import lookup_drafts


def random_requests(seed, device, *, alphabet, batch=6):
    """Requests over few token ids, so that matches of every length and many ties occur."""
    rng = np.random.default_rng(seed)
    lengths, counts = [], []
    for _ in range(batch):
        counts.append(int(rng.integers(0, 4)))
        lengths += [int(rng.choice([0, 1, 2, 50, 1024, 1025, 1500])) for _ in range(counts[-1])]
    tail = rng.integers(0, alphabet, (batch, int(rng.choice([1, 5, 16, 20]))))
    for row in tail:
        row[: rng.integers(0, len(row))] = -1
    tokens = rng.integers(0, alphabet, sum(lengths))

    def move(values, dtype):
        return torch.tensor(np.asarray(values), dtype=dtype, device=device)

    return (
        move(tail, torch.int32),
        move(tokens, torch.int32),
        move([0, *np.cumsum(lengths)], torch.int64),
        move([0, *np.cumsum(counts)], torch.int32),
        move(rng.integers(0, 9, batch), torch.int32),
    )


@pytest.mark.parametrize("alphabet", [1, 2, 3, 30])
@pytest.mark.parametrize("seed", range(3))
def test_the_same_drafts_as_the_reference(device, alphabet, seed):
    arguments = random_requests(seed, device, alphabet=alphabet)
    for max_draft, min_match in ((7, 1), (3, 4)):
        more = {"max_draft": max_draft, "min_match": min_match}
        expected = lookup_drafts(*arguments, **more, backend="torch")
        got = lookup_drafts(*arguments, **more, backend="triton")
        for one, other in zip(expected, got, strict=True):
            assert torch.equal(one, other)
            assert one.dtype == other.dtype


def test_a_long_match_in_a_real_flow(device):
    answer = torch.arange(3000, dtype=torch.int32, device=device)
    drafts, match = lookup_drafts(
        answer[None, 2000:2030],
        answer,
        torch.tensor([0, 3000], device=device),
        torch.tensor([0, 1], dtype=torch.int32, device=device),
        torch.tensor([4], dtype=torch.int32, device=device),
        max_draft=6,
        backend="triton",
    )
    assert drafts.tolist() == [[2030, 2031, 2032, 2033, -1, -1]]
    assert match.tolist() == [16]
