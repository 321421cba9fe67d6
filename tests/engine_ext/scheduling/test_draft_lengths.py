"""On model runner V2 the length of drafts follows what earlier drafts came to."""

from collections import deque
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("vllm")

from vllm import SamplingParams
from vllm.config import CUDAGraphMode, VllmConfig
from vllm.v1.core.sched.async_scheduler import AsyncScheduler
from vllm.v1.core.sched.scheduler import Scheduler

from reprise.engine_ext.compat.engine_state import mark_of, set_mark
from reprise.engine_ext.compat.guarded import Original, step_errors
from reprise.engine_ext.compat.patches import Feature, Role
from reprise.engine_ext.compat.registry import patch_names, registry
from reprise.engine_ext.core.identity import PROPOSER_PATH
from reprise.engine_ext.core.request_hints import RequestHints, with_hints
from reprise.engine_ext.scheduling import draft_lengths, draft_slots
from reprise.spec.lengths.batch_length import BatchDraftLength
from reprise.tests.engine_ext.scheduling.bare_scheduler import (
    bare_scheduler,
    decoding_request,
    decoding_step,
)

CHOICES = (1, 3, 7)
STEP_S = 0.005
PLAIN = SamplingParams()
CAPPED = with_hints(SamplingParams(), RequestHints(max_draft=2))
OFF = with_hints(SamplingParams(), RequestHints(drafts=False))


class World:
    """vLLM's own method on a scheduler with as much around it as that needs. Steps are sent one
    ahead, and take `STEP_S` and 1% more for each drafted token of a request."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.compilation = SimpleNamespace(cudagraph_mode=None, cudagraph_capture_sizes=[])
        self.scheduler = bare_scheduler(compilation_config=self.compilation)
        speculative = self.scheduler.vllm_config.speculative_config
        set_mark(speculative, draft_lengths._PLANNED, CHOICES)
        self.now_s = 0.0
        self.lengths: list[int] = []
        """Chosen, by step."""
        self._in_flight: deque[Any] = deque()
        monkeypatch.setattr(draft_lengths, "time", SimpleNamespace(perf_counter=lambda: self.now_s))

    def add(self, name: str, params: SamplingParams = PLAIN) -> None:
        self.scheduler.requests[name] = decoding_request(params)

    def slots(self) -> dict[str, int]:
        """With the next step."""
        return {name: len(each.spec_token_ids) for name, each in self.scheduler.requests.items()}

    def send(self, new: tuple[str, ...] = ()) -> Any:
        slots = {name: count for name, count in self.slots().items() if count}
        for each in self.scheduler.requests.values():
            each.spec_token_ids = []
        num_tokens = {name: 1 + slots.get(name, 0) for name in self.scheduler.requests}
        step = decoding_step(
            num_tokens,
            scheduled_spec_decode_tokens={name: [-1] * count for name, count in slots.items()},
            scheduled_new_reqs=new,
        )
        self.scheduler._update_after_schedule(step)
        self.lengths.append(step.num_spec_tokens_to_schedule)
        self._in_flight.append(step)
        return step

    def run(
        self, steps: int, right: Callable[[str, int], int], new: tuple[str, ...] = ()
    ) -> list[int]:
        """Send steps and learn of them; `right` says how many of a request's drafts are."""
        for number in range(steps):
            self.send(new if number == 0 else ())
            if len(self._in_flight) < 2:
                continue
            step = self._in_flight.popleft()
            drafts = step.scheduled_spec_decode_tokens
            self.now_s += STEP_S * (1 + 0.01 * max([0, *map(len, drafts.values())]))
            names = list(step.num_scheduled_tokens)
            emitted = [1 + right(name, len(drafts.get(name, ()))) for name in names]
            output = SimpleNamespace(
                sampled_token_ids=[[7] * count for count in emitted],
                req_id_to_index={name: i for i, name in enumerate(names)},
            )
            original = Original(lambda: "outputs")
            learned = draft_lengths.learn_lengths(original, self.scheduler, step, output)
            assert learned == "outputs"
        return self.lengths[-steps:]


def none_right(_: str, __: int) -> int:
    return 0


