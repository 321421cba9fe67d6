"""What is forked in place of what vLLM spawns is like what would have been spawned."""

import json
import os
import signal
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
import warm_starts

pytest.importorskip("vllm")
pytestmark = [pytest.mark.engine, pytest.mark.slow]

PROGRAM = """
import json, multiprocessing, os, sys, tempfile, time
import vllm

if __name__ == "__main__":
    state = {
        "arguments": sys.argv,
        "environment": {name: os.environ.get(name) for name in ("ASKED", "LD_PRELOAD", "TMPDIR")},
        "first on the path": sys.path[0],
        "folder": os.getcwd(),
        "main": __spec__.name,
        "name": multiprocessing.current_process().name,
        "is a child": multiprocessing.parent_process() is not None,
        "leads": [os.getsid(0) == os.getpid(), os.getpgrp() == os.getpid()],
        "temporary": tempfile.gettempdir(),
    }
    print(json.dumps(state), flush=True)
    print("ready", file=sys.stderr, flush=True)
    if "waits" in sys.argv:
        time.sleep(600)
    sys.exit(3)
"""


@pytest.fixture
def start(tmp_path: Path) -> Callable[..., Any]:
    """Start the program above, which writes into a file."""
    (tmp_path / "some_program.py").write_text(PROGRAM)

    def start(log: Any, *arguments: str, **environment: str) -> Any:
        return warm_starts.start_program(
            "some_program",
            arguments,
            environment={**os.environ, "ASKED": "1", "TMPDIR": str(tmp_path), **environment},
            folder=str(tmp_path),
            stdout=log.fileno(),
            stderr=log.fileno(),
        )

    return start


def said(log: Any) -> list[str]:
    log.seek(0)
    return str(log.read().decode()).splitlines()


def test_a_program_is_like_one_that_was_spawned(start: Callable[..., Any]) -> None:
    found = []
    for environment in ({}, {warm_starts.SPAWN: "1"}):
        with tempfile.TemporaryFile() as log:
            program = start(log, "--option", **environment)
            assert isinstance(program, warm_starts.Program) is (not environment)
            assert program.wait(400) == 3
            assert program.poll() == 3
            state, ready = said(log)
        assert ready == "ready"
        found.append(json.loads(state))
    forked, spawned = found
    assert forked == spawned
    assert forked["environment"]["ASKED"] == "1"


def test_a_signal_ends_it(start: Callable[..., Any], wait_until: Callable[..., None]) -> None:
    with tempfile.TemporaryFile() as log:
        program = start(log, "waits")
        wait_until(lambda: "ready" in said(log))
        assert program.poll() is None
        program.send_signal(signal.SIGTERM)
        assert program.wait(60) == -signal.SIGTERM
        program.send_signal(signal.SIGTERM)  # of no effect


def test_what_would_import_other_things_is_spawned(
    start: Callable[..., Any],
) -> None:
    for changed in ({"TRITON_INTERPRET": "1"}, {"PYTHONPATH": os.environ["PYTHONPATH"] + ":/x"}):
        assert warm_starts._server_of({**os.environ, **changed}) is None
    with tempfile.TemporaryFile() as log:
        program = start(log, HF_HOME="/nowhere")
        assert not isinstance(program, warm_starts.Program)
        assert program.wait(400) == 3


def test_who_embeds_starts_engines_as_before() -> None:
    import sklearn  # noqa: F401

    assert warm_starts._server_of(os.environ) is not None


def test_an_engines_processes_are_forked(plain_llm: Any) -> None:
    (core,) = plain_llm.llm_engine.engine_core.resources.engine_manager.processes
    assert isinstance(core._popen, warm_starts._Forked)
    process = psutil.Process(core.pid)
    assert process.name() == "VLLM::EngineCore"
    server = process.parent()
    assert server is not None
    assert server.ppid() == os.getpid()
    # The core's worker was forked of a server of the core's.
    (server_of_core,) = process.children()
    assert any(child.name() == "VLLM::Worker" for child in server_of_core.children())
