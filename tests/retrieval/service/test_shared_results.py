"""Shared memory: what is read is right or absent, whatever the writer did last."""

import random
import struct
import time

import numpy as np
import pytest

from reprise.retrieval.api.found_clause import FoundClause
from reprise.retrieval.api.near_answer import NearAnswer
from reprise.retrieval.service import shared_results
from reprise.retrieval.service.shared_results import ResultReader, ResultWriter

PREFIX = "reprise-test-"


def near(number, *, namespace="acme", length=50, clause=0):
    return NearAnswer(
        answer_id=f"id{number}",
        similarity=0.5,
        prompt_token_ids=np.array([number], dtype=np.int32),
        response_token_ids=np.full(length, number, dtype=np.int32),
        clause=clause,
        namespace=namespace,
    )


@pytest.fixture
def make_pair():
    opened = []

    def make(**options):
        writer = ResultWriter(PREFIX, **options)
        reader = ResultReader(writer.name)
        opened.extend([reader, writer])
        return writer, reader

    yield make
    for end in opened:
        end.close()


def check(found, number, namespace="acme"):
    """Whether these are the three near answers published for request `number`."""
    assert [n.answer_id for n in found] == [f"id{number + i}" for i in range(len(found))]
    for i, answer in enumerate(found):
        assert answer.namespace == namespace
        assert answer.response_token_ids.tolist() == [number + i] * 50
        assert answer.response_token_ids.dtype == np.int32


def publish(writer, number, namespace="acme"):
    answers = [near(number + i, namespace=namespace, clause=i) for i in range(3)]
    writer.publish(f"r{number}", answers, namespace=namespace)


def test_near_answers_cross_over(make_pair):
    writer, reader = make_pair()
    assert reader.read("r1") is None
    publish(writer, 1)
    found = reader.read("r1")
    check(found, 1)
    assert [(n.clause, n.kind, n.similarity) for n in found] == [
        (0, "whole", 0.5),
        (1, "clause", 0.5),
        (2, "clause", 0.5),
    ]
    writer.publish("r1", [], namespace="acme")
    assert reader.read("r1") == []


def test_old_results_give_way_to_new_ones(make_pair):
    writer, reader = make_pair(num_slots=64, num_bytes=1 << 16)
    for number in range(3000):
        publish(writer, number)
        check(reader.read(f"r{number}"), number)
        assert len(reader.read(f"r{number}")) == 3
    kept = [n for n in range(3000) if reader.read(f"r{n}")]
    assert len(kept) <= 72
    for number in kept:
        check(reader.read(f"r{number}"), number)


def test_the_same_answer_in_two_namespaces_is_two(make_pair):
    writer, reader = make_pair()
    publish(writer, 1, namespace="acme")
    writer.publish("other", [near(1, namespace="zeta")], namespace="zeta")
    check(reader.read("r1"), 1)
    assert [n.namespace for n in reader.read("other")] == ["zeta"]


def test_an_answer_too_long_for_the_map_is_left_out(make_pair):
    writer, reader = make_pair(num_bytes=1 << 16)
    writer.publish("r", [near(1, length=100_000), near(2)], namespace="acme")
    assert [n.answer_id for n in reader.read("r")] == ["id2"]


def test_whatever_bytes_a_dying_writer_leaves(make_pair):
    writer, reader = make_pair(num_slots=8, num_bytes=1 << 14)
    generator = random.Random(0)
    size = len(writer._memory)
    for round_ in range(3000):
        for number in range(4):
            publish(writer, number)
        for _ in range(generator.randint(1, 6)):
            at = generator.randrange(64, size - 8)
            writer._memory[at : at + 4] = generator.randbytes(4)
        for number in range(4):
            found = reader.read(f"r{number}")
            for answer in found or []:
                i = int(answer.answer_id[2:])
                assert number <= i < number + 3, round_
                assert answer.response_token_ids.tolist() == [i] * 50
    assert reader.num_unreadable > 100


def test_a_slot_that_points_anywhere_is_harmless(make_pair):
    writer, reader = make_pair(num_slots=8, num_bytes=1 << 14)
    publish(writer, 1)
    from reprise.retrieval.service.shared_results import _pack_slot, digest

    key = digest(b"r1")
    slot = writer._slot_for(key)
    for position in [0, 3, 2**14 - 3, 2**14 - 9, 2**63, 2**64 - 1]:
        writer._memory[slot : slot + 32] = _pack_slot(key, position)
        assert reader.read("r1") == []


def test_a_reader_sees_how_many_results_there_were(make_pair):
    writer, reader = make_pair()
    assert reader.num_published == 0
    publish(writer, 1)
    publish(writer, 2)
    writer.publish("none", [], namespace="acme")
    assert reader.num_published == 3


def test_a_block_of_another_layout_is_refused(make_pair):
    writer, _ = make_pair()
    writer._memory[8:12] = struct.pack("<I", 99)
    with pytest.raises(ValueError, match="expected a block of layout 4"):
        ResultReader(writer.name)


