"""Write docs/benchmarks.md: every table is made of rows in eval/results.

    python eval/report/benchmarks_page.py            write the page
    python eval/report/benchmarks_page.py --check    say whether it is as the rows have it

For each machine a table shows the newest row of each kind, and says above when, from which commit
and by which command its rows were measured.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from reprise.eval.report.benchmark_tables import (
    Row,
    check_table,
    corpus_table,
    drafting_table,
    engine_table,
    exact_table,
    figures_table,
    forecast_table,
    gpu_table,
    identity_table,
    markdown,
    number,
    pins_table,
    replay_table,
    samples_table,
    serving_table,
    step_table,
    upkeep_table,
    verification_table,
)
from reprise.eval.report.command_line import run_command
from reprise.eval.report.results_csv import RESULTS, ROOT, read_rows

PAGE = ROOT / "docs" / "benchmarks.md"
_VERSIONS = ("torch", "triton", "vllm")
_SAYS_WHAT_IT_COMPUTES_IN = ("NVIDIA", "AMX", "AVX")

HEAD = """# Benchmarks

<!-- Written by `python eval/report/benchmarks_page.py` from eval/results: change those instead. -->

Each table names the machine, the date, the commit and the command of its rows. A command appends
its rows to a file in `eval/results`; `python eval/report/benchmarks_page.py` then writes this page
anew. [measuring](measuring.md) explains the figures. A `+` after a commit: with changes that were
not committed.
"""
WITHDRAWN = """## Withdrawn

Rows that this page no longer shows, and why. They are in the repository's history.

- Serving, before 29 November 2026: the processor was not recorded, and plain vLLM, n-gram and
  SuffixDecoding ran with our plugin loaded, which on processors with AMX kept them off it
  ([decision 5](decisions/0005-cpu-kernels-and-baselines.md)). The demo model ran in bfloat16, in
  which two tokens can tie, so that answers could differ for another reason than drafts.
- Retrieval, and the first rows of drafting: the processor was not recorded.
"""


@dataclass(frozen=True, kw_only=True)
class Section:
    """One table of the page for each machine that has rows of it."""

    title: str
    about: str
    file: str
    command: str
    """Measures what is missing."""
    keys: Sequence[str]
    """Columns of the file that tell rows apart; of equal ones the newest counts."""
    table: Callable[[list[Row]], list[list[str]]]
    """Headings and cells of a machine's rows."""
    where: dict[str, str]
    """What rows of this table have in these columns."""

    def render(self) -> Iterator[str]:
        """Yield blocks of Markdown."""
        yield f"## {self.title}\n\n{self.about}\n"
        newest: dict[str, dict[tuple[str, ...], Row]] = {}
        for row in read_rows(RESULTS / self.file):
            if all(row[name] == value for name, value in self.where.items()):
                kept = newest.setdefault(row["machine"], {})
                kept.pop(key := tuple(row[name] for name in self.keys), None)
                kept[key] = row
        if not newest:
            yield f"There are no such rows now. This measures them:\n\n```\n{self.command}\n```\n"
        for machine, found in newest.items():
            rows = list(found.values())
            yield f"{origin(machine, rows)}\n"
            yield markdown(self.table(rows))


def origin(machine: str, rows: Sequence[Row]) -> str:
    """Return a sentence that says on what, when, from which commits and how rows were measured."""
    dates = _named("", sorted({row["time"][:10] for row in rows}))
    commits = list(dict.fromkeys(row["commit"] for row in rows))
    commands = list(dict.fromkeys(row["command"] for row in rows))
    versions = {f"{name} {row[name]}" for row in rows for name in _VERSIONS if row.get(name)}
    if not any(name in machine for name in _SAYS_WHAT_IT_COMPUTES_IN):
        versions.add("instruction set not recorded")
    measured_on = "; ".join([machine, *sorted(versions)])
    return (
        f"**{measured_on}**, {dates}, commit{'s' if len(commits) > 1 else ''} "
        f"{_named('`', commits)}: {_named('`', commands)}."
    )


def _named(quote: str, names: Sequence[str]) -> str:
    return ", ".join(f"{quote}{name}{quote}" for name in names)


