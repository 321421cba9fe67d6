"""The wiring of verification: which batches qualify, what noise they get, and a live engine."""

from __future__ import annotations

import json
import os
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from warm_starts import run_program

pytest.importorskip("vllm", reason="needs vLLM")

from vllm.v1.sample.logits_processor import LogitsProcessors
from vllm.v1.sample.logits_processor.builtin import MinTokensLogitsProcessor
from vllm.v1.sample.rejection_sampler import RejectionSampler
from vllm.v1.sample.sampler import Sampler

from reprise.engine_ext.compat.patches import Feature
from reprise.engine_ext.compat.registry import registry
from reprise.engine_ext.worker.verification import on_v1
from reprise.engine_ext.worker.verification.state import (
    Installation,
    VerificationCounts,
    announce,
    installation_of,
)
from reprise.kernels.config import VerifyConfig
from reprise.tests.engine_ext.worker.verification_v1_batch import Batch, Engine, verify

pytestmark = [pytest.mark.engine, pytest.mark.usefixtures("vllm_kernels")]


def sampled(batch: int) -> dict[str, Any]:
    temperature = torch.full((batch,), 0.9)
    return {"temperature": temperature, "all_greedy": False, "all_random": True}


def test_greedy_output_is_that_of_vllm(installed: Any) -> None:
    batch = Batch([[1, 2, 3], [], [4], [5, 6]])
    best = batch.logits.argmax(dim=1)
    batch.drafts.draft_token_ids = best[[0, 1, 9, 5, 7, 4]].int()
    ours = batch.sample()
    installed.active = False
    assert ours == batch.sample()
    assert [len(row) for row in ours] == [3, 1, 2, 2]
    assert installed.counts.verified == 1
    assert not installed.counts.fallen_through


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_greedy_takes_logits_that_are_no_numbers_as_vllm_does(installed: Any, bad: float) -> None:
    batch = Batch([[7, 0], [6], [7]])
    batch.logits[0, slice(None) if bad < 0 else slice(7, 9)] = bad
    batch.logits[3, 6:] = bad
    batch.logits[5, 7] = bad
    ours = batch.sample()
    installed.active = False
    assert ours == batch.sample()


def test_sampled_output_follows_the_settings_of_each_request(installed: Any) -> None:
    settings = sampled(4) | {"top_k": torch.tensor([1, 50, 1, 50]).int()}
    settings |= {"top_p": torch.tensor([1.0, 1e-6, 0.5, 1.0])}
    batch = Batch([[1], [2], [], [3]], **settings)
    best = batch.logits.argmax(dim=1).tolist()
    firsts = [[row[0] for row in batch.sample()] for _ in range(20)]
    assert {tuple(row[:3]) for row in firsts} == {(best[0], best[2], best[4])}
    assert len({row[3] for row in firsts}) > 5
    assert installed.counts.verified == 20


def test_noise_is_fresh_and_follows_the_engines_seed() -> None:
    def engine() -> Installation:
        return Installation(VerifyConfig())

    torch.manual_seed(5)
    one = engine()
    first, second = one.draw_noise(3), one.draw_noise(3)
    assert len({*first[0].tolist(), *second[0].tolist()}) == 6
    assert torch.equal(engine().draw_noise(3), first)
    torch.manual_seed(6)
    assert not (engine().draw_noise(3)[0] == first[0]).any()


def test_each_engine_of_a_process_verifies_as_it_is_set(installed: Any) -> None:
    """By the config that its rejection sampler is built from; what is none of ours is vLLM's."""
    configs = [SimpleNamespace(rejection_sample_method="standard") for _ in range(3)]
    engines = [installed, Installation(VerifyConfig(enabled=False)), None]
    for config, engine in zip(configs, engines, strict=True):
        if engine is not None:
            announce(engine, config)
        batch = Batch([[1, 2], [3]])
        batch.sampler = RejectionSampler(Sampler(), config, torch.device("cpu"))
        assert installation_of(batch.sampler) is engine
        assert [row[0] for row in batch.sample()] == batch.logits[[0, 3]].argmax(dim=1).tolist()
    assert installed.counts.verified == 1
    assert engines[1].counts == VerificationCounts()
    installed.leave_to_vllm(RuntimeError("of this engine alone"))
    assert not installed.active
    assert installation_of(RejectionSampler(Sampler(), spec_config=configs[1])) is engines[1]


UNQUALIFIED = {
    "seeds": sampled(2) | {"generators": {1: torch.Generator()}},
    "penalties": {"no_penalties": False, "prompt_token_ids": torch.zeros(2, 1).long()},
    "bad words": {"bad_words_token_ids": {0: [[3]]}},
    "allowed tokens": {"allowed_token_ids_mask": torch.zeros(2, 50).bool()},
    "logprobs": {"max_num_logprobs": 0},
    "logits processors": {"logitsprocs": LogitsProcessors([SimpleNamespace(
        is_argmax_invariant=lambda: True)])},
    "thinking budget": {"thinking_budget_state_holder": SimpleNamespace(
        has_tracked_requests=lambda: True)},
}  # fmt: skip


