"""One method on one trace with a real vLLM engine, in a process of its own.

A clean process for each method is the only way to a clean engine: caches, compiled code, patched
classes and memory all go when it ends. It is started as a module of its own, with light imports,
because vLLM's processes import their parent's main module once more, and vLLM 0.32's CPU worker
does not start where that has brought in numba.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from reprise.engine_ext.answer_page.records import AnswerRecord
from reprise.engine_ext.cli.worker_process import message_pipe, reason_of
from reprise.engine_ext.core.latency import summary_between
from reprise.engine_ext.core.proposer_path import PROPOSER_PATH
from reprise.eval.live.answer_watch import AnswerWatch, questions_by_prompt
from reprise.eval.live.settled_report import settled_report
from reprise.eval.replay.traces import TraceRow

if TYPE_CHECKING:
    from vllm import LLM

NO_DRAFTS = "reprise-no-drafts"
"""An engine with Reprise that drafts nothing: what is compared with it differs by drafts alone."""
MAX_OUTPUT_TOKENS = 512
_FLUSH_S = 300.0  # an embedding model may be loaded beside several engines
_WARM_UP_TOKENS = 8


class LiveJob(msgspec.Struct, frozen=True, kw_only=True):
    """What a worker process is to do."""

    model: str
    speculative_config: dict[str, Any] | None
    rows: list[TraceRow]
    concurrency: int
    seed: int
    dtype: str = "auto"
    """As for vLLM; `auto`: what the model's folder says."""
    max_tokens: int = MAX_OUTPUT_TOKENS
    """Of an answer."""
    learns_from_warm: bool = True
    """Whether warm rows are answered. Without, only their prompts are computed, so that vLLM's
    prefix cache has the same in it: for methods that draft from no earlier answer."""
    more_passes: list[int] = []
    """Serve the timed rows again, untimed, with at most so many at once, from an empty prefix cache
    each time."""
    num_recorded: int = 0
    """Of the timed requests, the first so many are recorded step by step."""
    cpu_optimizations: bool = True
    """With our proposer: the setting `engine.cpu_optimizations`."""
    drafts: bool = True
    """With our proposer: the setting `features.drafts`."""
    num_engines: int = 1
    """How many there are at a time, this one included; they share the memory of a GPU."""

    @property
    def uses_reprise(self) -> bool:
        """Whether our proposer drafts."""
        return uses_reprise(self.speculative_config)


class LiveOutcome(msgspec.Struct, kw_only=True):
    """What the timed requests of one method came to."""

    output_token_ids: list[list[int]]
    """Of each timed row, in order."""
    warm_output_token_ids: list[list[int]]
    """Of each warm row, in order."""
    prompt_token_ids: list[list[int]] = []
    """Of each timed row, in order."""
    more_output_token_ids: list[list[list[int]]] = []
    """Of each of `more_passes`: as `output_token_ids`."""
    steps: int
    """Engine steps that emitted for a request, summed over requests; the prefill's is none."""
    drafted_tokens: int
    accepted_tokens: int
    wall_s: float = 0.0
    """Of the timed requests; measured by who gave them, who may have stopped the engine between."""
    records: list[AnswerRecord] = []
    """Of the timed requests that were to be recorded, in order."""
    num_unrecorded: int = 0
    """Of `records`: those of our drafter of which it is not known where tokens came from."""
    by_source: dict[str, dict[str, int]] = {}
    propose_us: dict[str, float] | None = None
    bytes_per_cached_token: float | None = None


class LiveMessage(msgspec.Struct, omit_defaults=True):
    """One line from a worker process: how far it is, or how it all ended."""

    has_started: bool = False
    """The engine is there, and has answered one request; the warm rows wait for a line on standard
    input."""
    is_ready: bool = False
    """The warm rows are learned; the timed ones wait for another line."""
    request_finished: bool = False
    has_served: bool = False
    """The last timed request has finished."""
    outcome: LiveOutcome | None = None
    failure: str | None = None


def uses_reprise(speculative_config: Mapping[str, Any] | None) -> bool:
    """Whether our proposer drafts for an engine with this config."""
    return "reprise." in str(speculative_config)


def speculative_config(method: str, draft_length: int | None) -> dict[str, Any] | None:
    """What a user would pass to vLLM for this method."""
    from reprise.eval.replay.peer_drafters import NGRAM_DRAFT_LENGTH, SUFFIX_LONG

    if method == "none":
        return None
    if method == "ngram":
        return {"method": "ngram", "num_speculative_tokens": draft_length or NGRAM_DRAFT_LENGTH}
    if method in ("reprise", "reprise-drafts-only", NO_DRAFTS):
        return {
            "model": PROPOSER_PATH,
            "num_speculative_tokens": draft_length or 16,
        }
    config: dict[str, Any] = {"method": "suffix"}
    if draft_length is not None:
        config["num_speculative_tokens"] = draft_length
    if method == "suffix-long":
        config["suffix_decoding_max_spec_factor"] = SUFFIX_LONG.max_spec_factor
        config["suffix_decoding_max_tree_depth"] = SUFFIX_LONG.max_tree_depth
    return config


