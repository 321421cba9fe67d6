"""The configuration of pinned prefixes."""

import json
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field


def _listed(given: Any) -> Any:
    """Read a list from an environment variable: a JSON list, or one text."""
    if not isinstance(given, str):
        return given
    return json.loads(given) if given.startswith("[") else [given]


class KvPinsConfig(BaseModel):
    """Prefixes whose KV blocks are evicted from the prefix cache last."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    enabled: bool = False
    """Whether prefixes are pinned."""

    max_share: Annotated[float, Field(gt=0, le=0.9)] = 0.2
    """Upper bound on pinned blocks, as a share of all KV blocks."""

    system_role: bool = True
    """Whether what the chat template makes of a chat's leading `system` and `developer` messages,
    with the tools, is pinned from the first request on."""

    shared_by: Annotated[int, Field(ge=0)] = 3
    """Requests of one namespace that must have begun alike for their common prefix to be pinned;
    0: never."""

    prefixes: Annotated[tuple[str, ...], BeforeValidator(_listed)] = ()
    """Prefixes that are computed and pinned when the server starts, for requests without a tenant
    or of the namespace that the operator has set: each is a text, or `@` and the path of a file
    with a text, or with token ids as a JSON list. In an environment variable: a JSON
    list of these, or one of them."""
