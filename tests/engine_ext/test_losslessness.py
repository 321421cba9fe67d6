"""Real engines on the CPU: what is answered with drafts is what is answered without."""

from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.stats import chi2

from reprise.eval.demo_data.demo_trace import make_demo_trace
from reprise.eval.live.settled_report import settled_report
from reprise.spec.predictor.weights import load_weights, save_weights, start_weights

pytestmark = [pytest.mark.engine, pytest.mark.slow, pytest.mark.timeout(1800)]

NUM_PROMPTS = 64
# The chance that samples of equal distributions are told apart; two of them in a row are not.
FALSE_ALARM_RATE = 1e-3


@pytest.fixture(scope="session")
def questions() -> list[str]:
    """Prompts of the demo trace, some with something to reuse and some without."""
    rows = [row.prompt for row in make_demo_trace(seed=0) if not row.warm]
    return rows[:NUM_PROMPTS]


def _chat(llm: Any, prompts: list[str], **sampling: Any) -> list[Any]:
    from vllm import SamplingParams

    params = SamplingParams(**{"temperature": 0.0, "max_tokens": 160, **sampling})
    chats = [[{"role": "user", "content": prompt}] for prompt in prompts]
    return [output.outputs[0] for output in llm.chat(chats, params, use_tqdm=False)]


def _said(completions: list[Any]) -> list[tuple[Any, ...]]:
    return [(tuple(c.token_ids), c.text, c.finish_reason, c.stop_reason) for c in completions]


@pytest.mark.identity
def test_greedy_answers_are_identical_at_batch_8_and_1(
    plain_llm: Any, reprise_llm: Any, questions: list[str]
) -> None:
    expected = _said(_chat(plain_llm, questions))
    # Near answers are counted below: the retrieval process is to be there from the first one on.
    settled_report(reprise_llm)
    assert _said(_chat(reprise_llm, questions)) == expected
    settled_report(reprise_llm)
    # By now every prompt is an exact repeat: drafts are at their longest and most accepted.
    one_by_one = [_said(_chat(reprise_llm, [question]))[0] for question in questions]
    assert one_by_one == [_said(_chat(plain_llm, [question]))[0] for question in questions]
    (report,) = reprise_llm.collective_rpc("reprise_stats")
    assert report["provider"]["accepted"] > NUM_PROMPTS
    assert report["errors"] == {}
    # By tokens where embedding takes longer than the prefill; every repeat has one near answer.
    assert sum(report["near_answers_in_time"].values()) >= NUM_PROMPTS
    assert report["live_requests"] == 0


@pytest.mark.identity
def test_measured_costs_and_rests_change_no_answer(
    plain_llm: Any,
    llm_builder: Callable[..., Any],
    demo_model: Path,
    questions: list[str],
    tmp_path: Path,
) -> None:
    """As users run it: lengths by what steps are measured to cost, some not looked at at all; and
    drafting goes on from what was learned before."""
    file, secret = tmp_path / "weights", b"of the first run"
    save_weights(start_weights(), file, secret=secret)
    settings = {"reprise": {"drafts": {"weights_file": str(file)}}}
    llm = llm_builder(demo_model, with_reprise=True, additional_config=settings)
    try:
        for _ in range(2):
            said = _said(_chat(llm, questions))
            assert said == _said(_chat(plain_llm, questions))
        (report,) = llm.collective_rpc("reprise_stats")
        settled_report(llm)
    finally:
        llm.llm_engine.engine_core.shutdown()
    learned = start_weights()
    assert load_weights(learned, file) == secret
    assert not np.array_equal(learned.choice, start_weights().choice)
    # A last draft may go further than the answer; nothing that waited to be looked at is lost.
    assert report["provider"]["emitted"] >= 2 * sum(len(one[0]) for one in said)
    assert report["provider"]["steps"] > 0
    assert report["errors"] == {}
    assert report["live_requests"] == 0


@pytest.mark.identity
def test_stops_lengths_and_seeds_are_identical(
    plain_llm: Any, reprise_llm: Any, questions: list[str]
) -> None:
    for sampling in (
        {"max_tokens": 1},
        {"max_tokens": 7},
        {"stop": ["you", "order"]},
        {"min_tokens": 150, "max_tokens": 170},
        {"ignore_eos": True, "max_tokens": 120},
        {"repetition_penalty": 1.3, "max_tokens": 40},
        {"logprobs": 2, "max_tokens": 20},
        {"temperature": 0.8, "seed": 11, "max_tokens": 60},
    ):
        expected = _said(_chat(plain_llm, questions[:8], **sampling))
        assert _said(_chat(reprise_llm, questions[:8], **sampling)) == expected, sampling


def test_greedy_requests_with_a_seed_are_drafted_for(
    plain_llm: Any, reprise_llm: Any, questions: list[str]
) -> None:
    """A greedy answer spends no random number, whatever its seed."""
    seeded = {"seed": 11, "max_tokens": 60}
    expected = _said(_chat(plain_llm, questions[:8], **seeded))
    drafted = 0
    for _ in range(3):
        (before,) = reprise_llm.collective_rpc("reprise_stats")
        assert _said(_chat(reprise_llm, questions[:8], **seeded)) == expected
        after = settled_report(reprise_llm)
        drafted += after["provider"]["drafted"] - before["provider"]["drafted"]
    assert drafted > 0


