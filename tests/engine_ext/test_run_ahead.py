"""Steps without drafts run ahead of those before them, and no answer changes by it.

A CPU computes while it launches, so nothing is won on it; what is decided, and in which order
tokens become known, is the same as on a GPU.
"""

import inspect
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("vllm")

from vllm.engine.arg_utils import EngineArgs
from vllm.v1.engine.core import EngineCore
from vllm.v1.outputs import DraftTokenIds

from reprise.engine_ext import run_ahead
from reprise.engine_ext.plugin import PROPOSER_PATH
from reprise.engine_ext.row_tracker import num_known
from reprise.eval.demo_trace import make_demo_trace

pytestmark = [pytest.mark.engine, pytest.mark.timeout(600)]

TIGHT = {"block_size": 32, "num_gpu_blocks_override": 20, "max_num_batched_tokens": 48}


@pytest.fixture(scope="module")
def questions() -> list[str]:
    return [row.prompt for row in make_demo_trace(seed=0) if not row.warm][:32]


@pytest.fixture(scope="module")
def build_ahead(demo_model: Path, llm_builder: Callable[..., Any]) -> Callable[..., Any]:
    """An engine as there is one on a GPU: with an executor in the engine core's own process."""

    def build(**settings: Any) -> Any:
        run_ahead.install()
        with pytest.MonkeyPatch.context() as monkeypatch:
            monkeypatch.setattr(run_ahead, "is_overlapping", lambda: True)
            # vLLM reads a number; its CPU platform, which wants another executor, looks for a "1".
            monkeypatch.setenv("VLLM_ENABLE_V1_MULTIPROCESSING", "01")
            return llm_builder(demo_model, with_reprise=True, **settings)

    return build


@pytest.fixture(scope="module")
def ahead_llm(build_ahead: Callable[..., Any]) -> Iterator[Any]:
    llm = build_ahead()
    assert llm.collective_rpc("reprise_flush", args=(250.0,)) == [True]
    yield llm
    llm.llm_engine.engine_core.shutdown()


def said(llm: Any, prompts: list[str], samplings: list[dict[str, Any]]) -> list[tuple[Any, ...]]:
    """The answers to the prompts, which take turns with the ways to sample."""
    from vllm import SamplingParams

    defaults = {"temperature": 0.0, "max_tokens": 120}
    params = [
        SamplingParams(**{**defaults, **samplings[i % len(samplings)]}) for i in range(len(prompts))
    ]
    chats = [[{"role": "user", "content": prompt}] for prompt in prompts]
    outputs = [output.outputs[0] for output in llm.chat(chats, params, use_tqdm=False)]
    return [(tuple(o.token_ids), o.text, o.finish_reason, o.stop_reason) for o in outputs]


def report_of(llm: Any) -> dict[str, Any]:
    assert llm.collective_rpc("reprise_flush", args=(250.0,)) == [True]
    (report,) = llm.collective_rpc("reprise_stats")
    assert report["errors"] == {}
    return dict(report)


@pytest.mark.slow
def test_greedy_answers_are_identical_and_learned_whole(
    plain_llm: Any, ahead_llm: Any, questions: list[str]
) -> None:
    expected = said(plain_llm, questions, [{}])
    assert said(ahead_llm, questions, [{}]) == expected
    report = report_of(ahead_llm)
    assert min(report["steps"].values()) > 20, "one kind of step is missing: nothing was tested"
    # Nothing that was computed beyond an end is learned.
    tokens = {answer[0] for answer in expected}
    assert report["provider"]["cached_tokens"] <= sum(map(len, tokens)) + len(tokens)
    # Exact repeats, one by one: drafts are long, and mostly right.
    for question, answer in zip(questions, expected, strict=True):
        assert said(ahead_llm, [question], [{}]) == [answer]
    after = report_of(ahead_llm)
    accepted = after["provider"]["accepted"] - report["provider"]["accepted"]
    assert accepted > sum(len(answer[0]) for answer in expected) / 3
    assert after["steps"]["run_ahead"] > report["steps"]["run_ahead"]


