"""Two tensor-parallel ranks, real ones, verify alike or not at all."""

import json
import os
from typing import Any

import pytest
from warm_starts import run_program

pytest.importorskip("vllm")

pytestmark = [pytest.mark.engine, pytest.mark.slow, pytest.mark.timeout(1200)]

CASES = ("both", "at the start", "alone", "in between")
# One process loads everything, once, and is forked for each rank of each case.
RANKS = """
import contextlib
import json
import os
import signal
import socket
import sys
import traceback
from types import SimpleNamespace

import torch
from vllm.config import VllmConfig, set_current_vllm_config
from vllm.distributed import init_distributed_environment, initialize_model_parallel
from reprise.engine_ext.worker import worker_installs
from reprise.engine_ext.worker.verification import on_v1, rank_agreement
from reprise.engine_ext.core.config import RepriseConfig
from reprise.engine_ext.core.error_counter import ErrorCounter
from reprise.eval.benchmarks.bench_verify_cpu import use_vllms_cpu_kernels
from reprise.kernels.config import VerifyConfig
from tests_of_ranks import Batch, Engine, sampled


def broken(*_, **__):
    raise RuntimeError("no kernel here")


def run(rank, port, case):
    os.environ["VLLM_DIST_IDENT"] = f"ranks-{port}"
    use_vllms_cpu_kernels()
    with set_current_vllm_config(VllmConfig()):
        init_distributed_environment(2, rank, f"tcp://127.0.0.1:{port}", rank, "gloo")
        initialize_model_parallel(2)
    assert rank_agreement.num_ranks() == 2
    assert rank_agreement.all_ranks_can(True) is True
    assert rank_agreement.all_ranks_can(rank == 0) is False
    if case == "at the start" and rank == 1:
        worker_installs.verify = broken
    errors = ErrorCounter()
    config = RepriseConfig(verification=VerifyConfig(enabled=True, backend="torch"))
    engine = SimpleNamespace(speculative_config=SimpleNamespace())
    Engine.installation = worker_installs.install(config, engine, errors)
    print("installed", Engine.installation.active, flush=True)
    torch.manual_seed(7)
    batch = Batch([[1, 2], [3], []], **sampled(3))
    if case == "alone" and rank == 1:
        on_v1.verify_drafts = broken
    if case == "in between" and rank == 1:
        on_v1.reason_to_fall_through = broken
    tokens = batch.sample()
    print("tokens", tokens, flush=True)


def start(rank, port, case, path):
    if (pid := os.fork()) != 0:
        return pid
    signal.alarm(100)  # the other rank may be waited for in vain
    status = 1
    with open(path, "w") as output:
        for descriptor in (1, 2):
            os.dup2(output.fileno(), descriptor)
        try:
            run(rank, port, case)
            status = 0
        except BaseException:
            traceback.print_exc()
        finally:
            for stream in (sys.stdout, sys.stderr):
                with contextlib.suppress(Exception):
                    stream.flush()
            os._exit(status)


found = {}
for case in sys.argv[1:]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    paths = [f"{case}-{rank}.txt" for rank in range(2)]
    pids = [start(rank, port, case, path) for rank, path in enumerate(paths)]
    statuses = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]
    found[case] = [(status, open(path).read()) for status, path in zip(statuses, paths)]
print("FOUND" + json.dumps(found))
"""


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[tuple[int, str]]]:
    """By case: exit status and output of both ranks."""
    folder = tmp_path_factory.mktemp("ranks")
    tests = os.path.dirname(__file__)
    with open(os.path.join(tests, "test_verification.py")) as source:
        (folder / "tests_of_ranks.py").write_text(source.read())
    (folder / "ranks.py").write_text(RANKS)
    done = run_program(
        [str(folder / "ranks.py"), *CASES],
        environment=os.environ | {"OMP_NUM_THREADS": "1"},
        folder=str(folder),
    )
    assert done.returncode == 0, done.stderr[-4000:]
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("FOUND")]
    found: dict[str, list[tuple[int, str]]] = json.loads(line.removeprefix("FOUND"))
    return found


def said(output: str, word: str) -> str:
    return next(line for line in output.splitlines() if line.startswith(word))


def test_both_ranks_verify_and_draw_the_same(ranks: Any) -> None:
    (first, one), (second, two) = ranks["both"]
    assert (first, second) == (0, 0), one + two
    assert said(one, "installed") == said(two, "installed") == "installed True"
    assert said(one, "tokens") == said(two, "tokens")


def test_what_one_rank_cannot_install_no_rank_uses(ranks: Any) -> None:
    (first, one), (second, two) = ranks["at the start"]
    assert (first, second) == (0, 0), one + two
    assert said(one, "installed") == said(two, "installed") == "installed False"


@pytest.mark.parametrize("case", ["alone", "in between"])
def test_a_rank_that_fails_later_ends_and_samples_nothing_of_its_own(ranks: Any, case: str) -> None:
    (first, one), (second, two) = ranks[case]
    assert first == 0, one
    assert second != 0
    assert "tokens [" not in two
    assert "the worker ends" in two