# Beside requests that no seed binds, and greedy ones.
SEEDED_SETTINGS = (
    {"temperature": 0.3},
    {"temperature": 0.8},
    {"temperature": 1.2, "top_k": 20},
    {"temperature": 0.8, "top_p": 0.9},
    {"temperature": 1.2, "top_k": 50, "top_p": 0.95},
    {"temperature": 0.8, "repetition_penalty": 1.2},
    {"temperature": 0.8, "min_p": 0.05},
    {"temperature": 0.8, "logit_bias": {17: 4.0, 300: -5.0}},
    {"temperature": 1.2, "stop": ["you", "order"]},
    {"temperature": 0.8, "logprobs": 1},
    {"temperature": 0.8, "min_tokens": 30},
)


@pytest.mark.identity
def test_a_seed_gives_the_sample_that_it_gives_without_drafts(
    plain_llm: Any, reprise_llm: Any, questions: list[str]
) -> None:
    """200 of them in mixed batches, first with little and then with much to draft from."""
    from vllm import SamplingParams

    params, chats, is_seeded = [], [], []
    for number in range(240):
        chosen = SEEDED_SETTINGS[number % len(SEEDED_SETTINGS)]
        is_seeded.append(number % 6 != 5)
        seed = 1000 + number if is_seeded[-1] else None
        temperature = {"temperature": 0.0} if number % 12 == 5 else {}
        params.append(SamplingParams(**{"max_tokens": 40, **chosen, "seed": seed, **temperature}))
        chats.append([{"role": "user", "content": questions[number % 32]}])
    assert sum(is_seeded) == 200

    def answers(llm: Any) -> list[tuple[Any, ...]]:
        said = _said([out.outputs[0] for out in llm.chat(chats, params, use_tqdm=False)])
        return [one for one, seeded in zip(said, is_seeded, strict=True) if seeded]

    def drafted() -> dict[str, int]:
        report = settled_report(reprise_llm)
        assert report["errors"] == {}
        return {name: report["provider"][name] for name in ("drafted", "accepted")}

    expected = answers(plain_llm)
    before = drafted()
    for _ in range(2):
        said = answers(reprise_llm)
        # Rounding of several rows and of one differs in the last bits of float32. The two largest
        # of noisy logits are that close once in a million tokens; here are eight thousand.
        assert sum(one != other for one, other in zip(said, expected, strict=True)) <= 1
    after = drafted()
    # An exact repeat's near answer is what it says.
    assert after["accepted"] - before["accepted"] > sum(len(one[0]) for one in expected) / 2
    assert "error" not in _verification(reprise_llm)["fallen_through"]


def test_answers_may_end_right_after_min_tokens(
    plain_llm: Any, reprise_llm: Any, questions: list[str]
) -> None:
    """`min_tokens` lets the very next token end the answer, wherever a draft ends before it."""
    question = questions[0]
    length = len(_chat(plain_llm, [question])[0].token_ids)
    _chat(reprise_llm, [question])
    settled_report(reprise_llm)
    for min_tokens in range(length - 18, length):
        expected = _said(_chat(plain_llm, [question], min_tokens=min_tokens))
        assert len(expected[0][0]) == length
        assert _said(_chat(reprise_llm, [question], min_tokens=min_tokens)) == expected


# Nothing that the demo model was trained on: it is of many minds about them.
VAGUE_QUESTIONS = ("Hello", "What about it then?", "one two three", "I was just wondering")


def test_sampled_answers_are_distributed_alike(plain_llm: Any, reprise_llm: Any) -> None:
    _assert_distributed_alike(plain_llm, reprise_llm, temperature=0.8)


@pytest.fixture(scope="module")
def sampling_llm(demo_model: Path, llm_builder: Callable[..., Any]) -> Iterator[Any]:
    """An engine in which our kernels verify sampled drafts, which they leave to vLLM on a CPU."""
    settings = {
        "verification": {"enabled": True, "backend": "torch"},
        "drafts": {"verify_cost": 0.0},
    }
    # A thousand short samples for each law: many at once take few steps.
    llm = llm_builder(
        demo_model,
        with_reprise=True,
        additional_config={"reprise": settings},
        max_num_seqs=32,
    )
    yield llm
    llm.llm_engine.engine_core.shutdown()


@pytest.mark.parametrize(
    "sampling",
    [
        {"temperature": 0.8},
        {"temperature": 1.2, "top_k": 6},
        {"temperature": 1.2, "top_p": 0.8},
        {"temperature": 1.2, "top_k": 20, "top_p": 0.9},
    ],
    ids=["temperature", "top-k", "top-p", "top-k-and-top-p"],
)
def test_our_own_sampler_follows_the_same_law(
    plain_llm: Any, sampling_llm: Any, sampling: dict[str, Any]
) -> None:
    before = _verification(sampling_llm)
    _assert_distributed_alike(plain_llm, sampling_llm, **sampling)
    after = _verification(sampling_llm)
    assert after["verified"] - before["verified"] > 100, "our sampler was hardly used"
    assert after["fallen_through"] == before["fallen_through"] == {}


