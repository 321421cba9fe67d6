"""Which request is in which row of vLLM's input batch, and what it has emitted since last time.

vLLM's model runner V1 hands a proposer rows, not requests: rows are swapped and condensed as
requests finish, a preempted request leaves its row and comes back with its output as part of its
prefix, and a prompt prefilled in chunks shows up before it has emitted anything.

`IdRowTracker` is told the request ids; `ContentRowTracker` recognises requests by their tokens.
A step in which vLLM does not call the proposer leaves no gap with `IdRowTracker`: what was emitted
then is read from the batch's token table.
"""

from collections.abc import Sequence
from itertools import count
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

IntArray = NDArray[np.int32]

PLACEHOLDER = -1
"""What vLLM keeps in place of a token that it does not know yet."""


def num_known(output_token_ids: Sequence[int]) -> int:
    """How many of a request's tokens come before the placeholders at the end."""
    count = len(output_token_ids)
    while count > 0 and output_token_ids[count - 1] == PLACEHOLDER:
        count -= 1
    return count


class TrackedRow(NamedTuple):
    """One decoding request, as of this step."""

    row: int
    """Its row in the batch."""
    request_id: str
    prompt_token_ids: IntArray | None
    """[prompt] int32 on first sight (a view into the batch), None afterwards."""
    emitted_token_ids: list[int]
    """[n >= 0], new since the last call."""
    num_tokens: int
    """Prompt and output so far."""


class EndedRequest(NamedTuple):
    """A request given up as finished, with all its tokens."""

    request_id: str
    token_ids: IntArray
    """[prompt + output] int32."""


class RowTracker(Protocol):
    """What the proposer needs of either tracker."""

    def update(
        self,
        sampled_token_ids: Sequence[list[int]],
        num_tokens_no_spec: IntArray,
        token_ids_cpu: IntArray,
    ) -> list[TrackedRow]: ...


class IdRowTracker:
    """Follows requests whose ids vLLM tells."""

    def __init__(self) -> None:
        self._num_seen: dict[str, int] = {}
        self._req_ids: Sequence[str] = ()
        self._num_prompt_tokens: IntArray = np.empty(0, np.int32)
        self._settled: list[str] | None = None

    @property
    def is_settled(self) -> bool:
        """Whether the rows are those of the last update, and all of them were decoding then: so
        what they emit may wait for the next update."""
        return self._req_ids == self._settled

    @property
    def num_requests(self) -> int:
        """Rows of the batch."""
        return len(self._req_ids)

    def unseen(self, request_id: str, num_tokens: int) -> int:
        """How many of a request's `num_tokens` no update has seen."""
        return num_tokens - self._num_seen.get(request_id, num_tokens)

    def name_rows(self, req_ids: Sequence[str], num_prompt_tokens: IntArray) -> None:
        """The batch's request ids [num_reqs] and prompt lengths [max_num_reqs] of this step."""
        self._req_ids = req_ids
        self._num_prompt_tokens = num_prompt_tokens

    def forget_rows(self) -> None:
        """Until they are named again, no row is known: another may be in its place by then."""
        self._req_ids = ()

    def forget(self, request_id: str) -> None:
        """The request ended; its id may be used again for another."""
        self._num_seen.pop(request_id, None)
        self._settled = None

    def update(
        self,
        sampled_token_ids: Sequence[list[int]],  # [num_reqs], empty: still prefilling
        num_tokens_no_spec: IntArray,  # [max_num_reqs] int32, prompt and output so far
        token_ids_cpu: IntArray,  # [max_num_reqs, max_model_len] int32
    ) -> list[TrackedRow]:
        """The rows that decode, with what each emitted since it was last seen."""
        rows = []
        num_seen = self._num_seen
        counts = num_tokens_no_spec[: len(sampled_token_ids)].tolist()
        for row, (request_id, emitted, num_tokens) in enumerate(
            zip(self._req_ids, sampled_token_ids, counts, strict=False)
        ):
            if not emitted:
                continue
            seen = num_seen.get(request_id)
            prompt = None
            # Fewer tokens than were seen: vLLM took back output that it could not keep.
            if seen is None or seen > num_tokens:
                seen = int(self._num_prompt_tokens[row])
                prompt = token_ids_cpu[row, :seen]
            if num_tokens - seen != len(emitted):  # steps went by that were not looked at
                emitted = token_ids_cpu[row, seen:num_tokens].tolist()
                if PLACEHOLDER in emitted:
                    continue  # seen once all are known
            rows.append(TrackedRow(row, request_id, prompt, emitted, num_tokens))
        # Only now: had a row failed, none would have been seen.
        num_seen.update((row.request_id, row.num_tokens) for row in rows)
        all_decode = len(rows) == len(self._req_ids)
        self._settled = [row.request_id for row in rows] if all_decode else None
        return rows


