"""Benchmark of drafting: time per step and per drafted token, memory and insertion of the corpus.

    python eval/benchmarks/bench_drafts.py   # everything, rows appended to eval/results
    python eval/benchmarks/bench_drafts.py --quick   # the small sizes
    python eval/benchmarks/bench_drafts.py --only upkeep   # one part: step, corpus or upkeep

Reprise, SuffixDecoding (arctic-inference) and vLLM's n-gram proposer do the same work in the same
run: requests whose answers share paragraphs with a cache of earlier answers, followed token by
token with exact greedy acceptance. Times are those of one core, or two where a row says so. The
part `upkeep` (bench_upkeep.py) times steps while the cache changes.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
import typer

from reprise.eval.benchmarks.bench_upkeep import UPKEEP_FIELDS, bench_upkeep
from reprise.eval.report.command_line import run_command
from reprise.eval.report.machine import describe_machine
from reprise.eval.report.results_csv import RESULTS, append_rows
from reprise.spec import DraftConfig, DraftProvider
from reprise.spec.api.near_answer import PlainNearAnswer

RESULTS_FILE = RESULTS / "bench_drafts.csv"
UPKEEP_RESULTS = RESULTS / "bench_upkeep.csv"
VOCABULARY = 50_000
ANSWER = 128
NEAR = 32
MAX_DRAFT_TOKENS = 16
ROUNDS = 9
IntArray = npt.NDArray[np.int32]


class Work(NamedTuple):
    """Requests with prompt, recorded answer and near answers, and the cache before them."""

    cache: list[IntArray]
    prompts: list[IntArray]
    answers: list[list[int]]
    near: list[list[int]]


def make_answers(count: int, seed: int) -> list[IntArray]:
    """Answers of ANSWER tokens out of 400 paragraphs of 16 tokens, one token in 12 replaced."""
    random = np.random.default_rng(seed)
    paragraphs = (np.random.default_rng(0).zipf(1.2, (400, 16)) % VOCABULARY).astype(np.int32)
    answers = paragraphs[random.integers(0, 400, (count, ANSWER // 16))].reshape(count, ANSWER)
    replaced = random.random(answers.shape) < 1 / 12
    answers[replaced] = random.integers(0, VOCABULARY, int(replaced.sum()))
    return list(answers)


def make_work(batch: int, context: int) -> Work:
    cache = make_answers(400, 1)
    answers = make_answers(batch, 2)
    random = np.random.default_rng(3)
    prompts = [
        np.concatenate(make_answers(max(1, context // ANSWER), 10 + i))[:context]
        for i in range(batch)
    ]
    near = [random.integers(0, len(cache), NEAR).tolist() for _ in range(batch)]
    return Work(cache, prompts, [answer.tolist() for answer in answers], near)


class Drafter(Protocol):
    """One method under test."""

    def start(self, work: Work) -> None: ...

    def step(self, emitted: list[list[int]]) -> list[list[int]]: ...


class RepriseDrafter:
    def __init__(self, num_threads: int) -> None:
        self._provider = DraftProvider(
            DraftConfig(
                num_speculative_tokens=MAX_DRAFT_TOKENS, verify_cost=0.02, num_threads=num_threads
            )
        )

    def start(self, work: Work) -> None:
        for i, tokens in enumerate(work.cache):
            self._provider.add_answer(str(i), tokens)
        self._ids = [str(i) for i in range(len(work.prompts))]
        for i, near in enumerate(work.near):
            self._provider.start(str(i), work.prompts[i])
            empty = np.zeros(0, np.int32)
            found = [PlainNearAnswer(str(k), 0.7, empty, work.cache[k]) for k in near]
            self._provider.attach(str(i), found)

    def step(self, emitted: list[list[int]]) -> list[list[int]]:
        return self._provider.step(self._ids, emitted)


class SuffixDrafter:
    def __init__(self) -> None:
        from arctic_inference.suffix_decoding import SuffixDecodingCache

        self._cache = SuffixDecodingCache(max_tree_depth=24, max_cached_requests=-1)

    def start(self, work: Work) -> None:
        for i, tokens in enumerate(work.cache):
            self._cache.start_request(f"c{i}", tokens[:1])
            self._cache.add_active_response(f"c{i}", tokens.tolist())
            self._cache.stop_request(f"c{i}")
        self._texts = [prompt.tolist() for prompt in work.prompts]
        for i, prompt in enumerate(work.prompts):
            self._cache.start_request(str(i), prompt)

    def step(self, emitted: list[list[int]]) -> list[list[int]]:
        drafts = []
        for i, tokens in enumerate(emitted):
            self._cache.add_active_response(str(i), tokens)
            self._texts[i] += tokens
            pattern = np.array(self._texts[i][-24:], np.int32)
            draft = self._cache.speculate(
                str(i),
                pattern,
                max_spec_tokens=MAX_DRAFT_TOKENS,
                max_spec_factor=1.0,
                min_token_prob=0.1,
            )
            drafts.append(list(draft.token_ids))
        return drafts


class NgramDrafter:
    """vLLM's compiled prompt look-up, as its proposer calls it, one request after the other."""

    def __init__(self) -> None:
        from vllm.v1.spec_decode.ngram_proposer import (
            _find_longest_matched_ngram_and_propose_tokens,
        )

        self._find: Callable[..., Any] = _find_longest_matched_ngram_and_propose_tokens

    def start(self, work: Work) -> None:
        self._lengths = [len(prompt) for prompt in work.prompts]
        self._texts = [np.zeros(n + 2 * ANSWER, np.int32) for n in self._lengths]
        for text, prompt in zip(self._texts, work.prompts, strict=True):
            text[: len(prompt)] = prompt

    def step(self, emitted: list[list[int]]) -> list[list[int]]:
        drafts = []
        for i, tokens in enumerate(emitted):
            begin, end = self._lengths[i], self._lengths[i] + len(tokens)
            self._texts[i][begin:end] = tokens
            self._lengths[i] = end
            found = self._find(
                origin_tokens=self._texts[i][:end],
                min_ngram=2,
                max_ngram=5,
                max_model_len=1 << 20,
                k=MAX_DRAFT_TOKENS,
            )
            drafts.append(found.tolist())
        return drafts


