"""`reprise doctor --prove MODEL`: the same questions with drafts and without, on this machine."""

import contextlib
import os
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple, TypeVar

import msgspec

from reprise.engine_ext.cli.answer_difference import Difference, Gap, first_difference
from reprise.engine_ext.cli.proof_worker import ProofJob, ProofMessage, ProofOutcome
from reprise.engine_ext.cli.serve_command import OUR_PLUGIN, plugins_loaded
from reprise.engine_ext.cli.worker_process import WorkerProcess, cause_of, end_workers

MAX_TOKENS = 64
_EXIT_S = 20.0
_FASTER, _SLOWER = 1.05, 0.95
_WORKER = "reprise.engine_ext.cli.proof_worker"

_SUBJECTS = (
    "a bicycle", "a lighthouse", "a library card", "the tide", "a sundial", "yeast", "a compass",
    "a greenhouse", "a bridge", "an umbrella", "a volcano", "a clock", "a harbour", "a recipe",
    "a glacier", "a telescope", "a market", "a passport", "a windmill", "an echo",
)  # fmt: skip
LEARNED = tuple(f"Explain in a few sentences what {each} is." for each in _SUBJECTS)
ASKED = tuple(f"What is {each}? Explain it in a few sentences." for each in _SUBJECTS)
"""Each resembles one of `LEARNED`, as questions of different users do."""

Say = Callable[[str], None]
Found = TypeVar("Found")


class ProofError(RuntimeError):
    """An engine that failed; the message is one line."""


class Parting(NamedTuple):
    """A question whose answers differ."""

    number: int
    """Of the question, from 1."""
    place: int
    """Of the first token that differs, from 1."""
    gap: Gap
    """As the engine without drafts has it."""


class Proof(NamedTuple):
    """What came of it."""

    drafted: ProofOutcome
    """With drafts."""
    plain: ProofOutcome
    partings: list[Parting]

    @property
    def speedup(self) -> float:
        """How many times faster with drafts, in tokens per second."""
        return tokens_per_s(self.drafted) / tokens_per_s(self.plain)


def prove(model: str, options: Sequence[str], say: Say) -> Proof:
    """Serve the same questions with drafts and without, one at a time, in an engine after another.

    Args:
        model: As for `vllm serve`.
        options: Others of vLLM's engine.
        say: Takes lines on how far it is.

    Raises:
        ProofError: An engine failed.
    """
    with _engine(model, options, with_drafts=True) as worker:
        drafted = _answers(worker, "with drafts", say)
        _let_end(worker)
    with _engine(model, options, with_drafts=False) as worker:
        plain = _answers(worker, "without drafts", say)
        found = list(_differences(drafted, plain))
        worker.send_line(msgspec.json.encode([difference for _, difference in found]))
        logits = _next(worker, lambda message: message.logits)
        _let_end(worker)
    partings = [
        Parting(number + 1, len(difference.token_ids) - len(plain.prompts[number]) + 1, each)
        for (number, difference), each in zip(found, logits, strict=True)
    ]
    return Proof(drafted, plain, partings)


def report_lines(proof: Proof) -> Iterator[str]:
    """Say what came of it, and in the end what to do."""
    for name, outcome in (("with drafts", proof.drafted), ("without drafts", proof.plain)):
        yield (
            f"{name + ':':16}{len(outcome.answers)} answers of {num_tokens(outcome)} tokens, one "
            f"at a time, {tokens_per_s(outcome):.1f} tokens/s"
        )
    drafts = proof.drafted
    share = f"{drafts.accepted / drafts.drafted:.0%}" if drafts.drafted else "none"
    yield f"{'drafts:':16}{drafts.drafted} tokens, of which {share} accepted"
    total = len(proof.plain.answers)
    yield f"{'identical:':16}{total - len(proof.partings)} of {total}"
    for parting in proof.partings:
        high, low = parting.gap.logits
        yield (
            f"{'':16}question {parting.number} differs from token {parting.place} on; logits "
            f"of the two tokens {high:.4f} and {low:.4f}, the best {parting.gap.best:.4f}, in "
            f"{proof.plain.dtype}"
        )
    yield f"{'recommendation:':16}{recommendation(proof)}"


