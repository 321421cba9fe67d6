"""Methods against each other on real vLLM engines: one process a method and trace."""

from __future__ import annotations

import importlib.util
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from reprise.engine_ext.answer_page.records import CachedReply, RecordedTrace
from reprise.eval.demo_data.demo_model import DEMO_DTYPE, demo_model_path
from reprise.eval.live.engine_turns import LiveError, serve_in_stages
from reprise.eval.live.live_worker import (
    MAX_OUTPUT_TOKENS,
    LiveJob,
    LiveOutcome,
    speculative_config,
)
from reprise.eval.real_model.smollm2 import SMOLLM2, ModelError, smollm2_path
from reprise.eval.replay.methods import LIVE_ONLY_METHODS, METHODS, MethodError
from reprise.eval.replay.results import Percentiles, Run
from reprise.eval.replay.run_options import RunOptions
from reprise.eval.replay.semantic_cache import cached_replies, cached_rows
from reprise.eval.replay.traces import TraceRow
from reprise.eval.report.progress import Stage, progress_stages
from reprise.retrieval.search.embedding import Embedder

LIVE_METHODS = (*METHODS, *LIVE_ONLY_METHODS)
LEARN_FROM_ANSWERS = tuple(method for method in LIVE_METHODS if method not in ("none", "ngram"))
"""Methods to which it matters what was answered before."""


def live_methods(methods: Sequence[str], *, named: bool) -> list[str]:
    """Those that an engine can run; raises MethodError if one that was named cannot."""
    kept = [method for method in methods if method in LIVE_METHODS]
    if named and len(kept) < len(methods):
        dropped = next(method for method in methods if method not in LIVE_METHODS)
        raise MethodError(f"method {dropped!r} runs with --engine replay only")
    return kept


def run_live(
    options: RunOptions,
    methods: Sequence[str],
    traces: Mapping[str, Sequence[TraceRow]],
    recorded: Mapping[str, RecordedTrace],
) -> tuple[dict[str, Any], list[Run]]:
    """Serve every trace with every method; settings and results.

    The first answers are added to those of `recorded` that it has.

    Raises LiveError if vLLM is missing or the model does not load.
    """
    if importlib.util.find_spec("vllm") is None:
        raise LiveError("--engine vllm needs vLLM, which is not installed")
    methods = live_methods(methods, named=options.methods is not None)
    model = model_path(options.model, quiet=options.quiet)
    runs: list[Run] = []
    with progress_stages(quiet=options.quiet) as stage:
        for trace, rows in traces.items():
            reference: list[list[int]] | None = None
            page = recorded.get(trace)
            for group in method_groups(methods, take_turns=options.take_turns):
                name = f"{trace}: {', '.join(group)} (vLLM)"
                if group == ["semantic-cache"]:
                    run, replies = _run_semantic_cache(
                        options, model, trace, rows, reference, stage, name
                    )
                    runs.append(run)
                    if page is not None:
                        page.cached = replies[: len(page.questions)]
                    continue
                jobs = [
                    msgspec.structs.replace(
                        _live_job(options, model, method, rows),
                        learns_from_warm=method in LEARN_FROM_ANSWERS,
                        num_recorded=len(page.questions) if page is not None else 0,
                    )
                    for method in group
                ]
                outcomes = serve_in_stages(stage, name, jobs)
                for method, outcome in zip(group, outcomes, strict=True):
                    if method == "none":
                        reference = outcome.output_token_ids
                    run = run_of_outcome(trace, method, outcome, reference, cost=options.cost)
                    runs.append(run)
                    if page is not None:
                        page.answers[method] = outcome.records
                        say_what_is_unrecorded(method, outcome)
    settings = {
        "model": model,
        "concurrency": options.concurrency,
        "take_turns": options.take_turns,
    }
    return settings, runs


def say_what_is_unrecorded(method: str, outcome: LiveOutcome) -> None:
    """Say on standard error of how many answers a page cannot tell where tokens came from."""
    if outcome.num_unrecorded:
        print(
            f"the page does not tell where the tokens of {outcome.num_unrecorded} of "
            f"{len(outcome.records)} answers with {method} came from: the engine has not recorded "
            "their steps",
            file=sys.stderr,
        )


def model_path(name: str | None, *, quiet: bool) -> str:
    """Return the folder or name of a model: SmolLM2 fetched if need be, the demo model for None.

    Raises LiveError if it cannot be fetched.
    """
    if name != SMOLLM2:
        return name or str(demo_model_path())
    try:
        return str(smollm2_path(quiet=quiet))
    except ModelError as error:
        raise LiveError(str(error)) from error


