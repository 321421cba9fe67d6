"""What a live run reports, and the demo's sentence, from outcomes made up by hand."""

import time
from collections.abc import Sequence

import pytest

from reprise.engine_ext.cli.answer_difference import Gap
from reprise.eval import demo
from reprise.eval.demo import said_of_gaps, summary
from reprise.eval.live import live
from reprise.eval.live.live import (
    embedding_seconds,
    live_methods,
    method_groups,
    run_of_outcome,
)
from reprise.eval.live.live_worker import LiveOutcome, speculative_config
from reprise.eval.replay.methods import MethodError
from reprise.eval.replay.results import Run
from reprise.eval.replay.run_options import RunOptions
from reprise.eval.replay.traces import TraceRow
from reprise.retrieval.search.embedding import Embedder, FloatArray


def outcome(outputs: list[list[int]], *, steps: int, drafted: int, accepted: int) -> LiveOutcome:
    return LiveOutcome(
        output_token_ids=outputs,
        warm_output_token_ids=[],
        steps=steps,
        drafted_tokens=drafted,
        accepted_tokens=accepted,
        wall_s=2.0,
    )


def test_a_live_run_counts_as_a_replay_does() -> None:
    reference = [[1, 2, 3, 4], [5, 6, 7], [8]]
    drafted = outcome([[1, 2, 3, 4], [5, 6, 9], [8]], steps=3, drafted=8, accepted=2)
    run = run_of_outcome("t", "reprise", drafted, reference, cost=0.125)
    assert run.emitted_tokens == 5
    assert run.mean_acceptance_length == pytest.approx(5 / 3)
    assert run.acceptance_rate == 0.25
    assert run.model_speedup == pytest.approx(5 / 4)
    assert run.output_tokens_per_s == 4.0
    assert run.identical_outputs == 2
    assert run_of_outcome("t", "m", drafted, None, cost=0).identical_outputs is None


def test_methods_of_an_engine() -> None:
    every = ["none", "semantic-cache", "suffix-best", "reprise", "reprise-drafts-only"]
    assert live_methods(every, named=False) == [m for m in every if m != "suffix-best"]
    with pytest.raises(MethodError, match="'suffix-best' runs with --engine replay only"):
        live_methods(["none", "suffix-best"], named=True)


def test_which_engines_run_at_once() -> None:
    methods = ["suffix", "semantic-cache", "reprise", "none"]
    one_by_one = [["none"], ["suffix"], ["semantic-cache"], ["reprise"]]
    assert method_groups(methods, take_turns=False) == one_by_one
    turns = [["none", "suffix", "reprise"], ["semantic-cache"]]
    assert method_groups(methods, take_turns=True) == turns
    assert method_groups(["semantic-cache"], take_turns=True) == [["semantic-cache"]]


def test_speculative_configs() -> None:
    assert speculative_config("none", 9) is None
    assert speculative_config("suffix", None) == {"method": "suffix"}
    assert speculative_config("ngram", 3) == {"method": "ngram", "num_speculative_tokens": 3}
    long = speculative_config("suffix-long", 7)
    assert long is not None
    assert long["suffix_decoding_max_tree_depth"] == 64
    assert long["num_speculative_tokens"] == 7
    reprise = speculative_config("reprise", None)
    assert reprise is not None
    assert reprise["model"].endswith(".CacheHitProposer")


def live_run(method: str, *, tokens_per_s: float, steps: int, identical: int = 4) -> Run:
    drafted = outcome([[1, 2]] * 4, steps=steps, drafted=0, accepted=0)
    run = run_of_outcome("demo", method, drafted, None, cost=0)
    run.output_tokens_per_s, run.identical_outputs = tokens_per_s, identical
    return run


