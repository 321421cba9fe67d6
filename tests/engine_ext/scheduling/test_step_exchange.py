"""A step is one exchange with the workers where it can be, and vLLM's own calls where not."""

import pickle
from concurrent.futures import Future
from dataclasses import replace
from unittest.mock import create_autospec

import pytest

pytest.importorskip("vllm")

from vllm.v1.core.sched.output import SchedulerOutput
from vllm.v1.executor.multiproc_executor import MultiprocExecutor
from vllm.v1.kv_cache_interface import KVCacheConfig
from vllm.v1.outputs import DraftTokenIds, ModelRunnerOutput
from vllm.v1.worker.cpu_worker import CPUWorker
from vllm.v1.worker.gpu_worker import Worker
from vllm.v1.worker.worker_base import WorkerWrapperBase

from reprise.engine_ext.compat.patches import Feature, Role
from reprise.engine_ext.compat.registry import registry
from reprise.engine_ext.scheduling import step_exchange
from reprise.engine_ext.scheduling.modes import AsyncMode, set_async_mode, set_cpu_optimizations
from reprise.tests.engine_ext.model_runner import engine_config, model_runner_of

FETCHED = DraftTokenIds(["fetched"], [[9]])


@pytest.fixture(scope="module")
def runner(demo_model):
    """vLLM's model runner, with the demo model."""
    with model_runner_of(engine_config(demo_model)) as runner:
        yield runner


@pytest.fixture
def output_of(runner, monkeypatch):
    """The output of a step of the runner's that has drafted so for request `a`."""
    monkeypatch.setattr(runner.input_batch, "_req_ids", ["a"])
    for name in ("_draft_token_ids", "_draft_token_req_ids", "use_async_scheduling"):
        monkeypatch.setattr(runner, name, getattr(runner, name))

    def attached(draft=None, *, use_async_scheduling=False):
        runner.use_async_scheduling = use_async_scheduling
        runner._draft_token_ids = None if draft is None else [draft]
        runner._draft_token_req_ids = None if draft is None else ["a"]
        output = ModelRunnerOutput(req_ids=["a"], req_id_to_index={"a": 0})
        step_exchange.attach(runner, output)
        return output

    return attached


@pytest.fixture(scope="module")
def own_config(demo_model):
    return engine_config(demo_model)


@pytest.fixture
def config(own_config, monkeypatch):
    """vLLM's config of an engine with our proposer; what a test changes in it is undone."""
    for part, name in (
        (own_config, "speculative_config"),
        (own_config.speculative_config, "model"),
        (own_config.parallel_config, "pipeline_parallel_size"),
        (own_config.scheduler_config, "async_scheduling"),
    ):
        monkeypatch.setattr(part, name, getattr(part, name))
    marks = dict(vars(own_config.scheduler_config))
    yield own_config
    vars(own_config.scheduler_config).clear()
    vars(own_config.scheduler_config).update(marks)


@pytest.fixture
def executor(config, monkeypatch):
    """vLLM's executor, wrapped, with a worker that answers from `outputs`, pickled as by vLLM."""
    assert registry.apply(Feature.STEP_EXCHANGE, step_exchange, role=Role.ENGINE_CORE)
    executor = MultiprocExecutor.__new__(MultiprocExecutor)
    executor.output_rank = 0
    executor.kv_output_aggregator = executor.ec_output_aggregator = None
    executor.outputs, executor.calls = [], []
    executor.vllm_config = config

    def answer(method, *, non_block=False, **_):
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

    # Called with what vLLM's own would take, or not at all.
    rpc = create_autospec(executor.collective_rpc, side_effect=answer)
    monkeypatch.setattr(executor, "collective_rpc", rpc)
    yield executor
    executor.outputs.clear()


def test_drafts_come_with_the_output(executor, output_of):
    executor.outputs = [output_of([1, 2])]
    assert executor.sample_tokens(None).req_ids == ["a"]
    drafts = executor.take_draft_token_ids()
    assert (drafts.req_ids, drafts.draft_token_ids) == (["a"], [[1, 2]])
    assert executor.calls == ["sample_tokens"]


@pytest.mark.parametrize("drafted", [{"draft": None}, {"draft": [1], "use_async_scheduling": True}])
def test_without_drafts_on_it_vllm_fetches_them(executor, output_of, drafted):
    executor.outputs = [output_of(**drafted)]
    executor.sample_tokens(None)
    assert executor.take_draft_token_ids() is not None
    assert executor.calls == ["sample_tokens", "take_draft_token_ids"]


