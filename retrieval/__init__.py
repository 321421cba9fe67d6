"""From a prompt to near answers. Imports neither vLLM nor the other folders."""

from reprise.retrieval.api.answer import Answer, AnswerUpdate
from reprise.retrieval.api.config import RetrievalConfig
from reprise.retrieval.api.near_answer import NearAnswer
from reprise.retrieval.api.retriever import RetrievalHealth, RetrievalStats, Retriever

__all__ = [
    "Answer",
    "AnswerUpdate",
    "NearAnswer",
    "RetrievalConfig",
    "RetrievalHealth",
    "RetrievalStats",
    "Retriever",
]
