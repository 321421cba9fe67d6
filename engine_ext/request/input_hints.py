"""Hints for requests that did not pass our front end: attached where vLLM processes its inputs.

That is where `vllm.LLM` is used, and where vLLM's front end is not one that we know. An `LLMEngine`
belongs to the program that has built it: its requests are one tenant's, but for their salts. Of an
`AsyncLLM` that is not ours nobody knows whom it serves: without a salt a request stays private.

The hooks of `Feature.TENANTS`, in front ends.
"""

from collections.abc import Callable
from typing import Any

from reprise.engine_ext.compat.engine_state import mark_of, set_mark
from reprise.engine_ext.core.config import engine_config
from reprise.engine_ext.core.identity import uses_our_proposer
from reprise.engine_ext.core.request_hints import (
    RequestHints,
    attach_hints,
    has_hints,
    num_system_tokens,
)
from reprise.engine_ext.request.tenants import SOLE_TENANT, isolation_of, warn_of_private_requests

_TENANT = "tenant"
_HAS_WARNED = "has_warned"


def process_inputs(original: Callable[..., Any], processor: Any, *args: Any, **kwargs: Any) -> Any:
    """Attach hints to a request that has none."""
    request = original(processor, *args, **kwargs)
    params = request.sampling_params
    if params is None or has_hints(params) or not uses_our_proposer(processor.vllm_config):
        return request
    tenant = mark_of(processor, _TENANT)
    namespace = isolation_of(tenant=tenant, cache_salt=request.cache_salt).namespace
    prompt = args[1] if len(args) > 1 else kwargs.get("prompt")
    pin_tokens = num_system_tokens(prompt)
    attach_hints(params, RequestHints(namespace=namespace, pin_tokens=pin_tokens))
    if namespace is None:
        _warn_of_private_requests(processor)
    return request


def init_llm_engine(original: Callable[..., None], engine: Any, *args: Any, **kwargs: Any) -> None:
    """Note that all requests of an `LLMEngine` are one tenant's."""
    original(engine, *args, **kwargs)
    set_mark(engine.input_processor, _TENANT, SOLE_TENANT)


def _warn_of_private_requests(processor: Any) -> None:
    if mark_of(processor, _HAS_WARNED, False):
        return
    set_mark(processor, _HAS_WARNED, True)
    if engine_config(processor.vllm_config).namespace is None:
        warn_of_private_requests("this engine client is none that Reprise knows")
