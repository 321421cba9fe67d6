"""A step is one exchange with the workers where it can be, and vLLM's own calls where not."""

import pickle
from concurrent.futures import Future
from types import SimpleNamespace

import pytest

pytest.importorskip("vllm")

from vllm.v1.executor.multiproc_executor import MultiprocExecutor
from vllm.v1.outputs import DraftTokenIds, ModelRunnerOutput

from reprise.engine_ext.compat.patches import Feature, Role
from reprise.engine_ext.compat.registry import registry
from reprise.engine_ext.core.identity import PROPOSER_PATH
from reprise.engine_ext.scheduling import step_exchange
from reprise.engine_ext.scheduling.modes import AsyncMode, set_async_mode, set_cpu_optimizations

FETCHED = DraftTokenIds(["fetched"], [[9]])


def runner(drafts, *, use_async_scheduling=False):
    return SimpleNamespace(
        use_async_scheduling=use_async_scheduling, take_draft_token_ids=lambda: drafts
    )


@pytest.fixture
def executor(monkeypatch):
    """vLLM's executor, wrapped, with a worker that answers from `outputs`, pickled as by vLLM."""
    assert registry.apply(Feature.STEP_EXCHANGE, step_exchange, role=Role.ENGINE_CORE)
    executor = MultiprocExecutor.__new__(MultiprocExecutor)
    executor.output_rank = 0
    executor.kv_output_aggregator = executor.ec_output_aggregator = None
    executor.outputs, executor.calls = [], []
    executor.vllm_config = SimpleNamespace(
        speculative_config=SimpleNamespace(model=PROPOSER_PATH),
        scheduler_config=SimpleNamespace(),
        max_concurrent_batches=1,
    )

    def collective_rpc(method, *, non_block=False, **_):
        executor.calls.append(method)
        result = FETCHED
        if method in ("sample_tokens", "reprise_step"):
            result = pickle.loads(pickle.dumps(executor.outputs.pop(0)))
        elif method == "execute_model":
            result = None
        if not non_block:
            return result
        future = Future()
        future.set_result(result)
        return future

    monkeypatch.setattr(executor, "collective_rpc", collective_rpc, raising=False)
    yield executor
    executor.outputs.clear()


def output_of(a_runner):
    output = ModelRunnerOutput(req_ids=["a"], req_id_to_index={"a": 0})
    step_exchange.attach(a_runner, output)
    return output


def test_drafts_come_with_the_output(executor):
    executor.outputs = [output_of(runner(DraftTokenIds(["a"], [[1, 2]])))]
    assert executor.sample_tokens(None).req_ids == ["a"]
    drafts = executor.take_draft_token_ids()
    assert (drafts.req_ids, drafts.draft_token_ids) == (["a"], [[1, 2]])
    assert executor.calls == ["sample_tokens"]


@pytest.mark.parametrize(
    "a_runner", [runner(None), runner(DraftTokenIds(["a"], [[1]]), use_async_scheduling=True)]
)
def test_without_drafts_on_it_vllm_fetches_them(executor, a_runner):
    executor.outputs = [output_of(a_runner)]
    executor.sample_tokens(None)
    assert executor.take_draft_token_ids() is not None
    assert executor.calls == ["sample_tokens", "take_draft_token_ids"]


def test_drafts_serve_one_step(executor):
    executor.outputs = [output_of(runner(DraftTokenIds(["a"], [[1]]))), output_of(runner(None))]
    executor.sample_tokens(None)
    executor.sample_tokens(None)
    assert executor.take_draft_token_ids().req_ids == ["fetched"]
    executor.outputs = [output_of(runner(DraftTokenIds(["a"], [[1]])))]
    executor.sample_tokens(None)
    assert executor.take_draft_token_ids().req_ids == ["a"]
    assert executor.take_draft_token_ids().req_ids == ["fetched"]


def test_what_is_not_a_steps_output_stays_as_it_is():
    assert step_exchange.attach(runner(FETCHED), None) is None


def step(**changes):
    """What the scheduler decided for a step."""
    decided = {"total_num_scheduled_tokens": 3, "has_structured_output_requests": False}
    return SimpleNamespace(**decided | changes)


def test_a_step_is_one_call_and_its_drafts_come_with_it(executor):
    executor.outputs = [output_of(runner(DraftTokenIds(["a"], [[1, 2]])))]
    assert executor.execute_model(step(), non_block=True).result().req_ids == ["a"]
    assert executor.take_draft_token_ids().draft_token_ids == [[1, 2]]
    assert executor.calls == ["reprise_step"]


def test_steps_that_are_scheduled_ahead_are_one_call_each(executor):
    set_async_mode(executor.vllm_config, AsyncMode.SCHEDULE)
    executor.vllm_config.max_concurrent_batches = 2
    executor.outputs = [output_of(runner(None)) for _ in range(2)]
    for _ in range(2):
        under_way = executor.execute_model(step(), non_block=True)
        assert executor.sample_tokens(None, non_block=True) is under_way
        assert under_way.result().req_ids == ["a"]
    assert executor.calls == ["reprise_step", "reprise_step"]


def test_after_a_step_of_one_call_one_with_a_grammar_is_sampled_by_a_call_of_its_own(executor):
    set_async_mode(executor.vllm_config, AsyncMode.SCHEDULE)
    executor.outputs = [output_of(runner(None)) for _ in range(2)]
    executor.execute_model(step(), non_block=True)
    executor.execute_model(step(has_structured_output_requests=True), non_block=True)
    assert executor.sample_tokens("a grammar", non_block=True).result().req_ids == ["a"]
    assert executor.calls == ["reprise_step", "execute_model", "sample_tokens"]


def another_drafter(executor):
    executor.vllm_config.speculative_config.model = "another"


def no_drafter(executor):
    executor.vllm_config.speculative_config = None


def a_pipeline(executor):
    executor.vllm_config.max_concurrent_batches = 2


def no_optimizations(executor):
    set_cpu_optimizations(executor.vllm_config, False)


@pytest.mark.parametrize("change", [another_drafter, no_drafter, a_pipeline, no_optimizations])
def test_other_engines_keep_vllms_calls(executor, change):
    change(executor)
    assert executor.execute_model(step(), non_block=True).result() is None
    assert executor.calls == ["execute_model"]


@pytest.mark.parametrize(
    "decided", [{"has_structured_output_requests": True}, {"total_num_scheduled_tokens": 0}]
)
def test_a_step_that_waits_for_a_grammar_or_runs_nothing_keeps_vllms_calls(executor, decided):
    assert executor.execute_model(step(**decided), non_block=True).result() is None
    assert executor.calls == ["execute_model"]


def test_a_failure_in_the_worker_reaches_the_engine_core(executor, monkeypatch):
    failed = Future()
    failed.set_exception(RuntimeError("Worker failed"))
    monkeypatch.setattr(executor, "collective_rpc", lambda *_, **__: failed)
    with pytest.raises(RuntimeError, match="Worker failed"):
        executor.execute_model(step(), non_block=True).result()


@pytest.mark.parametrize("executed", [None, "an output"])
def test_the_worker_samples_unless_the_model_gave_the_output(executed):
    calls = []

    def execute_model(scheduler_output):
        calls.append(scheduler_output)
        return executed

    def sample_tokens(grammar_output):
        calls.append(grammar_output)
        return "sampled"

    worker = SimpleNamespace(execute_model=execute_model, sample_tokens=sample_tokens)
    assert step_exchange.run_step(worker, "step") == (executed or "sampled")
    assert calls == (["step"] if executed else ["step", None])
