"""Record a model's own greedy answers to a trace's prompts, as a trace that replays can take.

    python eval/live/record_answers.py --model my-model --trace requests.jsonl --out recorded.jsonl

How often drafts are right depends on whose answers they are: a small model's are not those that a
trace's rows were recorded from. An engine without speculation answers all rows, warm ones too.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import msgspec
import typer
from tokenizers import Tokenizer

from reprise.eval.live.engine_turns import LiveError, serve_in_stages
from reprise.eval.live.live_worker import LiveJob
from reprise.eval.replay.token_rows import TokenizerError, load_tokenizer
from reprise.eval.replay.traces import TraceError, TraceRow, load_trace, save_trace
from reprise.eval.report.command_line import InputError, run_command
from reprise.eval.report.progress import progress_stages


def record_answers(
    rows: list[TraceRow], *, model: str, concurrency: int, dtype: str, quiet: bool = False
) -> list[TraceRow]:
    """Return the rows with what the model answers in place of what was recorded. A row whose answer
    is empty is left out.

    Raises:
        LiveError: the engine failed.
        TokenizerError: the model's folder has no tokenizer.
    """
    tokenizer: Tokenizer = load_tokenizer(model).tokenizer
    job = LiveJob(
        model=model,
        speculative_config=None,
        rows=[msgspec.structs.replace(row, warm=False) for row in rows],
        concurrency=concurrency,
        seed=0,
        dtype=dtype,
    )
    with progress_stages(quiet=quiet) as stage:
        (outcome,) = serve_in_stages(stage, "answering", [job])
    answers = [tokenizer.decode(token_ids) for token_ids in outcome.output_token_ids]
    return [
        msgspec.structs.replace(row, response=answer)
        for row, answer in zip(rows, answers, strict=True)
        if answer
    ]


def main(
    model: Annotated[str, typer.Option(help="Its folder.")],
    trace: Annotated[Path, typer.Option(help="Requests, JSON lines.")],
    out: Annotated[Path, typer.Option(help="The trace to write.")],
    limit: Annotated[int | None, typer.Option(min=1, help="First rows of the trace only.")] = None,
    concurrency: Annotated[int, typer.Option(min=1, help="Requests at a time.")] = 32,
    dtype: Annotated[str, typer.Option(help="As for vLLM.")] = "float32",
    quiet: Annotated[bool, typer.Option("--quiet", help="No progress.")] = False,
) -> None:
    """Record a model's own greedy answers to a trace's prompts."""
    if not out.resolve().parent.is_dir():
        raise InputError(f"{out}: its folder does not exist")
    try:
        rows = load_trace(trace)[:limit]
        answered = record_answers(
            rows, model=model, concurrency=concurrency, dtype=dtype, quiet=quiet
        )
    except (TraceError, TokenizerError, LiveError) as error:
        raise InputError(str(error)) from error
    save_trace(out, answered)
    print(f"{len(answered)} of {len(rows)} rows in {out}")


if __name__ == "__main__":
    sys.exit(run_command(main, name="record_answers.py"))