_RUN = ("engine", "trace", "method", "model", "cost", "concurrency")
_ENGINE_COMMAND = "python eval/acceptance_rate.py --engine vllm --take-turns"
_FORECAST_COMMAND = (
    "python eval/benchmarks/bench_virtual_gpu.py --csv eval/results/bench_virtual_gpu.csv"
)
_ACCEPTANCE = "--csv eval/results/acceptance_rate.csv"
SECTIONS = (
    Section(
        title="Recorded answers, replayed",
        about="Exact greedy acceptance of recorded answers. MAL, the mean acceptance length, "
        "counts the bonus\ntoken; without drafts MAL and speedup are 1. Speedup counts a drafted "
        "token as the given cost\nof a step.",
        file="acceptance_rate.csv",
        command=f"python eval/acceptance_rate.py {_ACCEPTANCE}",
        keys=_RUN,
        table=replay_table,
        where={"engine": "replay"},
    ),
    Section(
        title="Real engines",
        about="Tokens/s of vLLM engines that serve the same requests, some at once, in turns; "
        "`identical`:\nanswers that are those of `none`, token for token.",
        file="acceptance_rate.csv",
        command=f"{_ENGINE_COMMAND} {_ACCEPTANCE}",
        keys=_RUN,
        table=engine_table,
        where={"engine": "vllm"},
    ),
    Section(
        title="Greedy answers that differ",
        about="Of the same requests, up to the first token in which two answers differ. `ties`: "
        "the logits of\nboth tokens are at most four steps of bfloat16 below the best, by "
        "transformers' own model in\nfloat32. `reprise-no-drafts`: an engine with Reprise and "
        "`features.drafts=false`.",
        file="identity.csv",
        command="python eval/identity.py --csv eval/results/identity.csv",
        keys=("model", "dtype", "method", "at_once", "against", "against_at_once"),
        table=identity_table,
        where={},
    ),
    Section(
        title="Samples with a seed",
        about="The same requests with seeds, in batches beside greedy ones and others without a "
        "seed, against plain\nvLLM's first answers to them: plain vLLM once more, and with drafts, "
        "the second time with each\nrequest's own answer to draft from. Accepted tokens are those "
        "of all requests, the last time.",
        file="same_samples.csv",
        command="python eval/same_samples.py --csv eval/results/same_samples.csv",
        keys=("model", "dtype", "runner", "answers", "temperature", "limits"),
        table=samples_table,
        where={},
    ),
    Section(
        title="Servers",
        about="OpenAI servers asked over HTTP, side by side, in rounds; medians, and the range of "
        "the rounds.",
        file="bench_serving.csv",
        command="python eval/benchmarks/bench_serving.py",
        keys=("model", "section", "method", "concurrency", "name"),
        table=serving_table,
        where={},
    ),
    Section(
        title="Exact hits",
        about="Look-ups in a tier, whole answers over HTTP, and what looking for them costs a "
        "miss. `generated`:\nwithout drafts; `drafted`: with the stored answer as a draft.",
        file="bench_exact_hits.csv",
        command="python eval/benchmarks/bench_exact_hits.py",
        keys=("section", "from", "requests", "name"),
        table=exact_table,
        where={},
    ),
    Section(
        title="Pinned prefixes",
        about="Two servers with the same few KV blocks, with pins and without. `first-token`: "
        "chats with one\nlong `system` prompt, and between any two of them prompts that evict "
        "whatever may be evicted.\n`nothing-to-pin`: prompts that have nothing in common.",
        file="bench_kv_pins.csv",
        command="python eval/benchmarks/bench_kv_pins.py",
        keys=("section", "model", "pins", "requests", "name"),
        table=pins_table,
        where={},
    ),
    Section(
        title="A drafting step",
        about="Microseconds a request and step, medians, drafts of up to 16 tokens; all methods "
        "in turns.",
        file="bench_drafts.csv",
        command="python eval/benchmarks/bench_drafts.py --only step",
        keys=("method", "batch", "context"),
        table=step_table,
        where={"bench": "step"},
    ),
    Section(
        title="The corpus of earlier answers",
        about="What a cached token takes, and how fast answers are taken in, by one thread.",
        file="bench_drafts.csv",
        command="python eval/benchmarks/bench_drafts.py --only corpus",
        keys=("method", "tokens"),
        table=corpus_table,
        where={"bench": "corpus"},
    ),
    Section(
        title="Steps while the cache changes",
        about="How long a step of 8 requests waits for the cache of answers, and how long it "
        "takes, with 12\nmillion cached tokens.",
        file="bench_upkeep.csv",
        command="python eval/benchmarks/bench_drafts.py --only upkeep",
        keys=("cache",),
        table=upkeep_table,
        where={},
    ),
    Section(
        title="Verification on a GPU",
        about="Microseconds of verifying a batch's drafts, medians with a cold L2 cache: "
        "`verify_drafts`, plain\ntorch and vLLM's rejection sampler; `ratio`: vLLM's time over "
        "ours.",
        file="bench_verify.csv",
        command="python eval/benchmarks/bench_verify.py",
        keys=("batch", "drafts", "vocab", "sampling", "implementation"),
        table=verification_table,
        where={},
    ),
    Section(
        title="Engines on a GPU",
        about="Tokens/s of vLLM engines that are up at once, of which one serves at a time; cold "
        "requests\nfirst, then warm ones; speed to `none`. `identical`: answers of the first "
        "engine that are those of\n`none`. The model is one of 4 million parameters padded to "
        "the shape of Llama 3.1 8B\n([measuring](measuring.md#a-small-model-at-the-price-of-a-"
        "large-one)).",
        file="gpu.csv",
        command="python eval/gpu/measure.py --out eval/results --model MODEL --pad-to padded-8b",
        keys=("model", "workload", "method"),
        table=gpu_table,
        where={},
    ),
    Section(
        title="Drafting on a GPU",
        about="Median time of the launches that draft for a step, in a CUDA graph with a cold L2. "
        "Tokens of\ncontext, near answers and corpus are those of each request.",
        file="bench_draft_kernel.csv",
        command="python eval/benchmarks/bench_draft_kernel.py --quick",
        keys=("batch", "drafts", "context", "near", "sorted", "recent"),
        table=drafting_table,
        where={},
    ),
    Section(
        title="Engines on a GPU, in virtual time",
        about="A forecast: recorded answers replayed on steps that cost what they were measured "
        "to cost, with\na model of 8 billion parameters ([measuring](measuring.md#before-a-gpu-is-"
        "there)). Speed to `none`.\nThe answers are the support model's own; support has 100 rows "
        "in the cache, chat_cold nothing.\n`v2` drafts by the copies that a device makes, at 3 us "
        "for each position, and knows which steps\nhave a full CUDA graph. What was measured "
        "stands in the table of\n[engines on a GPU](#engines-on-a-gpu). All busy: as long as "
        "requests are waiting; the end of a run, when\never fewer are there, gains more.",
        file="bench_virtual_gpu.csv",
        command=_FORECAST_COMMAND,
        keys=("trace", "warm_rows", "engine", "concurrency"),
        table=forecast_table,
        where={"section": "forecast"},
    ),
    Section(
        title="How far off virtual time is",
        about="Runs that were measured on an H200 ([measurements](measurements.md#a-live-engine-on-"
        "a-gpu)),\nreplayed with the measured model's own answers. Speed to `none`. SuffixDecoding "
        "has not changed since\nand says how right the costs are. `v1` and `v1-ahead` run the "
        "drafts of now against figures of\nthen: what made the losses of `v1-ahead` has been "
        "changed since, and which rows it was asked for is\nnot recorded. Costs that were not "
        "measured were chosen so that `suffix` and `v1` come out.",
        file="bench_virtual_gpu.csv",
        command=f"{_FORECAST_COMMAND} --check",
        keys=("engine", "trace", "concurrency", "requests"),
        table=check_table,
        where={"section": "check"},
    ),
    Section(
        title="Retrieval",
        about="Finding, storing and embedding, in the retrieval process.",
        file="bench_retrieval.csv",
        command="python eval/benchmarks/bench_retrieval.py",
        keys=("section", "figure"),
        table=figures_table,
        where={},
    ),
    Section(
        title="A cache bigger than a machine",
        about="What a small memory keeps of the gain, what holding nearly the same answers once "
        "costs, and Milvus\nLite and Redis with many answers of 150 tokens.",
        file="bench_scale.csv",
        command="python eval/benchmarks/bench_scale.py",
        keys=("section", "figure", "unit"),
        table=figures_table,
        where={},
    ),
)


