"""A large model that answers as a small one does: for the speed of large models without their data.

    python eval/live/padded_model.py --model my-small-model --out padded-8b
    python eval/acceptance_rate.py --engine vllm --model padded-8b --trace requests.jsonl

How much speculation gains depends on how often drafts are right, which takes a model that answers
sensibly, and on what a step costs, which takes a large one. A Llama padded to the shape of a larger
one is both: its own weights lie in a corner of the larger matrices, and nothing of what is around
them reaches the residual stream. What is around them is random all the same, because a GPU
multiplies zeros faster.
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
import typer
from rich.console import Console
from rich.progress import track

from reprise.eval.report.command_line import InputError, run_command

if TYPE_CHECKING:
    import torch

_FILLER = 0.02
_UNUSED_TOKEN = 0.005
"""Of the output rows of tokens that the small model has not: too small for one ever to be best."""
_INDEX = "model.safetensors.index.json"


class PaddedModelError(ValueError):
    """A model or a shape that cannot be padded; the message is one line."""


class Shape(msgspec.Struct, frozen=True, kw_only=True):
    """What is padded to; the defaults are those of Llama 3.1 8B."""

    hidden_size: int = 4096
    intermediate_size: int = 14336
    num_layers: int = 32
    num_heads: int = 32
    num_key_value_heads: int = 8
    head_dim: int = 128
    vocab_size: int = 128256

    @classmethod
    def of(cls, config: dict[str, Any]) -> Shape:
        """The shape that a Llama's `config.json` tells of."""
        heads = config["num_attention_heads"]
        return cls(
            hidden_size=config["hidden_size"],
            intermediate_size=config["intermediate_size"],
            num_layers=config["num_hidden_layers"],
            num_heads=heads,
            num_key_value_heads=config.get("num_key_value_heads", heads),
            head_dim=config.get("head_dim") or config["hidden_size"] // heads,
            vocab_size=config["vocab_size"],
        )


def write_padded_model(model: Path, out: Path, shape: Shape) -> None:
    """Write the Llama in folder `model`, padded to `shape`, to the new folder `out`, in bfloat16.

    Raises:
        PaddedModelError: no Llama, one with biases, a shape too small for it, or `out` exists.
    """
    from safetensors.torch import load_file, save_file

    config = _read_config(model)
    small = Shape.of(config)
    _check(small, shape)
    weights = {
        name: weight
        for file in sorted(model.glob("*.safetensors"))
        for name, weight in load_file(file).items()
    }
    padding = _Padding(small, shape)
    try:
        out.mkdir(parents=True)
    except FileExistsError:
        raise PaddedModelError(f"{out}: exists already") from None
    files: dict[str, str] = {}

    def save(tensors: dict[str, torch.Tensor]) -> None:
        name = f"model-{len(set(files.values())):05d}.safetensors"
        save_file({key: value.contiguous() for key, value in tensors.items()}, out / name)
        files.update(dict.fromkeys(tensors, name))

    save(padding.ends(weights))
    layers = range(shape.num_layers)
    for number in track(layers, description="layers", console=Console(stderr=True)):
        save(padding.layer(weights, number))
    (out / _INDEX).write_text(json.dumps({"metadata": {}, "weight_map": files}, indent=1))
    config |= {
        "hidden_size": shape.hidden_size,
        "intermediate_size": shape.intermediate_size,
        "num_hidden_layers": shape.num_layers,
        "num_attention_heads": shape.num_heads,
        "num_key_value_heads": shape.num_key_value_heads,
        "head_dim": shape.head_dim,
        "vocab_size": shape.vocab_size,
        "tie_word_embeddings": False,
        "dtype": "bfloat16",
        # Of the mean over all dimensions, of which the padded ones are zero.
        "rms_norm_eps": config["rms_norm_eps"] * small.hidden_size / shape.hidden_size,
    }
    (out / "config.json").write_text(json.dumps(config, indent=1))
    for file in model.iterdir():
        if file.suffix in (".json", ".jinja") and not (out / file.name).exists():
            shutil.copyfile(file, out / file.name)


