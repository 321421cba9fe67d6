"""Which steps say what drafts cost, and how long they took without the drafter."""

from types import SimpleNamespace

import pytest

pytest.importorskip("vllm")

from reprise.engine_ext.worker import step_clock
from reprise.engine_ext.worker.step_clock import StepClock, StepContext
from reprise.spec.api.scheduling_mode import SchedulingMode

STEP_S, DRAFTING_S = 0.02, 0.01


class Machine:
    """Its clock runs while steps and drafting do, and not while others have its cores."""

    now_s = 5.0

    def runs(self, seconds: float) -> None:
        self.now_s += seconds


@pytest.fixture(autouse=True)
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    made = Machine()
    clock = SimpleNamespace(perf_counter=lambda: made.now_s)
    monkeypatch.setattr(step_clock, "time", clock)
    return made


def scheduled(drafts: dict[str, list[int]], *, prompt: int = 0) -> SimpleNamespace:
    """A step of two decoding requests with these drafts, and of `prompt` tokens of a third."""
    counts = {name: 1 + len(drafts.get(name, ())) for name in ("a", "b")}
    if prompt:
        counts["c"] = prompt
    return SimpleNamespace(
        scheduled_spec_decode_tokens=drafts,
        num_scheduled_tokens=counts,
        total_num_scheduled_tokens=sum(counts.values()),
    )


def run(machine: Machine, clock: StepClock, step: SimpleNamespace) -> float | None:
    """A step, and the drafter after it; what it is told."""
    machine.runs(STEP_S)
    clock.note_step(step)
    told = clock.take_step_time_s()
    machine.runs(DRAFTING_S)
    clock.note_drafted()
    return told


def test_a_step_that_was_waited_for_took_what_lies_between_two_drafts(machine: Machine) -> None:
    clock = StepClock()
    run(machine, clock, scheduled({}))
    told = run(machine, clock, scheduled({"a": [5, 6]}))
    assert told == pytest.approx(STEP_S)
    assert clock.num_drafted_tokens == 2
    assert clock.report()["steps"] == {"waited_for": 2, "run_ahead": 0}
    assert clock.report()["propose_us"]["count"] == 2


def test_a_step_that_prefills_and_one_that_was_not_told_of_say_nothing(machine: Machine) -> None:
    clock = StepClock()
    run(machine, clock, scheduled({}))
    assert run(machine, clock, scheduled({"a": [5]}, prompt=3)) is None
    assert clock.take_step_time_s() is None
    assert run(machine, clock, scheduled({})) is not None
    assert clock.take_step_time_s() is None


def test_of_steps_that_run_ahead_only_those_without_a_gap_count_drafting_included(
    machine: Machine,
) -> None:
    clock = StepClock()
    clock.set_async_launch()
    assert clock.context == StepContext(SchedulingMode.DRAINED)
    run(machine, clock, scheduled({}))
    with clock.at(StepContext(SchedulingMode.IN_FLIGHT, is_late=True)):
        assert run(machine, clock, scheduled({})) is None
    with clock.at(StepContext(SchedulingMode.IN_FLIGHT, is_late=True, was_in_flight=True)):
        told = run(machine, clock, scheduled({}))
    assert told == pytest.approx(STEP_S + DRAFTING_S)
    assert clock.context == StepContext(SchedulingMode.DRAINED)
    assert clock.report()["steps"] == {"waited_for": 1, "run_ahead": 2}


def test_an_engine_was_busy_if_a_request_goes_on() -> None:
    clock = StepClock()
    steps = (["a", "b"], ["b", "c"], ["d"], ["d"], [], ["d"])
    assert [clock.note_requests(names) for names in steps] == [
        False, True, False, True, False, False,
    ]  # fmt: skip
