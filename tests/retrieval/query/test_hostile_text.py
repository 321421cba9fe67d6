"""Text that a stranger may send must not take longer than text of its length."""

import ast
import itertools
import re
import sys
import time
from pathlib import Path

import pytest

from reprise.retrieval.query.clauses import ClauseSplitter
from reprise.retrieval.query.turns import (
    TurnMarkers,
    clip,
    query_of_messages,
    query_of_turns,
    query_text,
)
from reprise.retrieval.search.embedding import Embedder

REPOSITORY = Path(__file__).resolve().parents[3]
FOLDERS = ("spec", "retrieval", "kernels", "engine_ext", "eval")
MATCHING = {"compile", "match", "search", "fullmatch", "findall", "finditer", "sub", "split"}
# In steps so small that an exponential pattern, just quick enough at one length, ends at the next.
LENGTHS = (*range(8, 64, 4), *(int(64 * 1.1**step) for step in range(17)), 3000)
LONG = 100_000
# Some 200 ns a character: the patterns here take 2 to 40, a quadratic one 10 us at 3,000.
LEAST_S, PER_CHARACTER_S = 0.02, 2e-7


def patterns_of_the_package():
    """(where, pattern, how it is matched) of every regular expression in the source."""
    found = []
    for path in (p for folder in FOLDERS for p in sorted((REPOSITORY / folder).rglob("*.py"))):
        text = path.read_text()
        if re.search(r"\bre\.", text) is None:  # most: to parse all takes a second
            continue
        tree = ast.parse(text)
        calls = [c for c in ast.walk(tree) if isinstance(c, ast.Call)]
        methods = {(n, m, c) for c in calls for n, m in [_method(c)] if m in MATCHING}
        names = {
            id(each.value): each.targets[0].id
            for each in ast.walk(tree)
            if isinstance(each, ast.Assign) and isinstance(each.targets[0], ast.Name)
        }
        for name, method, call in methods:
            if name != "re":
                continue
            used = {method}
            if method == "compile":
                used = {m for n, m, _ in methods if n == names[id(call)]}
            where = f"{path.relative_to(REPOSITORY)}:{call.lineno}"
            pattern = ast.literal_eval(call.args[0])  # a constant, or it fails here
            found.append((where, pattern, tuple(sorted(used))))
    return sorted(found)


def _method(call):
    """(object's name, method) of a call; ("", "") for others."""
    function = call.func
    if isinstance(function, ast.Attribute) and isinstance(function.value, ast.Name):
        return function.value.id, function.attr
    return "", ""


def samples(sequence):
    """Strings that a parsed pattern matches, about; each alternative gives some."""
    texts = [""]
    for kind, value in sequence:
        texts = [a + b for a, b in itertools.product(texts, _samples_of(str(kind), value))][:60]
    return texts


def _samples_of(kind, value):
    match kind:
        case "LITERAL":
            return [chr(value)]
        case "NOT_LITERAL" | "ANY":
            return ["~"]
        case "IN":
            return [c for item in value if (c := _member(*item))][:4] or ["~"]
        case "BRANCH":
            return [text for branch in value[1] for text in samples(branch)[:3]]
        case "SUBPATTERN":
            return samples(value[3])
        case "MAX_REPEAT" | "MIN_REPEAT" | "POSSESSIVE_REPEAT":
            return samples(value[2])
        case "ATOMIC_GROUP":
            return samples(value)
    return [""]  # look-arounds, anchors, references


def _member(kind, value):
    match str(kind):
        case "LITERAL":
            return chr(value)
        case "RANGE":
            return chr(value[0])
        case "CATEGORY":
            word = str(value)
            return " " if word.endswith("SPACE") else "1"
    return ""


def repeated_parts(sequence, prefix=""):
    """(what comes before, text) of every group and repetition of a parsed pattern."""
    for kind, value in sequence:
        match str(kind):
            case "MAX_REPEAT" | "MIN_REPEAT" | "POSSESSIVE_REPEAT":
                yield from ((prefix, text) for text in samples(value[2]))
                yield from repeated_parts(value[2], prefix)
            case "SUBPATTERN":
                yield from ((prefix, text) for text in samples(value[3]))
                yield from repeated_parts(value[3], prefix)
            case "BRANCH":
                for branch in value[1]:
                    yield from ((prefix, text) for text in samples(branch)[:3])
                    yield from repeated_parts(branch, prefix)
        prefix += samples([(kind, value)])[0]


