"""What a step without drafts leaves to the one launched after it; engines are in
test_async_engines.py."""

from collections import deque
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

pytest.importorskip("vllm")

from vllm.sampling_params import SamplingParams
from vllm.v1.core.sched.async_scheduler import AsyncScheduler
from vllm.v1.core.sched.output import SchedulerOutput
from vllm.v1.outputs import DraftTokenIds, KVConnectorOutput
from vllm.v1.request import Request
from vllm.v1.worker.gpu_input_batch import CachedRequestState
from vllm.v1.worker.gpu_model_runner import ExecuteModelState, GPUModelRunner

from reprise.engine_ext.compat import guarded
from reprise.engine_ext.core.placeholders import num_known
from reprise.engine_ext.scheduling import async_launch


def request(name: str) -> Request:
    return Request(name, [1, 2, 3, 4], SamplingParams(max_tokens=50), None)


def step_of(drafts: dict[str, list[int]], **scheduled: int) -> SchedulerOutput:
    step = SchedulerOutput.make_empty()
    step.num_scheduled_tokens = scheduled
    step.scheduled_spec_decode_tokens = drafts
    return step


def state_of(step: SchedulerOutput) -> ExecuteModelState:
    unused = dict.fromkeys(ExecuteModelState._fields)
    return ExecuteModelState(**unused | {"scheduler_output": step})  # type: ignore[arg-type]


class Runner(GPUModelRunner):
    """vLLM's, without a model."""

    def __init__(self, **fields: Any) -> None:
        vars(self).update(fields)

    def sample_tokens(self, _: Any) -> Any:
        return self.sampled()

    def propose_draft_token_ids(self, *_: Any, **__: Any) -> Any: ...

    def take_draft_token_ids(self) -> Any:
        return self.drafts


class Scheduler(AsyncScheduler):
    """vLLM's, without what schedules and what processes outputs."""

    def __init__(self, requests: list[Request]) -> None:
        self.running = requests
        self.requests = {each.request_id: each for each in requests}

    def has_requests(self) -> bool:
        return True

    def update_draft_token_ids(self, drafts: Any) -> None:
        for name, tokens in zip(drafts.req_ids, drafts.draft_token_ids, strict=True):
            self.requests[name].spec_token_ids = tokens

    def update_from_output(self, _: Any, token: Any) -> str:
        if isinstance(token, int):
            self.running[0].append_output_token_ids(token)
        return "outputs"

    def _update_after_schedule(self, step: Any) -> None:
        for name in step.num_scheduled_tokens:
            self.requests[name].spec_token_ids = [-1] * step.num_spec_tokens_to_schedule


def core_of(scheduler: Scheduler, runner: Runner) -> Any:
    worker = SimpleNamespace(worker=SimpleNamespace(model_runner=runner))
    executor = SimpleNamespace(driver_worker=worker)
    return SimpleNamespace(scheduler=scheduler, model_executor=executor, batch_queue=deque())


def test_drafts_that_found_no_room_are_dropped() -> None:
    """They would be scheduled with a step that is launched before the one before it is known."""
    requests = [request(name) for name in ("a", "b", "c")]
    step = step_of({"a": [7]})
    runner = Runner(
        drafter=SimpleNamespace(supports_async_launch=lambda: True),
        execute_model_state=state_of(step),
        requests={},
        input_batch=SimpleNamespace(sampling_metadata=SimpleNamespace(output_token_ids=[])),
        sampled=lambda: "sampled",
        drafts=DraftTokenIds(["a", "b"], [[1], [2, 3]]),
    )
    scheduler = Scheduler(requests)
    async_launch.AsyncLaunch(core_of(scheduler, runner))
    runner.sample_tokens(None)  # a step with drafts, which is waited for
    scheduler.update_from_output(step, SimpleNamespace())
    assert [each.spec_token_ids for each in requests] == [[1], [2, 3], []]
    scheduler._update_after_schedule(step_of({}, a=2, c=1))
    assert [each.spec_token_ids for each in requests] == [[], [], []]


@pytest.mark.parametrize(
    ("tokens", "known"), [([], 0), ([5, 6], 2), ([5, -1], 1), ([-1, -1], 0), ([5, -1, 6, -1], 3)]
)
def test_placeholders_at_the_end_are_not_known(tokens: list[int], known: int) -> None:
    assert num_known(tokens) == known


