"""A tier behind Redis Sentinel: real servers, a real Sentinel, a master that dies."""

import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import redis

from reprise.eval.live.redis_server import RedisServer, redis_executable
from reprise.eval.live.server_process import free_port
from reprise.retrieval import Answer
from reprise.retrieval.tiers.redis.redis_tier import RedisTier
from reprise.retrieval.tiers.tier import TierError
from reprise.tests.retrieval.tiers.tls_proxy import TlsProxy, make_certificate

pytestmark = pytest.mark.redis

PASSWORD = "p@ss/word"
ENCODED = "p%40ss%2Fword"
CONFIG = """
port {port}
bind 127.0.0.1
sentinel monitor main 127.0.0.1 {master} 1
sentinel auth-pass main {password}
sentinel down-after-milliseconds main 60000
sentinel failover-timeout main 2000
"""
# On a busy machine a master that is there may be silent for a while: only a test whose master is
# dead has the Sentinel hurry.
HURRIED_MS = 300


def answer(number: int) -> Answer:
    return Answer.create(
        prompt_token_ids=[number],
        response_token_ids=[number] * 3,
        prompt_text=f"question {number}",
        answer_id=f"id{number}",
    )


class Group:
    """A master, its replica, and the Sentinel that watches over them."""

    def __init__(self, master: RedisServer, replica: RedisServer, folder: Path) -> None:
        self.master, self.replica = master, replica
        self.port = free_port()
        config = folder / "sentinel.conf"
        config.write_text(CONFIG.format(port=self.port, master=master.port, password=PASSWORD))
        executable = redis_executable()
        assert executable is not None
        self.process = subprocess.Popen(
            [executable, str(config), "--sentinel"],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )

    @property
    def url(self) -> str:
        return f"redis://:{ENCODED}@127.0.0.1:{self.port}/0?sentinel=main"

    def knows_its_replica(self) -> bool:
        try:
            sentinel = redis.Redis(port=self.port, decode_responses=True)
            (found,) = sentinel.sentinel_slaves("main")
        except (redis.RedisError, ValueError):
            return False
        return found["port"] == self.replica.port and found["master-link-status"] == "ok"


@pytest.fixture
def group(
    start_redis: Callable[..., RedisServer],
    wait_until: Callable[..., None],
    tmp_path: Path,
) -> Iterator[Group]:
    login = ("--requirepass", PASSWORD, "--masterauth", PASSWORD)
    master = start_redis(*login)
    replica = start_redis(*login, "--replicaof", "127.0.0.1", str(master.port))
    made = Group(master, replica, tmp_path)
    wait_until(made.knows_its_replica)
    yield made
    made.process.kill()
    made.process.wait()


def test_the_next_master_is_found_when_one_dies(
    group: Group, wait_until: Callable[..., None]
) -> None:
    tier = RedisTier(group.url, timeout_s=10.0)

    def can_put(number: int) -> bool:
        try:
            tier.put([answer(number)])
        except TierError:
            return False
        return True

    tier.put([answer(1)])
    assert [each.answer_id for each in tier.answers("")] == ["id1"]
    with redis.Redis(port=group.replica.port, password=PASSWORD) as replica:
        wait_until(replica.dbsize)  # before the master goes
    group.master.kill()
    assert not can_put(2)
    with redis.Redis(port=group.port) as sentinel:
        sentinel.sentinel_set("main", "down-after-milliseconds", HURRIED_MS)
    # A Sentinel whose machine stood still does nothing for 30 s.
    wait_until(lambda: can_put(2), 200.0)
    assert sorted(each.answer_id for each in tier.answers("")) == ["id1", "id2"]
    tier.close()


def test_what_is_wrong_is_said_without_the_password(group: Group) -> None:
    tier = RedisTier(group.url.replace("=main", "=other"), timeout_s=1.0)
    with pytest.raises(TierError, match="No master found for 'other'") as caught:
        tier.put([answer(1)])
    assert PASSWORD not in str(caught.value)
    group.process.kill()
    gone = RedisTier(group.url, timeout_s=1.0)
    with pytest.raises(TierError, match="No master found for 'main'"):
        gone.namespaces()


def test_sentinel_and_master_are_reached_over_tls(group: Group, tmp_path: Path) -> None:
    own = make_certificate(tmp_path, "server")
    master = TlsProxy(group.master.port, own)
    sentinel = TlsProxy(group.port, own, named=(group.master.port, master.port))
    where = f"rediss://:{ENCODED}@127.0.0.1:{sentinel.port}/0?sentinel=main"
    tier = RedisTier(f"{where}&ssl_ca_certs={own.certificate}", timeout_s=10.0)
    tier.put([answer(1)])
    assert [each.answer_id for each in tier.answers("")] == ["id1"]
    assert min(sentinel.num_connections, master.num_connections) > 0
    tier.close()
    stranger = RedisTier(where, timeout_s=10.0)
    with pytest.raises(TierError, match="No master found for 'main'"):
        stranger.namespaces()
    stranger.close()
    for proxy in (sentinel, master):
        proxy.close()
