"""A padded model: the same answers, whatever the shape, and clear words where one is impossible."""

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

import reprise.eval.live.padded_model as padded_model
from reprise.eval.live.padded_model import PaddedModelError, Shape, write_padded_model
from reprise.eval.report.command_line import run_command

SMALL = LlamaConfig(
    vocab_size=96,
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=8,
    tie_word_embeddings=True,
    initializer_range=0.3,
    rms_norm_eps=1e-3,
)
LARGE = Shape(
    hidden_size=128,
    intermediate_size=96,
    num_layers=3,
    num_heads=16,
    num_key_value_heads=4,
    head_dim=32,
    vocab_size=200,
)


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("small")
    LlamaForCausalLM(SMALL).to(torch.bfloat16).save_pretrained(folder)
    (folder / "chat_template.jinja").write_text("{{ messages[0].content }}")
    return folder


def logits(folder: Path, token_ids: torch.Tensor) -> torch.Tensor:
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    with torch.no_grad():
        result: torch.Tensor = model(token_ids).logits
    return result


@pytest.mark.parametrize("tied", [True, False])
def test_a_padded_model_answers_as_the_small_one(small: Path, tmp_path: Path, tied: bool) -> None:
    if not tied:
        small_model = LlamaForCausalLM(
            LlamaConfig(**{**SMALL.to_dict(), "tie_word_embeddings": False})
        )
        small = tmp_path / "untied"
        small_model.to(torch.bfloat16).save_pretrained(small)
    write_padded_model(small, tmp_path / "large", LARGE)
    token_ids = torch.randint(SMALL.vocab_size, (3, 40), generator=torch.Generator().manual_seed(1))
    expected, got = logits(small, token_ids), logits(tmp_path / "large", token_ids)
    assert got.shape[-1] == LARGE.vocab_size
    # All that is scaled is scaled by a power of two, so only the order of sums differs.
    torch.testing.assert_close(got[..., : SMALL.vocab_size], expected, atol=1e-3, rtol=1e-3)
    unused = got[..., SMALL.vocab_size :].abs().max()
    assert unused < expected.max(dim=-1).values.min()


def test_what_is_around_the_small_weights_is_not_zero(small: Path, tmp_path: Path) -> None:
    write_padded_model(small, tmp_path / "large", LARGE)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "large", dtype=torch.float32)
    for name in ("mlp.gate_proj", "mlp.up_proj", "self_attn.k_proj"):
        weight = model.get_submodule(f"model.layers.2.{name}").weight
        assert (weight == 0).float().mean() < 0.01, name


def test_files_beside_the_weights_come_along(small: Path, tmp_path: Path) -> None:
    write_padded_model(small, tmp_path / "large", LARGE)
    assert (tmp_path / "large" / "chat_template.jinja").is_file()
    config = json.loads((tmp_path / "large" / "config.json").read_text())
    assert Shape.of(config) == LARGE


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hidden_size": 16}, "hidden_size: expected at least the model's own 32, got 16"),
        ({"head_dim": 12}, "head_dim: expected a multiple of 8"),
        ({"num_heads": 13}, "num_heads: expected a multiple of num_key_value_heads"),
        ({"num_heads": 5, "num_key_value_heads": 5}, "num_heads: expected 2 or more"),
    ],
)
def test_impossible_shapes_are_refused(
    small: Path, tmp_path: Path, changes: dict[str, int], message: str
) -> None:
    shape = Shape(**{**{f: getattr(LARGE, f) for f in Shape.__struct_fields__}, **changes})
    with pytest.raises(PaddedModelError, match=message):
        write_padded_model(small, tmp_path / "large", shape)
    assert not (tmp_path / "large").exists()


def test_command_line_says_what_is_wrong_in_one_line(
    small: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for arguments, message in (
        (["--model", str(tmp_path / "nowhere"), "--out", str(tmp_path / "x")], "config.json"),
        (["--model", str(small), "--out", str(tmp_path)], "exists already"),
    ):
        assert run_command(padded_model.main, arguments, name="padded_model.py") == 2
        said = capsys.readouterr().err
        assert message in said
        assert said.count("\n") == 1
