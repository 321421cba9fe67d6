"""Every variable of a module that can change is listed in one place.

A process may hold several engines. What can be is kept by engine or by task; the rest is here, with
the reason why one value for all of them is right.
"""

import ast
from collections.abc import Iterator
from pathlib import Path

import reprise.engine_ext

ENGINE_EXT = Path(reprise.engine_ext.__file__).parent

BY_ENGINE_OR_TASK = {
    "compat.model_runner._drafters": "by drafter, with its engine's config; weak",
    "engine_client.answering._current_policy": "of the task that adds a request",
    "engine_client.answering._is_admitted": "of the task that adds a request",
    "frontend.info_reporter.current_info": "of the task that generates a request",
    "request.http_context.current_http_context": "of the task that answers an HTTP request",
}

OF_THE_PROCESS = {
    "checks.start_up._checked_pids": "a process has one command line, which is checked once",
    "compat.guarded.step_errors": "counts of errors in hooks, which are of vLLM's classes",
    "compat.registry.registry": "what is patched in vLLM's classes, which a process has once",
    "instances._running": "the engines themselves; weak",
    "kv_pins.system_prefix.errors": "counts of errors in hooks, which are of vLLM's classes",
    "outputs.one_token_outputs._parsers_built": "a server is one per process",
    "request.tenants._warned": "one log line each",
    "worker.prompt_ranks._compiled_for": "what torch.compile has made, which a process has once",
}

UNCHANGING = {
    "APIRouter", "Patch", "RequestControl", "Table", "TypeVar", "frozenset", "init_logger",
    "msgspec.msgpack.Decoder", "msgspec.msgpack.Encoder", "re.compile", "replace", "tuple",
    "typer.Typer",
}  # fmt: skip
"""What is called to make something that stays as it is once the module is loaded."""


def variables_in(source: str) -> Iterator[str]:
    """Names of a module that hold an object which may change: not constants by their name."""
    for node in ast.parse(source).body:
        if not isinstance(node, ast.Assign | ast.AnnAssign) or node.value is None:
            continue
        target = node.targets[0] if isinstance(node, ast.Assign) else node.target
        name = ast.unparse(target)
        if name.startswith("__") or name.upper() == name:
            continue
        value = node.value
        if isinstance(value, ast.Call):
            if ast.unparse(value.func) not in UNCHANGING:
                yield name
        elif isinstance(value, ast.Dict | ast.List | ast.Set):
            yield name


def test_variables_are_found() -> None:
    source = "a = set()\n_b: dict = {}\nC = {}\nd = frozenset()\ne = 3\nf = g = Cache()\n"
    assert list(variables_in(source)) == ["a", "_b", "f"]


def test_all_process_wide_state_is_listed() -> None:
    found = {
        f"{'.'.join(path.relative_to(ENGINE_EXT).with_suffix('').parts)}.{name}"
        for path in ENGINE_EXT.rglob("*.py")
        for name in variables_in(path.read_text(encoding="utf-8"))
    }
    assert found == BY_ENGINE_OR_TASK.keys() | OF_THE_PROCESS.keys()
