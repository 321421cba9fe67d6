"""Weights on disk."""

from pathlib import Path

import numpy as np
import pytest

from reprise.spec import DraftProvider
from reprise.spec.features import prior_weights
from reprise.spec.weights import load_weights, save_weights, start_weights


def test_round_trip(tmp_path: Path) -> None:
    weights, other = start_weights(), prior_weights()
    save_weights(weights, tmp_path / "weights")
    load_weights(other, tmp_path / "weights")
    for mine, theirs in zip(weights, other, strict=True):
        assert np.array_equal(mine, theirs)


def test_learning_survives_a_restart(tmp_path: Path) -> None:
    first = DraftProvider()
    first.start("r", [1, 2, 3, 1, 2, 3, 1, 2])
    for _ in range(5):
        first.step(["r"], [[3, 1, 2]])
    first.save(tmp_path / "weights")
    second = DraftProvider()
    second.load(tmp_path / "weights")
    second.save(tmp_path / "again")
    assert (tmp_path / "weights").read_bytes() != b""
    with np.load(tmp_path / "weights") as mine, np.load(tmp_path / "again") as theirs:
        assert all(np.array_equal(mine[name], theirs[name]) for name in mine)
        assert not np.array_equal(mine["attention"], start_weights().attention)


def test_other_files_are_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "old.npz", format=np.int64(0))
    with pytest.raises(ValueError, match="expected weights of format 2, came 0"):
        load_weights(prior_weights(), tmp_path / "old.npz")
    broken = prior_weights()
    broken.choice[3] = np.nan
    save_weights(broken, tmp_path / "broken")
    with pytest.raises(ValueError, match="choice: expected finite numbers"):
        load_weights(prior_weights(), tmp_path / "broken")
    small = prior_weights()._replace(choice=np.zeros(3, np.float32))
    save_weights(small, tmp_path / "small")
    with pytest.raises(ValueError, match=r"choice: expected shape .* came \(3,\)"):
        load_weights(prior_weights(), tmp_path / "small")
