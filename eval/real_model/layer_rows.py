"""Which linear layers vLLM's CPU kernels round by how many tokens are computed at once.

    python -m reprise.eval.real_model.layer_rows --model smollm2

That is one of the causes for which an answer can depend on what else is in the batch, drafts among
it. Each layer's product with random inputs is computed for many tokens, and for fewer of the same;
a token should come out alike. With one thread, as a worker on two cores has. Only for a CPU, and
for models of the shape of Llama.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

from reprise.eval.real_model.smollm2 import SMOLLM2, ModelError, smollm2_path
from reprise.eval.report.command_line import InputError, run_command
from reprise.eval.report.machine import describe_machine

TOKENS = 96
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
    """Say which linear layers round by the number of tokens, on this processor."""
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
    for name, weight in weights(file):
        differing = numbers_that_differ(weight.to(getattr(torch, dtype)))
        found = ", ".join(f"{n} ({share:.2%} of values)" for n, share in differing.items())
        shape = " x ".join(map(str, weight.shape))
        print(f"{name} ({shape}): {f'otherwise for so many tokens: {found}' if found else 'alike'}")


def weights(file: Path) -> Iterator[tuple[str, Any]]:
    """Yield the name and weight [outputs, inputs] of each kind of layer: those of one block, and
    the logits'."""
    import torch
    from safetensors import safe_open

    with safe_open(file, "pt") as tensors:
        for name, parts in _LAYERS.items():
            one = [tensors.get_tensor(f"model.layers.0.{part}.weight") for part in parts]
            yield name, torch.cat(one)
        yield "logits", tensors.get_tensor(_EMBEDDING)


def numbers_that_differ(weight: Any) -> dict[int, float]:
    """Return for how many tokens a layer computes otherwise than for TOKENS, with the share of
    values that differ.

    Args:
        weight: [outputs, inputs] of the layer, in the type in which it is computed.
    """
    import torch
    import vllm._C  # noqa: F401 -- the kernels
    from vllm.model_executor.layers.utils import dispatch_cpu_unquantized_gemm

    layer = torch.nn.Module()
    layer.weight = torch.nn.Parameter(weight, requires_grad=False)
    dispatch_cpu_unquantized_gemm(layer, remove_weight=False)
    generator = torch.Generator().manual_seed(0)
    inputs: Any = torch.randn(TOKENS, weight.shape[1], generator=generator).to(weight.dtype)
    every: Any = layer.cpu_linear
    whole = every(inputs, layer.weight, None)
    differing = {}
    for tokens in _FEWER:
        # All inputs, so many at a time: of a few values in ten thousand one piece may have none.
        pieces = [every(piece.contiguous(), layer.weight, None) for piece in inputs.split(tokens)]
        share = float((torch.cat(pieces) != whole).float().mean())
        if share:
            differing[tokens] = share
    return differing


if __name__ == "__main__":
    sys.exit(run_command(main, name="layer_rows.py"))
