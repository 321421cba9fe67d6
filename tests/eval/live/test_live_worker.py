"""How a row of a trace becomes a prompt of a real model, and what an engine has counted."""

from types import SimpleNamespace
from typing import Any

import pytest

from reprise.engine_ext.core.latency import LatencyHistogram
from reprise.eval.demo_data.demo_model import BUNDLED
from reprise.eval.live.live_worker import (
    LiveOutcome,
    _add_drafting_report,
    draft_counters,
    prompt_token_ids,
)
from reprise.eval.replay.traces import TraceRow

USER, SYSTEM = {"role": "user", "content": "hi"}, {"role": "system", "content": "be kind"}


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(BUNDLED, local_files_only=True)
    tokenizer.chat_template = (
        "{% for m in messages %}<{{ m['role'] }}> {{ m['content'] }} {% endfor %}<assistant>"
    )
    return tokenizer


@pytest.mark.parametrize(
    ("row", "text"),
    [
        (TraceRow(prompt="hi", response="r"), "<user> hi <assistant>"),
        (
            TraceRow(prompt="as text", response="r", messages=[SYSTEM, USER]),
            "<system> be kind <user> hi <assistant>",
        ),
        (TraceRow(prompt="<user> hi", response="r", rendered=True), "<user> hi"),
    ],
)
def test_a_prompt_goes_through_the_template_once(tokenizer: Any, row: TraceRow, text: str) -> None:
    llm: Any = SimpleNamespace(get_tokenizer=lambda: tokenizer)
    assert prompt_token_ids(llm, row) == tokenizer.encode(text, add_special_tokens=False)


def engine(speculative_config: object, **counted: int) -> Any:
    metrics = [
        SimpleNamespace(name=f"vllm:spec_decode_num_{name}_tokens", value=value)
        for name, value in counted.items()
    ]
    config = SimpleNamespace(speculative_config=speculative_config)
    return SimpleNamespace(
        get_metrics=lambda: [SimpleNamespace(name="vllm:other"), *metrics],
        llm_engine=SimpleNamespace(vllm_config=config),
    )


def test_drafts_that_vllm_does_not_count_are_no_zero() -> None:
    assert draft_counters(engine({}, draft=7, accepted=3)) == {"drafted": 7, "accepted": 3}
    assert draft_counters(engine(None)) == {"drafted": 0, "accepted": 0}
    with pytest.raises(LookupError, match="does not count drafts"):
        draft_counters(engine({}, draft=7))


def test_what_drafting_took_for_the_warm_rows_is_left_out() -> None:
    histogram = LatencyHistogram()
    source = {"corpus": {"drafted": 0, "accepted": 0}}

    def report() -> dict[str, Any]:
        provider = {"by_source": source, "cached_tokens": 0, "bytes": 0}
        return {"provider": provider, "propose_us": histogram.summary()}

    for _ in range(100):
        histogram.observe(8000.0)
    before = report()
    outcome = LiveOutcome(
        output_token_ids=[], warm_output_token_ids=[], steps=0, drafted_tokens=0, accepted_tokens=0
    )
    _add_drafting_report(outcome, before, report())
    assert outcome.propose_us is None
    for _ in range(10):
        histogram.observe(64.0)
    _add_drafting_report(outcome, before, report())
    assert outcome.propose_us == {"p50": 64.0, "p99": 64.0}
