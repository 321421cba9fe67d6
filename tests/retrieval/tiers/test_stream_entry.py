"""Entries of streams that other versions, or strangers, wrote."""

import pytest
import redis

from reprise.retrieval import Answer
from reprise.retrieval.tiers.redis.redis_tier import RedisTier
from reprise.retrieval.tiers.redis.stream_entry import read_entries, read_entry

ADDED = {b"op": b"+", b"id": b"a1", b"key": b"ns:a:a1"}
STRANGE = [
    {b"op": b"+"},
    {b"op": b"-"},
    {b"id": b"a1"},
    {b"op": b"+", b"id": b"a1"},
    {b"op": b"+", b"id": b"a1", b"key": b""},
    {b"op": b"+", b"id": b"a1", b"key": b"elsewhere:a:a1"},
    {b"op": b"~", b"id": b"a1", b"key": b"ns:a:a1"},  # no removal
    {b"op": b"", b"id": b"a1"},
    {b"op": b"-", b"id": b""},
    {b"op": b"-", b"id": b"\xff\xfe"},
    {b"\xff": b"x", **ADDED},
    {b"v": b"2", **ADDED},
    {b"v": b"new", **ADDED},
    {b"note": b"a stranger's"},
    {},
    None,
    b"text",
    {"op": "-", "id": "a1"},
]


def test_what_joined_and_left_is_read():
    entry = read_entry(ADDED, key_prefix="ns:")
    assert (entry.operation, entry.answer_id, entry.key) == ("+", "a1", b"ns:a:a1")
    assert read_entry({b"op": b"-", b"id": b"a1", b"key": b""}, key_prefix="ns:").operation == "-"
    assert read_entry({b"v": b"1", b"why": b"not", **ADDED}).fields["why"] == "not"


@pytest.mark.parametrize("fields", STRANGE)
def test_what_is_not_known_is_no_entry(fields):
    assert read_entry(fields, key_prefix="ns:") is None


def test_reading_goes_on_after_what_is_not_known():
    entries = [(b"1-0", ADDED), *((b"2-%d" % n, fields) for n, fields in enumerate(STRANGE))]
    known, last_id, skipped = read_entries(entries, key_prefix="ns:")
    assert [entry.answer_id for entry in known] == ["a1"]
    assert last_id == f"2-{len(STRANGE) - 1}"
    assert skipped == len(STRANGE)
    assert read_entries([]) == ([], None, 0)


@pytest.mark.redis
def test_a_replica_follows_past_them(redis_server, caplog):
    def answer(number):
        return Answer.create(
            prompt_token_ids=[number], response_token_ids=[1], answer_id=f"id{number}"
        )

    ours, other = (RedisTier(redis_server.url, timeout_s=20.0) for _ in range(2))
    ours.put([answer(0)])
    assert ours.changes().added == ()
    client = redis.Redis.from_url(redis_server.url)
    [stream] = client.keys("reprise:*stream*")
    strange = [fields for fields in STRANGE if isinstance(fields, dict) and fields]
    for fields in strange:
        client.xadd(stream, fields)
    client.xadd(stream, {"op": "-", "ns": "", "id": "a1"})
    # Written by a newer replica, which knows uses that are no whole numbers.
    [uses] = [key.replace(b":ids", b":uses") for key in client.keys("reprise:*:ids")]
    client.hset(uses, "id1", "1.5")
    other.put([answer(1)])
    changes = ours.changes()
    assert [a.answer_id for a in changes.added] == ["id1"]
    assert changes.removed == (("", "a1"),)
    assert ours.num_damaged == len(strange)
    assert ours.changes().added == ()
    assert ours.num_damaged == len(strange)
    lines = [r for r in caplog.records if "Skipping an entry" in r.message]
    assert len(lines) == 1
    client.close()
    ours.close()
    other.close()
