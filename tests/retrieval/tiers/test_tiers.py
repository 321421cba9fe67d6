"""The three tiers by one contract; above all, that nothing crosses a namespace."""

import time

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from reprise.retrieval import Answer
from reprise.retrieval.api.invalidation import Invalidation
from reprise.retrieval.api.tier_url import redact
from reprise.retrieval.in_process.open_tier import open_tier
from reprise.retrieval.tiers.memory_tier import MemoryTier
from reprise.retrieval.tiers.redis.redis_tier import RedisTier
from reprise.retrieval.tiers.sqlite_tier import SqliteTier
from reprise.retrieval.tiers.sync.memory_before import MemoryBefore
from reprise.retrieval.tiers.sync.tier_sync import TierSync
from reprise.retrieval.tiers.tier import TierError, UsageCounts

# Names that a careless key or pattern would mix up.
NAMESPACES = ["", "acme", "acme:", "{acme}", "*", "acme%"]


def answer(number, *, namespace="", created_s=None, size=3):
    return Answer.create(
        prompt_token_ids=[number],
        response_token_ids=[number] * size,
        namespace=namespace,
        answer_id=f"id{number}",
        response_text=namespace,
        created_s=created_s,
    )


@pytest.fixture(params=["memory", "sqlite", pytest.param("redis", marks=pytest.mark.redis)])
def make_tier(request, tmp_path, advance_clock):
    opened = []
    if request.param == "redis":
        server = request.getfixturevalue("redis_server")

    def make(**options):
        if request.param == "memory":
            opened.append(MemoryTier(max_bytes=1 << 24, **options))
        elif request.param == "sqlite":
            opened.append(SqliteTier(tmp_path / "answers.sqlite", **options))
        else:
            opened.append(RedisTier(server.url, timeout_s=20.0, **options))
        return opened[-1]

    def pass_time(seconds):
        """Redis has a clock of its own."""
        if request.param == "redis":
            time.sleep(seconds)
        else:
            advance_clock(seconds)

    make.pass_time = pass_time
    yield make
    for tier in opened:
        tier.close()


OPERATIONS = st.lists(
    st.tuples(
        st.sampled_from(["put", "put", "remove", "list", "record_usage"]),
        st.sampled_from(NAMESPACES),
        st.integers(0, 1),
    ),
    min_size=20,  # few answers and many operations, so that one answer meets several
    max_size=60,
)


def check_namespace_holds(tier, namespace, credits_by_number):
    """Exactly these answers, each with what it was credited and nothing of anybody else's."""
    found = list(tier.answers(namespace))
    accepted = {f"id{number}": 2 * n for number, n in credits_by_number.items()}
    assert {a.answer_id: a.accepted_tokens for a in found} == accepted
    assert all(a.namespace == a.response_text == namespace for a in found)


@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(operations=OPERATIONS)
def test_random_operations_never_cross_a_wall(make_tier, operations):
    tier = make_tier()
    for namespace in NAMESPACES:  # hypothesis shares the tier between its examples
        tier.remove(namespace, ["id0", "id1"])
    model: dict[str, dict[int, int]] = {namespace: {} for namespace in NAMESPACES}
    for operation, namespace, number in operations:
        if operation == "put":
            assert tier.put([answer(number, namespace=namespace)]) == []
            model[namespace].setdefault(number, 0)
        elif operation == "remove":
            assert tier.remove(namespace, [f"id{number}"]) == (number in model[namespace])
            model[namespace].pop(number, None)
        elif operation == "record_usage":
            tier.record_usage(namespace, {f"id{number}": UsageCounts(1, 2)})
            if number in model[namespace]:
                model[namespace][number] += 1
        else:
            check_namespace_holds(tier, namespace, model[namespace])
    for namespace in NAMESPACES:
        check_namespace_holds(tier, namespace, model[namespace])
    assert set(tier.namespaces()) >= {name for name, numbers in model.items() if numbers}


def test_answers_come_back_as_they_were(make_tier):
    tier = make_tier()
    originals = [answer(1), answer(2), answer(3, namespace="租户", size=4000)]
    tier.put(originals)
    assert sorted(tier.answers(""), key=lambda a: a.answer_id) == originals[:2]
    assert list(tier.answers("租户")) == [originals[2]]


