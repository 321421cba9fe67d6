"""Every patch of vLLM's methods is guarded or does not run in a step, and all are in compat."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("vllm")

import reprise.engine_ext
from reprise.engine_ext.compat.patches import Kind, Role
from reprise.engine_ext.compat.registry import registry

ENGINE_EXT = Path(reprise.engine_ext.__file__).parent

STARTS = "runs while an engine starts, or before"
RPC = "is called between steps, by a name of ours"

UNGUARDED = {
    "AsyncScheduler.__init__": STARTS,
    "EngineArgs.create_engine_config": STARTS,
    "MultiprocExecutor._init_executor": STARTS,
    "UniProcExecutor._init_executor": STARTS,
    "VllmConfig.__post_init__": STARTS,
    "VllmConfig._get_v2_model_runner_unsupported_features": STARTS,
    "VllmConfig._maybe_disable_dynamic_sd_for_data_parallel": STARTS,
    "_get_attn_isa": STARTS,
    "RejectionSampler.__init__": STARTS,
    "build_logitsprocs": STARTS,
    "check_cpu_sgl_kernel": STARTS,
    "dispatch_cpu_unquantized_gemm": STARTS,
    "init_speculator": STARTS,
    "WorkerBase.reprise_draft_counts": RPC,
    "WorkerBase.reprise_flush": RPC,
    "WorkerBase.reprise_stats": RPC,
    "expand_batch_to_tokens": (
        "a pure function in place of a broken one: there is nothing to go back to"
    ),
    "batched_count_greater_than": (
        "a pure function; to go back to vLLM's own may mean a compiler in a step, or none"
    ),
    "Scheduler.__init__": STARTS,
    "EngineCore.collective_rpc": "not in a step; pins that cannot be removed must fail the call",
    "EngineCore.reprise_kv_pins": RPC,
    "SpinCondition.wait": "only sleeps",
    "WorkerWrapperBase.reprise_step": "vLLM's own two calls, one by one",
}

OURS = {
    "_parsers_built": "outputs/one_token_outputs.py",
    "_exact": "frontend/exact_answers.py",
    "between": "core/latency.py",
    "context": "request/http_context.py",
    "engine": "async_llm.py",
    "exact": "frontend/exact_answers.py",
    "flight": "outputs/flight.py",
    "forgetting": "frontend/exact_forgetting.py",
    "front_end": "frontend/front_end.py",
    "counts": "worker/verification/state.py",
    "installed": "worker/verification/state.py",
    "info": "request/request_info.py",
    "led": "outputs/flight.py",
    "live": "worker/live_request.py",
    "outcome": "cli/proof_worker.py",
    "policy": "request/request_policy.py",
    "pin": "kv_pins/pin_table.py",
    "tracked": "frontend/tracked_request.py",
}
"""Names that stand for objects of ours, with where their classes are."""

DATA = {
    "args.additional_config": "of args that are made here, for an engine of a command's own",
    "args.disable_log_stats": "of args that are made here, for an engine of a command's own",
    "args.logprobs_mode": "of args that are made here, for an engine of a command's own",
    "args.middleware": "as --middleware would, before the server's app is built",
    "args.speculative_config": "of args that are made here, for an engine of a command's own",
    "engine_args.additional_config": "of args that are ours to complete",
    "engine_args.speculative_config": "of args that are ours to complete",
    "hinted.extra_args": "of a copy of a request's params",
    "hinted.skip_clone": "of a copy of a request's params",
    "ours.propagate": "of our own logger",
    "output.reprise_info": "a field of ours, on its way to the client",
    "params.extra_args": "hints, in the place that vLLM has for them",
    "params.max_tokens": "of a copy of a request's params",
    "prompt.cache_salt": "of a request that is on its way into the engine",
    "prompt.sampling_params": "of a request that is on its way into the engine",
    "queue.__class__": "vLLM has built the collector before it can be of our class",
    "queue.later": "of a collector of ours by then",
    "queue.output": "empties a collector",
    "result.reqs_to_abort": "of a step's outputs, which are put together",
    "result.request_outputs": "of a step's outputs, which are put together",
    "setattr(state, _STATE, _Admin(engine_client, access))": "the app's place for such things",
    "statistics.finished_requests": "of a step's statistics, which are put together",
    "statistics.max_num_generation_tokens_iter": "of a step's statistics, which are put together",
    "statistics.n_params_iter": "of a step's statistics, which are put together",
    "statistics.num_generation_tokens": "of a step's statistics, which are put together",
    "state.queue": "a request's queue is set aside while its stored answer is replayed",
    "top.__file__": "of a module of ours that stands for vLLM's top, in a process of doctor's",
    "top.__path__": "of a module of ours that stands for vLLM's top, in a process of doctor's",
    "top.__spec__": "of a module of ours that stands for vLLM's top, in a process of doctor's",
}
"""Data of requests and servers that is set outside of compat: no method, and nothing of an
engine's."""


def test_every_patch_is_guarded_or_does_not_run_in_a_step() -> None:
    assert registry.table is not None
    found = {
        patch.path
        for patch in registry.table.patches
        if patch.kind not in (Kind.STEP, Kind.RELY) and patch.roles != (Role.API_SERVER,)
    }
    assert found == set(UNGUARDED), "make it Kind.STEP, or explain why not"


def assignments_in(source: str) -> Iterator[str]:
    """Attributes of objects other than `self` and `cls` that are set, or set by name."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Assign):
            targets = node.targets
        elif isinstance(node, ast.AugAssign | ast.AnnAssign):
            targets = [node.target]
        elif isinstance(node, ast.Delete):
            targets = node.targets
        elif isinstance(node, ast.Call) and ast.unparse(node.func) in ("setattr", "delattr"):
            yield ast.unparse(node)
            continue
        else:
            continue
        flat = [
            each
            for target in targets
            for each in (target.elts if isinstance(target, ast.Tuple) else [target])
        ]
        for target in flat:
            if isinstance(target, ast.Attribute) and ast.unparse(target.value) not in (
                "self",
                "cls",
            ):
                yield ast.unparse(target)


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("Runner.step = f", ["Runner.step"]),
        ("setattr(Runner, name, f)", ["setattr(Runner, name, f)"]),
        ("self.runner.step = f", ["self.runner.step"]),
        ("a, runner.count = 1, 2", ["runner.count"]),
        ("runner.count += 1", ["runner.count"]),
        ("del runner.step", ["runner.step"]),
        ("self.step = 3\ncls.step = 3\nstep = 3\nsteps[0] = 3", []),
    ],
)
def test_an_assignment_is_recognised(source: str, found: list[str]) -> None:
    assert list(assignments_in(source)) == found


def test_only_compat_sets_attributes_of_vllm() -> None:
    found = {
        assignment
        for path in sorted(ENGINE_EXT.rglob("*.py"))
        if path.parent.name != "compat"
        for assignment in assignments_in(path.read_text())
        if assignment.removeprefix("self.").partition(".")[0] not in OURS
    }
    assert found <= set(DATA), "put it into the registry's tables, or into engine_state.py"
