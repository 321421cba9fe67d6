"""Exact hits over HTTP, from memory and from a tier, and what looking for them costs a miss.

    python eval/benchmarks/bench_exact_hits.py               every section, on the demo model
    python eval/benchmarks/bench_exact_hits.py --only hits   one of them

Sections: `look-ups` (one look-up in SQLite and in Redis, in this process, as a request waits for
it, within the default budget), `hits` (each question is generated, repeated by the same server from
memory, then by two others from the tier, by one that trusts it and by one that verifies what it
finds, which then generates once more with the same answer as a draft: after a restart with SQLite,
beside the first with Redis) and `miss` (throughput of what nobody has asked before: exact hits off,
in memory, and in memory and Redis, in rounds, forwards and backwards by turns, while the other
servers stand still). Rows are appended to a CSV.
"""

import asyncio
import contextlib
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Annotated, Any

import msgspec
import typer

from reprise.engine_ext.core.config import load_config
from reprise.engine_ext.core.error_counter import ErrorCounter
from reprise.engine_ext.frontend.shared_exact import SharedExact
from reprise.engine_ext.request.adapter_epochs import AdapterEpochs
from reprise.eval.benchmarks.serving_load import SPECULATIVE, Server, Timing, alone, ask_all
from reprise.eval.demo_data.demo_model import DEMO_DTYPE, demo_model_path
from reprise.eval.demo_data.demo_trace import make_demo_trace
from reprise.eval.live.redis_server import RedisServer
from reprise.eval.report.command_line import InputError, run_command
from reprise.eval.report.results_csv import RESULTS, append_rows
from reprise.retrieval.api.answer import Answer
from reprise.retrieval.in_process.open_tier import open_tier

SECTIONS = ("look-ups", "hits", "miss")
_PROMPT_TOKENS, _ANSWER_TOKENS = 200, 200
RESULTS_FILE = RESULTS / "bench_exact_hits.csv"
FIELDS = ("section", "from", "requests", "name", "value", "unit", "note")
_FINGERPRINT_WITHIN_S = 60.0
# Answers are written behind the reply.
_WRITTEN_AFTER_S = 3.0
_WITHOUT_DRAFTS = {"x-reprise-drafts": "off"}


@contextlib.contextmanager
def serving(model: str, url: str, **serving: str) -> Iterator[Server]:
    """A server of ours on this tier, ready to share if it shares; `serving`: its settings."""
    environment = {f"REPRISE_SERVING__{name.upper()}": value for name, value in serving.items()}
    environment |= {"REPRISE_RETRIEVAL__URL": url}
    server = Server(model, SPECULATIVE["reprise"], dtype=DEMO_DTYPE, environment=environment)
    try:
        server.wait()
        server.wait_for_retrieval()
        if serving.get("exact_hits_from_others") == "trusted":
            _wait(lambda: _shared(server)["fingerprint"] is not None, _FINGERPRINT_WITHIN_S)
        yield server
    finally:
        server.stop()


def bench_look_ups(model: str, count: int) -> list[dict[str, Any]]:
    """Time a look-up that finds an answer of 200 tokens, and one that finds nothing."""
    from vllm.engine.arg_utils import EngineArgs

    vllm_config = EngineArgs(model=model, dtype=DEMO_DTYPE).create_engine_config()
    rows = []
    with tempfile.TemporaryDirectory() as folder, RedisServer() as redis:
        for kind, url in (("sqlite", f"sqlite:///{folder}/answers.sqlite"), ("redis", redis.url)):
            serving = {"exact_hits_from_others": "trusted"}
            shared = SharedExact(
                vllm_config,
                load_config({"serving": serving, "retrieval": {"url": url}}),
                adapters=AdapterEpochs(),
                loaded_since_s=time.time(),
                retrieval=list,
                errors=ErrorCounter(),
            )
            shared.wait(_FINGERPRINT_WITHIN_S)
            if shared.fingerprint is None:
                raise RuntimeError("there is no fingerprint of the demo model")
            _fill(url, shared.fingerprint, count)
            for name, first, good in (("found", 0, "hit"), ("nothing there", count, "miss")):
                took_ms = asyncio.run(_look_up(shared, first, count))
                found = shared.outcomes
                if found[good] + found["late"] + found["failed"] < count:
                    raise RuntimeError(f"{name}: of {count} look-ups came {dict(found)}")
                for quantile, place in (("p50", 0.5), ("p99", 0.99)):
                    value = took_ms[int(place * (count - 1))]
                    row = _row("look-ups", kind, took_ms, f"{name}, {quantile}", value, "ms")
                    rows.append({**row, "note": f"{found[good]} in time"})
                shared.outcomes.clear()
            shared.close()
    return rows


def _fill(url: str, fingerprint: str, count: int) -> None:
    tier = open_tier(url)
    assert tier is not None
    for number in range(count):
        answer = Answer.create(
            prompt_token_ids=[number] * _PROMPT_TOKENS,
            response_token_ids=list(range(_ANSWER_TOKENS)),
            finish_reason="stop",
            exact_key=number.to_bytes(16, "little"),
        )
        tier.put([msgspec.structs.replace(answer, fingerprint=fingerprint)])
    tier.close()


