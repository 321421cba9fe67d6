"""Whose request it is: which keys and salts have one namespace, and which requests have none."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from vllm.sampling_params import SamplingParams

from reprise.engine_ext.core.request_hints import (
    EXTRA_ARGS_KEY,
    RequestHints,
    attach_hints,
    read_hints,
    with_hints,
)
from reprise.engine_ext.request.tenants import (
    SOLE_TENANT,
    ServerTenants,
    is_private,
    isolation_of,
    key_namespace,
    private_namespace,
)
from reprise.retrieval.api.namespace import MAX_NAMESPACE_LENGTH, check_namespace

TENANTS = (SOLE_TENANT, key_namespace("a"), key_namespace("b"))
# What a client may send to lie about who it is, beside plain salts.
LIES = [key_namespace("a"), f"{key_namespace('a')}.salt-x", "salt-x", "x.salt-y", "hash-0", "\0"]
SALTS = st.one_of(st.text(), st.text("x.-salthk", max_size=140), st.sampled_from(LIES))


@given(st.sampled_from(TENANTS), SALTS, st.sampled_from(TENANTS), SALTS)
def test_two_pairs_of_tenant_and_salt_have_two_namespaces(
    tenant: str, salt: str, other_tenant: str, other_salt: str
) -> None:
    one = isolation_of(tenant=tenant, cache_salt=salt)
    other = isolation_of(tenant=other_tenant, cache_salt=other_salt)
    is_same = (tenant, salt) == (other_tenant, other_salt)
    assert (one.namespace == other.namespace) is is_same
    if tenant and other_tenant:
        assert (one.cache_salt == other.cache_salt) is is_same


@given(st.sampled_from(TENANTS[1:]), SALTS)
def test_a_keys_namespaces_begin_with_the_keys_own(tenant: str, salt: str) -> None:
    namespace = isolation_of(tenant=tenant, cache_salt=salt).namespace
    assert namespace is not None
    assert namespace == tenant or namespace.startswith(tenant + ".")
    assert check_namespace(namespace).encode()
    for other in TENANTS:
        assert other == tenant or not namespace.startswith(other + ".")


@given(SALTS)
def test_no_salt_reaches_a_key(salt: str) -> None:
    """Of requests without a key, none is where a key's are, whoever they are from."""
    for tenant in (None, SOLE_TENANT):
        namespace = isolation_of(tenant=tenant, cache_salt=salt).namespace
        assert namespace is None or not namespace.startswith("key-")


def test_namespaces_are_as_they_are_written_down() -> None:
    """Operators type them, and stores on disk hold them."""
    key = "key-7606d77a2ae3d66dfb5f3b1f"
    assert key_namespace("secret") == "key-" + "2bb80d537b1da3e38bd30361"
    long, odd = "s" * MAX_NAMESPACE_LENGTH, "a/b"
    assert isolation_of(tenant=key, cache_salt="s").namespace == f"{key}.salt-s"
    assert isolation_of(tenant=SOLE_TENANT, cache_salt="s").namespace == "salt-s"
    assert isolation_of(tenant=SOLE_TENANT).namespace == ""
    for salt in (long, odd, "\ud800"):
        with_key = isolation_of(tenant=key, cache_salt=salt).namespace or ""
        without = isolation_of(tenant=SOLE_TENANT, cache_salt=salt).namespace or ""
        assert with_key.removeprefix(f"{key}.hash-") == without.removeprefix("hash-")
        assert len(without) == len("hash-") + 48


def test_a_request_of_nobodys_has_no_namespace_unless_it_brings_a_salt() -> None:
    assert isolation_of(tenant=None) == (None, None)
    assert isolation_of(tenant=None, cache_salt="") == (None, None)
    assert isolation_of(tenant=None, cache_salt="s") == ("salt-s", "salt-s")
    assert isolation_of(tenant=SOLE_TENANT, cache_salt=5) == (None, None)
    assert isolation_of(tenant=None, operators="acme") == ("acme", "acme")
    assert isolation_of(tenant=None, operators="acme", cache_salt="s") == ("acme", "s")


