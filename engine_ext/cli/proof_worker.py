"""One engine of `reprise doctor --prove`, with drafts or without, in a process of its own."""

import os
import queue
import signal
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from reprise.engine_ext.cli.answer_difference import Difference, Gap
from reprise.engine_ext.cli.worker_process import message_pipe, reason_of
from reprise.engine_ext.core.proposer_path import PROPOSER_PATH

if TYPE_CHECKING:
    from vllm import LLM
    from vllm.engine.arg_utils import EngineArgs

_DRAFT_LENGTH = 16
_LEARNED_WITHIN_S = 300.0
_WARM_UP_TOKENS = 8
_TOP_LOGITS = 20


class ProofJob(msgspec.Struct, frozen=True, kw_only=True):
    """What an engine is to serve."""

    model: str
    options: list[str]
    """vLLM's, as on its command line."""
    with_drafts: bool
    learned: list[str]
    """Questions that are asked before, untimed, for what there is to draft from."""
    asked: list[str]
    max_tokens: int
    """Of an answer."""


class ProofOutcome(msgspec.Struct, kw_only=True):
    """What the questions came to."""

    prompts: list[list[int]]
    """Token ids, of each question."""
    answers: list[list[int]]
    took_s: float
    dtype: str
    """The engine's: bfloat16, float16, float32."""
    drafted: int = 0
    accepted: int = 0


class ProofMessage(msgspec.Struct, omit_defaults=True):
    """One line from the process."""

    is_ready: bool = False
    """The engine is there."""
    has_answered: bool = False
    outcome: ProofOutcome | None = None
    logits: list[Gap] | None = None
    failure: str | None = None


def _serve(
    job: ProofJob, send: Callable[[ProofMessage], None], lines: "queue.SimpleQueue[bytes]"
) -> None:
    from vllm import LLM

    llm = LLM.from_engine_args(_engine_args(job))
    # Not a short one: on a CPU with AMX that ends vLLM's worker
    # (engine_ext/worker/forward/cpu_kernels.py).
    _answer(llm, [1] * _WARM_UP_TOKENS, _WARM_UP_TOKENS)
    send(ProofMessage(is_ready=True))
    for question in job.learned:
        _answer(llm, _token_ids(llm, question), job.max_tokens)
        send(ProofMessage(has_answered=True))
    before = (0, 0)
    if job.with_drafts:
        _wait_until_learned(llm)
        before = _draft_counts(llm)
    prompts = [_token_ids(llm, question) for question in job.asked]
    answers, took_s = [], 0.0
    for prompt in prompts:
        began_s = time.perf_counter()
        answers.append(_answer(llm, prompt, job.max_tokens))
        took_s += time.perf_counter() - began_s
        send(ProofMessage(has_answered=True))
    outcome = ProofOutcome(
        prompts=prompts,
        answers=answers,
        took_s=took_s,
        dtype=str(llm.llm_engine.model_config.dtype).removeprefix("torch."),
    )
    if job.with_drafts:
        _wait_until_learned(llm)
        after = _draft_counts(llm)
        outcome.drafted, outcome.accepted = after[0] - before[0], after[1] - before[1]
    send(ProofMessage(outcome=outcome))
    # Whoever has the other answers gives what differs, and waits for the logits there.
    if line := lines.get():
        differences = msgspec.json.decode(line, type=list[Difference])
        send(ProofMessage(logits=[_logits(llm, difference) for difference in differences]))


def _engine_args(job: ProofJob) -> "EngineArgs":
    """Return what vLLM makes of the options.

    Raises:
        ValueError: vLLM does not know them.
    """
    from vllm.engine.arg_utils import EngineArgs
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    parser = EngineArgs.add_cli_args(FlexibleArgumentParser())
    try:
        args = EngineArgs.from_cli_args(parser.parse_args(["--model", job.model, *job.options]))
    except SystemExit:
        raise ValueError(f"vLLM does not take these options: {' '.join(job.options)}") from None
    args.disable_log_stats = False
    args.logprobs_mode = "raw_logits"
    if job.with_drafts:
        args.speculative_config = {
            "model": PROPOSER_PATH,
            "num_speculative_tokens": _DRAFT_LENGTH,
        }
        args.additional_config = _in_memory(args.additional_config)
    return args


