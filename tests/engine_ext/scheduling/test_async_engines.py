"""Engines that schedule asynchronously, in either mode, and no answer changes by it.

A CPU computes while it launches, so nothing is won there by steps that run ahead; what is decided,
and in which order tokens become known, is the same as on a GPU.
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("vllm")

from reprise.engine_ext import plugin
from reprise.engine_ext.core.request_hints import RequestHints, with_hints
from reprise.engine_ext.scheduling import async_scheduling
from reprise.engine_ext.scheduling.modes import AsyncMode, async_mode_of
from reprise.eval.demo_data.demo_trace import make_demo_trace
from reprise.eval.live.settled_report import settled_report

pytestmark = [pytest.mark.engine, pytest.mark.timeout(1800)]

# 8 requests of some 200 tokens do not fit 20 blocks of 32: somebody has to give way.
TIGHT = {
    "block_size": 32,
    "num_gpu_blocks_override": 20,
    "max_num_batched_tokens": 48,
    "max_model_len": 512,
    "enable_prefix_caching": False,
}


@pytest.fixture(scope="module")
def questions() -> list[str]:
    return [row.prompt for row in make_demo_trace(seed=0) if not row.warm][:32]


@pytest.fixture(scope="module", params=list(AsyncMode), ids=["launch", "schedule"])
def mode(request: pytest.FixtureRequest) -> AsyncMode:
    mode: AsyncMode = request.param
    return mode


@pytest.fixture(scope="module")
def build_ahead(
    mode: AsyncMode, demo_model: Path, llm_builder: Callable[..., Any]
) -> Callable[..., Any]:
    """An engine that schedules ahead; or one as there is on a GPU: with an executor in the engine
    core's own process."""

    def build(**settings: Any) -> Any:
        plugin.apply_all()
        with pytest.MonkeyPatch.context() as monkeypatch:
            if mode is AsyncMode.LAUNCH:
                monkeypatch.setattr(async_scheduling, "is_overlapping", lambda: True)
                # vLLM reads a number; its CPU platform, which wants another executor, a "1".
                monkeypatch.setenv("VLLM_ENABLE_V1_MULTIPROCESSING", "01")
            else:
                monkeypatch.setattr(async_scheduling, "num_cores", lambda: 2)
            llm = llm_builder(demo_model, with_reprise=True, **settings)
        assert async_mode_of(llm.llm_engine.vllm_config) is mode
        return llm

    return build


@pytest.fixture(scope="module")
def ahead_llm(build_ahead: Callable[..., Any], start_plain_llm: Callable[[], Any]) -> Iterator[Any]:
    # First: an engine that is built later takes the metrics of those before it out of the registry.
    start_plain_llm()
    llm = build_ahead()
    settled_report(llm)
    yield llm
    llm.llm_engine.engine_core.shutdown()


def said(llm: Any, prompts: list[str], samplings: list[dict[str, Any]]) -> list[tuple[Any, ...]]:
    """The answers to the prompts, which take turns with the ways to sample."""
    from vllm import SamplingParams

    defaults = {"temperature": 0.0, "max_tokens": 120}
    params = [
        SamplingParams(**{**defaults, **samplings[i % len(samplings)]}) for i in range(len(prompts))
    ]
    chats = [[{"role": "user", "content": prompt}] for prompt in prompts]
    outputs = [output.outputs[0] for output in llm.chat(chats, params, use_tqdm=False)]
    return [(tuple(o.token_ids), o.text, o.finish_reason, o.stop_reason) for o in outputs]


def report_of(llm: Any) -> dict[str, Any]:
    report = settled_report(llm)
    assert report["errors"] == {}
    return report


