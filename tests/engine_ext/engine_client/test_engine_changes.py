"""What changes an engine's answers reaches the front end, through whichever method of vLLM's."""

import asyncio
import inspect
import re
from types import SimpleNamespace
from typing import Any

import pytest
from vllm.v1.engine.async_llm import AsyncLLM

from reprise.engine_ext.async_llm import EnhancedAsyncLLM
from reprise.engine_ext.core.error_counter import ErrorCounter
from reprise.engine_ext.engine_client import engine_changes
from reprise.engine_ext.engine_client.engine_changes import ChangeTrackingAsyncLLM
from reprise.engine_ext.request.adapter_epochs import AdapterEpochs

# Methods of vLLM's that may change what the engine answers, and by which of ours they are noticed.
BY_COLLECTIVE_RPC = {
    "checkpoint_prepare",
    "checkpoint_restore",
    "finish_weight_update",
    "init_weight_transfer_engine",
    "shutdown_weight_transfer_engine",
    "start_draft_weight_update",
    "start_weight_update",
    "update_weights",
}
CHANGE_NOTHING = {
    "compute_weight_checksums",
    "get_weight_version",
    "is_sleeping",
    "list_loras",
    "pin_lora",
}


class Core:
    """The engine core behind vLLM's client, as far as changes go."""

    def __init__(self) -> None:
        self.is_paused = self.fails = False

    async def pause(self, **_: Any) -> None:
        # The front end answers nothing from the moment on in which a pause may begin.
        assert self.front_end.is_paused
        if self.fails:
            raise ValueError("Invalid pause mode: x")
        self.is_paused = True

    pause_scheduler_async = pause_generation_async = pause

    async def resume_scheduler_async(self) -> None:
        assert self.front_end.is_paused
        self.is_paused = False

    async def is_scheduler_paused_async(self) -> bool:
        return self.is_paused

    async def wake_up_async(self, *_: Any) -> bool:
        self.is_paused = False
        return True

    async def get_weight_version_async(self) -> str:
        return "default"

    async def anything(self, *_: Any, **__: Any) -> bool:
        if self.fails:
            raise RuntimeError("injected")
        return True

    sleep_async = collective_rpc_async = set_weight_version_async = anything
    add_lora_async = remove_lora_async = anything


class FrontEnd:
    """Counts."""

    def __init__(self) -> None:
        self.is_paused = False
        self.changes = 0
        self.errors = ErrorCounter()
        self.flights = SimpleNamespace(weight_version=None)
        self.exact = SimpleNamespace(adapters=AdapterEpochs())

    def model_changed(self) -> None:
        self.changes += 1


@pytest.fixture(params=[ChangeTrackingAsyncLLM, EnhancedAsyncLLM])
def engine(request: pytest.FixtureRequest) -> Any:
    """A client that has started nothing, and so has nothing to shut down."""
    kind = type("Client", (request.param,), {"__del__": lambda _: None})
    engine = kind.__new__(kind)
    engine.engine_core, engine.logger_manager = Core(), None
    engine.front_end = engine.engine_core.front_end = FrontEnd()  # type: ignore[assignment]
    return engine


def test_no_method_that_may_change_answers_is_forgotten() -> None:
    may = re.compile("weight|lora|sleep|wake|checkpoint|rpc|(pause|resume)_")
    theirs = {name for name in vars(AsyncLLM) if may.search(name)}
    ours = {name for name in vars(ChangeTrackingAsyncLLM) if not name.startswith("_")}
    assert theirs == (ours & theirs) | BY_COLLECTIVE_RPC | CHANGE_NOTHING
    for name in BY_COLLECTIVE_RPC:
        assert "self.collective_rpc(" in inspect.getsource(getattr(AsyncLLM, name))


@pytest.mark.parametrize("fails", [False, True])
async def test_weights_are_taken_for_changed_even_where_the_call_fails(
    engine: Any, fails: bool
) -> None:
    calls = [
        lambda: engine.sleep(level=0),
        lambda: engine.update_weight_version("next"),
        lambda: engine.collective_rpc("load_weights"),
        lambda: engine.start_weight_update(),
    ]
    engine.engine_core.fails = fails
    for call in calls:
        before = engine.front_end.changes
        if fails:
            with pytest.raises(RuntimeError, match="injected"):
                await call()
        else:
            await call()
        assert engine.front_end.changes > before


async def test_the_label_of_the_weights_is_known_before_the_first_output(engine: Any) -> None:
    flights = engine.front_end.flights
    await engine.learn_weight_version()
    assert flights.weight_version == "default"
    await engine.update_weight_version("next")
    assert flights.weight_version == "next"
    await engine.learn_weight_version()
    assert flights.weight_version == "next"  # as the latest output says


