"""The memory of exact answers: bounds, time to live, look-up and invalidation."""

import time
from collections.abc import Callable

import pytest

from reprise.engine_ext.frontend.exact_memory import ExactMemory
from reprise.retrieval.api.answer import Answer


def make_answer(key: bytes, *, namespace: str = "", tokens: int = 10, created_s: float = 0.0):  # type: ignore[no-untyped-def]
    return Answer.create(
        prompt_token_ids=[1, 2, len(key)],
        response_token_ids=list(range(tokens)),
        namespace=namespace,
        finish_reason="stop",
        exact_key=key,
        created_s=created_s or time.time(),
    )


def test_least_recently_used_goes_first_and_bytes_are_bounded() -> None:
    one = make_answer(b"0").num_bytes
    memory = ExactMemory(max_bytes=3 * one)
    for key in (b"a", b"b", b"c"):
        memory.put(make_answer(key))
    assert memory.get(b"a") is not None
    memory.put(make_answer(b"d"))
    assert memory.get(b"b") is None
    assert all(memory.get(key) is not None for key in (b"a", b"c", b"d"))
    stats = memory.stats()
    assert (stats.answers, stats.bytes, stats.evicted) == (3, 3 * one, 1)


def test_an_answer_larger_than_the_memory_is_not_stored() -> None:
    memory = ExactMemory(max_bytes=2000)
    memory.put(make_answer(b"small"))
    memory.put(make_answer(b"large", tokens=5000))
    assert memory.get(b"large") is None
    assert memory.get(b"small") is not None


def test_time_to_live_is_the_shorter_of_the_two(advance_clock: Callable[[float], None]) -> None:
    """By the clock of the tiers, which runs on while the machine sleeps."""
    memory = ExactMemory(max_bytes=1 << 20, ttl_s=5000.0)
    memory.put(make_answer(b"short"), ttl_s=1000.0)
    memory.put(make_answer(b"long"), ttl_s=50_000.0)
    advance_clock(900.0)
    assert memory.get(b"short") is not None
    advance_clock(100.0)
    assert memory.get(b"short") is None
    assert memory.get(b"long") is not None
    advance_clock(4000.0)
    assert memory.get(b"long") is None
    assert memory.stats().expired == 2
    assert memory.stats().bytes == 0


def test_a_key_holds_one_answer() -> None:
    memory = ExactMemory(max_bytes=1 << 20)
    memory.put(make_answer(b"k", tokens=5))
    memory.put(make_answer(b"k", tokens=9))
    answer = memory.get(b"k")
    assert answer is not None
    assert len(answer.response_token_ids) == 9
    assert memory.stats().bytes == answer.num_bytes


def test_answers_are_removed_one_by_one_or_by_id() -> None:
    memory = ExactMemory(max_bytes=1 << 20)
    old = make_answer(b"old", namespace="a", created_s=time.time() - 100)
    new = make_answer(b"news", namespace="a")
    other = make_answer(b"other", namespace="b")
    for answer in (old, new, other):
        memory.put(answer)
    assert memory.answers() == [other, new, old]
    assert memory.namespaces() == {"a": 2, "b": 1}
    assert memory.remove([old]) == [("a", old.answer_id)]
    assert memory.remove([old]) == []
    # A later answer under the same key is another one.
    memory.put(make_answer(b"news", namespace="a", tokens=3))
    assert memory.remove([new]) == []
    assert memory.remove_ids([("b", other.answer_id), ("b", "unknown")]) == 1
    assert memory.namespaces() == {"a": 1}
    memory.clear()
    assert memory.stats().bytes == 0


def test_an_id_names_its_answers_under_all_settings() -> None:
    memory = ExactMemory(max_bytes=1 << 20)
    for key in (b"one", b"two"):  # the same content, asked for in two ways
        memory.put(make_answer(key))
    (first, second) = memory.answers()
    assert first.answer_id == second.answer_id
    assert memory.remove_ids([("", first.answer_id)]) == 2
    assert memory.stats().bytes == memory.stats().answers == 0


def test_answers_past_their_time_go_unasked(advance_clock: Callable[[float], None]) -> None:
    memory = ExactMemory(max_bytes=1 << 20)
    memory.put(make_answer(b"a"), ttl_s=1000.0)
    memory.put(make_answer(b"b"), ttl_s=2000.0)
    memory.put(make_answer(b"b"))  # in place of it, for ever
    advance_clock(1001.0)
    assert memory.expire() == 1
    advance_clock(1500.0)
    assert memory.expire() == 0
    assert [answer.exact_key for answer in memory.answers()] == [b"b"]
    assert memory.stats().expired == 1


def test_an_answer_without_an_exact_key_is_refused() -> None:
    memory = ExactMemory(max_bytes=1 << 20)
    answer = Answer.create(prompt_token_ids=[1], response_token_ids=[2])
    with pytest.raises(ValueError, match="no exact key"):
        memory.put(answer)


def test_the_times_of_dropped_answers_are_bounded_too(
    advance_clock: Callable[[float], None],
) -> None:
    one = make_answer(b"000").num_bytes
    memory = ExactMemory(max_bytes=3 * one)
    for number in range(1000):
        memory.put(make_answer(b"%03d" % number), ttl_s=1e6 + 1000.0 * number)
    assert memory.stats()[:3] == (3, 3 * one, 997)
    assert len(memory._expiries) <= 2 * 4 + 64
    # Those that are left expire at their time all the same.
    advance_clock(1e6 + 998_500.0)
    assert [answer.exact_key for answer in memory.answers()] == [b"999"]
    advance_clock(1000.0)
    assert memory.answers() == []
