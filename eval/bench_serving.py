"""Figures of serving, from real OpenAI servers: exact hits, what a miss costs, methods compared.

    python eval/bench_serving.py                                 every section, on the demo model
    python eval/bench_serving.py --only exact,miss               these
    python eval/bench_serving.py --model FOLDER --trace FILE.jsonl --plot serving.png
    python eval/bench_serving.py --vllm-bench                    vLLM's own `bench serve` as well

Sections: `exact` (time to first token and speed of exact hits), `miss` (throughput of a server of
ours with drafts off against plain vLLM, in alternating rounds), `methods` (throughput and latency
by method and concurrency, and near answers in time). Rows are appended to a CSV.
"""

import argparse
import asyncio
import csv
import json
import os
import platform
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import aiohttp
from rich.console import Console
from rich.table import Table

from reprise.eval.traces import TraceRow, load_trace

ROOT = Path(__file__).resolve().parent.parent
SECTIONS = ("exact", "miss", "methods")
SPECULATIVE: dict[str, dict[str, Any] | None] = {
    "none": None,
    "ngram": {
        "method": "ngram",
        "num_speculative_tokens": 8,
        "prompt_lookup_max": 4,
        "prompt_lookup_min": 2,
    },
    "suffix": {"method": "suffix"},
    "reprise": {
        "model": "reprise.engine_ext.proposer.CacheHitProposer",
        "num_speculative_tokens": 16,
    },
}
_STARTS_WITHIN_S = 300.0
_MODEL_NAME = "bench"
# Every request generates, and its answer joins: drafting is measured, not repetition.
_GENERATE = {"x-reprise-cache": "refresh"}
_GENERATE_WITHOUT_DRAFTS = {**_GENERATE, "x-reprise-drafts": "off"}


class Timing(NamedTuple):
    """One request."""

    first_token_s: float
    whole_s: float
    output_tokens: int
    text: str


class Load(NamedTuple):
    """One run of many requests."""

    tokens_per_s: float
    first_token_ms_p50: float
    whole_ms_p50: float
    whole_ms_p99: float