def test_readers_that_leave_do_not_take_the_block_along(make_pair):
    writer, _ = make_pair()
    for _ in range(3):
        ResultReader(writer.name).close()
    publish(writer, 1)
    another = ResultReader(writer.name)
    check(another.read("r1"), 1)
    another.close()


def test_when_a_result_was_found_is_told(make_pair):
    writer, reader = make_pair()
    assert reader.found_s("r1") is None
    before_s = time.monotonic()
    writer.publish("r1", [], namespace="acme")
    publish(writer, 2)
    assert before_s <= reader.found_s("r1") <= reader.found_s("r2") <= time.monotonic()
    assert reader.read("r1") == []


def test_no_copy_of_what_is_forgotten_stays_in_the_ring(make_pair, monkeypatch):
    """Through many laps of a small ring, with copies that are half overwritten."""
    monkeypatch.setattr("reprise.retrieval.service.shared_results._MAX_REMEMBERED", 60)
    writer, reader = make_pair(num_slots=64, num_bytes=1 << 15)
    generator = random.Random(3)
    forgotten: set[int] = set()
    for turn in range(3000):
        number = 100_000 + generator.randrange(200)
        length = generator.randrange(4, 100)
        writer.publish(f"r{turn}", [near(number, length=length)], namespace="acme")
        forgotten.discard(number)
        if generator.random() < 0.5:
            gone = 100_000 + generator.randrange(200)
            writer.remove([("acme", f"id{gone}")])
            forgotten.add(gone)
            if gone == number:
                assert reader.read(f"r{turn}") == []
        if turn % 50 == 0:
            ring = bytes(writer._memory)
            for gone in forgotten:
                assert np.full(2, gone, "<i4").tobytes() not in ring
    assert len(forgotten) > 50
    # Another namespace's answer of the same id is another one.
    writer.publish("mine", [near(1)], namespace="acme")
    writer.remove([("zeta", "id1")])
    assert len(reader.read("mine")) == 1


def test_clauses_cross_over_and_no_word_of_them_stays_once_their_namespace_is_erased(make_pair):
    writer, reader = make_pair()
    clauses = [FoundClause("How do I cancel"), FoundClause("will I get SECRET", "and")]
    writer.publish("r1", [near(1)], namespace="acme", clauses=clauses)
    writer.publish("r2", [], namespace="other", clauses=clauses[:1])
    assert reader.clauses("r1") == clauses
    assert reader.clauses("r2") == clauses[:1]
    assert reader.clauses("nobody") == []
    assert b"SECRET" in bytes(writer._memory)
    writer.erase([("acme", "id1")])
    assert b"SECRET" not in bytes(writer._memory)
    assert reader.clauses("r1") == []
    assert reader.clauses("r2") == clauses[:1]


def test_a_question_keeps_its_near_answers_when_others_of_its_namespace_leave(make_pair):
    writer, reader = make_pair()
    clauses = [FoundClause("How do I cancel"), FoundClause("will I get SECRET", "and")]
    for number in (1, 2):
        answers = [near(number), near(3)]
        writer.publish(f"r{number}", answers, namespace="acme", clauses=clauses)
    writer.remove([("acme", "id4")])  # one that says nearly what another one says, say
    assert [each.answer_id for each in reader.read("r1")] == ["id1", "id3"]
    assert reader.clauses("r1") == clauses
    published = reader.num_published
    writer.erase([("acme", "id1")])
    assert [each.answer_id for each in reader.read("r1")] == ["id3"]
    assert [each.answer_id for each in reader.read("r2")] == ["id2", "id3"]
    assert reader.clauses("r1") == reader.clauses("r2") == []
    assert b"SECRET" not in bytes(writer._memory)
    assert reader.num_published == published


def test_what_is_forgotten_does_not_fill_the_ring_with_old_questions(make_pair):
    writer, reader = make_pair(num_slots=4096, num_bytes=1 << 16)
    clauses = [FoundClause("SECRET " * 4)] * 2
    for number in range(200):
        writer.publish(f"r{number}", [near(1)], namespace="acme", clauses=clauses)
    head = writer._head
    writer.erase([("acme", "id2")])
    assert 0 < writer._head - head < 1 << 13
    assert b"SECRET" not in bytes(writer._memory)
    assert reader.read("r0") == []
    assert [each.answer_id for each in reader.read("r199")] == ["id1"]


def test_words_of_questions_are_remembered_as_long_as_they_lie_there(make_pair, monkeypatch):
    monkeypatch.setattr(shared_results, "_MAX_REMEMBERED", 3)
    writer, reader = make_pair()
    for number in range(10):
        clauses = [FoundClause(f"question {number}")] * 2
        writer.publish(f"r{number}", [], namespace="acme", clauses=clauses)
    assert len(writer._questions) == 3
    assert [bool(reader.clauses(f"r{number}")) for number in range(10)] == [False] * 7 + [True] * 3
