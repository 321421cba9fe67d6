"""Drafts come with the output of their step, and by vLLM's own call where they do not."""

import pickle
from types import SimpleNamespace

import pytest

pytest.importorskip("vllm")

from vllm.v1.executor.multiproc_executor import MultiprocExecutor
from vllm.v1.outputs import DraftTokenIds, ModelRunnerOutput

from reprise.engine_ext import draft_hand_over

FETCHED = DraftTokenIds(["fetched"], [[9]])


def runner(drafts, *, use_async_scheduling=False):
    return SimpleNamespace(
        use_async_scheduling=use_async_scheduling, take_draft_token_ids=lambda: drafts
    )


@pytest.fixture
def executor(monkeypatch):
    """vLLM's executor, wrapped, with a worker that answers from `outputs`, pickled as by vLLM."""
    draft_hand_over.install()
    executor = MultiprocExecutor.__new__(MultiprocExecutor)
    executor.output_rank = 0
    executor.kv_output_aggregator = executor.ec_output_aggregator = None
    executor.outputs, executor.calls = [], []

    def collective_rpc(method, **_):
        executor.calls.append(method)
        if method == "sample_tokens":
            return pickle.loads(pickle.dumps(executor.outputs.pop(0)))
        return FETCHED

    monkeypatch.setattr(executor, "collective_rpc", collective_rpc, raising=False)
    yield executor
    executor.outputs.clear()


def output_of(a_runner):
    output = ModelRunnerOutput(req_ids=["a"], req_id_to_index={"a": 0})
    draft_hand_over.attach(a_runner, output)
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
    assert draft_hand_over.attach(runner(FETCHED), None) is None
