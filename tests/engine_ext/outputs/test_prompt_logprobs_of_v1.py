"""What vLLM's model runner V1 says of a prompt, as verified replay reads it."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("vllm")

import torch
from vllm.sampling_params import SamplingParams
from vllm.v1.worker.gpu_input_batch import CachedRequestState

from reprise.engine_ext.outputs.verdict import TOP_LOGPROBS, num_verified
from reprise.tests.engine_ext.model_runner import engine_config, model_runner_of

NUM_PROMPT, NUM_ANSWER = 37, 23


@pytest.fixture(scope="module")
def runner(demo_model: Path) -> Iterator[Any]:
    """vLLM's model runner, with the demo model."""
    with model_runner_of(engine_config(demo_model)) as runner:
        yield runner


class Checked:
    """A prompt and an answer in the runner, whose hidden states are made up."""

    def __init__(self, runner: Any, *, num_cached: int) -> None:
        torch.manual_seed(3)
        self.runner, self.num_cached = runner, num_cached
        length = NUM_PROMPT + NUM_ANSWER
        size = runner.model_config.get_hidden_size()
        self.hidden = torch.randn(length, size)
        logits = runner.model.compute_logits(self.hidden)
        self.best = logits.argmax(dim=-1).tolist()
        self.answer = self.best[NUM_PROMPT - 1 : length - 1]

    def verified(self, token_ids: list[int], *, chunks: tuple[int, ...]) -> int:
        """Have the runner compute what is not cached, so many tokens a step."""
        prompt = [5] * NUM_PROMPT + token_ids
        params = SamplingParams(temperature=0, prompt_logprobs=TOP_LOGPROBS)
        state = CachedRequestState(
            req_id="a",
            prompt_token_ids=prompt,
            mm_features=[],
            sampling_params=params,
            generator=None,
            block_ids=([],),
            num_computed_tokens=self.num_cached,
            output_token_ids=[],
        )
        runner = self.runner
        runner.requests["a"], runner.num_prompt_logprobs["a"] = state, TOP_LOGPROBS
        runner.input_batch.req_id_to_index["a"] = 0
        runner.query_start_loc.np[0] = 0
        said: dict[str, Any] = {}
        try:
            for size in chunks:
                begin = state.num_computed_tokens
                hidden = self.hidden[begin : begin + size]
                said = runner._get_prompt_logprobs_dict(hidden, {"a": size})
                state.num_computed_tokens += size
        finally:
            del runner.requests["a"], runner.input_batch.req_id_to_index["a"]
            runner.num_prompt_logprobs.pop("a", None)
        return num_verified(
            said["a"],
            num_prompt_tokens=NUM_PROMPT,
            token_ids=token_ids,
            num_cached_tokens=self.num_cached,
            breaks_ties=False,
        )


@pytest.mark.parametrize(
    ("num_cached", "chunks"),
    [(0, (60,)), (0, (37, 23)), (0, (36, 24)), (0, (38, 5, 17)), (0, (20, 39, 1)),
     (32, (28,)), (36, (24,)), (36, (1, 23))],
)  # fmt: skip
def test_an_answer_is_verified_up_to_the_first_other_token(
    runner: Any, num_cached: int, chunks: tuple[int, ...]
) -> None:
    checked = Checked(runner, num_cached=num_cached)
    assert checked.verified(checked.answer, chunks=chunks) == NUM_ANSWER
    for place in (0, 1, 11, NUM_ANSWER - 1):
        wrong = list(checked.answer)
        wrong[place] = 3 if wrong[place] != 3 else 4
        assert checked.verified(wrong, chunks=chunks) == place


@pytest.mark.parametrize("num_cached", [37, 48])
def test_where_the_cache_reaches_into_the_answer_nothing_is(runner: Any, num_cached: int) -> None:
    checked = Checked(runner, num_cached=num_cached)
    assert checked.verified(checked.answer, chunks=(60 - num_cached,)) == 0
