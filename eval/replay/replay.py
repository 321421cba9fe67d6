"""Replay: recorded answers, verified exactly as greedy decoding would, without a model.

The first token of an answer comes from the prefill and is no step. Every later step emits the
tokens of the draft that agree with the recorded answer, and the one that the target adds itself. A
step whose draft reaches the end of the answer has nothing to add, so that a request's emitted
tokens can be one less than its steps and accepted tokens together.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from reprise.eval.replay.drafter import Drafter
from reprise.eval.replay.recording import ReplayRecorder
from reprise.eval.replay.token_rows import IntArray, TokenRow


@dataclass
class ReplayCounts:
    """What a replay counted."""

    requests: int = 0
    steps: int = 0
    emitted_tokens: int = 0
    """By steps: without each answer's first token."""
    drafted_tokens: int = 0
    accepted_tokens: int = 0
    propose_us: list[float] = field(default_factory=list)
    """One for each step: observing what was emitted, and the next draft."""
    start_us: list[float] = field(default_factory=list)
    """One for each request."""

    def model_speedup(self, cost: float) -> float | None:
        """Emitted tokens against the cost of the steps, a step without draft costing 1."""
        spent = self.steps + cost * self.drafted_tokens
        return self.emitted_tokens / spent if spent else None


def replay(
    drafter: Drafter,
    rows: Sequence[TokenRow],
    *,
    num_speculative_tokens: int | None = None,
    on_request: Callable[[], None] = lambda: None,
    recorder: ReplayRecorder | None = None,
) -> ReplayCounts:
    """Fill the cache, then run the other rows in order; `num_speculative_tokens` cuts drafts.

    What a `recorder` does is not in the times.
    """
    fill_cache(drafter, rows)
    counts = ReplayCounts()
    for row in rows:
        if row.warm:
            continue
        drafter.look_up(row)
        replay_request(
            drafter,
            row,
            counts,
            num_speculative_tokens=num_speculative_tokens,
            recorder=recorder,
        )
        drafter.finish(row, joins=row.cached_token_ids is None)
        on_request()
    return counts


def fill_cache(drafter: Drafter, rows: Sequence[TokenRow]) -> None:
    """Let the answers join that are cached before the first request."""
    drafter.prepare(rows)
    for row in rows:
        if row.warm:
            drafter.add(row, row.response_token_ids)
        if row.cached_token_ids is not None:
            drafter.add(row, row.cached_token_ids)


def replay_request(
    drafter: Drafter,
    row: TokenRow,
    counts: ReplayCounts,
    *,
    num_speculative_tokens: int | None = None,
    recorder: ReplayRecorder | None = None,
) -> None:
    """Run one request up to its last token, adding to `counts`."""
    target = row.response_token_ids
    began = time.perf_counter()
    drafter.start(row)
    counts.start_us.append((time.perf_counter() - began) * 1e6)
    counts.requests += 1
    position, emitted = 1, 1
    if recorder is not None:
        recorder.begin()
    while position < len(target):
        began = time.perf_counter()
        drafter.observe(target[position - emitted : position])
        draft = drafter.propose()
        counts.propose_us.append((time.perf_counter() - began) * 1e6)
        draft = draft[:num_speculative_tokens]
        if recorder is not None:
            recorder.observe(target[position - emitted : position])
            recorder.note_draft(draft)
        accepted = accepted_length(draft, target[position:])
        emitted = min(accepted + 1, len(target) - position)
        position += emitted
        counts.steps += 1
        counts.emitted_tokens += emitted
        counts.drafted_tokens += len(draft)
        counts.accepted_tokens += accepted
    drafter.observe(target[position - emitted :])
    if recorder is not None:
        recorder.observe(target[position - emitted :])
        recorder.end(row)


def accepted_length(draft: Sequence[int], target: IntArray) -> int:
    """How many tokens of the draft agree with the target from its start on."""
    length = min(len(draft), len(target))
    differs = np.flatnonzero(np.asarray(draft[:length], np.int64) != target[:length])
    return int(differs[0]) if len(differs) else length