def all_right(_: str, count: int) -> int:
    return count


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> World:
    """Four requests that decode."""
    assert registry.apply(Feature.DRAFT_SLOTS, draft_slots, role=Role.ENGINE_CORE)
    made = World(monkeypatch)
    for name in "abcd":
        made.add(name)
    return made


def test_cold_traffic_soon_has_no_drafts_but_now_and_then_a_short_one(world: World) -> None:
    begin = world.run(40, none_right)
    assert begin[0] > 0
    later = world.run(200, none_right)
    assert later.count(0) >= 0.85 * len(later)
    assert 0 < sum(later) <= 0.15 * len(later), "tries are few, and short"
    assert 0 in begin[:8]


def test_drafts_that_are_right_become_as_long_as_they_may_be(world: World) -> None:
    world.run(40, all_right)
    assert world.run(40, all_right).count(CHOICES[-1]) >= 35
    assert set(world.slots().values()) <= {0, *CHOICES}


def test_it_turns_round_both_ways(world: World) -> None:
    world.run(60, all_right)
    # What was right for long is believed for some time, where trying costs little.
    assert world.run(120, none_right)[-30:].count(0) >= 20
    assert world.run(120, all_right)[-20:].count(CHOICES[-1]) >= 15


def test_mixed_traffic_gets_drafts_where_they_pay_for_all(world: World) -> None:
    def half(name: str, count: int) -> int:
        return count if name in "ab" else 0

    world.run(60, half)
    assert world.run(40, half).count(0) <= 8


def test_caps_and_opt_outs_hold_and_requests_may_end(world: World) -> None:
    world.add("capped", CAPPED)
    world.add("off", OFF)
    for number in range(60):
        world.run(1, all_right)
        slots, length = world.slots(), world.lengths[-1]
        assert slots.pop("off") == 0
        assert slots.pop("capped") == min(2, length)
        assert set(slots.values()) == {length}
        if number == 40:
            del world.scheduler.requests["a"]
    assert 3 in world.lengths


@pytest.mark.parametrize(
    ("mode", "longest"),
    [(CUDAGraphMode.FULL_AND_PIECEWISE, (0, 1)), (CUDAGraphMode.FULL, (7, 7))],
    ids=["by length", "any lengths"],
)
def test_drafts_take_no_batch_out_of_its_graphs(
    world: World, mode: CUDAGraphMode, longest: tuple[int, int]
) -> None:
    """vLLM has no graph of steps in which some requests have fewer tokens, unless it has of all."""
    world.compilation.cudagraph_mode = mode
    world.compilation.cudagraph_capture_sizes = [1, 2, 4, 8, 16, 32, 64]
    world.scheduler.vllm_config.scheduler_config.max_num_seqs = 16
    world.add("other", OFF)
    assert max(world.run(60, all_right)) == longest[0]
    world.scheduler.requests["other"].sampling_params = CAPPED
    assert max(world.run(60, all_right)) == longest[1]
    del world.scheduler.requests["other"]
    world.run(60, all_right)
    assert world.lengths[-1] == CHOICES[-1]


def test_all_that_decode_are_the_batch_whoever_has_drafts(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Any] = []
    monkeypatch.setattr(
        BatchDraftLength, "observe", lambda _, *counts, **__: seen.append(sorted(counts[0]))
    )
    monkeypatch.setattr(BatchDraftLength, "_choose", lambda *_: 3)
    world.add("off", OFF)
    world.run(4, all_right)
    assert seen[-1] == [0, 3, 3, 3, 3]


def test_nothing_is_drafted_where_nobody_may_have_drafts(world: World) -> None:
    for name in "abcd":
        world.scheduler.requests[name].sampling_params = OFF
    assert set(world.run(20, none_right)) == {0}


def test_nothing_is_drafted_for_prompts_that_come_in_chunks(world: World) -> None:
    for request in world.scheduler.requests.values():
        request.num_tokens = 10_000
    assert set(world.run(5, none_right)) == {0}


