"""What an engine says of a stored answer: how much of it it would generate, and where that ends."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from vllm.v1.core.sched.utils import check_stop
from vllm.v1.request import Request

from reprise.engine_ext.outputs.replay import Ending

if TYPE_CHECKING:
    from vllm.v1.engine import EngineCoreRequest
    from vllm.v1.outputs import LogprobsTensors

# Of the logits of a prompt, the most probable ones; more are looked at by nobody.
TOP_LOGPROBS = 2


class Verdict(NamedTuple):
    """What an engine says of a stored answer."""

    num_tokens: int
    """Of the stored answer, that it would generate as well."""
    ending: Ending | None
    """How the answer ends with these; None: it goes on."""


def num_verified(
    logprobs: "LogprobsTensors",
    *,
    num_prompt_tokens: int,
    token_ids: Sequence[int],
    num_cached_tokens: int,
    breaks_ties: bool,
) -> int:
    """Return how many of a stored answer's tokens the engine would generate.

    Args:
        logprobs: Of prompt and answer, one row for each token but the first, in order: the token
            and the `TOP_LOGPROBS` most probable ones, their logprobs, and the token's rank. Model
            runner V2 leaves out rows of what was cached, V1 leaves them as they are.
        num_prompt_tokens: Of the prompt alone.
        token_ids: [n] of the answer.
        num_cached_tokens: Of both, for which no logits were computed.
        breaks_ties: Whether a token whose logprob equals the largest one is generated if its id is
            the lowest of them. Logits of 16 bits are often equal, and unequal ones have unequal
            logprobs in float32; for logits in float32 the latter is not sure.
    """
    if num_cached_tokens >= num_prompt_tokens:
        return 0  # the logits that decide on the first token were not computed
    first = len(logprobs.selected_token_ranks) - len(token_ids)
    if first < 0:
        return 0
    ids = logprobs.logprob_token_ids[first:].tolist()
    values = logprobs.logprobs[first:].tolist()
    ranks = logprobs.selected_token_ranks[first:].tolist()
    for index, token_id in enumerate(token_ids):
        if ids[index][0] != token_id:
            return 0  # not the rows that they were taken for
        if ranks[index] == 1:
            continue
        if not (breaks_ties and ranks[index] == 2 and _is_lowest(ids[index], values[index])):
            return index
    return len(token_ids)


def _is_lowest(ids: Sequence[int], logprobs: Sequence[float]) -> bool:
    """Return whether a token of rank 2 is equal to the other one, and comes before it."""
    return all(
        value == logprobs[0] and other >= ids[0]
        for other, value in zip(ids[1:3], logprobs[1:3], strict=True)
    )


def end_of(request: "EngineCoreRequest", token_ids: Sequence[int], max_model_len: int) -> Verdict:
    """Return where vLLM's scheduler ends an answer that begins with these tokens, if it does."""
    replica = Request.from_engine_core_request(request, None)
    for count, token_id in enumerate(token_ids, 1):
        replica.append_output_token_ids(token_id)
        if check_stop(replica, max_model_len):
            reason = replica.get_finished_reason()
            assert reason is not None
            return Verdict(count, Ending(reason, replica.stop_reason))
    return Verdict(len(token_ids), None)
