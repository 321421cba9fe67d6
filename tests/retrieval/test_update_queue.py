"""Updates that nobody picks up do not fill the memory."""

from reprise.retrieval import AnswerUpdate
from reprise.retrieval.update_queue import UpdateQueue


def update(number):
    return AnswerUpdate(
        answer_id=str(number), namespace="", added=True, response_tokens=b"\0" * 800
    )


def test_updates_are_taken_once_and_in_order():
    updates = UpdateQueue()
    for number in range(5):
        updates.put(update(number))
    assert [u.answer_id for u in updates.take()] == ["0", "1", "2", "3", "4"]
    assert updates.take() == []


def test_the_oldest_give_way():
    updates = UpdateQueue(max_bytes=10_000)
    for number in range(1000):
        updates.put(update(number))
    assert [u.answer_id for u in updates.take()] == [str(n) for n in range(990, 1000)]
    for number in range(3):
        updates.put(update(number))
    assert len(updates.take()) == 3
