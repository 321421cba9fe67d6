"""What is settled about a request before the engine sees it."""

from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import msgspec
from vllm.engine.protocol import StreamingInput
from vllm.sampling_params import SamplingParams
from vllm.v1.engine import EngineCoreRequest

from reprise.engine_ext.core.request_hints import RequestHints, with_hints
from reprise.engine_ext.request.exact_hits import is_greedy
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
    """One request's wishes and its wall."""

    control: RequestControl
    namespace: str
    """One of its own where nobody knows whose it is."""
    http_context: HttpRequestContext | None = None
    info: InfoCollector | None = None
    """Where the client wants to be told of this request."""
    cache_salt: str | None = None
    """What vLLM's prefix cache is to keep apart; None: as the request has it."""

    @property
    def shares(self) -> bool:
        """Whether the request may give to others of its namespace, and take from them."""
        return not is_private(self.namespace)


def resolve_policy(
    config: "RepriseConfig",
    prompt: Any,
    params: SamplingParams,
    info: InfoCollector | None,
    *,
    is_sole_tenant: bool,
) -> RequestPolicy:
    """The policy that the request's headers, arguments and the settings add up to.

    Args:
        config: the settings.
        prompt: as the engine client gets it.
        params: as the client asks.
        info: where the client wants to be told of this request.
        is_sole_tenant: whether what comes past an HTTP server is one tenant's.

    Raises:
        VLLMValidationError: the client asks of the cache what makes no sense.
    """
    http_context = current_http_context.get()
    control = parse_control(http_context.headers if http_context else {}, params.extra_args)
    clients = control.namespace if config.serving.client_namespaces else None
    isolation = resolve_isolation(config, prompt, clients=clients, is_sole_tenant=is_sole_tenant)
    namespace = isolation.namespace
    if namespace is None:
        namespace = private_namespace()
        control = msgspec.structs.replace(control, look_up=False, store=False)
    return RequestPolicy(control, namespace, http_context, info, isolation.cache_salt)


def resolve_isolation(
    config: "RepriseConfig", prompt: Any, *, clients: str | None = None, is_sole_tenant: bool
) -> Isolation:
    """The isolation of a request to the engine client; the log tells of what is nobody's."""
    http_context = current_http_context.get()
    if http_context is not None:
        tenant = http_context.tenant
        reason = (
            "a request came with none of the API keys that this server checks, or the server may "
            "tell clients apart by a middleware or by certificates"
        )
    else:
        tenant = SOLE_TENANT if is_sole_tenant else None
        reason = "a request came another way than through vLLM's HTTP server"
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


def with_policy(params: SamplingParams, policy: RequestPolicy) -> SamplingParams:
    """A copy of `params` that tells the worker what it has to know, and nothing else of ours."""
    control = policy.control
    # Verifying drafts draws random numbers: a seeded sample would no longer be the one that the
    # seed gives without drafts.
    keeps_its_draws = is_greedy(params) or params.seed is None
    hinted = with_hints(
        params,
        RequestHints(
            namespace=policy.namespace if policy.shares else None,
            drafts=control.drafts and keeps_its_draws,
            max_draft=control.max_draft,
            store=control.store,
            info=policy.info is not None,
        ),
    )
    hinted.extra_args = without_control(hinted.extra_args)
    hinted.skip_clone = True
    return hinted


def with_cache_salt(prompt: Any, policy: RequestPolicy, params: SamplingParams) -> Any:
    """The prompt with the policy's cache salt: the time of a prefill must not tell what another
    tenant has asked, whatever salts the two give."""
    if isinstance(prompt, EngineCoreRequest):
        prompt.sampling_params = params
        prompt.cache_salt = policy.cache_salt or prompt.cache_salt
    elif isinstance(prompt, dict) and policy.cache_salt:
        return {**prompt, "cache_salt": policy.cache_salt}
    elif isinstance(prompt, AsyncGenerator):
        return _each_with_cache_salt(prompt, policy)
    return prompt


async def _each_with_cache_salt(
    inputs: AsyncGenerator[StreamingInput, None], policy: RequestPolicy
) -> AsyncGenerator[StreamingInput, None]:
    async with aclosing(inputs):
        async for part in inputs:
            own = part.sampling_params
            params = with_policy(own, policy) if isinstance(own, SamplingParams) else own
            prompt: Any = part.prompt
            if isinstance(prompt, dict) and policy.cache_salt:
                prompt = {**prompt, "cache_salt": policy.cache_salt}
            yield StreamingInput(prompt=prompt, sampling_params=params)


def fully_isolated(prompt: Any, params: SamplingParams) -> tuple[Any, SamplingParams]:
    """Prompt and params of a request whose policy could not be made: it shares nothing with any
    other, neither answers nor prefixes."""
    control = RequestControl(look_up=False, store=False, drafts=False)
    policy = RequestPolicy(control, private_namespace(), cache_salt=f"alone-{uuid4().hex}")
    hinted = with_hints(params, RequestHints(drafts=False, store=False))
    return with_cache_salt(prompt, policy, hinted), hinted
