"""Pinned prefixes on vLLM's own scheduler, KV cache manager and block pool."""

import random
import zlib
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from reprise.engine_ext.compat.engine_state import set_mark
from reprise.engine_ext.core.kv_pins_config import KvPinsConfig
from reprise.engine_ext.kv_pins import engine_pins
from reprise.retrieval.api.invalidation import Invalidation, encode_invalidation
from reprise.tests.engine_ext.kv_pins.real_scheduler import BLOCK_TOKENS, RealScheduler
from reprise.tests.engine_ext.model_runner import engine_config

NUM_BLOCKS = 41
SYSTEM = list(range(100, 100 + 4 * BLOCK_TOKENS))
PINS = KvPinsConfig(enabled=True, shared_by=3)

Build = Callable[..., RealScheduler]


@pytest.fixture(scope="module")
def config(demo_model: Path) -> Any:
    return engine_config(demo_model, max_model_len=1024, speculative_config=None)


@pytest.fixture(params=[False, True], ids=["sync", "async"])
def build(config: Any, request: pytest.FixtureRequest) -> Build:
    def built(pins: KvPinsConfig | None = PINS, num_blocks: int = NUM_BLOCKS, **given: Any) -> Any:
        return RealScheduler(config, num_blocks, pins, is_async=request.param, **given)

    return built


def press(engine: RealScheduler, tag: str, number: int = 20) -> None:
    """Ask so much else that everything that may be evicted is."""
    for index in range(number):
        engine.ask(f"{tag}{index}", [1000 + 100 * ord(tag) + index] * (5 * BLOCK_TOKENS))


def ask(engine: RealScheduler, name: str, **given: Any) -> int:
    """A request with the system prompt; how many of its tokens were cached."""
    return engine.ask(name, [*SYSTEM, *[10 + zlib.crc32(name.encode()) % 10_000] * 20], **given)


def test_the_system_roles_prefix_survives_what_evicts_it_without_pins(build: Build) -> None:
    cached = {}
    for pins in (None, PINS):
        engine = build(pins)
        ask(engine, "first", pin_tokens=len(SYSTEM) + 5)
        press(engine, "x")
        cached[pins is not None] = ask(engine, "second")
        engine.check_pool()
    assert cached == {False: 0, True: len(SYSTEM)}
    stats = engine.pins.stats()
    assert stats["saved_tokens"] == stats["hit_tokens"] == len(SYSTEM)
    assert (stats["pins"], stats["pinned_blocks"], stats["hits"]) == (1, 4, 1)
    assert stats["released_blocks"] == 0
    (pin,) = engine.pins.listed()
    assert (pin["origin"], pin["tokens"], pin["resident_blocks"]) == ("system", len(SYSTEM), 4)
    assert pin["head_token_ids"] == SYSTEM[:32]


def test_what_enough_requests_share_is_pinned(build: Build) -> None:
    engine = build()
    for name in "ab":
        ask(engine, name)
    press(engine, "x")
    assert ask(engine, "c") == 0  # the third: from now on
    press(engine, "y")
    assert ask(engine, "d") == len(SYSTEM)
    assert [pin["origin"] for pin in engine.pins.listed()] == ["shared"]


@pytest.mark.parametrize("hints", [{"pins": False}, {"namespace": None}])
def test_what_is_nobodys_or_asks_for_no_pin_leaves_no_trace(build: Build, hints: Any) -> None:
    engine = build()
    for name in "abcd":
        ask(engine, name, pin_tokens=len(SYSTEM), **hints)
    assert engine.pins.listed() == []


def test_nothing_is_counted_where_that_is_switched_off(build: Build) -> None:
    engine = build(KvPinsConfig(enabled=True, shared_by=0))
    for name in "abcd":
        ask(engine, name)
    assert engine.pins.listed() == []


def test_each_salt_has_pins_of_its_own(build: Build) -> None:
    engine = build()
    for salt in ("one", "two"):
        assert ask(engine, f"{salt} 1", salt=salt, pin_tokens=len(SYSTEM)) == 0
    press(engine, "x")
    assert ask(engine, "three 1", salt="three") == 0
    assert {pin["namespace"] for pin in engine.pins.listed()} == {"one", "two"}
    assert ask(engine, "one 2", salt="one") == ask(engine, "two 2", salt="two") == len(SYSTEM)
    (pin_id,) = {pin["pin_id"] for pin in engine.pins.listed() if pin["namespace"] == "one"}
    assert [pin["namespace"] for pin in engine.pins.unpin(pin_id)] == ["one"]
    press(engine, "y")
    assert (ask(engine, "one 3", salt="one"), ask(engine, "two 3", salt="two")) == (0, len(SYSTEM))


