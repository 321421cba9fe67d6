# mypy: allow-untyped-calls
"""What a live request owns: its context, its near answers and their chains."""

from collections.abc import Sequence

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
from .near_answer import IntArray, NearAnswer

ROOM = 512
MAX_NEAR_TOKENS = 2048
MAX_NEAR_PROMPT = 1024
OWN_PROMPT_VISITS = 48


@compiled
def mark_slots(
    near_text: IntArray,  # [t] int32
    tags: IntArray,  # [t] int32: in and out
    near_prompt: IntArray,  # [p] int32
    begin: int,
    end: int,
    text: IntArray,
    chain: IntArray,
    heads: IntArray,
    mask: int,
    prompt_length: int,
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
        i, visits = heads[bucket_of(token, mask)], 0
        while i >= 0 and visits < OWN_PROMPT_VISITS:
            if text[i] == token and i < prompt_length:
                tags[k] += 256
                break
            visits += 1
            i = chain[i]


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
        responses = [
            np.asarray(near.response_token_ids, np.int32)[:MAX_NEAR_TOKENS] for near in ranked
        ]
        text = np.full(sum(map(len, responses)) + 2 * len(ranked), END, np.int32)
        tags, chain = np.zeros_like(text), np.zeros_like(text)
        heads = empty_heads(len(text))
        info = np.zeros((len(ranked), NEAR_INFO_FIELDS), np.int32)
        places: dict[int, int] = {}
        table = np.zeros(1 << 12, np.int32)
        fresh = row[LENGTH] == row[BEGIN] + 1
        at = 0
        own = (
            self._text,
            self._chain,
            self._heads,
            len(self._heads) - 1,
            int(row[BEGIN]),
        )
        for near, (answer, response) in enumerate(zip(ranked, responses, strict=True)):
            end = at + len(response) + 2
            text[at] = BOS
            text[at + 1 : end - 1] = response
            tags[at:end] = near
            prompt = np.asarray(answer.prompt_token_ids, np.int32)[-MAX_NEAR_PROMPT:]
            mark_slots(text, tags, prompt, at + 1, end - 1, *own, table)
            rank = places.get(answer.clause, 0)
            places[answer.clause] = rank + 1
            info[near, NEAR_START] = at
            info[near, NEAR_SIMILARITY] = similarity_bucket(float(answer.similarity))
            info[near, NEAR_RANK] = rank_bucket(rank)
            info[near, NEAR_CLAUSE] = answer.clause
            standing = known.get(answer.answer_id)
            if standing is None:
                pointers[near] = at + 1 if fresh else -1
                hits[near] = first_hit
            else:
                offset, hits[near] = standing
                pointers[near] = at + offset if offset >= 0 else -1
            at = end
        link_reversed(text, chain, heads, len(heads) - 1, 0, len(text))
        self._near = (text, chain, heads, tags, info)
        self.answer_ids = [near.answer_id for near in ranked]
        row[NEAR_TEXT], row[NEAR_CHAIN] = text.ctypes.data, chain.ctypes.data
        row[NEAR_HEADS], row[NEAR_HEAD_MASK] = heads.ctypes.data, len(heads) - 1
        row[NEAR_TAGS], row[NEAR_INFO] = tags.ctypes.data, info.ctypes.data
        row[NEAR_LENGTH], row[NEAR_COUNT], row[CLAUSES] = (
            len(text),
            len(ranked),
            len(places),
        )
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
        return {
            answer_id: (int(pointer) - start if pointer >= 0 else -1, float(hit))
            for answer_id, start, pointer, hit in zip(
                self.answer_ids, starts, pointers, hits, strict=False
            )
        }

    def _publish(self, row: npt.NDArray[np.int64]) -> None:
        row[TEXT], row[CHAIN] = self._text.ctypes.data, self._chain.ctypes.data
        row[CAPACITY] = len(self._text)


def select_near(near_answers: Sequence[NearAnswer], most: int) -> list[NearAnswer]:
    """The most similar ones, once per answer id, none empty, each clause in its turn."""
    by_clause: dict[int, list[NearAnswer]] = {}
    seen: set[str] = set()
    for near in sorted(near_answers, key=lambda near: -float(near.similarity)):
        if near.answer_id not in seen and len(near.response_token_ids):
            seen.add(near.answer_id)
            by_clause.setdefault(near.clause, []).append(near)
    chosen: list[NearAnswer] = []
    rank = 0
    while len(chosen) < most and any(rank < len(group) for group in by_clause.values()):
        chosen.extend(group[rank] for group in by_clause.values() if rank < len(group))
        rank += 1
    return chosen[:most]