def _verification(llm: Any) -> dict[str, Any]:
    (report,) = llm.collective_rpc("reprise_stats")
    found: dict[str, Any] = report["verification"]
    return found


def _assert_distributed_alike(plain_llm: Any, ours_llm: Any, **sampling: Any) -> None:
    """Samples tell the engines apart in two independent tries only if the engines differ."""
    found = [_chi_square(plain_llm, ours_llm, **sampling)]
    if found[0] < FALSE_ALARM_RATE:
        found.append(_chi_square(plain_llm, ours_llm, **sampling))
    assert max(found) >= FALSE_ALARM_RATE, found


def _chi_square(plain_llm: Any, ours_llm: Any, **sampling: Any) -> float:
    """Two-sample test over where and with which token a sample leaves the greedy answer: the chance
    of samples that differ at least so much."""
    statistic, degrees = 0.0, 0
    for question in VAGUE_QUESTIONS:
        greedy = tuple(_chat(plain_llm, [question], max_tokens=12)[0].token_ids)
        _chat(ours_llm, [question], max_tokens=12)
        settled_report(ours_llm)
        plain, ours = (
            Counter(
                _first_divergence(greedy, tuple(completion.token_ids))
                for completion in _chat(llm, [question] * 250, **{"max_tokens": 12} | sampling)
            )
            for llm in (plain_llm, ours_llm)
        )
        of_question = _two_sample_chi_square(plain, ours)
        statistic, degrees = statistic + of_question[0], degrees + of_question[1]
    assert degrees >= 10, "the samples hardly vary: the test could not fail"
    return float(chi2.sf(statistic, degrees))


def _first_divergence(reference: tuple[int, ...], tokens: tuple[int, ...]) -> tuple[int, int]:
    for position, (expected, token) in enumerate(zip(reference, tokens, strict=False)):
        if token != expected:
            return position, token
    return len(tokens), -1


def _two_sample_chi_square(
    left: Counter[tuple[int, int]], right: Counter[tuple[int, int]]
) -> tuple[float, int]:
    """Both samples are of one size; cells expected to hold fewer than 5 are merged."""
    cells = [(left[key], right[key]) for key in left.keys() | right.keys()]
    frequent = [cell for cell in cells if sum(cell) >= 10]
    rare = [sum(column) for column in zip(*(c for c in cells if sum(c) < 10), strict=True)] or [0]
    table = np.array([*frequent, *([rare] if sum(rare) else [])], float)
    statistic = ((table[:, 0] - table[:, 1]) ** 2 / table.sum(axis=1)).sum()
    return float(statistic), len(table) - 1


def test_a_30000_token_prompt_is_refused_as_by_plain_vllm(reprise_llm: Any) -> None:
    from vllm.exceptions import VLLMValidationError

    with pytest.raises(VLLMValidationError, match="1024"):
        _chat(reprise_llm, ["order " * 30_000])
    assert len(_chat(reprise_llm, ["Where is my order?"])[0].token_ids) > 0


def test_tenants_of_one_engine_do_not_draft_from_each_other(reprise_llm: Any) -> None:
    """An answer given behind one salt is drafted for its own tenant, and for no other."""
    from vllm import SamplingParams

    ids = reprise_llm.get_tokenizer().encode("walled tenant question about a purple refund")
    params = SamplingParams(temperature=0.0, max_tokens=60, ignore_eos=True)

    def accepted_from_others(salt: str) -> int:
        before = _accepted_from_others(reprise_llm)
        prompt = {"prompt_token_ids": ids, "cache_salt": salt}
        reprise_llm.generate([prompt], params, use_tqdm=False)
        settled_report(reprise_llm)
        return _accepted_from_others(reprise_llm) - before

    assert accepted_from_others("tenant-a") == 0
    assert accepted_from_others("tenant-b") == 0
    # An engine that has measured little may not think drafts worth their cost at once.
    assert sum(accepted_from_others("tenant-a") for _ in range(8)) > 0


def _accepted_from_others(llm: Any) -> int:
    (report,) = llm.collective_rpc("reprise_stats")
    by_source = report["provider"]["by_source"]
    return sum(by_source[source]["accepted"] for source in ("near_answer", "corpus"))


def test_on_a_recorded_support_desk(shared_folder: Path, llm_builder: Callable[..., Any]) -> None:
    """The trained support model on recorded questions, a wall of 8 at once."""
    from reprise.eval.replay.traces import load_trace

    rows = load_trace(shared_folder / "traces" / "support.jsonl")
    warm = [row.prompt for row in rows if row.warm][:60]
    asked = [row.prompt for row in rows if not row.warm]
    model = shared_folder / "models" / "support"
    plain = llm_builder(model, with_reprise=False)
    expected = _said(_chat(plain, asked))
    del plain
    ours = llm_builder(model, with_reprise=True)
    _chat(ours, warm)
    settled_report(ours)
    assert _said(_chat(ours, asked)) == expected
