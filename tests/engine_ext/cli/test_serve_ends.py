"""`reprise serve` is gone within seconds of SIGTERM, whenever it comes, and leaves nothing: no
process, no shared memory, no file of ours."""

import contextlib
import http.client
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from reprise.eval.demo_data.demo_model import DEMO_DTYPE
from reprise.eval.live.server_process import free_port
from reprise.tests.marked_processes import Mark

pytestmark = [pytest.mark.slow, pytest.mark.engine]

PROGRAM = "from reprise.engine_ext.cli.cli import main; main()"
_IS_SO_FAR_WITHIN_S = 250.0
# What is allowed is 5 s; a machine under load takes longer to look.
_GONE_WITHIN_S = 15.0


class Served:
    """A server that is on its way, or there."""

    def __init__(self, mark: Mark, model: Path, folder: Path) -> None:
        self.port = free_port()
        self.log = folder / "log"
        # Not in `folder`: sockets of vLLM's are there, whose paths have to be short.
        self.temporary = Path(tempfile.mkdtemp(prefix="t"))
        options = ["--dtype", DEMO_DTYPE, "--enforce-eager", "--max-model-len", "1024"]
        options += ["--host", "127.0.0.1", "--port", str(self.port)]
        options += ["--kv-cache-memory-bytes", str(1 << 28)]
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-c", PROGRAM, "serve", str(model), *options],
                env={
                    **mark.environment(),
                    "TMPDIR": str(self.temporary),
                    "VLLM_NO_USAGE_STATS": "1",
                    "OMP_NUM_THREADS": "1",
                    "LIGHT_PROCESSES_SPAWN": "1",  # all processes are as users have them
                },
                stdout=log,
                stderr=log,
                cwd=folder,
            )

    def become(self, is_so_far: Callable[["Served"], bool]) -> None:
        """Wait until it is so far."""
        deadline_s = time.monotonic() + _IS_SO_FAR_WITHIN_S
        while self.process.poll() is None and time.monotonic() < deadline_s:
            if is_so_far(self):
                return
            time.sleep(0.05)
        raise AssertionError(self.log.read_text()[-4000:])


def imports(served: Served) -> bool:
    """Return whether it has become vLLM's server, which has hardly begun then."""
    words = psutil.Process(served.process.pid).cmdline()
    return any("vllm_serve" in word or "vllm.entrypoints" in word for word in words)


def starts_its_engine(served: Served) -> bool:
    """Return whether the engine core is there, which takes no signal yet."""
    words: list[str] = []
    for child in psutil.Process(served.process.pid).children():
        with contextlib.suppress(psutil.Error):  # one that has just ended
            words += child.cmdline()
    return any("spawn_main" in word or "EngineCore" in word for word in words)


def answers(served: Served) -> bool:
    """Return whether it is there; then it generates a long answer."""
    try:
        connection = http.client.HTTPConnection("127.0.0.1", served.port, timeout=60)
        connection.request("GET", "/health")
        is_there = connection.getresponse().status == 200
    except OSError:
        return False
    if is_there:
        threading.Thread(target=_ask, args=(served.port,), daemon=True).start()
        time.sleep(1.0)
    return is_there


def answers_and_hangs(served: Served) -> bool:
    """Return whether it is there; then its engine stops in the midst of a long answer."""
    if is_there := answers(served):
        for child in psutil.Process(served.process.pid).children(recursive=True):
            with contextlib.suppress(psutil.Error):
                if any("VLLM::" in word for word in child.cmdline()):
                    child.suspend()
    return is_there


def _ask(port: int) -> None:
    body = {"prompt": "a b c", "max_tokens": 900, "ignore_eos": True, "temperature": 1.0}
    try:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
        headers = {"Content-Type": "application/json"}
        connection.request("POST", "/v1/completions", json.dumps(body), headers)
        connection.getresponse().read()
    except (OSError, http.client.HTTPException):
        return  # it ends meanwhile


@pytest.fixture
def mark() -> Iterator[Mark]:
    mark = Mark()
    yield mark
    mark.kill()


def shared_memory() -> set[str]:
    """Return the blocks that this machine has, of all who run on it."""
    return set(os.listdir("/dev/shm")) if os.path.isdir("/dev/shm") else set()


@pytest.mark.timeout(500)
@pytest.mark.parametrize("is_so_far", [imports, starts_its_engine, answers, answers_and_hangs])
def test_nothing_is_left(
    is_so_far: Callable[[Served], bool],
    mark: Mark,
    demo_model: Path,
    tmp_path: Path,
    request: pytest.FixtureRequest,
) -> None:
    served = Served(mark, demo_model, tmp_path)
    request.addfinalizer(lambda: shutil.rmtree(served.temporary))
    served.become(is_so_far)
    pids = {line.split()[0] for line in mark.alive()}
    began_s = time.monotonic()
    served.process.send_signal(signal.SIGTERM)
    served.process.wait(60)
    assert mark.left_after(10) == []
    took_s = time.monotonic() - began_s
    print(f"gone after {took_s:.1f} s")
    assert took_s < _GONE_WITHIN_S, served.log.read_text()[-4000:]
    if is_so_far is not starts_its_engine:  # killed in the midst of it: the next start removes it
        assert [*served.temporary.glob("*reprise*")] == []
    ours = [name for name in shared_memory() if name.startswith("reprise")]
    assert [name for name in ours if pids & set(name.replace("_", "-").split("-"))] == []
