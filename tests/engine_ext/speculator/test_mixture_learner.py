"""Weights are learned from requests that have ended, in the background, within bounds."""

import threading
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

pytest.importorskip("vllm")

from torch.overrides import TorchFunctionMode

from reprise.engine_ext.core.error_counter import ErrorCounter
from reprise.engine_ext.speculator import mixture_learner
from reprise.engine_ext.speculator.mixture_learner import (
    MAX_TOKENS,
    MAX_WAITING,
    EndedRequest,
    MixtureLearner,
    learning_provider,
    replay_request,
)
from reprise.kernels.mixture.state import MixtureState
from reprise.spec.api.near_answer import PlainNearAnswer
from reprise.spec.predictor.weights import start_weights
from reprise.spec.provider import DraftProvider

PROMPT, ANSWER = list(range(8)), np.arange(100, 140, dtype=np.int32)


class Made:
    """A learner, and what it works with."""

    def __init__(self) -> None:
        weights = start_weights()
        self.state = MixtureState.create(
            mixture_weights=weights.mixture, choice_weights=weights.choice, num_slots=1,
            max_draft=2, max_near_tokens=64,
        )  # fmt: skip
        self.provider = learning_provider()
        self.errors = ErrorCounter()
        self.learner = MixtureLearner(self.provider, self.state, errors=self.errors)

    def drafts_with_start_weights(self) -> bool:
        self.learner.put_in_place()
        return np.array_equal(self.state.mixture_weights.numpy(), start_weights().mixture)


def ended(answer: Any = ANSWER, *, num_updates: int = 0, near: Any = ()) -> EndedRequest:
    return EndedRequest("", PROMPT, answer, near, num_updates)


def weights_after(teach: Callable[[MixtureLearner], None]) -> Any:
    made = Made()
    teach(made.learner)
    assert made.learner.flush(60)
    made.learner.put_in_place()
    assert made.errors.counts() == {}
    return made.state.mixture_weights.numpy()


def test_a_request_does_not_find_its_own_answer() -> None:
    def alone(learner: MixtureLearner) -> None:
        learner.offer(ended())

    def after_its_answer_has_come(learner: MixtureLearner) -> None:
        learner.add_answer("own", ANSWER)
        learner.offer(ended(num_updates=0))

    def after_an_older_one(learner: MixtureLearner) -> None:
        learner.add_answer("older", ANSWER)
        learner.offer(ended(num_updates=learner.num_updates))

    expected = weights_after(alone)
    assert np.array_equal(weights_after(after_its_answer_has_come), expected)
    assert not np.array_equal(weights_after(after_an_older_one), expected)


@pytest.mark.parametrize("has_joined", [False, True])
def test_a_removed_answer_is_forgotten(has_joined: bool) -> None:
    made = Made()
    made.learner.add_answer("a", ANSWER)
    made.learner.add_answer("b", ANSWER + 100)
    if has_joined:
        made.learner.offer(ended(num_updates=2))
        assert made.learner.flush(60)
        assert made.provider.stats().answers == 2
    made.learner.remove_answer("a")
    made.learner.offer(ended(num_updates=2))
    assert made.learner.flush(60)
    assert made.provider.stats().answers == 1
    assert made.provider.stats().cached_tokens == len(ANSWER)


def test_answers_that_wait_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mixture_learner, "MAX_WAITING_UPDATES", 3)
    made = Made()
    for number in range(5):
        made.learner.add_answer(str(number), ANSWER + number)
    assert len(made.learner._updates) == 3
    assert made.provider.stats().answers == 2
    made.learner.offer(ended(num_updates=4))
    assert made.learner.flush(60)
    assert made.provider.stats().answers == 4


def test_every_token_is_predicted_once() -> None:
    provider = learning_provider()
    near = [PlainNearAnswer("a", 0.9, PROMPT, ANSWER)]
    assert replay_request(provider, ended(near=near)) == len(ANSWER)
    stats = provider.stats()
    assert (stats.requests, stats.emitted) == (1, len(ANSWER))
    assert stats.accepted > len(ANSWER) / 2


