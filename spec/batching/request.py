# mypy: allow-untyped-calls
"""What a live request owns: its context, its near answers and their chains."""

from collections.abc import Sequence
from itertools import zip_longest
from operator import attrgetter

import numpy as np
import numpy.typing as npt

from reprise.spec.api.near_answer import IntArray, NearAnswer, TokenIds
from reprise.spec.corpus.token_table import COUNT, context_table, entry_of, near_table, with_room
from reprise.spec.predictor.buckets import rank_bucket, similarity_bucket
from reprise.spec.predictor.row_arrays import Context, open_context
from reprise.spec.runtime.compiled import compiled
from reprise.spec.runtime.layout import (
    BEGIN,
    BOS,
    CAPACITY,
    CLAUSES,
    END,
    GENERATION,
    LENGTH,
    MAX_NEAR,
    NEAR_ACCEPTED,
    NEAR_CLAUSE,
    NEAR_COUNT,
    NEAR_INFO,
    NEAR_INFO_FIELDS,
    NEAR_LENGTH,
    NEAR_PLACE_FIELDS,
    NEAR_PLACES,
    NEAR_RANK,
    NEAR_SIMILARITY,
    NEAR_START,
    NEAR_TOKENS,
    NEAR_TOKENS_MASK,
    PLACE_FIELDS,
    PLACES,
    PREDICTED,
    SALT,
    TAG,
    TOKEN,
    TOKENS,
    TOKENS_MASK,
)

ROOM = 512
MAX_NEAR_TOKENS = 2048
MAX_NEAR_PROMPT = 1024
_NO_TOKENS = np.zeros(0, np.int32)
_similarity = attrgetter("similarity")


@compiled
def mark_slots(
    places: IntArray,  # [t, NEAR_PLACE_FIELDS] int32
    near_prompt: IntArray,  # [p] int32
    begin: int,
    end: int,
    own: Context,
    table: IntArray,  # [1 << 12] int32: working space
) -> None:
    """Add to the tags of places[begin:end] 512 if the token is in the near answer's prompt, and
    256 if it is in ours: what only theirs has is a slot that our answer fills otherwise."""
    table[:] = END
    for i in range(near_prompt.shape[0]):
        table[near_prompt[i] & 4095] = near_prompt[i]
    for k in range(begin, end):
        token = places[k, TOKEN]
        if table[token & 4095] == token:
            places[k, TAG] += 512
        if own.table[entry_of(own.table, own.mask, token), COUNT] > 0:
            places[k, TAG] += 256


@compiled
def lay_out(
    row: npt.NDArray[np.int64],  # [REQUEST_FIELDS]
    tokens: IntArray,  # all responses, one after the other, then all prompts
    sizes: IntArray,  # [2, n] int32: of the responses, of the prompts
    similarities: npt.NDArray[np.float64],  # [n]
    clauses: IntArray,  # [n] int32
    places: IntArray,  # [t, NEAR_PLACE_FIELDS] int32, out: BOS, response, END of each near answer
    info: IntArray,  # [n, NEAR_INFO_FIELDS] int32, out
) -> tuple[int, IntArray]:
    """Lay near answers out for drafting; returns how many clauses they are for, and their table."""
    own = open_context(row)
    table = np.empty(1 << 12, np.int32)
    count = sizes.shape[1]
    source, prompt, at, num_clauses = 0, sizes[0].sum(), 0, 0
    for near in range(count):
        end = at + sizes[0, near] + 2
        places[at, TOKEN], places[end - 1, TOKEN] = BOS, END
        for k in range(at + 1, end - 1):
            places[k, TOKEN] = tokens[source]
            source += 1
        places[at:end, TAG] = near
        near_prompt = tokens[prompt : prompt + sizes[1, near]]
        prompt += sizes[1, near]
        mark_slots(places, near_prompt, at + 1, end - 1, own, table)
        rank = 0
        for other in range(near):
            rank += clauses[other] == clauses[near]
        num_clauses += rank == 0
        info[near, NEAR_START] = at
        info[near, NEAR_SIMILARITY] = similarity_bucket(similarities[near])
        info[near, NEAR_RANK] = rank_bucket(rank)
        info[near, NEAR_CLAUSE] = clauses[near]
        info[near, NEAR_ACCEPTED] = 0
        at = end
    return num_clauses, near_table(places)


