# mypy: allow-untyped-calls
"""What a live request owns: its context, its near answers and their chains."""

from collections.abc import Sequence
from itertools import zip_longest
from operator import attrgetter

import numpy as np
import numpy.typing as npt

from .buckets import rank_bucket, similarity_bucket
from .chain import bucket_of, empty_heads, link, link_reversed
from .compiled import compiled
from .layout import (
    BEGIN,
    BOS,
    CAPACITY,
    CHAIN,
    CLAUSES,
    END,
    GENERATION,
    HEAD_MASK,
    HEADS,
    LENGTH,
    MAX_NEAR,
    NEAR_ACCEPTED,
    NEAR_CHAIN,
    NEAR_CLAUSE,
    NEAR_COUNT,
    NEAR_HEAD_MASK,
    NEAR_HEADS,
    NEAR_INFO,
    NEAR_INFO_FIELDS,
    NEAR_LENGTH,
    NEAR_RANK,
    NEAR_SIMILARITY,
    NEAR_START,
    NEAR_TAGS,
    NEAR_TEXT,
    PREDICTED,
    SALT,
    TEXT,
)
from .near_answer import IntArray, NearAnswer, TokenIds
from .row_arrays import Context, open_context

ROOM = 512
MAX_NEAR_TOKENS = 2048
MAX_NEAR_PROMPT = 1024
OWN_PROMPT_VISITS = 48
_NO_TOKENS = np.zeros(0, np.int32)
_similarity = attrgetter("similarity")


@compiled
def mark_slots(
    near_text: IntArray,  # [t] int32
    tags: IntArray,  # [t] int32: in and out
    near_prompt: IntArray,  # [p] int32
    begin: int,
    end: int,
    own: Context,
    table: IntArray,  # [1 << 12] int32: working space
) -> None:
    """Add to the tags of near_text[begin:end] 512 if the token is in the near answer's prompt, and
    256 if it is in ours: what only theirs has is a slot that our answer fills otherwise."""
    table[:] = END
    for i in range(near_prompt.shape[0]):
        table[near_prompt[i] & 4095] = near_prompt[i]
    for k in range(begin, end):
        token = near_text[k]
        if table[token & 4095] == token:
            tags[k] += 512
        i, visits = own.heads[bucket_of(token, own.mask)], 0
        while i >= 0 and visits < OWN_PROMPT_VISITS:
            if own.text[i] == token and i < own.begin:
                tags[k] += 256
                break
            visits += 1
            i = own.chain[i]


@compiled
def lay_out(
    row: npt.NDArray[np.int64],  # [REQUEST_FIELDS]
    tokens: IntArray,  # all responses, one after the other, then all prompts
    sizes: IntArray,  # [2, n] int32: of the responses, of the prompts
    similarities: npt.NDArray[np.float64],  # [n]
    clauses: IntArray,  # [n] int32
    text: IntArray,  # [t] int32, out, as all that follow: BOS, response, END of each near answer
    tags: IntArray,  # [t]
    chain: IntArray,  # [t]
    heads: IntArray,  # [h], -1 each
    info: IntArray,  # [n, NEAR_INFO_FIELDS]
) -> int:
    """Lay near answers out for drafting; returns how many clauses they are for."""
    own = open_context(row)
    table = np.empty(1 << 12, np.int32)
    count = sizes.shape[1]
    source, prompt, at, num_clauses = 0, sizes[0].sum(), 0, 0
    for near in range(count):
        end = at + sizes[0, near] + 2
        text[at], text[end - 1] = BOS, END
        for k in range(at + 1, end - 1):
            text[k] = tokens[source]
            source += 1
        tags[at:end] = near
        near_prompt = tokens[prompt : prompt + sizes[1, near]]
        prompt += sizes[1, near]
        mark_slots(text, tags, near_prompt, at + 1, end - 1, own, table)
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
    link_reversed(text, chain, heads, len(heads) - 1, 0, at)
    return num_clauses


class Request:
    """A live request's arrays; `row` is its row in the request table, [REQUEST_FIELDS] int64."""

    def __init__(
        self,
        slot: int,
        row: npt.NDArray[np.int64],
        prompt: IntArray,
        *,
        namespace: str,
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
        self._text = np.zeros(len(prompt) + 1 + ROOM + room, np.int32)
        self._text[: len(prompt)] = prompt
        self._text[len(prompt)] = BOS
        self._chain = np.zeros(len(self._text), np.int32)
        self._heads = empty_heads(len(self._text))
        self._near: tuple[IntArray, ...] = ()
        length = self._length = len(prompt) + 1
        link(self._text, self._chain, self._heads, len(self._heads) - 1, 0, length)
        row[:] = 0
        row[LENGTH], row[BEGIN], row[GENERATION] = length, length - 1, -1
        row[HEADS], row[HEAD_MASK] = self._heads.ctypes.data, len(self._heads) - 1
        # Python keys this hash with a secret of the process, so that no tenant can aim at another's
        # weights; that of the namespace without a name is always 0.
        row[SALT] = hash(namespace) & 0xFFFFFFFF
        self._publish(row)

    @property
    def num_bytes(self) -> int:
        """Bytes of the arrays."""
        arrays = (self._text, self._chain, self._heads, *self._near)
        return sum(array.nbytes for array in arrays)

    def make_room(self, requests: npt.NDArray[np.int64], num_tokens: int) -> None:
        """Grow the context so that `num_tokens` more and a draft fit; `requests` is the table."""
        self._length += num_tokens
        needed = self._length + self._room
        if needed > len(self._text):
            size = needed + max(ROOM, needed // 4)
            for name in ("_text", "_chain"):
                grown = np.zeros(size, np.int32)
                old = getattr(self, name)
                grown[: len(old)] = old
                setattr(self, name, grown)
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
        text, tags, chain = np.empty((3, length), np.int32)
        heads = empty_heads(length)
        info = np.empty((len(ranked), NEAR_INFO_FIELDS), np.int32)
        num_clauses = lay_out(
            row,
            np.concatenate((*responses, *prompts, _NO_TOKENS)),
            sizes,
            np.array([near.similarity for near in ranked], np.float64),
            np.array([near.clause for near in ranked], np.int32),
            text,
            tags,
            chain,
            heads,
            info,
        )
        fresh = row[LENGTH] == row[BEGIN] + 1
        starts = info[:, NEAR_START].tolist()
        places, rates = [], []
        for answer, start in zip(ranked, starts, strict=True):
            offset, rate = known.get(answer.answer_id, (1 if fresh else -1, first_hit))
            places.append(start + offset if offset >= 0 else -1)
            rates.append(rate)
        pointers[: len(ranked)], hits[: len(ranked)] = places, rates
        self._near = (text, chain, heads, tags, info)
        self.answer_ids = [near.answer_id for near in ranked]
        row[NEAR_TEXT], row[NEAR_CHAIN] = text.ctypes.data, chain.ctypes.data
        row[NEAR_HEADS], row[NEAR_HEAD_MASK] = heads.ctypes.data, len(heads) - 1
        row[NEAR_TAGS], row[NEAR_INFO] = tags.ctypes.data, info.ctypes.data
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
        row[TEXT], row[CHAIN] = self._text.ctypes.data, self._chain.ctypes.data
        row[CAPACITY] = len(self._text)


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