def test_the_demos_sentence_says_good_and_bad() -> None:
    none = live_run("none", tokens_per_s=100.0, steps=1000)
    suffix = live_run("suffix", tokens_per_s=200.0, steps=400)
    good = summary([none, suffix, live_run("reprise", tokens_per_s=300.0, steps=250)])
    assert good == (
        "With Reprise vLLM gave the same 4 answers 3.00 times faster than without speculation,"
        " in 75% fewer steps, and was 50% ahead of the best peer, SuffixDecoding."
    )
    bad = summary([none, suffix, live_run("reprise", tokens_per_s=50.0, steps=1100, identical=3)])
    assert bad == (
        "With Reprise vLLM gave answers of which only 3 of 4 were the same 2.00 times slower than"
        " without speculation, in 10% more steps, and was 75% behind the best peer,"
        " SuffixDecoding."
    )
    same = summary([none, suffix, live_run("reprise", tokens_per_s=199.5, steps=400)])
    assert same.endswith("60% fewer steps, and was as fast as the best peer, SuffixDecoding.")
    slow = summary([none, suffix, live_run("reprise", tokens_per_s=99.9, steps=400)])
    assert "the same 4 answers as fast as without speculation, in 60%" in slow
    assert summary([none, live_run("reprise", tokens_per_s=150.0, steps=500)]).endswith("steps.")


def test_the_demo_says_how_close_the_logits_were() -> None:
    tie = Gap((15.95, 15.9), best=15.95)
    assert said_of_gaps([tie, Gap((15.95, 15.45), best=15.95)]) == (
        "Answers that differ: 2. Where each first does, the logits of the two tokens are at most"
        " 8.0 steps of bfloat16 apart; 1 of 2 are within 4 steps of the best, which rounding"
        " decides, in vLLM without speculation too."
    )


def test_the_demo_fits_into_minutes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Few requests, half of them earlier ones, with short answers of a real model."""
    monkeypatch.setattr(demo, "smollm2_path", lambda: "folder")
    scene = demo._real_scene(None)
    assert (scene.model, scene.dtype, scene.max_tokens) == ("folder", "bfloat16", 96)
    assert [row.warm for row in scene.rows] == [True] * 24 + [False] * 24
    assert sum(not row.warm for row in demo._real_scene(5).rows) == 5


def test_the_small_demo_fetches_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo, "smollm2_path", lambda: pytest.fail("no download"))
    assert demo._small_scene(3).dtype == "float32"


def test_only_what_a_semantic_cache_says_itself_counts_as_changed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The model's own answers may differ as well, where less is in the batch with them."""
    rows = [
        TraceRow(prompt="cancel my order", response="r", warm=True),
        TraceRow(prompt="cancel my order", response="r"),
        TraceRow(prompt="how is the weather today", response="r"),
        TraceRow(prompt="which train goes to Rome", response="r"),
    ]
    served = outcome([[4, 8], [5, 8]], steps=2, drafted=0, accepted=0)
    served.warm_output_token_ids = [[1, 2]]
    monkeypatch.setattr(live, "Embedder", lambda: Embedder("lexical"))
    monkeypatch.setattr(live, "serve_in_stages", lambda *_: [served])
    run, _ = live._run_semantic_cache(
        RunOptions(engine="vllm", model="m"), "m", "t", rows, [[1, 3], [4, 7], [5, 7]], None, "t"
    )
    assert (run.hit_rate, run.changed_answers) == (pytest.approx(1 / 3), 1.0)
    assert run.identical_outputs == 0


def test_a_semantic_cache_is_not_charged_for_what_it_holds() -> None:
    class Slow(Embedder):
        def encode(self, texts: Sequence[str], namespaces: Sequence[str] = ()) -> FloatArray:
            time.sleep(0.01 * len(texts))
            return super().encode(texts, namespaces)

    embedder = Slow("lexical")
    rows = [TraceRow(prompt=f"question {n}", response="r", warm=n >= 2) for n in range(300)]
    assert 0.02 <= embedding_seconds(embedder, rows) < 1.5
