"""Cached answers of similar prompts, drafted for speculative decoding, verified by the model.

The names below are imported when they are asked for: `import reprise` alone costs nothing.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from reprise.engine_ext.async_llm import EnhancedAsyncLLM, create_enhanced_system
    from reprise.engine_ext.core.config import RepriseConfig
    from reprise.engine_ext.instances import cleanup_all, get_instance_stats
    from reprise.retrieval.api.answer import Answer
    from reprise.retrieval.api.config import RetrievalConfig
    from reprise.retrieval.api.retriever import Retriever
    from reprise.spec.provider import DraftProvider

__version__ = "0.1.0"
__all__ = [
    "Answer",
    "DraftProvider",
    "EnhancedAsyncLLM",
    "RepriseConfig",
    "RetrievalConfig",
    "Retriever",
    "cleanup_all",
    "create_enhanced_system",
    "get_instance_stats",
]
_HOMES = {
    "Answer": "reprise.retrieval.api.answer",
    "DraftProvider": "reprise.spec.provider",
    "EnhancedAsyncLLM": "reprise.engine_ext.async_llm",
    "RepriseConfig": "reprise.engine_ext.core.config",
    "RetrievalConfig": "reprise.retrieval.api.config",
    "Retriever": "reprise.retrieval.api.retriever",
    "cleanup_all": "reprise.engine_ext.instances",
    "create_enhanced_system": "reprise.engine_ext.async_llm",
    "get_instance_stats": "reprise.engine_ext.instances",
}


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(home), name)
