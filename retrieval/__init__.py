"""From a prompt to near answers. Imports neither vLLM nor the other folders."""

from .answer import Answer, AnswerUpdate
from .config import RetrievalConfig
from .exact_key import exact_key
from .near_answer import NearAnswer
from .retriever import RetrievalHealth, RetrievalStats, Retriever

__all__ = [
    "Answer",
    "AnswerUpdate",
    "NearAnswer",
    "RetrievalConfig",
    "RetrievalHealth",
    "RetrievalStats",
    "Retriever",
    "exact_key",
]
