"""The vector index against brute force, through growth, removal and rebuilding."""

import faiss
import numpy as np
import pytest

from reprise.retrieval.search.answer_index import AnswerIndex
from reprise.retrieval.search.half_vectors import codes_of
from reprise.retrieval.search.vector_index import VectorIndex

DIM = 48


def vectors(count, *, seed=0, topics=200):
    generator = np.random.default_rng(seed)
    centres = generator.standard_normal((topics, DIM))
    rows = centres[generator.integers(topics, size=count)]
    rows = rows + 0.6 * generator.standard_normal((count, DIM))
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def recall(index, rows, live, queries, count=8):
    live = np.array(sorted(live))
    right = 0
    for query, found in zip(queries, index.search(queries, count), strict=True):
        cosines = rows[live] @ query
        truth = set(live[np.argsort(-cosines)[:count]].tolist())
        right += len(truth & {i for i, _ in found})
        assert len(found) == count
        assert all(i in live for i, _ in found)
        assert [c for _, c in found] == sorted((c for _, c in found), reverse=True)
        for i, cosine in found:
            assert cosine == pytest.approx(float(rows[i] @ query), abs=1e-3)
    return right / (count * len(queries))


def test_exact_while_small():
    rows = vectors(300)
    index = VectorIndex(DIM)
    for number, row in enumerate(rows):
        index.add(number, row)
    assert index.maintain() is False
    assert recall(index, rows, range(300), vectors(20, seed=1)) == 1.0


def test_a_graph_beyond_with_removals_and_a_rebuild():
    rows, queries = vectors(6000), vectors(50, seed=1)
    index = VectorIndex(DIM, exact_search_limit=2000)
    live = set()
    for number, row in enumerate(rows):
        index.add(number, row)
        live.add(number)
        if number % 100 == 99:
            index.maintain()
    assert recall(index, rows, live, queries) > 0.95  # in the middle of moving
    while index.maintain():
        pass
    assert len(index) == 6000
    assert recall(index, rows, live, queries) > 0.95
    for number in range(0, 6000, 2):
        index.remove(number)
        live.discard(number)
    assert recall(index, rows, live, queries) > 0.95
    rounds = 0
    while index.maintain():  # the graph is rebuilt without the dead, in steps
        rounds += 1
        if rounds == 10:
            index.remove(1)
            live.discard(1)
            assert recall(index, rows, live, queries) > 0.95
    assert rounds > 10
    assert len(index) == len(live)
    assert recall(index, rows, live, queries) > 0.95


def test_the_graph_finds_what_has_no_neighbourhoods():
    """Hardest for a graph: as many dimensions as an embedding has, and few vectors of a topic."""
    generator = np.random.default_rng(0)
    rows = generator.standard_normal((6000, 384)).astype(np.float32)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    queries = rows[::30] + 0.06 * generator.standard_normal((200, 384)).astype(np.float32)
    queries /= np.linalg.norm(queries, axis=1, keepdims=True)
    index = VectorIndex(384, exact_search_limit=300)
    for number, row in enumerate(rows):
        index.add(number, row)
    while index.maintain():
        pass
    assert recall(index, rows, range(6000), queries) > 0.95


def test_what_is_left_of_a_topic_is_found_behind_what_was_removed():
    generator = np.random.default_rng(0)
    centres = generator.standard_normal((100, DIM))

    def of_topic(topic, count):
        rows = centres[topic] + 0.6 * generator.standard_normal((count, DIM))
        return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)

    # What joins first stays in the tail.
    rows = [*(of_topic(1 + n % 99, 1)[0] for n in range(1100)), *of_topic(0, 600)]
    index = VectorIndex(DIM, exact_search_limit=256)
    for number, row in enumerate(rows):
        index.add(number, row)
        index.maintain()
    while index.maintain():
        pass
    left = set(range(1100, 1700, 60))
    for number in set(range(1100, 1700)) - left:
        index.remove(number)
    found = index.search(of_topic(0, 20), len(left))
    assert sum(len(left & {i for i, _ in row}) for row in found) >= 0.95 * 20 * len(left)


def test_removing_the_unknown_is_no_error():
    index = VectorIndex(DIM)
    index.remove(7)
    assert index.search(vectors(1), 5) == [[]]


def test_namespaces_do_not_see_each_other():
    rows = vectors(40)
    index = AnswerIndex(DIM)
    for number, row in enumerate(rows):
        assert index.add(f"tenant{number % 2}", f"id{number}", row)
        assert not index.add(f"tenant{number % 2}", f"id{number}", row)
    for tenant in range(2):
        for found in index.search(f"tenant{tenant}", rows, 40):
            assert {int(answer_id[2:]) % 2 for answer_id, _ in found} == {tenant}
            assert len(found) == 20
    assert index.search("nobody", rows[:2], 3) == [[], []]
    assert index.remove("tenant0", "id1") is False
    assert index.remove("tenant1", "id1") is True
    assert len(index) == 39


def test_look_up_work_does_not_depend_on_other_namespaces():
    """Counted, not timed: a search touches its own namespace's vectors and no others."""
    index = AnswerIndex(DIM)
    rows = vectors(500)
    index.add("small", "id", rows[0])
    for number, row in enumerate(rows):
        index.add("large", f"id{number}", row)
    searched = []
    for name, held in index._namespaces.items():
        original = held.vectors.search
        held.vectors.search = lambda *a, n=name, o=original: searched.append(n) or o(*a)
    index.search("small", rows[:1], 8)
    assert searched == ["small"]


@pytest.mark.parametrize("limit", [64, 20_000])
def test_removed_vectors_are_overwritten_and_the_others_found(limit):
    rows = vectors(2500)
    index = AnswerIndex(DIM, exact_search_limit=limit)
    for number, row in enumerate(rows):
        index.add("acme", str(number), row)
    while index.maintain():
        pass
    gone = range(0, 2500, 10)
    for number in gone:
        index.remove("acme", str(number))
    index.erase_removed("acme")
    held = index._namespaces["acme"].vectors
    graph = held._graph
    assert (graph is not None) == (limit == 64)
    everything = codes_of(held._tail._vectors._index).tobytes()
    if graph is not None:
        everything += codes_of(faiss.downcast_index(graph.index.storage)).tobytes()
    halves = rows.astype("<f2")
    assert halves[1].tobytes() in everything
    assert not any(halves[number].tobytes() in everything for number in gone)
    found = index.search("acme", rows[1:2500:10], 1)
    right = [row[0][0] == str(n) for row, n in zip(found, range(1, 2500, 10), strict=True)]
    assert np.mean(right) > 0.99