@pytest.mark.slow
@pytest.mark.parametrize(
    "special",
    [
        {"max_tokens": 1},
        {"max_tokens": 7},
        {"stop": ["you", "order"]},
        {"min_tokens": 100, "max_tokens": 110},
        {"repetition_penalty": 1.3, "max_tokens": 40},
        {"logprobs": 2, "max_tokens": 20},
        {"bad_words": ["you", "your"], "max_tokens": 40},
        {"temperature": 0.8, "seed": 11, "max_tokens": 60},
    ],
)
def test_requests_of_all_kinds_are_answered_side_by_side(
    plain_llm: Any, ahead_llm: Any, questions: list[str], special: dict[str, Any]
) -> None:
    samplings: list[dict[str, Any]] = [{}, special, {}]
    expected = said(plain_llm, questions[:16], samplings)
    assert said(ahead_llm, questions[:16], samplings) == expected
    report_of(ahead_llm)


@pytest.mark.slow
def test_grammars_are_kept_beside_requests_without(
    plain_llm: Any, ahead_llm: Any, questions: list[str]
) -> None:
    from vllm.sampling_params import StructuredOutputsParams

    samplings: list[dict[str, Any]] = [{}, {}]
    answers = []
    for llm in (plain_llm, ahead_llm):
        samplings[1] = {"structured_outputs": StructuredOutputsParams(regex="[a-z ]{20,40}\\.")}
        answers.append(said(llm, questions[:12], samplings))
    assert answers[0] == answers[1]
    assert all(20 < len(answer[1]) <= 41 for answer in answers[1][1::2])
    report_of(ahead_llm)


@pytest.mark.slow
def test_preempted_and_chunked_requests_are_answered_alike(
    demo_model: Path, llm_builder: Callable[..., Any], build_ahead: Callable[..., Any]
) -> None:
    settings = {**TIGHT, "max_model_len": 512, "enable_prefix_caching": False}
    prompts = [row.prompt for row in make_demo_trace(seed=0) if not row.warm][:24]
    prompts = [" ".join([prompt] * 6) for prompt in prompts]
    plain = llm_builder(demo_model, with_reprise=False, **settings)
    # No further than the answers' ends: beyond, tokens tie, and who is computed again, in other
    # pieces, decides. vLLM's own asynchronous scheduling then answers differently as well.
    expected = said(plain, prompts, [{}])
    plain.llm_engine.engine_core.shutdown()
    ours = build_ahead(**settings)
    try:
        for _ in range(2):
            assert said(ours, prompts, [{}]) == expected
        steps = report_of(ours)["steps"]
        preempted = sum(m.value for m in ours.get_metrics() if m.name == "vllm:num_preemptions")
    finally:
        ours.llm_engine.engine_core.shutdown()
    assert min(steps.values()) > 20
    assert preempted > 0, "nothing was preempted: the test could not fail"


