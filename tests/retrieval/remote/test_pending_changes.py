"""What waits for a remote index: the last word on each answer counts."""

import numpy as np

from reprise.retrieval.remote.pending_changes import PendingChanges
from reprise.retrieval.remote.remote_index import RemoteRow


def row(answer_id, namespace="acme"):
    return RemoteRow(namespace, answer_id, 1.0, np.ones(2, np.float32))


def named(batch):
    return {key: change is not None for key, change in batch.changes.items()}


def test_the_last_word_counts():
    pending = PendingChanges(max_rows=10)
    pending.put([row("a"), row("b")])
    pending.remove([("acme", "a"), ("acme", "c")])
    pending.put([row("c")])
    assert named(pending.take(10)) == {
        ("acme", "a"): False,
        ("acme", "b"): True,
        ("acme", "c"): True,
    }
    assert not pending


def test_a_namespace_goes_before_what_came_after_it():
    pending = PendingChanges(max_rows=10)
    pending.put([row("a"), row("a", "other")])
    pending.remove([("acme", "b")])
    pending.remove_namespace("acme", created_until_s=5.0)
    pending.remove_namespace("acme", created_until_s=4.0)
    pending.put([row("c")])
    batch = pending.take(10)
    assert batch.namespaces == {"acme": 5.0}
    assert named(batch) == {("other", "a"): True, ("acme", "c"): True}


def test_what_failed_waits_again_but_for_what_came_after():
    pending = PendingChanges(max_rows=10)
    pending.put([row(name) for name in "abc"])
    pending.remove([("acme", "d"), ("x", "e")])
    batch = pending.take(10)
    pending.remove([("acme", "a")])
    pending.put([row("d")])
    pending.remove_namespace("x", created_until_s=5.0)
    pending.put_back(batch)
    again = pending.take(10)
    assert again.namespaces == {"x": 5.0}
    assert named(again) == {
        ("acme", "a"): False,
        ("acme", "b"): True,
        ("acme", "c"): True,
        ("acme", "d"): True,
    }


def test_the_oldest_rows_beyond_the_bound_are_lost_and_no_removal():
    pending = PendingChanges(max_rows=2)
    pending.remove([("acme", "z")])
    pending.put([row(name) for name in "abc"])
    assert pending.num_lost == 1
    assert named(pending.take(10)) == {
        ("acme", "z"): False,
        ("acme", "b"): True,
        ("acme", "c"): True,
    }
