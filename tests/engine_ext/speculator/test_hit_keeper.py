"""Counts of hits are saved and restored, and a file that cannot be used is replaced."""

import stat
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("vllm")

import torch

from reprise.engine_ext.core.error_counter import ErrorCounter
from reprise.engine_ext.speculator.hit_keeper import SAVE_EVERY_S, HitKeeper
from reprise.engine_ext.speculator.read_back import ReadBack
from reprise.kernels.draft.state import DraftState, worths_of


class Worker:
    """A state and its keeper, with a clock of its own."""

    def __init__(self, path: Path) -> None:
        self.state = DraftState.create(num_slots=1, max_draft=2, num_corpora=1, arena_tokens=8)
        self.errors = ErrorCounter()
        self.read_back = ReadBack(torch.device("cpu"), errors=self.errors)
        self.now_s = 0.0
        self.keeper = HitKeeper(
            self.state, path, self.read_back, errors=self.errors, clock=lambda: self.now_s
        )


def test_they_are_saved_once_a_minute_and_restored(tmp_path: Path) -> None:
    path = tmp_path / "hits"
    first = Worker(path)
    first.state.hit_counts[1, 2, 0, 3] = torch.tensor([100.0, 75.0])
    first.keeper.step()
    assert first.read_back.flush(60)
    assert not path.exists()
    first.now_s = SAVE_EVERY_S
    first.keeper.step()
    assert first.read_back.flush(60)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    second = Worker(path)
    assert torch.equal(second.state.hit_counts, first.state.hit_counts)
    assert second.state.hit_chances[1, 2, 0, 3] == 0.75
    assert torch.equal(second.state.hit_worths, worths_of(second.state.hit_chances))
    assert second.state.hit_worths[1, 2, 0] > second.state.hit_worths[1, 2, 1]
    assert first.errors.counts() == second.errors.counts() == {}


@pytest.mark.parametrize("content", ["shape", "values", "noise"])
def test_a_file_that_cannot_be_used_is_replaced(
    tmp_path: Path, content: str, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "hits"
    if content == "noise":
        path.write_bytes(b"no counts")
    else:
        good = DraftState.create(num_slots=1, max_draft=2).hit_counts.numpy()
        with path.open("wb") as file:
            np.save(file, good[:1] if content == "shape" else -good)
    worker = Worker(path)
    (line,) = [each for each in caplog.messages if "begins with start values" in each]
    assert str(path) in line
    assert "pickle" not in line
    fresh = DraftState.create(num_slots=1, max_draft=2)
    assert torch.equal(worker.state.hit_counts, fresh.hit_counts)
    worker.keeper.save()
    assert worker.read_back.flush(60)
    assert np.array_equal(np.load(path), fresh.hit_counts.numpy())


def test_a_file_that_cannot_be_written_ends_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    worker = Worker(tmp_path / "hits")
    (tmp_path / "hits").mkdir()
    for _ in range(2):
        worker.keeper.save()
        assert worker.read_back.flush(60)
    assert worker.errors.counts() == {"save hits": 2}
    (line,) = [each for each in caplog.messages if "was not written" in each]
    assert str(tmp_path / "hits") in line
    assert "Traceback" not in caplog.text
