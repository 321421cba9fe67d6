"""The page without a browser: its structure, its counts, and that text stays text."""

import re
from html.parser import HTMLParser

from reprise.engine_ext.answer_page.document import answers_script, escaped
from reprise.engine_ext.answer_page.records import RecordedTrace
from reprise.engine_ext.answer_page.shown import shown_trace, shown_traces
from reprise.eval.report.html_report import render_html
from reprise.tests.engine_ext.answer_page.pages import (
    CONFIG,
    HOSTILE,
    page,
    plain,
    recorded,
    tokenizer,
)

VOID = {"meta", "input", "br"}


class Outline(HTMLParser):
    """What a browser would make of the page: elements, attributes, and what is not closed."""

    def __init__(self) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.stray: list[str] = []
        self.text: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        if self.open and self.open[-1] == tag:
            self.open.pop()
        else:
            self.stray.append(tag)

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] not in ("script", "style"):
            self.text.append(data)


def outline() -> Outline:
    parsed = Outline()
    parsed.feed(page())
    return parsed


def articles() -> list[str]:
    return re.findall("<article.*?</article>", page(), re.DOTALL)


def tokens(article: str) -> list[tuple[str, str]]:
    """Classes and texts of the tokens of an answer."""
    return re.findall(r"<i class='?([^'> ]+)[^>]*>(.*?)</i>", article, re.DOTALL)


def test_everything_that_is_opened_is_closed() -> None:
    parsed = outline()
    assert parsed.open == []
    assert parsed.stray == []
    assert {tag for tag, _ in parsed.elements} >= {"article", "i", "mark", "path", "details"}


def test_what_comes_from_a_trace_is_text() -> None:
    parsed = outline()
    assert "img" not in {tag for tag, _ in parsed.elements}
    assert not any(name.startswith("on") for _, given in parsed.elements for name in given)
    whole = "".join(parsed.text)
    # The machine, the trace, the question, its prompt, two near questions' and the answer's places.
    assert whole.count(HOSTILE) >= 6
    rejected = [given["data-r"] for tag, given in parsed.elements if given.get("data-r")]
    assert any("</script>" in text for text in rejected if text)


def test_nothing_is_fetched_and_no_other_script_may_run() -> None:
    parsed = outline()
    for tag, given in parsed.elements:
        assert not given.keys() & {"src", "href", "action"}, tag
    (policy,) = (given["content"] for tag, given in parsed.elements if "http-equiv" in given)
    assert policy is not None
    assert policy.startswith("default-src 'none'; ")
    assert "script-src 'sha256-" in policy
    assert page().count("<script>") == 1
    assert "http" not in answers_script()
    assert "innerHTML" not in answers_script()


def test_answers_read_as_they_were_said() -> None:
    said = ["".join(text for _, text in tokens(article)) for article in articles()]
    assert (
        said[0]
        == "Your order 4711 is on its way, and comes on Monday.\nThank you &amp; goodbye.end"
    )
    assert said[1] == "Nothing here was known before.end"
    assert said[2] == "退款需要 3 天 🙂 okend"


def test_tokens_and_steps_are_counted() -> None:
    trace = recorded()
    for article, record in zip(articles(), trace.answers["reprise"], strict=True):
        shown = tokens(article)
        assert len(shown) == len(record.token_ids)
        assert article.count("<span class=s") == len(record.steps) + 1
        free = sum(step.num_accepted for step in record.steps)
        assert sum(name != "m" for name, _ in shown) == free
        assert f"<b>{free} came for free</b>" in article
        assert f"{len(record.token_ids)} tokens in {len(record.steps)} steps" in article
        for method, answers in trace.answers.items():
            number = len(answers[articles().index(article)].steps)
            assert re.search(rf"<span>{method}.*?>{number} steps<", article)
    assert {name for name, _ in tokens(articles()[0])} == {"m", "n", "c", "k"}


def test_a_token_names_its_near_answer() -> None:
    first = articles()[0]
    listed = re.findall("<li.*?</li>", first)
    assert len(listed) == 2
    numbers = set(re.findall(r"data-a=(\d+)", first))
    assert numbers == {"0", "1"}
    assert "0.91" in listed[0]
    assert "found for part 2 of the question" in listed[1]


def test_a_semantic_cache_is_held_against_the_model() -> None:
    wrong, asked, right = articles()
    assert "class='answer drafted wrong'" in wrong
    assert "<mark>15</mark>" in wrong
    assert "<mark>Friday</mark>" in wrong
    assert "comes on" in re.sub("<mark>.*?</mark>", "", wrong)
    assert "similarity 0.95" in wrong
    assert "asks the model as well" in asked
    assert "<mark>" not in asked
    assert "class='answer drafted right'" in right
    assert "the same words as the model's" in right
    assert "would have answered 2 of 3 by itself, 1 of them otherwise" in page()


def test_another_answer_of_a_method_is_called_that() -> None:
    third = articles()[2]
    assert third.count("another answer") == 1
    assert "suffix<br><small>another answer" in third


def test_one_token_is_no_plural_and_a_question_turns_no_direction_but_its_own() -> None:
    brief = RecordedTrace(["q"], ["q"], {"none": [plain([tokenizer.end_token_id])]}, cached=None)
    shown = render_html(CONFIG, [], plot_svg=None, answers=shown_traces({"t": brief}, tokenizer))
    assert ">1 token in 0 steps; <" in shown
    assert "came for free</b>: none that none drafted is what the model says. 0 steps" in shown
    wrong, _, right = articles()
    assert "<p class=sum>To <bdi>“" in wrong
    assert "<li><bdi>“Where is my parcel?”</bdi> <small>similarity 0.73" in right


def test_what_is_not_known_is_not_claimed() -> None:
    assert not any("data-partial" in article for article in articles())
    alone = RecordedTrace(["q"], ["q"], {"suffix": recorded().answers["suffix"][:1]}, cached=None)
    shown = render_html(CONFIG, [], plot_svg=None, answers=shown_traces({"t": alone}, tokenizer))
    assert "data-partial" in shown
    assert "semantic cache" not in shown.partition("<section>")[2].partition("<script>")[0]
    assert "unknown source</button>" in shown


def test_many_traces_share_the_page() -> None:
    assert len(articles()) == 3
    assert page(("a", "b")).count("<article") == 6
    few = shown_trace(recorded(), tokenizer, max_tokens=1)
    assert few is not None
    assert len(few.answers) == 1
    assert shown_traces({"t": RecordedTrace(["q"], ["q"])}, tokenizer) == []


def test_control_characters_and_halves_of_pairs_do_not_get_through() -> None:
    assert escaped("a\x00b\u202ec\ud800d\re") == "a\ufffdb\ufffdc\ufffdde"
    assert escaped("<&\"'>") == "&lt;&amp;&quot;&#x27;&gt;"
    assert escaped("abcdef", 3) == "abc …"
