"""A page with every kind of thing on it, some of it hostile."""

from pathlib import Path
from typing import Any

from reprise.engine_ext.answer_page.records import (
    AnswerRecord,
    CachedReply,
    RecordedTrace,
    SeenAnswer,
)
from reprise.engine_ext.answer_page.shown import shown_traces
from reprise.eval.demo_data.demo_model import demo_tokenizer_path
from reprise.eval.replay.token_rows import load_tokenizer
from reprise.eval.report.html_report import render_html, write_html
from reprise.spec.api.recorded_steps import DraftedToken, RecordedStep

HOSTILE = "</script><img src=http://x.example onerror=alert(1)>\"' --><b>"
CONFIG: dict[str, Any] = {
    "engine": "replay",
    "machine": f"two cores {HOSTILE}",
    "cost": 0.02,
    "threshold": 0.8,
}
tokenizer = load_tokenizer(demo_tokenizer_path())


def ids(text: str) -> list[int]:
    """Token ids of an answer, the end included."""
    return [*tokenizer.encode(text).tolist(), tokenizer.end_token_id]


def in_steps(
    token_ids: list[int], sources: list[tuple[str, str | None]], accepted: int, rejected: str = ""
) -> list[RecordedStep]:
    """Steps that each accept so many tokens of a draft, from these sources in turn."""
    steps, at = [], 1
    while at < len(token_ids):
        source, answer_id = sources[len(steps) % len(sources)]
        emitted = min(accepted + 1, len(token_ids) - at)
        took = min(accepted, emitted)
        draft = [DraftedToken(token, source, answer_id) for token in token_ids[at : at + took]]
        wrong = [DraftedToken(token, source, answer_id) for token in ids(rejected)[:-1]]
        steps.append(RecordedStep(emitted, took, draft + wrong))
        at += emitted
    return steps


def plain(token_ids: list[int]) -> AnswerRecord:
    return AnswerRecord(token_ids, [RecordedStep(1, 0)] * (len(token_ids) - 1))


def recorded() -> RecordedTrace:
    """Three answers: drafted from everything, from nothing, and in signs of several bytes."""
    first = ids("Your order 4711 is on its way, and comes on Monday.\nThank you & goodbye.")
    second, third = ids("Nothing here was known before."), ids("退款需要 3 天 🙂 ok")
    sources = [("near_answer", "b"), ("context", None), ("corpus", None), ("near_answer", "a")]
    near = {
        "a": SeenAnswer(f"When does order 1 come? {HOSTILE}", 0.91),
        "b": SeenAnswer("Where is my parcel?", 0.734, clause=2),
    }
    return RecordedTrace(
        questions=[f"When does it come? {HOSTILE}", "What is new?", "退款要多久?"],
        prompts=[
            f"system: be kind {HOSTILE}\n\nuser: When does it come?",
            "What is new?",
            "退款要多久?",
        ],
        answers={
            "none": [plain(first), plain(second), plain(third)],
            "suffix": [
                AnswerRecord(first, in_steps(first, [("", None)], 2), has_whole_drafts=False),
                plain(second),
                plain(ids("退款需要 4 天")),
            ],
            "reprise": [
                AnswerRecord(first, in_steps(first, sources, 3, f" {HOSTILE}"), near),
                plain(second),
                AnswerRecord(third, in_steps(third, sources[:1], 2), {"b": near["b"]}),
            ],
        },
        cached=[
            CachedReply(
                f"When comes order 1? {HOSTILE}",
                0.953,
                ids(f"Your order 15 is on its way, and comes on Friday. {HOSTILE}"),
            ),
            None,
            CachedReply("退款多久?", 0.99, third),
        ],
    )


def page(names: tuple[str, ...] = (f"desk {HOSTILE}",)) -> str:
    shown = shown_traces({name: recorded() for name in names}, tokenizer)
    return render_html(CONFIG, [], plot_svg=None, answers=shown)


def write_unbroken_page(path: Path) -> None:
    """Write a page on which everything that a trace names is a long text without a space."""
    word = "https://desk.example/" + "Q" * 400
    steps = in_steps(ids(word), [("near_answer", "a"), ("context", None)], 3, word)
    answer = AnswerRecord(ids(word), steps, {"a": SeenAnswer(word, 0.9)})
    trace = RecordedTrace(
        [word], [f"{word} {word}"], {"reprise": [answer]}, [CachedReply(word, 0.9, ids(word[:-9]))]
    )
    config = CONFIG | {"machine": word, "traces": [word]}
    write_html(path, config, [], plot_svg=None, answers=shown_traces({word: trace}, tokenizer))


def write_right_to_left_page(path: Path) -> None:
    """Write a page of a question in Arabic, with near ones in Arabic and in English."""
    question = "متى يصل طلبي رقم 4711؟"
    said = ids("يصل يوم الاثنين.")
    near = {"a": SeenAnswer(question, 0.9), "b": SeenAnswer("Where is my parcel?", 0.8)}
    answer = AnswerRecord(
        said, in_steps(said, [("near_answer", "a"), ("near_answer", "b")], 2), near
    )
    trace = RecordedTrace([question], [question], {"reprise": [answer]}, cached=None)
    write_html(path, CONFIG, [], plot_svg=None, answers=shown_traces({"desk": trace}, tokenizer))


def write_page(path: Path) -> None:
    shown = shown_traces({"desk": recorded()}, tokenizer)
    write_html(path, CONFIG, [], plot_svg=None, answers=shown)