def follow(drafter: Drafter, work: Work, steps: int) -> Iterator[tuple[float, int, int]]:
    """Run the requests; yields per step (seconds, drafted, emitted) of the whole batch."""
    at = [1] * len(work.answers)
    emitted = [answer[:1] for answer in work.answers]
    for _ in range(steps):
        began = time.perf_counter()
        drafts = drafter.step(emitted)
        seconds = time.perf_counter() - began
        for i, (answer, draft) in enumerate(zip(work.answers, drafts, strict=True)):
            accepted = 0
            room = len(answer) - at[i] - 1
            while accepted < min(len(draft), room) and draft[accepted] == answer[at[i] + accepted]:
                accepted += 1
            emitted[i] = answer[at[i] : at[i] + accepted + 1]
            at[i] += len(emitted[i])
        yield seconds, sum(map(len, drafts)), sum(map(len, emitted))


def bench_steps(name: str, make: Callable[[], Drafter], batch: int, context: int) -> dict[str, Any]:
    """One row: microseconds per request and step, and per drafted token, medians over steps."""
    steps = 24
    work = make_work(batch, context)
    drafter = make()
    drafter.start(work)
    rows = list(follow(drafter, work, steps))[4:]
    per_request = [1e6 * seconds / batch for seconds, _, _ in rows]
    drafted = sum(row[1] for row in rows)
    return {
        "bench": "step",
        "method": name,
        "batch": batch,
        "context": context,
        "us_per_request_p50": round(float(np.median(per_request)), 2),
        "us_per_request_p80": round(float(np.quantile(per_request, 0.8)), 2),
        "us_per_drafted": round(1e6 * sum(row[0] for row in rows) / max(1, drafted), 2),
        "drafted_per_step": round(drafted / (len(rows) * batch), 2),
        "emitted_per_step": round(sum(row[2] for row in rows) / (len(rows) * batch), 3),
    }


