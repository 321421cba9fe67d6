# mypy: allow-untyped-calls
"""What a live request owns: its context, its near answers and their chains."""

from collections.abc import Sequence
from itertools import zip_longest
from operator import attrgetter
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from reprise.spec.api.near_answer import IntArray, NearAnswer, TokenIds
from reprise.spec.batching.near_layout import lay_out
from reprise.spec.corpus.token_table import context_table, with_room
from reprise.spec.predictor.alignment import FIRST_HIT
from reprise.spec.runtime.layout import (
    BEGIN,
    BOS,
    CAPACITY,
    CLAUSES,
    GENERATION,
    LENGTH,
    MAX_NEAR,
    NEAR_ACCEPTED,
    NEAR_COUNT,
    NEAR_INFO,
    NEAR_INFO_FIELDS,
    NEAR_LENGTH,
    NEAR_POSITION_FIELDS,
    NEAR_POSITIONS,
    NEAR_START,
    NEAR_TOKENS,
    NEAR_TOKENS_MASK,
    POSITION_FIELDS,
    POSITIONS,
    PREDICTED,
    SALT,
    TOKEN,
    TOKENS,
    TOKENS_MASK,
)

ROOM = 512
MAX_NEAR_TOKENS = 2048
MAX_NEAR_PROMPT = 1024
_NO_TOKENS = np.zeros(0, np.int32)
_similarity = attrgetter("similarity")
_Near = TypeVar("_Near", bound=NearAnswer)


class Request:
    """A live request's arrays; `row` is its row in the request table, [REQUEST_FIELDS] int64."""

    def __init__(
        self,
        req_idx: int,
        row: npt.NDArray[np.int64],
        prompt: IntArray,
        *,
        namespace: str,
        salt: int,
        cap: int,
        room: int,
    ) -> None:
        self.req_idx = req_idx
        self.namespace = namespace
        self.cap = cap
        self.has_emitted = False
        self.num_drafted = 0
        self.answer_ids: list[str] = []
        self._accepted_before: dict[str, int] = {}
        self._room = room
        self._positions = np.zeros((len(prompt) + 1 + ROOM + room, POSITION_FIELDS), np.int32)
        self._positions[: len(prompt), TOKEN] = prompt
        self._positions[len(prompt), TOKEN] = BOS
        self._near: tuple[IntArray, ...] = ()
        length = self._length = len(prompt) + 1
        self._table = context_table(self._positions, length, length - 1, ROOM + room)
        row[:] = 0
        row[LENGTH], row[BEGIN], row[GENERATION] = length, length - 1, -1
        row[SALT] = salt
        self._publish(row)

    @property
    def num_bytes(self) -> int:
        """Bytes of the arrays."""
        arrays = (self._positions, self._table, *self._near)
        return sum(array.nbytes for array in arrays)

    def make_room(self, requests: npt.NDArray[np.int64], num_tokens: int) -> None:
        """Grow the context so that `num_tokens` more and a draft fit; `requests` is the table."""
        self._length += num_tokens
        needed = self._length + self._room
        if needed > len(self._positions):
            size = needed + max(ROOM, needed // 4)
            grown = np.zeros((size, POSITION_FIELDS), np.int32)
            grown[: len(self._positions)] = self._positions
            self._positions = grown
            self._table = with_room(self._table, size - self._length + num_tokens)
            self._publish(requests[self.req_idx])

    def attach(
        self,
        row: npt.NDArray[np.int64],
        near_answers: Sequence[NearAnswer],
        pointers: IntArray,  # [MAX_NEAR] int32: of the trace's first position
        hits: npt.NDArray[np.float32],  # [MAX_NEAR]
        *,
        max_near: int,
    ) -> None:
        """Draft from these near answers from now on, the `max_near` most similar ones. Those that
        were there before go on where they are."""
        known = self._standings(pointers, hits)
        self._accepted_before = self.accepted_by_answer()
        ranked = select_near(near_answers, min(max_near, MAX_NEAR))
        responses = [_int32(near.response_token_ids)[:MAX_NEAR_TOKENS] for near in ranked]
        prompts = [_int32(near.prompt_token_ids)[-MAX_NEAR_PROMPT:] for near in ranked]
        sizes = np.array((list(map(len, responses)), list(map(len, prompts))), np.int32)
        length = int(sizes[0].sum()) + 2 * len(ranked)
        positions = np.empty((length, NEAR_POSITION_FIELDS), np.int32)
        info = np.empty((len(ranked), NEAR_INFO_FIELDS), np.int32)
        num_clauses, table = lay_out(
            row,
            np.concatenate((*responses, *prompts, _NO_TOKENS)),
            sizes,
            np.array([near.similarity for near in ranked], np.float64),
            np.array([near.clause for near in ranked], np.int32),
            positions,
            info,
        )
        fresh = row[LENGTH] == row[BEGIN] + 1
        starts = info[:, NEAR_START].tolist()
        expected, rates = [], []
        for answer, start in zip(ranked, starts, strict=True):
            offset, rate = known.get(answer.answer_id, (1 if fresh else -1, FIRST_HIT))
            expected.append(start + offset if offset >= 0 else -1)
            rates.append(rate)
        pointers[: len(ranked)], hits[: len(ranked)] = expected, rates
        self._near = (positions, table, info)
        self.answer_ids = [near.answer_id for near in ranked]
        row[NEAR_POSITIONS], row[NEAR_INFO] = positions.ctypes.data, info.ctypes.data
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
        """By answer id: the position expected next, counted from the answer's start, -1 for none,
        and how often it has been right."""
        if not self._near:
            return {}
        starts = self._near[-1][:, NEAR_START].tolist()
        number = len(starts)
        positions = zip(self.answer_ids, starts, pointers[:number].tolist(), strict=True)
        return {
            answer_id: (position - start if position >= 0 else -1, rate)
            for (answer_id, start, position), rate in zip(
                positions, hits[:number].tolist(), strict=True
            )
        }

    def _publish(self, row: npt.NDArray[np.int64]) -> None:
        row[POSITIONS], row[CAPACITY] = self._positions.ctypes.data, len(self._positions)
        row[TOKENS], row[TOKENS_MASK] = self._table.ctypes.data, len(self._table) - 1


def _int32(token_ids: TokenIds) -> IntArray:
    return np.asarray(token_ids, np.int32)


def select_near(near_answers: Sequence[_Near], max_near: int) -> list[_Near]:
    """The most similar ones, once per answer id, none empty, each clause in its turn."""
    by_clause: dict[int, list[_Near]] = {}
    seen: set[str] = set()
    for near in sorted(near_answers, key=_similarity, reverse=True):
        if near.answer_id not in seen and len(near.response_token_ids):
            seen.add(near.answer_id)
            by_clause.setdefault(near.clause, []).append(near)
    turns = zip_longest(*by_clause.values())
    return [near for turn in turns for near in turn if near is not None][:max_near]
