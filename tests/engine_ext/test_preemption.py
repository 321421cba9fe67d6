"""A real engine with so little memory that requests are preempted and prompts come in chunks."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from reprise.eval.demo_trace import make_demo_trace

pytestmark = [
    pytest.mark.engine,
    pytest.mark.slow,
    pytest.mark.identity,
    pytest.mark.timeout(600),
]

# 8 requests of some 200 tokens do not fit 20 blocks of 32: somebody has to give way.
TIGHT = {
    "block_size": 32,
    "num_gpu_blocks_override": 20,
    "max_num_batched_tokens": 48,
    "max_model_len": 512,
    "enable_prefix_caching": False,
}


def _preemptions(llm: Any) -> int:
    return sum(m.value for m in llm.get_metrics() if m.name == "vllm:num_preemptions")


def test_preempted_and_chunked_requests_are_answered_alike(
    demo_model: Path, llm_builder: Callable[..., Any]
) -> None:
    from vllm import SamplingParams

    prompts = [row.prompt for row in make_demo_trace(seed=0) if not row.warm][:24]
    # Long prompts, so that each is prefilled in several chunks.
    chats = [[{"role": "user", "content": " ".join([prompt] * 6)}] for prompt in prompts]
    params = SamplingParams(temperature=0.0, max_tokens=120, ignore_eos=True)

    def answers(llm: Any) -> list[tuple[int, ...]]:
        outputs = llm.chat(chats, params, use_tqdm=False)
        return [tuple(output.outputs[0].token_ids) for output in outputs]

    plain = llm_builder(demo_model, with_reprise=False, **TIGHT)
    expected = answers(plain)
    assert _preemptions(plain) > 0, "nothing was preempted: the test could not fail"
    del plain
    ours = llm_builder(demo_model, with_reprise=True, **TIGHT)
    for _ in range(2):
        assert answers(ours) == expected
        assert ours.collective_rpc("reprise_flush", args=(250.0,)) == [True]
    assert _preemptions(ours) > 0
    (report,) = ours.collective_rpc("reprise_stats")
    assert report["errors"] == {}
    assert report["live_requests"] == 0
