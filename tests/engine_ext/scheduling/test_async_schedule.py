"""What the scheduler leaves open, the worker resolves and the scheduler rolls back; engines that do
so are in test_async_engines.py."""

import threading
import time
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("vllm")

from vllm.distributed.device_communicators import shm_broadcast
from vllm.distributed.device_communicators.shm_broadcast import MessageQueue
from vllm.distributed.utils import sched_yield
from vllm.sampling_params import SamplingParams, StructuredOutputsParams
from vllm.v1.core.sched.async_scheduler import AsyncScheduler
from vllm.v1.core.sched.output import CachedRequestData, SchedulerOutput
from vllm.v1.outputs import (
    EMPTY_MODEL_RUNNER_OUTPUT,
    DraftTokenIds,
    KVConnectorOutput,
    ModelRunnerOutput,
)
from vllm.v1.request import Request
from vllm.v1.worker.gpu_input_batch import CachedRequestState
from vllm.v1.worker.gpu_model_runner import GPUModelRunner

from reprise.engine_ext.compat.guarded import Original
from reprise.engine_ext.scheduling.async_schedule import AsyncSchedule, sleep_between_polls
from reprise.engine_ext.scheduling.failed_loads import needs_kv_loaded
from reprise.engine_ext.scheduling.resolve_drafts import (
    num_drafted_of,
    resolve_drafts,
    resolve_without_drafts,
    send_num_drafted,
)

OPEN = -1


def runner(drafts: dict[str, list[int]], **num_tokens: int) -> Any:
    """A model runner whose requests have so many tokens, the first ten of them prompt."""
    requests = {
        name: CachedRequestState(
            req_id=name,
            prompt_token_ids=[1] * 10,
            mm_features=[],
            sampling_params=SamplingParams(),
            generator=None,
            block_ids=(),
            num_computed_tokens=0,
            output_token_ids=[5] * (count - 10),
        )
        for name, count in num_tokens.items()
    }
    a_runner = GPUModelRunner.__new__(GPUModelRunner)
    a_runner.requests = requests
    a_runner._draft_token_req_ids = list(drafts) or None
    a_runner._draft_token_ids = list(drafts.values())
    return a_runner


def decided(
    scheduled: dict[str, int], drafts: dict[str, list[int]], resumed: tuple[str, ...] = ()
) -> SchedulerOutput:
    """A scheduler's output; it takes each cached request to have computed 100 tokens, and to have
    emitted 190 when the step runs."""
    step = SchedulerOutput.make_empty()
    step.scheduled_cached_reqs = CachedRequestData(
        req_ids=list(scheduled),
        resumed_req_ids=set(resumed),
        new_token_ids=[],
        all_token_ids={},
        new_block_ids=[None] * len(scheduled),
        num_computed_tokens=[100] * len(scheduled),
        num_output_tokens=[190] * len(scheduled),
    )
    step.num_scheduled_tokens = scheduled
    step.total_num_scheduled_tokens = sum(scheduled.values())
    step.scheduled_spec_decode_tokens = drafts
    return step


def test_a_step_gets_the_drafts_and_the_places_of_now() -> None:
    step = decided({"a": 5, "b": 5, "c": 3}, {"a": [OPEN] * 4, "b": [OPEN] * 4, "c": [OPEN] * 2})
    resolve_drafts(runner({"a": [7, 8], "c": [1, 2, 3]}, a=60, b=40, c=30), step)
    assert step.scheduled_spec_decode_tokens == {"a": [7, 8], "c": [1, 2]}
    assert step.num_scheduled_tokens == {"a": 3, "b": 1, "c": 3}
    assert step.total_num_scheduled_tokens == 7
    # Up to the last token, which is the first of this step.
    assert step.scheduled_cached_reqs.num_computed_tokens == [59, 39, 29]
    assert step.scheduled_cached_reqs.num_output_tokens == [50, 30, 20]


def test_without_room_for_drafts_the_places_are_those_of_now_all_the_same() -> None:
    step = decided({"a": 1}, {})
    resolve_drafts(runner({"a": [7]}, a=60), step)
    assert (step.num_scheduled_tokens, step.total_num_scheduled_tokens) == ({"a": 1}, 1)
    assert step.scheduled_cached_reqs.num_computed_tokens == [59]


