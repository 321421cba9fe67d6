"""Two engines in one process: each drafter hears of the requests of its own engine only."""

import os
from pathlib import Path

import light_processes
import pytest
from warm_starts import run_program

pytest.importorskip("vllm")

pytestmark = [pytest.mark.engine, pytest.mark.slow, pytest.mark.timeout(1800)]

SCRIPT = """
import sys
from vllm import LLM, SamplingParams
from reprise.engine_ext.core.proposer_path import PROPOSER_PATH

def build():
    return LLM(
        model=sys.argv[1], enforce_eager=True, max_num_seqs=4, max_model_len=256,
        kv_cache_memory_bytes=1 << 28,
        speculative_config={"model": PROPOSER_PATH, "num_speculative_tokens": 8},
    )

engines = [build()]
# Done once in a process; again, vLLM trips over what our proposer has loaded.
from vllm.platforms import current_platform
current_platform.register_triton_kernel_overrides = lambda: None
engines.append(build())
def drafter(llm):
    core = llm.llm_engine.engine_core.engine_core
    return core.model_executor.driver_worker.worker.model_runner.drafter

drafters = [drafter(llm) for llm in engines]
assert drafters[0] is not drafters[1]
heard = [[], []]
for names, one in zip(heard, drafters):
    def on_arrival(request, names=names, original=one.on_arrival):
        names.append(request.request_id)
        original(request)
    one.on_arrival = on_arrival
params = SamplingParams(temperature=0.0, max_tokens=12)
for number, llm in enumerate(engines):
    engine = llm.llm_engine
    # Ids that collide: each has its own parameters and its own prompt.
    for name in ("a", "b"):
        ids = [3 + number] * 9
        engine.add_request(name, {"prompt_token_ids": ids}, params)
for llm in engines:
    while llm.llm_engine.has_unfinished_requests():
        llm.llm_engine.step()
assert [len(names) for names in heard] == [2, 2], heard
assert not set(heard[0]) & set(heard[1]), heard  # vLLM makes them unique
engines[0].generate([{"prompt_token_ids": [5] * 9}], params, use_tqdm=False)
assert [len(names) for names in heard] == [3, 2], heard
for llm, one in zip(engines, drafters):
    llm.generate([{"prompt_token_ids": [5] * 9}], params, use_tqdm=False)
    llm.llm_engine.step()
    assert not one._live, one._live
print("each its own")
"""


def test_arrivals_reach_the_drafter_of_their_own_engine(demo_model: Path) -> None:
    done = run_program(
        ["-c", SCRIPT, str(demo_model)],
        environment=os.environ
        | {
            "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
            "OMP_NUM_THREADS": "1",
            **light_processes.BY_WORDS,
        },
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    assert "each its own" in done.stdout
