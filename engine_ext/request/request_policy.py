"""Resolves, before the engine sees a request, what it may share and what it asks of the cache."""

from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import aclosing
from functools import partial
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import msgspec
from vllm.engine.protocol import StreamingInput
from vllm.sampling_params import SamplingParams
from vllm.v1.engine import EngineCoreRequest

from reprise.engine_ext.core.request_hints import RequestHints, with_hints
from reprise.engine_ext.request.http_context import HttpRequestContext, current_http_context
from reprise.engine_ext.request.request_control import (
    RequestControl,
    parse_control,
    without_control,
)
from reprise.engine_ext.request.request_info import InfoCollector
from reprise.engine_ext.request.tenants import (
    SOLE_TENANT,
    Isolation,
    is_private,
    isolation_of,
    private_namespace,
    warn_of_private_requests,
)

if TYPE_CHECKING:
    from reprise.engine_ext.core.config import RepriseConfig


class RequestPolicy(msgspec.Struct, frozen=True):
    """What one request asks of the cache, and its isolation from other tenants."""

    control: RequestControl
    namespace: str
    """One of its own where its tenant is unknown."""
    http_context: HttpRequestContext | None = None
    info: InfoCollector | None = None
    """Set where the client asks for information on this request."""
    cache_salt: str | None = None
    """For vLLM's prefix cache; None: as the request has it."""
    streams_input: bool = False
    """Whether its prompt comes in pieces, each of which the engine gets as a request of this id."""
    isolation_of: Callable[[Any], Isolation] | None = None
    """Returns the isolation of a piece that has a `cache_salt` of its own."""

    @property
    def shares(self) -> bool:
        """Whether the request may share answers with others of its namespace."""
        return not is_private(self.namespace)


def resolve_policy(
    config: "RepriseConfig",
    prompt: Any,
    params: SamplingParams,
    info: InfoCollector | None,
    *,
    is_sole_tenant: bool,
) -> RequestPolicy:
    """Return the policy that follows from the request's headers and arguments and the settings.

    Args:
        config: the settings.
        prompt: as the engine client gets it.
        params: as the client asks.
        info: set where the client asks for information on this request.
        is_sole_tenant: whether requests that bypass an HTTP server belong to one tenant.

    Raises:
        VLLMValidationError: the client sends an invalid header or argument.
    """
    http_context = current_http_context.get()
    control = parse_control(http_context.headers if http_context else {}, params.extra_args)
    clients = control.namespace if config.serving.client_namespaces else None
    isolate = partial(resolve_isolation, config, clients=clients, is_sole_tenant=is_sole_tenant)
    isolation = isolate(prompt)
    namespace = isolation.namespace
    if namespace is None:
        namespace = private_namespace()
        control = msgspec.structs.replace(control, look_up=False, store=False)
    elif info is not None:
        info.namespace = namespace
    return RequestPolicy(
        control,
        namespace,
        http_context,
        info,
        isolation.cache_salt,
        streams_input=isinstance(prompt, AsyncGenerator),
        isolation_of=isolate,
    )


def resolve_isolation(
    config: "RepriseConfig", prompt: Any, *, clients: str | None = None, is_sole_tenant: bool
) -> Isolation:
    """Return the isolation of a request to the engine client; log if its tenant is unknown."""
    http_context = current_http_context.get()
    if http_context is not None:
        tenant = http_context.tenant
        reason = (
            "a request has none of the API keys that this server checks, or the server may "
            "distinguish clients by a middleware or by certificates"
        )
    else:
        tenant = SOLE_TENANT if is_sole_tenant else None
        reason = "a request did not come through vLLM's HTTP server"
    isolation = isolation_of(
        operators=config.namespace, clients=clients, tenant=tenant, cache_salt=_cache_salt(prompt)
    )
    if isolation.namespace is None:
        warn_of_private_requests(reason)
    return isolation


