"""How many tokens are drafted for all requests of a batch on model runner V2, step by step.

vLLM captures full CUDA graphs there for steps of one length, and for several lengths if it is given
a schedule of lengths by batch size, none among them. An engine of ours is given one that names the
`LENGTHS` of `spec/lengths/batch_length.py`, unless it has one of its user's; which of them a step
gets is then decided by the rule there, from the drafts of earlier steps and the times of steps, and
among those for which this batch has a graph (`graph_lengths.py`).

A step's drafts are made at its end, so their length is settled when it is scheduled, before what
the step before it came to is known. Drafts that are not right cost a few steps, and after that a
short one now and then.

The hooks of `Feature.DRAFT_LENGTHS`, in front end and engine core; `draft_slots.py` asks for the
length of each step.
"""

import time
from collections import deque
from collections.abc import Callable, Mapping, Set
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

from vllm.logger import init_logger

from reprise.engine_ext.compat.engine_state import mark_of, set_draft_lengths, set_mark
from reprise.engine_ext.compat.guarded import Original, step_errors
from reprise.engine_ext.core.identity import runs_on_v2, uses_our_proposer
from reprise.engine_ext.scheduling.graph_lengths import GraphLengths, graph_lengths

if TYPE_CHECKING:
    from vllm.config import VllmConfig
    from vllm.v1.core.sched.output import SchedulerOutput
    from vllm.v1.outputs import ModelRunnerOutput

logger = init_logger(__name__)

_MAX_UNSEEN_STEPS = 8
_PLANNED = "draft_lengths"
_LENGTHS_OF = "batch_lengths"


class _Unseen(NamedTuple):
    """A step whose output has not come yet."""

    scheduler_output: "SchedulerOutput"
    names: Set[str]
    """Of its requests that decode."""
    was_in_flight: bool
    """It was sent while the step before it ran."""
    drafts_follow: bool
    """Drafts are made at its end."""


class BatchLengths:
    """Decides for one engine, from what its steps come to. Used by the thread that schedules.

    Args:
        choices: lengths above 0 that may be chosen, rising.
        graphs: for which of them there is a graph of a whole step; None: steps run without.
    """

    def __init__(self, choices: tuple[int, ...], graphs: GraphLengths | None = None) -> None:
        # Compiled code: vLLM's CPU workers do not start in a process that has loaded numba.
        from reprise.spec.lengths.batch_length import BatchDraftLength

        self._rule = BatchDraftLength(choices)
        self._choices = choices
        self._graphs = graphs
        self._unseen: deque[_Unseen] = deque(maxlen=_MAX_UNSEEN_STEPS)
        self._names: Set[str] = frozenset()
        self._seen_s = 0.0

    def choose(
        self, scheduler_output: "SchedulerOutput", max_slots: Mapping[str, int | None]
    ) -> int:
        """Return how many tokens to draft at the end of a step that is being scheduled.

        Args:
            scheduler_output: of the step, not sent yet.
            max_slots: by the requests of it that decode in the next step, how many tokens may be
                drafted for each there; None: any number.
        """
        was_in_flight, batch = bool(self._unseen), len(max_slots)
        self._rule.note_new_requests(len(scheduler_output.scheduled_new_reqs))
        caps = [each for each in max_slots.values() if each is not None]
        length = self._rule.choose(
            batch,
            partial(self._may_be_chosen, batch, min(caps, default=None)),
            with_drafts=batch - caps.count(0),
        )
        self._unseen.append(_Unseen(scheduler_output, self._names, was_in_flight, length > 0))
        self._names = max_slots.keys()
        return length

    def _may_be_chosen(self, batch: int, least_cap: int | None, length: int) -> bool:
        """Return whether a step with drafts of this length has a graph, if steps without have:
        where one request may have fewer tokens, few graphs take it."""
        if (graphs := self._graphs) is None or not graphs.covers(batch, 0):
            return True
        is_uniform = least_cap is None or length <= least_cap
        return graphs.covers(batch, length, is_uniform=is_uniform)

    def learn(self, scheduler_output: "SchedulerOutput", output: "ModelRunnerOutput") -> None:
        """Take in what a step came to, before vLLM does, which shortens what it is given."""
        now_s, before_s = time.perf_counter(), self._seen_s
        self._seen_s = now_s
        step = self._take(scheduler_output)
        if step is None or not output.sampled_token_ids:
            return
        drafts = scheduler_output.scheduled_spec_decode_tokens
        invalid = scheduler_output.num_invalid_spec_tokens or {}
        verified, accepted = [], []
        for name in step.names & scheduler_output.num_scheduled_tokens.keys():
            emitted = len(output.sampled_token_ids[output.req_id_to_index[name]])
            if emitted:  # it was not taken back meanwhile
                verified.append(len(drafts.get(name, ())) - invalid.get(name, 0))
                accepted.append(min(emitted - 1, verified[-1]))
        says_cost = step.was_in_flight and not scheduler_output.has_structured_output_requests
        self._rule.observe(
            verified,
            accepted,
            step_time_s=now_s - before_s if says_cost else None,
            drafts_follow=step.drafts_follow,
            prefilled=_num_prefilled(scheduler_output),
        )

    def _take(self, scheduler_output: "SchedulerOutput") -> _Unseen | None:
        """Forget a step whose output has come, and those before it; None: it is not known."""
        while self._unseen:
            step = self._unseen.popleft()
            if step.scheduler_output is scheduler_output:
                return step
        return None


