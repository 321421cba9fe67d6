"""A tier that is slow, gone or wrong, and errors of ours, cost exact hits and no request."""

import asyncio
import sqlite3
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

pytest.importorskip("vllm")

from vllm.lora.request import LoRARequest

from reprise.engine_ext.frontend import shared_exact
from reprise.engine_ext.frontend.exact_answers import ExactAnswers
from reprise.engine_ext.frontend.shared_exact import SharedExact
from reprise.engine_ext.request.adapter_epochs import AdapterEpochs
from reprise.engine_ext.request.request_control import RequestControl
from reprise.engine_ext.request.request_policy import RequestPolicy
from reprise.retrieval.api.answer import Answer
from reprise.retrieval.host import steady_clock
from reprise.retrieval.in_process.open_tier import open_tier
from reprise.tests.engine_ext.frontend.shared_exact.replica import MakeReplica


def tamper(url: str, change: Callable[[Answer], Answer]) -> None:
    """Put other records in the place of those for exact hits."""
    tier = open_tier(url, timeout_s=20.0)
    assert tier is not None
    for name in tier.namespaces():
        for answer in list(tier.exact_answers(name)):
            changed = change(answer)
            assert changed.stored_id == answer.stored_id
            tier.put([changed])
    tier.close()


@pytest.mark.parametrize(
    "field",
    [
        {"fingerprint": "g"},
        {"prompt_tokens": b"\0\0\0\0"},
        {"expires_s": 5.0},
        {"expires_s": steady_clock.now_s() + 0.001},
    ],
)
def test_a_record_that_is_not_what_its_key_says_is_a_miss(
    url: str, make_replica: MakeReplica, field: dict[str, Any]
) -> None:
    one, two = make_replica(url), make_replica(url)
    one.ask()
    tamper(url, lambda answer: msgspec.structs.replace(answer, **field))
    assert two.ask(emits=(9,)) == ("miss", [9])
    assert two.outcomes in ({"refused": 1, "miss": 1, "written": 1}, {"miss": 1, "written": 1})


def test_a_damaged_record_is_a_miss_and_counted(
    url: str, make_replica: MakeReplica, tmp_path: Path
) -> None:
    one, two = make_replica(url), make_replica(url)
    one.ask()
    if url.startswith("sqlite"):
        with sqlite3.connect(tmp_path / "answers.sqlite") as db:
            db.execute("update answers set record = zeroblob(length(record))")
    else:
        import redis

        client = redis.Redis.from_url(url)
        for key in client.keys("*:a:exact:*"):
            client.set(key, b"RA\x01\x00....garbage")
    assert two.ask(emits=(9,)) == ("miss", [9])
    assert two.shared is not None
    assert two.shared.stats()["unreadable"] == 1


def test_a_slow_tier_costs_the_budget_and_then_nothing(
    url: str, make_replica: MakeReplica, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_replica(url).ask()
    slow = make_replica(url, exact_budget_s=0.1)
    assert slow.shared is not None
    assert slow.shared._tier is not None
    looked_up = []

    def find_exact(*_: Any) -> list[Answer]:
        looked_up.append(time.monotonic())
        time.sleep(0.8)
        return []

    monkeypatch.setattr(slow.shared._tier, "find_exact", find_exact)
    request: Any = SimpleNamespace(prompt_token_ids=[1], lora_request=None)

    async def ask_often() -> list[float]:
        took_s = []
        for _ in range(100):
            began_s = time.monotonic()
            assert await slow.shared.find(request, "acme", [b"k"], "f") == []  # type: ignore[union-attr]
            took_s.append(time.monotonic() - began_s)
            await asyncio.sleep(0.005)
        return took_s

    took_s = asyncio.run(ask_often())
    # Each waits for its budget at most; with all threads busy, or the breaker open, for nothing. A
    # machine that stands still now and then has some others wait too.
    assert sorted(took_s)[50] < 0.05
    assert sum(took > 0.09 for took in took_s) <= 30
    assert len(looked_up) <= 12
    assert slow.outcomes["late"] >= 1
    assert slow.outcomes.get("failed", 0) + slow.outcomes.get("busy", 0) >= 50
    assert slow.shared.stats()["breaker"] != "closed"


@pytest.mark.redis
def test_a_redis_that_is_gone_or_stands_still_is_a_miss_until_it_is_back(
    start_redis: Any, make_replica: MakeReplica, wait_until: Any
) -> None:
    server = start_redis()
    one, two = make_replica(server.url), make_replica(server.url, exact_budget_s=0.1)
    one.ask()
    server.freeze()
    request: Any = SimpleNamespace(prompt_token_ids=[1, 2, 3], lora_request=None)
    assert two.shared is not None
    took_s = []
    for _ in range(8):
        began_s = time.monotonic()
        assert asyncio.run(two.shared.find(request, "acme", [b"k" * 16], "f")) == []
        took_s.append(time.monotonic() - began_s)
    # The machine may stand still for some of them; who waits for Redis waits for 30 s.
    assert sorted(took_s)[3] < 1.0
    server.thaw()

    def is_back() -> bool:
        return two.ask(emits=(9,), policy=RequestPolicy(RequestControl(store=False), "acme")) == (
            "exact",
            [5, 6, 7],
        )

    wait_until(is_back)


@pytest.mark.parametrize(
    ("owner", "name"),
    [
        *((SharedExact, name) for name in ("state_of", "find", "store", "used", "_adapter_state")),
        *((ExactAnswers, name) for name in ("shared_keys", "fetch", "used", "_share", "_take_in")),
        (AdapterEpochs, "loaded_since_s"),
        (shared_exact, "_is_answer_to"),
    ],
)
def test_an_error_in_any_part_costs_a_hit_and_no_request(
    make_replica: MakeReplica,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    owner: Any,
    name: str,
) -> None:
    called = 0

    def fail(*_: Any, **__: Any) -> Any:
        nonlocal called
        called += 1
        raise RuntimeError("injected")

    url = f"sqlite:///{tmp_path}/answers.sqlite"
    one, two = make_replica(url), make_replica(url)
    one.ask()
    monkeypatch.setattr(owner, name, fail)
    adapter = LoRARequest("a", 1, str(tmp_path))
    for replica, lora in ((one, None), (two, None), (two, adapter)):
        for prompt in ((1, 2, 3), (1, 2, 3), (4, 5)):
            kind, token_ids = replica.ask(lora=lora, prompt=prompt)
            assert kind in ("exact", "miss")
            assert token_ids == [5, 6, 7]
    assert called
    errors = sum((one.front_end.errors.counts() | two.front_end.errors.counts()).values())
    assert errors
    monkeypatch.undo()


async def test_a_look_up_that_ends_with_the_server_is_a_miss_and_cancels_no_request(
    url: str, make_replica: MakeReplica
) -> None:
    replica = await asyncio.to_thread(make_replica, url)
    shared = replica.front_end.exact.shared
    assert shared is not None
    may_go_on = threading.Event()
    for _ in range(shared_exact._THREADS):
        shared._threads.submit(may_go_on.wait, 60.0)
    asking = [asyncio.create_task(shared._ask(lambda _: True)) for _ in range(2)]
    await asyncio.sleep(0)
    asking[1].cancel()  # by its own client
    await asyncio.sleep(0)
    shared._threads.shutdown(wait=False, cancel_futures=True)  # as `close` does
    found = await asyncio.gather(*asking, return_exceptions=True)
    may_go_on.set()
    assert found[0] is None
    assert isinstance(found[1], asyncio.CancelledError)
