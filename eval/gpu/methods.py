"""The engines that a GPU run compares."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from reprise.engine_ext.core.proposer_path import PROPOSER_PATH
from reprise.eval.live.live_worker import uses_reprise
from reprise.eval.report.command_line import InputError, names_of

_RUNNER = "VLLM_USE_V2_MODEL_RUNNER"
_RUNNERS = {"0": "v1", "1": "v2"}


class GpuMethod(NamedTuple):
    """One engine: what a user would pass to vLLM, and in which environment."""

    name: str
    speculative_config: dict[str, Any] | None
    environment: Mapping[str, str] = {}
    """Beside this process's own. vLLM's variable for the runner overrules whatever chooses it."""
    runs_on_cpu: bool = True
    """Whether a dry run without a GPU has it."""
    is_asked_for: bool = False
    """Whether only a list that names it has it: a GPU has no room for all engines at once."""
    full_graphs: bool = False
    """Asked for, as our own engine does by itself: steps with drafts of any lengths as one graph,
    without which a drafter on V1 is not compared at its best."""

    @property
    def runner(self) -> str:
        """The model runner that it asks for, v1 or v2; empty where vLLM chooses."""
        return _RUNNERS.get(self.environment.get(_RUNNER, ""), "")

    @property
    def is_ours(self) -> bool:
        """Whether Reprise drafts."""
        return uses_reprise(self.speculative_config)


METHODS = (
    GpuMethod("none", None),
    GpuMethod("reprise-v2", {"model": PROPOSER_PATH, "num_speculative_tokens": 16}, {_RUNNER: "1"},
              runs_on_cpu=False),
    GpuMethod("reprise-v1", {"model": PROPOSER_PATH, "num_speculative_tokens": 16}, {_RUNNER: "0"}),
    GpuMethod("ngram-gpu", {"method": "ngram_gpu", "num_speculative_tokens": 5},
              runs_on_cpu=False),
    GpuMethod("suffix-v1", {"method": "suffix"}, {_RUNNER: "0"}, full_graphs=True),
    GpuMethod("reprise-v2-adaptive",
              {"model": PROPOSER_PATH, "num_speculative_tokens": 16,
               "enable_adaptive_verification": True},
              {_RUNNER: "1"}, runs_on_cpu=False, is_asked_for=True),
)  # fmt: skip
"""In the order in which they are started and measured: where time runs out, the last ones miss."""


def methods_named(names: str | None, *, dry_run: bool) -> list[GpuMethod]:
    """Return those of a comma-separated list, `none` first, which the others are compared with.

    Args:
        names: None for all that can run, but for those that have to be asked for.
        dry_run: without a GPU.

    Raises:
        InputError: one is unknown, or cannot run without a GPU.
    """
    if names is None:
        return [m for m in METHODS if not m.is_asked_for and (m.runs_on_cpu or not dry_run)]
    known = {method.name: method for method in METHODS}
    wanted = names_of("--methods", names, known)
    for name in wanted:
        if dry_run and not known[name].runs_on_cpu:
            raise InputError(f"--methods: {name!r} needs a GPU")
    return [method for method in METHODS if method.name in {"none", *wanted}]
