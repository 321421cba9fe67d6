"""The benchmark of drafting on the device: lengths, rows, and a replay of the demo."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from reprise.eval.benchmarks import bench_device_drafts
from reprise.eval.benchmarks.bench_device_drafts import run
from reprise.eval.demo_data.demo_model import demo_tokenizer_path
from reprise.eval.demo_data.demo_trace import make_demo_trace
from reprise.eval.replay.device_drafter import DeviceDrafter, draft_length
from reprise.eval.replay.token_rows import load_tokenizer, tokenize_rows
from reprise.eval.replay.traces import limit_rows
from reprise.eval.report.command_line import run_command
from reprise.retrieval.search.embedding import Embedder


def test_drafts_end_where_their_tokens_stop_paying() -> None:
    chances = np.array([0.9, 0.9, 0.05, 0.0], np.float32)
    assert draft_length(chances, 0.06) == 2
    assert draft_length(np.full(8, 0.9, np.float32), 0.003) == 8
    assert draft_length(np.array([0.3, 0.9], np.float32), 2.0) == 0
    assert draft_length(np.zeros(4, np.float32), 0.0) == 0


@pytest.mark.slow
def test_a_replay_drafts_from_all_that_there_is() -> None:
    rows = tokenize_rows(limit_rows(make_demo_trace(), 4), load_tokenizer(demo_tokenizer_path()))
    drafter = DeviceDrafter(embedder=Embedder(), cost=0.013)
    counts = run(drafter, rows)
    assert counts.accepted_tokens > counts.steps  # a warm trace: more than half is drafted right
    assert sum(found["accepted"] > 0 for found in drafter.by_source.values()) >= 2


def test_bad_input_is_one_line(tmp_path: Path, capsys: Any) -> None:
    path = tmp_path / "warm.jsonl"
    path.write_text('{"prompt": "a", "response": "b", "warm": true}\n', encoding="utf-8")
    arguments = ["--trace", str(path)]
    name = "bench_device_drafts.py"
    assert run_command(bench_device_drafts.main, arguments, name=name) == 2
    assert "every row is warm" in capsys.readouterr().err
