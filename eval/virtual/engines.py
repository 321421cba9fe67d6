"""Engines in virtual time: which steps they take, what these cost, and what is drafted when."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from reprise.engine_ext.scheduling.graph_lengths import GraphLengths
from reprise.eval.virtual.captured import CAPTURED
from reprise.eval.virtual.closed_loop import ClosedLoop, Step
from reprise.spec.api.scheduling_mode import SchedulingMode

NEVER_RIGHT = -1  # a token of a draft

Floats = npt.NDArray[np.float64]


class PricedClock:
    """By which looking for drafts is timed: between one reading and the next, it took the price."""

    def __init__(self) -> None:
        self.price_s = 0.0
        self._now_s = 0.0

    def __call__(self) -> float:
        self._now_s += self.price_s
        return self._now_s


class Device(Protocol):
    """What steps take."""

    def step_s(self, batch: int, drafted: int = 0, prefilled: int = 0) -> float:
        """Return what a step takes that the host has to launch: `batch` requests decode, so many
        drafted tokens are verified, and so many tokens of prompts are computed."""

    def sent_ahead_s(
        self, batch: int, drafted: int = 0, prefilled: int = 0, *, in_pieces: bool = False
    ) -> float:
        """Return what a step takes that waits for nothing but the device, or for the host to send
        it; `in_pieces`: it has no graph of its own."""


ByBatch = Mapping[int, float]
"""Milliseconds by requests in the batch; straight lines between, and as at the ends beyond."""


class HostGap(NamedTuple):
    """How long the device stands still because a step waits for the host, on the V1 runner."""

    drafted_ms: ByBatch
    """Around a step with drafts, without the drafter."""
    undrafted_ms: ByBatch
    """Around a step without drafts that was waited for."""
    drafting_ms: ByBatch
    """Of drafting."""


def at_batch(by_batch: ByBatch, batch: int) -> float:
    """Return what a table says of a batch."""
    return float(np.interp(batch, list(by_batch), list(by_batch.values())))


class V1:
    """vLLM's V1 runner, with drafts made on the host after each step.

    Args:
        loop: the clients. Its provider is timed by `clock`.
        clock: told what drafting costs.
        device: what steps cost.
        gap: what waiting for the host costs.
    """

    def __init__(self, loop: ClosedLoop, clock: PricedClock, device: Device, gap: HostGap) -> None:
        self._loop, self._clock, self._device, self._gap = loop, clock, device, gap

    def serve_synchronously(self) -> None:
        """Every step waits for the one before it."""
        loop = self._loop
        drafts: dict[str, list[int]] = {}
        while loop.has_requests():
            drafts = self._wait_and_draft(drafts, SchedulingMode.SYNC)

    def serve_running_ahead(self) -> None:
        """Only steps with drafts wait, and what follows them; see
        `engine_ext/scheduling/async_launch.py`."""
        loop = self._loop
        drafts: dict[str, list[int]] = {}
        would_draft = is_ahead = False
        while loop.has_requests():
            if drafts:
                drafts = self._wait_and_draft(drafts, SchedulingMode.DRAINED)
                continue
            ahead_s = self._device.sent_ahead_s(loop.batch, 0, loop.num_prefilled)
            step = loop.run_step(ahead_s if is_ahead else self._waited_s(drafts), {})
            known_s = ahead_s if is_ahead else None
            drafting_s = self._set_price()
            if is_ahead and would_draft:  # nothing was launched after this one
                drafts = loop.draft(step, SchedulingMode.DRAINED, known_s)
                loop.spend(drafting_s if loop.has_looked else 0.0)
                is_ahead = would_draft = False
            else:
                # The host has nothing else to do while the device works on the next one.
                saved_s = min(drafting_s, max(0.0, ahead_s - drafting_s))
                late = loop.draft(step, SchedulingMode.IN_FLIGHT, known_s, saved_s=saved_s)
                would_draft, is_ahead = bool(late), True

    def _waited_s(self, drafts: dict[str, list[int]]) -> float:
        loop = self._loop
        drafted = sum(map(len, drafts.values()))
        gap = self._gap.drafted_ms if drafted else self._gap.undrafted_ms
        gap_s = at_batch(gap, loop.batch) / 1e3
        return self._device.step_s(loop.batch, drafted, loop.num_prefilled) + gap_s

    def _wait_and_draft(
        self, drafts: dict[str, list[int]], mode: SchedulingMode
    ) -> dict[str, list[int]]:
        """Run a step that is waited for; returns the drafts after it."""
        seconds, drafting_s = self._waited_s(drafts), self._set_price()
        step = self._loop.run_step(seconds, drafts)
        drafts = self._loop.draft(step, mode, seconds)
        self._loop.spend(drafting_s if self._loop.has_looked else 0.0)
        return drafts

    def _set_price(self) -> float:
        """Return what drafting for the batch takes, and tell the provider's clock."""
        self._clock.price_s = at_batch(self._gap.drafting_ms, self._loop.batch) / 1e3
        return self._clock.price_s


