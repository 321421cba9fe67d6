"""What the front end tells the worker about a request: `SamplingParams.extra_args["reprise"]`."""

from typing import TYPE_CHECKING, Any

import msgspec

if TYPE_CHECKING:
    from vllm.sampling_params import SamplingParams

EXTRA_ARGS_KEY = "reprise"


class RequestHints(msgspec.Struct, frozen=True, omit_defaults=True):
    """Per-request settings, as the worker sees them."""

    namespace: str = ""
    """The wall that this request's answers stay behind."""

    drafts: bool = True
    """False: no drafts for this request."""

    max_draft: int | None = None
    """Most tokens to draft in a step; None: the engine's own bound."""

    store: bool = True
    """False: what this request is answered joins no cache."""

    info: bool = False
    """True: the front end will ask for this request's counts."""

    retrieval_id: str | None = None
    """Set where the front end has started retrieval: near answers wait under this id, and the
    front end stores the answer."""


def read_hints(params: "SamplingParams | None") -> RequestHints:
    """The hints in `params`; defaults where there are none or where they make no sense."""
    given = (params.extra_args or {}).get(EXTRA_ARGS_KEY) if params is not None else None
    if not isinstance(given, dict):
        return RequestHints()
    try:
        return msgspec.convert(given, RequestHints)
    except msgspec.ValidationError:
        return RequestHints(drafts=False, store=False)


def with_hints(params: "SamplingParams", hints: RequestHints) -> "SamplingParams":
    """A copy of `params` that carries `hints`; the caller's own object stays as it was."""
    copy = params.clone()
    extra_args: dict[str, Any] = dict(copy.extra_args or {})
    extra_args[EXTRA_ARGS_KEY] = msgspec.to_builtins(hints)
    copy.extra_args = extra_args
    return copy
