"""An engine without our proposer is vLLM's own, whether our plugin is loaded or not."""

import importlib
import inspect
import json
import os
import pkgutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import FunctionType
from typing import Any

import pytest

pytest.importorskip("vllm")

import vllm
from warm_starts import SPAWN, run_program

from reprise.engine_ext import plugin
from reprise.eval.live.engine_environment import engine_environment

pytestmark = pytest.mark.engine

PROBE = Path(__file__).with_name("plain_engine_probe.py")
# All that our plugin puts into vLLM's place: each calls vllm's own for an engine that does not name
# our proposer. Whoever adds one here has made sure of that.
GATED = {
    "AsyncLLM.from_engine_args",
    "AsyncLLM.from_vllm_config",
    "AsyncScheduler.__init__",
    "AsyncScheduler._update_after_schedule",
    "BaseRenderer.render_chat",
    "BaseRenderer.render_chat_async",
    "EngineArgs.create_engine_config",
    "EngineCore.collective_rpc",
    "EngineCore.reprise_kv_pins",  # as `reprise_step` below
    "EngineCore.step_with_batch_queue",
    "InputProcessor.process_inputs",
    "LLMEngine.__init__",
    "MultiprocExecutor._init_executor",
    "MultiprocExecutor.execute_model",
    "MultiprocExecutor.sample_tokens",
    "MultiprocExecutor.take_draft_token_ids",
    "SamplingParams._validate_spec_decode",
    "Scheduler.__init__",
    "Scheduler._handle_invalid_blocks",
    "Scheduler._update_after_schedule",
    "Scheduler.update_draft_token_ids",
    "Scheduler.update_from_output",
    "UniProcExecutor._init_executor",
    "VllmConfig.__post_init__",
    "VllmConfig._get_v2_model_runner_unsupported_features",
    "VllmConfig._maybe_disable_dynamic_sd_for_data_parallel",
    "vllm.v1.worker.gpu.model_runner.init_speculator",
    "vllm.v1.worker.gpu.spec_decode.init_speculator",
    "WorkerWrapperBase.reprise_step",  # vLLM has no such method, and never calls it
}


def _functions_of_ours() -> Iterator[str]:
    """Names of what is ours among vLLM's classes and functions that are loaded."""
    ours = str(Path(plugin.__file__).parent)
    seen: set[int] = set()
    for name, module in sorted(sys.modules.items()):
        if name.partition(".")[0] != "vllm" or module is None:
            continue
        for owner in [module, *(v for v in vars(module).values() if inspect.isclass(v))]:
            if id(owner) in seen or not owner.__dict__:
                continue
            seen.add(id(owner))
            for attribute, value in list(vars(owner).items()):
                function = value.__func__ if isinstance(value, classmethod) else value
                if isinstance(function, FunctionType) and function.__code__.co_filename.startswith(
                    ours
                ):
                    yield f"{getattr(owner, '__name__', owner)}.{attribute}"


@pytest.mark.slow
def test_all_that_the_plugin_puts_into_vllms_place_is_known() -> None:
    """In a process of its own: here an earlier test may have built an engine of ours."""
    script = (
        "import importlib.util, json, sys\n"
        f"spec = importlib.util.spec_from_file_location('probe', {__file__!r})\n"
        "probe = importlib.util.module_from_spec(spec)\n"
        "spec.loader.exec_module(probe)\n"
        "print(json.dumps(probe.everything_of_ours()))"
    )
    done = run_program(["-c", script], environment=os.environ)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert set(found["functions"]) == GATED
    assert found["environment"] == {}
    assert found["cores_changed"] is False


def everything_of_ours() -> dict[str, Any]:
    """What `register` changes in a process that has loaded all that an engine on the CPU loads."""
    for package in ("vllm.v1.engine", "vllm.v1.executor", "vllm.v1.worker", "vllm.v1.core.sched"):
        for found in pkgutil.iter_modules(importlib.import_module(package).__path__):
            with_device = found.name.startswith(("gpu_ubatch", "xpu", "tpu", "ray"))
            if not (found.ispkg or with_device):
                importlib.import_module(f"{package}.{found.name}")
    importlib.import_module("vllm.v1.attention.backends.cpu_attn")
    assert vllm.LLM
    environment, cores = dict(os.environ), os.sched_getaffinity(0)
    plugin.register()
    return {
        "functions": sorted(set(_functions_of_ours())),
        "environment": {k: v for k, v in os.environ.items() if environment.get(k) != v},
        "cores_changed": os.sched_getaffinity(0) != cores,
    }


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_plain_engine_is_the_same_with_and_without_the_plugin(demo_model: Path) -> None:
    """Environment, cores, instruction set, threads, answers and their probabilities, to the bit."""
    running = []
    for with_reprise in (False, True):
        environment = engine_environment(with_reprise=with_reprise)
        environment["VLLM_ALLOW_INSECURE_SERIALIZATION"] = "1"  # the probe sends a function
        environment[SPAWN] = "1"  # processes as users have them
        running.append(
            subprocess.Popen(
                [sys.executable, str(PROBE), str(demo_model)],
                env=environment,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
        )
    reports = []
    for process in running:
        output, errors = process.communicate()
        lines = [line for line in output.splitlines() if line.startswith("REPORT")]
        assert lines, errors[-3000:]
        reports.append(json.loads(lines[0].removeprefix("REPORT")))
    without, beside = reports
    assert beside == without
    assert without["worker"]["drafts"] is False
    assert len(without["tokens"]) > 5
