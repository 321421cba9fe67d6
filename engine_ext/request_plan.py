"""What is settled about a request before the engine sees it."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import msgspec
from vllm.sampling_params import SamplingParams
from vllm.v1.engine import EngineCoreRequest

from reprise.engine_ext.exact_hits import is_greedy
from reprise.engine_ext.http_exchange import HttpExchange, current_exchange
from reprise.engine_ext.request_control import (
    RequestControl,
    namespace_of,
    parse_control,
    without_control,
)
from reprise.engine_ext.request_hints import RequestHints, with_hints
from reprise.engine_ext.request_info import InfoCollector

if TYPE_CHECKING:
    from reprise.engine_ext.config import RepriseConfig


class RequestPlan(msgspec.Struct, frozen=True):
    """One request's wishes and its wall."""

    control: RequestControl
    namespace: str
    exchange: HttpExchange | None = None
    info: InfoCollector | None = None
    """Where the client wants to be told of this request."""


def settle(
    config: "RepriseConfig", prompt: Any, params: SamplingParams, info: InfoCollector | None
) -> RequestPlan:
    """The plan that the request's headers, arguments and the settings add up to.

    Raises:
        VLLMValidationError: the client asks of the cache what makes no sense.
    """
    exchange = current_exchange.get()
    control = parse_control(exchange.headers if exchange else {}, params.extra_args)
    if isinstance(prompt, Mapping):
        cache_salt = prompt.get("cache_salt")
    else:
        cache_salt = getattr(prompt, "cache_salt", None)
    namespace = namespace_of(
        operators=config.namespace,
        clients=control.namespace,
        client_namespaces=config.serving.client_namespaces,
        api_key=exchange.api_key if exchange else None,
        cache_salt=cache_salt,
    )
    return RequestPlan(control, namespace, exchange, info)


def with_plan(params: SamplingParams, plan: RequestPlan) -> SamplingParams:
    """A copy of `params` that tells the worker what it has to know, and nothing else of ours."""
    control = plan.control
    # Verifying drafts draws random numbers: a seeded sample would no longer be the one that the
    # seed gives without drafts.
    keeps_its_draws = is_greedy(params) or params.seed is None
    hinted = with_hints(
        params,
        RequestHints(
            namespace=plan.namespace,
            drafts=control.drafts and keeps_its_draws,
            max_draft=control.max_draft,
            store=control.store,
            info=plan.info is not None,
        ),
    )
    hinted.extra_args = without_control(hinted.extra_args)
    hinted.skip_clone = True
    return hinted


def behind_wall(prompt: Any, namespace: str, params: SamplingParams) -> Any:
    """The prompt with the namespace as its cache salt, where it has none: the time of a prefill
    must not tell what another namespace has asked."""
    if isinstance(prompt, EngineCoreRequest):
        prompt.sampling_params = params
        prompt.cache_salt = prompt.cache_salt or namespace or None
    elif isinstance(prompt, dict) and namespace and not prompt.get("cache_salt"):
        return {**prompt, "cache_salt": namespace}
    return prompt


def alone(prompt: Any, params: SamplingParams) -> tuple[Any, SamplingParams]:
    """Prompt and params of a request whose plan could not be made: it shares nothing with any
    other, neither answers nor prefixes."""
    hinted = with_hints(params, RequestHints(drafts=False, store=False))
    return behind_wall(prompt, f"alone-{uuid4().hex}", hinted), hinted