def test_no_step_is_longer_than_graphs_are(world: World) -> None:
    world.compilation.cudagraph_mode = CUDAGraphMode.FULL_AND_PIECEWISE
    world.compilation.cudagraph_capture_sizes = [4, 8, 16]
    world.scheduler.vllm_config.scheduler_config.max_num_seqs = 16
    world.run(60, all_right)
    assert max(world.lengths) == 3, "4 requests of 4 tokens fit 16, of 8 do not"


def test_a_length_without_a_graph_of_its_own_is_left_out(world: World) -> None:
    world.compilation.cudagraph_mode = CUDAGraphMode.FULL_AND_PIECEWISE
    world.compilation.cudagraph_capture_sizes = [4, 8, 10, 32]
    world.scheduler.vllm_config.scheduler_config.max_num_seqs = 16
    world.run(60, all_right)
    assert 7 in world.lengths
    assert 3 not in world.lengths, "the graph of 16 tokens is one of 2 requests"


def test_only_steps_that_were_sent_ahead_teach_what_steps_take(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Any] = []
    monkeypatch.setattr(
        BatchDraftLength,
        "observe",
        lambda _, *counts, step_time_s, prefilled, **__: seen.append(
            (*counts, step_time_s, prefilled)
        ),
    )
    lengths = draft_lengths.BatchLengths(CHOICES)
    output = SimpleNamespace(
        sampled_token_ids=[[1, 2, 3], [1], [1], []],
        req_id_to_index={"a": 0, "b": 1, "c": 2, "d": 3},
    )
    first, second, third, grammar = (world.send() for _ in range(4))
    second.scheduled_spec_decode_tokens = {"a": [-1] * 4, "b": [-1] * 2}
    second.total_num_scheduled_tokens = 10
    second.num_invalid_spec_tokens = {"b": 1}
    third.scheduled_spec_decode_tokens = {}
    third.total_num_scheduled_tokens = 100  # it prefills
    grammar.has_structured_output_requests = True
    lengths.choose(first, {"a": None, "b": None})
    for step in (second, third, grammar):
        lengths.choose(step, {"a": None})
    for step in (first, second, third, grammar, grammar):
        world.now_s += 0.25
        lengths.learn(step, output)
    assert seen[0] == ([], [], None, 0), "nobody had slots before it, and nothing was in flight"
    assert sorted(zip(*seen[1][:2], strict=True)) == [(1, 0), (4, 2)]
    assert seen[1][2] == pytest.approx(0.25)
    assert seen[1][3] == 0
    assert seen[2][2:] == (pytest.approx(0.25), 100 - len(third.num_scheduled_tokens))
    assert seen[3][2] is None, "it waited for the host"
    assert len(seen) == 4, "a step that is not known teaches nothing"


