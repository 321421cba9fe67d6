"""What the proposer keeps of a request between steps: how far it may draft, and what is stored."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from reprise.engine_ext.core.request_hints import read_hints
from reprise.engine_ext.core.same_samples import promises_a_sample
from reprise.engine_ext.worker.row_tracker import IntArray
from reprise.engine_ext.worker.undrafted_settings import must_not_be_drafted
from reprise.retrieval.api.near_answer import NearAnswer
from reprise.spec.api.recorded_steps import StepRecorder

if TYPE_CHECKING:
    from vllm.sampling_params import SamplingParams


class LiveRequest:
    """A request that a worker drafts for, from its arrival to its end."""

    __slots__ = (
        "has_begun",
        "has_ended",
        "hints",
        "near_by_tokens",
        "num_prompt_tokens",
        "params",
        "prompt_token_ids",
        "recorder",
        "search_id",
        "stops",
    )

    def __init__(
        self,
        params: "SamplingParams | None",
        prompt_token_ids: Sequence[int] | IntArray | None,
    ) -> None:
        self.params = params
        self.prompt_token_ids = prompt_token_ids
        self.hints = read_hints(params)
        self.recorder = StepRecorder() if self.hints.record else None
        self.stops = _stop_token_ids(params)
        self.search_id = self.hints.retrieval_id
        """What its near answers are found under; None: they are not searched for."""
        self.near_by_tokens: list[NearAnswer] = []
        self.num_prompt_tokens = 0
        self.has_begun = False
        """Whether it is drafted for: its prompt has been computed once."""
        self.has_ended = False

    def within_answer(self, emitted: list[int], num_tokens: int) -> list[int]:
        """Cut the tokens that were emitted last, `num_tokens` being prompt and output so far, to
        those up to where the scheduler ends the answer: the runner may go a draft and a step
        further."""
        if self.has_ended:
            return []
        num_before = num_tokens - self.num_prompt_tokens - len(emitted)
        kept, self.has_ended = self._up_to_the_end(emitted, num_before)
        return kept

    def _up_to_the_end(self, tokens: list[int], num_before: int) -> tuple[list[int], bool]:
        """Cut the output after its first `num_before` tokens at the answer's end; return it, and
        whether the end is there."""
        limit = self.params.max_tokens if self.params is not None else None
        has_ended = limit is not None and num_before + len(tokens) >= limit
        if limit is not None and has_ended:
            tokens = tokens[: max(0, limit - num_before)]
        if self.stops and not self.stops.isdisjoint(tokens):
            end = next(i for i, token in enumerate(tokens) if token in self.stops)
            return tokens[: end + 1], True
        return tokens, has_ended

    def draft_limit(self, num_tokens: int, room: int, *, keeps_sample: bool = False) -> int:
        """Return the maximum of tokens that a draft can use.

        Args:
            num_tokens: prompt and output so far.
            room: what fits.
            keeps_sample: drafts are verified so that a seed gives the sample that it gives without.
        """
        if self.params is None:
            return 0 if self.has_ended else max(0, room)
        if self.has_ended or (promises_a_sample(self.params) and not keeps_sample):
            return 0
        if must_not_be_drafted(self.params, keeps_sample=keeps_sample):
            return 0
        num_output_tokens = num_tokens - self.num_prompt_tokens
        if self.params.max_tokens is not None:
            # The last token of an answer is the bonus token of some step: no draft for it.
            room = min(room, self.params.max_tokens - num_output_tokens - 1)
        if num_output_tokens < self.params.min_tokens:
            # vLLM forbids the bonus token to end an answer that was shorter than `min_tokens`
            # when the step began, so the bonus token must not lie beyond them.
            room = min(room, self.params.min_tokens - num_output_tokens - 1)
        return max(0, room)

    def max_tokens_in_all(self) -> int | None:
        """Return the maximum of prompt and output together; None: only the context bounds them."""
        limit: int | None = self.params.max_tokens if self.params is not None else None
        return None if limit is None else self.num_prompt_tokens + limit

    def answer_of(self, output_token_ids: Sequence[int] | IntArray) -> list[int]:
        """Return the output up to where the scheduler ends it."""
        return self._up_to_the_end(list(output_token_ids), 0)[0]


def _stop_token_ids(params: "SamplingParams | None") -> frozenset[int]:
    """Token ids that end the answer of a request with these sampling params."""
    if params is None:
        return frozenset()
    stops = set(params.stop_token_ids or ())
    if not params.ignore_eos and params.eos_token_id is not None:
        stops.add(params.eos_token_id)
    return frozenset(stops)