def test_prompts_in_pieces_and_resumed_requests_are_as_the_scheduler_says() -> None:
    step = decided({"prompt": 32, "resumed": 20}, {}, resumed=("resumed",))
    resolve_drafts(runner({}, prompt=200, resumed=60), step)
    assert step.scheduled_cached_reqs.num_computed_tokens == [100, 100]
    assert step.scheduled_cached_reqs.num_output_tokens == [190, 190]
    assert step.total_num_scheduled_tokens == 52


def test_tokens_that_the_scheduler_has_dropped_are_dropped_here() -> None:
    """Their KV could not be loaded: they are computed once more."""
    step = decided({"a": 60}, {})
    step.scheduled_cached_reqs.num_output_tokens = [0]
    resolve_drafts(runner({}, a=111), step)
    assert step.scheduled_cached_reqs.num_output_tokens == [0]
    assert step.scheduled_cached_reqs.num_computed_tokens == [100]


def test_drafts_that_the_engine_core_has_seen_stay() -> None:
    step = decided({"a": 3, "new": 5}, {"a": [4, 5], "new": [OPEN] * 4})
    resolve_drafts(runner({}, a=101, new=10), step)
    assert step.scheduled_spec_decode_tokens == {"a": [4, 5]}
    assert step.num_scheduled_tokens == {"a": 3, "new": 1}


def test_drafts_go_to_the_requests_that_they_were_made_for() -> None:
    """A step that runs nothing, as one at the end of a context, takes all rows from the batch."""
    a_runner = runner({"a": [7, 8], "b": [9]}, a=60, b=40)
    a_runner.num_spec_tokens = 4
    a_runner.input_batch = SimpleNamespace(req_ids=[])
    # What vLLM says of them: drafts for nobody.
    taken = a_runner.take_draft_token_ids()
    assert (taken.req_ids, len(taken.draft_token_ids)) == ([], 2)
    step = decided({"a": 5, "c": 5}, {"a": [OPEN] * 4, "c": [OPEN] * 4})
    resolve_drafts(a_runner, step)
    assert step.scheduled_spec_decode_tokens == {"a": [7, 8]}
    assert step.num_scheduled_tokens == {"a": 3, "c": 1}


@pytest.mark.parametrize("ids", [None, ["a"], ["a", "b", "c"]])
def test_drafts_that_are_nobodys_are_left_out(ids: list[str] | None) -> None:
    a_runner = runner({"a": [7, 8], "b": [9]}, a=60, b=40)
    a_runner._draft_token_req_ids = ids
    step = decided({"a": 5, "b": 5}, {"a": [OPEN] * 4, "b": [OPEN] * 4})
    resolve_drafts(a_runner, step)
    assert step.scheduled_spec_decode_tokens == {}
    assert step.total_num_scheduled_tokens == 2


def test_a_request_with_a_grammar_gets_no_draft_that_the_engine_core_has_not_seen() -> None:
    a_runner = runner({"a": [7, 8], "b": [9]}, a=60, b=40)
    grammar = StructuredOutputsParams(regex="[a-z]+")
    a_runner.requests["a"].sampling_params = SamplingParams(structured_outputs=grammar)
    step = decided({"a": 5, "b": 5}, {"a": [OPEN] * 4, "b": [OPEN] * 4})
    resolve_drafts(a_runner, step)
    assert step.scheduled_spec_decode_tokens == {"b": [9]}


def test_what_failed_half_way_is_settled_without_further_drafts() -> None:
    """The first request has its draft; the drafts of the second cannot be taken."""

    class Bad(list[int]):
        def __getitem__(self, key: Any) -> Any:
            raise ValueError("cannot be taken")

    a_runner = runner({"a": [7, 8], "b": Bad([9])}, a=60, b=40)
    step = decided({"a": 5, "b": 5}, {"a": [OPEN] * 4, "b": [OPEN] * 4})
    with pytest.raises(ValueError, match="cannot be taken"):
        resolve_drafts(a_runner, step)
    resolve_without_drafts(a_runner, step)
    assert step.scheduled_spec_decode_tokens == {"a": [7, 8]}
    assert step.num_scheduled_tokens == {"a": 3, "b": 1}
    assert step.total_num_scheduled_tokens == 4
    assert step.scheduled_cached_reqs.num_computed_tokens == [59, 39]
    output = ModelRunnerOutput(req_ids=[], req_id_to_index={})
    send_num_drafted(step, output)
    assert num_drafted_of(output) == {"a": 2}


