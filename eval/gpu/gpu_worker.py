"""One engine of a GPU run, in a process of its own, that serves one workload after the other.

Beside `reprise.eval.live.live_worker` because engines stay up here: on a GPU a start takes a
minute, and a workload a few seconds.
"""

from __future__ import annotations

import dataclasses
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from reprise.engine_ext.cli.worker_process import message_pipe, reason_of
from reprise.eval.live.live_worker import (
    draft_counters,
    generate,
    prompt_token_ids,
    send_first_request,
    uses_reprise,
)
from reprise.eval.live.settled_report import settled_report
from reprise.eval.replay.traces import TraceRow

if TYPE_CHECKING:
    from vllm import LLM

_SETTLE_S = 20.0
_FREE_SHARE = 0.05
_PROFILED_TOKENS = 24


class GpuJob(msgspec.Struct, frozen=True, kw_only=True):
    """An engine to start."""

    model: str
    dtype: str
    speculative_config: dict[str, Any] | None
    max_num_seqs: int
    kv_cache_bytes: int | None
    """Of a GPU's memory; None on a CPU. Not a share: several engines start at once."""
    full_graphs: bool
    profile_folder: str | None = None
    """Absolute; where traces go, if any is asked for."""


class GpuOrder(msgspec.Struct, frozen=True, kw_only=True):
    """A workload to serve."""

    rows: list[TraceRow]
    concurrency: int
    max_tokens: int
    is_profiled: bool = False


class GpuReply(msgspec.Struct, omit_defaults=True, kw_only=True):
    """What a worker says: that it is ready, or what a workload came to, or why it ends."""

    runner: str = ""
    """Which model runner vLLM chose."""
    output_token_ids: list[list[int]] = []
    steps: int = 0
    drafted_tokens: int = 0
    accepted_tokens: int = 0
    wall_s: float = 0.0
    note: str = ""
    """What went wrong that did not end it."""
    failure: str | None = None


def engine_options(job: GpuJob) -> dict[str, Any]:
    """Return what `vllm.LLM` gets."""
    options: dict[str, Any] = {}
    if job.kv_cache_bytes is None:
        options["enforce_eager"] = True
    else:
        options["kv_cache_memory_bytes"] = job.kv_cache_bytes
        # That much has to be free when an engine starts, whatever it is to take.
        options["gpu_memory_utilization"] = _FREE_SHARE
    if job.full_graphs:
        options["compilation_config"] = {"cudagraph_mode": "FULL"}
    if job.profile_folder is not None:
        options["profiler_config"] = _profiler_config(job.profile_folder)
    return {
        "model": job.model,
        "dtype": job.dtype,
        "max_num_seqs": job.max_num_seqs,
        "seed": 0,
        "disable_log_stats": False,
        "speculative_config": job.speculative_config,
        **options,
    }


def _profiler_config(folder: str) -> dict[str, Any]:
    """A few steps, once requests decode; what a vLLM does not know is left out."""
    from vllm.config import ProfilerConfig

    wanted = {
        "profiler": "torch",
        "torch_profiler_dir": folder,
        "torch_profiler_with_stack": False,
        "delay_iterations": 4,
        "max_iterations": 2,
    }
    known = {field.name for field in dataclasses.fields(ProfilerConfig)}
    return {name: value for name, value in wanted.items() if name in known}


def _serve(llm: LLM, order: GpuOrder, *, is_learned: bool) -> GpuReply:
    prompts = [prompt_token_ids(llm, row) for row in order.rows]
    notes: list[str] = []
    reported = _settled(llm, notes) if is_learned else None
    before = _counters(llm, notes)
    if order.is_profiled:
        llm.start_profile()
    began_s = time.perf_counter()
    outputs, steps = generate(
        llm,
        prompts,
        concurrency=order.concurrency,
        tick=lambda: None,
        max_tokens=_PROFILED_TOKENS if order.is_profiled else order.max_tokens,
    )
    wall_s = time.perf_counter() - began_s
    if order.is_profiled:
        llm.stop_profile()
    after = _counters(llm, notes)
    if reported is not None:
        notes += _said_since(llm, reported)
    return GpuReply(
        output_token_ids=outputs,
        steps=steps,
        drafted_tokens=after["drafted"] - before["drafted"],
        accepted_tokens=after["accepted"] - before["accepted"],
        wall_s=wall_s,
        note="; ".join(dict.fromkeys(notes)),
    )


