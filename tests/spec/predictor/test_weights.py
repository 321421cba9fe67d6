"""Weights on disk."""

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from reprise.spec import DraftProvider
from reprise.spec.predictor.features import (
    HASHED_TOKEN,
    NUM_CHOICE,
    check_feature_indices,
    prior_weights,
)
from reprise.spec.predictor.weights import load_weights, salt_of, save_weights, start_weights


def test_round_trip(tmp_path: Path) -> None:
    weights, other = start_weights(), prior_weights()
    save_weights(weights, tmp_path / "weights", secret=b"sixteen bytes, 1")
    save_weights(weights, tmp_path / "weights", secret=b"sixteen bytes, 2")
    assert load_weights(other, tmp_path / "weights") == b"sixteen bytes, 2"
    for mine, theirs in zip(weights, other, strict=True):
        assert np.array_equal(mine, theirs)
    assert [file.name for file in tmp_path.iterdir()] == ["weights"]
    assert (tmp_path / "weights").stat().st_mode & 0o777 == 0o600


def test_salts_are_of_the_name_and_the_secret() -> None:
    names = ["", "a", "b", "\0c", "\ud800"]
    salts = {salt_of(name, secret) for name in names for secret in (b"1" * 16, b"2" * 16)}
    assert len(salts) == 2 * len(names) - 1
    assert all(0 <= salt < 1 << 32 for salt in salts)
    assert salt_of("", b"1" * 16) == salt_of("", b"2" * 16) == 0


def test_learning_survives_a_restart(tmp_path: Path) -> None:
    def learn(provider: DraftProvider) -> None:
        provider.start("r", [1, 2, 3, 1, 2, 3, 1, 2], namespace="n")
        for _ in range(5):
            provider.step(["r"], [[3, 1, 2]])
        provider.finish("r")

    first = DraftProvider()
    learn(first)
    first.save(tmp_path / "weights")
    second = DraftProvider()
    second._secret = b"of another start"
    second.load(tmp_path / "weights")
    second.save(tmp_path / "again")
    assert (tmp_path / "weights").read_bytes() != b""
    with np.load(tmp_path / "weights") as mine, np.load(tmp_path / "again") as theirs:
        assert all(np.array_equal(mine[name], theirs[name]) for name in mine)
        assert not np.array_equal(mine["mixture"], start_weights().mixture)
        before = np.flatnonzero(mine["choice"][HASHED_TOKEN:])
    learn(second)  # finds the weights of the namespace's tokens where the first one left them
    second.save(tmp_path / "again")
    with np.load(tmp_path / "again") as theirs:
        after = np.flatnonzero(theirs["choice"][HASHED_TOKEN:])
    assert len(before) > 0
    assert after.tolist() == before.tolist()


def test_processes_of_the_same_id_save_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in two containers that share a folder."""
    file, savez = tmp_path / "weights", np.savez_compressed
    left = tmp_path / "weights.1.part"
    left.write_bytes(b"half")
    os.utime(left, (1.0, 1.0))

    def meanwhile(*arguments: Any, **members: Any) -> None:
        monkeypatch.setattr(np, "savez_compressed", savez)
        save_weights(prior_weights(), file, secret=b"sixteen bytes, 2")
        savez(*arguments, **members)

    monkeypatch.setattr(np, "savez_compressed", meanwhile)
    save_weights(prior_weights(), file, secret=b"sixteen bytes, 1")
    assert load_weights(prior_weights(), file) == b"sixteen bytes, 1"
    assert [each.name for each in tmp_path.iterdir()] == ["weights"]


def test_damaged_files_are_refused_and_nothing_is_taken_from_them(tmp_path: Path) -> None:
    file, weights = tmp_path / "weights", prior_weights()
    save_weights(start_weights(), file)
    whole = file.read_bytes()
    for content in (b"", b"text", whole[: len(whole) // 2], whole[:-10]):
        file.write_bytes(content)
        with pytest.raises(ValueError, match="weights: expected"):
            load_weights(weights, file)
    for mine, prior in zip(weights, prior_weights(), strict=True):
        assert np.array_equal(mine, prior)
    random = np.random.default_rng(0)
    num_refused = 0
    for at in random.integers(0, len(whole), 200):
        file.write_bytes(whole[:at] + bytes([whole[at] ^ 0xFF]) + whole[at + 1 :])
        try:
            load_weights(weights, file)
        except ValueError:
            num_refused += 1
        else:  # a time of day, say: the tables are covered by checksums
            for mine, shipped in zip(weights, start_weights(), strict=True):
                assert np.array_equal(mine, shipped)
    assert num_refused > 150


def test_other_files_are_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "old.npz", format=np.int64(0))
    with pytest.raises(ValueError, match="expected weights of format 3, came 0"):
        load_weights(prior_weights(), tmp_path / "old.npz")
    broken = prior_weights()
    broken.choice[3] = np.nan
    save_weights(broken, tmp_path / "broken")
    with pytest.raises(ValueError, match="choice: expected finite numbers"):
        load_weights(prior_weights(), tmp_path / "broken")
    save_weights(prior_weights(), tmp_path / "secret", secret=b"long" * 32)
    with pytest.raises(ValueError, match="secret: expected 16 bytes, came 128"):
        load_weights(prior_weights(), tmp_path / "secret")
    small = prior_weights()._replace(choice=np.zeros(3, np.float32))
    save_weights(small, tmp_path / "small")
    with pytest.raises(ValueError, match=r"choice: expected shape .* came \(3,\)"):
        load_weights(prior_weights(), tmp_path / "small")


def test_features_that_the_trace_cannot_name_are_refused() -> None:
    check_feature_indices(NUM_CHOICE)
    check_feature_indices(1 << 15)
    with pytest.raises(OverflowError, match="expected at most 32768 in a table, came 32769"):
        check_feature_indices((1 << 15) + 1)
