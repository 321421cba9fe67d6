"""The demo trace is what it says: many wordings of many topics, slots that differ, compounds."""

import itertools
import re
from collections import Counter

import pytest

from reprise.eval.demo_data.demo_asides import ASIDES
from reprise.eval.demo_data.demo_topics import SHARED, TOPICS
from reprise.eval.demo_data.demo_trace import WORDINGS_PER_TOPIC, make_demo_trace, training_rows
from reprise.eval.replay.traces import TraceRow

SLOT = re.compile(r"{(\w+)}")


@pytest.fixture(scope="module")
def rows() -> list[TraceRow]:
    return make_demo_trace(0)


def test_same_seed_same_rows_other_seed_others(rows: list[TraceRow]) -> None:
    assert make_demo_trace(0) == rows
    assert make_demo_trace(1) != rows


def test_at_least_forty_topics_of_twelve_wordings(rows: list[TraceRow]) -> None:
    wordings = Counter(row.group for row in rows)
    topics = [topic.name for topic in TOPICS]
    assert len(set(topics)) >= 40
    assert WORDINGS_PER_TOPIC >= 12
    assert all(wordings[topic] == WORDINGS_PER_TOPIC for topic in topics)


def test_a_fifth_of_the_timed_requests_has_nothing_to_reuse(rows: list[TraceRow]) -> None:
    timed = [row for row in rows if not row.warm]
    asides = [row for row in timed if row.group == "aside"]
    assert len(asides) == len({row.response for row in asides}) == len(ASIDES)
    assert len(asides) / len(timed) == pytest.approx(0.2)
    assert not any(row.group == "aside" for row in rows if row.warm)


def test_asides_share_no_run_of_six_words_with_anything_else(rows: list[TraceRow]) -> None:
    def runs_of_six(text: str) -> set[tuple[str, ...]]:
        words = text.lower().split()
        return {tuple(words[i : i + 6]) for i in range(len(words) - 5)}

    seen: Counter[tuple[str, ...]] = Counter()
    for answer in {row.response for row in rows}:
        seen.update(runs_of_six(answer))
    assert all(seen[run] == 1 for aside in ASIDES for run in runs_of_six(aside.answer))


def test_compound_answers_hold_both_topics(rows: list[TraceRow]) -> None:
    compounds = [row for row in rows if row.group and "+" in row.group]
    bodies = {topic.name: SLOT.split(topic.body)[0] for topic in TOPICS}
    assert len(compounds) >= 40
    assert not any(row.warm for row in compounds)
    for row in compounds:
        assert all(bodies[name] in row.response for name in str(row.group).split("+"))


def test_every_slot_of_an_answer_is_in_every_wording() -> None:
    for topic in TOPICS:
        slots = set(SLOT.findall(topic.body))
        assert all(slots <= set(SLOT.findall(phrase)) for phrase in topic.phrases), topic.name
        assert topic.category in SHARED


def test_answers_name_the_order_that_was_asked_about(rows: list[TraceRow]) -> None:
    order = re.compile(r"[A-H]-\d+")
    named = [row for row in rows if order.search(row.response)]
    assert len(named) > 100
    assert all(set(order.findall(r.response)) <= set(order.findall(r.prompt)) for r in named)


def test_no_timed_request_repeats_a_warm_one(rows: list[TraceRow]) -> None:
    warm = {row.prompt for row in rows if row.warm}
    assert not [row for row in rows if not row.warm and row.prompt in warm]


def test_the_model_never_trains_on_a_timed_request(rows: list[TraceRow]) -> None:
    slots = re.compile(r"[A-H]-\d+|\$[\d.]+|\d+ [A-Z]\w+| My name is \w+\.")
    timed = {slots.sub("", row.prompt) for row in rows if not row.warm}
    trained = {slots.sub("", row.prompt) for row in itertools.islice(training_rows(0), 5000)}
    assert len(trained) > 1000
    assert not timed & trained