def _serve(
    job: LiveJob, send: Callable[[LiveMessage], None], may_go_on: threading.Semaphore
) -> LiveOutcome:
    def tick() -> None:
        send(LiveMessage(request_finished=True))

    llm = _build_engine(job)
    prompts = [prompt_token_ids(llm, row) for row in job.rows]
    warm = [p for p, row in zip(prompts, job.rows, strict=True) if row.warm]
    timed = [p for p, row in zip(prompts, job.rows, strict=True) if not row.warm]
    # Before the warm rows: no method may pay for it.
    send_first_request(llm)
    send(LiveMessage(has_started=True))
    may_go_on.acquire()
    warm_outputs, _ = generate(
        llm,
        warm,
        concurrency=job.concurrency,
        tick=tick,
        max_tokens=job.max_tokens if job.learns_from_warm else 1,
    )
    if job.uses_reprise:
        settled_report(llm, timeout_s=_FLUSH_S)
    before, drafting_before = draft_counters(llm), _drafting_report(llm) if job.uses_reprise else {}
    send(LiveMessage(is_ready=True))
    may_go_on.acquire()
    watch = _watch(job)
    outputs, steps = generate(
        llm,
        timed,
        concurrency=job.concurrency,
        tick=tick,
        max_tokens=job.max_tokens,
        watch=watch,
    )
    send(LiveMessage(has_served=True))
    after = draft_counters(llm)
    outcome = LiveOutcome(
        output_token_ids=outputs,
        warm_output_token_ids=warm_outputs,
        prompt_token_ids=timed,
        steps=steps,
        drafted_tokens=after["drafted"] - before["drafted"],
        accepted_tokens=after["accepted"] - before["accepted"],
    )
    if job.uses_reprise:
        _add_drafting_report(outcome, drafting_before, _drafting_report(llm))
    if watch is not None:
        if job.uses_reprise:
            settled_report(llm, timeout_s=_FLUSH_S)
        questions = questions_by_prompt(prompts, [row.query_text for row in job.rows])
        outcome.records = watch.records(llm, outputs, questions)
        outcome.num_unrecorded = watch.num_unrecorded
    for concurrency in job.more_passes:
        llm.reset_prefix_cache()
        outputs, _ = generate(
            llm, timed, concurrency=concurrency, tick=tick, max_tokens=job.max_tokens
        )
        outcome.more_output_token_ids.append(outputs)
    return outcome


def _watch(job: LiveJob) -> AnswerWatch | None:
    if not job.num_recorded:
        return None
    method = (job.speculative_config or {}).get("method")
    source = "context" if method == "ngram" else ""
    return AnswerWatch(job.num_recorded, asks_worker=job.uses_reprise, source=source)


def _build_engine(job: LiveJob) -> LLM:
    import torch
    from vllm import LLM

    has_gpu = torch.cuda.is_available()
    return LLM(
        model=job.model,
        dtype=job.dtype,
        # A CPU has nothing to gain from graphs, and starts twice as fast without.
        enforce_eager=not has_gpu,
        max_num_seqs=job.concurrency,
        seed=job.seed,
        disable_log_stats=False,
        speculative_config=job.speculative_config,
        # vLLM's own default is nine tenths; on a CPU another setting says how much.
        **({"gpu_memory_utilization": 0.9 / job.num_engines} if has_gpu else {}),
    )


def prompt_token_ids(llm: LLM, row: TraceRow) -> list[int]:
    """Through the model's chat template where it has one, and the prompt has not been."""
    tokenizer: Any = llm.get_tokenizer()
    text = row.prompt
    has_template = bool(getattr(tokenizer, "chat_template", None))
    if has_template and not row.rendered:
        text = tokenizer.apply_chat_template(
            row.messages or [{"role": "user", "content": row.prompt}],
            add_generation_prompt=True,
            tokenize=False,
        )
    ids: list[int] = tokenizer.encode(text, add_special_tokens=not (has_template or row.rendered))
    return ids


def send_first_request(llm: LLM) -> None:
    """Have an engine do whatever it does on its first request."""
    # Not a short one: on a CPU with AMX that ends vLLM's worker
    # (engine_ext/worker/forward/cpu_kernels.py).
    prompt = [1] * _WARM_UP_TOKENS
    generate(llm, [prompt], concurrency=1, tick=lambda: None, max_tokens=_WARM_UP_TOKENS)


