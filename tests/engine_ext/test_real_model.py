"""A real language model: SmolLM2 with drafts says what it says without, up to ties.

In bfloat16, as people serve it. Where an answer differs, the judge has to find a tie.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from reprise.engine_ext.cli.answer_difference import first_difference
from reprise.eval.live.settled_report import settled_report
from reprise.eval.real_model.first_differences import judge
from reprise.eval.real_model.policy_desk import make_policy_desk
from reprise.eval.real_model.smollm2 import SMOLLM2_DTYPE, ModelError, smollm2_path

pytestmark = [pytest.mark.engine, pytest.mark.slow, pytest.mark.timeout(1800)]

NUM_REQUESTS = 24
MAX_TOKENS = 32


@pytest.fixture(scope="module")
def smollm2() -> Path:
    """The model's folder; it is fetched where it is not there yet."""
    try:
        return smollm2_path(quiet=True)
    except ModelError as error:
        pytest.skip(str(error))


def _answers(llm: Any, **sampling: Any) -> list[tuple[list[int], list[int]]]:
    """Prompt and answer of each request, in token ids; 8 at once."""
    from vllm import SamplingParams

    chats = [row.messages for row in make_policy_desk(topics=12) if not row.warm]
    assert len(chats) == NUM_REQUESTS
    params = SamplingParams(max_tokens=MAX_TOKENS, **sampling)
    outputs = llm.chat(chats, params, use_tqdm=False)
    return [(list(one.prompt_token_ids), list(one.outputs[0].token_ids)) for one in outputs]


def test_greedy_and_seeded_answers_are_those_without_drafts(
    llm_builder: Callable[..., Any], smollm2: Path
) -> None:
    """Greedy, greedy with a seed, sampled with a seed; the second engine drafts for the repeats."""
    settings = {"dtype": SMOLLM2_DTYPE}
    kinds = ({"temperature": 0.0}, {"temperature": 0.0, "seed": 5}, {"temperature": 0.8, "seed": 5})
    plain = llm_builder(smollm2, with_reprise=False, **settings)
    try:
        expected = [_answers(plain, **kind) for kind in kinds]
    finally:
        plain.llm_engine.engine_core.shutdown()
    drafting = llm_builder(smollm2, with_reprise=True, **settings)
    try:
        said = [_answers(drafting, **kind) for kind in kinds]
        report = settled_report(drafting)
    finally:
        drafting.llm_engine.engine_core.shutdown()
    assert report["errors"] == {}
    assert report["provider"]["accepted"] > NUM_REQUESTS
    greedy = [pair for kind in range(2) for pair in zip(said[kind], expected[kind], strict=True)]
    differences = [
        difference
        for (prompt, one), (_, other) in greedy
        if (difference := first_difference(prompt, one, other))
    ]
    gaps = judge(str(smollm2), differences)
    assert [gap for gap in gaps if not gap.is_tie] == []
    # A tie may come now and then; answers that differ often are no ties.
    assert len(gaps) <= NUM_REQUESTS // 6
    sampled = [one == other for one, other in zip(said[2], expected[2], strict=True)]
    assert sum(sampled) >= NUM_REQUESTS - NUM_REQUESTS // 12


def test_a_single_request_is_answered_alike_with_drafts_and_without(
    llm_builder: Callable[..., Any], smollm2: Path
) -> None:
    """In bfloat16, to the token: alone without drafts, alone with them, and 8 at once. Without
    matrix tiles, in which a row depends on how many there are."""
    from vllm import SamplingParams

    chats = [row.messages for row in make_policy_desk(topics=6) if not row.warm]
    params = SamplingParams(max_tokens=MAX_TOKENS, temperature=0.0)

    def answers(*, drafts: bool) -> tuple[list[list[int]], list[list[int]], dict[str, Any]]:
        settings = {"cpu_batch_invariant": True, "features": {"drafts": drafts}}
        llm = llm_builder(
            smollm2,
            with_reprise=True,
            dtype=SMOLLM2_DTYPE,
            additional_config={"reprise": settings},
        )
        try:
            alone = [llm.chat(chat, params, use_tqdm=False)[0] for chat in chats]
            together = llm.chat(chats, params, use_tqdm=False)
            report = settled_report(llm)
        finally:
            llm.llm_engine.engine_core.shutdown()
        alone, together = (
            [list(one.outputs[0].token_ids) for one in outputs] for outputs in (alone, together)
        )
        return alone, together, report

    alone, together, _ = answers(drafts=False)
    alone_with_drafts, together_with_drafts, report = answers(drafts=True)
    assert report["errors"] == {}
    assert report["provider"]["accepted"] > len(chats)
    assert alone == together
    assert alone_with_drafts == alone
    assert together_with_drafts == together
