"""The memory tier: bounds, values, walls."""

import statistics
import time
import tracemalloc

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reprise.retrieval import Answer
from reprise.retrieval.tiers.memory_tier import MemoryTier
from reprise.retrieval.tiers.tier import UsageCounts


def answer(number, *, namespace="", size=10, created_s=None):
    return Answer.create(
        prompt_token_ids=[number],
        response_token_ids=[number] * size,
        namespace=namespace,
        answer_id=f"a{number}",
        created_s=created_s,
    )


def test_the_least_valuable_leaves_first():
    one = answer(0)
    tier = MemoryTier(max_bytes=11 * one.num_bytes - 100)  # ten, and the namespace
    for number in range(10):
        assert tier.put([answer(number)]) == []
        if number != 3:
            tier.record_usage("", {f"a{number}": UsageCounts(1, 50)})
    assert tier.put([answer(10)]) in ([("", "a3")], [("", "a10")])


def test_a_flooding_tenant_evicts_its_own():
    one = answer(0)
    tier = MemoryTier(max_bytes=20 * one.num_bytes)
    for number in range(5):
        tier.put([answer(number, namespace="small")])
    for number in range(1000):
        for namespace, _ in tier.put([answer(number, namespace="large")]):
            assert namespace == "large"
    assert len(list(tier.answers("small"))) == 5
    assert tier.num_bytes <= 20 * one.num_bytes


def test_an_answer_that_cannot_fit_is_not_held():
    tier = MemoryTier(max_bytes=2000)
    assert tier.put([answer(1, size=10_000)]) == [("", "a1")]
    assert tier.num_answers == 0


def test_old_answers_are_gone():
    tier = MemoryTier(max_bytes=1 << 20, ttl_s=60.0)
    tier.put([answer(1, created_s=time.time() - 61)])
    tier.put([answer(2)])
    gone, there = tier.get("", ["a1", "a2"])
    assert (gone, there.answer_id) == (None, "a2")
    assert tier.expired() == [("", "a1")]
    assert tier.num_answers == 1


def test_an_answer_stands_for_those_folded_into_it():
    tier = MemoryTier(max_bytes=1 << 20)
    tier.put([answer(number, namespace=name) for number in range(4) for name in ("acme", "zeta")])
    tier.record_usage("acme", {"a1": UsageCounts(2, 30)})
    before = tier.num_bytes
    assert tier.fold("acme", "a1", into="a0")
    assert tier.fold("acme", "a0", into="a2")
    assert not tier.fold("acme", "a3", into="a3")
    assert not tier.fold("acme", "a3", into="a0")  # which is not held any more
    assert tier.num_bytes < before - answer(0).num_bytes
    tier.record_usage("acme", {"a1": UsageCounts(1, 5)})  # of a request that had it before
    kept = next(each for each in tier.answers("acme") if each.answer_id == "a2")
    assert (kept.uses, kept.accepted_tokens) == (2 + 1 + 1 + 1, 35)
    assert [tier.is_copy("acme", f"a{n}") for n in range(4)] == [True, True, False, False]
    assert tier.knows("acme", "a1")
    assert not tier.is_copy("zeta", "a1")
    tier.put([answer(2, namespace="acme")])  # the same once more
    assert tier.is_copy("acme", "a0")

    tier.remove("acme", ["a1"])
    assert tier.take_orphans() == []
    tier.remove("acme", ["a2"])
    assert tier.take_orphans() == [("acme", "a0")]
    assert tier.take_orphans() == []
    assert not tier.knows("acme", "a0")
    tier.remove("zeta", [f"a{n}" for n in range(4)])
    tier.remove("acme", ["a3"])
    assert tier.num_bytes == 0


def test_removed_together_with_what_stands_for_it_nothing_is_left():
    tier = MemoryTier(max_bytes=1 << 20)
    tier.put([answer(0), answer(1), answer(2)])
    tier.fold("", "a1", into="a0")
    tier.fold("", "a2", into="a0")
    tier.remove("", ["a0", "a1"])
    assert tier.take_orphans() == [("", "a2")]


def test_too_old_leaves_what_is_younger_and_eviction_leaves_nothing(advance_clock):
    tier = MemoryTier(max_bytes=1 << 20, ttl_s=600.0)
    tier.put([answer(1, created_s=time.time() - 300.0), answer(2)])
    assert tier.fold("", "a2", into="a1")
    assert tier.expired() == []
    advance_clock(310.0)
    assert tier.expired() == [("", "a1")]
    assert tier.take_orphans() == [("", "a2")]
    tier = MemoryTier(max_bytes=4 * answer(0).num_bytes)
    tier.put([answer(1), answer(2)])
    tier.fold("", "a2", into="a1")
    for number in range(10, 30):
        tier.put([answer(number)])
        tier.record_usage("", {f"a{number}": UsageCounts(1, 50)})
    assert not tier.knows("", "a2")
    assert tier.take_orphans() == []


def test_the_latest_copies_are_remembered():
    tier = MemoryTier(max_bytes=1 << 20)
    tier.put([answer(number) for number in range(40)])
    for number in range(1, 40):
        assert tier.fold("", f"a{number}", into="a0")
    assert [number for number in range(40) if tier.is_copy("", f"a{number}")] == list(range(24, 40))


