"""Every patch of vLLM's methods is guarded or does not run in a step; the list is read from the
code, so that a new one is either guarded or explained here."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("vllm")

import reprise.engine_ext

ENGINE_EXT = Path(reprise.engine_ext.__file__).parent

STARTS = "runs while an engine starts, or before"
FRONT_END = "runs in the front end, where requests come in"
RPC = "is called between steps, by a name of ours"

UNGUARDED = {
    "ahead.py: scheduler.has_requests": "a constant; removed again in a `finally`",
    "async_scheduling.py: EngineArgs.create_engine_config": STARTS,
    "async_scheduling.py: MultiprocExecutor._init_executor": STARTS,
    "async_scheduling.py: UniProcExecutor._init_executor": STARTS,
    "async_scheduling.py: VllmConfig.__post_init__": STARTS,
    "cpu_kernels.py: cpu_attn._get_attn_isa": STARTS,
    "cpu_kernels.py: linear_layers.check_cpu_sgl_kernel": STARTS,
    "cpu_placement.py: MultiprocExecutor._init_executor": STARTS,
    "one_token_outputs.py: processor.add_request": FRONT_END,
    "one_token_outputs.py: processor.process_outputs": FRONT_END,
    "runner_hooks.py: WorkerBase.reprise_draft_counts": RPC,
    "runner_hooks.py: WorkerBase.reprise_flush": RPC,
    "runner_hooks.py: WorkerBase.reprise_stats": RPC,
    "sampling_repair.py: rejection_sampler.expand_batch_to_tokens": (
        "a pure function in place of a broken one: there is nothing to go back to"
    ),
    "schedule_ahead.py: queue._spin_condition.wait": "only sleeps",
    "undrafted_settings.py: SamplingParams._validate_spec_decode": FRONT_END,
    "step_exchange.py: WorkerWrapperBase.reprise_step": "vLLM's own two calls, one by one",
}
OF_THE_FRONT_END = {"replacement.py", "http_front_door.py", "single_flight.py", "async_llm.py"}


def functions_of(tree: ast.AST) -> set[str]:
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef)
    return {node.name for node in ast.walk(tree) if isinstance(node, kinds)}


def patches_in(source: str) -> Iterator[str]:
    """Attributes of other objects that are set to a function."""
    tree = ast.parse(source)
    functions = functions_of(tree)

    def is_function(value: ast.expr) -> bool:
        if isinstance(value, ast.Lambda):
            return True
        if isinstance(value, ast.Name):
            return value.id in functions
        return isinstance(value, ast.Attribute) and value.attr in functions

    for node in ast.walk(tree):
        if isinstance(node, ast.Assign) and is_function(node.value):
            for target in node.targets:
                if isinstance(target, ast.Attribute) and ast.unparse(target.value) != "self":
                    yield ast.unparse(target)
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "setattr":
            owner, name, value = node.args
            if is_function(value):
                yield f"{ast.unparse(owner)}.{ast.unparse(name)}"


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("def f(): ...\nRunner.step = f", ["Runner.step"]),
        ("def f(): ...\nsetattr(Runner, name, f)", ["Runner.name"]),
        ("class A:\n def f(self): ...\n def g(self): self.a.step = self.f", ["self.a.step"]),
        ("runner.step = lambda: 1", ["runner.step"]),
        ("class A:\n def f(self): ...\n def g(self): self.step = 3; runner.count = 3", []),
    ],
)
def test_a_patch_is_recognised(source: str, found: list[str]) -> None:
    assert list(patches_in(source)) == found


def test_every_patch_is_guarded_or_does_not_run_in_a_step() -> None:
    found = {
        f"{path.name}: {patch}"
        for path in sorted(ENGINE_EXT.rglob("*.py"))
        if path.name not in {"guarded.py", *OF_THE_FRONT_END}
        for patch in patches_in(path.read_text())
    }
    assert found == set(UNGUARDED), "guard it with wrap_step_method, or explain why not"