def method_groups(methods: Sequence[str], *, take_turns: bool) -> list[list[str]]:
    """Which methods run at once, in order.

    The reference first: the others count how many of their outputs are identical to it. The
    semantic cache embeds its questions here, outside of its engine, and so has no turns.
    """
    first = sorted(methods, key=lambda method: method != "none")
    if not take_turns:
        return [[method] for method in first]
    alone = [method for method in first if method == "semantic-cache"]
    groups = [[method for method in first if method not in alone], alone]
    return [group for group in groups if group]


def _live_job(options: RunOptions, model: str, method: str, rows: Sequence[TraceRow]) -> LiveJob:
    return LiveJob(
        model=model,
        speculative_config=speculative_config(method, options.num_speculative_tokens),
        cpu_optimizations=method != "reprise-drafts-only",
        rows=list(rows),
        concurrency=options.concurrency,
        max_tokens=options.max_tokens or MAX_OUTPUT_TOKENS,
        seed=options.seed,
        dtype=options.dtype or (DEMO_DTYPE if model == str(demo_model_path()) else "auto"),
    )


def _run_semantic_cache(
    options: RunOptions,
    model: str,
    trace: str,
    rows: Sequence[TraceRow],
    reference: Sequence[Sequence[int]] | None,
    stage: Stage,
    name: str,
) -> tuple[Run, list[CachedReply | None]]:
    """An engine without speculation behind a semantic cache: it is sent what misses. The run, and
    what the cache replied to each request."""
    embedder = Embedder()
    served_from = cached_rows(rows, embedder=embedder, threshold=options.threshold)
    embedding_s = embedding_seconds(embedder, rows)
    timed = [number for number, row in enumerate(rows) if not row.warm]
    missed = [n for n, found in zip(timed, served_from, strict=True) if found is None]
    warm = [number for number, row in enumerate(rows) if row.warm]
    sent = {*warm, *missed}
    kept = [row for number, row in enumerate(rows) if number in sent]
    job = _live_job(options, model, "none", kept)
    (outcome,) = serve_in_stages(stage, f"{name}, what misses", [job])
    answers = dict(zip(warm, outcome.warm_output_token_ids, strict=True))
    answers.update(zip(missed, outcome.output_token_ids, strict=True))
    outcome.output_token_ids = [
        answers[number if found is None else found.row]
        for number, found in zip(timed, served_from, strict=True)
    ]
    outcome.wall_s += embedding_s
    run = run_of_outcome(trace, "semantic-cache", outcome, reference, cost=options.cost)
    hits = [n for n, found in enumerate(served_from) if found is not None]
    run.hit_rate = len(hits) / run.requests if run.requests else 0.0
    if reference is not None:
        # Not those of the model: a smaller batch may round otherwise.
        changed = sum(outcome.output_token_ids[n] != reference[n] for n in hits)
        run.changed_answers = changed / len(hits) if hits else 0.0
    return run, cached_replies(rows, served_from, answers)


def embedding_seconds(embedder: Embedder, rows: Sequence[TraceRow]) -> float:
    """Return what a semantic cache takes to embed the timed requests; the warm ones it embedded
    when they joined."""
    texts = [row.query_text for row in rows if not row.warm]
    began_s = time.perf_counter()
    embedder.encode(texts, ["timed"] * len(texts))  # for which nothing is remembered
    return time.perf_counter() - began_s


def run_of_outcome(
    trace: str,
    method: str,
    outcome: LiveOutcome,
    reference: Sequence[Sequence[int]] | None,
    *,
    cost: float,
) -> Run:
    """The run that an outcome makes; `reference` are the outputs without speculation."""
    outputs, steps, drafted = outcome.output_token_ids, outcome.steps, outcome.drafted_tokens
    tokens = sum(map(len, outputs))
    emitted = tokens - sum(map(bool, outputs))
    spent = steps + cost * drafted
    propose = outcome.propose_us
    return Run(
        trace=trace,
        method=method,
        requests=len(outputs),
        steps=steps,
        emitted_tokens=emitted,
        drafted_tokens=drafted,
        accepted_tokens=outcome.accepted_tokens,
        mean_acceptance_length=1 + outcome.accepted_tokens / steps if steps else None,
        acceptance_rate=outcome.accepted_tokens / drafted if drafted else None,
        drafted_per_step=drafted / steps if steps else None,
        model_speedup=emitted / spent if spent else None,
        propose_us=Percentiles(propose["p50"], propose["p99"]) if propose else None,
        bytes_per_cached_token=outcome.bytes_per_cached_token,
        by_source=outcome.by_source,
        wall_s=outcome.wall_s,
        output_tokens_per_s=tokens / outcome.wall_s,
        identical_outputs=(
            None
            if reference is None
            else sum(a == b for a, b in zip(outputs, reference, strict=True))
        ),
    )
