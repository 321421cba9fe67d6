"""`min_p` and `logit_bias` on engines that speculate: let in, applied, and drafted for only where
drafted rows are held to them."""

from collections import Counter
from collections.abc import Iterator
from itertools import chain
from types import SimpleNamespace
from typing import Any

import pytest
from vllm.exceptions import VLLMValidationError
from vllm.sampling_params import SamplingParams
from vllm.v1.sample import logits_processor
from vllm.v1.worker import gpu_model_runner

from reprise.engine_ext.compat.patches import Feature, Role
from reprise.engine_ext.compat.registry import registry
from reprise.engine_ext.core.identity import PROPOSER_PATH
from reprise.engine_ext.worker import undrafted_settings
from reprise.engine_ext.worker.live_request import LiveRequest
from reprise.eval.demo_data.demo_trace import make_demo_trace
from reprise.eval.live.settled_report import settled_report

OURS = SimpleNamespace(model=PROPOSER_PATH)
ANOTHER = SimpleNamespace(model="some.other.Proposer")
SETTINGS: list[dict[str, Any]] = [{"min_p": 0.2}, {"logit_bias": {"5": -3.0}}]


def apply(role: Role) -> bool:
    return registry.apply(Feature.UNDRAFTED_SETTINGS, undrafted_settings, role=role)


@pytest.fixture
def as_before() -> Iterator[None]:
    """As vLLM comes. Afterwards as it was: engines of other tests may run in this process."""
    roles = [role for role in Role if registry.is_applied(Feature.UNDRAFTED_SETTINGS, role)]
    registry.revert(Feature.UNDRAFTED_SETTINGS)
    yield
    registry.revert(Feature.UNDRAFTED_SETTINGS)
    assert all(apply(role) for role in roles)


@pytest.mark.usefixtures("as_before")
@pytest.mark.parametrize("setting", SETTINGS)
def test_only_engines_with_our_proposer_take_them(setting: dict[str, Any]) -> None:
    params = SamplingParams(temperature=1.0, **setting)
    with pytest.raises(VLLMValidationError, match="not yet supported"):
        params._validate_spec_decode(OURS)
    assert apply(Role.API_SERVER)
    assert apply(Role.API_SERVER)
    params._validate_spec_decode(OURS)
    params._validate_spec_decode(None)
    with pytest.raises(VLLMValidationError, match="not yet supported"):
        params._validate_spec_decode(ANOTHER)


@pytest.mark.usefixtures("as_before")
def test_the_processors_are_built_for_our_proposer_only() -> None:
    assert apply(Role.WORKER)

    def built(speculative: Any, custom: Any = ()) -> list[str]:
        config = SimpleNamespace(
            speculative_config=speculative, scheduler_config=SimpleNamespace(max_num_seqs=4)
        )
        processors = gpu_model_runner.build_logitsprocs(config, "cpu", False, False, custom)
        return sorted(type(processor).__name__ for processor in processors.all)

    assert built(OURS) == [
        "LogitBiasLogitsProcessor",
        "MinPLogitsProcessor",
        "MinTokensLogitsProcessor",
    ]
    assert built(ANOTHER) == ["MinTokensLogitsProcessor"]
    with pytest.raises(ValueError, match="Custom logits processors are not supported"):
        built(OURS, ("some.processor",))


@pytest.mark.usefixtures("as_before")
def test_another_vllm_is_left_alone_on_both_sides(monkeypatch: pytest.MonkeyPatch) -> None:
    another = [*logits_processor.BUILTIN_LOGITS_PROCESSORS, object]
    before = gpu_model_runner.build_logitsprocs
    with monkeypatch.context() as patched:
        patched.setattr(logits_processor, "BUILTIN_LOGITS_PROCESSORS", another)
        assert not apply(Role.API_SERVER)
        with pytest.raises(VLLMValidationError):
            SamplingParams(min_p=0.5)._validate_spec_decode(OURS)
        assert not apply(Role.WORKER)
    assert gpu_model_runner.build_logitsprocs is before


@pytest.mark.parametrize("setting", [*SETTINGS, {"min_p": 1e-6}])
def test_they_are_drafted_for_only_where_drafts_are_held_to_them(setting: dict[str, Any]) -> None:
    def limit(*, keeps_sample: bool = False, **params: Any) -> int:
        live = LiveRequest(SamplingParams(temperature=1.0, max_tokens=100, **params), [1, 2, 3])
        live.num_prompt_tokens = 3
        return live.draft_limit(5, 16, keeps_sample=keeps_sample)

    assert limit() == 16
    assert limit(**setting) == 0
    assert limit(**setting, keeps_sample=True) == 16
    assert limit(**setting, keeps_sample=True, thinking_token_budget=3) == 0
    for penalty in ("repetition_penalty", "presence_penalty", "frequency_penalty"):
        # A penalty that comes before the bias is another one than after it.
        has_bias = "logit_bias" in setting
        assert limit(**setting, **{penalty: 1.5}, keeps_sample=True) == (0 if has_bias else 16)


@pytest.mark.engine
@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_beside_drafted_requests_they_say_what_plain_vllm_says(
    plain_llm: Any, reprise_llm: Any
) -> None:
    questions = [row.prompt for row in make_demo_trace(seed=0) if not row.warm][:24]
    chats = [[{"role": "user", "content": question}] for question in questions]

    def ask(llm: Any, settings: list[dict[str, Any]]) -> list[list[int]]:
        params = [SamplingParams(max_tokens=60, **setting) for setting in settings]
        outputs = llm.chat(chats, params, use_tqdm=False)
        return [list(output.outputs[0].token_ids) for output in outputs]

    greedy: dict[str, Any] = {"temperature": 0.0}
    sampled: dict[str, Any] = {"temperature": 1.5, "seed": 7}
    plainly = ask(plain_llm, [greedy] * len(chats))
    frequent = [token for token, _ in Counter(chain.from_iterable(plainly)).most_common(4)]
    kinds = [
        greedy,
        greedy | {"logit_bias": dict.fromkeys(frequent, -100.0)},
        greedy | {"logit_bias": dict.fromkeys(frequent, 4.0)},
        sampled,
        # High enough to cut most of the vocabulary off, low enough to leave choices.
        sampled | {"min_p": 0.2},
    ]
    settings = [kinds[index % len(kinds)] for index in range(len(chats))]
    expected = ask(plain_llm, settings)
    without = [kinds[0] if kinds.index(one) < 3 else sampled for one in settings]
    other = ask(plain_llm, without)
    for kind in range(len(kinds)):
        # Or nothing would be tested.
        is_set = kinds[kind] != (sampled if kind > 2 else greedy)
        assert (expected[kind :: len(kinds)] != other[kind :: len(kinds)]) == is_set
    for _ in range(3):
        (before,) = reprise_llm.collective_rpc("reprise_stats")
        assert ask(reprise_llm, settings) == expected
        after = settled_report(reprise_llm)
    # The greedy ones beside them were drafted for, and by now with success.
    assert after["provider"]["accepted"] > before["provider"]["accepted"]
    assert after["errors"] == {}