@pytest.mark.parametrize(("reason", "sampling"), UNQUALIFIED.items(), ids=UNQUALIFIED)
def test_a_batch_that_does_not_qualify_is_left_to_vllm(reason: str, sampling: dict) -> None:
    assert Batch([[1], [2]], **sampling).reason() == reason


def test_what_vllm_verifies_in_another_way_is_left_to_it() -> None:
    batch = Batch([[1], [2]])
    assert batch.reason() is None
    batch.draft_probs = torch.zeros(2, 50)
    assert batch.reason() == "draft probabilities"
    batch.sampler.use_fp64_gumbel = True
    assert batch.reason() == "noise of 64 bits"
    batch.sampler.synthetic_mode = True
    assert batch.reason() == "synthetic acceptance"
    other = Batch([[1], [2]])
    other.logits = other.logits[:3]
    assert other.reason() == "shape"


def test_a_seed_does_not_matter_where_nothing_is_sampled() -> None:
    assert Batch([[1], [2]], generators={0: torch.Generator()}).reason() is None


def test_minimum_lengths_matter_only_while_they_are_unmet() -> None:
    config = SimpleNamespace(scheduler_config=SimpleNamespace(max_num_seqs=4))
    processor = MinTokensLogitsProcessor(config, torch.device("cpu"), False)
    batch = Batch([[1]], logitsprocs=LogitsProcessors([processor]))
    assert batch.reason() is None
    processor.min_toks[0] = (5, [], {2}, False)
    assert batch.reason() == "logits processors"


def test_falling_through_is_counted_and_gives_vllms_output(installed: Any) -> None:
    batch = Batch([[1], [2]], bad_words_token_ids={0: [[3]]})
    batch.sampling.output_token_ids = [[], []]
    batch.sampling.spec_token_ids = [[1], [2]]
    assert batch.sample()[1][0] == int(batch.logits[2].argmax())
    assert installed.counts.fallen_through == {"bad words": 1}
    assert installed.counts.verified == 0


