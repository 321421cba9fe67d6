"""What each part of drafting is worth: Reprise replayed with one part taken away or replaced.

    python eval/ablation.py --tokenizer gpt2.json support.jsonl text_to_sql.jsonl

One line a trace and part: tokens drafted a step, mean acceptance length, and speedup at a cost of
0.02 a drafted token, also as a share of that of all parts together.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated

import typer

from reprise.eval.replay.replay import replay
from reprise.eval.replay.reprise_drafter import RepriseDrafter
from reprise.eval.replay.results import run_of_counts
from reprise.eval.replay.token_rows import (
    IntArray,
    TokenizerError,
    TokenRow,
    load_tokenizer,
    tokenize_rows,
)
from reprise.eval.replay.traces import TraceError, load_trace
from reprise.eval.report.command_line import InputError, run_command
from reprise.eval.report.machine import describe_machine
from reprise.retrieval.api.answer import AnswerUpdate
from reprise.retrieval.search.embedding import Embedder
from reprise.retrieval.search.token_overlap import TokenOverlap
from reprise.spec.api.config import DraftConfig
from reprise.spec.batching.request import Request

COST = 0.02
MAX_DRAFT_TOKENS = 64
FIXED_LENGTH = 8


class WithoutNearAnswers(RepriseDrafter):
    """Retrieval runs, but attaches nothing."""

    def look_up(self, row: TokenRow) -> None:
        super().look_up(row)
        self._near_answers = []


class NearByTokens(RepriseDrafter):
    """Near answers by shared tokens, as requests have them before any is embedded."""

    def prepare(self, rows: Sequence[TokenRow]) -> None:
        self._overlap = TokenOverlap()
        super().prepare(rows)

    def look_up(self, row: TokenRow) -> None:
        super().look_up(row)
        max_near = DraftConfig().max_near_answers
        self._near_answers = self._overlap.search("", row.prompt_token_ids, count=max_near)

    def _take(self, update: AnswerUpdate) -> None:
        super()._take(update)
        self._overlap.apply(update)


class WithoutCorpus(RepriseDrafter):
    """Requests live in a namespace whose corpus stays empty."""

    def start(self, row: TokenRow) -> None:
        self._request_id = row.request_id
        self._provider.start(row.request_id, row.prompt_token_ids, namespace="empty")
        self._provider.attach(row.request_id, self._near_answers)


class WithoutContext(RepriseDrafter):
    """A request's own places are forgotten as soon as they are noted."""

    def start(self, row: TokenRow) -> None:
        super().start(row)
        self._forget()

    def observe(self, token_ids: IntArray) -> None:
        super().observe(token_ids)
        self._forget()

    def _forget(self) -> None:
        request = self._provider._live[self._request_id]
        assert isinstance(request, Request)
        request._table.fill(0)


def variants(embedder: Embedder, cost: float) -> dict[str, Callable[[], RepriseDrafter]]:
    """Name to a fresh drafter."""

    def of(kind: type[RepriseDrafter]) -> Callable[[], RepriseDrafter]:
        return lambda: kind(embedder=embedder, cost=cost, draft_length=MAX_DRAFT_TOKENS)

    return {
        "all": of(RepriseDrafter),
        "near answers by shared tokens": of(NearByTokens),
        "without near answers": of(WithoutNearAnswers),
        "without clauses": lambda: RepriseDrafter(
            embedder=embedder, cost=cost, draft_length=MAX_DRAFT_TOKENS, clauses=False
        ),
        "without the corpus": of(WithoutCorpus),
        "without the context": of(WithoutContext),
        # At no cost drafts go on down to hopeless tokens, so only the bound ends them.
        f"without length control, {FIXED_LENGTH} tokens": lambda: RepriseDrafter(
            embedder=embedder, cost=0.0, draft_length=FIXED_LENGTH
        ),
    }


def main(
    traces: Annotated[list[Path], typer.Argument(help="JSONL traces.")],
    tokenizer: Annotated[str, typer.Option(help="A tokenizers.Tokenizer file.")],
) -> None:
    """Replay each trace with all parts, then without one at a time."""
    try:
        encoder = load_tokenizer(tokenizer)
        loaded = [(trace, tokenize_rows(load_trace(str(trace)), encoder)) for trace in traces]
    except (TokenizerError, TraceError) as error:
        raise InputError(str(error)) from error
    embedder = Embedder()
    for trace, rows in loaded:
        whole = None
        for name, make in variants(embedder, COST).items():
            drafter = make()
            run = run_of_counts(trace.stem, name, replay(drafter, rows), cost=COST)
            drafter.close()
            speedup = run.model_speedup or 0.0
            whole = whole or speedup
            print(
                f"{trace.stem:20}  {name:34}  drafted {run.drafted_per_step or 0.0:6.3f}"
                f"  MAL {run.mean_acceptance_length or 0.0:.3f}  speedup {speedup:.3f}"
                f"  of all {speedup / whole:.3f}",
                flush=True,
            )
    print(f"Measured on {describe_machine()}.")


if __name__ == "__main__":
    sys.exit(run_command(main, name="ablation.py"))
