"""Passes hints about a request to the worker, in `SamplingParams.extra_args["reprise"]`.

Hints are bytes there. Clients reach `extra_args` too (`vllm_xargs`, the sampling params of
`/inference/v1/generate`), but with what JSON can say, which is no bytes: so no client can forge
them, and whatever else stands under the key counts for nothing.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

import msgspec

if TYPE_CHECKING:
    from vllm.sampling_params import SamplingParams

EXTRA_ARGS_KEY = "reprise"
_SYSTEM_TOKENS_KEY = "_reprise_num_system_tokens"


class RequestHints(msgspec.Struct, frozen=True, omit_defaults=True):
    """Per-request settings, as the worker sees them."""

    namespace: str | None = None
    """The namespace that this request shares answers in; None: its tenant is unknown, and it
    shares nothing."""

    drafts: bool = True
    """False: no drafts for this request."""

    max_draft: int | None = None
    """Maximum of tokens to draft in a step; None: the engine's own bound."""

    store: bool = True
    """False: the answer to this request is stored in no cache."""

    counts_nonce: str | None = None
    """Set where the front end will fetch this request's counts: they wait under this and its id,
    which other requests may have as well."""

    record: bool = False
    """True: this request's steps are recorded, and will be fetched with its counts."""

    pins: bool = True
    """False: nothing of this request is pinned, nor counted towards that."""

    pin_tokens: int = 0
    """How many leading tokens of the prompt are a prefix to be pinned."""

    pin_origin: Literal["system", "request", "operator"] = "system"
    """Who says so: the chat template's `system` role, the client, or the operator."""

    retrieval_id: str | None = None
    """Set where the front end has started retrieval: near answers wait under this id, and the
    front end stores the answer."""

    def __post_init__(self) -> None:
        if self.record and self.counts_nonce is None:
            raise ValueError("steps are recorded that nobody fetches: counts_nonce is missing")


_decoder = msgspec.msgpack.Decoder(RequestHints)
_encode = msgspec.msgpack.Encoder().encode


def read_hints(params: "SamplingParams | None") -> RequestHints:
    """Return the hints in `params`; without any, those of a request of an unknown tenant."""
    encoded = _encoded_hints(params)
    if encoded is None:
        return RequestHints()
    try:
        return _decoder.decode(encoded)
    except msgspec.MsgspecError:
        return RequestHints(drafts=False, store=False)


def has_hints(params: "SamplingParams | None") -> bool:
    """Return whether `params` carry hints that no client can have forged."""
    return _encoded_hints(params) is not None


def _encoded_hints(params: "SamplingParams | None") -> bytes | None:
    given = (params.extra_args or {}).get(EXTRA_ARGS_KEY) if params is not None else None
    return given if isinstance(given, bytes) else None


def with_hints(params: "SamplingParams", hints: RequestHints) -> "SamplingParams":
    """Return a copy of `params` that carries `hints`; the caller's own object is not changed."""
    copy = params.clone()
    attach_hints(copy, hints)
    return copy


def attach_hints(params: "SamplingParams", hints: RequestHints) -> None:
    """Put `hints` into `params`, in place of any that are there."""
    # A new dictionary: clones may share theirs.
    extra_args: dict[str, Any] = dict(params.extra_args or {})
    extra_args[EXTRA_ARGS_KEY] = _encode(hints)
    params.extra_args = extra_args


def set_num_system_tokens(prompt: dict[str, Any], num_tokens: int) -> None:
    """Note in a prompt, as vLLM's renderer returns it, how many of its leading tokens come from the
    chat's `system` role."""
    prompt[_SYSTEM_TOKENS_KEY] = num_tokens


def num_system_tokens(prompt: Any) -> int:
    """Return what was noted; 0: nothing."""
    return int(prompt.get(_SYSTEM_TOKENS_KEY, 0)) if isinstance(prompt, Mapping) else 0
