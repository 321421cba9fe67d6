"""What the demo does beside serving: its page, and what a semantic cache would have said."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from reprise.engine_ext.answer_page.records import AnswerRecord
from reprise.eval import demo
from reprise.eval.demo_data.demo_model import demo_model_path
from reprise.eval.live.live import run_of_outcome
from reprise.eval.live.live_worker import LiveOutcome
from reprise.eval.replay.recording import recorded_trace
from reprise.eval.replay.token_rows import load_tokenizer
from reprise.eval.replay.traces import TraceRow
from reprise.spec.api.recorded_steps import DraftedToken, RecordedStep


class FirstLetters:
    """Texts are near that begin with the same letter."""

    def encode(self, texts: Sequence[str]) -> Any:
        return np.array([[text[0] == letter for letter in "ABC"] for text in texts], np.float32)


ROWS = [
    TraceRow(prompt="A warm", response="", warm=True),
    TraceRow(prompt="B timed", response=""),
    TraceRow(prompt="A timed", response=""),
    TraceRow(prompt="B again", response=""),
]


def ids(text: str) -> list[int]:
    tokenizer = load_tokenizer(str(demo_model_path()))
    return [*tokenizer.encode(text).tolist(), tokenizer.end_token_id]


def outcome() -> LiveOutcome:
    timed = [ids("It is new."), ids("It costs 7 euros."), ids("It is new.")]
    drafted = [DraftedToken(token, "corpus") for token in timed[2][1:]]
    return LiveOutcome(
        output_token_ids=timed,
        warm_output_token_ids=[ids("It costs 5 euros.")],
        prompt_token_ids=[[1]] * 3,
        records=[
            *(AnswerRecord(one, [RecordedStep(1, 0)] * (len(one) - 1)) for one in timed[:2]),
            AnswerRecord(timed[2], [RecordedStep(len(drafted), len(drafted), drafted)]),
        ],
        steps=1,
        drafted_tokens=len(drafted),
        accepted_tokens=len(drafted),
        wall_s=1.0,
    )


def test_the_page_shows_what_was_served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo, "Embedder", FirstLetters)
    served = outcome()
    page = recorded_trace(ROWS)
    page.answers = {"none": served.records[:], "reprise": served.records}
    page.cached = demo._cached_replies(ROWS, served)
    assert [reply and reply.question for reply in page.cached] == [None, "A warm", "B timed"]
    scene = demo.Scene("A model", str(demo_model_path()), "float32", ROWS, max_tokens=8)
    runs = [
        run_of_outcome("demo", method, served, served.output_token_ids, cost=0.0)
        for method in page.answers
    ]
    path = tmp_path / "demo.html"
    demo._write_page(path, scene, runs, page, take_turns=False)
    text = path.read_text()
    assert "run one after the other" in text
    assert text.count("<article") == 3
    assert "<mark>5</mark>" in text
    assert "eval/demo.py" in text
    assert "A model in float32" in text
    assert text.count("the same words as the model's") == 1
    assert "speedup" not in text
    assert "<th>to none</th>" in text


def test_where_it_cannot_be_written_is_said_at_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert demo.main(["--html", str(tmp_path / "nowhere" / "demo.html")]) == 2
    assert "its folder does not exist" in capsys.readouterr().err
