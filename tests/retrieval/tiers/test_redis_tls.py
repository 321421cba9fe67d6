"""A tier over TLS, and as a user with few rights: a real redis-server, behind a proxy that ends TLS
in front of it, since not every redis-server is built with TLS of its own."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import redis

from reprise.eval.live.redis_server import RedisServer
from reprise.retrieval import Answer, RetrievalConfig
from reprise.retrieval.api.invalidation import Invalidation
from reprise.retrieval.in_process.local_retriever import LocalRetriever
from reprise.retrieval.search.embedding import Embedder
from reprise.retrieval.tiers.redis.redis_tier import RedisTier
from reprise.retrieval.tiers.tier import TierError
from reprise.tests.retrieval.tiers.tls_proxy import Certificate, TlsProxy, make_certificate

pytestmark = pytest.mark.redis

SECRET = "p@ss/w0rd#1"
ENCODED = "p%40ss%2Fw0rd%231"
# As docs/deploy.md has it.
RIGHTS = (
    "~reprise:2:* resetchannels +@read +@write +@transaction +@scripting +@connection -@dangerous"
)


@pytest.fixture
def own(tmp_path: Path) -> Certificate:
    return make_certificate(tmp_path, "server")


@pytest.fixture
def start_proxy(own: Certificate) -> Iterator[Callable[..., TlsProxy]]:
    proxies: list[TlsProxy] = []

    def start(port: int, *, clients: Certificate | None = None) -> TlsProxy:
        proxies.append(TlsProxy(port, own, clients=clients))
        return proxies[-1]

    yield start
    for proxy in proxies:
        proxy.close()


def answer(number: int) -> Answer:
    return Answer.create(
        prompt_token_ids=[number],
        response_token_ids=[number] * 3,
        prompt_text=f"question {number}",
        answer_id=f"id{number}",
    )


def ids_in(url: str) -> list[str]:
    """What a tier of this URL holds, once it has taken one more answer."""
    tier = RedisTier(url, timeout_s=20.0)
    try:
        tier.put([answer(len(list(tier.answers(""))) + 1)])
        return sorted(each.answer_id for each in tier.answers(""))
    finally:
        tier.close()


def refused(url: str, timeout_s: float = 20.0) -> str:
    """Why a tier of this URL does not work."""
    tier = RedisTier(url, timeout_s=timeout_s)
    try:
        with pytest.raises(TierError) as caught:
            tier.put([answer(1)])
    finally:
        tier.close()
    return str(caught.value)


def test_a_certificate_that_is_known_is_enough(
    redis_server: RedisServer, start_proxy: Callable[..., TlsProxy], own: Certificate
) -> None:
    proxy = start_proxy(redis_server.port)
    url = f"rediss://127.0.0.1:{proxy.port}/0"
    assert ids_in(f"{url}?ssl_ca_certs={own.certificate}") == ["id1"]
    assert proxy.num_connections > 0
    # Whoever trusts anybody reads the same.
    assert ids_in(f"{url}?ssl_cert_reqs=none&ssl_check_hostname=false") == ["id1", "id2"]


def test_nothing_is_sent_to_whom_the_certificate_is_not_of(
    redis_server: RedisServer,
    start_proxy: Callable[..., TlsProxy],
    own: Certificate,
    tmp_path: Path,
) -> None:
    proxy = start_proxy(redis_server.port)
    other = make_certificate(tmp_path, "other")
    url = f"rediss://:{ENCODED}@127.0.0.1:{proxy.port}/0"
    for trusted in ("", f"?ssl_ca_certs={other.certificate}"):
        why = refused(url + trusted)
        assert "certificate verify failed" in why.lower()
        assert SECRET not in why
    elsewhere = f"rediss://localhost:{proxy.port}/0?ssl_ca_certs={own.certificate}"
    assert "hostname mismatch" in refused(elsewhere).lower()
    assert ids_in(f"{elsewhere}&ssl_check_hostname=false") == ["id1"]
    with redis.Redis(port=redis_server.port) as client:
        assert client.flushall()
    # The other way round: no server speaks plain Redis there, nor TLS here, where nobody answers.
    assert refused(f"redis://127.0.0.1:{proxy.port}/0")
    tls = f"rediss://127.0.0.1:{redis_server.port}/0?ssl_cert_reqs=none"
    assert refused(tls, timeout_s=0.5)
    with redis.Redis(port=redis_server.port) as client:
        assert client.dbsize() == 0


def test_clients_may_need_a_certificate_of_their_own(
    redis_server: RedisServer,
    start_proxy: Callable[..., TlsProxy],
    own: Certificate,
    tmp_path: Path,
) -> None:
    client = make_certificate(tmp_path, "client")
    proxy = start_proxy(redis_server.port, clients=client)
    url = f"rediss://127.0.0.1:{proxy.port}/0?ssl_ca_certs={own.certificate}"
    assert refused(url)
    shown = f"&ssl_certfile={client.certificate}&ssl_keyfile={client.key}"
    assert ids_in(url + shown) == ["id1"]


@pytest.fixture
def redis_with_users(start_redis: Callable[..., RedisServer]) -> RedisServer:
    """One that lets nobody in without a name."""
    server = start_redis()
    with redis.Redis(port=server.port) as admin:
        rights = RIGHTS.split()
        admin.execute_command("ACL", "SETUSER", "reprise", "on", f">{SECRET}", *rights)
        admin.execute_command("ACL", "SETUSER", "nobody", "on", f">{SECRET}")
        admin.execute_command("ACL", "SETUSER", "default", "off")
    return server


def test_the_page_says_which_rights_are_needed() -> None:
    page = Path(__file__).parents[3] / "docs" / "deploy.md"
    assert f"ACL SETUSER reprise on >PASSWORD {RIGHTS}" in page.read_text(encoding="utf-8")


def test_a_user_with_few_rights_is_enough(redis_with_users: RedisServer) -> None:
    """For all that a replica does: write, read, follow, use, trim, forget."""
    where = f"127.0.0.1:{redis_with_users.port}/0"
    for url in (
        f"redis://reprise:{ENCODED}@{where}",
        f"redis://{where}?username=reprise&password={ENCODED}",
    ):
        tier = RedisTier(url, timeout_s=20.0, ttl_s=60.0, max_bytes=1 << 20, max_namespaces=4)
        replica = RedisTier(url, timeout_s=20.0)
        replica.changes()
        tier.put([answer(1), answer(2)])
        assert tier.lease("", b"key", ttl_s=5.0)
        tier.end_lease("", b"key")
        assert tier.namespaces()
        assert sorted(each.answer_id for each in replica.answers("")) == ["id1", "id2"]
        assert tier.remove("", ["id1"]) == 1
        changes = replica.changes()
        assert [each.answer_id for each in changes.added] == ["id2"]
        assert ("", "id1") in changes.removed
        for each in (tier, replica):
            each.close()
    with redis.Redis(port=redis_with_users.port, username="reprise", password=SECRET) as client:
        for forbidden in (
            ("SET", "another", "1"),
            ("KEYS", "*"),
            ("FLUSHALL",),
            ("CONFIG", "GET", "*"),
        ):
            with pytest.raises(redis.exceptions.NoPermissionError):
                client.execute_command(*forbidden)


def test_who_has_no_rights_is_told_so_without_the_password(
    redis_with_users: RedisServer,
) -> None:
    where = f"127.0.0.1:{redis_with_users.port}/0"
    for user, word in (("reprise:wrong", "WRONGPASS"), (f"nobody:{ENCODED}", "NOPERM")):
        why = refused(f"redis://{user}@{where}")
        assert word in why or "invalid username-password pair" in why or "no permissions" in why
        assert SECRET not in why
    assert "AuthenticationError" in refused(f"redis://{where}")


def test_all_of_retrieval_as_a_user_over_tls(
    redis_with_users: RedisServer,
    start_proxy: Callable[..., TlsProxy],
    own: Certificate,
    wait_until: Callable[..., None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Two replicas: what one stores the other finds, and forgets; and the doctor is content."""
    from reprise.engine_ext.checks import machine_checks

    proxy = start_proxy(redis_with_users.port)
    url = f"rediss://reprise:{ENCODED}@127.0.0.1:{proxy.port}/0?ssl_ca_certs={own.certificate}"
    config = RetrievalConfig(url=url, embedding_model="lexical", poll_s=0.05, clauses=False)
    one, other = (LocalRetriever(config, embedder=Embedder("lexical")) for _ in range(2))
    try:
        one.store(answer(1))
        wait_until(lambda: other.stats().answers == 1)
        for each in (one, other):
            health = each.health()
            assert (health.state, set(health.breakers.values())) == ("ready", {"closed"})
        one.forget(Invalidation.create(answer_id="id1", namespace=""), timeout_s=60.0)
        wait_until(lambda: other.stats().answers == 0)
    finally:
        one.close()
        other.close()
    monkeypatch.setenv("REPRISE_RETRIEVAL__URL", url)
    monkeypatch.setattr(machine_checks, "_REDIS_WITHIN_S", 60.0)
    (finding,) = machine_checks.check_redis()
    assert finding.problem is None, finding
    assert SECRET not in str(finding)
    assert ENCODED not in str(finding)