def test_answers_are_found_by_id_in_their_namespace(make_tier):
    tier = make_tier()
    tier.put([answer(1), answer(2), answer(2, namespace="acme"), answer(3, namespace="acme")])
    tier.record_usage("", {"id2": UsageCounts(1, 5)})
    found = tier.find("", ["id2", "id3", "unknown", "exact:00", "*", ""])
    assert [(a.answer_id, a.namespace) for a in found] == [("id2", "")]
    assert isinstance(tier, MemoryTier) or found[0].accepted_tokens == 5
    assert {a.answer_id for a in tier.find("acme", ["id1", "id2", "id3"])} == {"id2", "id3"}
    assert tier.find("", []) == tier.find("nobody", ["id1"]) == []


def test_the_most_valuable_come_first(make_tier):
    tier = make_tier()
    tier.put([answer(number) for number in range(1103)])
    tier.put([answer(1, namespace="acme")])
    for number, accepted in ((700, 50), (3, 500), (900, 5)):
        tier.record_usage("", {f"id{number}": UsageCounts(1, accepted)})
    found = [each.answer_id for each in tier.valuable("")]
    assert len(found) == 1103
    assert set(found) == {f"id{n}" for n in range(1103)}
    assert isinstance(tier, MemoryTier) or found[:3] == ["id3", "id700", "id900"]
    assert [each.answer_id for each in tier.valuable("acme")] == ["id1"]
    assert list(tier.valuable("nobody")) == []


def test_the_same_id_replaces(make_tier):
    tier = make_tier()
    tier.put([answer(1, size=3)])
    tier.put([answer(1, size=9)])
    assert [len(a.response_token_ids) for a in tier.answers("")] == [9]


def test_uses_add_up_and_putting_anew_keeps_the_larger(make_tier):
    tier = make_tier()
    tier.put([answer(1), answer(2, namespace="acme"), answer(3)])
    tier.record_usage(
        "", {"id1": UsageCounts(1, 5), "id3": UsageCounts(2, 0), "unknown": UsageCounts(9, 9)}
    )
    tier.record_usage("", {"id1": UsageCounts(1, 7)})
    tier.put([answer(1)])  # the same answer once more: what it earned stays

    def earned(namespace=""):
        return {a.answer_id: (a.uses, a.accepted_tokens) for a in tier.answers(namespace)}

    assert earned() == {"id1": (2, 12), "id3": (2, 0)}
    assert earned("acme") == {"id2": (0, 0)}
    tier.put([msgspec.structs.replace(answer(1), uses=5, accepted_tokens=3)])  # an import
    assert earned()["id1"] == (5, 12)
    tier.record_usage("", {"id1": UsageCounts(1, 1)})
    assert earned()["id1"] == (6, 13)
    tier.remove("", ["id1"])
    tier.put([answer(1)])  # a new life
    assert earned()["id1"] == (0, 0)


def test_more_answers_than_a_page(make_tier):
    tier = make_tier()
    tier.put([answer(number) for number in range(1203)])
    assert {a.answer_id for a in tier.answers("")} == {f"id{n}" for n in range(1203)}


def test_answers_past_their_time_are_gone(make_tier):
    tier = make_tier(ttl_s=1.5)
    began_s = time.monotonic()
    tier.put([answer(1)])
    found = [a.answer_id for a in tier.answers("")]
    # There until then, unless the machine stood still for so long.
    assert found == ["id1"] or time.monotonic() - began_s > 1.5
    make_tier.pass_time(1.6)
    assert list(tier.answers("")) == []


def test_a_file_survives_its_process_and_damage(tmp_path):
    first = SqliteTier(tmp_path / "a.sqlite")
    first.put([answer(1), answer(2)])
    first.close()
    again = SqliteTier(tmp_path / "a.sqlite")
    again._db.execute("update answers set record = x'00ff' where answer_id = 'id1'")
    again._db.commit()
    assert [a.answer_id for a in again.answers("")] == ["id2"]
    assert again.num_damaged == 1
    again.close()


