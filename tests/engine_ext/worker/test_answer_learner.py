"""What finished requests wait in is bounded, and what a worker has learned it also forgets: no
trace of a removed answer in any of its stores."""

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import pytest

from reprise.engine_ext.core.error_counter import ErrorCounter
from reprise.engine_ext.worker.answer_learner import AnswerLearner, FinishedRequest
from reprise.retrieval import Answer
from reprise.retrieval.api.config import RetrievalConfig
from reprise.retrieval.api.invalidation import Invalidation
from reprise.retrieval.host.steady_clock import now_s
from reprise.retrieval.in_process.local_retriever import LocalRetriever
from reprise.retrieval.search.embedding import Embedder
from reprise.retrieval.search.token_overlap import TokenOverlap
from reprise.spec.provider import DraftProvider

# In no order: memory that nobody has written to may hold what other tests count through.
PROMPT, RESPONSE = np.random.default_rng(4711).integers(50_000, 65_000, (2, 40)).tolist()
NEEDLES = [
    np.array(tokens[10:16], dtype).tobytes()
    for tokens in (PROMPT, RESPONSE)
    for dtype in ("<i4", "<i8", "<u2")
]


def contents(root: object) -> Iterator[bytes]:
    """The bytes of every array, text and bytes that can be reached through attributes."""
    seen: set[int] = set()
    waiting: deque[object] = deque([root])
    while waiting:
        item = waiting.popleft()
        if id(item) in seen or isinstance(item, type | Callable):  # type: ignore[arg-type]
            continue
        seen.add(id(item))
        if isinstance(item, np.ndarray):
            if item.dtype != object:
                # Most are empty at their end, where nothing need be looked for.
                yield np.ascontiguousarray(item).tobytes().rstrip(b"\0") + bytes(8)
        elif isinstance(item, bytes | bytearray):
            yield bytes(item)
        elif isinstance(item, str):
            yield item.encode()
        elif isinstance(item, Mapping):
            waiting.extend([*item.keys(), *item.values()])
        elif isinstance(item, list | tuple | set | frozenset | deque):
            waiting.extend(item)
        else:
            names = {*getattr(item, "__dict__", ()), *slots_of(item)}
            waiting.extend(getattr(item, name) for name in names if hasattr(item, name))


def slots_of(item: object) -> Iterator[str]:
    for kind in type(item).__mro__:
        slots = getattr(kind, "__slots__", ())
        yield from [slots] if isinstance(slots, str) else slots


def holds_secret(*roots: object) -> bool:
    return any(needle in data for root in roots for data in contents(root) for needle in NEEDLES)


def test_no_trace_of_a_removed_answer_is_left() -> None:
    provider, overlap, errors = DraftProvider(), TokenOverlap(), ErrorCounter()
    config = RetrievalConfig(embedding_model="lexical", clauses=False)
    retriever = LocalRetriever(
        config, embedder=Embedder("lexical"), decode=lambda ids: " ".join(map(str, ids))
    )
    learner = AnswerLearner(provider, retriever, overlap, vocabulary_size=1 << 17, errors=errors)

    def learn(namespace: str, prompt: list[int], response: list[int]) -> None:
        learner.learn(FinishedRequest(namespace, "m", "", prompt, response, 0.0))

    try:
        learn("person", PROMPT, RESPONSE)
        for number in range(300):
            learn("other", [number, 7, 8], [number] * 50)
            learn("person", [number, 7, 8], [number] * 50)
        assert learner.flush(60)
        stores = (provider, overlap, retriever)
        assert [holds_secret(store) for store in stores] == [True] * 3
        answer_id = overlap.search("person", PROMPT, count=1)[0].answer_id
        gone = retriever.forget(Invalidation.create(answer_id=answer_id), timeout_s=10).removed
        assert gone == (("person", answer_id),)
        assert learner.flush(60)
        deadline_s = time.monotonic() + 60
        while holds_secret(*stores):
            assert time.monotonic() < deadline_s, [holds_secret(store) for store in stores]
            time.sleep(0.05)
        assert len(overlap) == 600
        assert retriever.stats().answers == 600
        assert errors.counts() == {}
    finally:
        retriever.close()


@pytest.mark.parametrize("root", [{"a": [np.array(PROMPT, np.int32)]}, (np.array(RESPONSE),)])
def test_what_is_there_is_found(root: Any) -> None:
    assert holds_secret(root)


class HeldUp(LocalRetriever):
    """Takes no answer until it is told to."""

    def __init__(self) -> None:
        self.goes_on = threading.Event()
        config = RetrievalConfig(embedding_model="lexical", clauses=False)
        super().__init__(config, embedder=Embedder("lexical"))

    def store(self, answer: Answer) -> None:
        self.goes_on.wait(60)
        super().store(answer)


def test_what_the_model_cannot_look_up_joins_no_corpus() -> None:
    retriever, errors, overlap = HeldUp(), ErrorCounter(), TokenOverlap()
    retriever.goes_on.set()
    provider = DraftProvider()
    learner = AnswerLearner(provider, retriever, overlap, vocabulary_size=100, errors=errors)
    for number, token_ids in enumerate(([99], [100], [7, 2**31 - 2], [0])):
        learner.learn(FinishedRequest("n", "", "", [number], token_ids * 9, now_s()))
    assert learner.flush(60)
    assert (len(overlap), provider.stats().answers) == (2, 2)
    assert errors.counts() == {"learn": 2}
    retriever.close()


def test_long_requests_are_refused_before_they_fill_the_memory() -> None:
    retriever, errors = HeldUp(), ErrorCounter()
    learner = AnswerLearner(
        DraftProvider(), retriever, TokenOverlap(), vocabulary_size=1 << 17, errors=errors
    )
    prompt = np.zeros(131_072, np.int32)
    for number in range(100):
        answer = np.full(10, number, np.int32)
        learner.learn(FinishedRequest("", "", "", prompt, answer, 0.0))
    # Fifteen fit two million tokens; one of them is on its way, and still counts.
    assert sum(errors.counts().values()) == 85
    retriever.goes_on.set()
    assert learner.flush(60)
    assert retriever.stats().answers == 15
    learner.learn(FinishedRequest("", "", "", prompt, np.ones(3, np.int32), 0.0))
    assert learner.flush(60)
    assert retriever.stats().answers == 16
    retriever.close()


def test_what_is_to_be_forgotten_before_it_is_learned_is_not_kept() -> None:
    retriever, errors = HeldUp(), ErrorCounter()
    learner = AnswerLearner(
        DraftProvider(), retriever, TokenOverlap(), vocabulary_size=1 << 17, errors=errors
    )
    try:
        for number in range(2):  # the second one waits for the first one
            learner.learn(FinishedRequest("person", "", "", [number], [number] * 9, now_s()))
        assert retriever.forget(Invalidation.create(namespace="person"), timeout_s=10).done
        learner.learn(FinishedRequest("person", "", "", [2], [2] * 9, now_s()))
        retriever.goes_on.set()
        assert learner.flush(60)
        assert [each.prompt_token_ids.tolist() for each in retriever.answers()] == [[2]]
        assert errors.counts() == {}
    finally:
        retriever.goes_on.set()
        retriever.close()
