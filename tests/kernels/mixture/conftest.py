"""A small world to draft in by the mixture: slots, near answers with what is known of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import pytest
import torch

from reprise.kernels.draft.state import PENDING_SOURCE
from reprise.kernels.mixture import draft_by_mixture
from reprise.kernels.mixture.layout import HASHED_TOKEN, NUM_CHOICE, NUM_MIXTURE
from reprise.kernels.mixture.near_rows import near_rows
from reprise.kernels.mixture.state import NEAR_VERSION, MixtureState
from reprise.tests.kernels.draft_world import DraftWorld, build_world

IntArray = np.ndarray


def random_weights(seed: int, scale: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    """Tables in which every feature counts."""
    draw = np.random.default_rng(seed)
    mixture = draw.normal(0.0, scale, NUM_MIXTURE).astype(np.float32)
    choice = draw.normal(0.0, scale / 3, NUM_CHOICE).astype(np.float32)
    choice[HASHED_TOKEN:] /= 3
    return mixture, choice


@dataclass
class MixtureWorld(DraftWorld):
    """A world that is drafted in by the mixture."""

    mixture: MixtureState | None = None

    def begin_mixed(
        self,
        slot: int,
        prompt: Sequence[int],
        answer: Sequence[int],
        *,
        near: Sequence[Sequence[int]] = (),
        near_prompts: Sequence[Sequence[int]] | None = None,
        similarities: Sequence[float] | None = None,
        clauses: Sequence[int] | None = None,
        corpus_row: int = -1,
        salt: int = 0,
    ) -> None:
        """A new request takes a slot."""
        self.begin(slot, prompt, answer, corpus_row=corpus_row)
        assert self.mixture is not None
        self.mixture.slots[slot] = 0
        self.mixture.slots[slot, 3] = int(np.uint32(salt).astype(np.int32))
        self.attach(
            slot, prompt, near, near_prompts=near_prompts, similarities=similarities,
            clauses=clauses,
        )  # fmt: skip

    def attach(
        self,
        slot: int,
        prompt: Sequence[int],
        near: Sequence[Sequence[int]],
        *,
        near_prompts: Sequence[Sequence[int]] | None = None,
        similarities: Sequence[float] | None = None,
        clauses: Sequence[int] | None = None,
    ) -> None:
        """Near answers come, with the request or later."""
        assert self.mixture is not None
        rows = near_rows(
            [np.array(one, np.int32) for one in near],
            [np.array(one, np.int32) for one in near_prompts or [()] * len(near)],
            similarities or [0.9] * len(near),
            clauses or [0] * len(near),
            own_prompt=np.array(prompt, np.int32),
            max_near_tokens=self.state.near_token_ids.shape[1],
        )
        length, number = len(rows.token_ids), len(rows.info)
        self.state.near_token_ids[slot, :length] = torch.from_numpy(rows.token_ids)
        self.mixture.near_tags[slot, :length] = torch.from_numpy(rows.tags)
        self.mixture.near_info[slot, :number] = torch.from_numpy(rows.info)
        version = int(self.mixture.slots[slot, NEAR_VERSION]) + 1
        values = torch.tensor([length, number, version], dtype=torch.int32)
        self.mixture.slots[slot, :3] = values

    def _run(self, **arguments: Any) -> None:
        draft_by_mixture(self.state, self.mixture, **arguments)

    def draft_both(self, rows: Sequence[int], **more: Any) -> tuple[torch.Tensor, torch.Tensor]:
        """Draft by the definition and by Triton, demand equality of all that is kept."""
        kept = self._kept()
        drafts, chances = self.draft(rows, backend="torch", **more)
        expected = self._kept()
        for name, tensor in kept.items():
            self._tensor(name).copy_(tensor)
        got, got_chances = self.draft(rows, backend="triton", **more)
        assert torch.equal(got, drafts), (got, drafts, got_chances, chances)
        assert torch.allclose(got_chances, chances, rtol=2e-4, atol=2e-5)
        for name, tensor in expected.items():
            found = self._tensor(name)
            same = torch.allclose(found, tensor) if name == "hits" else torch.equal(found, tensor)
            assert same, (name, found, tensor)
        return drafts, chances

    def sources(self, slots: Sequence[int]) -> list[int]:
        return [int(self.state.pending[slot, PENDING_SOURCE]) for slot in slots]

    def _tensor(self, name: str) -> torch.Tensor:
        return getattr(self.mixture if hasattr(self.mixture, name) else self.state, name)

    def _kept(self) -> dict[str, torch.Tensor]:
        names = ("pending", "pending_token_ids", "kept", "pointers", "hits")
        return {name: self._tensor(name).clone() for name in names}


@pytest.fixture
def make_mixed(device: torch.device) -> Callable[..., MixtureWorld]:
    """Build an empty world."""

    def build(*, weights: Any = None, seed: int = 1, **sizes: int) -> MixtureWorld:
        plain = build_world(device, **sizes)
        mixture, choice = weights or random_weights(seed)
        world = MixtureWorld(**{f.name: getattr(plain, f.name) for f in fields(plain)})
        world.mixture = MixtureState.create(
            mixture_weights=mixture,
            choice_weights=choice,
            num_slots=plain.state.num_slots,
            max_draft=plain.state.max_draft,
            max_near_tokens=plain.state.near_token_ids.shape[1],
            device=device,
        )
        return world

    return build