def test_a_file_that_cannot_be_opened_is_tried_again_at_each_call(tmp_path):
    path = tmp_path / "mounted late" / "a.sqlite"
    tier = SqliteTier(path)
    for _ in range(2):
        with pytest.raises(TierError, match=r"sqlite file .*a\.sqlite: No such file or directory"):
            tier.put([answer(1)])
    path.parent.mkdir()
    tier.put([answer(1), answer(2)])
    before = tier.invalidations(None)
    other = SqliteTier(path)
    assert other.forget(Invalidation.create(answer_id="id1")) == [("", "id1")]
    other.close()
    assert [each.answer_id for each in tier.invalidations(before.position).invalidations] == ["id1"]
    assert tier.answer_ids("") == ["id2"]


def test_a_file_in_place_of_another_is_followed(tmp_path):
    """Removed by hand while a process uses it: what others have forgotten is in the new one."""
    path = tmp_path / "answers.sqlite"
    one = SqliteTier(path)
    one.put([answer(1)])
    one.announce(Invalidation.create(namespace="another"))
    assert not one.has_gone_back()
    position = one.invalidations(None).position
    for each in tmp_path.iterdir():
        each.unlink()
    other = SqliteTier(path)
    made = Invalidation.create(namespace="")
    other.announce(made)  # of the same number as what was in the old one
    other.put([answer(2)])
    page = one.invalidations(position)
    assert page.invalidations == (made,)
    assert not page.complete
    assert one.has_gone_back()
    assert not one.has_gone_back()
    assert {each.answer_id for each in one.answers("")} == {"id2"}
    one.put([answer(3)])
    assert {each.answer_id for each in other.answers("")} == {"id2", "id3"}
    assert one.invalidations(page.position).complete
    for each in tmp_path.iterdir():
        each.unlink()
    assert list(one.answers("")) == []  # made anew
    assert path.exists()
    for tier in (one, other):
        tier.close()


@pytest.mark.parametrize("is_made_anew", [True, False])
def test_memory_follows_a_file_that_was_removed(tmp_path, wait_until, is_made_anew):
    path, gone = tmp_path / "answers.sqlite", []
    tier, other = SqliteTier(path), SqliteTier(path)
    tier.put([answer(1)])
    memory = MemoryBefore(
        on_added=lambda _: None, on_forgotten=gone.append, held=lambda: {("", "id1")}
    )
    sync = TierSync(tier, memory, poll_s=0.02)
    wait_until(sync.caught_up.is_set)
    for each in tmp_path.iterdir():
        each.unlink()
    if is_made_anew:
        other.forget(Invalidation.create(namespace=""))
    wait_until(lambda: ("", "id1") in {key for each in gone for key in each.removed}, 20.0)
    sync.close()
    other.close()


def test_a_file_that_was_never_used_is_not_made(tmp_path):
    tier = SqliteTier(tmp_path / "a.sqlite")
    tier.close()
    with pytest.raises(TierError, match="sqlite is closed"):
        tier.namespaces()
    assert not (tmp_path / "a.sqlite").exists()


def test_reading_a_namespace_of_a_file_does_not_read_others(tmp_path):
    """By what SQLite says it reads, not by the clock."""
    tier = SqliteTier(tmp_path / "a.sqlite", ttl_s=60.0)
    tier.put([answer(number, namespace="large") for number in range(300)])
    statements = []
    tier._db.set_trace_callback(statements.append)
    assert list(tier.answers("small")) == []
    tier._db.set_trace_callback(None)
    selects = [statement for statement in statements if statement.startswith("select")]
    assert len(selects) == 1
    for select in selects:
        plan = [row[3] for row in tier._db.execute(f"explain query plan {select}")]
        assert any("SEARCH answers USING" in step and "namespace=?" in step for step in plan), plan
        assert not any(step.startswith("SCAN") for step in plan), plan
    tier.close()


@pytest.mark.redis
def test_every_key_of_a_namespace_lies_in_one_cluster_slot(redis_server):
    import redis

    tier = RedisTier(redis_server.url, timeout_s=20.0)
    tier.put([answer(1, namespace="acme"), answer(2, namespace="acme")])
    client = redis.Redis.from_url(redis_server.url)
    keys = {key.decode() for key in client.keys("reprise:*") if b"{all}" not in key}
    assert len(keys) == 4
    assert len({key.partition("{")[2].partition("}")[0] for key in keys}) == 1
    # Nothing walks the key space.
    client.config_resetstat()
    list(tier.answers("acme"))
    used = set(client.info("commandstats"))
    assert "cmdstat_mget" in used
    assert not used & {"cmdstat_keys", "cmdstat_scan"}
    client.close()
    tier.close()


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("", "cache URL must be"),
        ("mysql://x", "cache URL must be"),
        ("sqlite://relative", "sqlite URL must be"),
        ("sqlite:///", "sqlite URL must be"),
    ],
)
def test_urls_that_name_no_tier_are_refused(url, message):
    with pytest.raises(ValueError, match=message):
        open_tier(url)