def _in_memory(additional_config: Any) -> dict[str, Any]:
    """Return settings with which nothing of a proof is kept, nor drafted from what others keep."""
    given = dict(additional_config or {})
    ours = dict(given.get("reprise") or {})
    ours["retrieval"] = {
        **ours.get("retrieval", {}),
        "url": "memory://",
        "index_snapshot": None,
    }
    ours["drafts"] = {**ours.get("drafts", {}), "weights_file": None}
    return {**given, "reprise": ours}


def _token_ids(llm: "LLM", question: str) -> list[int]:
    """Return a question as a chat's, where the model has a chat template."""
    tokenizer: Any = llm.get_tokenizer()
    if not getattr(tokenizer, "chat_template", None):
        return list(tokenizer.encode(question))
    text = tokenizer.apply_chat_template(
        [{"role": "user", "content": question}], add_generation_prompt=True, tokenize=False
    )
    return list(tokenizer.encode(text, add_special_tokens=False))


def _answer(llm: "LLM", prompt: Sequence[int], max_tokens: int) -> list[int]:
    """Return the greedy answer."""
    from vllm import SamplingParams

    room = llm.llm_engine.model_config.max_model_len - len(prompt)
    params = SamplingParams(temperature=0.0, max_tokens=max(1, min(max_tokens, room)))
    (output,) = llm.generate([{"prompt_token_ids": list(prompt)}], params, use_tqdm=False)
    return list(output.outputs[0].token_ids)


def _logits(llm: "LLM", difference: Difference) -> Gap:
    """Return the logits where two answers part, as this engine computes them; of a token that is
    not among the best 20, that of the last of these."""
    from vllm import SamplingParams

    most = llm.llm_engine.model_config.max_logprobs
    count = _TOP_LOGITS if most < 0 else min(_TOP_LOGITS, most)
    params = SamplingParams(temperature=0.0, max_tokens=1, logprobs=count)
    prompt = {"prompt_token_ids": difference.token_ids}
    (output,) = llm.generate([prompt], params, use_tqdm=False)
    (place,) = output.outputs[0].logprobs or [{}]
    found = {token: each.logprob for token, each in place.items()}
    lowest = min(found.values())
    low, high = sorted(found.get(token, lowest) for token in difference.said)
    return Gap((high, low), best=max(found.values()))


def _wait_until_learned(llm: "LLM") -> None:
    """Wait until what was answered can be drafted from: the worker hears of an answer's end after
    who asked for it.

    Raises:
        TimeoutError: it took too long.
    """
    deadline_s = time.monotonic() + _LEARNED_WITHIN_S
    while _report(llm)["live_requests"]:
        if time.monotonic() > deadline_s:
            raise TimeoutError("the drafter has not heard of the end of all answers")
        time.sleep(0.05)
    if llm.collective_rpc("reprise_flush", args=(_LEARNED_WITHIN_S,))[0] is not True:
        raise TimeoutError("not all answers were learned")


def _draft_counts(llm: "LLM") -> tuple[int, int]:
    provider = _report(llm)["provider"]  # a dataclass crosses processes as a dictionary
    return int(provider["drafted"]), int(provider["accepted"])


def _report(llm: "LLM") -> dict[str, Any]:
    report: dict[str, Any] = llm.collective_rpc("reprise_stats")[0]
    return report


def _listen(lines: "queue.SimpleQueue[bytes]") -> None:
    """Take the lines on standard input; at their end, which is that of who has started this, end
    with all that runs here."""
    for line in sys.stdin.buffer:
        lines.put(line.strip())
    os.killpg(os.getpgid(0), signal.SIGKILL)


def main() -> None:
    """Arguments: the file of the job, and the descriptor of a pipe for messages, one a line."""
    job = msgspec.json.decode(Path(sys.argv[1]).read_bytes(), type=ProofJob)
    lines: queue.SimpleQueue[bytes] = queue.SimpleQueue()
    threading.Thread(target=_listen, args=(lines,), name="reprise-proof", daemon=True).start()
    with message_pipe(int(sys.argv[2])) as send:
        try:
            _serve(job, send, lines)
        except Exception as error:
            send(ProofMessage(failure=reason_of(error)))
            raise


if __name__ == "__main__":
    main()