async def _look_up(shared: SharedExact, first: int, count: int) -> list[float]:
    """Return the time of each look-up in ms, the shortest first."""
    took_ms = []
    for number in range(first, first + count):
        request: Any = SimpleNamespace(prompt_token_ids=[number] * _PROMPT_TOKENS)
        keys = [number.to_bytes(16, "little"), b"limit".ljust(16)]
        began_s = time.perf_counter()
        await shared.find(request, "", keys, shared.fingerprint or "")
        took_ms.append((time.perf_counter() - began_s) * 1e3)
    return sorted(took_ms)


def bench_hits(model: str, questions: Sequence[str], max_tokens: int) -> list[dict[str, Any]]:
    """Generation, repeats from memory, and first repeats by another server."""
    rows = []
    with tempfile.TemporaryDirectory() as folder, RedisServer() as redis:
        for kind, url in (("sqlite", f"sqlite:///{folder}/answers.sqlite"), ("redis", redis.url)):
            with contextlib.ExitStack() as first:
                one = first.enter_context(serving(model, url, exact_hits_from_others="trusted"))
                _ask(one, questions[:2], max_tokens, {"x-reprise-cache": "off"})  # warm up
                made = _ask(one, questions, max_tokens, _WITHOUT_DRAFTS)
                again = _ask(one, questions, max_tokens)
                _check(made, again, one, num_exact=len(questions))
                rows += _rows("generated", made, note=f"tier: {kind}")
                rows += _rows("memory", again, note=f"tier: {kind}")
                time.sleep(_WRITTEN_AFTER_S)
                if kind == "sqlite":
                    first.close()
                how = "after a restart" if kind == "sqlite" else "from a second replica"
                for whose in ("trusted", "verified"):
                    with contextlib.ExitStack() as second:
                        two = second.enter_context(
                            serving(model, url, exact_hits_from_others=whose)
                        )
                        if kind == "redis":
                            second.enter_context(alone(two, [one, two]))
                        rows += _other_server(two, kind, whose, questions, max_tokens, made, how)
    return rows


def _other_server(
    server: Server,
    kind: str,
    whose: str,
    questions: Sequence[str],
    max_tokens: int,
    made: Sequence[Timing],
    how: str,
) -> list[dict[str, Any]]:
    """What a server makes of answers that another one has generated."""
    _ask(server, ["What is new?", "What else?"], max_tokens, {"x-reprise-cache": "off"})  # warm up
    source = f"{kind}, {whose}"
    found = _ask(server, questions, max_tokens)
    counts = _counts(server)
    _check(made, found, server, num_exact=0)
    rows = _rows(source, found, note=f"first repeat {how}")
    name = "exact" if whose == "trusted" else "verified"
    rows.append(_row("hits", source, found, f"{name} {how}", counts.get(name, 0), "requests"))
    if whose == "verified":
        tokens = counts.get("tokens_verified", 0)
        share = tokens / max(1, sum(timing.output_tokens for timing in found))
        rows.append(_row("hits", source, found, "share of tokens verified", share, ""))
        drafted = _ask(server, questions, max_tokens, {"x-reprise-cache": "off"})
        _check(made, drafted, server, num_exact=0)
        rows += _rows("drafted", drafted, note=f"from the same answers, tier: {kind}")
    return rows


def bench_miss(
    model: str, questions: Sequence[str], max_tokens: int, *, rounds: int, concurrency: int
) -> list[dict[str, Any]]:
    """Throughput of misses: exact hits off, in memory, in memory and Redis."""
    kinds = {
        "off": {"exact_hits": "off"},
        "memory": {"exact_hits_from_others": "off"},
        "redis": {"exact_hits_from_others": "verified"},
    }
    speeds: dict[str, list[float]] = {kind: [] for kind in kinds}
    with contextlib.ExitStack() as stack:
        servers = {
            kind: stack.enter_context(
                serving(model, stack.enter_context(RedisServer()).url, **settings)
            )
            for kind, settings in kinds.items()
        }
        for number in range(-1, rounds):  # the first one warms up
            for kind in list(kinds)[:: -1 if number % 2 else 1]:
                with alone(servers[kind], list(servers.values())):
                    timings, wall_s = asyncio.run(
                        ask_all(
                            servers[kind],
                            questions,
                            concurrency=concurrency,
                            max_tokens=max_tokens,
                            headers=_WITHOUT_DRAFTS,
                            salt_prefix=f"{kind}-{number}",
                        )
                    )
                if number >= 0:
                    speeds[kind].append(sum(t.output_tokens for t in timings) / wall_s)
        shared = _shared(servers["redis"])
    rows = []
    for kind, own in speeds.items():
        note = f"{min(own):.0f} to {max(own):.0f}, {concurrency} at once"
        speed = _row("miss", kind, questions, "throughput, median", statistics.median(own), "tok/s")
        rows.append({**speed, "note": note})
        ratios = [a / b for a, b in zip(own, speeds["off"], strict=True)]
        ratio = statistics.median(ratios)
        row = _row("miss", kind, questions, "throughput / off, median of rounds", ratio, "x")
        rows.append({**row, "note": f"{min(ratios):.3f} to {max(ratios):.3f}"})
    looked_up = {name: shared.get(name, 0) for name in ("miss", "late", "busy", "failed", "hit")}
    note = ", ".join(f"{count} {name}" for name, count in looked_up.items())
    row = _row("miss", "redis", questions, "look-ups", sum(looked_up.values()), "requests")
    return [*rows, {**row, "note": note}]


