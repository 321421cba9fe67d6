"""Pinned prefixes on model runner V2, in Triton's interpreter, with drafts."""

from collections.abc import Callable
from typing import Any

import pytest

pytest.importorskip("vllm")

pytestmark = [pytest.mark.engine, pytest.mark.slow, pytest.mark.timeout(1800)]

GREEDY = {"temperature": 0.0, "max_tokens": 8, "ignore_eos": True}
PREFIX = [7 + 5 * i % 240 for i in range(70)]
# Others take seven of the nine that are not the null block: what is pinned fits beside one of them.
FEW_BLOCKS = {"block_size": 32, "num_gpu_blocks_override": 10, "enable_prefix_caching": True}


def test_a_shared_prefix_survives_and_answers_stay_the_same(
    start_engine: Callable[..., Any],
) -> None:
    found = {}
    for enabled in (False, True):
        settings = {"enabled": enabled, "shared_by": 2, "max_share": 0.5}
        engine = start_engine(
            with_reprise=True,
            additional_config={"reprise": {"kv_pins": settings}},
            max_num_seqs=1,
            **FEW_BLOCKS,
        )
        answers = []
        for user in range(6):
            others = [[20 + user] * 200, [40 + user] * 200]
            for prompt in ([*PREFIX, 10 + user], *others):
                answers += engine.generate(prompts=[prompt], samplings=[GREEDY])
        assert engine.report()["errors"] == {}
        found[enabled] = answers, engine.pins()
        engine.end()
    assert found[True][0] == found[False][0]
    assert found[False][1] is None
    stats = found[True][1]
    assert stats["errors"] == {}
    assert stats["saved_tokens"] >= 4 * 64
