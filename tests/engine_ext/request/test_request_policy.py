"""What is settled about a request before the engine sees it: whose it is, and what follows."""

from collections.abc import AsyncGenerator, Iterator
from typing import Any

import pytest
from vllm.engine.protocol import StreamingInput
from vllm.renderers.inputs.preprocess import parse_dec_only_prompt
from vllm.sampling_params import SamplingParams
from vllm.v1.engine import EngineCoreRequest

from reprise.engine_ext.core.config import load_config
from reprise.engine_ext.core.request_hints import EXTRA_ARGS_KEY, RequestHints, read_hints
from reprise.engine_ext.request import tenants
from reprise.engine_ext.request.http_context import HttpRequestContext, current_http_context
from reprise.engine_ext.request.request_info import InfoCollector
from reprise.engine_ext.request.request_policy import (
    RequestPolicy,
    fully_isolated,
    resolve_policy,
    with_cache_salt,
    with_policy,
)
from reprise.engine_ext.request.tenants import (
    SOLE_TENANT,
    ServerTenants,
    is_private,
    key_namespace,
    namespace_of_request,
)
from reprise.spec.predictor.weights import salt_of
from reprise.tests.engine_ext.front_ends import core_request

KEYED = ServerTenants(["a", "b"])
KEYLESS = ServerTenants()
NOT_SEEN = ServerTenants(others_check=True)


