"""The worker's background threads outlive an error in the body of their loops."""

import itertools
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from reprise.engine_ext.core.error_counter import ErrorCounter
from reprise.engine_ext.worker import weights_keeper
from reprise.engine_ext.worker.answer_learner import AnswerLearner, FinishedRequest
from reprise.engine_ext.worker.weights_keeper import WeightsKeeper
from reprise.retrieval.search.token_overlap import TokenOverlap
from reprise.spec.provider import DraftProvider


def failing_once(function: Callable[..., Any]) -> Callable[..., Any]:
    calls = itertools.count()

    def call(*arguments: Any, **named: Any) -> Any:
        if next(calls) == 0:
            raise AssertionError("injected")
        return function(*arguments, **named)

    return call


@pytest.mark.parametrize("method", ["store", "updates"])
def test_learning_goes_on(method: str) -> None:
    stored: list[Any] = []
    retriever: Any = SimpleNamespace(store=stored.append, updates=list, flush=lambda _: True)
    setattr(retriever, method, failing_once(getattr(retriever, method)))
    errors = ErrorCounter()
    learner = AnswerLearner(
        DraftProvider(), retriever, TokenOverlap(), vocabulary_size=1 << 17, errors=errors
    )
    for number in range(2):
        learner.learn(FinishedRequest("", "", "", [number], [number], 0.0))
    assert learner.flush(60.0)
    assert errors.counts() == {"learn": 1}
    assert len(stored) == (1 if method == "store" else 2)


def test_weights_are_saved_after_a_failure(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, wait_until: Callable[..., None]
) -> None:
    monkeypatch.setattr(weights_keeper, "SAVE_EVERY_S", 0.01)
    emitted, errors = itertools.count(), ErrorCounter()
    saved: list[Path] = []
    provider: Any = SimpleNamespace(
        load=lambda _: None,
        stats=lambda: SimpleNamespace(emitted=next(emitted)),
        save=failing_once(saved.append),
    )
    WeightsKeeper(provider, tmp_path / "weights", errors=errors)
    wait_until(lambda: bool(saved))
    assert errors.counts() == {"save weights": 1}
