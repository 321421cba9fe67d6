"""Which engines get ahead of themselves, and what is wrapped for it."""

import inspect
import pickle
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("vllm")

from vllm.config import SchedulerConfig, VllmConfig
from vllm.engine.arg_utils import EngineArgs
from vllm.v1.engine.core import EngineCore
from vllm.v1.executor.multiproc_executor import MultiprocExecutor

from reprise.engine_ext.compat import async_scheduling
from reprise.engine_ext.core.identity import PROPOSER_PATH
from reprise.engine_ext.scheduling.ahead import Ahead, ahead_of, set_ahead


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
    )


@pytest.mark.parametrize(
    ("has_device", "backend", "way"),
    [
        (False, "mp", Ahead.SCHEDULE),
        (False, "uni", None),
        (True, "uni", Ahead.RUN),
        (True, None, Ahead.RUN),
        (True, "mp", None),
    ],
)
def test_an_engine_gets_ahead_by_what_runs_beside_it(
    monkeypatch: pytest.MonkeyPatch, has_device: bool, backend: str | None, way: Ahead | None
) -> None:
    monkeypatch.setattr(async_scheduling, "is_overlapping", lambda: has_device)
    monkeypatch.setattr(async_scheduling, "num_cores", lambda: 2)
    assert async_scheduling.possible_ahead(config(backend)) is way


def test_on_one_core_nothing_runs_beside_the_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(async_scheduling, "num_cores", lambda: 1)
    assert async_scheduling.possible_ahead(config()) is None


@pytest.mark.parametrize(
    "change",
    [
        {"drafter": "ngram"},
        {"is_hybrid": True},
        {"kv_transfer_config": object()},
        {"scheduler_cls": "my.Scheduler"},
        {"world_size": 2},
        {"data_parallel_size": 2},
    ],
)
def test_other_engines_do_not(monkeypatch: pytest.MonkeyPatch, change: dict[str, Any]) -> None:
    monkeypatch.setattr(async_scheduling, "num_cores", lambda: 2)
    for has_device, backend in ((False, "mp"), (True, "uni")):
        monkeypatch.setattr(async_scheduling, "is_overlapping", lambda found=has_device: found)
        assert async_scheduling.possible_ahead(config(backend, **change)) is None


def test_the_way_is_in_what_other_processes_are_sent() -> None:
    sent = SimpleNamespace(scheduler_config=SchedulerConfig.default_factory())
    assert ahead_of(sent) is None  # type: ignore[arg-type]
    set_ahead(sent, Ahead.SCHEDULE)  # type: ignore[arg-type]
    assert ahead_of(pickle.loads(pickle.dumps(sent))) is Ahead.SCHEDULE


@pytest.mark.parametrize(("fills_in", "way"), [(True, Ahead.SCHEDULE), (False, None)])
def test_a_worker_that_cannot_fill_drafts_in_is_scheduled_step_by_step(
    monkeypatch: pytest.MonkeyPatch, fills_in: bool, way: Ahead | None
) -> None:
    monkeypatch.setattr(MultiprocExecutor, "_init_executor", lambda _: None)
    monkeypatch.setattr(EngineCore, "step_with_batch_queue", lambda _: None)
    for owner, name in ((EngineArgs, "create_engine_config"), (VllmConfig, "__post_init__")):
        monkeypatch.setattr(owner, name, getattr(owner, name))
    monkeypatch.setattr(async_scheduling, "check_parameters", lambda _: None)
    async_scheduling.install()
    marked = SimpleNamespace(scheduler_config=SimpleNamespace(async_scheduling=False))
    set_ahead(marked, Ahead.SCHEDULE)  # type: ignore[arg-type]
    spinning = SimpleNamespace(wait=None)
    asked = SimpleNamespace(
        vllm_config=marked,
        collective_rpc=lambda _: [fills_in],
        response_mqs=[SimpleNamespace(_spin_condition=spinning)],
    )
    MultiprocExecutor._init_executor(asked)  # type: ignore[arg-type]
    assert marked.scheduler_config.async_scheduling is fills_in
    assert ahead_of(marked) is way  # type: ignore[arg-type]
    assert (spinning.wait is not None) is fills_in


def test_it_is_installed_once_and_only_in_the_vllm_that_it_knows(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async_scheduling.install()
    step, create = EngineCore.step_with_batch_queue, EngineArgs.create_engine_config
    async_scheduling.install()
    assert EngineCore.step_with_batch_queue is step
    assert EngineArgs.create_engine_config is create
    monkeypatch.setattr(EngineCore, "step_with_batch_queue", inspect.unwrap(step))
    monkeypatch.setitem(
        async_scheduling._EXPECTED_PARAMETERS,
        (EngineCore, "step_with_batch_queue"),
        ("self", "more"),
    )
    with pytest.raises(RuntimeError, match="step_with_batch_queue"):
        async_scheduling.install()