async def test_an_engine_that_does_not_say_its_label_is_not_kept_alive(
    engine: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def never() -> str:
        return str(await asyncio.Event().wait())

    monkeypatch.setattr(engine_changes, "_LABEL_TIMEOUT_S", 0.01)
    engine.engine_core.get_weight_version_async = never
    async with asyncio.timeout(60):
        await engine.learn_weight_version()
    assert engine.front_end.flights.weight_version is None
    assert engine.front_end.errors.counts() == {"weight_version": 1}


async def test_our_own_calls_to_the_workers_change_nothing(engine: Any) -> None:
    await engine.collective_rpc("reprise_stats")
    assert engine.front_end.changes == 0


async def test_each_load_of_an_adapter_is_a_change_of_that_one(engine: Any) -> None:
    adapter = SimpleNamespace(lora_int_id=3, lora_path="/nowhere", load_inplace=False)
    other = SimpleNamespace(lora_int_id=4, lora_path="/nowhere", load_inplace=False)
    adapters = engine.front_end.exact.adapters
    keys = {adapters.key(adapter)}
    assert await engine.add_lora(adapter)
    keys.add(adapters.key(adapter))
    assert await engine.remove_lora(3)
    keys.add(adapters.key(adapter))
    assert len(keys) == 3
    assert adapters.key(other) == AdapterEpochs().key(other)
    assert engine.front_end.changes == 0


async def test_pauses_are_known_however_they_end(engine: Any) -> None:
    core, front_end = engine.engine_core, engine.front_end
    await engine.pause_generation(clear_cache=False)
    assert front_end.is_paused
    await engine.resume_generation()
    assert not front_end.is_paused
    core.fails = True
    with pytest.raises(ValueError, match="Invalid pause mode"):
        await engine.pause_generation(mode="x", clear_cache=False)
    assert not front_end.is_paused
    core.fails = False
    await engine.pause_generation(clear_cache=False)
    await engine.wake_up()
    assert not front_end.is_paused
    # Another client of the same engine has paused it.
    core.is_paused = True
    assert await engine.is_paused()
    assert front_end.is_paused


@pytest.mark.parametrize("method", ["is_paused", "resume_generation", "wake_up"])
async def test_what_was_asked_before_a_pause_does_not_end_it(engine: Any, method: str) -> None:
    """Whoever looks whether an engine is paused, every second say, hears of the time before."""
    core, front_end = engine.engine_core, engine.front_end
    await engine.pause_generation(clear_cache=False)
    core.is_paused = method == "resume_generation"
    asked, says = asyncio.Event(), asyncio.Event()

    async def late(*_: Any) -> bool:
        asked.set()
        await says.wait()
        return False

    core.is_scheduler_paused_async = core.resume_scheduler_async = late
    looking = asyncio.create_task(getattr(engine, method)())
    await asked.wait()
    await engine.pause_generation(clear_cache=False)
    says.set()
    await looking
    assert front_end.is_paused


async def test_a_pause_that_ended_meanwhile_is_over(engine: Any) -> None:
    core, front_end = engine.engine_core, engine.front_end
    await engine.pause_generation(clear_cache=False)
    asked, says = asyncio.Event(), asyncio.Event()

    async def late(*_: Any) -> bool:
        asked.set()
        await says.wait()
        return True

    core.is_scheduler_paused_async = late
    looking = asyncio.create_task(engine.is_paused())
    await asked.wait()
    await engine.resume_generation()
    says.set()
    assert await looking  # as the engine said
    assert not front_end.is_paused


async def test_who_looks_during_a_resumption_does_not_undo_it(engine: Any) -> None:
    core, front_end = engine.engine_core, engine.front_end
    await engine.pause_generation(clear_cache=False)
    asked, says = asyncio.Event(), asyncio.Event()

    async def late(*_: Any) -> None:
        asked.set()
        await says.wait()

    core.resume_scheduler_async = late
    resuming = asyncio.create_task(engine.resume_generation())
    await asked.wait()
    assert await engine.is_paused()
    says.set()
    await resuming
    assert not front_end.is_paused


async def test_without_a_front_end_it_is_vllms_client(engine: Any) -> None:
    engine.front_end = None
    engine.engine_core.front_end = SimpleNamespace(is_paused=True)
    await engine.pause_generation(clear_cache=False)
    assert await engine.is_paused()
    await engine.sleep(level=0)
    assert await engine.add_lora(SimpleNamespace(lora_int_id=1))
