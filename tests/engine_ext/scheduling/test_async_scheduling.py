"""Which engines schedule asynchronously, and what is patched for it."""

import pickle
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("vllm")

from vllm.config import KVTransferConfig, SchedulerConfig
from vllm.distributed.device_communicators.shm_broadcast import SpinCondition
from vllm.engine.arg_utils import EngineArgs
from vllm.v1.engine.core import EngineCore

from reprise.engine_ext.compat.patches import Feature, Role
from reprise.engine_ext.compat.registry import registry
from reprise.engine_ext.core.identity import PROPOSER_PATH
from reprise.engine_ext.scheduling import async_scheduling
from reprise.engine_ext.scheduling.modes import (
    AsyncMode,
    async_mode_of,
    set_async_mode,
    set_cpu_optimizations,
)


def config(backend: str | None = "mp", **changes: Any) -> Any:
    """One of an engine that may get ahead of itself, but for these changes."""
    parallel = {"world_size": 1, "data_parallel_size": 1}
    parallel.update((key, changes.pop(key)) for key in tuple(changes) if key in parallel)
    return SimpleNamespace(
        speculative_config=SimpleNamespace(model=changes.get("drafter", PROPOSER_PATH)),
        model_config=SimpleNamespace(is_hybrid=changes.get("is_hybrid", False)),
        kv_transfer_config=changes.get("kv_transfer_config"),
        scheduler_config=SimpleNamespace(scheduler_cls=changes.get("scheduler_cls")),
        parallel_config=SimpleNamespace(distributed_executor_backend=backend, **parallel),
        use_v2_model_runner=changes.get("use_v2_model_runner", False),
    )


@pytest.mark.parametrize(
    ("has_device", "backend", "way"),
    [
        (False, "mp", AsyncMode.SCHEDULE),
        (False, "uni", None),
        (True, "uni", AsyncMode.LAUNCH),
        (True, None, AsyncMode.LAUNCH),
        (True, "mp", None),
    ],
)
def test_an_engine_schedules_by_what_runs_beside_it(
    monkeypatch: pytest.MonkeyPatch, has_device: bool, backend: str | None, way: AsyncMode | None
) -> None:
    monkeypatch.setattr(async_scheduling, "is_overlapping", lambda: has_device)
    monkeypatch.setattr(async_scheduling, "num_cores", lambda: 2)
    assert async_scheduling.possible_mode(config(backend)) is way


def test_on_one_core_nothing_runs_beside_the_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(async_scheduling, "num_cores", lambda: 1)
    assert async_scheduling.possible_mode(config()) is None


@pytest.mark.parametrize(
    "change",
    [
        {"drafter": "ngram"},
        {"is_hybrid": True},
        {"kv_transfer_config": KVTransferConfig(kv_connector="X", kv_role="kv_consumer")},
        {"scheduler_cls": "my.Scheduler"},
        {"world_size": 2},
        {"data_parallel_size": 2},
        {"use_v2_model_runner": True},
    ],
)
def test_other_engines_do_not(monkeypatch: pytest.MonkeyPatch, change: dict[str, Any]) -> None:
    monkeypatch.setattr(async_scheduling, "num_cores", lambda: 2)
    for has_device, backend in ((False, "mp"), (True, "uni")):
        monkeypatch.setattr(async_scheduling, "is_overlapping", lambda found=has_device: found)
        assert async_scheduling.possible_mode(config(backend, **change)) is None


def test_an_engine_whose_connector_keeps_blocks_does(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(async_scheduling, "num_cores", lambda: 2)
    keeps = KVTransferConfig(kv_connector="OffloadingConnector", kv_role="kv_both")
    given = config(kv_transfer_config=keeps)
    assert async_scheduling.possible_mode(given) is AsyncMode.SCHEDULE
    monkeypatch.setattr(async_scheduling, "is_overlapping", lambda: True)
    given = config("uni", kv_transfer_config=keeps)
    assert async_scheduling.possible_mode(given) is AsyncMode.LAUNCH


def test_the_way_is_in_what_other_processes_are_sent() -> None:
    sent = SimpleNamespace(scheduler_config=SchedulerConfig.default_factory())
    assert async_mode_of(sent) is None  # type: ignore[arg-type]
    set_async_mode(sent, AsyncMode.SCHEDULE)  # type: ignore[arg-type]
    assert async_mode_of(pickle.loads(pickle.dumps(sent))) is AsyncMode.SCHEDULE


@pytest.mark.parametrize(("resolves", "mode"), [(True, AsyncMode.SCHEDULE), (False, None)])
def test_a_worker_that_cannot_resolve_drafts_is_scheduled_step_by_step(
    resolves: bool, mode: AsyncMode | None
) -> None:
    marked = SimpleNamespace(scheduler_config=SchedulerConfig.default_factory())
    set_async_mode(marked, AsyncMode.SCHEDULE)  # type: ignore[arg-type]
    polled = SpinCondition.__new__(SpinCondition)
    asked = SimpleNamespace(
        vllm_config=marked,
        collective_rpc=lambda _: [resolves],
        response_mqs=[SimpleNamespace(_spin_condition=polled)],
    )
    async_scheduling.init_multiproc(lambda _: None, asked)
    assert bool(marked.scheduler_config.async_scheduling) is resolves
    assert async_mode_of(marked) is mode  # type: ignore[arg-type]
    assert ("wait" in vars(polled)) is resolves


def test_without_cpu_optimizations_an_engine_on_the_cpu_goes_step_by_step(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(async_scheduling, "num_cores", lambda: 2)
    for wanted, mode in ((True, AsyncMode.SCHEDULE), (False, None)):
        given = config()
        given.additional_config = {"reprise": {"engine": {"cpu_optimizations": wanted}}}
        given.speculative_config.num_speculative_tokens = 8
        async_scheduling.mark_cpu_optimizations(given)
        assert async_scheduling.possible_mode(given) is mode
    monkeypatch.setattr(async_scheduling, "is_overlapping", lambda: True)
    given = config("uni")
    set_cpu_optimizations(given, False)
    assert async_scheduling.possible_mode(given) is AsyncMode.LAUNCH


def test_it_is_applied_once_and_only_in_the_vllm_that_it_knows(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def apply() -> bool:
        return registry.apply(Feature.ASYNC_SCHEDULING, async_scheduling, role=Role.ENGINE_CORE)

    assert apply()
    step, create = EngineCore.step_with_batch_queue, EngineArgs.create_engine_config
    assert apply()
    assert EngineCore.step_with_batch_queue is step
    assert EngineArgs.create_engine_config is create
    registry.revert(Feature.ASYNC_SCHEDULING)
    before = EngineArgs.create_engine_config
    monkeypatch.setattr(EngineCore, "step_with_batch_queue", lambda self, more: (self, more))
    assert not apply()
    assert EngineArgs.create_engine_config is before, "half of it was applied"