def _read_config(model: Path) -> dict[str, Any]:
    try:
        config: dict[str, Any] = json.loads((model / "config.json").read_text())
    except (OSError, ValueError) as error:
        raise PaddedModelError(f"{model}: expected a folder with a config.json: {error}") from None
    if config.get("model_type") != "llama":
        raise PaddedModelError(f"{model}: expected a Llama, got {config.get('model_type')!r}")
    if config.get("attention_bias") or config.get("mlp_bias"):
        raise PaddedModelError(f"{model}: expected a Llama without biases")
    return config


def _check(small: Shape, large: Shape) -> None:
    for name in Shape.__struct_fields__:
        least, got = getattr(small, name), getattr(large, name)
        if got < least:
            raise PaddedModelError(f"{name}: expected at least the model's own {least}, got {got}")
    if large.head_dim % small.head_dim:
        # Rotary frequencies are those of a fraction of the head: only every n-th is there twice.
        raise PaddedModelError(f"head_dim: expected a multiple of {small.head_dim}")
    if large.num_heads % large.num_key_value_heads:
        raise PaddedModelError("num_heads: expected a multiple of num_key_value_heads")
    if _group(large) < _group(small):
        raise PaddedModelError(f"num_heads: expected {_group(small)} or more a key-value head")


def _group(shape: Shape) -> int:
    return shape.num_heads // shape.num_key_value_heads