def hostile_texts(pattern, length):
    """Texts of about this length that repeat what the pattern looks for, and then break it off."""
    tree = re._parser.parse(pattern)
    parts = dict.fromkeys([*repeated_parts(tree), *(("", text) for text in samples(tree))])
    parts = [(prefix, text) for prefix, text in parts if text]
    pairs = [(p, a + b) for (p, a), (_, b) in itertools.pairwise(parts)]
    for prefix, text in [*parts, *pairs]:
        for end in ("", "\x00", "x"):
            yield prefix + text * max(1, length // len(text)) + end


def cpu_s(call, *, within_s):
    """Seconds that a call takes of a core, the least of some tries until it is quick enough: once
    in a while Python tidies up meanwhile, or the caches are others'."""
    took_s = float("inf")
    for _ in range(3):
        began_s = time.thread_time()
        call()
        took_s = min(took_s, time.thread_time() - began_s)
        if not within_s < took_s < within_s + 1.0:
            break
    return took_s


def is_too_slow(pattern, text, methods):
    """(whether it takes longer than a linear pattern, seconds)"""

    def match():
        for method in methods:
            getattr(pattern, method)(*["", text] if method == "sub" else [text])

    within_s = LEAST_S + PER_CHARACTER_S * len(methods) * len(text)
    took_s = cpu_s(match, within_s=within_s)
    return took_s > within_s, took_s


def too_slow(pattern, methods):
    """The shortest length at which a pattern takes longer than a linear one; None: it is linear."""
    compiled, slowest = re.compile(pattern), []
    for length in LENGTHS:
        timed = []
        for text in hostile_texts(pattern, length):
            is_slow, took_s = is_too_slow(compiled, text, methods)
            if is_slow:
                return len(text)
            timed.append((took_s, text))
        slowest = sorted(timed, reverse=True)[:3]
    for _, text in slowest:
        unit = text[: len(text) // 2]
        longer = unit * (20_000 // max(1, len(unit))) + text[-1:]  # a quadratic one takes 1 s
        if is_too_slow(compiled, longer, methods)[0]:
            return len(longer)
    return None


@pytest.mark.parametrize(("where", "pattern", "methods"), patterns_of_the_package())
def test_no_pattern_takes_more_than_linear_time(where, pattern, methods):
    assert methods, f"{where} is not used"
    assert too_slow(pattern, methods) is None, where


@pytest.mark.parametrize(
    "pattern",
    [
        "(我|都|应该|应|该|要)*(如何|怎么)",  # exponential: one prompt stopped retrieval
        "(a+)+$",
        "^(ab|a|b)*$",
        "^(abcd|ab|cd)*$",
        "^(abcdefgh|abcd|efgh)*$",
        "^(a|a|a)*$",
        r"\s+$",  # quadratic
    ],
)
@pytest.mark.parametrize("times_as_quick", [1, 8])
def test_the_fuzz_finds_ambiguous_patterns_and_ends(pattern, times_as_quick, monkeypatch):
    """Whatever the speed of the machine: which length is the first to be too slow depends on it."""
    monkeypatch.setattr(sys.modules[__name__], "LEAST_S", LEAST_S * times_as_quick)
    began_s = time.thread_time()
    assert too_slow(pattern, ["search"]) is not None
    assert time.thread_time() - began_s < 60


def test_no_pattern_is_hidden_from_the_fuzz():
    """Neither spaCy's matchers nor other libraries of regular expressions are in use."""
    for path in (p for folder in FOLDERS for p in (REPOSITORY / folder).rglob("*.py")):
        source = path.read_text().replace("SequenceMatcher(", "")  # difflib's, of no pattern
        for word in ("from re import", "import regex", "spacy.matcher", "Matcher(", "import re as"):
            assert word not in source, f"{path}: {word}"


@pytest.fixture(scope="module")
def splitter():
    splitter = ClauseSplitter()
    splitter.clauses("如何取消订单和退款？ How do I cancel and get a refund?")  # loaded now
    return splitter


UNITS = [
    *("应该", "应", "和应该", "如何和", "并且如何", "吗", "怎么办和", "我想要和", "取消吗和怎么"),
    *("how do i get it and ", "and ", ", ", "please get it , and get ", "when i , ", "(", "'\""),
    *("!", "😀", "a.", "http://a.b/", "a-b-", "é", "'s", "1,2", "\n", "。", "，如何", "\u3000"),
]


@pytest.mark.parametrize("unit", UNITS)
def test_the_clause_splitter_is_quick_at_any_length(splitter, unit):
    for beginning in ("", "如何取消订单和", "How do I cancel my order and "):
        for length in (500, 1000, 1999, LONG):
            text = (beginning + unit * length)[:length] + "x"
            took_s = cpu_s(lambda text=text: splitter.clauses(text), within_s=0.05)
            # 2 ms, or 4 for the slowest; it was 360 at 1,999, and hours for a few of "应该".
            assert took_s < 0.05, (text[:40], length)


@pytest.mark.parametrize("unit", [*UNITS, "<|user|>", "a ", "\x00"])
def test_from_prompt_to_query_is_linear(unit):
    text = unit * (LONG // len(unit))
    lexical = Embedder("lexical")
    message = {"role": "user", "content": [{"type": "text", "text": text}] * 2}
    for extract in (
        lambda: clip(text),
        lambda: query_of_turns(["and?", text]),
        lambda: query_of_messages([message, message]),
        lambda: query_text(text, TurnMarkers(unit[:1], unit[-1:], unit[:1])),
        lambda: lexical.encode([clip(text)]),
    ):
        assert cpu_s(extract, within_s=0.2) < 0.2