def test_drafts_that_found_no_room_are_dropped() -> None:
    """They would be scheduled with a step that is launched before the one before it is known."""
    requests = [SimpleNamespace(request_id=name, spec_token_ids=[]) for name in ("a", "b", "c")]
    by_id = {request.request_id: request for request in requests}

    def update_draft_token_ids(drafts: Any) -> None:
        for name, tokens in zip(drafts.req_ids, drafts.draft_token_ids, strict=True):
            by_id[name].spec_token_ids = tokens

    def update_after_schedule(output: Any) -> None:
        for name in output.num_scheduled_tokens:
            by_id[name].spec_token_ids = [-1] * output.num_spec_tokens_to_schedule

    output = SimpleNamespace(scheduled_spec_decode_tokens={})
    runner = SimpleNamespace(
        drafter=SimpleNamespace(can_run_ahead=lambda: True),
        execute_model_state=SimpleNamespace(scheduler_output=output),
        requests={},
        sample_tokens=lambda _: "sampled",
        propose_draft_token_ids=None,
        take_draft_token_ids=lambda: DraftTokenIds(["a", "b"], [[1], [2, 3]]),
    )
    output.scheduled_spec_decode_tokens["a"] = [7]
    scheduler = SimpleNamespace(
        running=requests,
        update_draft_token_ids=update_draft_token_ids,
        update_from_output=lambda *_: "outputs",
        _update_after_schedule=update_after_schedule,
    )
    worker = SimpleNamespace(worker=SimpleNamespace(model_runner=runner))
    executor = SimpleNamespace(driver_worker=worker)
    ahead = run_ahead.RunAhead(SimpleNamespace(scheduler=scheduler, model_executor=executor))
    ahead.sample_tokens(None)  # a step with drafts, which is waited for
    ahead.update_from_output(output, SimpleNamespace())  # type: ignore[arg-type]
    assert [request.spec_token_ids for request in requests] == [[1], [2, 3], []]
    ahead.update_after_schedule(
        SimpleNamespace(num_scheduled_tokens={"a": 2, "c": 1})  # type: ignore[arg-type]
    )
    assert [request.spec_token_ids for request in requests] == [[], [], []]


def config(**changes: Any) -> Any:
    """A config that may run ahead, but for these changes."""
    parallel = {
        "world_size": 1,
        "data_parallel_size": 1,
        "distributed_executor_backend": "uni",
    }
    parallel.update((key, changes.pop(key)) for key in tuple(changes) if key in parallel)
    return SimpleNamespace(
        speculative_config=SimpleNamespace(model=changes.get("drafter", PROPOSER_PATH)),
        model_config=SimpleNamespace(is_hybrid=changes.get("is_hybrid", False)),
        kv_transfer_config=changes.get("kv_transfer_config"),
        scheduler_config=SimpleNamespace(scheduler_cls=changes.get("scheduler_cls")),
        parallel_config=SimpleNamespace(**parallel),
    )


def test_one_device_runs_ahead(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not run_ahead.may_run_ahead(config())  # a CPU
    monkeypatch.setattr(run_ahead, "is_overlapping", lambda: True)
    assert run_ahead.may_run_ahead(config())


@pytest.mark.parametrize(
    "change",
    [
        {"drafter": "ngram"},
        {"is_hybrid": True},
        {"kv_transfer_config": object()},
        {"scheduler_cls": "my.Scheduler"},
        {"world_size": 2},
        {"data_parallel_size": 2},
        {"distributed_executor_backend": "mp"},
    ],
)
def test_other_engines_do_not(monkeypatch: pytest.MonkeyPatch, change: dict[str, Any]) -> None:
    monkeypatch.setattr(run_ahead, "is_overlapping", lambda: True)
    assert not run_ahead.may_run_ahead(config(**change))


def test_it_is_installed_once_and_only_in_the_vllm_that_it_knows(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run_ahead.install()
    step, create = EngineCore.step_with_batch_queue, EngineArgs.create_engine_config
    run_ahead.install()
    assert EngineCore.step_with_batch_queue is step
    assert EngineArgs.create_engine_config is create
    monkeypatch.setattr(EngineCore, "step_with_batch_queue", inspect.unwrap(step))
    monkeypatch.setitem(
        run_ahead._EXPECTED_PARAMETERS, (EngineCore, "step_with_batch_queue"), ("self", "more")
    )
    with pytest.raises(RuntimeError, match="step_with_batch_queue"):
        run_ahead.install()


@pytest.mark.parametrize(
    ("tokens", "known"), [([], 0), ([5, 6], 2), ([5, -1], 1), ([-1, -1], 0), ([5, -1, 6, -1], 3)]
)
def test_placeholders_at_the_end_are_not_known(tokens: list[int], known: int) -> None:
    assert num_known(tokens) == known
