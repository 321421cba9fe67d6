"""Batches for verification on model runner V1, as vLLM's runner hands them to its sampler."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import torch
from vllm.v1.sample.logits_processor import LogitsProcessors
from vllm.v1.sample.metadata import SamplingMetadata
from vllm.v1.sample.rejection_sampler import RejectionSampler
from vllm.v1.sample.sampler import Sampler
from vllm.v1.spec_decode.metadata import SpecDecodeMetadata

from reprise.engine_ext.worker import worker_installs
from reprise.engine_ext.worker.verification import on_v1
from reprise.engine_ext.worker.verification.state import Installation, bind
from reprise.kernels.config import VerifyConfig


class Engine:
    """The engine whose batches are verified."""

    installation: Installation | None = None


def verify(**settings: Any) -> Installation:
    """Have the batches that are made from now on verified like this."""
    Engine.installation = Installation(VerifyConfig(**settings))
    worker_installs.verify(Engine.installation)
    return Engine.installation


class Batch:
    """What vLLM's model runner hands to its rejection sampler."""

    def __init__(self, drafts: list[list[int]], vocab: int = 50, **sampling: Any) -> None:
        generator = torch.Generator().manual_seed(len(drafts))
        batch = len(drafts)
        self.logits = torch.randn(sum(map(len, drafts)) + batch, vocab, generator=generator)
        self.drafts = SpecDecodeMetadata.make_dummy(drafts, torch.device("cpu"))
        place = np.arange(self.logits.shape[0])
        is_bonus = np.isin(place, np.cumsum([len(draft) + 1 for draft in drafts]) - 1)
        self.drafts.target_logits_indices = torch.tensor(place[~is_bonus], dtype=torch.int32)
        self.drafts.bonus_logits_indices = torch.tensor(place[is_bonus], dtype=torch.int32)
        self.draft_probs: torch.Tensor | None = None
        self.sampling = replace(greedy_metadata(batch), **sampling)
        self.sampler = RejectionSampler(Sampler())
        self.installation = Engine.installation or Installation(VerifyConfig())
        bind(self.sampler, Engine.installation)

    def sample(self) -> list[list[int]]:
        """What the sampler emits, without padding."""
        output = self.sampler(self.drafts, self.draft_probs, self.logits, self.sampling)
        return [[token for token in row if token >= 0] for row in output.sampled_token_ids.tolist()]

    def reason(self) -> str | None:
        """Why it is left to vLLM."""
        return on_v1.reason_to_fall_through(
            self.installation,
            self.sampler,
            self.drafts,
            self.draft_probs,
            self.logits,
            self.sampling,
        )


def greedy_metadata(batch: int) -> SamplingMetadata:
    return SamplingMetadata(
        temperature=None,
        all_greedy=True,
        all_random=False,
        top_p=None,
        top_k=None,
        generators={},
        max_num_logprobs=None,
        no_penalties=True,
        prompt_token_ids=None,
        frequency_penalties=torch.zeros(batch),
        presence_penalties=torch.zeros(batch),
        repetition_penalties=torch.ones(batch),
        output_token_ids=[],
        allowed_token_ids_mask=None,
        bad_words_token_ids={},
        logitsprocs=LogitsProcessors(),
    )