class Request:
    """A live request's arrays; `row` is its row in the request table, [REQUEST_FIELDS] int64."""

    def __init__(
        self,
        slot: int,
        row: npt.NDArray[np.int64],
        prompt: IntArray,
        *,
        namespace: str,
        salt: int,
        cap: int,
        room: int,
    ) -> None:
        self.slot = slot
        self.namespace = namespace
        self.cap = cap
        self.has_emitted = False
        self.num_drafted = 0
        self.answer_ids: list[str] = []
        self._accepted_before: dict[str, int] = {}
        self._room = room
        self._places = np.zeros((len(prompt) + 1 + ROOM + room, PLACE_FIELDS), np.int32)
        self._places[: len(prompt), TOKEN] = prompt
        self._places[len(prompt), TOKEN] = BOS
        self._near: tuple[IntArray, ...] = ()
        length = self._length = len(prompt) + 1
        self._table = context_table(self._places, length, length - 1, ROOM + room)
        row[:] = 0
        row[LENGTH], row[BEGIN], row[GENERATION] = length, length - 1, -1
        row[SALT] = salt
        self._publish(row)

    @property
    def num_bytes(self) -> int:
        """Bytes of the arrays."""
        arrays = (self._places, self._table, *self._near)
        return sum(array.nbytes for array in arrays)

    def make_room(self, requests: npt.NDArray[np.int64], num_tokens: int) -> None:
        """Grow the context so that `num_tokens` more and a draft fit; `requests` is the table."""
        self._length += num_tokens
        needed = self._length + self._room
        if needed > len(self._places):
            size = needed + max(ROOM, needed // 4)
            grown = np.zeros((size, PLACE_FIELDS), np.int32)
            grown[: len(self._places)] = self._places
            self._places = grown
            self._table = with_room(self._table, size - self._length + num_tokens)
            self._publish(requests[self.slot])

    def attach(
        self,
        row: npt.NDArray[np.int64],
        near_answers: Sequence[NearAnswer],
        pointers: IntArray,  # [MAX_NEAR] int32: of the trail's first position
        hits: npt.NDArray[np.float32],  # [MAX_NEAR]
        *,
        most: int,
        first_hit: float,
    ) -> None:
        """Draft from these near answers from now on, the most similar `most` of them; those that
        were there before go on where they are."""
        known = self._standings(pointers, hits)
        self._accepted_before = self.accepted_by_answer()
        ranked = select_near(near_answers, min(most, MAX_NEAR))
        responses = [_int32(near.response_token_ids)[:MAX_NEAR_TOKENS] for near in ranked]
        prompts = [_int32(near.prompt_token_ids)[-MAX_NEAR_PROMPT:] for near in ranked]
        sizes = np.array((list(map(len, responses)), list(map(len, prompts))), np.int32)
        length = int(sizes[0].sum()) + 2 * len(ranked)
        places = np.empty((length, NEAR_PLACE_FIELDS), np.int32)
        info = np.empty((len(ranked), NEAR_INFO_FIELDS), np.int32)
        num_clauses, table = lay_out(
            row,
            np.concatenate((*responses, *prompts, _NO_TOKENS)),
            sizes,
            np.array([near.similarity for near in ranked], np.float64),
            np.array([near.clause for near in ranked], np.int32),
            places,
            info,
        )
        fresh = row[LENGTH] == row[BEGIN] + 1
        starts = info[:, NEAR_START].tolist()
        expected, rates = [], []
        for answer, start in zip(ranked, starts, strict=True):
            offset, rate = known.get(answer.answer_id, (1 if fresh else -1, first_hit))
            expected.append(start + offset if offset >= 0 else -1)
            rates.append(rate)
        pointers[: len(ranked)], hits[: len(ranked)] = expected, rates
        self._near = (places, table, info)
        self.answer_ids = [near.answer_id for near in ranked]
        row[NEAR_PLACES], row[NEAR_INFO] = places.ctypes.data, info.ctypes.data
        row[NEAR_TOKENS], row[NEAR_TOKENS_MASK] = table.ctypes.data, len(table) - 1
        row[NEAR_LENGTH], row[NEAR_COUNT], row[CLAUSES] = length, len(ranked), num_clauses
        row[PREDICTED] = 0

    def accepted_by_answer(self) -> dict[str, int]:
        """Accepted tokens by the id of the near answer that they came from."""
        accepted = dict(self._accepted_before)
        if self._near:
            counts = self._near[-1][:, NEAR_ACCEPTED].tolist()
            for answer_id, count in zip(self.answer_ids, counts, strict=True):
                if count:
                    accepted[answer_id] = accepted.get(answer_id, 0) + count
        return accepted

    def _standings(
        self, pointers: IntArray, hits: npt.NDArray[np.float32]
    ) -> dict[str, tuple[int, float]]:
        """By answer id: the place expected next, counted from the answer's start, -1 for none, and
        how often it has been right."""
        if not self._near:
            return {}
        starts = self._near[-1][:, NEAR_START].tolist()
        number = len(starts)
        places = zip(self.answer_ids, starts, pointers[:number].tolist(), strict=True)
        return {
            answer_id: (place - start if place >= 0 else -1, rate)
            for (answer_id, start, place), rate in zip(places, hits[:number].tolist(), strict=True)
        }

    def _publish(self, row: npt.NDArray[np.int64]) -> None:
        row[PLACES], row[CAPACITY] = self._places.ctypes.data, len(self._places)
        row[TOKENS], row[TOKENS_MASK] = self._table.ctypes.data, len(self._table) - 1


def _int32(token_ids: TokenIds) -> IntArray:
    return np.asarray(token_ids, np.int32)


def select_near(near_answers: Sequence[NearAnswer], most: int) -> list[NearAnswer]:
    """The most similar ones, once per answer id, none empty, each clause in its turn."""
    by_clause: dict[int, list[NearAnswer]] = {}
    seen: set[str] = set()
    for near in sorted(near_answers, key=_similarity, reverse=True):
        if near.answer_id not in seen and len(near.response_token_ids):
            seen.add(near.answer_id)
            by_clause.setdefault(near.clause, []).append(near)
    turns = zip_longest(*by_clause.values())
    return [near for turn in turns for near in turn if near is not None][:most]
