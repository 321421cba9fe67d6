"""Run by `test_verification_v2.py` in a process where vLLM has its model runner V2."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import vllm.v1.worker.cpu.shm  # noqa: F401 - what makes V2 run on a CPU
import vllm.v1.worker.gpu.buffer_utils as buffers
from vllm.sampling_params import SamplingParams
from vllm.v1.worker.cpu.buffer_utils import UvaBuffer
from vllm.v1.worker.gpu.sample.logits_processor.interface import LogitsProcessor
from vllm.v1.worker.gpu.sample.sampler import Sampler
from vllm.v1.worker.gpu.sample.thinking_budget import apply_thinking_budget
from vllm.v1.worker.gpu.spec_decode.rejection_sampler import RejectionSampler
from vllm.v1.worker.gpu.states import RequestState

from reprise.engine_ext.compat.patches import Feature, Role
from reprise.engine_ext.compat.registry import registry
from reprise.engine_ext.core.config import RepriseConfig
from reprise.engine_ext.core.error_counter import ErrorCounter
from reprise.engine_ext.worker import worker_installs
from reprise.engine_ext.worker.verification import on_v2
from reprise.engine_ext.worker.verification.state import (
    Installation,
    VerificationCounts,
    announce,
    installation_of,
)
from reprise.kernels.config import VerifyConfig

buffers.UvaBuffer = UvaBuffer
buffers.is_uva_available = lambda: True

CPU = torch.device("cpu")
VOCAB = 600
STEPS = 4
PROMPT = 5

SEEDED: list[dict[str, Any]] = [
    {"temperature": 0.0},
    {"temperature": 0.7, "seed": 3},
    {"temperature": 1.0},
    {"temperature": 1.2, "top_k": 20, "seed": -9},
    {"temperature": 0.9, "top_p": 0.8},
    {"min_p": 0.05},
    {"temperature": 0.8, "top_k": 50, "top_p": 0.95, "min_p": 0.01, "seed": 5},
    {"top_k": 3},
]


class Engine:
    """The engine whose batches are verified."""

    installation: Installation | None = None


@pytest.fixture(autouse=True)
def installed(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    monkeypatch.setattr(Engine, "installation", None)
    yield verify(backend="torch")
    registry.revert(Feature.VERIFICATION_V2)


def verify(**settings: Any) -> Installation:
    """Have the batches that are made from now on verified like this."""
    Engine.installation = Installation(VerifyConfig(**settings))
    worker_installs.verify_on_v2(Engine.installation)
    return Engine.installation


class Batch:
    """Requests with drafts, as vLLM's model runner V2 hands them to its rejection sampler."""

    def __init__(
        self,
        samplings: list[dict[str, Any]],
        *,
        num_drafts: int = 2,
        method: str = "standard",
        **sampler: Any,
    ) -> None:
        self.num_reqs, self.rows = len(samplings), len(samplings) * (num_drafts + 1)
        generator = torch.Generator().manual_seed(7)
        states = RequestState(self.num_reqs, 64, 64, STEPS, VOCAB, CPU)
        config = SimpleNamespace(reasoning_config=None)
        self.sampler = Sampler(
            config, self.num_reqs, VOCAB, CPU, states, num_speculative_tokens=STEPS + 1, **sampler
        )
        speculative = SimpleNamespace(
            num_speculative_tokens=STEPS,
            enable_adaptive_verification=False,
            rejection_sample_method=method,
            synthetic_acceptance_rates=[0.5] * STEPS,
        )
        if Engine.installation is not None:
            announce(Engine.installation, speculative)
        self.rejection_sampler = RejectionSampler(self.sampler, speculative, CPU)
        self.slots = np.roll(np.arange(self.num_reqs, dtype=np.int32)[::-1].copy(), 1)
        for slot, sampling in enumerate(samplings):
            tokens = torch.randint(0, VOCAB, (PROMPT + 3,), generator=generator).tolist()
            states.add_request(str(slot), PROMPT, tokens, PROMPT + 2, 40)
            self.sampler.add_request(slot, SamplingParams(**sampling))
        states.apply_staged_writes()
        self.sampler.apply_staged_writes()
        logits = torch.randn(self.rows, VOCAB, generator=generator) * 3
        self.logits = logits.to(torch.bfloat16)
        each = num_drafts + 1
        slots = torch.from_numpy(self.slots)
        ends = np.arange(self.num_reqs + 1, dtype=np.int32) * each
        places = torch.arange(each, dtype=torch.int32).repeat(self.num_reqs)
        self.input = SimpleNamespace(
            num_reqs=self.num_reqs,
            input_ids=torch.randint(0, VOCAB, (self.rows,), generator=generator).int(),
            positions=places.long() + PROMPT + 3,
            logits_indices=torch.arange(self.rows),
            idx_mapping=slots,
            idx_mapping_np=self.slots,
            expanded_idx_mapping=slots.repeat_interleave(each),
            expanded_local_pos=places,
            cu_num_logits=torch.from_numpy(ends),
            cu_num_logits_np=ends,
            seq_lens=torch.full((self.num_reqs,), PROMPT + 4 + num_drafts, dtype=torch.int32),
            seq_lens_cpu_upper_bound=torch.full((self.num_reqs,), 40, dtype=torch.int32),
        )
        self.invalid: torch.Tensor | None = None
        self.draft_logits: torch.Tensor | None = None

    def samples(self) -> list[list[int]]:
        """What vLLM's sampler gives for each row, drafts before it taken as read: by request."""
        given = self.input
        sampled, _ = self.sampler.sample(
            self.logits.clone(),
            given.expanded_idx_mapping,
            given.idx_mapping,
            given.idx_mapping_np,
            given.positions,
            given.input_ids,
            given.expanded_local_pos,
            given.seq_lens_cpu_upper_bound.numpy(),
        )
        return sampled.view(self.num_reqs, -1).tolist()

    def feed(self, drafts: list[list[int]]) -> None:
        """Let the rows behind each request's first be fed these."""
        self.input.input_ids.view(self.num_reqs, -1)[:, 1:] = torch.tensor(drafts)

    def feed_samples(self, *, depend_on_drafts: bool = False) -> list[list[int]]:
        """Draft what will be sampled: row after row, where that depends on what was drafted."""
        for _ in range(self.rows // self.num_reqs if depend_on_drafts else 1):
            samples = self.samples()
            self.feed([row[:-1] for row in samples])
        return samples

    def verified(self) -> Any:
        return self.rejection_sampler(
            self.logits.clone(), self.input, self.draft_logits, self.invalid
        )

    def emitted(self) -> list[list[int]]:
        """What verification emits, by request."""
        output = self.verified()
        assert output.sampled_token_ids.shape == (self.num_reqs, STEPS + 1)
        pairs = zip(output.sampled_token_ids.tolist(), output.num_sampled.tolist(), strict=True)
        return [row[:num] for row, num in pairs]


def emitted_by_law(samples: list[list[int]], drafts: list[list[int]]) -> list[list[int]]:
    """Each request's samples up to the first that is not what was drafted."""
    emitted = []
    for row, drafted in zip(samples, drafts, strict=True):
        pairs = zip(row, drafted, strict=False)
        right = next((i for i, (one, other) in enumerate(pairs) if one != other), len(drafted))
        emitted.append(row[: right + 1])
    return emitted


@pytest.mark.parametrize("backend", ["torch", "triton"])
def test_samples_are_those_of_vllms_sampler_without_drafts(backend: str) -> None:
    installed = verify(backend=backend)
    batch = Batch(SEEDED)
    samples = batch.feed_samples()
    assert batch.emitted() == samples
    drafts = [row[:-1] for row in samples]
    for request in (1, 4, 6):
        drafts[request][request % 2] += 1
    batch.feed(drafts)
    assert batch.emitted() == emitted_by_law(samples, drafts)
    assert batch.verified().num_rejected.tolist() == [0, 1, 0, 0, 2, 0, 2, 0]
    assert (installed.counts.verified, installed.counts.fallen_through) == (3, {})


def test_vllms_own_verification_gives_other_samples(installed: Any) -> None:
    batch = Batch([{"temperature": 1.5, "seed": seed} for seed in range(12)])
    samples = batch.samples()
    drafts = [[0, 0]] * 12
    batch.feed(drafts)
    assert batch.emitted() == emitted_by_law(samples, drafts)
    batch.feed([[row[0] + 1, 0] for row in samples])
    installed.active = False
    assert [row[:1] for row in batch.emitted()] == [row[:1] for row in samples]
    batch.feed_samples()
    assert batch.emitted() != samples


def test_greedy_batches_are_those_of_vllms_own_verification(installed: Any) -> None:
    batch = Batch([{"temperature": 0.0}] * 4)
    samples = batch.feed_samples()
    drafts = [row[:-1] for row in samples]
    drafts[2][0] = -1
    batch.feed(drafts)
    ours = batch.emitted()
    assert [len(row) for row in ours] == [3, 3, 1, 3]
    installed.active = False
    assert batch.emitted() == ours


PROCESSED: dict[str, dict[str, Any]] = {
    "penalties": {"repetition_penalty": 1.6, "presence_penalty": 1.0, "top_k": 30},
    "bias": {"logit_bias": {7: 4.0, 9: -50.0}, "top_p": 0.9},
    "bad words": {"_bad_words_token_ids": [[3], [4, 5]]},
    "allowed tokens": {"allowed_token_ids": [5, 6, 7, 8, 90]},
    "greedy": {"temperature": 0.0, "frequency_penalty": 1.5},
}


@pytest.mark.parametrize("sampling", PROCESSED.values(), ids=PROCESSED)
def test_logits_that_vllm_processes_are_verified_too(
    sampling: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    if bad_words := sampling.get("_bad_words_token_ids"):
        sampling = {}
        monkeypatch.setattr(SamplingParams, "bad_words_token_ids", bad_words)
    installed = verify(backend="triton")
    batch = Batch([sampling, {"temperature": 0.8}, {"seed": 4, "min_p": 0.1}])
    assert on_v2.needs_vllms_processing(batch.sampler, batch.slots)
    samples = batch.feed_samples(depend_on_drafts=True)
    assert batch.emitted() == samples
    assert (installed.counts.verified, installed.counts.fallen_through) == (1, {})


class AddsNoise(LogitsProcessor):
    """A logits processor of somebody else's."""

    def __init__(self) -> None:
        """Takes nothing of vLLM's."""

    def add_request(self, req_idx: int, _params: SamplingParams) -> bool:
        return req_idx == 0

    def apply(self, logits: torch.Tensor, ctx: Any) -> torch.Tensor:
        rows = ctx.expanded_idx_mapping == 0
        logits[rows] += torch.arange(VOCAB) % 7
        return logits


def test_a_logits_processor_of_somebody_else_is_respected() -> None:
    batch = Batch([{}, {"temperature": 0.8}], custom_logits_processors=[AddsNoise()])
    assert on_v2.needs_vllms_processing(batch.sampler, batch.slots)
    samples = batch.feed_samples()
    assert batch.emitted() == samples


@pytest.mark.parametrize("mode", ["raw_logprobs", "processed_logprobs"])
def test_logprobs_are_those_of_the_samples(mode: str) -> None:
    batch = Batch([{"logprobs": 2, "temperature": 0.7}, {}], logprobs_mode=mode)
    samples = batch.feed_samples()
    found = batch.verified().logprobs_tensors
    order = [row for slot in (0, 1) for row in samples[slot]]
    assert found.logprob_token_ids[:, 0].tolist() == order
    logits = batch.logits.float()
    if mode == "processed_logprobs":
        logits[batch.input.expanded_idx_mapping == 0] /= 0.7
    expected = logits.log_softmax(dim=-1).gather(1, torch.tensor(order)[:, None])
    assert torch.allclose(found.logprobs[:, :1], expected, atol=1e-5)


def test_drafts_that_a_grammar_refuses_are_not_accepted() -> None:
    batch = Batch([{"seed": 1}, {"temperature": 0.0}])
    samples = batch.feed_samples()
    batch.invalid = torch.zeros(batch.rows, dtype=torch.bool)
    batch.invalid[[2, 4]] = True
    assert batch.emitted() == [samples[0][:2], samples[1][:1]]


def test_settings_alone_need_no_processing() -> None:
    batch = Batch(SEEDED)
    assert not on_v2.needs_vllms_processing(batch.sampler, batch.slots)
    assert not on_v2.needs_vllms_processing(Batch([{"logprobs": 1}]).sampler, batch.slots[:1] * 0)


def reason(batch: Batch) -> str | None:
    return on_v2.reason_to_fall_through(batch.rejection_sampler, batch.logits, batch.draft_logits)


def test_what_vllm_verifies_in_another_way_is_left_to_it(installed: Any) -> None:
    assert reason(Batch([{}])) is None
    assert reason(Batch([{}], method="synthetic")) == "synthetic acceptance"
    assert reason(Batch([{}], method="block")) == "block verification"
    assert reason(Batch([{}], use_fp64_gumbel=True)) == "noise of 64 bits"
    batch = Batch([{}])
    batch.logits = batch.logits.t().contiguous().t()
    assert reason(batch) == "shape"
    batch = Batch([{"temperature": 0.0}])
    batch.draft_logits = torch.zeros(1, STEPS, VOCAB)
    assert reason(batch) == "draft probabilities"
    batch.emitted()
    assert installed.counts.fallen_through == {"draft probabilities": 1}
    batch.sampler.__class__ = type("Another", (Sampler,), {})
    assert reason(batch) == "another sampler"
    batch.rejection_sampler.watermark_key = 3
    assert reason(batch) == "watermark"
    batch.rejection_sampler.watermark_key = None
    batch.sampler.__class__ = Sampler
    batch.rejection_sampler.fly_window_size = 2  # of vLLM 0.33
    assert reason(batch) == "lossy acceptance"


def test_a_seed_keeps_its_sample_where_vllm_verifies(installed: Any) -> None:
    kinds = [{"seed": 5}, {"temperature": 0.0, "seed": 5}, {"temperature": 0.9}]
    batch = Batch(kinds, method="block")
    samples = batch.feed_samples()
    emitted = dict(zip(batch.slots.tolist(), batch.emitted(), strict=True))
    rows = dict(zip(batch.slots.tolist(), samples, strict=True))
    assert emitted[0] == rows[0][:1]  # its drafts are right, and were not accepted
    assert emitted[1] == rows[1]
    assert installed.counts.fallen_through == {"block verification": 1}
    installed.active = False
    assert dict(zip(batch.slots.tolist(), batch.emitted(), strict=True))[0] == rows[0][:1]


def test_a_failing_kernel_is_left_to_vllm_from_then_on(
    installed: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    batch = Batch([{"temperature": 0.0}])
    samples = batch.feed_samples()
    assert batch.emitted() == samples
    monkeypatch.setattr(on_v2, "verify_coupled", None)
    for _ in range(2):
        assert batch.emitted() == samples
    assert not installed.active
    assert installed.counts.fallen_through == {"error": 1}


def test_a_seed_keeps_its_sample_where_all_of_ours_fails(
    installed: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any, **__: Any) -> Any:
        raise AssertionError("injected")

    monkeypatch.setattr(on_v2, "reason_to_fall_through", fail)
    monkeypatch.setattr(on_v2, "_verify_by_vllm", fail)
    batch = Batch([{"temperature": 1.5, "seed": seed} for seed in range(12)])
    samples = batch.feed_samples()
    batch.feed([[row[0] + 1, 0] for row in samples])
    for _ in range(2):
        assert batch.emitted() == [row[:1] for row in samples]
    assert not installed.active
    batch.feed_samples()
    assert [row[:1] for row in batch.emitted()] == [row[:1] for row in samples]


def test_a_vllm_that_draws_other_noise_verifies_by_itself(
    installed: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from vllm.v1.worker.gpu.sample import gumbel

    own = gumbel.gumbel_sample
    monkeypatch.setattr(gumbel, "gumbel_sample", lambda *given, **named: own(*given, **named) + 1)
    batch = Batch([{"temperature": 0.0}])
    samples = batch.feed_samples()
    assert batch.emitted() == samples
    assert not installed.active
    assert installed.counts.verified == 0


def test_it_is_off_where_it_is_switched_off(installed: Any) -> None:
    off = verify(enabled=False)
    Batch([{"temperature": 0.0}]).emitted()
    assert installed.counts == off.counts == VerificationCounts()


def test_another_engines_batches_are_vllms(installed: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Engine, "installation", None)
    batch = Batch([{"temperature": 0.0}])
    assert installation_of(batch.rejection_sampler) is None
    samples = batch.feed_samples()
    assert batch.emitted() == samples
    assert installed.counts == VerificationCounts()


def fake_config(*, shares_out: bool | None = None) -> Any:
    parallel = SimpleNamespace(enable_batch_sharded_sampling=shares_out)
    return SimpleNamespace(
        use_v2_model_runner=True,
        parallel_config=parallel,
        speculative_config=SimpleNamespace(),
    )


def test_it_is_installed_where_drafts_keep_samples() -> None:
    registry.revert(Feature.VERIFICATION_V2)
    errors = ErrorCounter()
    config = fake_config(shares_out=True)
    assert not worker_installs.install_on_v2(RepriseConfig(), config, errors).active
    assert not registry.is_applied(Feature.VERIFICATION_V2, Role.WORKER)
    assert worker_installs.install_on_v2(RepriseConfig(), fake_config(), errors).active
    assert registry.is_applied(Feature.VERIFICATION_V2, Role.WORKER)
    assert not errors.counts()


def test_an_engine_does_not_start_where_it_cannot_be_applied(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    registry.revert(Feature.VERIFICATION_V2)
    monkeypatch.delattr(on_v2, "verify")
    with pytest.raises(ValueError, match=r"verification.enabled=false"):
        worker_installs.install_on_v2(RepriseConfig(), fake_config(), ErrorCounter())


START, NATURAL_END, FORCED_END = [1], [2, 3], [4, 2, 3]


class Budgets:
    """vLLM's thinking budgets of one request, step by step."""

    def __init__(self, budget: int) -> None:
        self._budget = torch.tensor([budget], dtype=torch.int32)
        self._cached = [torch.tensor([value], dtype=torch.int32) for value in (-1, -1, 0)]

    def forced(self, tokens: list[int], drafts: list[int]) -> list[int]:
        """The token that is forced after each of these prefixes, -1: none."""
        rows = len(drafts) + 1
        logits = torch.zeros(rows, 6)
        known = torch.zeros(1, 64, dtype=torch.int32)
        known[0, : len(tokens)] = torch.tensor(tokens)
        apply_thinking_budget(
            logits,
            torch.zeros(1, dtype=torch.int32),
            torch.zeros(rows, dtype=torch.int32),
            self._budget,
            known,
            torch.tensor([len(tokens)], dtype=torch.int32),
            torch.tensor([tokens[-1], *drafts], dtype=torch.int32),
            torch.arange(rows, dtype=torch.int32),
            *self._cached,
            *(torch.tensor(ids, dtype=torch.int32) for ids in (START, NATURAL_END, FORCED_END)),
        )
        best = logits.max(dim=1)
        return torch.where(best.values > 0, best.indices, -1).tolist()


def test_thinking_budgets_end_at_the_same_place_with_drafts() -> None:
    rng = np.random.default_rng(3)
    found = set()
    for budget in (0, 1, 3):
        for _ in range(8):
            tokens = rng.integers(0, 5, 24).tolist()
            with_drafts = Budgets(budget)
            at = 2
            while at < 20:
                drafts = tokens[at : at + 4]
                forced = with_drafts.forced(tokens[:at], drafts)
                for place, each in enumerate(forced):
                    assert [each] == Budgets(budget).forced(tokens[: at + place], [])
                found |= set(forced)
                at += int(rng.integers(1, 5))
    assert found == {-1, *FORCED_END}
