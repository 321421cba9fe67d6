"""Two tensor-parallel ranks, real ones, verify alike or not at all."""

import os
import socket
import subprocess
import sys
from typing import Any

import pytest

pytest.importorskip("vllm")

pytestmark = [pytest.mark.engine, pytest.mark.timeout(300)]

RANK = """
import sys
import torch
from vllm.config import VllmConfig, set_current_vllm_config
from vllm.distributed import init_distributed_environment, initialize_model_parallel
from reprise.engine_ext.worker import worker_installs
from reprise.engine_ext.worker.verification import on_v1, rank_agreement, state
from reprise.engine_ext.core.config import RepriseConfig
from reprise.engine_ext.core.error_counter import ErrorCounter
from reprise.eval.benchmarks.bench_verify_cpu import use_vllms_cpu_kernels
from reprise.kernels.config import VerifyConfig
from tests_of_ranks import Batch, sampled

rank, port, case = int(sys.argv[1]), sys.argv[2], sys.argv[3]
use_vllms_cpu_kernels()
with set_current_vllm_config(VllmConfig()):
    init_distributed_environment(2, rank, f"tcp://127.0.0.1:{port}", rank, "gloo")
    initialize_model_parallel(2)
assert rank_agreement.num_ranks() == 2
assert rank_agreement.all_ranks_can(True) is True
assert rank_agreement.all_ranks_can(rank == 0) is False

def broken(*_, **__):
    raise RuntimeError("no kernel here")

if case == "at the start" and rank == 1:
    worker_installs.verify = broken
errors = ErrorCounter()
worker_installs.install(
    RepriseConfig(verification=VerifyConfig(enabled=True, backend="torch")), errors
)
print("installed", state.installed.active, flush=True)
torch.manual_seed(7)
batch = Batch([[1, 2], [3], []], **sampled(3))
if case == "alone" and rank == 1:
    on_v1.verify_drafts = broken
if case == "in between" and rank == 1:
    on_v1.reason_to_fall_through = broken
tokens = batch.sample()
print("tokens", tokens, flush=True)
"""


def ranks(case: str, tmp_path: Any) -> list[tuple[int, str]]:
    """Exit status and output of both ranks."""
    tests = os.path.dirname(__file__)
    with open(os.path.join(tests, "test_verification.py")) as source:
        (tmp_path / "tests_of_ranks.py").write_text(source.read())
    (tmp_path / "rank.py").write_text(RANK)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    started = [
        subprocess.Popen(
            [sys.executable, str(tmp_path / "rank.py"), str(rank), str(port), case],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=os.environ | {"OMP_NUM_THREADS": "1", "VLLM_DIST_IDENT": f"ranks-{port}"},
        )
        for rank in range(2)
    ]
    try:
        return [(one.communicate(timeout=200)[0], one.returncode)[::-1] for one in started]
    finally:
        for one in started:
            one.kill()


def said(output: str, word: str) -> str:
    return next(line for line in output.splitlines() if line.startswith(word))


def test_both_ranks_verify_and_draw_the_same(tmp_path: Any) -> None:
    (first, one), (second, two) = ranks("both", tmp_path)
    assert (first, second) == (0, 0), one + two
    assert said(one, "installed") == said(two, "installed") == "installed True"
    assert said(one, "tokens") == said(two, "tokens")


def test_what_one_rank_cannot_install_no_rank_uses(tmp_path: Any) -> None:
    (first, one), (second, two) = ranks("at the start", tmp_path)
    assert (first, second) == (0, 0), one + two
    assert said(one, "installed") == said(two, "installed") == "installed False"


@pytest.mark.parametrize("case", ["alone", "in between"])
def test_a_rank_that_fails_later_ends_and_samples_nothing_of_its_own(
    tmp_path: Any, case: str
) -> None:
    (first, one), (second, two) = ranks(case, tmp_path)
    assert first == 0, one
    assert second != 0
    assert "tokens [" not in two
    assert "the worker ends" in two
