"""The environment in which a benchmark's engine runs."""

from __future__ import annotations

import os
from collections.abc import Mapping
from importlib import metadata

from reprise.engine_ext.cli.serve_command import OUR_PLUGIN, plugins_loaded
from reprise.eval.report.command_line import InputError

_VARIABLE = "VLLM_PLUGINS"


def engine_environment(
    environment: Mapping[str, str] = os.environ, *, with_reprise: bool
) -> dict[str, str]:
    """The environment of an engine with our proposer, or of one to compare it with.

    The latter is vLLM as its users get it: all plugins that it would load but ours, which is not
    even imported. Whatever our plugin changed, a baseline measured beside it would change with it.

    Raises:
        InputError: vLLM does not find our plugin here, as of a checkout that is on `PYTHONPATH`
            and not installed. It would say nothing, and load the rest.
    """
    if with_reprise and not metadata.entry_points(group="vllm.general_plugins", name=OUR_PLUGIN):
        raise InputError(
            f"vLLM finds no plugin {OUR_PLUGIN!r} here: pip install --no-deps -e CHECKOUT"
        )
    names = plugins_loaded(environment)
    names = names | {OUR_PLUGIN} if with_reprise else names - {OUR_PLUGIN}
    return {**environment, _VARIABLE: ",".join(sorted(names))}
