"""How a row of a trace becomes a prompt of a real model."""

from types import SimpleNamespace
from typing import Any

import pytest

from reprise.eval.demo_data.demo_model import BUNDLED
from reprise.eval.live.live_worker import prompt_token_ids
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