def recommendation(proof: Proof) -> str:
    """Say in words what to do on this machine with this model."""
    unexplained = [each for each in proof.partings if not each.gap.is_tie_in(proof.plain.dtype)]
    if unexplained:
        return (
            f"serve without drafts for now (REPRISE_FEATURES__DRAFTS=false). Answers that differ "
            f"where the logits are not close, which rounding does not explain: "
            f"{len(unexplained)}. Please report it with these lines."
        )
    parts = []
    if proof.partings:
        parts.append(
            "Where answers differ the best tokens nearly tie, and rounding decides, as it does "
            "between any two batches; --dtype float32 or REPRISE_CPU_BATCH_INVARIANT=true (on a "
            "CPU) makes that rarer."
        )
    speedup = proof.speedup
    if speedup >= _FASTER:
        advice = f"serve with drafts: {speedup:.2f} times as fast where questions resemble others"
    elif speedup > _SLOWER:
        advice = (
            "no difference in speed on these questions; measure with your own before you decide"
        )
    else:
        advice = (
            f"serve without drafts (REPRISE_FEATURES__DRAFTS=false): with them it is "
            f"{speedup:.2f} times as fast; exact hits stay"
        )
    parts.insert(0, f"{advice}. The busier the device, the less there is to gain.")
    return " ".join(parts)


def tokens_per_s(outcome: ProofOutcome) -> float:
    """Return how fast an engine has answered, prefills included."""
    return num_tokens(outcome) / outcome.took_s


def num_tokens(outcome: ProofOutcome) -> int:
    """Count the tokens of all answers."""
    return sum(map(len, outcome.answers))


def _differences(one: ProofOutcome, other: ProofOutcome) -> Iterator[tuple[int, Difference]]:
    if one.prompts != other.prompts:
        raise ProofError("the two engines were given different tokens for the same questions")
    for number, prompt in enumerate(one.prompts):
        try:
            difference = first_difference(prompt, one.answers[number], other.answers[number])
        except ValueError as error:
            raise ProofError(f"question {number + 1}: {error}") from None
        if difference is not None:
            yield number, difference


@contextlib.contextmanager
def _engine(
    model: str, options: Sequence[str], *, with_drafts: bool
) -> Iterator[WorkerProcess[ProofMessage]]:
    """Run an engine's process, which is gone afterwards with all that it has started."""
    job = ProofJob(
        model=model,
        options=list(options),
        with_drafts=with_drafts,
        learned=list(LEARNED),
        asked=list(ASKED),
        max_tokens=MAX_TOKENS,
    )
    worker = WorkerProcess(_WORKER, job, ProofMessage, _environment(with_drafts=with_drafts))
    try:
        yield worker
    finally:
        end_workers([worker])


def _environment(
    environment: Mapping[str, str] = os.environ, *, with_drafts: bool
) -> dict[str, str]:
    """Return an engine's environment; without drafts, that of vLLM as it comes: our plugin is not
    even imported."""
    names = plugins_loaded(environment)
    names = names | {OUR_PLUGIN} if with_drafts else names - {OUR_PLUGIN}
    return {**environment, "VLLM_PLUGINS": ",".join(sorted(names))}


def _answers(worker: WorkerProcess[ProofMessage], name: str, say: Say) -> ProofOutcome:
    """Follow an engine until all is answered."""
    say(f"{name}: the engine starts")
    began_s = time.monotonic()
    _next(worker, lambda message: message.is_ready or None)
    say(f"{name}: ready after {time.monotonic() - began_s:.0f} s")
    total, answered = len(LEARNED) + len(ASKED), 0

    def take(message: ProofMessage) -> ProofOutcome | None:
        nonlocal answered
        answered += message.has_answered
        if message.has_answered and answered % 5 == 0:
            say(f"{name}: {answered} of {total} answers")
        return message.outcome

    return _next(worker, take)


def _next(
    worker: WorkerProcess[ProofMessage], take: Callable[[ProofMessage], Found | None]
) -> Found:
    """Return the first thing that `take` finds in what the process says.

    Raises:
        ProofError: It has failed, or ended.
    """
    while True:
        message = worker.messages.get()
        failure = message.failure if message else "the engine's process ended without a word"
        if message is None or failure is not None:
            raise ProofError(cause_of(failure or "", worker.log_file))
        if (found := take(message)) is not None:
            return found


def _let_end(worker: WorkerProcess[ProofMessage]) -> None:
    """Have an engine's process end by itself, if it does in time."""
    worker.send_line()
    with contextlib.suppress(subprocess.TimeoutExpired):
        worker.process.wait(_EXIT_S)