def bench_in_turns(
    methods: Mapping[str, Callable[[], Drafter]], batch: int, context: int
) -> Iterator[dict[str, Any]]:
    """A row for each method: its median of ROUNDS, in each of which all methods have their turn, so
    that a slow minute of the machine meets all of them or is left out."""
    rounds = [
        {name: bench_steps(name, make, batch, context) for name, make in methods.items()}
        for _ in range(ROUNDS)
    ]
    for name in methods:
        rows = sorted((done[name] for done in rounds), key=lambda row: row["us_per_request_p50"])
        yield rows[ROUNDS // 2]


def bench_corpus(tokens: int) -> Iterator[dict[str, Any]]:
    """Rows: insertion rate and bytes per cached token."""
    from arctic_inference.suffix_decoding import SuffixDecodingCache

    answers = make_answers(tokens // ANSWER, 4)
    provider = DraftProvider(DraftConfig(max_corpus_bytes=1 << 32))
    began = time.perf_counter()
    for i, answer in enumerate(answers):
        provider.add_answer(str(i), answer)
    seconds = time.perf_counter() - began
    stats = provider.stats()
    row = {"bench": "corpus", "tokens": tokens}
    yield {
        **row,
        "method": "reprise",
        "tokens_per_s": round(stats.cached_tokens / seconds),
        "bytes_per_token": round(stats.bytes / stats.cached_tokens, 2),
    }
    del provider
    cache = SuffixDecodingCache(max_tree_depth=24, max_cached_requests=-1)
    began = time.perf_counter()
    for i, answer in enumerate(answers):
        cache.start_request(str(i), answer[:1])
        cache.add_active_response(str(i), answer.tolist())
        cache.stop_request(str(i))
    seconds = time.perf_counter() - began
    yield {
        **row,
        "method": "suffix",
        "tokens_per_s": round(tokens / seconds),
        "bytes_per_token": round(cache._global_tree.estimate_memory() / tokens, 2),
    }


FIELDS = (
    "bench", "method", "batch", "context", "tokens",
    "us_per_request_p50", "us_per_request_p80", "us_per_drafted", "drafted_per_step",
    "emitted_per_step", "tokens_per_s", "bytes_per_token",
)  # fmt: skip


def record(row: dict[str, Any], path: Path, fields: Sequence[str]) -> None:
    """Append one row to a file of results, and print it."""
    append_rows(path, [row], fields=fields)
    print("  ".join(f"{key}={value}" for key, value in row.items()), flush=True)


def bench_all_steps(*, quick: bool) -> Iterator[dict[str, Any]]:
    """Rows of `bench_steps` for all methods and sizes."""
    methods: dict[str, Callable[[], Drafter]] = {
        "reprise": lambda: RepriseDrafter(1),
        "reprise-2-threads": lambda: RepriseDrafter(2),
        "suffix": SuffixDrafter,
        "ngram": NgramDrafter,
    }
    for batch in (1, 8, 64) if quick else (1, 8, 64, 256):
        for context in (200, 2000) if quick else (200, 2000, 20_000):
            yield from bench_in_turns(methods, batch, context)


def main(
    quick: Annotated[bool, typer.Option(help="Only the small sizes.")] = False,
    only: Annotated[
        Literal["step", "corpus", "upkeep"] | None, typer.Option(help="Only this part.")
    ] = None,
) -> None:
    """Time drafting, and its corpus of earlier answers, against the same work by its peers."""
    print(f"Measured on {describe_machine()}.")
    DraftProvider(DraftConfig(num_threads=2)).warm_up()
    if only in ("step", None):
        for row in bench_all_steps(quick=quick):
            record(row, RESULTS_FILE, FIELDS)
    if only in ("corpus", None):
        for tokens in (100_000,) if quick else (100_000, 1_000_000, 5_000_000):
            for row in bench_corpus(tokens):
                record(row, RESULTS_FILE, FIELDS)
    if only in ("upkeep", None):
        answers = make_answers((1_000_000 if quick else 12_000_000) // ANSWER, 5)
        for row in bench_upkeep(answers, steps=500 if quick else 3000):
            record(row, UPKEEP_RESULTS, UPKEEP_FIELDS)


if __name__ == "__main__":
    sys.exit(run_command(main, name="bench_drafts.py"))