@pytest.fixture(autouse=True)
def _nothing_warned_of(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(tenants, "_warned", set())
    token = current_http_context.set(None)
    yield
    current_http_context.reset(token)


def policy_of(
    server: ServerTenants | None = None,
    authorization: str | None = None,
    *,
    salt: str | None = None,
    is_sole_tenant: bool = False,
    headers: dict[str, str] | None = None,
    params: SamplingParams | None = None,
    info: InfoCollector | None = None,
    **settings: Any,
) -> RequestPolicy:
    """The policy of a request to a server; without one, past it."""
    if server is not None:
        current_http_context.set(HttpRequestContext(headers or {}, server.tenant_of(authorization)))
    prompt = {"prompt_token_ids": [1], **({"cache_salt": salt} if salt else {})}
    return resolve_policy(
        load_config(settings),
        prompt,
        params or SamplingParams(),
        info,
        is_sole_tenant=is_sole_tenant,
    )


@pytest.mark.parametrize(
    ("server", "authorization", "salt", "namespace"),
    [
        (KEYED, "Bearer a", None, key_namespace("a")),
        (KEYED, "Bearer a", "s", key_namespace("a") + ".salt-s"),
        (KEYED, "Bearer c", None, None),
        (KEYED, None, None, None),
        (KEYED, None, "s", "salt-s"),
        (KEYLESS, "Bearer a", None, SOLE_TENANT),
        (KEYLESS, None, "s", "salt-s"),
        (NOT_SEEN, "Bearer a", None, None),
        (NOT_SEEN, "Bearer a", "s", "salt-s"),
        (None, None, None, None),
        (None, None, "s", "salt-s"),
    ],
)
def test_whose_a_request_is(
    server: ServerTenants | None,
    authorization: str | None,
    salt: str | None,
    namespace: str | None,
) -> None:
    policy = policy_of(server, authorization, salt=salt)
    hints = read_hints(with_policy(SamplingParams(), policy))
    assert hints.namespace == namespace
    if namespace is None:
        assert is_private(policy.namespace)
        assert not policy.shares
        assert (policy.control.look_up, policy.control.store, hints.store) == (False, False, False)
        assert policy.cache_salt is None
    else:
        assert policy.namespace == namespace
        assert policy.shares
        assert policy.control.look_up
    # Whatever the server is like, the operator's word puts everything into one.
    assert policy_of(server, authorization, salt=salt, namespace="all").namespace == "all"


def test_a_program_may_say_that_its_requests_are_one_tenants() -> None:
    assert policy_of(is_sole_tenant=True).namespace == SOLE_TENANT
    assert policy_of(is_sole_tenant=True, salt="s").namespace == "salt-s"
    # What comes through a server with keys all the same has its key's.
    assert policy_of(KEYED, "Bearer a", is_sole_tenant=True).namespace == key_namespace("a")
    assert not policy_of(KEYED, "Bearer c", is_sole_tenant=True).shares


def test_a_client_names_its_namespace_only_where_the_operator_allows_it() -> None:
    named = {"headers": {"x-reprise-namespace": "mine"}}
    assert policy_of(KEYED, "Bearer a", **named).namespace == key_namespace("a")
    allowed = {"serving": {"client_namespaces": True}}
    assert policy_of(KEYED, "Bearer a", **named, **allowed).namespace == "mine"
    assert policy_of(KEYED, "Bearer a", **named, **allowed, namespace="all").namespace == "all"
    xargs = SamplingParams(extra_args={"reprise_namespace": "theirs"})
    assert policy_of(KEYED, "Bearer a", params=xargs).namespace == key_namespace("a")


def test_two_private_requests_have_nothing_in_common() -> None:
    assert policy_of(KEYED).namespace != policy_of(KEYED).namespace


def test_what_a_client_puts_under_our_key_is_gone() -> None:
    forged = SamplingParams(extra_args={EXTRA_ARGS_KEY: {"namespace": "another's"}, "other": 1})
    hinted = with_policy(forged, policy_of(KEYED, "Bearer a", params=forged))
    assert read_hints(hinted) == RequestHints(namespace=key_namespace("a"))
    assert hinted.extra_args["other"] == 1


def test_the_log_tells_once_for_each_way_in(monkeypatch: pytest.MonkeyPatch) -> None:
    lines: list[Any] = []
    monkeypatch.setattr(tenants.logger, "warning", lambda *words: lines.append(words))
    for _ in range(3):
        policy_of(KEYED, "Bearer a")
        policy_of(KEYED, namespace="all")
        policy_of(KEYED, salt="s")
    assert lines == []
    for _ in range(3):
        policy_of(KEYED)
        current_http_context.set(None)
        policy_of()
    assert len(lines) == 2


def salted_request(salt: str | None) -> EngineCoreRequest:
    return core_request("r", SamplingParams(), prompt=(1,), cache_salt=salt)


@pytest.mark.parametrize("salt", [None, "s", key_namespace("b")])
async def test_prefix_caches_are_as_far_apart_as_namespaces(salt: str | None) -> None:
    """vLLM shares prefixes by salt alone: two keys may give the same."""

    async def stream() -> AsyncGenerator[StreamingInput, None]:
        yield StreamingInput(prompt={"prompt_token_ids": [1]}, sampling_params=SamplingParams())
        yield StreamingInput(prompt={"prompt_token_ids": [1]})

    salts = {}
    for key in ("a", "b"):
        policy = policy_of(KEYED, f"Bearer {key}", salt=salt)
        params = with_policy(SamplingParams(), policy)
        given = {"prompt_token_ids": [1], **({"cache_salt": salt} if salt else {})}
        walled = with_cache_salt(given, policy, params)
        core = with_cache_salt(salted_request(salt), policy, params)
        parts = [part async for part in with_cache_salt(stream(), policy, params)]
        assert "cache_salt" not in given or given["cache_salt"] == salt
        assert core.cache_salt == walled["cache_salt"] == policy.cache_salt
        assert {part.prompt["cache_salt"] for part in parts} == {policy.cache_salt}
        assert read_hints(parts[0].sampling_params).namespace == policy.namespace
        assert parts[1].sampling_params is None
        salts[key] = walled["cache_salt"]
    assert salts["a"] != salts["b"]
    assert salt not in salts.values()


@pytest.mark.parametrize("given", ["text", [1, 2], {"prompt": "text"}, {"prompt_token_ids": [1]}])
def test_a_prompt_of_any_kind_has_the_salt_of_its_tenant(given: Any) -> None:
    """A program may give text and token ids as they are, in which there is no room for a salt."""
    policy = policy_of(KEYED, "Bearer a")
    salted = with_cache_salt(given, policy, SamplingParams())
    assert salted["cache_salt"] == policy.cache_salt == key_namespace("a")
    parts = {key: value for key, value in salted.items() if key != "cache_salt"}
    assert parts == parse_dec_only_prompt(given)
    alone = [fully_isolated(given, SamplingParams())[0]["cache_salt"] for _ in range(2)]
    assert alone[0] != alone[1]


@pytest.mark.parametrize(
    ("server", "namespace"), [(None, "salt-s"), (KEYED, key_namespace("a") + ".salt-s")]
)
async def test_a_piece_of_streamed_input_is_of_the_tenant_that_its_salt_says(
    server: ServerTenants | None, namespace: str
) -> None:
    async def stream() -> AsyncGenerator[StreamingInput, None]:
        salted = {"prompt_token_ids": [1], "cache_salt": "s"}
        yield StreamingInput(prompt=salted, sampling_params=SamplingParams(max_tokens=7))
        yield StreamingInput(prompt=salted)
        yield StreamingInput(prompt={"prompt_token_ids": [1]})

    if server is not None:
        current_http_context.set(HttpRequestContext({}, server.tenant_of("Bearer a")))
    info = InfoCollector()
    policy = resolve_policy(load_config({}), stream(), SamplingParams(), info, is_sole_tenant=True)
    assert info.namespace == policy.namespace
    params = with_policy(SamplingParams(max_tokens=9), policy)
    parts = [part async for part in with_cache_salt(stream(), policy, params)]
    for part, max_tokens in zip(parts[:2], (7, 9), strict=True):
        assert read_hints(part.sampling_params).namespace == namespace
        assert part.sampling_params.max_tokens == max_tokens
        assert part.prompt["cache_salt"] == (namespace if server is not None else "s")
    assert parts[2].sampling_params is None
    assert parts[2].prompt.get("cache_salt") == policy.cache_salt
    assert read_hints(params).namespace == policy.namespace
    assert info.namespace == namespace  # what is recorded is not shown to others


def test_a_private_request_keeps_the_salt_that_it_has_none_of() -> None:
    policy = policy_of(KEYED)
    prompt = {"prompt_token_ids": [1]}
    assert with_cache_salt(prompt, policy, SamplingParams()) == prompt
    assert with_cache_salt(salted_request(None), policy, SamplingParams()).cache_salt is None


def in_worker(hints: RequestHints, *, declared: str | None = None) -> str:
    """The namespace of a request with these hints, as a worker has it."""
    return namespace_of_request(declared, hints.namespace)


def test_in_the_worker_no_hints_are_nobodys() -> None:
    hints = RequestHints(namespace="n")
    assert in_worker(hints) == "n"
    assert in_worker(RequestHints(namespace="")) == SOLE_TENANT
    assert in_worker(hints, declared="all") == "all"
    assert in_worker(RequestHints(), declared="all") == "all"
    assert is_private(in_worker(RequestHints()))


def test_learned_weights_of_private_requests_are_nobody_elses() -> None:
    """They are found by a salt of the namespace; 0 is that of the one without a name."""
    secret = b"s" * 16
    salts = [salt_of(in_worker(RequestHints()), secret) for _ in range(20)]
    assert len({*salts, 0, salt_of("n", secret)}) == 22


@pytest.mark.parametrize(
    ("server", "authorization", "namespace"),
    [
        (KEYED, "Bearer a", key_namespace("a")),
        (KEYED, "Bearer c", None),
        (KEYLESS, None, SOLE_TENANT),
        (NOT_SEEN, "Bearer a", None),
    ],
)
def test_a_request_is_recorded_for_its_own_namespace_or_not_at_all(
    server: ServerTenants, authorization: str | None, namespace: str | None
) -> None:
    info = InfoCollector()
    asks = {"x-reprise-record": "on"}
    policy = policy_of(server, authorization, headers=asks, info=info)
    assert info.namespace == namespace
    hints = read_hints(with_policy(SamplingParams(), policy))
    assert hints.record == (namespace is not None)
    assert hints.counts_nonce == info.nonce != InfoCollector().nonce
    # Nobody would fetch the steps, or nobody wants them.
    for headers, collector in ((asks, None), ({}, InfoCollector())):
        policy = policy_of(server, authorization, headers=headers, info=collector)
        assert not read_hints(with_policy(SamplingParams(), policy)).record