def test_a_namespace_that_a_client_may_name_stands_above_its_key() -> None:
    named = isolation_of(tenant=key_namespace("a"), clients="mine")
    assert named == ("mine", "mine")
    salted = isolation_of(tenant=key_namespace("a"), clients="mine", cache_salt="s")
    assert salted.namespace == "mine"
    assert salted.cache_salt not in (None, "mine", "s", "mine.salt-s")
    assert isolation_of(tenant=None, clients="mine", operators="all").namespace == "all"


def test_without_keys_vllms_own_salt_stays_as_it_is() -> None:
    assert isolation_of(tenant=SOLE_TENANT, cache_salt="s").cache_salt == "s"
    assert isolation_of(tenant=SOLE_TENANT).cache_salt is None


def test_a_private_namespace_is_one_requests_alone() -> None:
    names = {private_namespace() for _ in range(100)}
    assert len(names) == 100
    assert all(map(is_private, names))
    with pytest.raises(ValueError, match="NUL"):
        check_namespace(names.pop())
    assert not any(is_private(tenant) for tenant in TENANTS)


def test_bearer_tokens_are_tenants_where_they_are_checked() -> None:
    tokens = [None, "", "Bearer EMPTY", "Bearer a", "bearer a", "Bearer  a", "Basic a", "a"]
    without_keys = ServerTenants()
    assert {without_keys.tenant_of(token) for token in tokens} == {SOLE_TENANT}
    with_keys = ServerTenants(["a", "b"])
    known = {token for token in tokens if with_keys.tenant_of(token) is not None}
    assert known == {"Bearer a", "bearer a"}
    assert with_keys.tenant_of("Bearer a") == key_namespace("a")
    unseen = ServerTenants(others_check=True)
    assert {unseen.tenant_of(token) for token in tokens} == {None}


FORGED = (
    {"namespace": "key-of-another"},
    {"namespace": "", "retrieval_id": "another's request"},
    "namespace",
    ["namespace", ""],
    7,
    None,
)


@pytest.mark.parametrize("forged", FORGED, ids=str)
def test_hints_of_clients_count_for_nothing(forged: object) -> None:
    """JSON says everything but bytes."""
    params = SamplingParams(extra_args={EXTRA_ARGS_KEY: forged, "theirs": 1})
    assert read_hints(params) == RequestHints() == read_hints(None) == read_hints(SamplingParams())
    assert RequestHints().namespace is None


def test_hints_survive_the_way_to_the_worker() -> None:
    import msgspec

    hints = RequestHints(namespace="n", max_draft=3, retrieval_id="r")
    params = SamplingParams(extra_args={EXTRA_ARGS_KEY: {"namespace": "forged"}, "theirs": 1})
    hinted = with_hints(params, hints)
    arrived = msgspec.msgpack.decode(msgspec.msgpack.encode(hinted), type=SamplingParams)
    assert read_hints(arrived) == hints
    assert arrived.extra_args["theirs"] == 1
    assert params.extra_args == {EXTRA_ARGS_KEY: {"namespace": "forged"}, "theirs": 1}


def test_no_steps_are_recorded_that_nobody_could_fetch() -> None:
    with pytest.raises(ValueError, match="counts_nonce is missing"):
        RequestHints(namespace="n", record=True)
    assert RequestHints(namespace="n", record=True, counts_nonce="c").record


def test_clones_do_not_share_hints() -> None:
    params = SamplingParams(extra_args={})
    params.skip_clone = True
    clones = [params.clone(), params.clone()]
    for number, clone in enumerate(clones):
        attach_hints(clone, RequestHints(namespace=str(number)))
    assert [read_hints(clone).namespace for clone in clones] == ["0", "1"]
    assert params.extra_args == {}


def test_bytes_that_are_no_hints_end_drafting_and_sharing() -> None:
    for wrong in (b"", b"\xff", b"\x81\xa9namespace\x07"):
        hints = read_hints(SamplingParams(extra_args={EXTRA_ARGS_KEY: wrong}))
        assert (hints.namespace, hints.drafts, hints.store) == (None, False, False)