def _cache_salt(prompt: Any) -> Any:
    if isinstance(prompt, Mapping):
        return prompt.get("cache_salt")
    return getattr(prompt, "cache_salt", None)


def with_policy(
    params: SamplingParams, policy: RequestPolicy, *, num_system_tokens: int = 0
) -> SamplingParams:
    """Return a copy of `params` that carries hints for the engine, and nothing else of ours.

    Args:
        params: as the client asks.
        policy: of the request.
        num_system_tokens: leading tokens of its prompt that come from the chat's `system` role.
    """
    control = policy.control
    has_asked = control.pin_tokens is not None
    hinted = with_hints(
        params,
        RequestHints(
            namespace=policy.namespace if policy.shares else None,
            drafts=control.drafts,
            max_draft=control.max_draft,
            store=control.store,
            counts_nonce=policy.info.nonce if policy.info is not None else None,
            record=control.record and policy.info is not None and policy.shares,
            pins=control.pin_tokens != 0,
            pin_tokens=control.pin_tokens or num_system_tokens,
            pin_origin="request" if has_asked else "system",
        ),
    )
    hinted.extra_args = without_control(hinted.extra_args)
    hinted.skip_clone = True
    return hinted


def with_cache_salt(prompt: Any, policy: RequestPolicy, params: SamplingParams) -> Any:
    """Return the prompt with the policy's cache salt.

    The time of a prefill must not reveal what another tenant has asked, whatever salts the two
    give."""
    if isinstance(prompt, EngineCoreRequest):
        prompt.sampling_params = params
        prompt.cache_salt = policy.cache_salt or prompt.cache_salt
    elif isinstance(prompt, AsyncGenerator):
        return _each_with_cache_salt(prompt, policy, params)
    elif policy.cache_salt:
        return _salted(prompt, policy.cache_salt)
    return prompt


def _salted(prompt: Any, cache_salt: str) -> Any:
    """Return a prompt with a salt, for which text and token ids have no room as they are."""
    if isinstance(prompt, str):
        prompt = {"prompt": prompt}
    elif isinstance(prompt, list):
        prompt = {"prompt_token_ids": prompt}
    return {**prompt, "cache_salt": cache_salt} if isinstance(prompt, dict) else prompt


async def _each_with_cache_salt(
    inputs: AsyncGenerator[StreamingInput, None], policy: RequestPolicy, params: SamplingParams
) -> AsyncGenerator[StreamingInput, None]:
    async with aclosing(inputs):
        async for part in inputs:
            own, of_part = part.sampling_params, _policy_of_part(policy, part.prompt)
            if of_part is not policy:
                own = own or params
            own = with_policy(own, of_part) if isinstance(own, SamplingParams) else own
            prompt: Any = part.prompt
            if of_part.cache_salt:
                prompt = _salted(prompt, of_part.cache_salt)
            yield StreamingInput(prompt=prompt, sampling_params=own)


def _policy_of_part(policy: RequestPolicy, prompt: Any) -> RequestPolicy:
    """Return the policy of a piece of streamed input, which may have a salt of its own."""
    if policy.isolation_of is None or _cache_salt(prompt) is None:
        return policy
    isolation = policy.isolation_of(prompt)
    namespace = isolation.namespace
    if policy.info is not None:
        policy.info.namespace = namespace
    if namespace is None:
        namespace = private_namespace()
    return msgspec.structs.replace(policy, namespace=namespace, cache_salt=isolation.cache_salt)


def fully_isolated(prompt: Any, params: SamplingParams) -> tuple[Any, SamplingParams]:
    """Return prompt and params of a request whose policy could not be resolved.

    It shares nothing with any other request, neither answers nor prefixes."""
    control = RequestControl(look_up=False, store=False, drafts=False)
    policy = RequestPolicy(control, private_namespace(), cache_salt=f"alone-{uuid4().hex}")
    hinted = with_hints(params, RequestHints(drafts=False, store=False))
    return with_cache_salt(prompt, policy, hinted), hinted
