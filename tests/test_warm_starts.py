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
        "main": [__spec__ and __spec__.name, __name__, globals().get("__file__")],
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

    def start(log: Any, *arguments: str, how: str = "-m", **environment: str) -> Any:
        words = {"-m": ["-m", "some_program"], "-c": ["-c", PROGRAM], "file": ["some_program.py"]}
        return warm_starts.start_program(
            [*words[how], *arguments],
            environment={**os.environ, "ASKED": "1", "TMPDIR": str(tmp_path), **environment},
            folder=str(tmp_path),
            stdout=log.fileno(),
            stderr=log.fileno(),
        )

    return start


def said(log: Any) -> list[str]:
    log.seek(0)
    return str(log.read().decode()).splitlines()


@pytest.mark.parametrize("how", ["-m", "-c", "file"])
def test_a_program_is_like_one_that_was_spawned(start: Callable[..., Any], how: str) -> None:
    found = []
    for environment in ({}, {warm_starts.SPAWN: "1"}):
        with tempfile.TemporaryFile() as log:
            program = start(log, "--option", how=how, **environment)
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


def test_a_program_is_run_to_its_end() -> None:
    code = "import sys; print('said'); print('complained', file=sys.stderr); sys.exit(5)"
    done = warm_starts.run_program(["-c", code], environment=os.environ)
    assert (done.returncode, done.stdout, done.stderr) == (5, "said\n", "complained\n")
    failed = warm_starts.run_program(["-c", "raise ValueError('no')"], environment=os.environ)
    assert failed.returncode == 1
    assert failed.stderr.splitlines()[-1] == "ValueError: no"


def test_a_worker_is_forked_with_its_pipes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import msgspec

    from reprise.engine_ext.cli import worker_process

    class Said(msgspec.Struct):
        line: str
        job: dict[str, int]
        leads: bool

    class Job(msgspec.Struct):
        number: int

    (tmp_path / "some_worker.py").write_text(
        "import json, os, sys\n"
        "job = json.load(open(sys.argv[1]))\n"
        "said = {'line': sys.stdin.readline(), 'job': job, 'leads': os.getpgrp() == os.getpid()}\n"
        "os.write(int(sys.argv[2]), json.dumps(said).encode() + b'\\n')\n"
        "print('logged', flush=True)\n"
        "sys.stdin.read()\n"
    )
    monkeypatch.chdir(tmp_path)
    for environment in (dict(os.environ), {**os.environ, warm_starts.SPAWN: "1"}):
        worker = worker_process.WorkerProcess("some_worker", Job(7), Said, environment)
        is_forked = isinstance(worker.process, warm_starts.Program)
        assert is_forked is (warm_starts.SPAWN not in environment)
        worker.send_line(b"go on")
        assert worker.messages.get(timeout=300) == Said("go on\n", {"number": 7}, leads=True)
        worker.close_input()
        assert worker.process.wait(60) == 0
        assert worker.messages.get(timeout=60) is None, "something else holds its pipe"
        assert worker.log_file.read_text() == "logged\n"
        worker_process.end_workers([worker])