@pytest.mark.slow
@pytest.mark.identity
def test_greedy_answers_are_identical_and_learned_whole(
    mode: AsyncMode, plain_llm: Any, ahead_llm: Any, questions: list[str]
) -> None:
    expected = said(plain_llm, questions, [{}])
    assert said(ahead_llm, questions, [{}]) == expected
    report = report_of(ahead_llm)
    if mode is AsyncMode.LAUNCH:
        assert min(report["steps"].values()) > 20, "one kind of step is missing"
    # Nothing that was computed beyond an end is learned.
    tokens = {answer[0] for answer in expected}
    assert report["provider"]["cached_tokens"] <= sum(map(len, tokens)) + len(tokens)
    # Exact repeats, one by one: drafts are long, and mostly right.
    for question, answer in zip(questions, expected, strict=True):
        assert said(ahead_llm, [question], [{}]) == [answer]
    after = report_of(ahead_llm)
    accepted = after["provider"]["accepted"] - report["provider"]["accepted"]
    assert accepted > sum(len(answer[0]) for answer in expected) / 3
    if mode is AsyncMode.LAUNCH:
        assert after["steps"]["run_ahead"] > report["steps"]["run_ahead"]
    # What the scheduler has counted is what was drafted, and not the room that it left.
    counted = {m.name: m.value for m in ahead_llm.get_metrics() if hasattr(m, "value")}
    assert counted["vllm:spec_decode_num_accepted_tokens"] >= accepted
    assert counted["vllm:spec_decode_num_draft_tokens"] <= after["provider"]["drafted"]


@pytest.mark.slow
@pytest.mark.parametrize(
    "special",
    [
        {"max_tokens": 1},
        {"max_tokens": 7},
        {"stop": ["you", "order"]},
        {"min_tokens": 100, "max_tokens": 110},
        {"repetition_penalty": 1.3, "max_tokens": 40},
        {"logprobs": 2, "max_tokens": 20},
        {"bad_words": ["you", "your"], "max_tokens": 40},
        {"temperature": 0.8, "seed": 11, "max_tokens": 60},
    ],
)
def test_requests_of_all_kinds_are_answered_side_by_side(
    plain_llm: Any, ahead_llm: Any, questions: list[str], special: dict[str, Any]
) -> None:
    samplings: list[dict[str, Any]] = [{}, special, {}]
    expected = said(plain_llm, questions[:16], samplings)
    assert said(ahead_llm, questions[:16], samplings) == expected
    report_of(ahead_llm)


@pytest.mark.slow
def test_answers_end_where_the_model_does(
    plain_llm: Any, ahead_llm: Any, questions: list[str]
) -> None:
    """At the last place of its context: there is no room for drafts there, nor for a step more."""
    tokenizer = plain_llm.get_tokenizer()
    longest = plain_llm.llm_engine.model_config.max_model_len
    prompts = []
    for number, question in enumerate(questions[:6]):
        times = (longest - 80 - number) // len(tokenizer.encode(question + " "))
        prompts.append(" ".join([question] * times))
    samplings = [{"ignore_eos": True, "max_tokens": None}]
    expected = said(plain_llm, prompts, samplings)
    assert {finish_reason for _, _, finish_reason, _ in expected} == {"length"}
    for _ in range(2):
        assert said(ahead_llm, prompts, samplings) == expected
    report_of(ahead_llm)


