"""Losslessness: what verification emits follows the processed target distribution, token by token.

Each test draws many requests that share drafts and logits and differ in seed only, and compares the
whole emitted sequence (acceptance, what replaces a rejected draft, and bonus at once) with its
probability.
"""

from __future__ import annotations

from collections import Counter

import pytest
import torch

from reprise.kernels.verify import verify_drafts
from reprise.kernels.verify.coupled import verify_coupled

NUM_SAMPLES = 40_000

CONSTRAINTS = {
    "temperature": {"temperature": 0.7},
    "hot": {"temperature": 3.0},
    "top_k": {"top_k": 4},
    "top_p": {"top_p": 0.8},
    "min_p": {"min_p": 0.1},
    "all": {"temperature": 1.3, "top_k": 6, "top_p": 0.9, "min_p": 0.03},
    "one_token": {"top_k": 1},
    "tiny_top_p": {"top_p": 1e-6},
    "off": {"top_k": 0, "top_p": 1.0, "min_p": 0.0},
}
LOGITS = {
    "spread": [0.3, 1.7, -0.4, 2.2, 0.9, -1.5, 1.1, 0.0, 2.0, -3.0, 1.4],
    "ties": [1.0, 2.0, 2.0, 0.0, 2.0, 1.0, 1.0, -1.0, 0.0, 0.0, 2.0],
    "nearly_one": [0.0, 0.0, 9.5, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0],
    "masked": [0.5, float("-inf"), 1.0, float("-inf"), 0.0, 2.0, 0.2, 0.1, 1.5, 0.3, 0.7],
}
ON_GPU = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
BACKENDS = [
    "torch",
    pytest.param("triton", marks=ON_GPU),
    "coupled torch",
    pytest.param("coupled triton", marks=ON_GPU),
]


def emitted_counts(rows, drafts, *, backend, seed=1, **constraints):
    """Verify that many requests with these `rows` of logits and count the emitted sequences."""
    place = "cuda" if backend.endswith("triton") else "cpu"
    n = NUM_SAMPLES // 2 if backend.startswith("coupled") else NUM_SAMPLES
    generator = torch.Generator().manual_seed(seed)

    def full(value, dtype):
        return torch.full((n,), value, dtype=dtype, device=place)

    settings = {
        "temperature": full(constraints.get("temperature", 1.0), torch.float32),
        "top_k": full(constraints["top_k"], torch.int32) if "top_k" in constraints else None,
        "top_p": full(constraints["top_p"], torch.float32) if "top_p" in constraints else None,
        "min_p": full(constraints["min_p"], torch.float32) if "min_p" in constraints else None,
        "seeds": torch.randint(-(2**62), 2**62, (n,), generator=generator).to(place),
    }
    logits = torch.tensor(rows).repeat(n, 1).to(place)
    if backend.startswith("coupled"):
        of_one = torch.arange(len(rows), device=place)
        tokens, num_sampled = verify_coupled(
            logits,
            torch.tensor([0, *drafts], dtype=torch.int32).repeat(n).to(place),
            (torch.arange(n, device=place)[:, None] % 50 + of_one).flatten(),
            torch.arange(n, device=place).repeat_interleave(len(rows)),
            torch.arange(n + 1, device=place) * len(rows),
            **settings,
            max_draft=len(drafts),
            backend=backend.removeprefix("coupled "),
        )
        accepted = num_sampled - 1
    else:
        tokens, accepted = verify_drafts(
            logits,
            torch.tensor(drafts, dtype=torch.int32).repeat(n).to(place),
            torch.arange(1, n + 1, device=place) * len(drafts),
            **settings,
            offsets=torch.arange(n, device=place) % 50,
            backend=backend,
        )
    assert torch.equal((tokens >= 0).sum(dim=1), accepted.long() + 1)
    # Each sequence as one number, whose digits are its tokens; 0 is none.
    places = (len(rows[0]) + 1) ** torch.arange(tokens.shape[1])
    counts = torch.bincount(((tokens.cpu().long() + 1) * places).sum(dim=1))
    codes = counts.nonzero()
    digits = codes // places % (len(rows[0]) + 1)
    emitted = (tuple(digit - 1 for digit in row if digit) for row in digits.tolist())
    return Counter(dict(zip(emitted, counts[codes[:, 0]].tolist(), strict=True)))


def sequence_law(row_laws, drafts):
    """Probability of each sequence that sampling row by row emits, up to the first miss."""
    law, prefix, mass = {}, (), 1.0
    for position, row in enumerate(row_laws):
        draft = drafts[position] if position < len(drafts) else None
        for token, probability in enumerate(row):
            if token != draft:
                law[(*prefix, token)] = mass * probability
        if draft is None or not 0 <= draft < len(row):
            break
        prefix, mass = (*prefix, draft), mass * row[draft]
    return law


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("constraints", CONSTRAINTS.values(), ids=CONSTRAINTS)
@pytest.mark.parametrize("rows", LOGITS.values(), ids=LOGITS)
def test_emitted_sequences_follow_the_law(backend, rows, constraints, law_of_row, assert_law):
    # The most likely token first, so that the second draft and the bonus row are reached often.
    drafts = [max(range(len(rows)), key=rows.__getitem__), 4]
    shifted = [rows, rows[3:] + rows[:3], rows[::-1]]
    splits_ties = backend.startswith("coupled")
    laws = [law_of_row(row, **constraints, splits_ties=splits_ties) for row in shifted]
    law = sequence_law(laws, drafts)
    assert_law(emitted_counts(shifted, drafts, backend=backend, **constraints), law)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("probability", [1e-4, 0.02, 0.5, 0.98, 0.9999])
def test_a_draft_is_accepted_with_its_probability(backend, probability, law_of_row, assert_law):
    odds = probability / (1 - probability)
    row = [torch.tensor(odds * 4).log().item(), 0.0, 0.0, 0.0, 0.0]
    counts = emitted_counts([row, [0.0] * 5], [0], backend=backend)
    law = sequence_law([law_of_row(row), law_of_row([0.0] * 5)], [0])
    assert sum(p for sequence, p in law.items() if sequence[0] == 0) == pytest.approx(probability)
    assert_law(counts, law)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_draft_outside_the_vocabulary_is_rejected_and_leaves_the_law_alone(
    backend, law_of_row, assert_law
):
    for draft in (-1, 11, 2**30):
        rows = [LOGITS["spread"], LOGITS["ties"]]
        law = sequence_law([law_of_row(rows[0])], [draft])
        assert_law(emitted_counts(rows, [draft], backend=backend), law)


def test_a_wrong_law_is_noticed(law_of_row, assert_law):
    row = LOGITS["spread"]
    law = sequence_law([law_of_row(row, temperature=1.05)], [])
    with pytest.raises(AssertionError, match="chi-square"):
        assert_law(emitted_counts([row], [], backend="torch"), law)
