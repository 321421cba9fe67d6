"""Clauses: chosen cases, and a labelled set in each language with precision and recall."""

import itertools
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reprise.retrieval.query import clauses_en, clauses_zh
from reprise.retrieval.query.clauses import MAX_CLAUSES, ClauseSplitter

DATA = Path(__file__).parents[1] / "data"


@pytest.fixture(scope="module")
def splitter():
    return ClauseSplitter()


def labelled(language):
    """(text, where its further clauses begin) for each line; `|` marks the beginnings."""
    lines = (DATA / f"clauses_{language}.txt").read_text().splitlines()
    rows = []
    for line in lines:
        parts = line.replace(" | ", " |").split("|")
        begins, length = [], 0
        for part in parts[:-1]:
            length += len(part)
            begins.append(length)
        rows.append(("".join(parts), begins))
    return rows


def score(splitter, rows):
    """(precision, recall) of the cuts, and the share of questions without any mistake."""
    right = found = wanted = perfect = 0
    for text, begins in rows:
        clauses = splitter.clauses(text)
        cuts = [(one.end, two.start) for one, two in itertools.pairwise(clauses)]
        hits = sum(any(end - 1 <= begin <= start for begin in begins) for end, start in cuts)
        right += hits
        found += len(cuts)
        wanted += len(begins)
        perfect += hits == len(cuts) == len(begins)
    return right / found, right / wanted, perfect / len(rows)


@pytest.mark.parametrize("language", ["en", "zh"])
def test_labelled_questions(splitter, language, record_property):
    rows = labelled(language)
    assert len({text for text, _ in rows}) >= 150
    assert 0.4 < sum(bool(begins) for _, begins in rows) / len(rows) < 0.6
    precision, recall, perfect = score(splitter, rows)
    print(f"{language}: precision {precision:.3f}, recall {recall:.3f}, perfect {perfect:.3f}")
    record_property("precision", precision)
    record_property("recall", recall)
    assert precision > 0.9
    assert recall > 0.9


@pytest.mark.parametrize(
    ("text", "clauses"),
    [
        (
            "How do I cancel my order and will I get a refund?",
            ["How do I cancel my order", "will I get a refund?"],
        ),
        (
            "How do I cancel my order and get my money back?",
            ["How do I cancel my order", "How do I get my money back?"],
        ),
        ("如何取消订单，以及多久能退款？", ["如何取消订单", "多久能退款"]),
        ("如何取消订单并申请退款", ["如何取消订单", "如何申请退款"]),
        (
            "Although it has expired, why is the repair free, and who pays for shipping?",
            ["Although it has expired, why is the repair free", "who pays for shipping?"],
        ),
        (
            "If I cancel today, do I get a refund, and how long does it take?",
            ["If I cancel today, do I get a refund", "how long does it take?"],
        ),
        (
            "How much is the small one, whereas what does the big one cost?",
            ["How much is the small one", "what does the big one cost?"],
        ),
        ("Can I cancel, although the order has shipped?", []),
        ("Can I keep my number although I want to change the plan?", []),
        ("If I cancel today, do I get a refund?", []),
        (
            "因为订单延迟了，所以为什么没有通知我，但是能不能退款？",
            ["因为订单延迟了，所以为什么没有通知我", "能不能退款"],
        ),
        (
            "虽然保修过期了，但是能不能免费维修，谁出运费？",
            ["虽然保修过期了，但是能不能免费维修", "谁出运费"],
        ),
        ("为什么退款这么慢但是客服电话是多少？", ["为什么退款这么慢", "客服电话是多少"]),
        ("虽然保修过期了，但是能不能免费维修？", []),
        ("What are the terms and conditions?", []),
        ("订单取消后，多久能退款？", []),
        ("", []),
        ("and and and or or ???", []),
        ("，，、并并以及？", []),
    ],
)
def test_clauses_are_questions_of_their_own(splitter, text, clauses):
    assert splitter.split(text) == clauses


@pytest.mark.parametrize(
    ("text", "connectives"),
    [
        ("How do I cancel my order and also get a refund?", ["", "and also"]),
        (
            "Although it has expired, why is it free, but who pays for shipping?",
            ["although", "but"],
        ),
        ("Where is my parcel? Can I still change the address?", ["", ""]),
        ("如何取消订单，以及多久能退款？", ["", "以及"]),
        ("如何取消订单并申请退款", ["", "并"]),
        ("因为订单延迟了，所以为什么没有通知我，但是能不能退款？", ["因为", "但是"]),
    ],
)
def test_what_joins_them_is_told(splitter, text, connectives):
    assert [clause.connective for clause in splitter.clauses(text)] == connectives


