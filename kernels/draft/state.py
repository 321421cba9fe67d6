"""What drafting keeps in the device's memory, as tensors that are never made anew."""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch

from reprise.kernels.draft.constants import (
    AGREEMENTS,
    BUCKET_STARTS,
    CORPUS_FIELDS,
    CORPUS_ROW,
    MATCH_BUCKETS,
    MAX_DRAFT,
    NUM_COPIES,
    NUM_SOURCES,
    OFFSETS,
    SLOT_FIELDS,
    START_RATES,
    START_TRIES,
    VOTING_PLACES,
    WORTH_TOKENS,
    match_bucket,
)


@dataclass(frozen=True)
class DraftState:
    """Tensors on one device: what the host writes, and what drafting itself keeps.

    The host writes the table of slots when a request takes one of them or gets near answers; it
    writes the arena and a corpus's row when answers join or leave. All writes are ordered on the
    stream that drafts. Whatever lies beyond the lengths given is never read.
    """

    slots: torch.Tensor
    """[num_slots, SLOT_FIELDS] int32, see `constants`; written by the host."""
    near_token_ids: torch.Tensor
    """[num_slots, max_near_tokens] int32: BOS, tokens, END of each near answer, the nearest first;
    written by the host (`near_row`)."""
    corpora: torch.Tensor
    """[num_corpora, CORPUS_FIELDS] int32, see `constants`; written by the host."""
    arena: torch.Tensor
    """[arena_tokens] int32: text and suffix array of each corpus; written by the host
    (`CorpusArena`). A text has BOS, tokens, END of each answer. A suffix array has the indices in
    the text of every BOS and token before RECENT_BEGIN, sorted by the MAX_MATCH tokens that follow
    from there at least, by their signed values; what removal marks counts as it was."""

    hit_counts: torch.Tensor
    """[NUM_COPIES, MATCH_BUCKETS, AGREEMENTS, OFFSETS, 2] float32: copied tokens that were tried,
    and right, fading; the host may save and load it."""
    hit_chances: torch.Tensor
    """[NUM_COPIES, MATCH_BUCKETS, AGREEMENTS, OFFSETS] float32: their quotients."""
    hit_worths: torch.Tensor
    """[NUM_COPIES, MATCH_BUCKETS, AGREEMENTS] float32: how many of a copy's first WORTH_TOKENS are
    right, by these."""
    new_hits: torch.Tensor
    """[NUM_COPIES, MATCH_BUCKETS, AGREEMENTS, OFFSETS, 2] int32: counted since the counts were
    last brought up to date."""
    totals: torch.Tensor
    """[NUM_SOURCES, 2] int64: of the drafts that were given out, tokens whose truth is known, and
    right ones, up to each draft's first wrong one. For metrics."""
    new_totals: torch.Tensor
    """[NUM_SOURCES, 2] int32: likewise, counted since then."""

    pending: torch.Tensor
    """[num_slots, PENDING_FIELDS] int32: the request and the context's length when the slot's
    copies were made, the copy that was given out (-1: none), the source that it is from, and of
    each copy match bucket and agreement, as one number."""
    pending_token_ids: torch.Tensor
    """[num_slots, NUM_COPIES, max_draft] int32: these copies; then -1."""
    voting_places: torch.Tensor
    """[num_slots, 2, VOTING_PLACES] int32: where in the near answers and in the context a token
    follows a match, and the match, as one number; of the slot's last draft."""

    @classmethod
    def create(
        cls,
        *,
        num_slots: int,
        max_draft: int,
        max_near_tokens: int = 16_384,
        num_corpora: int = 1024,
        arena_tokens: int = 1 << 22,
        device: torch.device | str = "cpu",
    ) -> DraftState:
        """Allocate everything, with nothing to draft from and the start values of hits.

        Raises:
            ValueError: a size is not positive, or `max_draft` beyond MAX_DRAFT.
        """
        sizes = (num_slots, max_draft, max_near_tokens, num_corpora, arena_tokens)
        if min(sizes) < 1 or max_draft > MAX_DRAFT:
            raise ValueError(
                f"expected sizes of 1 and more and max_draft <= {MAX_DRAFT}, came {sizes}"
            )

        def zeros(*shape: int, dtype: torch.dtype = torch.int32) -> torch.Tensor:
            return torch.zeros(shape, dtype=dtype, device=device)

        cells = (NUM_COPIES, MATCH_BUCKETS, AGREEMENTS, OFFSETS)
        counts = start_counts().to(device)
        chances = counts[..., 1] / counts[..., 0]
        state = cls(
            slots=zeros(num_slots, SLOT_FIELDS),
            near_token_ids=zeros(num_slots, max_near_tokens),
            corpora=zeros(num_corpora, CORPUS_FIELDS),
            arena=zeros(arena_tokens),
            hit_counts=counts,
            hit_chances=chances,
            hit_worths=worths_of(chances),
            new_hits=zeros(*cells, 2),
            totals=zeros(NUM_SOURCES, 2, dtype=torch.int64),
            new_totals=zeros(NUM_SOURCES, 2),
            pending=zeros(num_slots, PENDING_FIELDS),
            pending_token_ids=zeros(num_slots, NUM_COPIES, max_draft).fill_(-1),
            voting_places=zeros(num_slots, 2, VOTING_PLACES),
        )
        state.slots[:, CORPUS_ROW] = -1
        return state

    @property
    def num_slots(self) -> int:
        """Requests at a time."""
        return self.slots.shape[0]

    @property
    def max_draft(self) -> int:
        """Tokens of a draft, at most."""
        return self.pending_token_ids.shape[2]

    @property
    def num_bytes(self) -> int:
        """Memory of all tensors."""
        tensors = (getattr(self, field.name) for field in fields(self))
        return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


(
    PENDING_GENERATION,
    PENDING_LENGTH,
    PENDING_COPY,
    PENDING_SOURCE,
    PENDING_ROWS,  # of the tables of hits, one of each copy, from here on
) = range(5)
PENDING_FIELDS = PENDING_ROWS + NUM_COPIES


def start_counts() -> torch.Tensor:
    """Counts before anything was tried, float32; see `hit_counts`."""
    counts = torch.full((NUM_COPIES, MATCH_BUCKETS, AGREEMENTS, OFFSETS, 2), START_TRIES)
    for bucket, start in enumerate(BUCKET_STARTS):
        for offset in range(OFFSETS):
            counts[:, bucket, :, offset, 1] *= START_RATES[match_bucket(start + offset)]
    return counts


def worths_of(chances: torch.Tensor) -> torch.Tensor:
    """Return how many of a copy's first tokens are right, by their chances [..., OFFSETS]."""
    survival, worths = torch.ones_like(chances[..., 0]), torch.zeros_like(chances[..., 0])
    for offset in range(WORTH_TOKENS):  # in this order: sums are compared
        survival = survival * chances[..., offset]
        worths = worths + survival
    return worths
