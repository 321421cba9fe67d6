"""One generation for servers on one Redis: front ends without an engine."""

import asyncio
import threading
from typing import Any

import pytest
import redis

pytest.importorskip("vllm")

from vllm.v1.engine.output_processor import OutputProcessor

from reprise.engine_ext.core.config import load_config
from reprise.engine_ext.frontend import shared_exact
from reprise.engine_ext.frontend.front_end import FrontEnd
from reprise.engine_ext.request.request_control import RequestControl
from reprise.engine_ext.request.request_policy import RequestPolicy
from reprise.retrieval import RetrievalConfig
from reprise.retrieval.in_process.local_retriever import LocalRetriever
from reprise.retrieval.in_process.open_tier import open_tier
from reprise.retrieval.search.embedding import Embedder
from reprise.tests.engine_ext.front_ends import Client, vllm_config, wait_longer

pytestmark = pytest.mark.redis

LEASE_S = 20.0


class Server(Client):
    """A front end on Redis that trusts others, and waits for them."""

    def __init__(self, url: str, lease_s: float | None = LEASE_S) -> None:
        serving = {
            "exact_hits_from_others": "trusted",
            "exact_budget_s": 1.0,
            "single_flight_lease_s": lease_s,
        }
        retrieval = {"url": url, "embedding_model": "lexical", "clauses": False}
        self.retriever = LocalRetriever(
            RetrievalConfig(**retrieval),  # type: ignore[arg-type]
            embedder=Embedder("lexical"),
            decode=lambda token_ids: " ".join(map(str, token_ids)),
        )
        front_end = FrontEnd(
            vllm_config(),
            load_config({"serving": serving, "retrieval": retrieval}),
            OutputProcessor(None, log_stats=False),
            retriever=self.retriever,
        )
        front_end.open_others(loaded_since_s=1e12, submit=None)
        wait_longer(front_end)
        super().__init__(front_end, namespace="acme")
        assert front_end.exact.shared is not None
        self.shared = front_end.exact.shared
        assert self.shared.wait(60)
        self.before_generation: Any = None

    def look_up(self, request: Any, queue: Any, policy: RequestPolicy) -> bool:
        asyncio.run(self.front_end.fetch(request, policy))
        hit = super().look_up(request, queue, policy)
        if not hit and self.before_generation is not None:
            self.before_generation(request)
        return hit

    def close(self) -> None:
        self.front_end.close()
        self.retriever.close()