ENGLISH = sorted(
    clauses_en._FILLERS
    | clauses_en._QUESTION_WORDS
    | clauses_en._AUXILIARIES
    | clauses_en._PRONOUNS
    | clauses_en._WISHES
    | {"cancel", "get", "tell me", "getting", "order", "refund", "my", "to", "whether", "not sure"}
    | {"don't", "cannot", "what's", "hows", "I'd like", "I'm", "let's", "can't", "please"}
)
CUTS_EN = ["and", ",", "?", ".", ", and", "but", "then", "\n", "...", "plus", "&", "; "]
CHINESE = [
    *"我想要如何怎么取消订单退款多久请问吗呢帮",
    *clauses_zh._CONNECTIVES,
    *"，。？并",
    "申请",
]


@settings(max_examples=400, deadline=None)
@given(words=st.lists(st.sampled_from(ENGLISH) | st.sampled_from(CUTS_EN), max_size=24))
def test_the_quick_look_passes_all_that_the_english_rules_cut(splitter, words):
    text = " ".join(words)
    assert splitter._english.may_be_compound(text) or len(splitter._english.clauses(text)) < 2


@settings(max_examples=200, deadline=None)
@given(text=st.lists(st.sampled_from(CHINESE), max_size=24).map("".join))
def test_the_quick_look_passes_all_that_the_chinese_rules_cut(splitter, text):
    assert splitter._chinese.may_be_compound(text) or len(splitter._chinese.clauses(text)) < 2


def test_the_quick_look_stops_most_simple_questions(splitter):
    simple = [text for text, begins in labelled("en") if not begins]
    assert sum(map(splitter.may_be_compound, simple)) < 0.5 * len(simple)


def test_long_and_endless_texts_are_bounded(splitter):
    assert len(splitter.split("Where is my parcel? " * 40)) == MAX_CLAUSES
    assert splitter.split("How do I cancel my order and will I get a refund? " * 100) == []


def test_a_missing_pipeline_is_announced_and_rules_go_on(caplog):
    splitter = ClauseSplitter("no_such_pipeline")
    assert "No spaCy pipeline 'no_such_pipeline'" in caplog.text
    assert len(splitter.split("How do I cancel my order and will I get a refund?")) == 2


def test_a_spacy_that_cannot_be_used_costs_clauses_alone(monkeypatch, caplog):
    """As one beside a NumPy that it was not built for: that is no ImportError."""

    class Broken:
        def __getattr__(self, name):
            raise ValueError(f"numpy.dtype size changed: {name}")

    monkeypatch.setitem(sys.modules, "spacy", Broken())
    assert ClauseSplitter().split("How do I cancel my order and will I get a refund?") == []
    assert "compound questions are searched as one" in caplog.text


@pytest.mark.parametrize(
    "question",
    [
        "How do I cancel order A{}X and will I get a refund for {}Z?",
        "如何取消订单{}{}，退款多久到账？",
    ],
)
def test_no_word_is_remembered(splitter, question):
    def remembered():
        pipelines = (splitter._english._pipeline, splitter._chinese._pipeline)
        return sum(len(each.vocab.strings) for each in pipelines)

    assert len(splitter.split(question.format(0, 0))) == 2
    before = remembered()
    for number in range(1, 200):
        assert len(splitter.split(question.format(number, chr(0x4E00 + number)))) == 2
    assert remembered() == before


def test_the_number_of_an_item_joins_nothing(splitter):
    found = splitter.clauses("1. How do I reset my password? 2. How do I change my email?")
    assert [clause.connective for clause in found] == ["", ""]


def test_a_named_pipelines_parts_of_speech_are_used(tmp_path):
    import spacy

    pipeline = spacy.blank("en")
    ruler = pipeline.add_pipe("attribute_ruler")
    for word in ("frobnicate", "cancel"):
        ruler.add([[{"LOWER": word}]], {"POS": "VERB"})
    ruler.add([[{"LOWER": {"NOT_IN": ["frobnicate", "cancel"]}}]], {"POS": "NOUN"})
    pipeline.to_disk(tmp_path / "pipeline")
    text = "How do I cancel my order and frobnicate the voucher?"
    assert ClauseSplitter().split(text) == []
    assert ClauseSplitter(str(tmp_path / "pipeline")).split(text) == [
        "How do I cancel my order",
        "How do I frobnicate the voucher?",
    ]
