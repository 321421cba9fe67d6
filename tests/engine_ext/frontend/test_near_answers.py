"""Near answers as the front end has them searched for, and stored."""

import asyncio
from collections.abc import Callable, Iterator, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from vllm.sampling_params import RequestOutputKind, SamplingParams
from vllm.v1.engine import EngineCoreOutput, FinishReason
from vllm.v1.engine.output_processor import OutputProcessor, RequestOutputCollector

from reprise.engine_ext.core.config import load_config
from reprise.engine_ext.core.error_counter import ErrorCounter
from reprise.engine_ext.core.request_hints import read_hints
from reprise.engine_ext.frontend.front_end import FrontEnd
from reprise.engine_ext.frontend.near_answers import NearAnswers
from reprise.engine_ext.outputs.flight import FinishedFlight
from reprise.engine_ext.outputs.replay import Ending
from reprise.engine_ext.request.request_control import RequestControl
from reprise.engine_ext.request.request_info import InfoCollector, RequestInfo
from reprise.engine_ext.request.request_policy import RequestPolicy
from reprise.retrieval.api.answer import Answer
from reprise.retrieval.api.config import RetrievalConfig
from reprise.retrieval.api.near_answer import NearAnswer
from reprise.retrieval.service.process_retriever import ProcessRetriever
from reprise.tests.engine_ext.front_ends import core_request, vllm_config


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
    return NearAnswer("a", 0.9, ids, ids, clause=clause, namespace="acme")


@pytest.fixture
def retriever() -> Retriever:
    return Retriever()


@pytest.fixture
def near_answers(retriever: Retriever) -> NearAnswers:
    return NearAnswers(
        retriever,  # type: ignore[arg-type]
        model_key="m",
        tokenizer_key="t",
        errors=ErrorCounter(),
    )


def test_only_prompts_of_token_ids_are_searched_for(
    near_answers: NearAnswers, retriever: Retriever
) -> None:
    def request(token_ids: list[int] | None, images: Any = None) -> Any:
        return SimpleNamespace(request_id="r", prompt_token_ids=token_ids, mm_features=images)

    assert near_answers.begin(request(None), "acme") is None
    assert near_answers.begin(request([1], images=["image"]), "acme") is None
    assert retriever.calls == []
    search_id = near_answers.begin(request([1, 2]), "acme")
    assert retriever.calls == [(search_id, "acme", [1, 2])]


def test_an_answer_to_the_whole_prompt_counts_before_those_to_its_clauses(
    near_answers: NearAnswers, retriever: Retriever
) -> None:
    assert near_answers.nearest("not yet found", "acme") == ("miss", None)
    retriever.found = {"none": [], "parts": [near(1), near(2)], "both": [near(2), near(0)]}
    found = [near_answers.nearest(name, "acme") for name in retriever.found]
    assert found == [("miss", None), ("clause", 0.9), ("semantic", 0.9)]
    assert near_answers._errors.counts() == {}


def test_what_is_of_another_namespace_is_refused_and_counted(
    near_answers: NearAnswers, retriever: Retriever
) -> None:
    retriever.found = {"s": [near(0)]}
    assert near_answers.nearest("s", "other") == ("miss", None)
    assert near_answers._errors.counts() == {"near answers": 1}


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


QUESTION = "What is the diagnosis of patient Smith, and how should the tumour be treated?"


class Asked:
    """One request of a client that asks for its information, and the engine behind it."""

    def __init__(self, front_end: FrontEnd, namespace: str, question: str) -> None:
        self._front_end, self._info = front_end, InfoCollector()
        # Each has the same id, as clients may choose it where vLLM adds nothing to theirs.
        kind = RequestOutputKind.FINAL_ONLY
        params = SamplingParams(temperature=1.0, detokenize=False, output_kind=kind)
        request = core_request("chatcmpl-7", params, tuple(question.encode()))
        queue = RequestOutputCollector(kind, request.request_id)
        policy = RequestPolicy(RequestControl(), namespace, info=self._info)
        assert not front_end.answer(request, None, queue, policy)
        front_end._processor.add_request(request, None, None, 0, queue)
        self.retrieval_id = read_hints(request.sampling_params).retrieval_id or ""

    def end(self) -> RequestInfo:
        """Have it generated; what its client is told."""
        output = EngineCoreOutput(
            request_id="chatcmpl-7", new_token_ids=[5], finish_reason=FinishReason.ABORT
        )
        self._front_end._processor.process_outputs([output])

        async def fetch(_: Sequence[str]) -> dict[str, Any]:
            return {}

        return asyncio.run(self._info.collect(fetch))


@pytest.fixture(scope="module")
def retrieval() -> Iterator[ProcessRetriever]:
    """A retrieval process that has answered one tenant's question."""
    retrieval = ProcessRetriever(RetrievalConfig(embedding_model="lexical"), for_front_end=True)
    retrieval.store(
        Answer.create(
            prompt_token_ids=[1], response_token_ids=[4], prompt_text=QUESTION, namespace="one"
        )
    )
    yield retrieval
    retrieval.close()


@pytest.fixture
def front_end(retrieval: ProcessRetriever, monkeypatch: pytest.MonkeyPatch) -> FrontEnd:
    submit = retrieval.submit

    def submit_text(name: str, *, namespace: str, prompt_token_ids: list[int]) -> None:
        submit(name, namespace=namespace, text=bytes(prompt_token_ids).decode())

    assert retrieval.flush(60)
    monkeypatch.setattr(retrieval, "submit", submit_text)
    processor = OutputProcessor(None, log_stats=False)
    return FrontEnd(vllm_config(), load_config({}), processor, retriever=retrieval)


@pytest.mark.slow
def test_a_request_of_the_same_id_is_told_nothing_that_was_found_for_another_tenants(
    retrieval: ProcessRetriever,
    front_end: FrontEnd,
    wait_until: Callable[..., None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What was found can be read for a while after its request is over."""
    one = Asked(front_end, "one", QUESTION)
    wait_until(lambda: retrieval.poll(one.retrieval_id) is not None)
    told = one.end()
    assert told.cache == ("semantic",)
    assert told.similarity == 1.0
    assert len(told.clauses) == 2
    with monkeypatch.context() as patched:
        patched.setattr(retrieval, "submit", lambda *_, **__: None)  # as where the queue is full
        told = Asked(front_end, "another", "hello").end()
    assert told == RequestInfo(told.cache, told.drafts, None, took_ms=told.took_ms)
    assert told.cache == ("miss",)
    assert front_end.figures.stats()["errors"] == {}


@pytest.mark.slow
def test_the_end_of_a_request_does_not_end_the_search_of_another_of_its_id(
    retrieval: ProcessRetriever, front_end: FrontEnd, wait_until: Callable[..., None]
) -> None:
    one = Asked(front_end, "one", QUESTION)
    wait_until(lambda: retrieval.poll(one.retrieval_id) is not None)
    one.end()
    another = Asked(front_end, "another", "Where is my order, and how do I cancel it?")
    retrieval.discard(one.retrieval_id)  # as the worker does, which hears of its end a step later
    wait_until(lambda: retrieval.poll(another.retrieval_id) is not None, 60)
    told = another.end()
    assert [clause.text for clause in told.clauses] == ["Where is my order", "how do I cancel it?"]
    assert told.cache == ("miss",)