def _ask(
    server: Server, questions: Sequence[str], max_tokens: int, headers: dict[str, str] | None = None
) -> list[Timing]:
    """Ask one after the other."""
    timings, _ = asyncio.run(
        ask_all(server, questions, concurrency=1, max_tokens=max_tokens, headers=headers or {})
    )
    return timings


def _check(
    made: Sequence[Timing], found: Sequence[Timing], server: Server, *, num_exact: int
) -> None:
    """Compare what was repeated with what was generated.

    Raises:
        RuntimeError: An answer differs, or fewer were exact hits.
    """
    changed = sum(hit.text != one.text for hit, one in zip(found, made, strict=True))
    if changed:
        raise RuntimeError(f"{changed} of {len(made)} answers differ from what was generated")
    if (exact := _counts(server).get("exact", 0)) < num_exact:
        raise RuntimeError(f"expected {num_exact} exact hits, came {exact}")


def _counts(server: Server) -> dict[str, Any]:
    counts: dict[str, Any] = server.stats()["front_end"]["counts"]
    return counts


def _shared(server: Server) -> dict[str, Any]:
    return server.stats()["front_end"]["shared"] or {}


def _wait(condition: Any, within_s: float) -> None:
    """Wait until a condition holds.

    Raises:
        RuntimeError: It did not in time.
    """
    deadline_s = time.monotonic() + within_s
    while not condition():
        if time.monotonic() > deadline_s:
            raise RuntimeError(f"waited in vain for {within_s:.0f} s")
        time.sleep(0.2)


def _rows(source: str, timings: Sequence[Timing], *, note: str) -> list[dict[str, Any]]:
    """Rows of the time that whole answers took."""
    whole_ms = sorted(timing.whole_s * 1e3 for timing in timings)
    p99 = whole_ms[min(len(whole_ms) - 1, int(0.99 * len(whole_ms)))]
    return [
        {**_row("hits", source, timings, name, value, "ms"), "note": note}
        for name, value in (("whole answer, p50", statistics.median(whole_ms)),
                            ("whole answer, p99", p99))
    ]  # fmt: skip


def _row(
    section: str, source: str, asked: Sequence[Any], name: str, value: float, unit: str
) -> dict[str, Any]:
    return {
        "section": section,
        "from": source,
        "requests": len(asked),
        "name": name,
        "value": round(value, 3),
        "unit": unit,
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the sections asked for."""
    return run_command(measure, arguments, name="bench_exact_hits.py")


def measure(
    only: Annotated[
        str, typer.Option(metavar="LIST", help="Sections, separated by commas.")
    ] = ",".join(SECTIONS),
    requests: Annotated[int, typer.Option(min=4, help="Questions of one run, at most.")] = 64,
    look_ups: Annotated[int, typer.Option(min=10, help="Of the section `look-ups`.")] = 1000,
    max_tokens: Annotated[int, typer.Option(min=1, help="Of an answer.")] = 256,
    rounds: Annotated[int, typer.Option(min=1, help="Of the section `miss`.")] = 7,
    concurrency: Annotated[int, typer.Option(min=1, help="Of the section `miss`.")] = 8,
    csv: Annotated[Path, typer.Option(help="Append rows to this file.")] = RESULTS_FILE,
) -> int:
    """Measure exact hits on real servers with the demo model."""
    sections = [section.strip() for section in only.split(",")]
    if unknown := set(sections) - set(SECTIONS):
        raise InputError(f"--only: expected some of {', '.join(SECTIONS)}, got {min(unknown)}")
    model = str(demo_model_path())
    questions = list(dict.fromkeys(row.prompt for row in make_demo_trace()))[:requests]
    rows = []
    if "look-ups" in sections:
        rows += bench_look_ups(model, count=look_ups)
    if "hits" in sections:
        rows += bench_hits(model, questions, max_tokens)
    if "miss" in sections:
        rows += bench_miss(model, questions, max_tokens, rounds=rounds, concurrency=concurrency)
    for row in rows:
        name = f"{row['section']}: {row['from']}, {row['name']}"
        typer.echo(f"{name:60} {row['value']:>10} {row['unit']:9} {row.get('note', '')}")
    append_rows(csv, rows, fields=FIELDS)
    return 0


if __name__ == "__main__":
    sys.exit(main())
