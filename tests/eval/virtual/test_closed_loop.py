"""What requests draft from in virtual time, and since when."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from reprise.eval.demo_data.demo_model import demo_tokenizer_path
from reprise.eval.demo_data.demo_trace import make_demo_trace
from reprise.eval.replay.token_rows import TokenRow, load_tokenizer, tokenize_rows
from reprise.eval.virtual.closed_loop import ClosedLoop
from reprise.eval.virtual.near_sources import OverlapNear
from reprise.retrieval.api.near_answer import NearAnswer
from reprise.spec.api.scheduling_mode import SchedulingMode

STEP_S, RETRIEVAL_S = 0.005, 0.012


class Attached:
    """A provider that drafts nothing, and remembers what it was given."""

    def __init__(self) -> None:
        self.steps = 0
        self.attached: list[tuple[int, list[str]]] = []
        """(steps that the request had, answer ids)"""

    def start(self, *_: Any) -> None:
        self.steps = 0

    def attach(self, _: str, near_answers: Sequence[NearAnswer]) -> None:
        self.attached.append((self.steps, [near.answer_id for near in near_answers]))

    def skip_drafting(self, *_: Any, **__: Any) -> bool:
        return False

    def step(self, request_ids: Sequence[str], *_: Any, **__: Any) -> list[list[int]]:
        self.steps += 1
        return [[] for _ in request_ids]

    def add_answer(self, *_: Any) -> None:
        pass

    def finish(self, request_id: str) -> None:
        pass


class NearInMeaning(OverlapNear):
    """Finds one answer that shares no token."""

    def by_meaning(self, _: TokenRow) -> Sequence[NearAnswer]:
        nothing = np.zeros(0, np.int32)
        return [NearAnswer("meant", 0.9, nothing, np.arange(9, dtype=np.int32))]


def attached(near: OverlapNear, asked: TokenRow, known: TokenRow) -> list[tuple[int, list[str]]]:
    """What a request is given when it is served alone, beside an answer that is known."""
    provider = Attached()
    loop = ClosedLoop(provider, near, draft_length=8, retrieval_s=RETRIEVAL_S)  # type: ignore[arg-type]
    loop.learn(known)
    loop.begin([asked], concurrency=1)
    while loop.has_requests():
        loop.draft(loop.run_step(STEP_S, {}), SchedulingMode.SYNC, None)
    return provider.attached


def test_near_answers_are_found_by_tokens_at_once_and_by_meaning_later() -> None:
    rows = tokenize_rows(make_demo_trace(), load_tokenizer(demo_tokenizer_path()))
    known = rows[0]
    asked = replace(known, request_id="asked")
    by_tokens = f"{known.request_id}-{len(known.response_token_ids)}"
    assert attached(OverlapNear(), asked, known) == [(0, [by_tokens])]
    # 12 ms after its prefill three steps of 5 ms have been drafted after.
    assert attached(NearInMeaning(), asked, known) == [(0, [by_tokens]), (3, ["meant", by_tokens])]