def test_a_failing_backend_is_reported_once_and_vllm_goes_on(
    installed: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(on_v1, "verify_drafts", None)
    batch = Batch([[1], [2]])
    for _ in range(2):
        assert [row[0] for row in batch.sample()] == batch.logits[[0, 2]].argmax(dim=1).tolist()
    assert installed.counts.fallen_through == {"error": 1}


@pytest.mark.usefixtures("installed")
def test_warming_up_meets_every_kernel_that_serving_will_need(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    met = set()

    def record(logits: torch.Tensor, *_args: Any, max_draft: int, **given: Any) -> None:
        names = tuple(name for name in ("temperature", "top_k", "top_p") if given[name] is not None)
        met.add((logits.numel() >= 4096 * 4096, max_draft, names))

    monkeypatch.setattr(on_v1, "verify_drafts", record)
    on_v1.warm_up(torch.zeros(1, 4096 * 4))
    kinds = [(), ("temperature",), ("temperature", "top_k"), ("temperature", "top_p")]
    kinds.append(("temperature", "top_k", "top_p"))
    assert {(False, 1, kind) for kind in kinds} <= met
    assert {(True, 1, kind) for kind in kinds[:2]} <= met
    assert {(False, most, ()) for most in (0, 1, 3, 7, 15, 31)} <= met


@pytest.mark.usefixtures("installed")
def test_on_a_cpu_sampling_is_left_to_vllm_unless_asked_for() -> None:
    verify()
    assert Batch([[1], [2]]).reason() is None
    assert Batch([[1], [2]], **sampled(2)).reason() == "sampling on a CPU"
    assert verify(enabled=True).samples
    assert Batch([[1], [2]], **sampled(2)).reason() is None


def test_without_drafts_there_is_nothing_to_reject(installed: Any) -> None:
    batch = Batch([[], []], max_num_logprobs=2)
    output = batch.sampler(batch.drafts, None, batch.logits.clone(), batch.sampling)
    plain = Sampler()(logits=batch.logits.clone(), sampling_metadata=batch.sampling)
    assert output.sampled_token_ids.tolist() == plain.sampled_token_ids.tolist()
    for ours, vllms in zip(output.logprobs_tensors, plain.logprobs_tensors, strict=True):
        assert ours is vllms or torch.equal(ours, vllms)
    assert (installed.counts.undrafted, installed.counts.verified) == (1, 0)
    assert not installed.counts.fallen_through


@pytest.mark.parametrize("num_logprobs", [None, 2])
@pytest.mark.parametrize("fails", [False, True])
def test_logprobs_of_given_tokens_are_there_beside_drafts(
    installed: Any, monkeypatch: pytest.MonkeyPatch, num_logprobs: int | None, fails: bool
) -> None:
    batch = Batch([[1, 2], []], max_num_logprobs=num_logprobs, logprob_token_ids={1: [3, 4]})
    if fails:
        monkeypatch.setattr(Installation, "count_fall_through", None)
    output = batch.sampler(batch.drafts, None, batch.logits.clone(), batch.sampling)
    plain = Sampler()(logits=batch.logits[[0, 3]].clone(), sampling_metadata=batch.sampling)
    assert output.sampled_token_ids.tolist() == plain.sampled_token_ids.tolist()
    for ours, vllms in zip(output.logprobs_tensors, plain.logprobs_tensors, strict=True):
        assert ours is vllms or torch.equal(ours, vllms)
    assert installed.active is not fails


def test_off_where_it_is_switched_off_and_applied_once(monkeypatch: pytest.MonkeyPatch) -> None:
    registry.revert(Feature.VERIFICATION)
    monkeypatch.setattr(Engine, "installation", None)
    before = RejectionSampler.forward
    verify(enabled=False)
    assert RejectionSampler.forward is before
    verify(enabled=True)
    wrapped = RejectionSampler.forward
    assert verify(enabled=True, backend="torch").config.backend == "torch"
    assert RejectionSampler.forward is wrapped
    off = verify(enabled=False)
    Batch([[1]]).sample()
    assert off.counts == VerificationCounts()
    registry.revert(Feature.VERIFICATION)
    assert RejectionSampler.forward is before


def test_an_unknown_vllm_is_refused_in_words(monkeypatch: pytest.MonkeyPatch) -> None:
    def another_forward(self: Any, logits: Any) -> Any:
        return self, logits

    registry.revert(Feature.VERIFICATION)
    monkeypatch.setattr(RejectionSampler, "forward", another_forward)
    monkeypatch.setattr(Engine, "installation", None)
    with pytest.raises(RuntimeError, match=r"RejectionSampler.forward has parameters .*'logits'"):
        verify(enabled=True)
    assert Engine.installation is not None
    assert not Engine.installation.active


def test_lossy_acceptance_is_left_to_vllm() -> None:
    """FLy, of vLLM 0.33."""
    batch = Batch([[1], [2]])
    batch.sampler.use_fly = True
    assert batch.reason() == "lossy acceptance"


LIVE = """
import json, sys
from vllm import LLM, SamplingParams
from reprise.engine_ext.worker import worker_installs
from reprise.engine_ext.worker.verification import state
from reprise.kernels.config import VerifyConfig

# Without it, top-k beside drafts crashes vLLM's own sampler on a CPU.
worker_installs.fix_sampling()
llm = LLM(model=sys.argv[1], enforce_eager=True, max_num_seqs=4, max_model_len=512, seed=3,
          kv_cache_memory_bytes=1 << 28,
    dtype="float32", enable_prefix_caching=False,
    speculative_config={"method": "ngram", "num_speculative_tokens": 5, "prompt_lookup_max": 3,
        "prompt_lookup_min": 1})
prompts = [f"Hello, my order {n} has not come. My order {n} has not come." for n in range(6)]

def run(prompts, **sampling):
    params = SamplingParams(max_tokens=40, ignore_eos=True, **sampling)
    return [list(one.outputs[0].token_ids) for one in llm.generate(prompts, params, use_tqdm=False)]

greedy = {"temperature": 0.0}
warm = {"temperature": 0.8, "top_p": 0.95, "top_k": 50}
results = {"vllm": run(prompts, **greedy)}
ours = state.Installation(VerifyConfig(enabled=True, backend="torch"))
worker_installs.verify(ours)

def bind(worker):
    state.bind(worker.model_runner.rejection_sampler, ours)

llm.collective_rpc(bind)
results["ours"] = run(prompts, **greedy)
results["sampled"] = [run(prompts, **warm) for _ in range(2)]
counts = ours.counts
results["counts"] = [counts.verified, sum(counts.fallen_through.values())]
run(prompts[:2], logprobs=1, **greedy)
run(prompts[:2], seed=11, **warm)
results["fallen_through"] = dict(counts.fallen_through)
print("RESULTS" + json.dumps(results))
"""


@pytest.mark.slow
@pytest.mark.timeout(1800)  # may have to train the demo model first
def test_a_live_engine_gives_the_same_greedy_output(demo_model: Any) -> None:
    environment = os.environ | {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_PLUGINS": ""}
    done = run_program(["-c", LIVE, str(demo_model)], environment=environment)
    assert done.returncode == 0, done.stderr[-4000:]
    line = next(one for one in done.stdout.splitlines() if one.startswith("RESULTS"))
    results = json.loads(line.removeprefix("RESULTS"))
    assert results["ours"] == results["vllm"]
    one, other = results["sampled"]
    assert one != other
    assert {len(row) for row in one + other} == {40}
    verified, fallen_through = results["counts"]
    assert verified > 20
    assert fallen_through == 0
    # Those with a seed are verified with vLLM's sampler.
    assert set(results["fallen_through"]) == {"logprobs"}