def test_urls_open_tiers(tmp_path):
    assert open_tier("memory://") is None
    tier = open_tier(f"sqlite:///{tmp_path}/x.sqlite")
    assert tier.namespaces() == []
    assert (tmp_path / "x.sqlite").is_file()
    tier.close()


def test_passwords_are_never_shown():
    assert redact("redis://me:s3cret@host:6379/0") == "redis://me:***@host:6379/0"
    with pytest.raises(ValueError, match=r"rediz://me:\*\*\*@host"):
        open_tier("rediz://me:s3cret@host")


def test_what_others_add_may_be_passed_over(make_tier):
    tier, other = make_tier(), make_tier()
    if isinstance(tier, MemoryTier):
        pytest.skip("memory is no other process's")
    assert other.changes().added == ()
    tier.put([answer(1), answer(2)])
    tier.remove("", ["id1"])
    passed = other.changes(wants_added=False)
    assert (passed.added, passed.removed, passed.complete) == ((), (("", "id1"),), True)
    tier.put([answer(3)])
    assert [each.answer_id for each in other.changes().added] == ["id3"]


def test_a_forget_that_is_tried_again_is_told_once(make_tier, monkeypatch):
    tier = make_tier()
    tier.put([answer(n, namespace="acme") for n in range(300)])
    remove, calls = tier.remove, []

    def failing(namespace, answer_ids):
        calls.append(answer_ids)
        if len(calls) == 2:
            raise TierError("not now")
        return remove(namespace, answer_ids)

    monkeypatch.setattr(tier, "remove", failing)
    invalidation, removed = Invalidation.create(namespace="acme"), {}
    with pytest.raises(TierError):
        tier.forget(invalidation, removed=removed)
    assert len(tier.forget(invalidation, removed=removed)) == 300
    assert removed.keys() == {("acme", f"id{n}") for n in range(300)}
    if tier.name != "memory":  # whose removals nobody follows
        assert tier.invalidations(None).invalidations == (invalidation,)


@pytest.mark.redis
def test_a_redis_cluster_takes_every_call(start_redis, wait_until):
    """One node that holds all slots refuses calls across slots as any cluster does."""
    import redis

    server = start_redis("--cluster-enabled", "yes")
    node = redis.Redis.from_url(server.url)
    node.execute_command("CLUSTER", "ADDSLOTS", *range(16384))
    wait_until(lambda: b"cluster_state:ok" in node.execute_command("CLUSTER", "INFO"))
    node.close()
    tier = RedisTier(server.url + "?cluster=1", timeout_s=20.0)
    other = RedisTier(server.url + "?cluster=1", timeout_s=20.0)
    assert other.changes().added == ()
    originals = [answer(n, namespace=f"tenant{n % 3}") for n in range(12)]
    tier.put(originals)
    assert sorted(tier.answers("tenant0"), key=originals.index) == originals[::3]
    assert sorted(tier.namespaces()) == ["tenant0", "tenant1", "tenant2"]
    assert {a.answer_id for a in tier.answers("tenant1")} == {"id1", "id4", "id7", "id10"}
    assert {a.answer_id for a in other.changes().added} == {a.answer_id for a in originals}
    assert tier.remove("tenant2", ["id2", "id5"]) == 2
    assert set(other.changes().removed) == {("tenant2", "id2"), ("tenant2", "id5")}
    assert tier.replace([originals[8], originals[2], originals[0]]) == 2
    hurried = RedisTier(server.url + "?cluster=1", timeout_s=20.0, ttl_s=0.5)
    hurried.expire()
    wait_until(lambda: not any(tier.answer_ids(f"tenant{n}") for n in range(3)))
    hurried.expire()
    assert tier.namespaces() == []
    tier.put(originals)
    assert len(tier.forget(Invalidation.create(namespace="tenant1"))) == 4
    assert not other.has_gone_back()
    hurried.close()
    tier.close()
    other.close()
