"""Every command here that starts vLLM is gone within seconds of SIGTERM, with all that it has
started: while engines start, and do not listen.

vLLM is stood in for: engines and servers that start others, take no signal, and are never there.
What they are told matters, not what they compute; so these commands need no model to load. Those
are left out that import more of vLLM, and start what the others start.
"""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from reprise.eval.demo_data.demo_model import demo_model_path
from reprise.retrieval.host.process_end import ENDED_BY_SIGTERM
from reprise.tests.marked_processes import Mark

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]
_STARTS_WITHIN_S = 120.0
# What is allowed is 4 s; a wait of engines one after the other takes 10 and more.
_GONE_WITHIN_S = 9.0
_STUBBORN = """
import os, signal, subprocess, sys, tempfile, time

def start_and_stay():
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # as in the midst of compiled code
    code = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); "
    subprocess.Popen([sys.executable, "-c", code + "print(flush=True); time.sleep(600)"],
                     stdout=subprocess.PIPE).stdout.readline()
    tempfile.mkstemp(dir=os.environ["STARTED"])
    time.sleep(600)
"""
_LLM = "class LLM:\n    def __init__(self, **_):\n        start_and_stay()\n"
_SERVER = "from vllm import start_and_stay\nstart_and_stay()\n"
_SMALL = str(demo_model_path())

COMMANDS = {
    # One, not two: it starts them one after the other where memory is short.
    "demo": (1, "eval/demo.py", "--small", "--limit", "4"),
    "acceptance_rate": (
        *(1, "eval/acceptance_rate.py", "--trace", "TRACE", "--engine", "vllm"),
        *("--methods", "none,ngram", "--quiet"),
    ),
    "acceptance_rate, turns": (
        *(2, "eval/acceptance_rate.py", "--trace", "TRACE", "--engine", "vllm"),
        *("--methods", "none,ngram", "--take-turns", "--quiet"),
    ),
    "identity": (1, "eval/identity.py", "--model", _SMALL, "--trace", "TRACE", "--quiet"),
    "record_answers": (
        *(1, "eval/live/record_answers.py", "--model", _SMALL, "--trace", "TRACE"),
        *("--out", "OUT/recorded.jsonl", "--quiet"),
    ),
    "bench_serving": (3, "eval/benchmarks/bench_serving.py", "--methods", "none,ngram,suffix",
                      "--only", "methods"),
    "bench_kv_pins": (1, "eval/benchmarks/bench_kv_pins.py"),
    "fault_campaign": (1, "eval/campaigns/fault_campaign.py"),
    "measure": (2, "eval/gpu/measure.py", "--dry-run", "--out", "OUT/gpu"),
}  # fmt: skip
"""Engines or servers that are there when it is told to end, and how it is called."""


@pytest.fixture
def mark() -> Iterator[Mark]:
    mark = Mark()
    yield mark
    mark.kill()


@pytest.mark.timeout(200)
@pytest.mark.parametrize("name", COMMANDS)
def test_nothing_is_left_of_a_start(name: str, mark: Mark, tmp_path: Path) -> None:
    at_least, *arguments = COMMANDS[name]
    command = start(mark, tmp_path, *map(str, arguments))
    with command:
        wait_for_engines(command, tmp_path / "started", int(at_least))
        assert len(mark.alive()) >= 1 + 2 * int(at_least)
        began_s = time.monotonic()
        command.send_signal(signal.SIGTERM)
        assert command.wait(60) == ENDED_BY_SIGTERM
        assert mark.left_after(10) == []
        assert time.monotonic() - began_s < _GONE_WITHIN_S


def start(mark: Mark, folder: Path, *arguments: str) -> subprocess.Popen[bytes]:
    """Start a command with a vLLM that never is there."""
    (folder / "vllm" / "entrypoints" / "openai").mkdir(parents=True)
    for path in ("vllm", "vllm/entrypoints", "vllm/entrypoints/openai"):
        (folder / path / "__init__.py").write_text(_STUBBORN + _LLM if path == "vllm" else "")
    for path in ("vllm/entrypoints/openai/api_server.py", "vllm/config.py"):
        (folder / path).write_text(_SERVER)
    for path in ("started", "out"):
        (folder / path).mkdir()
    trace = folder / "trace.jsonl"
    trace.write_text('{"prompt": "a b c", "response": "d e f"}\n' * 4)
    places = {"TRACE": str(trace), "OUT": str(folder / "out")}
    words = list(arguments)
    for name, place in places.items():
        words = [word.replace(name, place) for word in words]
    paths = [str(folder), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {
        **mark.environment(),
        "PYTHONPATH": os.pathsep.join(paths),
        "STARTED": str(folder / "started"),
    }
    words[0] = str(ROOT / words[0])
    return subprocess.Popen(
        [sys.executable, *words], env=environment, cwd=folder / "out", stderr=subprocess.PIPE
    )


def wait_for_engines(command: subprocess.Popen[bytes], folder: Path, at_least: int) -> None:
    """Wait until so many have begun to start."""
    deadline_s = time.monotonic() + _STARTS_WITHIN_S
    while len(list(folder.iterdir())) < at_least:
        if command.poll() is not None:
            assert command.stderr is not None
            raise AssertionError(command.stderr.read().decode()[-2000:])
        assert time.monotonic() < deadline_s
        time.sleep(0.1)
