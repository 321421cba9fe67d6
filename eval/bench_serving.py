"""Figures of serving, from real OpenAI servers: exact hits, what a miss costs, methods compared.

    python eval/bench_serving.py                                 every section, on the demo model
    python eval/bench_serving.py --only exact,miss               these
    python eval/bench_serving.py --model FOLDER --trace FILE.jsonl --plot docs/serving
    python eval/bench_serving.py --vllm-bench                    vLLM's own `bench serve` as well

Sections: `exact` (time to first token and speed of exact hits), `miss` (throughput of what is not
in the cache against plain vLLM, in alternating rounds), `methods` (throughput and latency by method
and concurrency, and near answers in time). Rows are appended to a CSV.
"""

import argparse
import asyncio
import signal
import statistics
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from reprise.eval.serving_load import MODEL_NAME, SPECULATIVE, Server, ask_all, load_of, running
from reprise.eval.serving_report import ROOT, append_csv, save_plots, show
from reprise.eval.traces import TraceError, TraceRow, load_trace

SECTIONS = ("exact", "miss", "methods")
# Every request generates, and its answer joins: drafting is measured, not repetition.
_GENERATE = {"x-reprise-cache": "refresh"}
_GENERATE_WITHOUT_DRAFTS = {**_GENERATE, "x-reprise-drafts": "off"}


def bench_exact(settings: argparse.Namespace, rows: list[TraceRow]) -> list[dict[str, Any]]:
    """Exact hits against generating, one request at a time."""
    questions = [row.prompt for row in rows][: settings.requests]
    asked: dict[str, Any] = {"concurrency": 1, "max_tokens": settings.max_tokens}
    with running(settings.model, "reprise") as (server,):
        asyncio.run(ask_all(server, questions[:4], **asked, headers=_GENERATE))
        generated, _ = asyncio.run(
            ask_all(server, questions, **asked, headers=_GENERATE_WITHOUT_DRAFTS)
        )
        hits, _ = asyncio.run(ask_all(server, questions, **asked, headers={}))
    changed = sum(hit.text != made.text for hit, made in zip(hits, generated, strict=True))
    if changed:
        raise RuntimeError(f"{changed} of {len(hits)} exact hits differ from what was generated")
    return [
        _row("exact", "first token of a hit, p50", _p50_ms([hit.first_token_s for hit in hits])),
        _row("exact", "whole hit, p50", _p50_ms([hit.whole_s for hit in hits])),
        _row("exact", "whole generation, p50", _p50_ms([made.whole_s for made in generated])),
        _row(
            "exact",
            "generation / hit, median",
            statistics.median(
                made.whole_s / hit.whole_s for made, hit in zip(generated, hits, strict=True)
            ),
            unit="x",
        ),
        _row("exact", "identical answers", 100.0, unit="%"),
    ]


class Contender(NamedTuple):
    """A way to serve what is not in the cache."""

    name: str
    server: Server
    headers: dict[str, str]


def bench_miss(settings: argparse.Namespace, rows: list[TraceRow]) -> list[dict[str, Any]]:
    """Throughput of misses against plain vLLM.

    `drafts off`: a server of ours that looks up, generates and stores. `nothing to reuse`: all of
    it, search and drafts included, each request in a namespace that has seen nothing.
    """
    questions = [row.prompt for row in rows][: settings.requests]
    found = []
    with running(settings.model, "none", "reprise") as (plain, ours):
        contenders = (
            Contender("plain vLLM", plain, {}),
            Contender("drafts off", ours, _GENERATE_WITHOUT_DRAFTS),
            Contender("nothing to reuse", ours, {}),
        )
        for each in contenders:
            asyncio.run(ask_all(each.server, questions, concurrency=8, max_tokens=8, headers={}))
        for concurrency in settings.concurrency:
            speeds = _alternate(settings, contenders, questions, concurrency)
            for each in contenders:
                own = [speed[each.name] for speed in speeds]
                ratios = [speed[each.name] / speed["plain vLLM"] for speed in speeds]
                common = {"method": each.name, "concurrency": concurrency}
                for name, values, unit, spread in (
                    ("throughput, median", own, "tok/s", ".0f"),
                    ("throughput / plain vLLM, median of rounds", ratios, "x", ".3f"),
                ):
                    if each.server is plain and unit == "x":
                        continue
                    note = f"{min(values):{spread}} to {max(values):{spread}}"
                    row = _row("miss", name, statistics.median(values), unit=unit, note=note)
                    found.append({**row, **common})
    return found


