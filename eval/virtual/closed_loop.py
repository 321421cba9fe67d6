"""A closed loop of clients in virtual time: recorded answers, and the provider that drafts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from reprise.eval.replay.replay import accepted_length
from reprise.eval.replay.token_rows import TokenRow
from reprise.eval.virtual.copy_batch import CopyBatch
from reprise.eval.virtual.near_sources import NearSource
from reprise.eval.virtual.suffix_batch import SuffixBatch
from reprise.spec.api.near_answer import NearAnswer
from reprise.spec.api.scheduling_mode import SchedulingMode
from reprise.spec.provider import DraftProvider

NOISE = 0.03  # of step times as they are measured
STEPS_TO_COME_BACK = 2  # a client's next request takes part in the third step after its last one

Drafts = Mapping[str, Sequence[int]]


class Step(NamedTuple):
    """What one came to."""

    emitted: dict[str, list[int]]
    accepted: dict[str, int]
    """Of the requests that had drafts."""
    drafted: int
    only_decoded: bool
    """No request was new in it."""


class ClosedLoop:
    """Requests of a trace, as many at a time as there are clients.

    Args:
        provider: drafts, and keeps what it has learned from one workload to the next.
        near: finds near answers: those that share tokens at once, those near in meaning later.
        draft_length: most tokens of a draft.
        retrieval_s: virtual seconds from a request's prefill until it is drafted for from what is
            near in meaning.
    """

    def __init__(
        self,
        provider: DraftProvider | SuffixBatch | CopyBatch,
        near: NearSource,
        *,
        draft_length: int,
        retrieval_s: float = 0.0,
    ) -> None:
        self.provider = provider
        self._near = near
        self._draft_length = draft_length
        self._retrieval_s = retrieval_s
        self._random = np.random.default_rng(0)
        self.begin((), concurrency=1)

    def learn(self, row: TokenRow) -> None:
        """Take in an answer that was given before."""
        self.provider.add_answer(row.request_id, row.response_token_ids)
        self._near.add(row)

    def begin(self, rows: Sequence[TokenRow], *, concurrency: int) -> None:
        """Let `concurrency` clients ask for these rows, in order; counting starts anew."""
        self.tokens = self.steps = self.drafted_steps = self.drafted = self.accepted = 0
        self.request_steps = 0
        """Steps of requests, without those that prefill."""
        self.spent_s = 0.0
        self.busy_tokens, self.busy_s = 0, 0.0
        """Of these, while a request was waiting for a client: later ever fewer are asked for."""
        self._concurrency = concurrency
        self._waiting = list(reversed(rows))
        self._coming: list[tuple[int, TokenRow]] = []
        self._live: dict[str, TokenRow] = {}
        self._positions: dict[str, int] = {}
        self._unseen: dict[str, list[int]] = {}
        """What was emitted in steps after which no draft could pay, and was not looked for."""
        self.has_looked = False
        """Whether drafts were looked for after the latest step, which takes its time."""
        self._arriving: dict[str, tuple[float, list[NearAnswer]]] = {}

    def has_requests(self) -> bool:
        """Whether any is left, once those that are due have come."""
        while self._waiting and len(self._live) + len(self._coming) < self._concurrency:
            self._coming.append((self.steps + STEPS_TO_COME_BACK, self._waiting.pop()))
        for due in [due for due in self._coming if due[0] <= self.steps]:
            self._coming.remove(due)
            self._live[due[1].request_id] = due[1]
            self._positions[due[1].request_id] = 0
        return bool(self._live or self._coming)

    @property
    def batch(self) -> int:
        """Requests in the next step."""
        return max(1, len(self._live))

    @property
    def live(self) -> set[str]:
        """Ids of the requests in the next step."""
        return set(self._live)

    @property
    def num_prefilled(self) -> int:
        """Tokens of prompts that the next step computes."""
        return sum(len(r.prompt_token_ids) for i, r in self._live.items() if not self._positions[i])

    def run_step(self, seconds: float, drafts: Drafts) -> Step:
        """All requests emit what is recorded: as much as their drafts had right, and one more."""
        emitted: dict[str, list[int]] = {}
        accepted: dict[str, int] = {}
        only_decoded = all(self._positions.values())
        for request_id, row in self._live.items():
            rest = row.response_token_ids[self._positions[request_id] :]
            draft = drafts.get(request_id, ())
            right = accepted_length(draft, rest)
            now = rest[: right + 1]
            emitted[request_id] = now.tolist()
            if draft:
                accepted[request_id] = right
            self.request_steps += self._positions[request_id] > 0
            self._positions[request_id] += len(now)
            self.tokens += len(now)
            self.busy_tokens += len(now) if self._waiting else 0
        self.steps += 1
        self.spend(seconds)
        drafted = sum(map(len, drafts.values()))
        self.drafted_steps += drafted > 0
        self.drafted += drafted
        self.accepted += sum(accepted.values())
        return Step(emitted, accepted, drafted, only_decoded)

    def spend(self, seconds: float) -> None:
        """Let time pass."""
        self.spent_s += seconds
        self.busy_s += seconds if self._waiting else 0.0

    def draft(
        self,
        step: Step,
        mode: SchedulingMode,
        seconds: float | None,
        *,
        saved_s: float = 0.0,
        limit: int | None = None,
    ) -> dict[str, list[int]]:
        """Drafts after a step that took so many seconds; None: it is like no other.

        Args:
            step: what it came to.
            mode: where the engine is.
            seconds: what it took.
            saved_s: how much of the drafting is no loss, in seconds.
            limit: most tokens of a draft now.
        """
        if not step.emitted:  # all clients are thinking
            return {}
        new = [i for i, now in step.emitted.items() if self._positions[i] == len(now)]
        for request_id in new:
            self._begin(self._live[request_id])
        self._attach_arrived()
        for request_id, now in step.emitted.items():
            self._unseen.setdefault(request_id, []).extend(now)
        about: dict[str, Any] = {
            "step_time_s": (
                None if seconds is None or not step.only_decoded else self.as_measured(seconds)
            ),
            "num_drafted_tokens": step.drafted,
            "mode": mode,
        }
        self.has_looked = True
        if not new:
            if self.provider.skip_drafting(len(step.emitted), **about):
                self.has_looked = False
                self.end_requests()
                return {}
            about["step_time_s"] = None  # it is recorded
        length = self._draft_length if limit is None else min(limit, self._draft_length)
        ended = self._ended()
        drafts = self.provider.step(
            list(step.emitted),
            [self._unseen.pop(request_id) for request_id in step.emitted],
            limits=lambda: [0 if i in ended else length for i in step.emitted],
            saved_s=saved_s,
            **about,
        )
        self.end_requests()
        return {i: draft for i, draft in zip(step.emitted, drafts, strict=True) if draft}

    def as_measured(self, seconds: float) -> float:
        """Return a step's time as an engine would have measured it."""
        return seconds * float(np.exp(self._random.normal(0.0, NOISE)))

    def end_requests(self) -> None:
        """Let those that have emitted all learn and go."""
        for request_id in self._ended():
            if unseen := self._unseen.pop(request_id, None):
                self.provider.observe(request_id, unseen)
            self.provider.finish(request_id)
            self._arriving.pop(request_id, None)
            self.learn(self._live.pop(request_id))

    def _ended(self) -> set[str]:
        return {
            request_id
            for request_id, row in self._live.items()
            if self._positions[request_id] == len(row.response_token_ids)
        }

    def _begin(self, row: TokenRow) -> None:
        """Start a request as `engine_ext/worker/near_drafts.py` does where meaning takes time."""
        self.provider.start(row.request_id, row.prompt_token_ids)
        by_tokens, by_meaning = self._near.by_tokens(row), self._near.by_meaning(row)
        if by_tokens:
            self.provider.attach(row.request_id, by_tokens)
        if by_meaning:
            due_s = self.spent_s + self._retrieval_s
            self._arriving[row.request_id] = due_s, [*by_meaning, *by_tokens]

    def _attach_arrived(self) -> None:
        for request_id, (due_s, near) in list(self._arriving.items()):
            if due_s <= self.spent_s:
                self.provider.attach(request_id, near)
                del self._arriving[request_id]