def generate(
    llm: LLM,
    prompts: Sequence[Sequence[int]],
    *,
    concurrency: int,
    tick: Callable[[], None],
    max_tokens: int = MAX_OUTPUT_TOKENS,
    watch: AnswerWatch | None = None,
) -> tuple[list[list[int]], int]:
    """Greedy answers to all prompts, at most `concurrency` at once, and the steps they took.

    A closed loop, as of that many clients: the next request comes when one has finished, and so
    may draft from its answer.
    """
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind

    engine = llm.llm_engine
    room = engine.model_config.max_model_len
    outputs: list[list[int]] = [[] for _ in prompts]
    steps, sent, finished = 0, 0, 0
    while finished < len(prompts):
        while sent < len(prompts) and sent - finished < concurrency:
            params = SamplingParams(
                temperature=0.0,
                max_tokens=max(1, min(max_tokens, room - len(prompts[sent]))),
                # A delta is what one step emitted, so that steps can be counted from outside.
                output_kind=RequestOutputKind.DELTA,
            )
            if watch is not None:
                watch.prepare(sent, params)
            prompt = {"prompt_token_ids": list(prompts[sent])}
            request_id = engine.add_request(f"{len(prompts)}-{sent}", prompt, params)
            if watch is not None:
                watch.begin(sent, request_id)
            sent += 1
        for output in engine.step():
            number = int(output.request_id.split("-")[1])
            token_ids = output.outputs[0].token_ids
            steps += bool(token_ids) and bool(outputs[number])
            outputs[number].extend(token_ids)
            if watch is not None:
                watch.note_step(number, len(token_ids))
            if output.finished:
                finished += 1
                tick()
        if watch is not None:
            watch.keep_up(llm)
    return outputs, steps


def draft_counters(llm: LLM) -> dict[str, int]:
    """vLLM's own counters of speculation; zeros of an engine without.

    Raises:
        LookupError: it has speculation, and not these counters.
    """
    names = {
        "vllm:spec_decode_num_draft_tokens": "drafted",
        "vllm:spec_decode_num_accepted_tokens": "accepted",
    }
    counts: dict[str, int] = {}
    for metric in llm.get_metrics():
        if metric.name in names:
            name = names[metric.name]
            counts[name] = counts.get(name, 0) + int(metric.value)
    if llm.llm_engine.vllm_config.speculative_config is None:
        return {"drafted": 0, "accepted": 0}
    if len(counts) < len(names):
        raise LookupError(f"this vLLM does not count drafts: expected {', '.join(names)}")
    return counts


def _drafting_report(llm: LLM) -> dict[str, Any]:
    report: dict[str, Any] = llm.collective_rpc("reprise_stats")[0]
    return report


def _add_drafting_report(
    outcome: LiveOutcome, before: dict[str, Any], after: dict[str, Any]
) -> None:
    if not after:
        return
    # Dataclasses cross vLLM's process boundary as dictionaries.
    earlier, stats = before["provider"], after["provider"]
    outcome.by_source = {
        source: {
            name: counts[name] - earlier["by_source"][source][name]
            for name in ("drafted", "accepted")
        }
        for source, counts in stats["by_source"].items()
    }
    proposed = summary_between(before["propose_us"], after["propose_us"])
    if proposed["count"]:
        outcome.propose_us = {name: proposed[name] for name in ("p50", "p99")}
    if stats["cached_tokens"]:
        outcome.bytes_per_cached_token = stats["bytes"] / stats["cached_tokens"]


def main() -> None:
    """Arguments: the file of the job, and the descriptor of a pipe for messages, one a line."""
    job = msgspec.json.decode(Path(sys.argv[1]).read_bytes(), type=LiveJob)
    may_go_on = threading.Semaphore(0)
    threading.Thread(target=_listen, args=(may_go_on,), name="reprise-live", daemon=True).start()
    with message_pipe(int(sys.argv[2])) as send:
        try:
            outcome = _serve(job, send, may_go_on)
        except Exception as error:
            send(LiveMessage(failure=reason_of(error)))
            raise
        send(LiveMessage(outcome=outcome))


def _listen(may_go_on: threading.Semaphore) -> None:
    """Take the words to go on; at the end of who gives them, end with all that runs here.

    Ended without a chance to say so, it would leave an engine that keeps the cores busy.
    """
    while sys.stdin.readline():
        may_go_on.release()
    os.killpg(os.getpgid(0), signal.SIGKILL)


if __name__ == "__main__":
    main()
