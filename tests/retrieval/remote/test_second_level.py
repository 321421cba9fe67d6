"""What a look-up beyond memory may bring, and what it must not."""

import msgspec
import pytest

from reprise.retrieval.api.invalidation import Forgotten, Invalidation
from reprise.retrieval.in_process.second_level import SecondLevel
from reprise.retrieval.remote.remote_search import RemoteFound


class HeldRemote:
    """Is asked, and answers when it is told to."""

    state, is_quick = "closed", True

    def __init__(self, budget_s):
        self.budget_s = budget_s
        self.asked = []

    def ask(self, *arguments):
        self.asked.append(arguments[-1])
        return True

    def close(self):
        pass


@pytest.fixture
def make_asked(make_retriever, wait_until):
    """A function that has a retriever ask a remote index; returns both."""

    def make(budget_s=60.0, *, being_forgotten=(), held=(), **settings):
        retriever = make_retriever("faiss", **settings)
        assert retriever.wait_until_warm(60)
        for answer in held:
            retriever.store(answer)
        assert retriever.flush(60)
        remote = HeldRemote(budget_s)
        retriever._behind.second = SecondLevel(
            remote,
            memory=retriever._memory,
            changed=retriever._changed,
            count=4,
            tokenizer_key="",
            is_being_forgotten=lambda each: each.answer_id in being_forgotten,
        )
        retriever.submit("r", namespace="acme", text="question number 1")
        wait_until(lambda: remote.asked)
        return retriever, remote

    made = []

    def keep(*arguments, **options):
        made.append(make(*arguments, **options)[0])
        return made[-1], made[-1]._behind.second.remote

    yield keep
    for retriever in made:
        retriever._behind.second = None


def near(retriever, wait_until):
    wait_until(lambda: retriever.poll("r") is not None)
    return [each.answer_id for each in retriever.poll("r")]


def found(*answers):
    return RemoteFound([[(each.answer_id, 0.99) for each in answers]], list(answers))


def test_what_is_found_in_time_is_handed_over_and_joins(make_asked, make_answer, wait_until):
    retriever, remote = make_asked()
    assert retriever.poll("r") is None
    remote.asked[0](found(make_answer(1), make_answer(2)))
    assert near(retriever, wait_until) == ["id1", "id2"]
    wait_until(lambda: retriever.answer("acme", "id1") is not None)


def test_what_is_late_joins_memory_only(make_asked, make_answer, wait_until):
    retriever, remote = make_asked(0.02)
    assert near(retriever, wait_until) == []
    remote.asked[0](found(make_answer(1)))
    wait_until(lambda: retriever.answer("acme", "id1") is not None)
    assert retriever.poll("r") == []


def test_what_was_looked_up_before_something_was_forgotten_is_not_taken(
    make_asked, make_answer, wait_until
):
    retriever, remote = make_asked()
    assert retriever.forget(Invalidation.create(answer_id="id1"), timeout_s=60).done
    remote.asked[0](found(make_answer(1)))
    assert near(retriever, wait_until) == []
    assert retriever.answer("acme", "id1") is None


@pytest.mark.parametrize("how", ["fails", "finds others", "is late"])
def test_what_memory_held_is_not_handed_over_once_it_is_forgotten(
    make_asked, make_answer, wait_until, how
):
    retriever, remote = make_asked(0.5 if how == "is late" else 60.0, held=[make_answer(1)])
    assert retriever.poll("r") is None
    assert retriever.forget(Invalidation.create(answer_id="id1"), timeout_s=60).done
    if how != "is late":
        remote.asked[0](None if how == "fails" else found(make_answer(2)))
    assert near(retriever, wait_until) == []


def test_what_memory_held_is_not_handed_over_once_it_has_expired(
    make_asked, make_answer, wait_until, advance_clock
):
    retriever, remote = make_asked(held=[make_answer(1)], ttl_s=1000)
    advance_clock(2000)
    wait_until(lambda: retriever.answer("acme", "id1") is None)
    remote.asked[0](None)
    assert near(retriever, wait_until) == []


def test_what_is_forgotten_between_being_taken_and_handed_over_is_not(
    make_asked, make_answer, wait_until, monkeypatch
):
    retriever, remote = make_asked()
    take_over = SecondLevel._take_over

    def forget_then(self, *arguments):
        taken = take_over(self, *arguments)
        assert retriever.forget(Invalidation.create(answer_id="id1"), timeout_s=60).done
        return taken

    monkeypatch.setattr(SecondLevel, "_take_over", forget_then)
    remote.asked[0](found(make_answer(1)))
    assert near(retriever, wait_until) == []


def test_what_the_tier_has_yet_to_forget_is_not_taken(make_asked, make_answer, wait_until):
    retriever, remote = make_asked(being_forgotten={"id1"})
    remote.asked[0](found(make_answer(1), make_answer(2)))
    assert near(retriever, wait_until) == ["id2"]
    wait_until(lambda: retriever.answer("acme", "id2") is not None)
    assert retriever.answer("acme", "id1") is None


def test_another_namespaces_or_tokenizers_answer_is_not_taken(make_asked, make_answer, wait_until):
    retriever, remote = make_asked()
    theirs = make_answer(1, namespace="other")
    foreign = msgspec.structs.replace(make_answer(2), tokenizer_key="another")
    remote.asked[0](found(theirs, foreign, make_answer(3)))
    assert near(retriever, wait_until) == ["id3"]
    assert retriever.answer("other", "id1") is retriever.answer("acme", "id2") is None


def test_a_failure_leaves_what_memory_has(make_asked, wait_until):
    retriever, remote = make_asked()
    remote.asked[0](None)
    assert near(retriever, wait_until) == []
    assert retriever._worker.errors.num == 0


def test_an_answer_that_left_the_tier_meanwhile_takes_no_other_with_it(
    make_asked, make_answer, wait_until
):
    retriever, remote = make_asked()
    retriever._forgotten(Forgotten(removed=(("acme", "id1"), ("acme", "id3"))))
    remote.asked[0](found(make_answer(1), make_answer(2)))
    assert near(retriever, wait_until) == ["id2"]
    wait_until(lambda: retriever.answer("acme", "id2") is not None)
    assert retriever.answer("acme", "id1") is None