class DeviceDrafter(NamedTuple):
    """Drafts that are made on the device."""

    position_s: float
    """What each position takes that is drafted, in one launch for the whole batch."""
    quality: float = 1.0
    """Of the tokens that copies have right, how many it has right as well."""


class LengthRule(Protocol):
    """Chooses the length of a batch's drafts: `BatchDraftLength`, or one that never changes."""

    def choose(self, batch: int, allowed: Callable[[int], bool] | None = None) -> int:
        """Return how many tokens to draft for each request."""

    def observe(
        self,
        verified: Sequence[int],
        accepted: Sequence[int],
        *,
        step_time_s: float | None = None,
        drafts_follow: bool | None = None,
        prefilled: int = 0,
    ) -> None:
        """Record what a step came to."""

    def note_new_requests(self, count: int) -> None:
        """Record that so many requests have begun."""


class FixedLength:
    """One length for all steps that the largest graph has room for; none for others."""

    def __init__(self, length: int) -> None:
        self._length = length

    def choose(self, batch: int, allowed: Callable[[int], bool] | None = None) -> int:  # noqa: ARG002
        """Return the length, or 0."""
        return self._length if batch * (self._length + 1) <= CAPTURED[-1] else 0

    def observe(self, *_: Any, **__: Any) -> None:
        """It learns nothing."""

    def note_new_requests(self, count: int) -> None:
        """It makes no difference."""


class _Unseen(NamedTuple):
    """What is not known yet of a step that runs; as for `LengthRule.observe`."""

    verified: list[int]
    accepted: list[int]
    step_time_s: float
    drafts_follow: bool
    prefilled: int


class _Made(NamedTuple):
    """Drafts of one length for all requests."""

    tokens: dict[str, list[int]]
    survival: dict[str, Floats]
    """The probability that each draft is right up to and with each of its tokens."""
    length: int = 0


