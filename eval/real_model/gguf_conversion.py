"""Turns a GGUF file of a small model into a folder that transformers and vLLM load.

A program of its own, so that whoever needs the model does not load torch for it:

    python -m reprise.eval.real_model.gguf_conversion model.gguf FOLDER
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from reprise.eval.report.command_line import run_command


def convert(file: Path, folder: Path) -> None:
    """Write weights in bfloat16, tokenizer and chat template of a GGUF file into a folder.

    Raises:
        ImportError: a package is missing that reads such files.
    """
    import accelerate  # noqa: F401 -- transformers asks for both, in longer words
    import gguf  # noqa: F401
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    model = AutoModelForCausalLM.from_pretrained(
        file.parent,
        gguf_file=file.name,
        dtype=torch.bfloat16,
        quantization_config=GgufConfig(dequantize=True),
    )
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name).save_pretrained(folder)
    (folder / "model.safetensors").chmod(0o644)


def main(
    file: Annotated[Path, typer.Argument(help="The GGUF file.")],
    folder: Annotated[Path, typer.Argument(help="An existing folder, to write into.")],
) -> None:
    """Write a small model's GGUF file out in bfloat16, for transformers and vLLM."""
    convert(file, folder)


if __name__ == "__main__":
    sys.exit(run_command(main, name="gguf_conversion.py"))
