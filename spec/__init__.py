"""Make drafts from token sources: index, mixture, draft length, the request life cycle.

`DraftProvider` is imported when it is asked for: it draws in numba, and a worker that is forked
from a process with llvmlite in it does not start (vLLM's scan for kernels trips over it).
"""

from typing import TYPE_CHECKING, Any

from reprise.spec.api.config import DraftConfig, DraftSettings
from reprise.spec.api.near_answer import NearAnswer
from reprise.spec.api.stats import ProviderStats, RequestStats, SourceStats

if TYPE_CHECKING:
    from reprise.spec.provider import DraftProvider

__all__ = [
    "DraftConfig",
    "DraftProvider",
    "DraftSettings",
    "NearAnswer",
    "ProviderStats",
    "RequestStats",
    "SourceStats",
]


def __getattr__(name: str) -> Any:
    if name != "DraftProvider":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from reprise.spec.provider import DraftProvider

    return DraftProvider