class V2:
    """vLLM's V2 runner: steps are sent ahead, drafts are made on the device at the end of each.

    How long they are is decided when the step is scheduled at whose end they are made. What is
    known then is what steps before the one that runs came to.

    Args:
        graphs: which steps that decode have a graph of their own.
    """

    def __init__(
        self, loop: ClosedLoop, device: Device, drafter: DeviceDrafter, graphs: GraphLengths
    ) -> None:
        self._loop, self._device, self._drafter, self._graphs = loop, device, drafter, graphs
        self._random = np.random.default_rng(1)
        self._costs: dict[tuple[int, int], Floats] = {}

    def serve_without_drafts(self) -> None:
        """What vLLM does by itself."""
        loop = self._loop
        while loop.has_requests():
            loop.run_step(self._device.sent_ahead_s(loop.batch, 0, loop.num_prefilled), {})
            loop.end_requests()

    def serve(self, lengths: LengthRule, *, is_adaptive: bool) -> None:
        """Draft as many tokens for all requests. With `is_adaptive` only those are verified that
        pay, which vLLM's adaptive verification decides by their chances."""
        loop, unseen = self._loop, deque[_Unseen]()
        made = before = _Made({}, {})
        known: set[str] = set()
        while loop.has_requests():
            lengths.note_new_requests(len(loop.live - known))
            known = loop.live
            length = lengths.choose(loop.batch, partial(self._may_be_chosen, loop.batch))
            drafts = self._admitted(made, before) if is_adaptive else made.tokens
            # What vLLM verifies adaptively has graphs that take requests of any lengths.
            in_pieces = not is_adaptive and not self._graphs.covers(loop.batch, made.length)
            seconds = self._device.sent_ahead_s(
                loop.batch,
                sum(map(len, drafts.values())),
                loop.num_prefilled,
                in_pieces=in_pieces and not loop.num_prefilled,
            )
            seconds += self._drafter.position_s * length
            prefilled = loop.num_prefilled
            step = loop.run_step(seconds, drafts)
            counts = _counts(step, drafts)
            measured_s = loop.as_measured(seconds)
            unseen.append(_Unseen(*counts, measured_s, length > 0, prefilled))
            if len(unseen) > 1:
                seen = unseen.popleft()
                lengths.observe(
                    seen.verified,
                    seen.accepted,
                    step_time_s=seen.step_time_s,
                    drafts_follow=seen.drafts_follow,
                    prefilled=seen.prefilled,
                )
            before, made = made, self._draft(step, length)

    def _may_be_chosen(self, batch: int, length: int) -> bool:
        """As `engine_ext/scheduling/draft_lengths.py` decides it."""
        return self._graphs.covers(batch, length) or not self._graphs.covers(batch, 0)

    def _draft(self, step: Step, length: int) -> _Made:
        """Draft `length` tokens for each request that goes on."""
        loop = self._loop
        found = loop.draft(step, SchedulingMode.SYNC, None, limit=length)
        if not length:
            return _Made({}, {})
        tokens, survival = {}, {}
        for request_id in [i for i in step.emitted if i in loop.live]:
            draft = found.get(request_id, [])
            # What is not there is filled in, and verified in vain.
            drawn = self._random.random(length) < self._drafter.quality
            tokens[request_id] = [
                token if kept else NEVER_RIGHT for token, kept in zip(draft, drawn, strict=False)
            ] + [NEVER_RIGHT] * (length - len(draft))
            chances = np.zeros(length)
            chances[: len(draft)] = loop.provider.draft_chances(request_id)
            survival[request_id] = chances * self._drafter.quality ** np.arange(1, length + 1)
        return _Made(tokens, survival, length)

    def _admitted(self, made: _Made, before: _Made) -> dict[str, list[int]]:
        """How much of each draft is verified: as many tokens in all as pay by the chances of the
        drafts before, those with the best chances now."""
        if not made.tokens:
            return {}
        length = len(next(iter(made.tokens.values())))
        old = [before.survival.get(i, np.ones(length))[:length] for i in made.tokens]
        scores = np.sort(np.concatenate(old))[::-1]
        emitted = self._loop.batch + np.append(0.0, np.cumsum(scores))
        budget = int(np.argmax(emitted / self._costs_of(self._loop.batch, length)[: len(emitted)]))
        survival = np.stack([made.survival[i] for i in made.tokens])
        best = np.zeros(survival.size, np.bool_)
        best[np.argsort(-survival, axis=None, kind="stable")[:budget]] = True
        admitted = best.reshape(survival.shape).sum(axis=1)
        return {
            i: draft[:many]
            for (i, draft), many in zip(made.tokens.items(), admitted.tolist(), strict=True)
            if many
        }

    def _costs_of(self, batch: int, length: int) -> Floats:
        """Seconds of steps that verify 0 to `length` drafted tokens for each request."""
        if (batch, length) not in self._costs:
            drafted = range(batch * length + 1)
            drafting_s = self._drafter.position_s * length
            steps = [self._device.sent_ahead_s(batch, d) + drafting_s for d in drafted]
            self._costs[batch, length] = np.array(steps)
        return self._costs[batch, length]


def _counts(step: Step, drafts: dict[str, list[int]]) -> tuple[list[int], list[int]]:
    """Verified and accepted tokens of each request of a step."""
    verified = [len(drafts.get(request_id, ())) for request_id in step.emitted]
    accepted = [step.accepted.get(request_id, 0) for request_id in step.emitted]
    return verified, accepted
