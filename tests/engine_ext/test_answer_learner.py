"""What finished requests wait in is bounded by their tokens, not just by their number."""

import threading

import numpy as np

from reprise.engine_ext.answer_learner import AnswerLearner, FinishedRequest
from reprise.engine_ext.swallowed import SwallowedErrors
from reprise.retrieval import Answer, RetrievalConfig
from reprise.retrieval.embedding import Embedder
from reprise.retrieval.local_retriever import LocalRetriever
from reprise.retrieval.token_overlap import TokenOverlap
from reprise.spec.provider import DraftProvider


class HeldUp(LocalRetriever):
    """Takes no answer until it is told to."""

    def __init__(self) -> None:
        self.goes_on = threading.Event()
        config = RetrievalConfig(embedding_model="lexical", clauses=False)
        super().__init__(config, embedder=Embedder("lexical"))

    def store(self, answer: Answer) -> None:
        self.goes_on.wait(60)
        super().store(answer)


def test_long_requests_are_refused_before_they_fill_the_memory() -> None:
    retriever, errors = HeldUp(), SwallowedErrors()
    learner = AnswerLearner(DraftProvider(), retriever, TokenOverlap(), errors=errors)
    prompt = np.zeros(131_072, np.int32)
    for number in range(100):
        answer = np.full(10, number, np.int32)
        learner.learn(FinishedRequest("", "", "", prompt, answer))
    # Fifteen fit two million tokens; one of them is on its way, and still counts.
    assert sum(errors.counts().values()) == 85
    retriever.goes_on.set()
    assert learner.flush(60)
    assert retriever.stats().answers == 15
    learner.learn(FinishedRequest("", "", "", prompt, np.ones(3, np.int32)))
    assert learner.flush(60)
    assert retriever.stats().answers == 16
    retriever.close()