def test_bad_bounds_are_refused():
    with pytest.raises(ValueError, match="max_bytes must be positive, got 0"):
        MemoryTier(max_bytes=0)
    with pytest.raises(ValueError, match="max_namespaces must be positive, got 0"):
        MemoryTier(max_bytes=1, max_namespaces=0)


def test_namespaces_are_charged_for():
    """What is charged is what is taken, and no less, with one answer in each namespace."""
    answers = [answer(n, namespace=f"{'salt' * 10}{n}") for n in range(3000)]
    tier = MemoryTier(max_bytes=1 << 30)
    tracemalloc.start()
    before, _ = tracemalloc.get_traced_memory()
    for one in answers:
        tier.put([answer(int(one.answer_id[1:]), namespace=one.namespace)])
    taken = tracemalloc.get_traced_memory()[0] - before
    tracemalloc.stop()
    assert taken <= tier.num_bytes
    for one in answers:
        tier.remove(one.namespace, [one.answer_id])
    assert (tier.num_bytes, tier.num_answers, tier.num_namespaces) == (0, 0, 0)


def test_the_least_valuable_namespace_leaves_as_a_whole():
    tier = MemoryTier(max_bytes=1 << 24, max_namespaces=5)
    for tenant in range(5):
        tier.put([answer(n, namespace=f"t{tenant}") for n in range(3)])
        if tenant != 2:
            tier.record_usage(f"t{tenant}", {"a0": UsageCounts(1, 20)})
    assert sorted(tier.put([answer(1, namespace="new")])) == [("t2", f"a{n}") for n in range(3)]
    assert sorted(tier.namespaces()) == ["new", "t0", "t1", "t3", "t4"]
    # The newcomer is worth least, and stays until the next one comes.
    assert tier.put([answer(1, namespace="newer")]) == [("new", "a1")]


def test_a_put_takes_as_long_with_a_hundred_thousand_namespaces_as_with_a_thousand():
    def median_us(num_namespaces):
        tier = MemoryTier(max_bytes=1 << 40, max_namespaces=num_namespaces)
        took_us = []
        first = answer(0)
        for number in range(num_namespaces + 3000):
            one = msgspec.structs.replace(first, namespace=f"salt{number}")
            began_s = time.perf_counter()
            gone = tier.put([one])
            took_us.append(1e6 * (time.perf_counter() - began_s))
            assert len(gone) == (number >= num_namespaces)
        assert tier.num_namespaces == num_namespaces
        return statistics.median(took_us[num_namespaces:])

    few, many = median_us(1000), median_us(100_000)
    assert many < max(50.0, 4 * few)


def test_the_largest_namespace_is_found_among_many():
    """Every put evicts one answer of the largest: walking all of them would take milliseconds."""
    number_of = iter(range(1_000_000))
    one = answer(10_000)
    tier = MemoryTier(max_bytes=20_000 * (one.num_bytes + 1000))
    took_us = []
    while len(took_us) < 3000:
        number = next(number_of)
        began_s = time.perf_counter()
        gone = tier.put([answer(number, namespace=f"salt{number}")])
        if gone:
            took_us.append(1e6 * (time.perf_counter() - began_s))
    assert statistics.median(took_us) < 200.0


OPERATIONS = st.lists(
    st.tuples(
        st.sampled_from(["put", "get", "remove", "record_usage", "fold"]),
        st.sampled_from(["", "acme", "zeta"]),
        st.integers(0, 12),
    ),
    max_size=120,
)


@settings(max_examples=60, deadline=None)
@given(operations=OPERATIONS, capacity=st.integers(2, 8))
def test_random_operations_keep_bounds_and_walls(operations, capacity):
    limit = capacity * answer(0, namespace="acme").num_bytes
    tier = MemoryTier(max_bytes=limit)
    held: set[tuple[str, str]] = set()
    for name, namespace, number in operations:
        key = f"a{number}"
        if name == "put":
            evicted = tier.put([answer(number, namespace=namespace)])
            held.add((namespace, key))
            held -= set(evicted)
        elif name == "get":
            [found] = tier.get(namespace, [key])
            assert (found is not None) == ((namespace, key) in held)
            assert found is None or found.namespace == namespace
        elif name == "remove":
            assert tier.remove(namespace, [key]) == ((namespace, key) in held)
            held.discard((namespace, key))
        elif name == "fold":
            into = f"a{number % 3}"
            both = {(namespace, key), (namespace, into)}
            folded = tier.fold(namespace, key, into=into)
            assert folded == (len(both) == 2 and both <= held)
            if folded:
                held.discard((namespace, key))
                assert tier.is_copy(namespace, key)
        else:
            tier.record_usage(namespace, {key: UsageCounts(1, 3)})
        assert tier.num_bytes <= limit
        assert tier.num_answers == len(held)
        assert not any(tier.is_copy(*each) for each in held)
    for each in held:
        tier.remove(each[0], [each[1]])
    assert tier.num_bytes == 0
    tier.put([answer(0, namespace=namespace) for namespace, _ in held])
    assert sorted(tier.namespaces()) == sorted({namespace for namespace, _ in held})
