"""Where the retrieval process runs, and how it ends."""

import os
import signal
import subprocess
import sys

import msgspec
import pytest

from reprise.retrieval import RetrievalConfig
from reprise.retrieval.host.owned_folder import folder_name
from reprise.retrieval.service.wire import LaunchConfig

_CORES = """
import contextlib, os
def cores_of(pid):
    cores = set()
    for thread in os.listdir(f"/proc/{pid}/task"):
        with contextlib.suppress(ProcessLookupError):  # it has ended since
            cores |= os.sched_getaffinity(int(thread))
    return cores
"""

# An owner pinned as vLLM pins a worker on the CPU: by affinity, and by OpenMP's variable.
_OWNER = (
    _CORES
    + """
import importlib.util, os, pathlib, time
core = min(os.sched_getaffinity(0))
os.sched_setaffinity(0, {core})
os.environ["GOMP_CPU_AFFINITY"] = str(core)
torch = pathlib.Path(importlib.util.find_spec("torch").origin).parent
openmp = sorted(torch.glob("lib/libgomp*.so*"))
os.environ["LD_PRELOAD"] = str(openmp[0])
from reprise.retrieval import RetrievalConfig
from reprise.retrieval.service.process_retriever import ProcessRetriever
retriever = ProcessRetriever(RetrievalConfig())
while retriever.health().state != "ready":
    time.sleep(0.1)
retriever.submit("r", namespace="", text="Where is my parcel?")
while retriever.poll("r") is None:
    time.sleep(0.01)
cores = cores_of(retriever.pid)
retriever.close()
print(*sorted(cores))
"""
)

# A client pinned so, of an owner that is not.
_CLIENT = (
    _CORES
    + """
import os, subprocess, sys, time
from reprise.retrieval import RetrievalConfig
from reprise.retrieval.service.process_retriever import ProcessRetriever
retriever = ProcessRetriever(RetrievalConfig(embedding_model="lexical"))
while retriever.health().state != "ready":
    time.sleep(0.1)
child = '''
import os, sys, time
os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
from reprise.retrieval.service.retrieval_client import RetrievalClient
client = RetrievalClient(sys.argv[1])
while client.health().state != "ready":
    time.sleep(0.1)
'''
subprocess.run([sys.executable, "-c", child, retriever.address], check=True, timeout=700)
cores = cores_of(retriever.pid)
retriever.close()
print(*sorted(cores))
"""
)

# An owner pinned to cores that its parent has left to it; there is no model with threads here.
_PINNED = _OWNER.replace("RetrievalConfig()", "RetrievalConfig(embedding_model='lexical')")
_LEFT = f"""
import os, subprocess, sys
free = os.sched_getaffinity(0)
core = min(free)
waits = "import os; os.sched_setaffinity(0, {{min(os.sched_getaffinity(0))}}); input()\\n"
owner = subprocess.Popen([sys.executable, "-c", waits + {_PINNED!r}], stdin=subprocess.PIPE)
os.sched_setaffinity(0, free - {{core}})
owner.communicate(b"go\\n")
"""


def _cores_after(script: str) -> set[int]:
    said = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=800
    )
    return {int(core) for core in said.stdout.split()}


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="needs two cores")
@pytest.mark.slow
@pytest.mark.parametrize("script", [_OWNER, _CLIENT, _LEFT], ids=["owner", "client", "left"])
def test_it_leaves_the_cores_that_others_are_pinned_to(script: str) -> None:
    free = os.sched_getaffinity(0)
    assert _cores_after(script) == free - {min(free)}


def test_without_faiss_it_says_what_to_install_in_one_line(tmp_path):
    launch = LaunchConfig(
        config={}, address=str(tmp_path / "socket"), block_prefix="reprise-test-", owner_pid=1
    )
    program = (
        "import sys; sys.modules['faiss'] = None;"
        "from reprise.retrieval.service.retrieval_process import main; main()"
    )
    ended = subprocess.run(
        [sys.executable, "-c", program], input=msgspec.json.encode(launch), capture_output=True
    )
    assert ended.returncode == 1
    [line] = ended.stderr.decode().splitlines()
    assert "vector search needs faiss-cpu: pip install 'reprise[cpu]' or 'reprise[gpu]'" in line


# What takes seconds at the end of an interpreter that has imported torch, and a second wish to end.
_ENDING = """
import atexit, os, signal, time
from reprise.retrieval.service.retrieval_process import main
from reprise.retrieval.service.retrieval_server import RetrievalServer
close = RetrievalServer.close
def interrupted(server):
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(0.1)
    close(server)
    print("closed")
RetrievalServer.close = interrupted
atexit.register(time.sleep, 600)
main()
"""


def test_told_to_end_it_writes_and_closes_all_and_is_gone(tmp_path, wait_until):
    config = RetrievalConfig(embedding_model="lexical", clauses=False)
    launch = LaunchConfig(
        config=config.model_dump(),
        address=str(tmp_path / "socket"),
        block_prefix=folder_name(),
        owner_pid=os.getpid(),
    )
    with subprocess.Popen(
        [sys.executable, "-c", _ENDING],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        try:
            process.stdin.write(msgspec.json.encode(launch))
            process.stdin.close()
            wait_until((tmp_path / "socket").exists)
            process.send_signal(signal.SIGTERM)
            assert process.wait(120) == 0
        finally:
            process.kill()
        # It was buffered.
        assert process.stdout.read() == b"closed\n"
        assert process.stderr.read() == b""
    assert list(tmp_path.iterdir()) == []
