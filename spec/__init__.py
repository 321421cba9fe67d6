"""From token sources to drafts: index, mixing, draft length, the request life cycle."""

from .config import DraftConfig
from .near_answer import NearAnswer
from .provider import DraftProvider
from .stats import ProviderStats, RequestStats, SourceStats

__all__ = [
    "DraftConfig",
    "DraftProvider",
    "NearAnswer",
    "ProviderStats",
    "RequestStats",
    "SourceStats",
]
