"""What a step without drafts leaves to the one launched after it; engines are in test_ahead.py."""

from collections import deque
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

pytest.importorskip("vllm")

from vllm.v1.outputs import DraftTokenIds

from reprise.engine_ext.compat import guarded
from reprise.engine_ext.scheduling import run_ahead
from reprise.engine_ext.worker.row_tracker import num_known


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
        input_batch=SimpleNamespace(sampling_metadata=SimpleNamespace(output_token_ids=[])),
        sample_tokens=lambda _: "sampled",
        propose_draft_token_ids=None,
        take_draft_token_ids=lambda: DraftTokenIds(["a", "b"], [[1], [2, 3]]),
    )
    output.scheduled_spec_decode_tokens["a"] = [7]
    scheduler = SimpleNamespace(
        requests={},
        running=requests,
        update_draft_token_ids=update_draft_token_ids,
        update_from_output=lambda *_: "outputs",
        _update_after_schedule=update_after_schedule,
    )
    worker = SimpleNamespace(worker=SimpleNamespace(model_runner=runner))
    executor = SimpleNamespace(driver_worker=worker)
    run_ahead.RunAhead(SimpleNamespace(scheduler=scheduler, model_executor=executor))
    runner.sample_tokens(None)  # a step with drafts, which is waited for
    scheduler.update_from_output(output, SimpleNamespace())
    assert [request.spec_token_ids for request in requests] == [[1], [2, 3], []]
    scheduler._update_after_schedule(SimpleNamespace(num_scheduled_tokens={"a": 2, "c": 1}))
    assert [request.spec_token_ids for request in requests] == [[], [], []]


@pytest.mark.parametrize(
    ("tokens", "known"), [([], 0), ([5, 6], 2), ([5, -1], 1), ([-1, -1], 0), ([5, -1, 6, -1], 3)]
)
def test_placeholders_at_the_end_are_not_known(tokens: list[int], known: int) -> None:
    assert num_known(tokens) == known


class Scheduler(SimpleNamespace):
    def has_requests(self) -> bool:
        return True


class World:
    """An engine that runs ahead, of one request with a prompt of 4, as far as it is looked at."""

    def __init__(self) -> None:
        self.request = SimpleNamespace(request_id="a", output_token_ids=[], spec_token_ids=[])
        self.state = SimpleNamespace(output_token_ids=[], prev_num_draft_len=0)
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
        self.runner = SimpleNamespace(
            drafter=SimpleNamespace(can_run_ahead=lambda: True, propose_late=self.propose_late),
            execute_model_state=None,
            requests={"a": self.state},
            input_batch=self.batch,
            use_async_scheduling=True,
            sample_tokens=self.sample_tokens,
            propose_draft_token_ids=None,
            take_draft_token_ids=lambda: None,
        )
        self.scheduler = Scheduler(
            requests={"a": self.request},
            running=[self.request],
            update_from_output=self.update_from_output,
            _update_after_schedule=lambda _: None,
        )
        worker = SimpleNamespace(worker=SimpleNamespace(model_runner=self.runner))
        self.core = SimpleNamespace(
            scheduler=self.scheduler,
            batch_queue=deque(),
            model_executor=SimpleNamespace(driver_worker=worker),
        )
        self.ahead = run_ahead.RunAhead(self.core)

    def propose_late(self, _: Any, __: Any, emitted: Any, *___: Any, **____: Any) -> Any:
        self.looks.append(emitted)
        return [[]]

    def sample_tokens(self, _: Any) -> str:
        self.modes.append(self.runner.use_async_scheduling)
        self.state.output_token_ids.append(-1)
        self.batch.token_ids_cpu[0, self.batch.num_tokens_no_spec[0]] = -1
        self.batch.num_tokens_no_spec[0] += 1
        return "sampled"

    def update_from_output(self, _: Any, token: int) -> str:
        self.request.output_token_ids.append(token)
        return "outputs"

    def launch(self, **drafts: list[int]) -> Any:
        """A step is launched, and joins vLLM's queue."""
        output = SimpleNamespace(
            scheduled_spec_decode_tokens=drafts, has_structured_output_requests=False
        )
        self.runner.execute_model_state = SimpleNamespace(scheduler_output=output)
        assert self.runner.sample_tokens(None) == "sampled"
        self.core.batch_queue.appendleft(output)
        return output

    def finish(self, token: int) -> None:
        """The oldest step is taken in."""
        assert self.scheduler.update_from_output(self.core.batch_queue.pop(), token) == "outputs"

    def may_launch(self) -> bool:
        """Whether the next step is scheduled while what is under way is."""
        step = guarded.Original(lambda: (self.scheduler.has_requests(), None))
        return bool(self.ahead.step(step)[0])


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
        context.setattr(world.ahead, "_under_way", None)  # our part fails
        world.finish(7)
    assert world.may_launch(), "it would wait for ever"
    world.launch()
    world.finish(8)
    assert world.state.output_token_ids == [7, 8]
    assert world.looks[-1] == [[8]]


def test_a_step_that_was_launched_unseen_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World()
    with monkeypatch.context() as context:
        context.setattr(world.ahead, "_has_to_wait", None)  # our part fails
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


def test_the_device_keeps_what_is_not_known_here() -> None:
    world = World()
    output = world.launch()
    world.core.batch_queue.pop()
    world.scheduler.requests["a"] = SimpleNamespace(output_token_ids=[])  # its token is not told
    assert world.scheduler.update_from_output(output, 7) == "outputs"
    assert not world.looks
    assert world.batch.prev_sampled_token_ids == "on the device"
