"""An engine with our proposer gets the model runner that vLLM would choose without it."""

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("vllm")

from reprise.engine_ext.compat.engine_state import set_mark
from reprise.engine_ext.core.config import RepriseConfig
from reprise.engine_ext.core.identity import PROPOSER_PATH
from reprise.engine_ext.core.same_samples import drafts_keep_samples
from reprise.engine_ext.scheduling import runner_choice
from reprise.engine_ext.scheduling.draft_slots import max_slots
from reprise.kernels.config import VerifyConfig

PROGRAM = Path(__file__).with_name("choice_program.py")
OTHERS = "parallel drafting for EAGLE speculative decoding"


def chosen(cases: list[dict[str, Any]], environment: dict[str, str]) -> list[dict[str, Any]]:
    """What vLLM makes of the cases in a process of its own."""
    cases = [{"settings": {}, "environment": {}, **case} for case in cases]
    done = subprocess.run(
        [sys.executable, str(PROGRAM)],
        env=environment,
        input=json.dumps(cases) + "\n",
        capture_output=True,
        text=True,
    )
    lines = [line for line in done.stdout.splitlines() if line.startswith("REPLY ")]
    assert lines, done.stderr[-3000:]
    found: list[dict[str, Any]] = json.loads(lines[0].removeprefix("REPLY "))
    return found


@pytest.mark.engine
@pytest.mark.slow
def test_with_triton_it_is_v2_and_asynchronous(v2_environment: dict[str, str]) -> None:
    no_v2 = {"VLLM_USE_V2_MODEL_RUNNER": "0"}
    v1, v2 = ({"engine": {"runner": runner}} for runner in ("v1", "v2"))
    auto, asked, not_async, is_v1, outside, refused, wrong = chosen(
        [
            {"max_num_seqs": 32},
            {"settings": v2, "async_scheduling": True, "max_num_seqs": 32},
            {"async_scheduling": False, "max_num_seqs": 32},
            {"settings": v1},
            {"environment": no_v2},
            {"settings": v2, "environment": no_v2},
            {"settings": {"engine": {"runner": "v3"}}},
        ],
        v2_environment,
    )
    on_v2 = {
        "v2": True,
        "async": True,
        "method": "custom_class",
        "lengths": [[1, 1, 3], [2, 2, 1], [3, 32, 0]],
        "says": "model runner V2 with asynchronous scheduling: vLLM's choice",
    }
    assert auto == asked == on_v2
    assert not_async["v2"]
    assert not not_async["async"]
    assert not_async["says"].endswith("with synchronous scheduling: vLLM's choice")
    assert not is_v1["v2"]
    assert is_v1["says"] == "model runner V1: engine.runner is v1"
    assert outside["says"] == "model runner V1: VLLM_USE_V2_MODEL_RUNNER=0"
    # V1 runs our own proposer: never vLLM's n-gram drafter.
    assert is_v1["method"] == outside["method"] == "custom_class"
    assert not_async["lengths"] is is_v1["lengths"] is outside["lengths"] is None
    assert refused["error"] == (
        "Reprise: engine.runner is v2, and this engine gets model runner V1: "
        "VLLM_USE_V2_MODEL_RUNNER=0."
    )
    assert not wrong["v2"]


@pytest.mark.engine
@pytest.mark.slow
def test_without_triton_it_is_v1(plain_environment: dict[str, str]) -> None:
    auto, refused = chosen([{}, {"settings": {"engine": {"runner": "v2"}}}], plain_environment)
    assert not auto["v2"]
    assert auto["says"] == "model runner V1: vLLM finds no Triton driver here"
    assert refused["error"].endswith("model runner V1: vLLM finds no Triton driver here.")


def fake_config(
    *, model: str = PROPOSER_PATH, setting: str | None = "auto", stages: int = 1
) -> Any:
    config = SimpleNamespace(
        speculative_config=SimpleNamespace(model=model),
        scheduler_config=SimpleNamespace(),
        parallel_config=SimpleNamespace(pipeline_parallel_size=stages),
        additional_config={"reprise": {"engine": {"runner": "wrong"}}},
    )
    if setting is not None:
        set_mark(config.scheduler_config, "runner", setting)
    return config


def left(config: Any) -> list[str]:
    """What is still said not to be supported."""
    both = ["speculative method 'custom_class'", OTHERS]
    return [
        feature.replace("speculative method ", "")
        for feature in runner_choice.unsupported_by_v2(lambda _: both, config)
    ]


def test_only_our_own_reason_is_taken_away() -> None:
    assert left(fake_config()) == [OTHERS]
    everything = ["'custom_class'", OTHERS]
    assert left(fake_config(model="some.other.Proposer")) == everything
    assert left(fake_config(setting="v1")) == everything
    assert left(fake_config(stages=2)) == everything
    assert left(fake_config(setting=None)) == everything, "its settings are wrong"


@pytest.mark.parametrize("problem_of", ["speculator of V2", "draft slots by request"])
def test_it_is_v1_where_v2_could_not_keep_its_promises(
    monkeypatch: pytest.MonkeyPatch, problem_of: str
) -> None:
    monkeypatch.setattr(
        runner_choice.registry,
        "problem",
        lambda feature, _: "has changed" if feature.value == problem_of else None,
    )
    assert left(fake_config()) == ["'custom_class'", OTHERS]


def test_a_request_has_the_slots_that_it_may_have() -> None:
    from vllm import SamplingParams

    from reprise.engine_ext.core.request_hints import RequestHints, with_hints

    plain, seeded = SamplingParams(), SamplingParams(seed=3)
    assert max_slots(None) is None
    assert max_slots(plain) is None
    assert max_slots(seeded) == 0
    assert max_slots(SamplingParams(seed=3, temperature=0.0)) is None
    assert max_slots(with_hints(plain, RequestHints(drafts=False))) == 0
    assert max_slots(with_hints(plain, RequestHints(max_draft=2))) == 2
    assert max_slots(with_hints(seeded, RequestHints(max_draft=2))) == 0
    assert max_slots(seeded, keeps_sample=True) is None
    assert max_slots(with_hints(seeded, RequestHints(max_draft=2)), keeps_sample=True) == 2


@pytest.mark.parametrize(
    ("on_v2", "verification", "shares_out", "keeps"),
    [
        (True, {}, None, True),
        (True, {"enabled": True}, False, True),
        (True, {"enabled": False}, False, False),
        (True, {}, True, False),
        (False, {}, False, True),
        (False, {"enabled": False}, False, False),
    ],
)
def test_a_seed_keeps_its_sample_where_drafts_are_verified_so(
    on_v2: bool, verification: dict[str, Any], shares_out: bool | None, keeps: bool
) -> None:
    config = SimpleNamespace(
        use_v2_model_runner=on_v2,
        parallel_config=SimpleNamespace(enable_batch_sharded_sampling=shares_out),
    )
    settings = RepriseConfig(verification=VerifyConfig(**verification))
    assert drafts_keep_samples(config, settings) is keeps