class Server:
    """A vLLM server on a free port of this machine."""

    def __init__(self, model: str, speculative: dict[str, Any] | None) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        self.url = f"http://127.0.0.1:{port}"
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 - open as long as the server
        command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", model]
        command += ["--served-model-name", _MODEL_NAME, "--host", "127.0.0.1", "--port", str(port)]
        command += ["--enforce-eager", "--max-num-seqs", "32", "--disable-uvicorn-access-log"]
        if speculative is not None:
            command += ["--speculative-config", json.dumps(speculative)]
        environment = {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_NO_USAGE_STATS": "1", **os.environ}
        environment["VLLM_PLUGINS"] = "reprise"
        self._process = subprocess.Popen(
            command,
            env=environment,
            cwd=tempfile.gettempdir(),
            stdout=self._log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )

    def wait(self) -> None:
        """Until it answers.

        Raises:
            RuntimeError: it did not start; with the end of its log.
        """
        deadline_s = time.monotonic() + _STARTS_WITHIN_S
        while time.monotonic() < deadline_s and self._process.poll() is None:
            try:
                with urllib.request.urlopen(self.url + "/health"):
                    return
            except (OSError, urllib.error.URLError):
                time.sleep(0.3)
        self._log.seek(0)
        raise RuntimeError(
            "a server did not start:\n" + self._log.read().decode(errors="replace")[-3000:]
        )

    def stop(self) -> None:
        """End it, and wait for that."""
        self._process.terminate()
        try:
            self._process.wait(60)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._log.close()

    def worker(self) -> dict[str, Any]:
        """The first worker's figures, of a server of ours."""
        with urllib.request.urlopen(self.url + "/reprise/stats") as reply:
            figures: dict[str, Any] = json.load(reply)["workers"][0]
        return figures


@contextmanager
def running(model: str, *methods: str) -> Iterator[list[Server]]:
    """Servers of these methods, started side by side, stopped in the end."""
    servers = [Server(model, SPECULATIVE[method]) for method in methods]
    try:
        for server in servers:
            server.wait()
        yield servers
    finally:
        for server in servers:
            server.stop()


async def ask(
    session: aiohttp.ClientSession,
    server: Server,
    question: str,
    *,
    max_tokens: int,
    headers: Mapping[str, str],
) -> Timing:
    """One streamed, greedy chat completion."""
    body = {
        "model": _MODEL_NAME,
        "messages": [{"role": "user", "content": question}],
        "temperature": 0,
        "max_tokens": max_tokens,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    started_s = time.perf_counter()
    first_token_s = 0.0
    tokens = 0
    pieces = []
    url = server.url + "/v1/chat/completions"
    async with session.post(url, json=body, headers=headers) as reply:
        reply.raise_for_status()
        async for line in reply.content:
            if not line.startswith(b"data: {"):
                continue
            event = json.loads(line[6:])
            if event["choices"] and (piece := event["choices"][0]["delta"].get("content")):
                first_token_s = first_token_s or time.perf_counter() - started_s
                pieces.append(piece)
            if event.get("usage"):
                tokens = event["usage"]["completion_tokens"]
    return Timing(first_token_s, time.perf_counter() - started_s, tokens, "".join(pieces))


async def ask_all(
    server: Server,
    questions: Sequence[str],
    *,
    concurrency: int,
    max_tokens: int,
    headers: Mapping[str, str],
) -> tuple[list[Timing], float]:
    """All questions, `concurrency` at a time; their timings in order, and the wall time in s."""
    slots = asyncio.Semaphore(concurrency)

    async def one(session: aiohttp.ClientSession, question: str) -> Timing:
        async with slots:
            return await ask(session, server, question, max_tokens=max_tokens, headers=headers)

    connector = aiohttp.TCPConnector(limit=concurrency)
    timeout = aiohttp.ClientTimeout(total=600)
    async with aiohttp.ClientSession(connector=connector, timeout=timeout) as session:
        started_s = time.perf_counter()
        timings = await asyncio.gather(*(one(session, question) for question in questions))
        return list(timings), time.perf_counter() - started_s


def load_of(timings: Sequence[Timing], wall_s: float) -> Load:
    """The figures of one run."""
    whole_ms = sorted(timing.whole_s * 1e3 for timing in timings)
    return Load(
        tokens_per_s=sum(timing.output_tokens for timing in timings) / wall_s,
        first_token_ms_p50=statistics.median(timing.first_token_s * 1e3 for timing in timings),
        whole_ms_p50=statistics.median(whole_ms),
        whole_ms_p99=whole_ms[min(len(whole_ms) - 1, int(0.99 * len(whole_ms)))],
    )


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


def bench_miss(settings: argparse.Namespace, rows: list[TraceRow]) -> list[dict[str, Any]]:
    """Throughput with everything of ours but drafts, against plain vLLM: rounds alternate."""
    questions = [row.prompt for row in rows][: settings.requests]
    found = []
    with running(settings.model, "none", "reprise") as (plain, ours):
        for server in (plain, ours):
            asyncio.run(ask_all(server, questions, concurrency=8, max_tokens=8, headers=_GENERATE))
        for concurrency in settings.concurrency:
            ratios = []
            for _ in range(settings.rounds):
                speeds = []
                for server in (plain, ours):
                    timings, wall_s = asyncio.run(
                        ask_all(
                            server,
                            questions,
                            concurrency=concurrency,
                            max_tokens=settings.max_tokens,
                            headers=_GENERATE_WITHOUT_DRAFTS,
                        )
                    )
                    speeds.append(load_of(timings, wall_s).tokens_per_s)
                ratios.append(speeds[1] / speeds[0])
            name = f"throughput of misses / plain vLLM, concurrency {concurrency}"
            spread = f"{min(ratios):.3f} to {max(ratios):.3f}"
            found.append(_row("miss", name, statistics.median(ratios), unit="x", note=spread))
    return found


def bench_methods(settings: argparse.Namespace, rows: list[TraceRow]) -> list[dict[str, Any]]:
    """Each method on warm servers of its own; each concurrency gets questions of its own."""
    warm = [row.prompt for row in rows if row.warm][: settings.warm]
    fresh = [row.prompt for row in rows if not row.warm]
    found = []
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
                for name, value in load_of(timings, wall_s)._asdict().items():
                    row = _row("methods", name, value, unit=_unit_of(name))
                    found.append({**row, "method": method, "concurrency": concurrency})
                if method == "reprise":
                    share = _share_in_time(before, server.worker())
                    row = _row("methods", "near answers in time", share, unit="%")
                    found.append({**row, "method": method, "concurrency": concurrency})
            if settings.vllm_bench:
                _run_vllm_bench(server, settings)
    return found


def _share_in_time(before: dict[str, Any], after: dict[str, Any]) -> float:
    in_time, late = (
        after[name] - before[name] for name in ("near_answers_in_time", "near_answers_late")
    )
    share: float = 100.0 * in_time / max(1, in_time + late)
    return share


def _run_vllm_bench(server: Server, settings: argparse.Namespace) -> None:
    """vLLM's own load generator, its report straight to the terminal."""
    command = "from vllm.benchmarks.serve import add_cli_args, main\n"
    command += "from vllm.utils.argparse_utils import FlexibleArgumentParser\n"
    command += "parser = FlexibleArgumentParser()\nadd_cli_args(parser)\nmain(parser.parse_args())"
    arguments = ["--base-url", server.url, "--model", _MODEL_NAME, "--tokenizer", settings.model]
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


def show(rows: Sequence[dict[str, Any]]) -> None:
    """Print what was measured."""
    table = Table("section", "method", "at once", "figure", "value", "unit", "range")
    for row in rows:
        table.add_row(
            row["section"],
            row.get("method", ""),
            str(row.get("concurrency", "")),
            row["name"],
            f"{row['value']:.3g}" if row["value"] < 100 else f"{row['value']:.0f}",
            row["unit"],
            row["note"],
        )
    Console(width=120).print(table)


def append_csv(path: Path, rows: Sequence[dict[str, Any]], settings: argparse.Namespace) -> None:
    """Add rows to the file, with what they were measured on."""
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True
    ).stdout.strip()
    common = {
        "when": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": commit,
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "model": Path(settings.model).name,
        "requests": settings.requests,
    }
    names = [*common, "section", "method", "concurrency", "name", "value", "unit", "note"]
    path.parent.mkdir(parents=True, exist_ok=True)
    is_new = not path.exists()
    with path.open("a", newline="") as file:
        writer = csv.DictWriter(file, names, restval="")
        if is_new:
            writer.writeheader()
        writer.writerows({**common, **row, "value": f"{row['value']:.6g}"} for row in rows)


def plot(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """Throughput by concurrency, a line a method."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 4.5))
    speeds = [row for row in rows if row["name"] == "tokens_per_s"]
    for method in dict.fromkeys(row["method"] for row in speeds):
        points = [(row["concurrency"], row["value"]) for row in speeds if row["method"] == method]
        axes.plot(*zip(*points, strict=True), marker="o", label=method)
    axes.set(xlabel="requests at once", ylabel="output tokens per second", xscale="log")
    ticks = sorted({row["concurrency"] for row in speeds})
    axes.set_xticks(ticks, [str(tick) for tick in ticks])
    axes.minorticks_off()
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.3)
    axes.legend()
    figure.tight_layout()
    figure.savefig(path, dpi=150)


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", help="default: the demo model")
    parser.add_argument("--trace", type=Path, help="default: the demo trace")
    parser.add_argument("--only", default=",".join(SECTIONS), help="sections, by commas")
    parser.add_argument("--methods", default=",".join(SPECULATIVE), help="by commas")
    parser.add_argument("--concurrency", default="1,8,32", help="requests at once, by commas")
    parser.add_argument("--requests", type=int, default=64, help="most requests in one run")
    parser.add_argument("--warm", type=int, default=400, help="most requests that fill the cache")
    parser.add_argument("--max-tokens", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=3, help="alternating rounds of `miss`")
    parser.add_argument("--csv", type=Path, default=ROOT / "eval" / "results" / "bench_serving.csv")
    parser.add_argument("--plot", type=Path, help="write a picture of `methods` here")
    parser.add_argument("--vllm-bench", action="store_true", help="vLLM's own bench serve as well")
    settings = parser.parse_args(arguments)
    settings.methods = settings.methods.split(",")
    settings.only = settings.only.split(",")
    settings.concurrency = [int(number) for number in settings.concurrency.split(",")]
    for given, known in ((settings.methods, tuple(SPECULATIVE)), (settings.only, SECTIONS)):
        if unknown := set(given) - set(known):
            parser.error(f"unknown {', '.join(sorted(unknown))}; expected {', '.join(known)}")
    return settings


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the sections asked for."""
    settings = parse(arguments)
    # Servers are stopped on the way out, whoever ends this.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    if settings.model is None:
        from reprise.eval.demo_model import demo_model_path

        settings.model = str(demo_model_path())
    if settings.trace is None:
        from reprise.eval.demo_trace import make_demo_trace

        rows = make_demo_trace()
    else:
        rows = load_trace(settings.trace)
    sections = {"exact": bench_exact, "miss": bench_miss, "methods": bench_methods}
    measured: list[dict[str, Any]] = []
    for name in settings.only:
        print(f"{name} ...", file=sys.stderr, flush=True)
        measured += sections[name](settings, rows)
    show(measured)
    append_csv(settings.csv, measured, settings)
    if settings.plot is not None and "methods" in settings.only:
        plot(settings.plot, measured)
    return 0


if __name__ == "__main__":
    sys.exit(main())
