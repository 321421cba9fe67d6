"""Which of a model's layers vLLM's CPU kernels round by how many tokens are computed at once.

    python -m reprise.eval.real_model.layer_rows --model smollm2

That is one of the causes for which an answer can depend on what else is in the batch, drafts among
it. Each linear layer's product with random inputs is computed for many tokens, and for fewer of the
same, and attention for all queries of a prompt, and for fewer at a time; a token should come out
alike. With one thread, as a worker on two cores has. Only for a CPU, and for models of the shape of
Llama. All else that such a model computes is computed for each token by itself. In the end it says
how long all linear layers take for few tokens: an engine with Reprise pads steps to four.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from statistics import median
from typing import Annotated, Any

import typer

from reprise.eval.real_model.attention_rows import sizes_that_differ
from reprise.eval.real_model.smollm2 import SMOLLM2, ModelError, smollm2_path
from reprise.eval.report.command_line import InputError, run_command
from reprise.eval.report.machine import describe_machine

TOKENS = 96
_ROUNDS = 40
_TIMED = (1, 2, 3, 4, 5, 6, 8)
_FEWER = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48)
"""Divisors of TOKENS."""
# By what vLLM computes at once: the parts of one product.
_LAYERS = {
    "query, key and value": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "attention's output": ("self_attn.o_proj",),
    "gate and up": ("mlp.gate_proj", "mlp.up_proj"),
    "down": ("mlp.down_proj",),
}
_EMBEDDING = "model.embed_tokens.weight"


def main(
    model: Annotated[str, typer.Option(help="A folder, or smollm2.")] = SMOLLM2,
    dtype: Annotated[str, typer.Option(help="bfloat16 or float32.")] = "bfloat16",
) -> None:
    """Say which layers round by the number of tokens, on this processor."""
    import torch

    try:
        folder = smollm2_path() if model == SMOLLM2 else Path(model)
    except ModelError as error:
        raise InputError(str(error)) from error
    file = folder / "model.safetensors"
    if not file.is_file() or dtype not in ("bfloat16", "float32"):
        raise InputError(f"expected a folder with {file.name}, and bfloat16 or float32")
    torch.set_num_threads(1)
    print(f"{folder.name} in {dtype} on {describe_machine()}, one thread")
    kind = getattr(torch, dtype)
    for name, weight in weights(file):
        shape = " x ".join(map(str, weight.shape))
        _print(f"{name} ({shape})", numbers_that_differ(weight.to(kind)))
    heads, width = attention_shape(folder)
    found = sizes_that_differ(kind, heads=heads, width=width)
    _print(f"attention ({heads} heads of {width})", found)
    print(f"all linear layers of a step, medians of {_ROUNDS} rounds:")
    for tokens, (time_ms, ratio) in times_of_a_step(file, kind).items():
        print(f"  {tokens} at once: {time_ms:.2f} ms, {ratio:.3f} of one token's")


def _print(name: str, differing: dict[int, float]) -> None:
    found = ", ".join(f"{n} ({share:.2%} of values)" for n, share in differing.items())
    print(f"{name}: {f'otherwise for so many tokens: {found}' if found else 'alike'}")


def attention_shape(folder: Path) -> tuple[int, int]:
    """Return the heads of keys and the width of each."""
    config = json.loads((folder / "config.json").read_text())
    width = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
    return config["num_key_value_heads"], width


def weights(file: Path, blocks: Iterable[int] = (0,)) -> Iterator[tuple[str, Any]]:
    """Yield the name and weight [outputs, inputs] of each kind of layer: those of some blocks, and
    the logits'."""
    import torch
    from safetensors import safe_open

    with safe_open(file, "pt") as tensors:
        for block in blocks:
            for name, parts in _LAYERS.items():
                one = [tensors.get_tensor(f"model.layers.{block}.{part}.weight") for part in parts]
                yield name, torch.cat(one)
        yield "logits", tensors.get_tensor(_EMBEDDING)


def times_of_a_step(file: Path, dtype: Any) -> dict[int, tuple[float, float]]:
    """Time all linear layers of a model, one after the other, as a step reads their weights.

    Returns:
        By the number of tokens: medians of the time in ms, and of the ratio to one token's in the
        same round.
    """
    import torch

    config = json.loads((file.parent / "config.json").read_text())
    layers = [
        (weight.shape[1], _linear_of(weight.to(dtype)))
        for _, weight in weights(file, range(config["num_hidden_layers"]))
    ]
    inputs = {n: [torch.randn(n, width).to(dtype) for width, _ in layers] for n in _TIMED}
    rounds: list[dict[int, float]] = []
    for _ in range(_ROUNDS + 1):  # the first makes the kernels
        times_ms = {}
        for tokens, rows in inputs.items():
            began_s = time.perf_counter()
            for row, (_, layer) in zip(rows, layers, strict=True):
                layer(row)
            times_ms[tokens] = 1e3 * (time.perf_counter() - began_s)
        rounds.append(times_ms)
    del rounds[0]
    return {
        tokens: (
            median(one[tokens] for one in rounds),
            median(one[tokens] / one[1] for one in rounds),
        )
        for tokens in _TIMED
    }


def _linear_of(weight: Any) -> Callable[[Any], Any]:
    """Return vLLM's own product with a weight."""
    import torch
    import vllm._C  # noqa: F401 -- the kernels
    from vllm.model_executor.layers.utils import dispatch_cpu_unquantized_gemm

    layer: Any = torch.nn.Module()
    layer.weight = torch.nn.Parameter(weight, requires_grad=False)
    dispatch_cpu_unquantized_gemm(layer, remove_weight=False)
    return lambda inputs: layer.cpu_linear(inputs, layer.weight, None)


def numbers_that_differ(weight: Any) -> dict[int, float]:
    """Return for how many tokens a layer computes otherwise than for TOKENS, with the share of
    values that differ.

    Args:
        weight: [outputs, inputs] of the layer, in the type in which it is computed.
    """
    import torch

    product = _linear_of(weight)
    generator = torch.Generator().manual_seed(0)
    inputs: Any = torch.randn(TOKENS, weight.shape[1], generator=generator).to(weight.dtype)
    whole = product(inputs)
    differing = {}
    for tokens in _FEWER:
        # All inputs, so many at a time: of a few values in ten thousand one piece may have none.
        pieces = [product(piece.contiguous()) for piece in inputs.split(tokens)]
        share = float((torch.cat(pieces) != whole).float().mean())
        if share:
            differing[tokens] = share
    return differing


if __name__ == "__main__":
    sys.exit(run_command(main, name="layer_rows.py"))