def test_a_request_that_needs_all_blocks_is_admitted_and_the_pin_comes_back(build: Build) -> None:
    engine = build(KvPinsConfig(enabled=True, max_share=0.9))
    ask(engine, "first", pin_tokens=len(SYSTEM))
    largest = [5] * ((NUM_BLOCKS - 1) * BLOCK_TOKENS - 2)
    engine.ask("largest", largest, max_tokens=2)
    assert "largest" in engine.finished
    stats = engine.pins.stats()
    assert (stats["pins"], stats["pinned_blocks"], stats["released_blocks"]) == (0, 0, 4)
    assert ask(engine, "second") == 0
    press(engine, "x")
    assert ask(engine, "third") == len(SYSTEM)
    engine.check_pool()


def test_the_prefix_that_is_worth_least_goes_first(build: Build) -> None:
    engine = build(KvPinsConfig(enabled=True, max_share=0.2))  # 8 blocks: two prefixes of four
    prompts = {name: [token] * len(SYSTEM) for token, name in enumerate("abc", start=50)}
    for name, number in (("a", 3), ("b", 1), ("c", 1), ("c", 1)):
        for index in range(number):
            engine.ask(f"{name}{index}", [*prompts[name], *[index + 1] * 20], pin_tokens=64)
    pinned = [pin["state"] for pin in engine.pins.listed()]
    assert pinned == ["pinned", "pinned", "waiting"]
    assert engine.pins.stats()["pinned_blocks"] <= engine.pins.stats()["max_blocks"] == 8
    press(engine, "x")
    found = {name: engine.ask(f"{name} again", [*prompt, 9]) for name, prompt in prompts.items()}
    assert found == {"a": 64, "b": 0, "c": 64}


def test_a_prefix_that_is_too_long_is_pinned_as_far_as_it_may_be(build: Build) -> None:
    engine = build(KvPinsConfig(enabled=True, max_share=0.05))  # of 41 blocks: 2
    ask(engine, "first", pin_tokens=len(SYSTEM))
    press(engine, "x")
    assert ask(engine, "second") == 2 * BLOCK_TOKENS


def test_unpinning_and_resets_free_everything(build: Build) -> None:
    engine = build()
    ask(engine, "first", pin_tokens=len(SYSTEM))
    press(engine, "x")
    assert engine.scheduler.reset_prefix_cache()
    assert engine.pins.stats()["pinned_blocks"] == 0
    assert ask(engine, "second") == 0
    assert engine.pins.stats()["saved_tokens"] == 0
    assert engine.pins.stats()["pinned_blocks"] == 4  # it is known still
    assert len(engine.pins.unpin(None)) == 1
    assert engine.pins.stats()["pinned_blocks"] == 0
    press(engine, "y")
    assert ask(engine, "third") == 0
    assert engine.pool.get_num_free_blocks() == NUM_BLOCKS - 1


def test_other_weights_find_nothing_pinned(build: Build) -> None:
    engine = build()
    ask(engine, "first", pin_tokens=len(SYSTEM))
    engine.pins.weights_changed()
    assert engine.pins.stats()["pinned_blocks"] == 0
    assert ask(engine, "second") == 0
    engine.check_pool()


def test_an_operators_pin_makes_way_for_no_other(build: Build) -> None:
    engine = build(KvPinsConfig(enabled=True, max_share=0.11))  # 4 blocks
    ask(engine, "first", pin_tokens=len(SYSTEM), pin_origin="operator")
    for index in range(5):
        engine.ask(f"x{index}", [9] * 80, pin_tokens=64, pin_origin="request")
    assert [pin["state"] for pin in engine.pins.listed()] == ["pinned", "waiting"]
    assert [pin["origin"] for pin in engine.pins.listed()] == ["operator", "request"]


@pytest.mark.parametrize("seed", [0])
def test_no_block_is_lost_or_doubled(build: Build, seed: int) -> None:
    """2,000 requests of all lengths, with aborts and preemption, and all steps counted."""
    chance = random.Random(seed)
    engine = build(KvPinsConfig(enabled=True, max_share=0.3, shared_by=2), num_blocks=33)
    roots = [[token] * chance.randint(16, 150) for token in range(200, 212)]
    total, added, live = 2000, 0, []
    errors_before = engine.pins.stats()["errors"]  # of this process, in which tests injected some
    aborted: set[str] = set()
    for _ in range(100_000):
        if added == total and not engine.scheduler.has_requests():
            break
        while added < total and len(live) < 12:
            prompt = [*chance.choice(roots), *[chance.randint(1, 9)] * chance.randint(0, 60)]
            given = {"salt": chance.choice(["", "a"]) or None, "max_tokens": chance.randint(1, 60)}
            if chance.random() < 0.3:
                given["pin_tokens"] = chance.randint(1, 200)
            engine.add(str(added), prompt, **given)
            live.append(str(added))
            added += 1
        engine.step()
        engine.check_pool()
        live = [name for name in live if name in engine.scheduler.requests]
        if live and chance.random() < 0.1:
            gone = live.pop(chance.randrange(len(live)))
            engine.scheduler.finish_requests(gone, _aborted())
            aborted.add(gone)
        if chance.random() < 0.002:
            engine.pins.unpin(None)
        if chance.random() < 0.002:
            engine.pins.weights_changed()
    engine.run()
    assert len(set(engine.finished) | aborted) == total
    assert engine.num_preempted > 10
    stats = engine.pins.stats()
    assert stats["released_blocks"] > 10
    assert stats["saved_tokens"] > 0
    assert stats["errors"] == errors_before
    assert engine.pool.get_num_free_blocks() == 32
    engine.pins.unpin(None)
    assert engine.scheduler.reset_prefix_cache()


