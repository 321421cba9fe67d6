"""The table of sampling settings in docs/limitations.md, row by row, on real engines on the CPU."""

from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("vllm")

from vllm.sampling_params import (
    RepetitionDetectionParams,
    SamplingParams,
    StructuredOutputsParams,
)

from reprise.engine_ext.request.exact_hits import refusal
from reprise.eval.demo_data.demo_trace import make_demo_trace
from reprise.eval.live.settled_report import settled_report
from reprise.tests.engine_ext.front_ends import core_request

PAGE = Path(__file__).resolve().parents[2] / "docs" / "limitations.md"
HEADING = "## Sampling settings"
QUESTIONS = list(dict.fromkeys(row.prompt for row in make_demo_trace()))[:6]
TRIES = 4
"""Of a request until something is drafted for it: an engine may rest from drafting for a while."""

REGEX = "(yes|no|perhaps), [a-z]{4} [0-9]{3}(, [a-z]{2,4}){2}"
SAMPLED: dict[str, Any] = {"temperature": 0.8, "seed": 7}
ROWS: dict[str, dict[str, Any]] = {
    "`seed`": SAMPLED,
    "`top_k`, `top_p`": {**SAMPLED, "top_k": 20, "top_p": 0.9},
    "`min_p`": {**SAMPLED, "min_p": 0.05},
    "`logit_bias`": {"logit_bias": {17: 4.0, 300: -5.0}},
    "`logit_bias` and a penalty": {"logit_bias": {17: 4.0}, "repetition_penalty": 1.2},
    "penalties": {"repetition_penalty": 1.2, "presence_penalty": 0.4, "frequency_penalty": 0.2},
    "`bad_words`": {"bad_words": ["order", "please"]},
    "`allowed_token_ids`": {"allowed_token_ids": list(range(3, 800, 2))},
    "`logprobs`": {"logprobs": 3},
    "`prompt_logprobs`": {"prompt_logprobs": 1},
    "structured outputs": {"structured_outputs": StructuredOutputsParams(regex=REGEX)},
    "`n` above 1": {**SAMPLED, "n": 2},
    "`min_tokens`": {"min_tokens": 12},
    "`thinking_token_budget`": {"thinking_token_budget": 3},
    "`stop`, `stop_token_ids`": {"stop": ["you"], "stop_token_ids": [40, 41]},
    "`repetition_detection`": {
        "ignore_eos": True,
        "repetition_detection": RepetitionDetectionParams(max_pattern_size=8, min_count=2),
    },
}
NOT_ASKED = {"`trace_decode_token_ids`", "logits processors of one's own"}
"""Refused, see below."""
DRAFTS, NO_DRAFTS = "drafts", "no drafts"


def table() -> dict[str, list[str]]:
    """Cells by the setting in the first one."""
    _, _, section = PAGE.read_text(encoding="utf-8").partition(f"{HEADING}\n")
    lines = [line for line in section.partition("\n## ")[0].splitlines() if line.startswith("| ")]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]
    return {name: cells for name, *cells in rows}


def test_every_row_of_the_page_is_asked_and_none_besides() -> None:
    assert set(table()) == set(ROWS) | NOT_ASKED
    for cells in table().values():
        assert cells[0].startswith((DRAFTS, NO_DRAFTS, "refused"))


@pytest.mark.parametrize("name", ROWS)
def test_it_may_be_an_exact_hit_as_the_page_says(name: str) -> None:
    params = SamplingParams(**{"temperature": 0.0, "max_tokens": 40, **ROWS[name]})
    may_be = refusal(core_request("r", params), "deterministic") is None
    assert may_be == table()[name][2].startswith(("yes", "with a seed"))
    assert may_be == (table()[name][2] != "no")


@pytest.mark.engine
@pytest.mark.slow
@pytest.mark.identity
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("name", ROWS)
def test_a_setting_gives_plain_vllms_answers_and_the_drafts_that_the_page_says(
    name: str, plain_llm: Any, reprise_llm: Any
) -> None:
    params = SamplingParams(**{"temperature": 0.0, "max_tokens": 40, **ROWS[name]})
    chats = [[{"role": "user", "content": question}] for question in QUESTIONS]

    def answers(llm: Any) -> list[list[tuple[list[int], Any]]]:
        outputs = llm.chat(chats, params, use_tqdm=False)
        return [[(list(o.token_ids), o.finish_reason) for o in each.outputs] for each in outputs]

    expected = answers(plain_llm)
    drafted = 0
    for _ in range(TRIES):
        before = settled_report(reprise_llm)["provider"]["drafted"]
        assert answers(reprise_llm) == expected
        report = settled_report(reprise_llm)
        assert report["errors"] == {}
        drafted += report["provider"]["drafted"] - before
    assert (drafted > 0) == table()[name][0].startswith(DRAFTS), drafted


def test_what_is_refused_says_so() -> None:
    """Besides, test_undrafted_settings.py has logits processors of one's own."""
    from types import SimpleNamespace

    params = SamplingParams(trace_decode_token_ids=[3])
    model: Any = SimpleNamespace(get_vocab_size=lambda: 100)
    speculative: Any = SimpleNamespace()
    with pytest.raises(ValueError, match="not supported with speculative decoding"):
        params._validate_trace_replay(model, speculative)
    assert table()["`trace_decode_token_ids`"][0].startswith("refused")
    assert table()["logits processors of one's own"][0].startswith("refused")