@pytest.fixture
def servers(redis_server: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(shared_exact, "fingerprint_of", lambda *_, **__: "f")
    monkeypatch.setattr(shared_exact, "_TIER_TIMEOUT_S", 30.0)
    made: list[Server] = []

    def make(**settings: Any) -> Server:
        made.append(Server(redis_server.url, **settings))
        return made[-1]

    yield make
    for server in made:
        server.close()


async def fetched(server: Server, name: str) -> Any:
    """Have a server look for an answer as a request comes, without answering it."""
    from vllm.sampling_params import SamplingParams

    from reprise.tests.engine_ext.front_ends import core_request

    params = SamplingParams(temperature=0, max_tokens=10, detokenize=False)
    request = core_request(name, params)
    policy = RequestPolicy(RequestControl(), "acme")
    await server.front_end.fetch(request, policy)
    return request


async def generating_and_waiting(
    one: Any, two: Any
) -> tuple[threading.Event, asyncio.Task[Any], asyncio.Task[Any]]:
    """Have one server generate an answer that another waits for; return what lets it go on, and
    what the two are asked."""
    generates = threading.Event()
    one.before_generation = lambda _: generates.wait(60)
    first = asyncio.create_task(asyncio.to_thread(one.ask))
    while not one.shared._leases:
        await asyncio.sleep(0.05)
    second = asyncio.create_task(fetched(two, "s"))
    while two.shared.outcomes["waited"] < 2:
        await asyncio.sleep(0.05)
        assert not second.done()
    return generates, first, second


async def test_who_comes_second_waits_and_repeats(servers: Any) -> None:
    one, two = servers(), servers()
    generates, first, second = await generating_and_waiting(one, two)
    generates.set()
    assert await first == ("miss", [5, 6, 7])
    await asyncio.wait_for(second, LEASE_S)
    assert two.shared.outcomes["hit"] == 1
    assert await asyncio.to_thread(two.ask, emits=(9,)) == ("exact", [5, 6, 7])


async def test_nobody_waits_for_one_that_has_failed(servers: Any) -> None:
    one, two = servers(), servers()

    def gives_up(request: Any) -> None:
        one.front_end.not_admitted(request.request_id, RuntimeError("refused"))
        # It may be looked at only once it is given back.
        one.shared._threads.submit(lambda: None).result()

    one.before_generation = gives_up
    await asyncio.to_thread(one.ask, policy=RequestPolicy(RequestControl(), "acme"))
    began_s = asyncio.get_running_loop().time()
    await fetched(two, "s")
    assert asyncio.get_running_loop().time() - began_s < LEASE_S / 2
    assert two.shared._leases


class Granting:
    """Has a server's tier grant a lease, and say so only once it may."""

    def __init__(self, server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
        self.asked: list[Any] = []
        self.may_say = threading.Event()
        tier = server.shared._tier
        self._lease = tier.lease  # type: ignore[union-attr]
        monkeypatch.setattr(tier, "lease", self._grant)

    def _grant(self, *asked: Any, ttl_s: float) -> bool:
        is_ours = self._lease(*asked, ttl_s=ttl_s)
        self.asked.append((asked, is_ours))
        self.may_say.wait(60)
        return is_ours

    async def until_granted(self) -> None:
        while not self.asked:
            await asyncio.sleep(0.02)
        assert self.asked[0][1]

    async def until_given_back(self) -> None:
        """Long before it runs out by itself."""
        async with asyncio.timeout(LEASE_S / 2):
            while not await asyncio.to_thread(self._lease, *self.asked[0][0], ttl_s=60.0):
                await asyncio.sleep(0.02)


async def test_a_lease_that_is_granted_too_late_is_given_back(
    servers: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = servers()
    granting = Granting(one, monkeypatch)

    async def nothing(*_: Any) -> list[Any]:
        one.shared._budget_s = 0.05  # of what follows
        return []

    monkeypatch.setattr(one.shared, "find", nothing)
    await fetched(one, "r")  # it generates, without a lease
    assert one.shared._leases == {}
    assert one.shared.outcomes["late"] == 1
    await granting.until_granted()
    granting.may_say.set()
    await granting.until_given_back()


async def test_a_lease_that_is_granted_to_a_client_that_has_left_is_given_back(
    servers: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = servers()
    granting = Granting(one, monkeypatch)
    asking = asyncio.create_task(fetched(one, "r"))
    await granting.until_granted()
    asking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asking
    granting.may_say.set()
    await granting.until_given_back()
    assert one.shared._leases == {}


async def test_a_lost_lease_costs_a_generation(servers: Any) -> None:
    one, two = servers(lease_s=0.5), servers(lease_s=0.5)
    await fetched(one, "r")
    await fetched(two, "s")  # the first one never answers
    assert await asyncio.to_thread(two.ask, emits=(8,)) == ("miss", [8])


async def test_a_lease_that_is_lost_on_the_way_costs_a_generation_too(
    servers: Any, redis_server: Any
) -> None:
    one, two = servers(), servers()
    generates, first, second = await generating_and_waiting(one, two)
    with redis.Redis.from_url(redis_server.url) as client:
        (lease,) = client.scan_iter("*:l:*")
        client.delete(lease)
    await asyncio.wait_for(second, LEASE_S / 2)
    assert two.shared._leases  # it generates as well
    generates.set()
    assert await first == ("miss", [5, 6, 7])
    # What the first one has written is found all the same, before any lease is looked at.
    assert await asyncio.to_thread(one.retriever.flush, 60)
    three = servers()
    await fetched(three, "t")
    assert three.shared.outcomes["hit"] == 1


async def test_without_the_setting_nobody_waits(servers: Any, redis_server: Any) -> None:
    one, two = servers(lease_s=None), servers(lease_s=None)
    await fetched(one, "r")
    await fetched(two, "s")
    assert two.shared.outcomes["waited"] == 0
    assert one.shared._leases == {}
    tier = open_tier(redis_server.url, timeout_s=20.0)
    assert tier is not None
    assert tier.lease("acme", b"k" * 16, ttl_s=60.0)
    assert not tier.lease("acme", b"k" * 16, ttl_s=60.0)
    assert tier.lease("zeta", b"k" * 16, ttl_s=60.0)
    tier.end_lease("acme", b"k" * 16)
    assert tier.lease("acme", b"k" * 16, ttl_s=60.0)
    tier.close()
