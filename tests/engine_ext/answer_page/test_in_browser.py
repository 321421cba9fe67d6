"""The page in a real browser: it renders, works by mouse and keyboard, and complains of nothing."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from reprise.engine_ext.cli.verify_command import Shown
from reprise.engine_ext.cli.verify_command import _page as verified_page
from reprise.tests.engine_ext.answer_page.browser import Page, browser, browser_path
from reprise.tests.engine_ext.answer_page.pages import (
    write_page,
    write_right_to_left_page,
    write_unbroken_page,
)

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(browser_path() is None, reason="no Chromium on this machine"),
]


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("page") / "answers.html"
    write_page(path)
    return path


@pytest.fixture(scope="module")
def tab() -> Iterator[Page]:
    with browser() as page:
        yield page


@pytest.fixture
def page(tab: Page, file: Path) -> Iterator[Page]:
    """The page, opened anew; nothing may have been complained of in the end."""
    tab.complaints.clear()
    tab.requests.clear()
    tab.open(file)
    yield tab
    tab.run("0")  # what is said by now is heard
    assert tab.complaints == []
    assert [url for url in tab.requests if not url.startswith("file:")] == []


def shown(page: Page) -> int:
    number: int = page.run("document.querySelectorAll('.answer:not([hidden])').length")
    return number


def detail(page: Page) -> str:
    text: str = page.run("document.querySelector('#detail').textContent")
    is_seen: bool = page.run(
        "(e => { const box = e.getBoundingClientRect(); return getComputedStyle(e).opacity === '1'"
        " && box.width > 200 && box.top > 0 && box.bottom <= innerHeight; })"
        "(document.querySelector('#detail'))"
    )
    assert is_seen == bool(text)
    return text


def background(page: Page, selector: str) -> str:
    colour: str = page.run(
        f"getComputedStyle(document.querySelector('{selector}')).backgroundColor"
    )
    return colour


def test_it_complains_if_there_is_something_to_complain_of(tab: Page, tmp_path: Path) -> None:
    bad = tmp_path / "bad.html"
    bad.write_text("<!doctype html><script>nothing.at.all</script><img src='http://127.0.0.1:9/x'>")
    tab.complaints.clear()
    tab.open(bad)
    assert any("nothing is not defined" in complaint for complaint in tab.complaints)
    assert any("127.0.0.1" in url for url in tab.requests)


def test_rendered_in_both_colour_schemes_and_widths(page: Page, file: Path) -> None:
    papers = set()
    for dark in (False, True):
        for width in (1280, 390, 320):
            page.open(file, width=width, dark=dark)
            assert page.run("document.documentElement.scrollWidth") <= width
            assert page.run("document.querySelector('.said i').getClientRects().length") == 1
            assert page.run("document.querySelector('.tools').hidden") is False
        colours = {background(page, f".said i.{name}") for name in "mnck"}
        assert len(colours) == 4
        papers.add(background(page, "body"))
    assert len(papers) == 2


def test_no_text_makes_the_page_wider_than_the_window(page: Page, tmp_path: Path) -> None:
    path = tmp_path / "unbroken.html"
    write_unbroken_page(path)
    for width in (1280, 390):
        page.open(path, width=width)
        page.run("document.querySelectorAll('details').forEach(e => e.open = true)")
        assert shown(page) == 1
        assert page.run("document.querySelector('.found').textContent") == "1 of 1 answer"
        assert page.run("document.documentElement.scrollWidth") <= width


def test_stored_answers_that_changed_fit_a_phone(page: Page, tmp_path: Path) -> None:
    path, word = tmp_path / "verified.html", "Q" * 120
    for changed in ([], [Shown(word, 3, 9, word, word, word)]):
        path.write_text(verified_page(f"/models/{word}", [f"{word} of 2"], changed))
        page.open(path, width=390)
        assert page.run("document.documentElement.scrollWidth") <= 390
        assert page.run("document.querySelectorAll('table').length") == len(changed)


def test_text_from_right_to_left_keeps_its_numbers_where_they_belong(
    page: Page, tmp_path: Path
) -> None:
    path = tmp_path / "right_to_left.html"
    write_right_to_left_page(path)
    page.open(path)
    # The answer's number precedes the question on the right, and does not touch it.
    assert page.run("getComputedStyle(document.querySelector('h3 .number')).marginLeft") == "8px"
    # Near answers begin on one line, their numbers left of them, whatever their language.
    page.run("document.querySelectorAll('details').forEach(e => e.open = true)")
    directions = "[...document.querySelectorAll('.near-list li')].map(e => getComputedStyle(e))"
    assert page.run(f"{directions}.map(style => style.direction)") == ["ltr", "ltr"]
    assert page.run("getComputedStyle(document.querySelector('.near-list bdi')).direction") == "rtl"


def test_dark_colours_are_for_the_screen_and_not_for_paper(page: Page, file: Path) -> None:
    page.open(file, dark=True)
    dark = background(page, "body"), background(page, ".said i.n")
    page.open(file, dark=True, medium="print")
    paper = background(page, "body"), background(page, ".said i.n")
    page.open(file)
    assert paper == (background(page, "body"), background(page, ".said i.n"))
    assert not set(dark) & set(paper)


def test_text_has_contrast_in_both_schemes(page: Page, file: Path) -> None:
    contrast = """(() => {
      const light = c => { const v = c.match(/[\\d.]+/g).slice(0, 3).map(x => x / 255)
        .map(x => x <= .03928 ? x / 12.92 : ((x + .055) / 1.055) ** 2.4);
        return .2126 * v[0] + .7152 * v[1] + .0722 * v[2]; };
      const ground = e => { for (; e; e = e.parentElement) {
        const c = getComputedStyle(e).backgroundColor;
        if (!c.endsWith(', 0)') && c !== 'transparent') return c; } return 'rgb(255, 255, 255)'; };
      let worst = 99;
      const all = '.said i, mark, p, h3, h4, small, summary, .count';
      for (const e of document.querySelectorAll(all)) {
        if (!e.getClientRects().length) continue;
        const a = light(getComputedStyle(e).color), b = light(ground(e));
        worst = Math.min(worst, (Math.max(a, b) + .05) / (Math.min(a, b) + .05));
      }
      return worst; })()"""
    for dark in (False, True):
        page.open(file, dark=dark)
        assert page.run(contrast) >= 4.5


def test_a_token_that_is_pointed_at_tells_where_it_came_from(page: Page) -> None:
    assert detail(page) == ""
    page.point(".said i[data-a='0']")
    assert "from a near answer" in detail(page)
    assert "When does order 1 come?" in detail(page)
    assert "</script>" in detail(page)
    assert "similarity 0.91" in detail(page)
    assert "4 tokens, 3 of them for free; 3 of" in detail(page)
    assert "not what the model said" in detail(page)
    page.point("h1")
    assert detail(page) == ""
    page.point(".said i.c", click=True)
    assert "from the context" in detail(page)
    page.point("h1", click=True)
    assert detail(page) == ""


def test_a_token_is_tapped_on_a_phone(page: Page, file: Path) -> None:
    page.open(file, width=390, height=800)
    page.tap(".said i[data-a='1']")
    assert "from a near answer" in detail(page)
    assert "Where is my parcel?" in detail(page)
    page.tap("h2")
    assert detail(page) == ""


def test_all_of_it_is_reached_by_keyboard(page: Page) -> None:
    for _ in range(40):
        page.press("Tab")
        if page.run("document.activeElement.matches('.said i')"):
            break
    assert "is no step" in detail(page)
    page.press("ArrowRight")
    assert "Step 1 of" in detail(page)
    assert page.run("document.activeElement.tabIndex") == 0
    page.press("ArrowDown")
    assert "Step 2 of" in detail(page)
    page.press("ArrowUp")
    page.press("ArrowLeft")
    assert "is no step" in detail(page)
    page.press("End")
    assert "The end" in detail(page)
    page.press("ArrowRight")  # nowhere to go
    assert "The end" in detail(page)
    page.press("Escape")
    assert detail(page) == ""
    # One stop for each answer, not one for each token.
    assert page.run("document.querySelectorAll('.said [tabindex=\"0\"]').length") == 3


def test_sources_are_switched_off_and_on(page: Page) -> None:
    button = "document.querySelector('button[data-source=n]')"
    before = background(page, ".said i.n")
    page.run(f"{button}.focus()")
    page.press("Enter")
    assert page.run(f"{button}.getAttribute('aria-pressed')") == "false"
    assert background(page, ".said i.n") != before
    assert background(page, ".said i.c") != background(page, ".said i.n")
    page.press(" ")
    assert page.run(f"{button}.getAttribute('aria-pressed')") == "true"
    assert background(page, ".said i.n") == before


def test_answers_are_filtered(page: Page) -> None:
    def choose(kind: str, words: str = "") -> int:
        page.run(
            f"(s => {{ s.value = '{kind}'; s.dispatchEvent(new Event('change')); }})"
            "(document.querySelector('.tools select'));"
            f"(s => {{ s.value = '{words}'; s.dispatchEvent(new Event('input')); }})"
            "(document.querySelector('.tools input'))"
        )
        said: str = page.run("document.querySelector('.found').textContent")
        assert said == f"{shown(page)} of 3 answers"
        return shown(page)

    assert choose("") == 3
    assert choose("wrong") == 1
    assert choose("right") == 1
    assert choose("plain") == 1
    assert choose("drafted") == 2
    assert choose("drafted", "MONDAY") == 1
    assert choose("", "退款") == 1
    assert choose("", "no such words") == 0
    assert choose("") == 3


def test_what_a_screen_reader_is_told(page: Page) -> None:
    tree = page.send("Accessibility.getFullAXTree")["nodes"]
    roles = [node["role"]["value"] for node in tree if not node.get("ignored")]
    names = {node["name"]["value"] for node in tree if node.get("name", {}).get("value")}
    assert roles.count("article") == 3
    assert roles.count("status") == 2  # how many are found, and the detail
    assert {"Answers", "Search in questions and answers", "near answer"} <= names
    assert "combobox" in roles
    assert "searchbox" in roles