class World:
    """An engine with async launch, of one request with a prompt of 4, as far as it is looked at."""

    def __init__(self) -> None:
        self.request = request("a")
        self.state = CachedRequestState(
            req_id="a",
            prompt_token_ids=[1, 2, 3, 4],
            mm_features=[],
            sampling_params=SamplingParams(),
            generator=None,
            block_ids=(),
            num_computed_tokens=0,
            output_token_ids=[],
        )
        self.batch = SimpleNamespace(
            req_ids=["a"],
            req_id_to_index={"a": 0},
            num_prompt_tokens=np.array([4]),
            num_tokens_no_spec=np.array([4]),
            token_ids_cpu=np.zeros((1, 32), np.int32),
            prev_req_id_to_index={},
            prev_sampled_token_ids="on the device",
            sampling_metadata=SimpleNamespace(output_token_ids=[]),
        )
        self.looks: list[list[list[int]]] = []
        self.modes: list[bool] = []
        self.runner = Runner(
            drafter=SimpleNamespace(
                supports_async_launch=lambda: True, propose_late=self.propose_late
            ),
            execute_model_state=None,
            requests={"a": self.state},
            input_batch=self.batch,
            use_async_scheduling=True,
            sampled=self.sampled,
            drafts=None,
        )
        self.scheduler = Scheduler([self.request])
        self.core = core_of(self.scheduler, self.runner)
        self.stepper = async_launch.AsyncLaunch(self.core)

    def propose_late(self, _: Any, __: Any, emitted: Any, *___: Any, **____: Any) -> Any:
        self.looks.append(emitted)
        return [[]]

    def sampled(self) -> str:
        self.modes.append(self.runner.use_async_scheduling)
        self.state.output_token_ids.append(-1)
        self.batch.token_ids_cpu[0, self.batch.num_tokens_no_spec[0]] = -1
        self.batch.num_tokens_no_spec[0] += 1
        return "sampled"

    def launch(self, step: SchedulerOutput | None = None, **drafts: list[int]) -> Any:
        """A step is launched, and joins vLLM's queue."""
        output = step_of(drafts) if step is None else step
        self.runner.execute_model_state = state_of(output)
        assert self.runner.sample_tokens(None) == "sampled"
        self.core.batch_queue.appendleft(output)
        return output

    def finish(self, token: int) -> None:
        """The oldest step is taken in."""
        assert self.scheduler.update_from_output(self.core.batch_queue.pop(), token) == "outputs"

    def may_launch(self) -> bool:
        """Whether the next step is scheduled while what is under way is."""
        step = guarded.Original(lambda: (self.scheduler.has_requests(), None))
        return bool(self.stepper.step(step)[0])


def test_tokens_become_known_step_by_step() -> None:
    world = World()
    world.launch()
    assert world.may_launch()
    world.launch()
    world.finish(7)
    assert world.state.output_token_ids == [7, -1]
    world.finish(8)
    assert world.state.output_token_ids == [7, 8]
    assert world.batch.token_ids_cpu[0, 4:6].tolist() == [7, 8]
    assert world.looks[-1] == [[8]]
    assert world.batch.prev_sampled_token_ids is None


def test_what_was_missed_is_made_up_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """A step that vLLM took in alone is no longer waited for, and its token is found later."""
    world = World()
    world.launch()
    with monkeypatch.context() as context:
        context.setattr(world.stepper, "_in_flight", None)  # our part fails
        world.finish(7)
    assert world.may_launch(), "it would wait for ever"
    world.launch()
    world.finish(8)
    assert world.state.output_token_ids == [7, 8]
    assert world.looks[-1] == [[8]]


def test_a_step_that_was_launched_unseen_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World()
    with monkeypatch.context() as context:
        context.setattr(world.stepper, "_has_to_wait", None)  # our part fails
        world.launch()
        # With drafts it is waited for: on the device vLLM could not keep what they come to.
        world.launch(a=[5])
    assert world.modes == [True, False]
    assert world.runner.use_async_scheduling
    assert not world.may_launch()
    world.finish(7)
    world.finish(8)
    assert world.state.output_token_ids == [7, 8]
    assert world.may_launch()


@pytest.mark.parametrize("was_in_flight", [False, True])
def test_what_was_dropped_with_a_failed_load_is_dropped_here(was_in_flight: bool) -> None:
    world = World()
    if was_in_flight:
        world.launch()
    step = step_of({})
    step.has_sync_kv_loads = True
    world.launch(step)
    assert not world.may_launch()
    if was_in_flight:
        world.finish(7)
    known = list(world.request.output_token_ids)
    world.request.num_output_placeholders = 1
    world.batch.prev_req_id_to_index = {"a": 0}
    world.runner.drafts = DraftTokenIds(["a"], [[9]])
    lost = SimpleNamespace(kv_connector_output=KVConnectorOutput(invalid_block_ids={3}))
    world.scheduler.update_from_output(world.core.batch_queue.pop(), lost)
    assert world.request.num_output_placeholders == 0
    assert world.request.spec_token_ids == []
    assert world.state.output_token_ids == known
    assert world.batch.num_tokens_no_spec.tolist() == [4 + len(known)]
    assert not world.batch.prev_req_id_to_index
    assert world.may_launch()


def test_the_device_keeps_what_is_not_known_here() -> None:
    world = World()
    output = world.launch()
    world.core.batch_queue.pop()
    world.scheduler.requests["a"] = request("a")  # its token is not reported
    assert world.scheduler.update_from_output(output, 7) == "outputs"
    assert not world.looks
    assert world.batch.prev_sampled_token_ids == "on the device"
