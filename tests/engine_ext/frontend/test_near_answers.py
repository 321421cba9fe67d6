"""Near answers as the front end has them searched for, and stored."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from vllm.v1.engine import FinishReason

from reprise.engine_ext.frontend.near_answers import NearAnswers
from reprise.engine_ext.outputs.flight import FinishedFlight
from reprise.engine_ext.outputs.replay import Ending
from reprise.retrieval.api.near_answer import NearAnswer


class Retriever:
    """Records what it is asked, and finds what it is given."""

    def __init__(self) -> None:
        self.found: dict[str, list[NearAnswer]] = {}
        self.calls: list[Any] = []

    def submit(self, request_id: str, *, namespace: str, prompt_token_ids: Any) -> None:
        self.calls.append((request_id, namespace, list(prompt_token_ids)))

    def poll(self, request_id: str) -> list[NearAnswer] | None:
        return self.found.get(request_id)

    def store(self, answer: Any) -> None:
        self.calls.append(answer)


def near(clause: int) -> NearAnswer:
    ids = np.array([1, 2], dtype=np.int32)
    return NearAnswer("a", 0.9, ids, ids, clause=clause)


@pytest.fixture
def retriever() -> Retriever:
    return Retriever()


@pytest.fixture
def near_answers(retriever: Retriever) -> NearAnswers:
    return NearAnswers(retriever, model_key="m", tokenizer_key="t")  # type: ignore[arg-type]


def test_only_prompts_of_token_ids_are_searched_for(
    near_answers: NearAnswers, retriever: Retriever
) -> None:
    def request(token_ids: list[int] | None, images: Any = None) -> Any:
        return SimpleNamespace(request_id="r", prompt_token_ids=token_ids, mm_features=images)

    assert not near_answers.begin(request(None), "acme")
    assert not near_answers.begin(request([1], images=["image"]), "acme")
    assert retriever.calls == []
    assert near_answers.begin(request([1, 2]), "acme")
    assert retriever.calls == [("r", "acme", [1, 2])]


def test_an_answer_to_the_whole_prompt_counts_before_those_to_its_clauses(
    near_answers: NearAnswers, retriever: Retriever
) -> None:
    assert near_answers.nearest("not yet found") == ("miss", None)
    retriever.found = {"none": [], "parts": [near(1), near(2)], "both": [near(2), near(0)]}
    found = [near_answers.nearest(name) for name in retriever.found]
    assert found == [("miss", None), ("clause", 0.9), ("semantic", 0.9)]


def test_answers_are_stored_for_drafts_only(
    near_answers: NearAnswers, retriever: Retriever
) -> None:
    ending = Ending(FinishReason.STOP, "\n")
    near_answers.store([1, 2], FinishedFlight([], "", ending, 0), "acme")
    assert retriever.calls == []
    near_answers.store([1, 2], FinishedFlight([7, 8], "text", ending, 0), "acme")
    (answer,) = retriever.calls
    assert answer.exact_key is None
    assert answer.response_token_ids.tolist() == [7, 8]
    assert (answer.namespace, answer.model_key, answer.tokenizer_key) == ("acme", "m", "t")
    assert (answer.finish_reason, answer.stop_reason) == ("stop", "\n")
