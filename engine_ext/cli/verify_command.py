"""`reprise cache verify`: which stored answers a model would still give."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer

from reprise.engine_ext.answer_page.document import document, escaped
from reprise.engine_ext.checks.machine_checks import check_vllm_sockets
from reprise.retrieval.api.answer import Answer
from reprise.retrieval.api.tier_url import redact
from reprise.retrieval.cli.tier_access import (
    Namespace,
    Url,
    answers_in_words,
    batches,
    check_output,
    namespaces_of,
    opened,
)
from reprise.retrieval.host.private_files import open_private
from reprise.retrieval.query.tokenizer_key import vocabulary_key

if TYPE_CHECKING:
    from vllm.outputs import RequestOutput

_TOP_LOGPROBS = 2
_SHOWN = 20
_SHOWN_CHARACTERS = 60
_BEFORE_TOKENS = 12


class Difference(NamedTuple):
    """Where a model leaves a stored answer."""

    place: int
    """In the answer, from 0."""
    token_id: int
    """What the model would generate there."""


class Checked(NamedTuple):
    """A stored answer, and where the model would leave it; None: nowhere."""

    answer: Answer
    difference: Difference | None


class Shown(NamedTuple):
    """A changed answer in words."""

    prompt: str
    place: int
    num_tokens: int
    before: str
    stored: str
    now: str


def verify(
    url: Url,
    model: Annotated[str, typer.Option(help="Folder or name of the model that is to answer.")],
    namespace: Namespace = None,
    dtype: Annotated[str, typer.Option(help="As vLLM's --dtype.")] = "auto",
    limit: Annotated[
        int | None, typer.Option(min=1, help="Check at most so many, the newest first.")
    ] = None,
    report: Annotated[
        Path | None, typer.Option("--html", help="Write all differences to this file.")
    ] = None,
) -> None:
    """Say which stored answers a model would still give, as before an upgrade.

    Checks greedy answers that are kept for exact hits, each by one prefill.

    Example: reprise cache verify --model NEW --url redis://localhost:6379/0 --html report.html
    """
    if report is not None:
        check_output(report, url)
    with opened(url, only_reads=True) as tier:
        found = [a for name in namespaces_of(tier, namespace) for a in tier.exact_answers(name)]
    wanted = [answer for answer in found if answer.verifiable and answer.response_tokens]
    key = vocabulary_key(model)
    own = [answer for answer in wanted if answer.tokenizer_key == key]
    num_others = len(wanted) - len(own)
    if not own:
        others = f"; {num_others} are of another tokenizer" if num_others else ""
        raise ValueError(f"no greedy answers for exact hits in {redact(url)}{others}")
    own = sorted(own, key=lambda answer: -answer.created_s)[:limit]
    engine = _engine(model, dtype, own)
    checked = [one for batch in batches(own) for one in _check(engine, batch)]
    changed = [_in_words(one, engine.get_tokenizer()) for one in checked if one.difference]
    lines = _summary(checked, num_others=num_others)
    for line in lines:
        typer.echo(line)
    for one in changed[:_SHOWN]:
        typer.echo(
            f"  token {one.place + 1} of {one.num_tokens}: {one.stored!r} is now {one.now!r}, "
            f"after {one.before!r}; {one.prompt!r}"
        )
    if report is not None:
        try:
            with open_private(report) as file:
                file.write(_page(model, lines, changed).encode())
        except OSError as error:
            raise ValueError(f"cannot write {report}: {error.strerror}") from error
        typer.echo(f"{answers_in_words(len(changed))} that changed written to {report}")


def _engine(model: str, dtype: str, answers: Sequence[Answer]) -> Any:
    """Return vLLM with this model, with room for the longest of the answers.

    Raises:
        ValueError: vLLM could make no sockets; one line says why.
    """
    for finding in check_vllm_sockets():
        if finding.problem is not None:
            raise ValueError(str(finding))
    from vllm import LLM

    longest = max(len(a.prompt_token_ids) + len(a.response_token_ids) for a in answers)
    return LLM(model=model, dtype=dtype, max_model_len=longest + 1)


def _check(engine: Any, answers: Sequence[Answer]) -> Iterator[Checked]:
    from vllm import SamplingParams

    params = SamplingParams(
        temperature=0.0, max_tokens=1, prompt_logprobs=_TOP_LOGPROBS, detokenize=False
    )
    prompts = [
        {"prompt_token_ids": [*a.prompt_token_ids.tolist(), *a.response_token_ids.tolist()]}
        for a in answers
    ]
    for answer, output in zip(answers, engine.generate(prompts, params), strict=True):
        yield Checked(answer, _difference(answer, output))


def _difference(answer: Answer, output: "RequestOutput") -> Difference | None:
    """Return where the most probable token is another one than the stored."""
    first = len(answer.prompt_token_ids)
    rows = (output.prompt_logprobs or [])[first:]
    for place, (token_id, row) in enumerate(
        zip(answer.response_token_ids.tolist(), rows, strict=True)
    ):
        best = max(entry.logprob for entry in row.values())
        # As greedy sampling does: of equal ones the lowest.
        now = min(each for each, entry in row.items() if entry.logprob == best)
        if now != token_id:
            return Difference(place, now)
    return None


def _summary(checked: Sequence[Checked], *, num_others: int) -> list[str]:
    num_same = sum(one.difference is None for one in checked)
    num_tokens = sum(len(one.answer.response_token_ids) for one in checked)
    num_kept = sum(
        len(one.answer.response_token_ids) if one.difference is None else one.difference.place
        for one in checked
    )
    lines = [
        f"{num_same} of {answers_in_words(len(checked))} would be given again "
        f"({num_same / len(checked):.1%})",
        f"{num_kept} of {num_tokens} tokens come before the first difference "
        f"({num_kept / num_tokens:.1%})",
    ]
    if num_others:
        lines.append(f"{answers_in_words(num_others)} of another tokenizer not checked")
    return lines


def _in_words(checked: Checked, tokenizer: Any) -> Shown:
    answer, difference = checked
    assert difference is not None
    token_ids = answer.response_token_ids.tolist()
    place = difference.place
    prompt = " ".join(answer.prompt_text.split())
    return Shown(
        prompt=prompt[:_SHOWN_CHARACTERS] + "…" * (len(prompt) > _SHOWN_CHARACTERS),
        place=place,
        num_tokens=len(token_ids),
        before=tokenizer.decode(token_ids[max(0, place - _BEFORE_TOKENS) : place]),
        stored=tokenizer.decode([token_ids[place]]),
        now=tokenizer.decode([difference.token_id]),
    )


def _page(model: str, lines: Sequence[str], changed: Sequence[Shown]) -> str:
    """Return the report as one file of HTML."""
    rows = (
        (one.prompt, f"{one.place + 1} of {one.num_tokens}", one.before, one.stored, one.now)
        for one in changed
    )
    said = "\n".join(f"<p>{escaped(line)}.</p>" for line in lines)
    cells = "\n".join(
        "<tr>" + "".join(f"<td>{escaped(cell)}</td>" for cell in row) + "</tr>" for row in rows
    )
    table = (
        "<div class=card><table class=texts>\n"
        f"<tr><th>question<th>token<th>after<th>stored<th>now</tr>\n{cells}\n</table></div>"
    )
    return document(
        "Stored answers",
        f"<h1>Stored answers, and {escaped(model)}</h1>\n{said}\n{table if changed else ''}",
        has_answers=False,
    )
