"""What a client reports of the answers that a process tells it of."""

from reprise.retrieval.api.answer import AnswerUpdate
from reprise.retrieval.service.told_answers import ToldAnswers


def added(name, size=0):
    return AnswerUpdate(answer_id=name, namespace="", added=True, response_tokens=bytes(size))


def ids(updates):
    return [(update.answer_id, update.added) for update in updates]


def test_what_is_listed_no_more_has_left():
    told = ToldAnswers(max_bytes=1 << 20)
    told.begin()
    told.added(added("a"))
    told.added(added("b"))
    told.end_of_list()
    told.end_of_list()  # every status does
    assert ids(told.take()[0]) == [("a", True), ("b", True)]
    told.begin()
    told.added(added("b"))
    told.added(added("c"))
    assert ids(told.take()[0]) == [("c", True)]
    told.end_of_list()
    assert ids(told.take()[0]) == [("a", False)]
    told.removed("", "a")
    told.removed("", "b")
    assert ids(told.take()[0]) == [("b", False)]


def test_what_there_was_no_room_for_is_reported_by_the_next_list():
    told = ToldAnswers(max_bytes=5000)
    told.begin()
    for name in "abc":
        told.added(added(name, 2000))
    told.end_of_list()
    updates, missed = told.take()
    assert (ids(updates), missed) == ([("b", True), ("c", True)], True)
    assert told.take() == ([], False)
    told.begin()
    for name in "abc":
        told.added(added(name, 2000))
    told.end_of_list()
    updates, missed = told.take()
    assert (ids(updates), missed) == ([("a", True)], False)