def test_an_error_means_no_drafts(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> Any:
        raise AssertionError("injected")

    before = step_errors.counts().get("AsyncScheduler._update_after_schedule", 0)
    monkeypatch.setattr(BatchDraftLength, "choose", fail)
    assert set(world.run(3, none_right)) == {0}
    assert set(world.slots().values()) == {0}
    assert step_errors.counts()["AsyncScheduler._update_after_schedule"] == before + 3


def test_a_scheduler_that_was_not_planned_for_is_left_alone(world: World) -> None:
    set_mark(world.scheduler.vllm_config.speculative_config, draft_lengths._PLANNED, None)
    assert draft_lengths.lengths_of(world.scheduler) is None
    step = SimpleNamespace()
    learned = draft_lengths.learn_lengths(Original(lambda: 1), world.scheduler, step, step)
    assert learned == 1


def test_it_is_applied_to_vllms_own() -> None:
    assert registry.apply(Feature.DRAFT_LENGTHS, draft_lengths, role=Role.ENGINE_CORE)
    assert Feature.DRAFT_LENGTHS.value in patch_names(Scheduler.update_from_output)
    assert Feature.DRAFT_LENGTHS.value in patch_names(AsyncScheduler.__init__)


def config(**changes: Any) -> Any:
    values = {
        "model": PROPOSER_PATH, "schedule": None, "adaptive": False, "ranks": 1, "cls": None,
        "experts": False, "v2": True, "seqs": 64, "longest": 8,
    } | changes  # fmt: skip
    return SimpleNamespace(
        speculative_config=SimpleNamespace(
            model=values["model"],
            num_speculative_tokens=values["longest"],
            num_speculative_tokens_per_batch_size=values["schedule"],
            enable_adaptive_verification=values["adaptive"],
        ),
        model_config=SimpleNamespace(is_moe=values["experts"]),
        parallel_config=SimpleNamespace(data_parallel_size=values["ranks"]),
        scheduler_config=SimpleNamespace(
            scheduler_cls=values["cls"], max_num_seqs=values["seqs"], async_scheduling=None
        ),
        use_v2_model_runner=values["v2"],
    )


def planned(made: Any, *, is_async: bool = True) -> tuple[Any, Any]:
    """The schedule that vLLM is shown, and what is left of ours."""
    shown = []

    def own(config: Any) -> None:
        shown.append(config.speculative_config.num_speculative_tokens_per_batch_size)
        config.scheduler_config.async_scheduling = is_async

    draft_lengths.plan_lengths(own, made)
    return shown[0], mark_of(made.speculative_config, draft_lengths._PLANNED)


def test_vllm_is_given_all_lengths_to_capture() -> None:
    for longest, choices in ((8, (1, 3, 7)), (5, (1, 3)), (16, (1, 3, 7, 15)), (2, (1,))):
        schedule, chosen = planned(config(longest=longest))
        assert {length for _, _, length in schedule} == {0, *choices}
        assert chosen == choices
    assert planned(config(seqs=3))[1] == (3, 7)


@pytest.mark.parametrize(
    "changes",
    [
        {"model": "ngram"},
        {"schedule": [[1, 64, 3]]},
        {"adaptive": True},
        {"ranks": 2, "experts": True},
        {"cls": "some.Scheduler"},
        {"v2": False},
        {"seqs": 1},
    ],
    ids=str,
)
def test_it_is_left_to_vllm(changes: dict[str, Any]) -> None:
    assert planned(config(**changes)) == (changes.get("schedule"), None)


@pytest.mark.parametrize(("experts", "choices"), [(False, (1, 3, 7)), (True, None)])
def test_data_parallel_ranks_choose_where_they_are_independent(
    experts: bool, choices: tuple[int, ...] | None
) -> None:
    """vLLM drops any schedule of lengths with data parallelism."""
    made = config(ranks=2, experts=experts)
    speculative = made.speculative_config
    speculative.uses_dynamic_speculative_decoding = lambda: (
        speculative.num_speculative_tokens_per_batch_size is not None
    )

    def own(config: Any) -> None:
        draft_lengths.keep_lengths(VllmConfig._maybe_disable_dynamic_sd_for_data_parallel, config)
        config.scheduler_config.async_scheduling = True

    draft_lengths.plan_lengths(own, made)
    assert mark_of(speculative, draft_lengths._PLANNED) == choices
    assert speculative.uses_dynamic_speculative_decoding() == (not experts)


def test_a_users_schedule_is_left_to_vllm_with_data_parallelism() -> None:
    made = config(ranks=2, schedule=[[1, 64, 3]])
    seen: list[Any] = []
    draft_lengths.keep_lengths(seen.append, made)
    assert seen == [made]


def test_without_async_scheduling_it_is_taken_back() -> None:
    made = config()
    assert planned(made, is_async=False)[1] is None
    assert made.speculative_config.num_speculative_tokens_per_batch_size is None


def test_what_is_compiled_is_compiled_before_requests(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[str] = []
    compile_all = draft_lengths._compile

    def compiled() -> None:
        compile_all()
        calls.append("compiled")

    monkeypatch.setattr(draft_lengths, "_compile", compiled)
    draft_lengths.begin_scheduler(lambda *_, **__: calls.append("vLLM's"), world.scheduler)
    assert calls == ["vLLM's", "compiled"]
    assert isinstance(draft_lengths.lengths_of(world.scheduler), draft_lengths.BatchLengths)


def test_a_step_after_which_nobody_decodes_has_no_drafts() -> None:
    lengths = draft_lengths.BatchLengths((1, 3))
    assert lengths.choose(decoding_step({}), {}) == 0
