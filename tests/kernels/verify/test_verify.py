"""The dispatcher: its checks, its corner cases, and that the package stays light."""

from __future__ import annotations

import doctest
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from pydantic import ValidationError

from reprise.kernels import verify
from reprise.kernels.config import VerifyConfig
from reprise.kernels.verify import verify_drafts

ROOT = Path(__file__).resolve().parents[3]


def run_python(code: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=800
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_importing_the_package_imports_neither_torch_nor_triton():
    code = "import sys, reprise.kernels; print({'torch', 'triton', 'vllm'} & sys.modules.keys())"
    assert run_python(code).strip() == "set()"


@pytest.mark.slow
def test_transformers_imports_from_the_root_of_the_checkout():
    # There `import kernels` finds this folder, not the package that transformers looks for.
    code = (
        "import kernels, transformers; from transformers import AutoConfig; print(kernels.__file__)"
    )
    printed = run_python(code).strip()
    assert Path(printed) == ROOT / "kernels" / "__init__.py"


def test_the_example_in_the_docstring_runs():
    assert doctest.testmod(verify) == (0, 4)


def test_config_refuses_what_it_does_not_know():
    assert VerifyConfig().enabled is None
    with pytest.raises(ValidationError, match="backend"):
        VerifyConfig(backend="cuda")
    with pytest.raises(ValidationError, match="speed"):
        VerifyConfig(speed=1)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"logits": torch.zeros(3, 5, dtype=torch.float64)},
            r"expected logits .* came \[3, 5\]",
        ),
        ({"logits": torch.zeros(4, 5)}, "came 2 drafts, 1 requests and 4 rows"),
        ({"logits": torch.zeros(5, 3).t()}, "contiguous within a row"),
        ({"draft_token_ids": torch.zeros(2)}, "expected draft_token_ids"),
        ({"cu_num_draft_tokens": torch.zeros(1, 1).int()}, "expected cu_num_draft_tokens"),
        ({"temperature": torch.ones(2)}, r"expected temperature \[1\]"),
        ({"temperature": torch.ones(1).int()}, "expected temperature"),
        ({"top_k": torch.ones(1)}, r"expected top_k \[1\] of int32"),
        ({"seeds": None}, "expected seeds and offsets"),
        ({"backend": "cuda"}, "expected backend"),
    ],
)
def test_arguments_that_do_not_fit_are_named(make_batch, change, message):
    arguments = make_batch([[1, 2]], 5) | change
    with pytest.raises(ValueError, match=message):
        verify_drafts(**arguments)


@pytest.mark.parametrize("vocab", [2, 31, 50257, 128256, 151936])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_greedy_is_argmax_with_ties_to_the_lowest_id(make_batch, vocab, dtype):
    # Rounded to integers in bf16, large vocabularies have many equal maxima.
    arguments = make_batch([[1, 0], [], [0]], vocab, dtype=dtype, temperature=None, scale=1.0)
    arguments["logits"] = arguments["logits"].round()
    best = [int((row == row.max()).nonzero()[0]) for row in arguments["logits"]]
    arguments["draft_token_ids"] = torch.tensor([best[0], best[1], (best[4] + 1) % vocab])
    tokens, accepted = verify_drafts(**arguments)
    assert tokens.tolist() == [best[:3], [best[3], -1, -1], [best[4], -1, -1]]
    assert accepted.tolist() == [2, 0, 0]
    assert tokens.dtype == accepted.dtype == torch.int32


def test_temperature_zero_and_none_agree_and_mix_with_sampling(make_batch):
    drafts = [[3, 1], [2], [], [5, 5, 5]]
    mixed = make_batch(drafts, 13, temperature=[0.0, 0.9, 1e-6, 1.1], top_p=0.9)
    tokens, accepted = verify_drafts(**mixed)
    greedy_tokens, greedy_accepted = verify_drafts(**(mixed | {"temperature": None}))
    for request in (0, 2):
        assert torch.equal(tokens[request], greedy_tokens[request])
        assert accepted[request] == greedy_accepted[request]


def test_a_seed_gives_the_same_tokens_whatever_the_batch_and_the_drafts(make_batch):
    many = make_batch([[4, 2, 7]] * 256, 101, scale=1.0)
    tokens, _ = verify_drafts(**many)
    for request in (0, 100, 255):
        rows = slice(request * 4, request * 4 + 4)
        one = slice(request, request + 1)
        alone = many | {
            "logits": many["logits"][rows],
            "draft_token_ids": many["draft_token_ids"][:3],
            "cu_num_draft_tokens": torch.tensor([3]),
            **{name: many[name][one] for name in ("temperature", "seeds", "offsets")},
        }
        assert torch.equal(verify_drafts(**alone)[0][0], tokens[request])
        # Drafting exactly what is sampled accepts everything, and emits what plain sampling would.
        plain = []
        for position in range(4):
            step = alone | {
                "logits": alone["logits"][position : position + 1],
                "draft_token_ids": torch.tensor([], dtype=torch.int32),
                "cu_num_draft_tokens": torch.tensor([0]),
                "offsets": alone["offsets"] + position,
            }
            plain.append(int(verify_drafts(**step)[0]))
        perfect = alone | {"draft_token_ids": torch.tensor(plain[:3])}
        assert verify_drafts(**perfect)[0].tolist() == [plain]


def test_strided_logits_and_a_given_max_draft(make_batch):
    arguments = make_batch([[1], [2, 3]], 17)
    wide = torch.full((5, 40), 100.0)
    wide[:, :17] = arguments["logits"]
    expected, accepted = verify_drafts(**arguments)
    tokens, again = verify_drafts(**(arguments | {"logits": wide[:, :17]}), max_draft=4)
    assert tokens.shape == (2, 5)
    assert torch.equal(tokens[:, :3], expected)
    assert (tokens[:, 3:] == -1).all()
    assert torch.equal(accepted, again)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_row_without_a_finite_maximum(make_batch, bad):
    arguments = make_batch([[0, 0], [0], [6]], 9, temperature=[1.0, 1.0, 0.0])
    arguments["logits"][0, 4] = bad
    arguments["logits"][3, :] = -torch.inf
    arguments["logits"][5, 6] = bad
    tokens, accepted = verify_drafts(**arguments)
    assert tokens[:2].tolist() == [[0, -1, -1], [0, -1, -1]]
    assert tokens[2, 0] == 6  # a greedy row takes the first of them, as argmax does
    assert accepted.tolist() == [0, 0, 1]
