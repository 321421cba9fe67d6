"""The weights that the device predicts with: saved ones, or those shipped, and what is learned."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("vllm")

from reprise.engine_ext.core.config import RepriseConfig, load_config
from reprise.engine_ext.core.error_counter import ErrorCounter
from reprise.engine_ext.speculator import device_mixture
from reprise.engine_ext.speculator.device_mixture import BothCorpora, DeviceMixture
from reprise.engine_ext.speculator.mixture_learner import EndedRequest
from reprise.kernels.draft.state import DraftState
from reprise.spec.api.near_answer import PlainNearAnswer
from reprise.spec.predictor.weights import LearnedWeights, salt_of, save_weights, start_weights

PROMPT, ANSWER = list(range(8)), list(range(100, 140))

Make = Callable[..., DeviceMixture]


@pytest.fixture
def make(monkeypatch: pytest.MonkeyPatch) -> Make:
    """Build one with a file of weights, or none."""
    monkeypatch.setattr(device_mixture, "tokenizer_key_of", lambda _: "")

    def build(path: Path | None, errors: ErrorCounter | None = None) -> DeviceMixture:
        settings: Any = None
        state = DraftState.create(num_slots=1, max_draft=2, num_corpora=1, arena_tokens=8)
        config = RepriseConfig()
        if path is not None:
            config = load_config({"drafts": {"weights_file": str(path)}})
        return DeviceMixture(settings, config, state, errors=errors or ErrorCounter())

    return build


def test_what_v1_has_saved_is_predicted_with(make: Make, tmp_path: Path) -> None:
    weights, secret = start_weights(), bytes(range(16))
    weights.choice[7] += 3.0
    save_weights(weights, tmp_path / "weights", secret=secret)
    made = make(tmp_path / "weights")
    assert np.array_equal(made.state.choice_weights.numpy(), weights.choice)
    assert np.array_equal(made.state.mixture_weights.numpy(), weights.mixture)
    assert made.salt("mine") == salt_of("mine", secret) != made.salt("theirs")


@pytest.mark.parametrize("content", [None, b"", b"no weights"])
def test_a_file_that_cannot_be_used_costs_what_was_learned(
    make: Make, tmp_path: Path, content: bytes | None
) -> None:
    path = tmp_path / "weights"
    if content is not None:
        path.write_bytes(content)
        path.chmod(0o600)
    made = make(path)
    assert np.array_equal(made.state.choice_weights.numpy(), start_weights().choice)
    assert made.salt("mine") == salt_of("mine", LearnedWeights().secret)
    assert make(None).salt("mine") == made.salt("mine")


def test_what_is_learned_is_drafted_with_and_outlives_the_worker(
    make: Make, tmp_path: Path
) -> None:
    path, errors = tmp_path / "weights", ErrorCounter()
    made = make(path, errors)
    near = [PlainNearAnswer("a", 0.9, PROMPT, np.array(ANSWER, np.int32))]
    made.learner.offer(EndedRequest("", PROMPT, ANSWER, near, 0))
    assert made.flush(60)
    # Between two steps, and not before.
    assert np.array_equal(made.state.mixture_weights.numpy(), start_weights().mixture)
    made.learner.put_in_place()
    assert not np.array_equal(made.state.mixture_weights.numpy(), start_weights().mixture)
    assert not np.array_equal(made.state.choice_weights.numpy(), start_weights().choice)
    again = make(path)
    assert np.array_equal(again.state.mixture_weights.numpy(), made.state.mixture_weights.numpy())
    assert np.array_equal(again.state.choice_weights.numpy(), made.state.choice_weights.numpy())
    assert again.salt("mine") == made.salt("mine")
    assert errors.counts() == {}


class Removed:
    """Corpora that only remember what was removed."""

    def __init__(self, *, fails: bool) -> None:
        self.ids: list[str] = []
        self._fails = fails

    def add_answer(self, answer_id: str, response_token_ids: Any, *, namespace: str = "") -> None:
        raise NotImplementedError

    def remove_answer(self, answer_id: str, *, namespace: str = "") -> None:
        del namespace
        self.ids.append(answer_id)
        if self._fails:
            raise RuntimeError("not removed")


def test_an_answer_is_removed_from_one_if_the_other_fails() -> None:
    corpora, learner = Removed(fails=False), Removed(fails=True)
    made: Any = learner
    with pytest.raises(RuntimeError, match="not removed"):
        BothCorpora(corpora, made).remove_answer("a")
    assert corpora.ids == learner.ids == ["a"]
