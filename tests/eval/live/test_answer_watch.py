"""What a page is told of a real engine's answers, by a worker's own store of recorded steps."""

from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("vllm")

from vllm import SamplingParams

from reprise.engine_ext.core.request_hints import read_hints
from reprise.engine_ext.request import request_info
from reprise.engine_ext.request.request_info import DraftCountsStore, counts_id
from reprise.eval.live import answer_watch
from reprise.eval.live.answer_watch import AnswerWatch
from reprise.eval.live.live import say_what_is_unrecorded
from reprise.eval.live.live_worker import LiveOutcome
from reprise.spec.api.recorded_steps import DraftedToken, RecordedRequest, RecordedStep
from reprise.spec.api.stats import RequestStats

DRAFT = [DraftedToken(8, "corpus"), DraftedToken(9, "corpus")]
RECORD = RecordedRequest([RecordedStep(3, 2, DRAFT)])
ANSWER = [7, 8, 9, 3]


class Worker:
    """A worker as far as a watch asks it."""

    def __init__(self) -> None:
        self.store = DraftCountsStore()
        self.llm: Any = SimpleNamespace(collective_rpc=self._rpc)

    def _rpc(self, name: str, args: tuple[list[str]]) -> list[Any]:
        assert name == "reprise_draft_counts"
        return [self.store.take(*args)]

    def end(self, params: SamplingParams, request_id: str, record: RecordedRequest | None) -> None:
        nonce = read_hints(params).counts_nonce
        assert nonce is not None
        self.store.put(counts_id(nonce, request_id), RequestStats(), record)


def begun(watch: AnswerWatch, count: int) -> list[SamplingParams]:
    """Requests that are under way, each of which a step gave three tokens to."""
    asked = [SamplingParams() for _ in range(count)]
    for number, params in enumerate(asked):
        watch.prepare(number, params)
        watch.begin(number, f"r{number}")
        watch.note_step(number, 1)
        watch.note_step(number, 3)
    return asked


def test_steps_are_those_that_the_worker_recorded() -> None:
    worker, watch = Worker(), AnswerWatch(2, asks_worker=True, source="")
    for number, params in enumerate(begun(watch, 2)):
        worker.end(params, f"r{number}", RECORD)
    records = watch.records(worker.llm, [ANSWER] * 2, {})
    assert [record.steps for record in records] == [RECORD.steps] * 2
    assert all(record.has_whole_drafts for record in records)
    assert watch.num_unrecorded == 0


def test_what_is_not_recorded_is_counted_and_said(capsys: pytest.CaptureFixture[str]) -> None:
    worker, watch = Worker(), AnswerWatch(3, asks_worker=True, source="")
    one, other, _ = begun(watch, 3)
    worker.end(one, "r0", RECORD)
    worker.end(other, "r1", None)  # too long, or drafted for on the device
    records = watch.records(worker.llm, [ANSWER] * 3, {})
    assert [record.has_whole_drafts for record in records] == [True, False, False]
    assert watch.num_unrecorded == 2
    outcome = LiveOutcome(
        output_token_ids=[],
        warm_output_token_ids=[],
        steps=0,
        drafted_tokens=0,
        accepted_tokens=0,
        records=records,
        num_unrecorded=2,
    )
    say_what_is_unrecorded("reprise", outcome)
    (line,) = capsys.readouterr().err.splitlines()
    assert "of 2 of 3 answers with reprise" in line


def test_of_other_drafters_nothing_is_missing() -> None:
    watch = AnswerWatch(1, asks_worker=False, source="context")
    begun(watch, 1)
    (record,) = watch.records(Worker().llm, [ANSWER], {})
    assert [step.num_emitted for step in record.steps] == [3]
    assert watch.num_unrecorded == 0


def test_a_run_longer_than_the_worker_keeps_steps_loses_none(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now_s = 1000.0
    clock = SimpleNamespace(monotonic=lambda: now_s)
    monkeypatch.setattr(request_info, "time", clock)
    monkeypatch.setattr(answer_watch, "time", clock)
    worker, watch = Worker(), AnswerWatch(4, asks_worker=True, source="")
    for number, params in enumerate(begun(watch, 4)):
        worker.end(params, f"r{number}", RECORD)
        now_s += 45.0
        watch.keep_up(worker.llm)
    watch.records(worker.llm, [ANSWER] * 4, {})
    assert watch.num_unrecorded == 0