@pytest.mark.slow
def test_requests_that_are_aborted_leave_the_others_as_they_are(
    plain_llm: Any, ahead_llm: Any, questions: list[str]
) -> None:
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind

    params = SamplingParams(
        temperature=0.0, max_tokens=120, output_kind=RequestOutputKind.FINAL_ONLY
    )

    def answers(llm: Any, run: int) -> dict[int, tuple[int, ...]]:
        engine, found = llm.llm_engine, {}
        tokenizer = llm.get_tokenizer()
        for number, question in enumerate(questions):
            prompt = {"prompt_token_ids": tokenizer.encode(question)}
            engine.add_request(f"{run}-{number}", prompt, params)
        for steps in range(10_000):
            if not engine.has_unfinished_requests():
                break
            for output in engine.step():
                number = int(output.request_id.split("-")[1])
                found[number] = tuple(output.outputs[0].token_ids)
            victim = 3 * (steps // 4)
            if steps % 4 == 3 and victim < len(questions):
                engine.abort_request([f"{run}-{victim}"])
        return found

    expected = answers(plain_llm, 1)
    kept = [number for number in range(len(questions)) if number % 3]
    for run in (1, 2):
        found = answers(ahead_llm, run)
        assert [found[number] for number in kept] == [expected[number] for number in kept]
    assert report_of(ahead_llm)["live_requests"] == 0


@pytest.mark.slow
def test_grammars_are_kept_beside_requests_without(
    plain_llm: Any, ahead_llm: Any, questions: list[str]
) -> None:
    from vllm.sampling_params import StructuredOutputsParams

    samplings: list[dict[str, Any]] = [{}, {}]
    answers = []
    for llm in (plain_llm, ahead_llm):
        samplings[1] = {"structured_outputs": StructuredOutputsParams(regex="[a-z ]{20,40}\\.")}
        answers.append(said(llm, questions[:12], samplings))
    assert answers[0] == answers[1]
    assert all(20 < len(answer[1]) <= 41 for answer in answers[1][1::2])
    report_of(ahead_llm)


@pytest.fixture(scope="module")
def long_prompts() -> list[str]:
    """Prompts that are prefilled in several chunks each."""
    prompts = [row.prompt for row in make_demo_trace(seed=0) if not row.warm][:24]
    return [" ".join([prompt] * 6) for prompt in prompts]


@pytest.fixture(scope="module")
def expected_of_preempted(
    demo_model: Path, llm_builder: Callable[..., Any], long_prompts: list[str]
) -> list[tuple[Any, ...]]:
    """What plain vLLM says to them with so little memory that requests are preempted."""
    plain = llm_builder(demo_model, with_reprise=False, **TIGHT)
    try:
        answers = said(plain, long_prompts, [{"ignore_eos": True}])
        assert preemptions(plain) > 0, "nothing was preempted: the test could not fail"
    finally:
        plain.llm_engine.engine_core.shutdown()
    return answers


def preemptions(llm: Any) -> int:
    return sum(m.value for m in llm.get_metrics() if m.name == "vllm:num_preemptions")


@pytest.fixture(scope="module")
def tight_llm(
    build_ahead: Callable[..., Any],
    start_plain_llm: Callable[[], Any],
    expected_of_preempted: list[tuple[Any, ...]],  # noqa: ARG001 - its engine first, see ahead_llm
) -> Iterator[Any]:
    start_plain_llm()
    llm = build_ahead(**TIGHT)
    yield llm
    llm.llm_engine.engine_core.shutdown()


@pytest.mark.slow
@pytest.mark.identity
def test_preempted_and_chunked_requests_are_answered_alike(
    mode: AsyncMode,
    tight_llm: Any,
    long_prompts: list[str],
    expected_of_preempted: list[tuple[Any, ...]],
) -> None:
    """Beyond the answers' ends too, where a model is of many minds."""
    before = preemptions(tight_llm)
    for _ in range(2):
        assert said(tight_llm, long_prompts, [{"ignore_eos": True}]) == expected_of_preempted
    report = report_of(tight_llm)
    if mode is AsyncMode.LAUNCH:
        assert min(report["steps"].values()) > 20
    assert report["live_requests"] == 0
    assert preemptions(tight_llm) > before, "nothing was preempted: the test could not fail"


@pytest.mark.slow
@pytest.mark.parametrize("drafts", [False, True])
def test_a_seed_gives_its_sample_however_many_steps_its_prompt_takes(
    plain_llm: Any, tight_llm: Any, long_prompts: list[str], drafts: bool
) -> None:
    """Beside greedy requests, and with preempted ones among them, whose prompts are computed again.
    vLLM itself ends where a prompt with a seed takes several steps: it is asked with room."""
    from vllm import SamplingParams

    samplings: list[dict[str, Any]] = [
        {"temperature": 0.8, "seed": 11, "max_tokens": 60},
        {"max_tokens": 60},
        {"temperature": 1.0, "seed": 1, "top_p": 0.9, "max_tokens": 60},
    ]
    expected = said(plain_llm, long_prompts, samplings)
    without = with_hints(SamplingParams(), RequestHints(drafts=False)).extra_args
    ours = [{**sampling, "extra_args": None if drafts else without} for sampling in samplings]
    before, preempted = report_of(tight_llm)["provider"], preemptions(tight_llm)
    for _ in range(2):
        assert said(tight_llm, long_prompts, ours) == expected
    after = report_of(tight_llm)["provider"]
    assert (after["accepted"] > before["accepted"] + 200) is drafts
    assert (after["drafted"] > before["drafted"]) is drafts
    assert preemptions(tight_llm) > preempted, "nothing was preempted: the test could not fail"