def _num_prefilled(scheduler_output: "SchedulerOutput") -> int:
    """Return how many tokens of prompts a step computed, beside one of each request."""
    drafts = scheduler_output.scheduled_spec_decode_tokens
    num_decoded = len(scheduler_output.num_scheduled_tokens) + sum(map(len, drafts.values()))
    num_tokens: int = scheduler_output.total_num_scheduled_tokens
    return num_tokens - num_decoded


def plan_lengths(original: Callable[..., None], config: "VllmConfig") -> None:
    """Run vLLM's, which finds out what graphs to capture, with a schedule of our lengths."""
    if not _may_plan(config):
        original(config)
        return
    from reprise.spec.lengths.batch_length import LENGTHS, capture_schedule

    speculative, scheduling = config.speculative_config, config.scheduler_config
    assert speculative is not None
    longest = speculative.num_speculative_tokens
    schedule = capture_schedule(LENGTHS, scheduling.max_num_seqs, longest=longest)
    choices = tuple(sorted({length for _, _, length in schedule} - {0}))
    if not choices:
        original(config)
        return
    set_draft_lengths(speculative, schedule)
    set_mark(speculative, _PLANNED, choices)
    original(config)
    if not scheduling.async_scheduling:  # vLLM has decided that meanwhile
        set_draft_lengths(speculative, None)
        set_mark(speculative, _PLANNED, None)


def keep_lengths(original: Callable[..., None], config: "VllmConfig") -> None:
    """Run vLLM's, which drops any schedule with data parallelism, unless the schedule is ours."""
    if mark_of(config.speculative_config, _PLANNED) is None:
        original(config)


def _may_plan(config: "VllmConfig") -> bool:
    """Return whether lengths may be ours to choose: V2 drafts as long as vLLM's schedule says, and
    no schedule was given. Data parallel ranks of a model with experts have their steps together,
    and would have to agree; those of others know nothing of one another. What adaptive verification
    leaves out is not known here."""
    speculative = config.speculative_config
    return (
        speculative is not None
        and uses_our_proposer(config)
        and speculative.num_speculative_tokens_per_batch_size is None
        and not speculative.enable_adaptive_verification
        and (config.parallel_config.data_parallel_size == 1 or not config.model_config.is_moe)
        and config.scheduler_config.scheduler_cls is None
        and runs_on_v2(config)
    )


def begin_scheduler(
    original: Callable[..., None], scheduler: Any, *args: Any, **kwargs: Any
) -> None:
    """Run vLLM's, and have what decides on lengths compiled before there are requests."""
    original(scheduler, *args, **kwargs)
    try:
        if lengths_of(scheduler) is not None:
            _compile()
    except Exception as error:
        step_errors.record("AsyncScheduler.__init__", error)


def _compile() -> None:
    """Run once, on steps that are made up, what is compiled at its first run."""
    from reprise.spec.lengths.batch_length import BatchDraftLength

    rule = BatchDraftLength((1,))
    for length in (0, 1, 0, 1):
        rule.choose(1)
        rule.observe([length], [length], step_time_s=0.01)
    rule.choose(1)


def lengths_of(scheduler: Any) -> BatchLengths | None:
    """Return what decides on the lengths of an engine's drafts; None: they are vLLM's to decide."""
    lengths: BatchLengths | None = mark_of(scheduler, _LENGTHS_OF)
    if lengths is None:
        config = scheduler.vllm_config
        choices: tuple[int, ...] | None = mark_of(config.speculative_config, _PLANNED)
        if choices is None or not runs_on_v2(scheduler):
            return None
        lengths = BatchLengths(choices, graph_lengths(config, choices))
        set_mark(scheduler, _LENGTHS_OF, lengths)
        logger.info("Reprise: drafts of 0, %s tokens, by batch.", ", ".join(map(str, choices)))
    return lengths


def learn_lengths(
    original: Original,
    scheduler: Any,
    scheduler_output: "SchedulerOutput",
    model_runner_output: "ModelRunnerOutput",
) -> Any:
    """Take in what a step came to, then run vLLM's."""
    lengths: BatchLengths | None = mark_of(scheduler, _LENGTHS_OF)
    if lengths is not None:
        lengths.learn(scheduler_output, model_runner_output)
    return original()
