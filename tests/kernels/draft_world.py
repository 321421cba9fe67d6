"""A small world to draft in: slots with contexts and near answers, and corpora in an arena."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np
import torch

from reprise.kernels.draft import draft_tokens
from reprise.kernels.draft.arena import ArenaWrites, CorpusArena
from reprise.kernels.draft.constants import BOS, END, ORDER_BEGIN, ORDER_LENGTH, REMOVED, TEXT_BEGIN
from reprise.kernels.draft.near_row import near_row
from reprise.kernels.draft.state import DraftState

ARENA_TOKENS = 1 << 15


def corpus_text(answers: Sequence[Sequence[int]]) -> np.ndarray:
    """BOS, tokens, END of each answer, int32."""
    return np.array([t for answer in answers for t in (BOS, *answer, END)], np.int32)


def suffix_array(text: np.ndarray) -> np.ndarray:
    """Indices of all BOS and tokens, sorted by what follows from there, marked or not."""
    plain = np.where(text < BOS, text - np.int32(REMOVED), text).tolist()
    entries = [i for i, token in enumerate(plain) if token != END]
    return np.array(sorted(entries, key=lambda i: (plain[i : i + 25], i)), np.int32)


@dataclass
class DraftWorld:
    """State, contexts and what was drafted last."""

    state: DraftState
    all_token_ids: torch.Tensor
    total_len: torch.Tensor
    arena: CorpusArena
    generations: list[int] = field(default_factory=lambda: [0])

    def put_corpus(
        self,
        name: str,
        answers: Sequence[Sequence[int]],
        recent: Sequence[Sequence[int]] = (),
        removed: Sequence[int] = (),
    ) -> int:
        """Index answers, some of them removed since, and add recent ones; returns the row."""
        text = corpus_text(answers)
        order = suffix_array(text)
        starts = np.flatnonzero(text == BOS)
        for k in removed:
            text[starts[k] + 1 : starts[k] + 1 + len(answers[k])] += np.int32(REMOVED)
        writes = self.arena.put(name, text, order, recent_begin=len(text), room=512)
        assert writes is not None
        self.write(writes)
        for answer in recent:
            writes = self.arena.append(name, np.array(answer, np.int32))
            assert writes is not None
            self.write(writes)
        return self.arena.row(name)

    def point_before_text(self, row: int, tokens_before: int) -> None:
        """Have all entries of a corpus's suffix array but the last name a place before its text,
        and the last one its first answer."""
        fields = self.state.corpora[row]
        begin, length = int(fields[ORDER_BEGIN]), int(fields[ORDER_LENGTH])
        self.state.arena[begin : begin + length - 1] = -tokens_before
        self.state.arena[begin + length - 1] = 1

    def keep_last_entry(self, row: int) -> None:
        """Cut a corpus's suffix array to its last entry."""
        fields = self.state.corpora[row]
        fields[ORDER_BEGIN] += fields[ORDER_LENGTH] - 1
        fields[ORDER_LENGTH] = 1

    def write(self, writes: ArenaWrites) -> None:
        for begin, values in writes.parts:
            self.state.arena[begin : begin + len(values)] = torch.from_numpy(values.copy())
        self.state.corpora[writes.row] = torch.from_numpy(writes.fields.copy())

    def begin(
        self,
        slot: int,
        prompt: Sequence[int],
        answer: Sequence[int],
        *,
        near: Sequence[Sequence[int]] = (),
        corpus_row: int = -1,
    ) -> None:
        """A new request takes a slot."""
        self.generations[0] += 1
        row = near_row(
            [np.array(one, np.int32) for one in near],
            max_near_tokens=self.state.near_token_ids.shape[1],
        )
        self.state.near_token_ids[slot, : len(row)] = torch.from_numpy(row)
        values = [self.generations[0], len(prompt), len(row), corpus_row]
        self.state.slots[slot] = torch.tensor(values, dtype=torch.int32)
        self.total_len[slot] = 0
        self.emit(slot, [*prompt, *answer])

    def emit(self, slot: int, tokens: Sequence[int]) -> None:
        """Append tokens to a slot's context, as many as there is room for."""
        begin = int(self.total_len[slot])
        tokens = list(tokens)[: self.all_token_ids.shape[1] - begin]
        self.all_token_ids[slot, begin : begin + len(tokens)] = torch.tensor(
            tokens, dtype=torch.int32
        )
        self.total_len[slot] += len(tokens)

    def draft(
        self,
        rows: Sequence[int],
        *,
        length: int | None = None,
        wanted: Sequence[bool] | None = None,
        backend: str = "auto",
        **more: Any,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Drafts and chances for these slots, in buffers that hold something else before."""
        device, width = self.state.slots.device, length or self.state.max_draft
        num_sampled = [int(each) for each in wanted or [True] * len(rows)]
        drafts = torch.full((len(rows), width), -7, dtype=torch.int64, device=device)
        chances = torch.full((len(rows), width), 9.0, device=device)
        self._run(
            all_token_ids=self.all_token_ids,
            total_len=self.total_len,
            idx_mapping=torch.tensor(rows, dtype=torch.int64, device=device),
            num_sampled=torch.tensor(num_sampled, dtype=torch.int32, device=device),
            drafts=drafts,
            chances=chances,
            backend=backend,
            **more,
        )
        return drafts, chances

    def _run(self, **arguments: Any) -> None:
        draft_tokens(self.state, **arguments)

    def draft_both(self, rows: Sequence[int], **more: Any) -> tuple[torch.Tensor, torch.Tensor]:
        """Draft by the reference and by Triton, demand equality of everything, and return it."""
        kept = {f.name: getattr(self.state, f.name).clone() for f in fields(self.state)}
        drafts, chances = self.draft(rows, backend="torch", **more)
        expected = {f.name: getattr(self.state, f.name).clone() for f in fields(self.state)}
        for name, tensor in kept.items():
            getattr(self.state, name).copy_(tensor)
        got, got_chances = self.draft(rows, backend="triton", **more)
        assert torch.equal(got, drafts), f"expected {drafts.tolist()}, got {got.tolist()}"
        assert torch.equal(got_chances, chances)
        for name, tensor in expected.items():
            assert torch.equal(getattr(self.state, name), tensor), name
        return drafts, chances


def build_world(
    device: torch.device | str = "cpu",
    *,
    num_slots: int = 4,
    max_draft: int = 8,
    max_model_len: int = 64,
    max_near: int = 128,
) -> DraftWorld:
    """Build an empty world."""
    sizes = {"num_corpora": 4, "arena_tokens": ARENA_TOKENS}
    state = DraftState.create(
        num_slots=num_slots, max_draft=max_draft, max_near_tokens=max_near, device=device, **sizes
    )
    shape = (num_slots, max_model_len)
    return DraftWorld(
        state=state,
        all_token_ids=torch.full(shape, 3, dtype=torch.int32, device=device),
        total_len=torch.zeros(num_slots, dtype=torch.int32, device=device),
        arena=CorpusArena(**sizes),
    )


def some(draw: random.Random, number: int, vocab: int) -> list[int]:
    """Random tokens."""
    return [draw.randrange(vocab) for _ in range(number)]


def answers(draw: random.Random, number: int, longest: int, vocab: int) -> list[list[int]]:
    """Random answers, all shorter than `longest`."""
    return [some(draw, draw.randrange(1, longest), vocab) for _ in range(number)]


def draft_at_random(
    world: DraftWorld,
    draw: random.Random,
    *,
    vocab: int,
    steps: int,
    begin: Callable[[DraftWorld, random.Random, int, int, list[int]], None],
) -> int:
    """Draft by both in steps of random rows, and emit some of what was drafted; returns how many
    tokens there were. `begin` begins a request in a slot, by a row of `corpora` or none."""
    corpora = [
        -1,
        world.put_corpus("a", answers(draw, 30, 20, vocab), recent=answers(draw, 12, 20, vocab)),
        world.put_corpus("b", answers(draw, 3, 9, vocab), removed=[1]),
        world.put_corpus("c", [], recent=answers(draw, 2, 9, vocab)),
    ]
    for slot in range(4):
        begin(world, draw, slot, vocab, corpora)
    given = 0
    for _ in range(steps):
        rows = draw.sample([-1, 0, 1, 2, 3], draw.randrange(1, 5))
        wanted = [draw.random() < 0.9 for _ in rows]
        length = draw.randrange(1, world.state.max_draft + 1)
        drafts, chances = world.draft_both(rows, wanted=wanted, length=length)
        given += int((chances > 0).sum())
        for row, slot in enumerate(rows):
            if slot < 0:
                continue
            if draw.random() < 0.1:
                begin(world, draw, slot, vocab, corpora)
            else:
                accepted = draw.randrange(length + 1)
                world.emit(slot, [*drafts[row, :accepted].tolist(), *some(draw, 1, vocab)])
    return given


def check_that_no_entry_leads_out(world: DraftWorld, begin: Callable[..., None]) -> None:
    """Whatever lies in a suffix array: entries that are no indices of its text are not followed to
    others' tokens. `begin` has a request of the world begin."""
    others = [50, 51, 52, 53] * 8
    world.put_corpus("others", [others])
    others_begin = int(world.state.corpora[world.arena.row("others"), TEXT_BEGIN])
    row = world.put_corpus("own", [[50, 51, *range(60, 78)]])
    own_begin = int(world.state.corpora[row, TEXT_BEGIN])
    world.point_before_text(row, own_begin - others_begin - 1)
    begin(0, [9], [50, 51], corpus_row=row)
    drafts, chances = world.draft([0], backend="triton")
    assert 52 not in drafts
    world.keep_last_entry(row)
    begin(1, [9], [50, 51], corpus_row=row)
    expected, expected_chances = world.draft([1], backend="triton")
    assert expected[0, 0] == 60
    assert torch.equal(drafts, expected)
    assert torch.equal(chances, expected_chances)