def micro_section() -> Iterator[str]:
    """Yield blocks of Markdown: the baselines that `make bench-compare` compares with."""
    yield (
        "## Micro-benchmarks\n\nThe baselines of `make bench-compare`, a file for each kind of "
        "machine: medians.\n"
    )
    for path in sorted((RESULTS / "micro").glob("*.json")):
        document: dict[str, Any] = json.loads(path.read_text())
        about = document["machine_info"]["machine"]
        row = {
            "time": document["datetime"],
            "commit": document["commit_info"]["id"],
            "command": "python eval/micro_benchmarks.py --baseline",
        }
        yield f"{origin(about, [row])}\n"
        table = [["benchmark", "median, us", "rounds"]]
        for one in sorted(document["benchmarks"], key=lambda one: one["fullname"]):
            file, _, name = one["fullname"].rpartition("/")[2].partition("::")
            label = f"{file.removeprefix('bench_').removesuffix('.py')}: {name}"
            stats = one["stats"]
            table.append([label, number(stats["median"] * 1e6, 2), number(stats["rounds"], 0)])
        yield markdown(table)


def render_page() -> str:
    """Return the page as the rows have it."""
    blocks = [HEAD]
    for section in SECTIONS:
        blocks += section.render()
    return "\n".join([*blocks, *micro_section(), WITHDRAWN])


def main(
    check: Annotated[
        bool, typer.Option("--check", help="Only say whether the page is as the rows have it.")
    ] = False,
    output: Annotated[Path, typer.Option(help="The page.")] = PAGE,
) -> int:
    """Write docs/benchmarks.md from the rows in eval/results."""
    page = render_page()
    if check:
        is_same = output.is_file() and output.read_text(encoding="utf-8") == page
        print(f"{output} is {'' if is_same else 'not '}what eval/results says")
        return 0 if is_same else 1
    output.write_text(page, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(run_command(main, name="benchmarks_page.py"))