def request(name: str = "a", *, grammar: bool = False, **changes: int) -> Request:
    structured = StructuredOutputsParams(regex="[a-z]+") if grammar else None
    params = SamplingParams(max_tokens=50, structured_outputs=structured)
    made = Request(name, [1] * 10, params, None)
    for field, value in (
        {"num_computed_tokens": 100, "num_output_placeholders": 9} | changes
    ).items():
        assert hasattr(made, field)
        setattr(made, field, value)
    return made


class Scheduler(AsyncScheduler):
    """vLLM's, without what schedules and what processes outputs."""

    def __init__(self, requests: dict[str, Request], free_blocks: int) -> None:
        self.requests = requests
        self.running = list(requests.values())
        self.seen: list[Any] = []
        self.handed_over: list[Any] = []
        self.num_spec_tokens = 16
        self.max_num_scheduled_tokens = 2048
        pool = SimpleNamespace(get_num_free_blocks=lambda: free_blocks)
        self.kv_cache_manager = SimpleNamespace(block_pool=pool)

    def has_requests(self) -> bool:
        return True

    def update_from_output(self, step: Any, _: Any) -> str:
        self.seen.append(dict(step.scheduled_spec_decode_tokens))
        return "outputs"

    def _update_after_schedule(self, step: Any) -> None:
        self.seen.append(step.num_spec_tokens_to_schedule)

    def update_draft_token_ids(self, drafts: Any) -> None:
        self.handed_over.append(drafts)


def scheduler(requests: dict[str, Any], *, free_blocks: int = 1000) -> Any:
    return Scheduler(requests, free_blocks)


def engine_of(a_scheduler: Any, **core: Any) -> AsyncSchedule:
    return AsyncSchedule(SimpleNamespace(scheduler=a_scheduler, **core))


def finished(scheduled: dict[str, list[int]], drafts: dict[str, list[int]]) -> tuple[Any, Any]:
    """What the scheduler keeps of a step, and what comes back of it."""
    sent = decided({name: 1 + len(open_) for name, open_ in scheduled.items()}, dict(scheduled))
    a_runner = runner(drafts, **dict.fromkeys(scheduled, 60))
    resolve_drafts(a_runner, sent)
    output = ModelRunnerOutput(req_ids=list(scheduled), req_id_to_index={})
    send_num_drafted(sent, output)
    kept = decided({name: 1 + len(open_) for name, open_ in scheduled.items()}, dict(scheduled))
    return kept, output


def test_what_no_draft_filled_was_never_scheduled() -> None:
    requests = {"a": request(), "b": request(), "gone": request(num_stale_output_tokens=5)}
    a_scheduler = scheduler(requests)
    step, output = finished(
        dict.fromkeys(("a", "b", "gone", "ended"), [OPEN] * 4), {"a": [7, 8], "gone": [1]}
    )
    engine_of(a_scheduler)
    assert a_scheduler.update_from_output(step, output) == "outputs"
    (seen,) = a_scheduler.seen
    assert {name: len(tokens) for name, tokens in seen.items()} == {"a": 2, "gone": 1}
    counts = [(r.num_computed_tokens, r.num_output_placeholders) for r in requests.values()]
    assert counts == [(98, 7), (96, 5), (100, 9)]  # one that was preempted began anew


def test_a_step_that_ran_nothing_has_nothing_to_take_back() -> None:
    a_scheduler = scheduler({})
    step = decided({}, {})
    output = EMPTY_MODEL_RUNNER_OUTPUT
    engine_of(a_scheduler)
    assert a_scheduler.update_from_output(step, output) == "outputs"


def test_without_word_from_the_worker_the_rest_is_left_to_vllm() -> None:
    """Which then counts what was accepted against all that there was room for."""
    requests = {"a": request()}
    a_scheduler = scheduler(requests)
    step, output = finished({"a": [OPEN] * 4}, {"a": [7, 8]})
    del output._reprise_num_drafted
    engine_of(a_scheduler)
    assert a_scheduler.update_from_output(step, output) == "outputs"
    assert a_scheduler.seen == [{"a": [OPEN] * 4}]
    assert requests["a"].num_computed_tokens == 100


def test_drafts_of_a_step_with_grammars_are_handed_over() -> None:
    drafts = DraftTokenIds(["a"], [[1]])
    a_scheduler = scheduler({"a": request()})
    executor = SimpleNamespace(take_draft_token_ids=lambda: drafts)
    step, output = finished({"a": [OPEN]}, {})
    step.has_structured_output_requests = True
    engine_of(a_scheduler, model_executor=executor)
    a_scheduler.update_from_output(step, output)
    assert a_scheduler.handed_over == [drafts]


