"""Where an answer ends is known before the scheduler says so."""

import pytest

pytest.importorskip("vllm")

from vllm import SamplingParams

from reprise.engine_ext.worker.live_request import LiveRequest

PROMPT = [1, 2, 3]


def live(**params: object) -> LiveRequest:
    request = LiveRequest(SamplingParams(**params), PROMPT)
    request.num_prompt_tokens = len(PROMPT)
    return request


@pytest.mark.parametrize(
    ("params", "steps", "kept"),
    [
        ({"max_tokens": 9}, [[5], [6, 7]], [[5], [6, 7]]),
        ({"max_tokens": 9, "stop_token_ids": [6]}, [[5], [6, 7], [8]], [[5], [6], []]),
        ({"max_tokens": 2}, [[5], [6, 7], [8, 9]], [[5], [6], []]),
        ({"max_tokens": 2}, [[5], [6], [8, 9]], [[5], [6], []]),
        ({"max_tokens": 3, "stop_token_ids": [7]}, [[5, 6, 8, 7]], [[5, 6, 8]]),
        ({"max_tokens": None}, [[5], [6, 7]], [[5], [6, 7]]),
    ],
)
def test_what_is_emitted_beyond_the_end_is_no_part_of_the_answer(
    params: dict[str, object], steps: list[list[int]], kept: list[list[int]]
) -> None:
    request = live(**params)
    emitted: list[int] = []
    found = []
    for step in steps:
        emitted += step
        found.append(request.within_answer(list(step), len(PROMPT) + len(emitted)))
    assert found == kept
    answer = [token for step in kept for token in step]
    assert request.answer_of(emitted) == answer
    assert request.has_ended == (answer != emitted or len(answer) == params["max_tokens"])
    if request.has_ended:
        assert request.draft_limit(len(PROMPT) + len(emitted), room=10) == 0


def test_one_without_params_never_ends_by_itself() -> None:
    request = LiveRequest(None, PROMPT)
    assert request.within_answer([5, 6], 5) == [5, 6]
    assert request.draft_limit(5, room=10) == 10


@pytest.mark.parametrize(
    ("params", "limit"),
    [
        ({"temperature": 0.0, "seed": 5}, 10),
        ({"temperature": 0.0}, 10),
        ({"temperature": 0.8}, 10),
        ({"temperature": 0.8, "seed": 5}, 0),
        ({"temperature": 0.8, "seed": 0}, 0),
    ],
)
def test_only_a_sampled_request_with_a_seed_gets_no_drafts(
    params: dict[str, object], limit: int
) -> None:
    request = live(max_tokens=50, **params)
    assert request.draft_limit(len(PROMPT) + 1, room=10) == limit
    assert request.draft_limit(len(PROMPT) + 1, room=10, keeps_sample=True) == 10
