"""Where two answers to the same prompt first differ, and how near the two tokens were to a tie.

The judge is neither of the engines that differ: transformers' own model, in float32 on the bfloat16
weights. bfloat16 has eight significant bits, so that the logits of an engine lie on a grid; the gap
of two logits is given in steps of that grid. A program of its own, for torch and the weights:

    python -m reprise.eval.real_model.first_differences MODEL < differences.json
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from typing import Annotated, Any

import msgspec
import typer

from reprise.engine_ext.cli.answer_difference import Difference, Gap
from reprise.eval.report.command_line import run_command


class JudgeError(RuntimeError):
    """Differences that could not be judged; the message is one line."""


def judge(model: str, differences: Sequence[Difference]) -> list[Gap]:
    """Return the gap of each difference, by a process of its own.

    Raises:
        JudgeError: the process failed; the message ends with its last line.
    """
    if not differences:
        return []
    done = subprocess.run(
        [sys.executable, "-m", "reprise.eval.real_model.first_differences", model],
        input=msgspec.json.encode(differences),
        capture_output=True,
        env={**os.environ, "HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error"},
    )
    if done.returncode:
        lines = done.stderr.decode(errors="replace").strip().splitlines()
        raise JudgeError(f"judging the differences: {lines[-1] if lines else done.returncode}")
    return msgspec.json.decode(done.stdout, type=list[Gap])


def gaps_of(model: str, differences: Sequence[Difference]) -> list[Gap]:
    """Return the gap of each difference, computed in this process."""
    import torch
    from transformers import AutoModelForCausalLM

    loaded = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval()
    # Of several methods the same answer often differs in the same place.
    logits: dict[tuple[int, ...], Any] = {}
    gaps = []
    for difference in differences:
        key = tuple(difference.token_ids)
        if key not in logits:
            with torch.inference_mode():
                logits[key] = loaded(input_ids=torch.tensor([key]), logits_to_keep=1).logits[0, -1]
        low, high = sorted(float(logits[key][token]) for token in difference.said)
        gaps.append(Gap((high, low), best=float(logits[key].max())))
    return gaps


def main(
    model: Annotated[str, typer.Argument(help="The model's folder.")],
) -> None:
    """Judge differences, JSON on standard input; gaps go to standard output."""
    asked = msgspec.json.decode(sys.stdin.buffer.read(), type=list[Difference])
    sys.stdout.buffer.write(msgspec.json.encode(gaps_of(model, asked)))


if __name__ == "__main__":
    sys.exit(run_command(main, name="first_differences.py"))
