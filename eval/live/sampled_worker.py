"""One engine that answers requests of many ways to sample, all beside one another, in a process of
its own.

Light imports, see `live_worker`.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from reprise.engine_ext.cli.worker_process import message_pipe, reason_of
from reprise.eval.live.live_worker import draft_counters, send_first_request, uses_reprise
from reprise.eval.live.settled_report import settled_report

if TYPE_CHECKING:
    from vllm import LLM

_FLUSH_S = 120.0


class SampledJob(msgspec.Struct, frozen=True, kw_only=True):
    """What a worker process is to do."""

    model: str
    dtype: str
    speculative_config: dict[str, Any] | None
    questions: list[str]
    samplings: list[dict[str, Any]]
    """Keywords of `SamplingParams`, of each question."""
    passes: int
    """All are asked so many times, from an empty prefix cache."""
    at_once: int
    """Requests in a batch, at most."""


class SampledOutcome(msgspec.Struct, kw_only=True):
    """What the requests came to."""

    answers: list[list[list[int]]]
    """Token ids, of each pass and request."""
    drafted: list[int]
    """Tokens, of each pass."""
    accepted: list[int]
    runner: str
    """v1 or v2: vLLM's model runner."""


class SampledMessage(msgspec.Struct, omit_defaults=True):
    """One line from the process."""

    has_started: bool = False
    """The engine is there, and has answered one request."""
    has_answered: bool = False
    outcome: SampledOutcome | None = None
    failure: str | None = None


def _serve(job: SampledJob, send: Callable[[SampledMessage], None]) -> None:
    import torch
    from vllm import LLM

    llm = LLM(
        model=job.model,
        dtype=job.dtype,
        enforce_eager=not torch.cuda.is_available(),
        max_num_seqs=job.at_once,
        seed=0,
        disable_log_stats=False,
        speculative_config=job.speculative_config,
    )
    send_first_request(llm)
    send(SampledMessage(has_started=True))
    outcome = SampledOutcome(answers=[], drafted=[], accepted=[], runner=_runner(llm))
    for number in range(job.passes):
        llm.reset_prefix_cache()
        before = draft_counters(llm)
        outcome.answers.append(_answers(llm, job, number, send))
        if uses_reprise(job.speculative_config):
            settled_report(llm, timeout_s=_FLUSH_S)
        after = draft_counters(llm)
        outcome.drafted.append(after["drafted"] - before["drafted"])
        outcome.accepted.append(after["accepted"] - before["accepted"])
    send(SampledMessage(outcome=outcome))


def _runner(llm: LLM) -> str:
    return "v2" if llm.llm_engine.vllm_config.use_v2_model_runner else "v1"


def _answers(
    llm: LLM, job: SampledJob, number: int, send: Callable[[SampledMessage], None]
) -> list[list[int]]:
    """Give all requests to the engine, which takes so many at a time."""
    from vllm import SamplingParams

    engine, tokenizer = llm.llm_engine, llm.get_tokenizer()
    outputs: list[list[int]] = [[] for _ in job.questions]
    for place, (question, sampling) in enumerate(zip(job.questions, job.samplings, strict=True)):
        token_ids = tokenizer.apply_chat_template(
            [{"role": "user", "content": question}],
            add_generation_prompt=True,
            tokenize=True,
            return_dict=False,
        )
        prompt: Any = {"prompt_token_ids": token_ids}
        engine.add_request(f"{number}-{place}", prompt, SamplingParams(**sampling))
    while engine.has_unfinished_requests():
        for output in engine.step():
            if output.finished:
                place = int(output.request_id.split("-")[1])
                outputs[place] = list(output.outputs[0].token_ids)
                send(SampledMessage(has_answered=True))
    return outputs


def _end_with_input() -> None:
    """End with all that runs here once who has started this is gone."""
    sys.stdin.buffer.read()
    os.killpg(os.getpgid(0), 9)


def main() -> None:
    """Arguments: the file of the job, and the descriptor of a pipe for messages, one a line."""
    job = msgspec.json.decode(Path(sys.argv[1]).read_bytes(), type=SampledJob)
    threading.Thread(target=_end_with_input, name="reprise-sampled", daemon=True).start()
    with message_pipe(int(sys.argv[2])) as send:
        try:
            _serve(job, send)
        except Exception as error:
            send(SampledMessage(failure=reason_of(error)))
            raise


if __name__ == "__main__":
    main()
