"""Engines with a KV connector that keeps blocks in a folder: drafts and asynchronous scheduling
stay on, and answers are those of plain vLLM, also where loads fail and requests are preempted."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

pytest.importorskip("vllm")

from vllm import SamplingParams

from reprise.engine_ext import plugin
from reprise.engine_ext.scheduling import async_scheduling
from reprise.engine_ext.scheduling.modes import AsyncMode, async_mode_of
from reprise.eval.demo_data.demo_trace import make_demo_trace
from reprise.eval.live.settled_report import settled_report
from reprise.tests.engine_ext.kv_connectors.folder_connector import Folder
from reprise.tests.engine_ext.kv_connectors.transfer_config import transfer_config

pytestmark = [pytest.mark.slow, pytest.mark.engine, pytest.mark.timeout(1800)]

# 8 requests of some 200 tokens do not fit 20 blocks of 32: somebody has to give way, and little
# stays in the prefix cache.
TIGHT = {
    "block_size": 32,
    "num_gpu_blocks_override": 20,
    "max_num_batched_tokens": 48,
    "max_model_len": 512,
    "enable_prefix_caching": True,
}
PARAMS = SamplingParams(temperature=0.0, max_tokens=100, ignore_eos=True)


@pytest.fixture(scope="module")
def prompts() -> list[str]:
    """Prompts that are prefilled in several chunks each."""
    rows = [row.prompt for row in make_demo_trace(seed=0) if not row.warm][:16]
    return [" ".join([prompt] * 6) for prompt in rows]


def answers_of(llm: Any, prompts: list[str]) -> list[tuple[int, ...]]:
    chats = [[{"role": "user", "content": prompt}] for prompt in prompts]
    outputs = llm.chat(chats, PARAMS, use_tqdm=False)
    return [tuple(output.outputs[0].token_ids) for output in outputs]


def preemptions(llm: Any) -> int:
    return sum(m.value for m in llm.get_metrics() if m.name == "vllm:num_preemptions")


@pytest.fixture(scope="module")
def expected(
    demo_model: Path, llm_builder: Callable[..., Any], prompts: list[str]
) -> list[tuple[int, ...]]:
    """What plain vLLM says, without a connector."""
    plain = llm_builder(demo_model, with_reprise=False, **TIGHT)
    try:
        answers = answers_of(plain, prompts)
        assert preemptions(plain) > 0, "nothing was preempted: the tests could not fail"
    finally:
        plain.llm_engine.engine_core.shutdown()
    return answers


class Engine(NamedTuple):
    llm: Any
    folder: Folder


@pytest.fixture(scope="module", params=[None, *AsyncMode], ids=["steps", "launch", "schedule"])
def mode(request: pytest.FixtureRequest) -> AsyncMode | None:
    mode: AsyncMode | None = request.param
    return mode


@pytest.fixture(scope="module")
def engine(
    mode: AsyncMode | None,
    demo_model: Path,
    llm_builder: Callable[..., Any],
    expected: list[tuple[int, ...]],  # noqa: ARG001 - first: its engine is to end before this one
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Engine]:
    folder = tmp_path_factory.mktemp("store")
    plugin.apply_all()
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(async_scheduling, "num_cores", lambda: 1 if mode is None else 2)
        if mode is AsyncMode.LAUNCH:
            monkeypatch.setattr(async_scheduling, "is_overlapping", lambda: True)
            # vLLM reads a number; its CPU platform, which wants another executor, a "1".
            monkeypatch.setenv("VLLM_ENABLE_V1_MULTIPROCESSING", "01")
        config = transfer_config(folder)
        llm = llm_builder(demo_model, with_reprise=True, kv_transfer_config=config, **TIGHT)
    assert async_mode_of(llm.llm_engine.vllm_config) is mode
    yield Engine(llm, Folder(folder))
    llm.llm_engine.engine_core.shutdown()


def test_answers_are_those_of_plain_vllm(
    engine: Engine, mode: AsyncMode | None, prompts: list[str], expected: list[tuple[int, ...]]
) -> None:
    """Blocks come back from the folder, drafts are accepted, requests are preempted."""
    for _ in range(2):
        assert answers_of(engine.llm, prompts) == expected
    events = engine.folder.take_events()
    assert min(events.count("load"), events.count("load between steps")) > len(prompts) / 4
    report = settled_report(engine.llm)
    assert report["errors"] == {}
    assert report["live_requests"] == 0
    assert report["provider"]["accepted"] > sum(map(len, expected)) / 3
    assert preemptions(engine.llm) > 0, "nothing was preempted: the test could not fail"
    if mode is AsyncMode.LAUNCH:
        assert min(report["steps"].values()) > 20, "one kind of step is missing"


def test_blocks_that_fail_to_load_are_computed(
    engine: Engine, prompts: list[str], expected: list[tuple[int, ...]]
) -> None:
    answers_of(engine.llm, prompts)  # so that all is stored, whichever test is first
    engine.folder.take_events()
    for number in (1, 5, 100, 100, 100):
        engine.folder.fail_loads(number)
        assert answers_of(engine.llm, prompts) == expected
    engine.folder.fail_loads(0)
    events = engine.folder.take_events()
    failed = events.count("load failed"), events.count("load failed between steps")
    assert min(failed) > len(prompts) / 4
    assert answers_of(engine.llm, prompts) == expected, "what was computed wrongly was stored"
    report = settled_report(engine.llm)
    assert report["errors"] == {}
    assert report["live_requests"] == 0