def test_of_a_long_answer_the_first_tokens_are_learned_from() -> None:
    made = Made()
    made.learner.offer(ended(np.arange(2 * MAX_TOKENS, dtype=np.int32)))
    assert made.learner.flush(60)
    assert made.learner.report() == {"tokens_learned_from": MAX_TOKENS}


def test_requests_that_wait_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    made, go_on = Made(), threading.Event()
    attach = DraftProvider.attach

    def slowly(*arguments: Any) -> None:
        go_on.wait()
        attach(*arguments)

    monkeypatch.setattr(DraftProvider, "attach", slowly)
    for _ in range(MAX_WAITING + 5):
        made.learner.offer(ended(ANSWER[:2]))
    assert not made.learner.has_room
    go_on.set()
    assert made.learner.flush(60)
    assert made.learner.has_room
    assert made.learner.report() == {"tokens_learned_from": 2 * MAX_WAITING}


def test_it_rests_nine_times_as_long_as_it_works(monkeypatch: pytest.MonkeyPatch) -> None:
    now = iter(range(1000))
    clock = SimpleNamespace(monotonic=lambda: float(next(now)), sleep=lambda _: None)
    made, rests = Made(), []

    class Rest:
        def wait(self, seconds: float) -> None:
            rests.append(seconds)

    monkeypatch.setattr(made.learner, "_is_flushed", Rest())
    monkeypatch.setattr(mixture_learner, "time", clock)
    made.learner.offer(ended())
    for _ in range(10_000):
        if rests:
            break
        threading.Event().wait(0.005)
    assert rests == [pytest.approx(9.0)]


def test_a_failure_ends_learning_and_leaves_the_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    made = Made()

    def fail(*_: Any, **__: Any) -> None:
        raise RuntimeError("cannot predict")

    monkeypatch.setattr(made.provider._runner, "draft", fail)
    made.learner.offer(ended())
    assert made.learner.flush(60)
    assert made.learner.has_failed
    assert not made.learner.has_room
    assert made.errors.counts() == {"learn weights": 1}
    assert made.drafts_with_start_weights()
    made.learner.add_answer("a", ANSWER)
    made.learner.offer(ended())
    assert made.learner.flush(0.0)
    # Nothing is kept for what will not be learned.
    assert (len(made.learner._updates), len(made.learner._ended)) == (0, 0)


def test_weights_that_are_no_numbers_are_not_drafted_with() -> None:
    made = Made()
    made.provider._learned.tables.mixture[3] = np.nan
    made.learner.offer(ended())
    assert made.learner.flush(60)
    assert made.errors.counts() == {"learn weights": 1}
    assert made.drafts_with_start_weights()


def test_the_thread_that_learns_leaves_the_device_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """The step's thread may be capturing graphs: no other may ask anything of CUDA."""

    class NoTorch(TorchFunctionMode):
        def __torch_function__(self, function: Any, types: Any, *_: Any) -> Any:
            raise AssertionError(f"{function} in the thread that learns")

    made, learn = Made(), MixtureLearner._learn

    def learn_without(learner: MixtureLearner, request: EndedRequest) -> int:
        NoTorch().__enter__()  # of this thread, and to its end
        return learn(learner, request)

    monkeypatch.setattr(MixtureLearner, "_learn", learn_without)
    monkeypatch.setattr(mixture_learner, "prepare", no_prepare(mixture_learner.prepare))
    made.learner.offer(ended(near=[PlainNearAnswer("a", 0.9, PROMPT, ANSWER)]))
    assert made.learner.flush(60)
    assert made.errors.counts() == {}
    assert not made.drafts_with_start_weights()


def no_prepare(prepare: Callable[..., Any]) -> Callable[..., Any]:
    """Refuse it in any other thread than the test's."""
    allowed = threading.current_thread()

    def checked(*arguments: Any) -> Any:
        assert threading.current_thread() is allowed
        return prepare(*arguments)

    return checked
