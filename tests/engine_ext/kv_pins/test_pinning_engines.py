"""Pinned prefixes on real CPU engines with few blocks: the `system` role of chats, found from the
model's chat template; answers are those of an engine without pins."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from vllm import SamplingParams

pytestmark = [pytest.mark.slow, pytest.mark.engine]

GREEDY = SamplingParams(temperature=0.0, max_tokens=12)
SYSTEM = " ".join(f"Rule {number}: answer in short words." for number in range(40))
FEW_BLOCKS = {"block_size": 32, "num_gpu_blocks_override": 40, "enable_prefix_caching": True}


def build(builder: Callable[..., Any], model: Path, **pins: Any) -> Any:
    settings = {"drafts": {"verify_cost": 0.02}, "kv_pins": pins}
    return builder(model, with_reprise=True, additional_config={"reprise": settings}, **FEW_BLOCKS)


def chat(llm: Any, question: str, **given: Any) -> tuple[list[int], int]:
    """The answer's tokens, and how many tokens of the prompt were cached."""
    messages = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": question}]
    (output,) = llm.chat([messages], GREEDY, use_tqdm=False, **given)
    return list(output.outputs[0].token_ids), int(output.num_cached_tokens or 0)


def press(llm: Any, tag: int) -> None:
    """Evict what may be evicted, by requests that leave room for pins while they run."""
    for number in range(4):
        prompt = {"prompt_token_ids": [tag + number] * 400}
        llm.generate([prompt], SamplingParams(temperature=0.0, max_tokens=1), use_tqdm=False)


def pins(llm: Any, *command: Any) -> Any:
    return llm.llm_engine.engine_core.call_utility("reprise_kv_pins", *command)


def test_a_system_prompt_survives_and_answers_stay_the_same(
    llm_builder: Callable[..., Any], demo_model: Path
) -> None:
    found: dict[bool, Any] = {}
    for enabled in (False, True):
        llm = build(llm_builder, demo_model, enabled=enabled, max_share=0.5)
        try:
            answers, cached = [], []
            for user in range(20):
                answer, num_cached = chat(llm, f"What is {user} and {user}?")
                answers.append(answer)
                cached.append(num_cached)
                press(llm, 100 + 4 * user)
            found[enabled] = answers, cached
            if enabled:
                check_pins(llm, cached[-1])
            else:
                assert pins(llm, "stats") is None
        finally:
            llm.llm_engine.engine_core.shutdown()
    assert found[True][0] == found[False][0]
    assert found[False][1] == [0] * 20
    assert found[True][1][0] == 0
    assert min(found[True][1][1:]) > 200


def check_pins(llm: Any, num_cached: int) -> None:
    stats = pins(llm, "stats")
    assert stats["errors"] == {}
    assert stats["saved_tokens"] == stats["hit_tokens"] > 19 * 200
    (pin,) = [pin for pin in pins(llm, "list") if pin["origin"] == "system"]
    assert pin["tokens"] == num_cached
    # A request that takes all of the model's context is served, and so are eight of them.
    longest = [{"prompt_token_ids": [50 + n] * 1000} for n in range(8)]
    outputs = llm.generate(longest, GREEDY, use_tqdm=False)
    assert [len(output.outputs[0].token_ids) for output in outputs] == [12] * 8
    chat(llm, "And now?")
    press(llm, 400)
    assert chat(llm, "And then?")[1] == num_cached
    press(llm, 420)
    llm.reset_prefix_cache()
    assert pins(llm, "stats")["pinned_blocks"] == 0
    assert chat(llm, "And after that?")[1] == 0
    assert pins(llm, "unpin", None)
    press(llm, 440)
    assert chat(llm, "And at last?")[1] == 0
