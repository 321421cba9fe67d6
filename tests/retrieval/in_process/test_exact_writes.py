"""Answers for exact hits that wait to be written: bounded, in order, and dropped where asked."""

import msgspec

from reprise.retrieval import Answer
from reprise.retrieval.in_process.exact_writes import ExactWrites


def exact(number, *, size=1):
    answer = Answer.create(
        prompt_token_ids=[number], response_token_ids=[1] * size, exact_key=bytes([number])
    )
    return msgspec.structs.replace(answer, fingerprint="f")


def test_the_oldest_come_first_and_the_bounds_hold():
    writes = ExactWrites(max_length=3, max_bytes=1 << 20)
    assert not writes
    assert [writes.put(exact(number)) for number in range(4)] == [True, True, True, False]
    assert [answer.exact_key for answer in writes.take()] == [b"\0", b"\1", b"\2"]
    assert not writes
    assert not writes.put(exact(1, size=1 << 19))
    for _ in range(3):  # what was taken takes no room any more
        writes.put(exact(1, size=(1 << 17) - 1000))
        assert len(writes.take()) == 1


def test_what_is_meant_is_dropped():
    writes = ExactWrites(max_length=10, max_bytes=1 << 20)
    for number in range(4):
        writes.put(exact(number))
    writes.drop(lambda answer: answer.exact_key in (b"\1", b"\2"))
    assert [answer.exact_key for answer in writes.take()] == [b"\0", b"\3"]
