"""What drafting has learned is kept in a file, whatever becomes of the file."""

from pathlib import Path

import pytest

pytest.importorskip("vllm")

from reprise.engine_ext.core.config import load_config
from reprise.engine_ext.core.error_counter import ErrorCounter
from reprise.engine_ext.worker.weights_keeper import WeightsKeeper, weights_path
from reprise.spec.api.config import DraftConfig
from reprise.spec.predictor.features import Weights
from reprise.spec.predictor.weights import load_weights, start_weights
from reprise.spec.provider import DraftProvider

TOKENIZER_KEY = "0123456789abcdef"


@pytest.fixture
def errors() -> ErrorCounter:
    return ErrorCounter()


def a_provider() -> DraftProvider:
    return DraftProvider(DraftConfig(verify_cost=0.0))


def learn(provider: DraftProvider) -> None:
    provider.start("r", [1, 2, 3, 1, 2, 3, 1, 2])
    for _ in range(3):
        provider.step(["r"], [[3, 1, 2]])
    provider.finish("r")


def kept(path: Path) -> Weights:
    weights = start_weights()
    load_weights(weights, path)
    return weights


def test_by_default_the_file_lies_beside_the_sqlite_file() -> None:
    assert weights_path(load_config(), TOKENIZER_KEY) is None
    sqlite = load_config({"retrieval": {"url": "sqlite:///data/a.sqlite"}})
    assert weights_path(sqlite, TOKENIZER_KEY) == Path("/data/a.sqlite.01234567.weights")
    given = load_config({"drafts": {"weights_file": "/data/w"}})
    assert weights_path(given, TOKENIZER_KEY) == Path("/data/w")


def test_what_one_worker_learned_the_next_one_goes_on_from(
    tmp_path: Path, errors: ErrorCounter
) -> None:
    path = tmp_path / "weights"
    first = a_provider()
    keeper = WeightsKeeper(first, path, errors=errors)
    keeper.save()
    assert not path.exists()  # nothing was learned
    learn(first)
    keeper.save()
    learned = kept(path)
    assert (learned.mixture != start_weights().mixture).any()
    second = a_provider()
    again = WeightsKeeper(second, path, errors=errors)
    path.unlink()
    again.save()
    assert not path.exists()
    second.save(path)
    assert (kept(path).mixture == learned.mixture).all()
    assert errors.counts() == {}


def test_a_file_that_cannot_be_used_is_replaced(
    tmp_path: Path, errors: ErrorCounter, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "weights"
    path.write_bytes(b"no weights")
    provider = a_provider()
    keeper = WeightsKeeper(provider, path, errors=errors)
    (line,) = [each for each in caplog.messages if "begins with the shipped weights" in each]
    assert line.endswith(f"{path}: expected a file of weights, came other bytes")
    learn(provider)
    keeper.save()
    assert (kept(path).mixture != start_weights().mixture).any()
    assert errors.counts() == {}


def test_a_file_that_cannot_be_written_is_counted_and_drafting_goes_on(
    tmp_path: Path, errors: ErrorCounter, caplog: pytest.LogCaptureFixture
) -> None:
    provider = a_provider()
    keeper = WeightsKeeper(provider, tmp_path / "no folder" / "weights", errors=errors)
    learn(provider)
    keeper.save()
    keeper.save()
    assert errors.counts() == {"save weights": 2}
    (line,) = [each for each in caplog.messages if "was not written" in each]
    assert str(tmp_path / "no folder" / "weights") in line
    assert "Traceback" not in caplog.text
    learn(provider)