def test_drafts_serve_one_step(executor, output_of):
    executor.outputs = [output_of([1]), output_of()]
    executor.sample_tokens(None)
    executor.sample_tokens(None)
    assert executor.take_draft_token_ids().req_ids == ["fetched"]
    executor.outputs = [output_of([1])]
    executor.sample_tokens(None)
    assert executor.take_draft_token_ids().req_ids == ["a"]
    assert executor.take_draft_token_ids().req_ids == ["fetched"]


def test_what_is_not_a_steps_output_stays_as_it_is(runner):
    assert step_exchange.attach(runner, None) is None


def step(**changes):
    """What the scheduler decided for a step."""
    return replace(SchedulerOutput.make_empty(), **{"total_num_scheduled_tokens": 3} | changes)


def test_a_step_is_one_call_and_its_drafts_come_with_it(executor, output_of):
    executor.outputs = [output_of([1, 2])]
    assert executor.execute_model(step(), non_block=True).result().req_ids == ["a"]
    assert executor.take_draft_token_ids().draft_token_ids == [[1, 2]]
    assert executor.calls == ["reprise_step"]


def test_steps_that_are_scheduled_ahead_are_one_call_each(executor, output_of):
    set_async_mode(executor.vllm_config, AsyncMode.SCHEDULE)
    executor.vllm_config.scheduler_config.async_scheduling = True
    assert executor.vllm_config.max_concurrent_batches == 2
    executor.outputs = [output_of() for _ in range(2)]
    for _ in range(2):
        under_way = executor.execute_model(step(), non_block=True)
        assert executor.sample_tokens(None, non_block=True) is under_way
        assert under_way.result().req_ids == ["a"]
    assert executor.calls == ["reprise_step", "reprise_step"]


def test_after_a_step_of_one_call_one_with_a_grammar_is_sampled_by_a_call_of_its_own(
    executor, output_of
):
    set_async_mode(executor.vllm_config, AsyncMode.SCHEDULE)
    executor.outputs = [output_of() for _ in range(2)]
    executor.execute_model(step(), non_block=True)
    executor.execute_model(step(has_structured_output_requests=True), non_block=True)
    assert executor.sample_tokens("a grammar", non_block=True).result().req_ids == ["a"]
    assert executor.calls == ["reprise_step", "execute_model", "sample_tokens"]


def another_drafter(executor):
    executor.vllm_config.speculative_config.model = "another"


def no_drafter(executor):
    executor.vllm_config.speculative_config = None


def a_pipeline(executor):
    executor.vllm_config.parallel_config.pipeline_parallel_size = 2


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


@pytest.fixture
def worker(runner):
    """vLLM's worker, as its process calls it, around the model runner; it binds no core."""
    own = CPUWorker.__new__(CPUWorker)
    Worker.__init__(own, runner.vllm_config, 0, 0, "", is_driver_worker=True)
    own.model_runner = runner
    wrapper = WorkerWrapperBase()
    wrapper.worker, wrapper.vllm_config = own, runner.vllm_config
    wrapper.mm_receiver_cache = None
    assert registry.apply(Feature.STEP_EXCHANGE, step_exchange, role=Role.ENGINE_CORE)
    return wrapper


def test_the_worker_samples_what_its_model_has_run(worker, runner, monkeypatch):
    decided, sampled = step(), ModelRunnerOutput(req_ids=["a"], req_id_to_index={"a": 0})
    execute_model = create_autospec(runner.execute_model, return_value=None)
    sample_tokens = create_autospec(runner.sample_tokens, return_value=sampled)
    monkeypatch.setattr(runner, "execute_model", execute_model)
    monkeypatch.setattr(runner, "sample_tokens", sample_tokens)
    assert worker.reprise_step(decided) is sampled
    assert execute_model.call_args.args[0] is decided
    sample_tokens.assert_called_once_with(None)


def test_the_worker_samples_nothing_where_the_model_gave_the_output(worker, runner, monkeypatch):
    sample_tokens = create_autospec(runner.sample_tokens)
    monkeypatch.setattr(runner, "sample_tokens", sample_tokens)
    runner.kv_cache_config = KVCacheConfig(0, kv_cache_tensors=[], kv_cache_groups=[])
    output = worker.reprise_step(step(total_num_scheduled_tokens=0))
    assert isinstance(output, ModelRunnerOutput)
    assert output.req_ids == []
    sample_tokens.assert_not_called()
