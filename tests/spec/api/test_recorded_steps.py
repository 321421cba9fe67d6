"""Steps as a recorder counts them, and the provider's word on where a draft came from."""

import msgspec

from reprise.spec.api.recorded_steps import (
    MAX_RECORDED_TOKENS,
    DraftedToken,
    RecordedStep,
    StepRecorder,
)
from reprise.tests.spec.providers import near, new_provider


def drafted(*token_ids: int) -> list[DraftedToken]:
    return [DraftedToken(token, "corpus") for token in token_ids]


def test_steps_are_counted_as_an_engine_takes_them() -> None:
    recorder = StepRecorder()
    recorder.observe([7])  # of the prefill
    recorder.note_draft(drafted(8, 9, 1))
    recorder.observe([])  # nothing was emitted for it in this step
    recorder.observe([8, 9, 10])
    recorder.observe([11, 12])  # two steps without drafts, seen at once
    recorder.note_draft(drafted(13, 14))
    recorder.observe([13])  # the end of the answer: nothing is left to add
    assert recorder.steps == [
        RecordedStep(3, 2, drafted(8, 9, 1)),
        RecordedStep(1, 0),
        RecordedStep(1, 0),
        RecordedStep(1, 1, drafted(13, 14)),
    ]


def test_a_first_token_beside_others_is_no_step() -> None:
    recorder = StepRecorder()
    recorder.observe([7, 8])
    assert recorder.steps == [RecordedStep(1, 0)]


def test_what_is_too_long_is_not_recorded_at_all() -> None:
    recorder = StepRecorder()
    recorder.observe([7])
    recorder.note_near([near("a", [1])])
    for _ in range(MAX_RECORDED_TOKENS // 4 - 1):
        recorder.note_draft(drafted(8, 9))
        recorder.observe([8, 1])
    assert recorder.record() is not None
    recorder.note_draft(drafted(8, 9))
    recorder.observe([8, 1])
    assert recorder.record() is None
    recorder.note_draft(drafted(8))
    recorder.observe([8])
    assert recorder.record() is None
    assert (recorder.steps, recorder._near) == ([], {})


def test_steps_survive_the_way_between_processes() -> None:
    step = RecordedStep(2, 1, [DraftedToken(5, "near_answer", "a")])
    assert msgspec.json.decode(msgspec.json.encode(step), type=RecordedStep) == step


def test_each_drafted_token_has_its_source_and_answer() -> None:
    provider = new_provider()
    assert provider.drafted_tokens("nobody") == []
    provider.start("r", [1, 2, 3])
    provider.attach("r", [near("a", list(range(100, 130)), 0.98)])
    provider.observe("r", [100])
    assert provider.drafted_tokens("r") == []
    assert provider.propose("r", limit=3) == [101, 102, 103]
    assert provider.drafted_tokens("r") == [
        DraftedToken(token, "near_answer", "a") for token in (101, 102, 103)
    ]
    provider.observe("r", [101, 7])
    provider.start("off", [1], max_draft=0)
    assert provider.drafted_tokens("off") == []


def test_a_draft_from_the_context_names_no_answer() -> None:
    provider = new_provider()
    prompt = list(range(100, 160))
    provider.start("r", prompt)
    provider.observe("r", prompt[:20])
    assert provider.propose("r", limit=4) == prompt[20:24]
    assert {token.source for token in provider.drafted_tokens("r")} == {"context"}
    assert {token.answer_id for token in provider.drafted_tokens("r")} == {None}