@pytest.mark.parametrize(
    ("num_running", "free_blocks", "room"),
    [(8, 1000, 16), (64, 1000, 15), (256, 1000, 3), (2000, 9000, 0), (8, 16, 16), (8, 15, 0)],
)
def test_drafts_take_neither_the_prompts_tokens_nor_the_last_blocks(
    num_running: int, free_blocks: int, room: int
) -> None:
    requests = {str(number): request() for number in range(num_running)}
    a_scheduler = scheduler(requests, free_blocks=free_blocks)
    engine_of(a_scheduler)
    a_scheduler._update_after_schedule(decided({"0": 1}, {}))
    assert a_scheduler.seen == [room]


def test_a_step_with_grammars_leaves_no_room_that_the_worker_would_fill() -> None:
    requests = {"a": request(), "b": request(grammar=True)}
    a_scheduler = scheduler(requests)
    engine_of(a_scheduler)
    a_scheduler._update_after_schedule(decided({"a": 1, "b": 1}, {}))
    a_scheduler._update_after_schedule(decided({"a": 1}, {}))
    assert a_scheduler.seen == [0, 16]


@pytest.mark.parametrize(
    ("fields", "waits"),
    [
        ({"has_structured_output_requests": True}, True),
        ({"has_sync_kv_loads": True}, True),
        ({"kv_connector_metadata": object()}, False),
        ({}, False),
    ],
)
def test_a_step_with_grammars_or_loads_is_waited_for(fields: dict[str, Any], waits: bool) -> None:
    scheduled = replace(decided({"a": 1}, {}), **fields)
    in_flight = (None, scheduled, None)
    a_scheduler = scheduler({"a": request()})
    stepper = engine_of(a_scheduler, batch_queue=[in_flight])
    step = Original(lambda: (a_scheduler.has_requests(), False))
    assert stepper.step(step) == ((False, True) if waits else (True, False))
    assert a_scheduler.has_requests()


def test_where_vllm_does_not_say_what_is_loaded_each_step_with_a_connector_may() -> None:
    assert not needs_kv_loaded(SimpleNamespace(kv_connector_metadata=None))  # type: ignore[arg-type]
    assert needs_kv_loaded(SimpleNamespace(kv_connector_metadata=object()))  # type: ignore[arg-type]


@pytest.mark.parametrize("is_sync", [True, False])
def test_what_was_dropped_with_a_failed_load_is_not_waited_for(is_sync: bool) -> None:
    """vLLM's own has taken in what the others emitted. Loads between steps have no output."""
    requests = {
        "failed": request("failed", num_output_placeholders=1, num_computed_tokens=32),
        "fine": request("fine", num_output_placeholders=0),
    }
    for each in requests.values():
        each.spec_token_ids = [OPEN] * 4
    a_scheduler = scheduler(requests)
    step, output = finished({name: [] for name in requests}, {})
    step.has_sync_kv_loads = is_sync
    output.kv_connector_output = KVConnectorOutput(invalid_block_ids={7})
    engine_of(a_scheduler)
    assert a_scheduler.update_from_output(step, output) == "outputs"
    failed, fine = requests.values()
    assert failed.num_output_placeholders == (0 if is_sync else 1)
    assert failed.spec_token_ids == ([] if is_sync else [OPEN] * 4)
    assert failed.num_computed_tokens == 32
    assert (fine.num_output_placeholders, fine.spec_token_ids) == (0, [OPEN] * 4)


def test_who_waits_for_a_step_leaves_the_core_to_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """With vLLM's own queue, from which nothing comes for a while."""
    monkeypatch.setattr(shm_broadcast, "sched_yield", sched_yield)  # see tests/light_processes
    queue = MessageQueue(n_reader=1, n_local_reader=1, local_reader_ranks=[0])
    reader = MessageQueue.create_from_handle(queue.export_handle(), 0)
    writer = threading.Thread(target=queue.wait_until_ready)
    writer.start()
    reader.wait_until_ready()
    writer.join()
    sleep_between_polls([reader])
    began_s, took_s = time.monotonic(), time.thread_time()
    threading.Timer(0.3, queue.enqueue, ["late"]).start()
    assert reader.dequeue(timeout=100.0) == "late"
    # vLLM's own loop takes all of a core that nobody else wants.
    assert time.thread_time() - took_s < (time.monotonic() - began_s) / 4