def _settled(llm: LLM, notes: list[str]) -> dict[str, Any] | None:
    """Wait until what was answered before is learned; our worker's report, or None and a note why
    there is none."""
    try:
        return settled_report(llm, timeout_s=_SETTLE_S)
    except Exception as error:  # no reason to lose a machine's time
        notes.append(f"not settled: {reason_of(error)}")
        return None


def _counters(llm: LLM, notes: list[str]) -> dict[str, int]:
    try:
        return draft_counters(llm)
    except LookupError as error:
        notes.append(reason_of(error))
        return {"drafted": 0, "accepted": 0}


def _said_since(llm: LLM, before: dict[str, Any]) -> list[str]:
    """Say what our worker reports now; what is not learned yet is waited for by the next workload,
    and nothing that fails here loses this one's figures."""
    try:
        (after,) = llm.collective_rpc("reprise_stats")
        return said_of_reports(before, after)
    except Exception as error:
        return [f"not reported: {reason_of(error)}"]


def said_of_reports(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    """Say what our worker reports of a workload: near answers, what there is to draft from, and
    errors that it went on without, so that no engine is measured that did less than it can."""
    names = ("near_answers_in_time", "near_answers_late", "provider", "errors")
    if lacking := [name for name in names if name not in before or name not in after]:
        return [f"our worker does not report {', '.join(lacking)}"]
    found = {
        name: after["near_answers_in_time"][name] - count
        for name, count in before["near_answers_in_time"].items()
    }
    late = after["near_answers_late"] - before["near_answers_late"]
    said = [
        f"near answers in time for {sum(found.values())} requests ("
        + "".join(f"{count} by {name}, " for name, count in found.items())
        + f"{late} late), {after['provider']['answers']} answers in the corpus"
    ]
    errors = {
        place: count - before["errors"].get(place, 0) for place, count in after["errors"].items()
    }
    said += [f"{count} x {place} failed" for place, count in errors.items() if count]
    return said


def _runner_of(llm: LLM) -> str:
    is_v2 = getattr(llm.llm_engine.vllm_config, "use_v2_model_runner", None)
    return {True: "v2", False: "v1", None: "not told"}[is_v2]


def main() -> None:
    """Arguments: the file of the job, and the descriptor of a pipe for replies. Orders come as
    lines on standard input; its end ends the process and all that it has started."""
    job = msgspec.json.decode(Path(sys.argv[1]).read_bytes(), type=GpuJob)
    with message_pipe(int(sys.argv[2])) as send:
        try:
            from vllm import LLM

            llm = LLM(**engine_options(job))
            send_first_request(llm)
            send(GpuReply(runner=_runner_of(llm)))
            for order in _orders():
                send(_serve(llm, order, is_learned=uses_reprise(job.speculative_config)))
        except Exception as error:
            send(GpuReply(failure=reason_of(error)))
            raise
    os.killpg(os.getpgid(0), signal.SIGKILL)


def _orders() -> Iterator[GpuOrder]:
    """Yield orders as they come. Read on a thread, so that this process ends with who gives them,
    whatever it does."""
    from queue import SimpleQueue

    orders: SimpleQueue[GpuOrder] = SimpleQueue()

    def read() -> None:
        for line in sys.stdin:
            orders.put(msgspec.json.decode(line, type=GpuOrder))
        os.killpg(os.getpgid(0), signal.SIGKILL)

    threading.Thread(target=read, name="reprise-gpu-orders", daemon=True).start()
    while True:
        yield orders.get()


if __name__ == "__main__":
    main()
