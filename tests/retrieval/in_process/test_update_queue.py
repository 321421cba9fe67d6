"""Updates that nobody picks up do not fill the memory, and no removal is ever lost."""

from hypothesis import given
from hypothesis import strategies as st

from reprise.retrieval import AnswerUpdate
from reprise.retrieval.in_process.update_queue import UpdateQueue


def update(number):
    return AnswerUpdate(
        answer_id=str(number), namespace="", added=True, response_tokens=b"\0" * 600
    )


def test_updates_are_taken_once_and_in_order():
    updates = UpdateQueue()
    for number in range(5):
        assert updates.put(update(number)) == []
    assert [u.answer_id for u in updates.take()] == ["0", "1", "2", "3", "4"]
    assert updates.take() == []


def test_the_oldest_answers_that_joined_give_way_and_are_named():
    updates = UpdateQueue(max_bytes=10_000)
    dropped = [key for number in range(1000) for key in updates.put(update(number))]
    assert dropped == [("", str(n)) for n in range(990)]
    assert [u.answer_id for u in updates.take()] == [str(n) for n in range(990, 1000)]
    for number in range(3):
        updates.put(update(number))
    assert len(updates.take()) == 3


def test_that_an_answer_left_is_told_whatever_comes_after():
    updates = UpdateQueue(max_bytes=10_000)
    for number in range(20):
        updates.put(AnswerUpdate.removal("", f"old{number}"))
    for number in range(1000):
        updates.put(update(number))
    taken = updates.take()
    assert {u.answer_id for u in taken if not u.added} == {f"old{n}" for n in range(20)}


def test_an_answer_that_left_cancels_that_it_joined():
    updates = UpdateQueue(max_bytes=10_000)
    for number in range(1000):
        updates.put(update(number))
        updates.put(AnswerUpdate.removal("", str(number)))
    assert updates.take() == []


OPERATIONS = st.lists(
    st.tuples(st.sampled_from(["toggle", "toggle", "toggle", "take"]), st.integers(0, 6)),
    max_size=80,
)


@given(operations=OPERATIONS, room=st.integers(0, 4))
def test_a_reader_that_is_told_again_of_what_was_dropped_ends_with_what_is_there(operations, room):
    updates = UpdateQueue(max_bytes=1000 * room)
    there: set[int] = set()
    reader: set[str] = set()
    untold: set[str] = set()

    def take():
        for one in updates.take():
            # Neither told twice nor told of the end of what it did not know.
            assert (one.answer_id in reader) != one.added
            (reader.add if one.added else reader.discard)(one.answer_id)

    for operation, number in operations:
        name = str(number)
        if operation == "take":
            take()
        elif number in there:
            there.discard(number)
            if name in untold:
                untold.discard(name)
            else:
                untold.update(i for _, i in updates.put(AnswerUpdate.removal("", name)))
        else:
            there.add(number)
            untold.update(i for _, i in updates.put(update(number)))
    take()
    assert reader | untold == {str(number) for number in there}
    assert not reader & untold
