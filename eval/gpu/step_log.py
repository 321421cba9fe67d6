"""What each step of an engine took and came to, written by its scheduler: a row a step.

For engines of every kind alike, so that their steps can be compared: a plugin of vLLM's that only
an environment made by `environment_with_step_log` has. Columns: seconds on a steady clock when a
step's output came, its requests, tokens computed, drafted tokens verified, tokens emitted.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

_NAME = "reprise_step_log"
_FILE = "EVAL_STEP_LOG"
HEAD = "seconds,requests,tokens,drafted,emitted"


def environment_with_step_log(
    environment: Mapping[str, str], folder: Path, log_file: Path
) -> dict[str, str]:
    """Return an environment whose engines write a row for each step.

    Args:
        environment: names its plugins (`VLLM_PLUGINS`).
        folder: a new one, for the plugin; to be there as long as the engine.
        log_file: rows are appended to it.
    """
    about = folder / f"{_NAME}-1.0.dist-info"
    about.mkdir(parents=True)
    (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {_NAME}\nVersion: 1.0\n")
    (about / "entry_points.txt").write_text(
        f"[vllm.general_plugins]\n{_NAME} = reprise.eval.gpu.step_log:register\n"
    )
    path = os.pathsep.join(filter(None, (str(folder), environment.get("PYTHONPATH"))))
    plugins = ",".join(filter(None, (environment["VLLM_PLUGINS"], _NAME)))
    return {**environment, "PYTHONPATH": path, "VLLM_PLUGINS": plugins, _FILE: str(log_file)}


def register() -> None:
    """Have vLLM's scheduler write the rows; called by vLLM in each process of an engine."""
    from vllm.v1.core.sched.scheduler import Scheduler

    update = Scheduler.update_from_output
    if hasattr(update, "_writes_steps"):
        return
    path = Path(os.environ[_FILE])
    log = path.open("a", buffering=1)
    if not path.stat().st_size:
        log.write(HEAD + "\n")

    def update_from_output(self: Any, scheduler_output: Any, model_runner_output: Any) -> Any:
        now_s = time.perf_counter()
        drafts = scheduler_output.scheduled_spec_decode_tokens
        row = (
            f"{now_s:.5f}",
            len(scheduler_output.num_scheduled_tokens),
            scheduler_output.total_num_scheduled_tokens,
            sum(map(len, drafts.values())),
            sum(map(len, model_runner_output.sampled_token_ids or ())),
        )
        log.write(",".join(map(str, row)) + "\n")
        return update(self, scheduler_output, model_runner_output)

    update_from_output._writes_steps = True  # type: ignore[attr-defined]
    Scheduler.update_from_output = update_from_output