class _KnownRequest:
    """A request recognised by content: its id and every token it had when last seen."""

    __slots__ = ("last_call", "num_tokens", "request_id", "token_ids")

    def __init__(self, request_id: str, token_ids: IntArray, call: int) -> None:
        self.request_id = request_id
        self.token_ids = np.empty(max(256, 2 * len(token_ids)), np.int32)
        self.token_ids[: len(token_ids)] = token_ids
        self.num_tokens = len(token_ids)
        self.last_call = call

    def matches(self, prefix: IntArray) -> bool:
        num_tokens = self.num_tokens
        # The newest tokens differ first between requests with a common prompt: ask them first.
        return (
            len(prefix) == num_tokens
            and self.token_ids[num_tokens - 1] == prefix[-1]
            and bool(np.array_equal(self.token_ids[:num_tokens], prefix))
        )

    def extend(self, emitted: Sequence[int], call: int) -> None:
        end = self.num_tokens + len(emitted)
        if end > len(self.token_ids):
            self.token_ids = np.concatenate(
                (self.token_ids[: self.num_tokens], np.empty(end, np.int32))
            )
        self.token_ids[self.num_tokens : end] = emitted
        self.num_tokens = end
        self.last_call = call


class ContentRowTracker:
    """Follows requests by their tokens, where vLLM's ids cannot be had.

    A row continues the request whose tokens so far equal the row's tokens before this step's.
    Two requests with equal tokens are interchangeable: nothing that drafting does can tell them
    apart until they diverge, and then their tokens do. Each request claims at most one row a call.

    A request absent from the batch may have finished or been preempted; it stays known until
    more than `max_absent` requests are absent, the longest absent going first.
    """

    def __init__(self, *, max_absent: int = 256) -> None:
        self._max_absent = max_absent
        self._known: dict[str, _KnownRequest] = {}
        self._by_row: dict[int, str] = {}
        self._names = count()
        self._call = 0
        self._ended: list[EndedRequest] = []

    def update(
        self,
        sampled_token_ids: Sequence[list[int]],  # [num_reqs], empty: still prefilling
        num_tokens_no_spec: IntArray,  # [max_num_reqs] int32, prompt and output so far
        token_ids_cpu: IntArray,  # [max_num_reqs, max_model_len] int32
    ) -> list[TrackedRow]:
        """The rows that decode, with what each emitted since it was last seen."""
        self._call += 1
        by_length: dict[int, list[str]] = {}
        for known in self._known.values():
            by_length.setdefault(known.num_tokens, []).append(known.request_id)
        rows = []
        by_row = {}
        for row, sampled in enumerate(sampled_token_ids):
            if not sampled:
                continue
            num_tokens = int(num_tokens_no_spec[row])
            num_before = num_tokens - len(sampled)
            prefix = token_ids_cpu[row, :num_before]
            found = self._find(row, prefix, by_length.get(num_before, ()))
            known = found or _KnownRequest(f"row-{next(self._names)}", prefix, self._call)
            self._known[known.request_id] = known
            known.extend(sampled, self._call)
            by_row[row] = known.request_id
            prompt = None if found else prefix
            rows.append(TrackedRow(row, known.request_id, prompt, sampled, num_tokens))
        self._by_row = by_row
        self._drop_long_absent()
        return rows

    def take_ended(self) -> list[EndedRequest]:
        """Requests given up since the last call: absent for longest, presumed finished."""
        ended, self._ended = self._ended, []
        return ended

    def _find(self, row: int, prefix: IntArray, same_length: Sequence[str]) -> _KnownRequest | None:
        usual = self._by_row.get(row)
        candidates = sorted(same_length, key=lambda request_id: request_id != usual)
        for request_id in candidates:
            known = self._known[request_id]
            if known.last_call < self._call and known.matches(prefix):
                return known
        return None

    def _drop_long_absent(self) -> None:
        absent = [known for known in self._known.values() if known.last_call < self._call]
        absent.sort(key=lambda known: known.last_call)
        for known in absent[: max(0, len(absent) - self._max_absent)]:
            del self._known[known.request_id]
            self._ended.append(EndedRequest(known.request_id, known.token_ids[: known.num_tokens]))