def _alternate(
    settings: argparse.Namespace,
    contenders: Sequence[Contender],
    questions: Sequence[str],
    concurrency: int,
) -> list[dict[str, float]]:
    """Output tokens per second by contender and round; every other round runs backwards, so that
    what drifts evenly on the machine cancels.

    Raises:
        RuntimeError: the contenders' answers differ.
    """
    speeds = []
    answers: dict[str, list[str]] = {}
    for number in range(settings.rounds):
        speed = {}
        for each in contenders[:: -1 if number % 2 else 1]:
            timings, wall_s = asyncio.run(
                ask_all(
                    each.server,
                    questions,
                    concurrency=concurrency,
                    max_tokens=settings.max_tokens,
                    headers=each.headers,
                    walls=f"{each.name.replace(' ', '-')}-{concurrency}-{number}",
                )
            )
            speed[each.name] = load_of(timings, wall_s).tokens_per_s
            answers[each.name] = [timing.text for timing in timings]
        if any(given != answers["plain vLLM"] for given in answers.values()):
            raise RuntimeError(f"at concurrency {concurrency} answers differ from plain vLLM's")
        speeds.append(speed)
    return speeds


def bench_methods(settings: argparse.Namespace, rows: list[TraceRow]) -> list[dict[str, Any]]:
    """Each method on warm servers of its own; each concurrency gets questions of its own."""
    warm = [row.prompt for row in rows if row.warm][: settings.warm]
    fresh = [row.prompt for row in rows if not row.warm]
    found = []
    wanted: dict[int, list[str]] = {}
    for method in settings.methods:
        with running(settings.model, method) as (server,):
            asked: dict[str, Any] = {"max_tokens": settings.max_tokens, "headers": _GENERATE}
            asyncio.run(ask_all(server, warm or fresh[:4], concurrency=8, **asked))
            for index, concurrency in enumerate(settings.concurrency):
                questions = fresh[index :: len(settings.concurrency)][: settings.requests]
                before = server.worker() if method == "reprise" else {}
                timings, wall_s = asyncio.run(
                    ask_all(server, questions, concurrency=concurrency, **asked)
                )
                answers = [timing.text for timing in timings]
                first = wanted.setdefault(concurrency, answers)
                same = sum(map(str.__eq__, answers, first))
                figures = [
                    _row("methods", name, value, unit=_unit_of(name))
                    for name, value in load_of(timings, wall_s)._asdict().items()
                ]
                name = f"answers as with {settings.methods[0]}"
                figures.append(_row("methods", name, 100.0 * same / len(answers), unit="%"))
                if method == "reprise":
                    for name, share in _shares_in_time(before, server.worker()).items():
                        figures.append(_row("methods", name, share, unit="%"))
                common = {"method": method, "concurrency": concurrency}
                found += [{**row, **common} for row in figures]
            if settings.vllm_bench:
                _run_vllm_bench(server, settings)
    return found


def _shares_in_time(before: dict[str, Any], after: dict[str, Any]) -> dict[str, float]:
    """Per cent of requests that had near answers at their first decode step, by who found them."""
    found = {
        found_by: after["near_answers_in_time"][found_by] - count
        for found_by, count in before["near_answers_in_time"].items()
    }
    late = after["near_answers_late"] - before["near_answers_late"]
    total = max(1, sum(found.values()) + late)
    shares = {f"near answers in time, by {name}": 100.0 * n / total for name, n in found.items()}
    return {"near answers in time": sum(shares.values()), **shares}