class _Padding:
    """Where the small model's weights lie in the large one's; the rest is `_filler` or zero."""

    def __init__(self, small: Shape, large: Shape) -> None:
        import torch

        self._small, self._large = small, large
        self._device = "cuda" if torch.cuda.is_available() else "cpu"
        self._random = torch.Generator(self._device).manual_seed(0)
        self._hidden = torch.arange(small.hidden_size)
        # A head's dimension i turns with i + half of them: each half is spread out over its own.
        half, every = small.head_dim // 2, large.head_dim // small.head_dim
        first = every * torch.arange(half)
        in_head = torch.cat([first, large.head_dim // 2 + first])
        heads = torch.arange(small.num_heads)
        heads = heads // _group(small) * _group(large) + heads % _group(small)
        keys = torch.arange(small.num_key_value_heads)
        self._query = (heads[:, None] * large.head_dim + in_head).flatten()
        self._key = (keys[:, None] * large.head_dim + in_head).flatten()
        self._query_heads = (
            heads[:, None] * large.head_dim + torch.arange(large.head_dim)
        ).flatten()

    def ends(self, weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Embeddings, last norm and output rows."""
        import torch

        small, large = self._small, self._large
        embedding = weights["model.embed_tokens.weight"]
        embeddings = torch.zeros(large.vocab_size, large.hidden_size, dtype=torch.bfloat16)
        embeddings[: small.vocab_size, : small.hidden_size] = embedding
        head = self._filler(large.vocab_size, large.hidden_size, scale=_UNUSED_TOKEN)
        head[: small.vocab_size, : small.hidden_size] = weights.get("lm_head.weight", embedding)
        return {
            "model.embed_tokens.weight": embeddings,
            "model.norm.weight": self._norm(weights["model.norm.weight"]),
            "lm_head.weight": head,
        }

    def layer(self, weights: dict[str, torch.Tensor], number: int) -> dict[str, torch.Tensor]:
        """A layer of the small model; past its last, one that adds nothing to the residual."""
        import torch

        large = self._large
        prefix = f"model.layers.{number}."
        query_rows = large.num_heads * large.head_dim
        key_rows = large.num_key_value_heads * large.head_dim
        query = self._filler(query_rows, large.hidden_size)
        key = self._filler(key_rows, large.hidden_size)
        value = self._filler(key_rows, large.hidden_size)
        gate = self._filler(large.intermediate_size, large.hidden_size)
        up = self._filler(large.intermediate_size, large.hidden_size)
        out = torch.zeros(large.hidden_size, query_rows, dtype=torch.bfloat16)
        down = torch.zeros(large.hidden_size, large.intermediate_size, dtype=torch.bfloat16)
        norms = {
            name: torch.ones(large.hidden_size, dtype=torch.bfloat16)
            for name in ("input_layernorm", "post_attention_layernorm")
        }
        if number < self._small.num_layers:
            own = {
                name.removeprefix(prefix).removesuffix(".weight"): weight
                for name, weight in weights.items()
                if name.startswith(prefix)
            }
            hidden, inner = self._hidden, torch.arange(self._small.intermediate_size)
            query[self._query_heads] = 0  # no score from the dimensions around a head's own
            # Scores are divided by the root of the head's size.
            scale = (large.head_dim / self._small.head_dim) ** 0.5
            query[self._query[:, None], hidden] = _rounded(own["self_attn.q_proj"], scale)
            key[self._key[:, None], hidden] = own["self_attn.k_proj"]
            value[self._key[:, None], hidden] = own["self_attn.v_proj"]
            out[hidden[:, None], self._query] = own["self_attn.o_proj"]
            gate[inner[:, None], hidden] = own["mlp.gate_proj"]
            up[inner[:, None], hidden] = own["mlp.up_proj"]
            down[hidden[:, None], inner] = own["mlp.down_proj"]
            norms = {name: self._norm(own[name]) for name in norms}
        tensors = {
            "self_attn.q_proj": query,
            "self_attn.k_proj": key,
            "self_attn.v_proj": value,
            "self_attn.o_proj": out,
            "mlp.gate_proj": gate,
            "mlp.up_proj": up,
            "mlp.down_proj": down,
            **norms,
        }
        return {f"{prefix}{name}.weight": tensor for name, tensor in tensors.items()}

    def _norm(self, weight: torch.Tensor) -> torch.Tensor:
        """The mean square is over more dimensions, and so smaller by their ratio."""
        import torch

        small, large = self._small.hidden_size, self._large.hidden_size
        norm = torch.ones(large, dtype=torch.bfloat16)
        norm[:small] = _rounded(weight, (small / large) ** 0.5)
        return norm

    def _filler(self, rows: int, columns: int, *, scale: float = _FILLER) -> torch.Tensor:
        """Random weights [rows, columns]."""
        import torch

        filler = torch.empty(rows, columns, dtype=torch.bfloat16, device=self._device)
        return filler.normal_(std=scale, generator=self._random).cpu()


def _rounded(weight: torch.Tensor, scale: float) -> torch.Tensor:
    import torch

    return (weight.float() * scale).to(torch.bfloat16)


def main(
    model: Annotated[Path, typer.Option(help="folder of a small Llama")],
    out: Annotated[Path, typer.Option(help="folder to write, which must not exist")],
    hidden_size: Annotated[
        int, typer.Option(min=1, help="Size of a token's vector.")
    ] = Shape().hidden_size,
    intermediate_size: Annotated[
        int, typer.Option(min=1, help="Width of the feed-forward layers.")
    ] = Shape().intermediate_size,
    layers: Annotated[int, typer.Option(min=1, help="Number of layers.")] = Shape().num_layers,
    heads: Annotated[int, typer.Option(min=1, help="Query heads of a layer.")] = Shape().num_heads,
    key_value_heads: Annotated[
        int, typer.Option(min=1, help="Key-value heads of a layer.")
    ] = Shape().num_key_value_heads,
    head_dim: Annotated[int, typer.Option(min=1, help="Size of a head.")] = Shape().head_dim,
    vocabulary: Annotated[int, typer.Option(min=1, help="tokens")] = Shape().vocab_size,
) -> None:
    """Pad a small Llama to the shape of a large one, by default that of Llama 3.1 8B (16 GB)."""
    shape = Shape(
        hidden_size=hidden_size,
        intermediate_size=intermediate_size,
        num_layers=layers,
        num_heads=heads,
        num_key_value_heads=key_value_heads,
        head_dim=head_dim,
        vocab_size=vocabulary,
    )
    try:
        write_padded_model(model, out, shape)
    except (PaddedModelError, OSError) as error:
        raise InputError(str(error)) from error


if __name__ == "__main__":
    sys.exit(run_command(main, name="padded_model.py"))