def _aborted() -> Any:
    from vllm.v1.request import RequestStatus

    return RequestStatus.FINISHED_ABORTED


def test_calls_that_may_change_weights_unpin_and_ours_do_not() -> None:
    changed: list[str] = []
    pins = SimpleNamespace(weights_changed=lambda: changed.append("changed"))
    core = SimpleNamespace(scheduler=SimpleNamespace())
    set_mark(core.scheduler, engine_pins._PINS, pins)

    def call(_: Any, method: Any, *args: Any) -> Any:
        return method, args, list(changed)

    assert engine_pins.collective_rpc(call, core, "reprise_stats", 1) == ("reprise_stats", (1,), [])
    assert engine_pins.collective_rpc(call, core, "update_weights")[2] == ["changed"]
    assert engine_pins.collective_rpc(call, core, len)[2] == ["changed"] * 2
    assert engine_pins.collective_rpc(call, SimpleNamespace(), "load")[0] == "load"
    assert engine_pins.reprise_kv_pins(SimpleNamespace(scheduler=None), "stats") is None


def test_only_engines_whose_settings_want_it_are_changed(
    config: Any, demo_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for pins, wanted in (({}, False), ({"enabled": True}, True)):
        ours = engine_config(demo_model, additional_config={"reprise": {"kv_pins": pins}})
        scheduler = RealScheduler(ours, NUM_BLOCKS, None).scheduler
        engine_pins.begin_scheduler(lambda *_: None, scheduler)
        assert (engine_pins.pins_of(scheduler) is not None) is wanted
        assert ("schedule" in vars(scheduler)) is wanted
    scheduler = RealScheduler(config, NUM_BLOCKS, None).scheduler  # another proposer's
    monkeypatch.setenv("REPRISE_KV_PINS__ENABLED", "true")
    engine_pins.begin_scheduler(lambda *_: None, scheduler)
    assert engine_pins.pins_of(scheduler) is None


def test_an_erasure_unpins_its_tenants_and_no_others(build: Build) -> None:
    engine = build()
    for name in ("one", "two", "two.salt-x"):
        ask(engine, f"asks for {name}", namespace=name, pin_tokens=len(SYSTEM))
        engine.ask(f"begins in {name}", [7] * 40, namespace=name)
        engine.ask(f"goes on in {name}", [7] * 40, namespace=name)
    waiting = [
        engine.add(f"waits in {name}", SYSTEM, namespace=name, pin_tokens=len(SYSTEM))
        for name in ("one", "two")
    ]
    core = SimpleNamespace(scheduler=engine.scheduler)
    set_mark(engine.scheduler, "kv_pins", engine.pins)
    forget = encode_invalidation(Invalidation.create(tenant="two"))
    assert engine_pins.reprise_kv_pins(core, "forget", forget) is None
    assert {pin["namespace"] for pin in engine.pins.listed()} == {"one"}
    engine.run()
    assert {request.request_id for request in waiting} <= {*engine.finished}
    assert {pin["namespace"] for pin in engine.pins.listed()} == {"one"}  # that one waited
    # Of what two requests had begun with before, a third one makes no shared prefix now.
    for name in ("one", "two"):
        engine.ask(f"is third in {name}", [7] * 40, namespace=name)
    shared = [pin for pin in engine.pins.listed() if pin["origin"] == "shared"]
    assert {pin["namespace"] for pin in shared if pin["tokens"] <= 40} == {"one"}
    # What comes afterwards is pinned again.
    ask(engine, "asks again", namespace="two", pin_tokens=len(SYSTEM))
    assert "two" in {pin["namespace"] for pin in engine.pins.listed()}
    engine.check_pool()
    everything = encode_invalidation(Invalidation.create(everything=True))
    engine_pins.reprise_kv_pins(core, "forget", everything)
    assert engine.pins.listed() == []
    assert engine.pins.stats()["pinned_blocks"] == 0
    engine.check_pool()