def _run_vllm_bench(server: Server, settings: argparse.Namespace) -> None:
    """vLLM's own load generator, its report straight to the terminal."""
    command = "from vllm.benchmarks.serve import add_cli_args, main\n"
    command += "from vllm.utils.argparse_utils import FlexibleArgumentParser\n"
    command += "parser = FlexibleArgumentParser()\nadd_cli_args(parser)\nmain(parser.parse_args())"
    arguments = ["--base-url", server.url, "--model", MODEL_NAME, "--tokenizer", settings.model]
    arguments += ["--dataset-name", "random", "--random-input-len", "64", "--temperature", "0"]
    arguments += ["--random-output-len", "64", "--num-prompts", str(settings.requests)]
    subprocess.run([sys.executable, "-c", command, *arguments], check=True)


def _row(
    section: str, name: str, value: float, *, unit: str = "ms", note: str = ""
) -> dict[str, Any]:
    return {"section": section, "name": name, "value": value, "unit": unit, "note": note}


def _p50_ms(seconds: Sequence[float]) -> float:
    return statistics.median(seconds) * 1e3


def _unit_of(name: str) -> str:
    return "tok/s" if name == "tokens_per_s" else "ms"


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", help="default: the demo model")
    parser.add_argument("--trace", type=Path, help="default: the demo trace")
    parser.add_argument("--only", default=",".join(SECTIONS), help="sections, by commas")
    parser.add_argument("--methods", default=",".join(SPECULATIVE), help="by commas")
    parser.add_argument(
        "--concurrency", type=_counts, default="1,8,32", help="requests at once, by commas"
    )
    parser.add_argument("--requests", type=int, default=64, help="most requests in one run")
    parser.add_argument("--warm", type=int, default=400, help="most requests that fill the cache")
    parser.add_argument("--max-tokens", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=5, help="alternating rounds of `miss`")
    parser.add_argument("--csv", type=Path, default=ROOT / "eval" / "results" / "bench_serving.csv")
    parser.add_argument("--plot", type=Path, help="write `methods` to PLOT.png and PLOT.svg")
    parser.add_argument("--vllm-bench", action="store_true", help="vLLM's own bench serve as well")
    settings = parser.parse_args(arguments)
    settings.methods = settings.methods.split(",")
    settings.only = settings.only.split(",")
    for given, known in ((settings.methods, tuple(SPECULATIVE)), (settings.only, SECTIONS)):
        if unknown := set(given) - set(known):
            parser.error(f"unknown {', '.join(sorted(unknown))}; expected {', '.join(known)}")
    return settings


def _counts(text: str) -> list[int]:
    """Numbers by commas, each at least 1."""
    counts = [int(part) if part.strip().isdecimal() else 0 for part in text.split(",")]
    if min(counts) < 1:
        raise argparse.ArgumentTypeError(f"expected whole numbers from 1 on, got {text!r}")
    return counts


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the sections asked for."""
    settings = parse(arguments)
    # Servers are stopped on the way out, whoever ends this.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    if settings.model is None:
        from reprise.eval.demo_model import demo_model_path

        settings.model = str(demo_model_path())
    elif Path(settings.model).is_dir():
        # The servers start in a folder of their own.
        settings.model = str(Path(settings.model).resolve())
    if settings.trace is None:
        from reprise.eval.demo_trace import make_demo_trace

        rows = make_demo_trace()
    else:
        try:
            rows = load_trace(settings.trace)
        except TraceError as error:
            print(f"bench_serving: {error}", file=sys.stderr)
            return 2
    sections = {"exact": bench_exact, "miss": bench_miss, "methods": bench_methods}
    for name in settings.only:
        print(f"{name} ...", file=sys.stderr, flush=True)
        try:
            measured = sections[name](settings, rows)
        except RuntimeError as error:
            print(f"bench_serving: {name}: {error}", file=sys.stderr)
            return 1
        show(measured)
        append_csv(settings.csv, measured, settings)
        if settings.plot is not None and name == "methods":
            save_plots(settings.plot, measured)
    return 0


if __name__ == "__main__":
    sys.exit(main())
