"""Between memory and a tier that hangs or fails, without one that really does."""

import threading
import time
from types import SimpleNamespace

from reprise.retrieval import Answer
from reprise.retrieval.api.invalidation import Invalidation
from reprise.retrieval.tiers.memory_tier import MemoryTier
from reprise.retrieval.tiers.sync import late_writes, tier_sync
from reprise.retrieval.tiers.sync.memory_before import MemoryBefore
from reprise.retrieval.tiers.sync.tier_sync import TierSync
from reprise.retrieval.tiers.tier import TierError, UsageCounts


def answer(number, *, namespace="acme"):
    return Answer.create(
        prompt_token_ids=[number],
        response_token_ids=[number] * 20,
        namespace=namespace,
        answer_id=f"id{number}",
    )


def sync_of(tier, **options):
    return TierSync(
        tier, MemoryBefore(on_added=lambda _: None, on_forgotten=lambda _: None), **options
    )


class FailingOnce(MemoryTier):
    """Refuses the second namespace's first credits."""

    name = "failing"

    def __init__(self):
        super().__init__(max_bytes=1 << 20)
        self.refusals = 0

    def record_usage(self, namespace, earned):
        if namespace == "zeta" and self.refusals < 2:
            self.refusals += 1
            raise TierError("not now")
        super().record_usage(namespace, earned)


def test_what_failed_is_tried_again_and_what_did_not_is_not():
    tier = FailingOnce()
    tier.put([answer(1), answer(1, namespace="zeta")])
    sync = sync_of(tier)
    sync.record_usage("acme", {"id1": UsageCounts(1, 3)})
    sync.record_usage("zeta", {"id1": UsageCounts(1, 4)})
    assert sync.drain(60)
    [mine], [theirs] = tier.answers("acme"), tier.answers("zeta")
    assert (mine.uses, mine.accepted_tokens) == (1, 3)
    assert (theirs.uses, theirs.accepted_tokens) == (1, 4)
    assert tier.refusals == 2
    sync.close()


class Paged(MemoryTier):
    """Hands out its answers page by page, each when it is told to."""

    name = "paged"

    def __init__(self):
        super().__init__(max_bytes=1 << 20)
        self.read, self.goes_on = threading.Event(), threading.Event()

    def answers(self, namespace):
        page = list(super().answers(namespace))
        self.read.set()
        self.goes_on.wait(60)
        yield from page


def test_what_is_forgotten_while_it_is_being_read_does_not_come_in():
    tier = Paged()
    tier.put([answer(1), answer(2)])
    held = {}

    def forget(removed):
        for key in removed:
            held.pop(key, None)

    memory = MemoryBefore(
        on_added=lambda batch: held.update({(a.namespace, a.answer_id): a for a in batch}),
        on_forgotten=lambda _: None,
        on_removed=forget,
    )
    sync = TierSync(tier, memory)
    assert tier.read.wait(60)
    pending = sync.forget(Invalidation.create(answer_id="id1"))
    assert pending.done.wait(60)
    assert pending.removed == (("acme", "id1"),)
    tier.goes_on.set()
    assert sync.caught_up.wait(60)
    assert set(held) == {("acme", "id2")}
    sync.close()


class Undecided(MemoryTier):
    """Takes long to say whether it has gone back."""

    name = "undecided"

    def __init__(self):
        super().__init__(max_bytes=1 << 20)
        self.goes_on = threading.Event()

    def has_gone_back(self):
        return self.goes_on.wait(60) and False


def test_writing_does_not_wait_for_whether_a_tier_has_gone_back():
    tier = Undecided()
    sync = sync_of(tier, poll_s=10.0)  # what was read stays recent for longer than that
    sync.write([answer(1)])
    assert sync.drain(30)
    assert tier.num_answers == 1
    tier.goes_on.set()
    sync.close()


class Halting(MemoryTier):
    """Fails at its second removal, and when that is tried once more."""

    name = "halting"

    def __init__(self):
        super().__init__(max_bytes=1 << 24)
        self.num_removals = 0

    def remove(self, namespace, answer_ids):
        self.num_removals += 1
        if self.num_removals in (2, 3):
            raise TierError("not now")
        return super().remove(namespace, answer_ids)


class Mirror:
    """Remembers what was forgotten."""

    def __init__(self):
        self.forgotten = []

    def written(self, _):
        pass

    removed = written

    def forgot(self, invalidation, removed):
        self.forgotten.append((invalidation, set(removed)))


def test_all_that_was_removed_is_told_though_the_tier_failed_half_way():
    tier, mirror = Halting(), Mirror()
    tier.put([answer(n, namespace=f"tenant{n % 2}") for n in range(600)])
    sync = sync_of(tier, mirror=mirror)
    invalidation = Invalidation.create(everything=True)
    pending = sync.forget(invalidation)
    assert pending.done.wait(60)
    every = {(f"tenant{n % 2}", f"id{n}") for n in range(600)}
    assert set(pending.removed) == every
    assert mirror.forgotten == [(invalidation, every)]
    sync.close()


def test_an_answer_that_waits_or_was_just_written_is_forgotten_too(monkeypatch):
    monkeypatch.setattr(late_writes, "_REMEMBERED_S", 600.0)  # however long this test stands still
    tier = FailingOnce()
    sync = sync_of(tier, poll_s=0.05)
    sync.write([answer(1)])
    assert sync.drain(60)
    # Another process's invalidation that came too late for its own look at the tier.
    sync._late.forget(Invalidation.create(namespace="acme").means, [])
    with sync._changed:
        sync._changed.notify_all()
    assert sync.drain(60)
    assert list(tier.answers("acme")) == []
    sync.close()


class Refusing(MemoryTier):
    """Refuses to hold answers when it is asked first, and tried once more, as soon as it may."""

    name = "refusing"

    def __init__(self):
        super().__init__(max_bytes=1 << 20)
        self.asked, self.goes_on = threading.Event(), threading.Event()
        self.refusals = 0

    def put(self, answers):
        self.asked.set()
        assert self.goes_on.wait(60)
        if self.refusals < 2:
            self.refusals += 1
            raise TierError("not now")
        return super().put(answers)


def test_what_could_not_be_written_and_is_forgotten_meanwhile_is_not_written_later():
    tier = Refusing()
    sync = sync_of(tier)
    sync.write([answer(1), answer(2)])
    assert tier.asked.wait(60)
    sync.forget(Invalidation.create(answer_id="id1"))
    tier.goes_on.set()
    assert sync.drain(60)
    assert [each.answer_id for each in tier.answers("acme")] == ["id2"]
    sync.close()


def test_what_was_written_is_remembered_until_others_have_been_heard(monkeypatch):
    """However long that takes: the machine may stand still, or the tier be out of reach."""
    now_s = 100.0
    monkeypatch.setattr(late_writes, "time", SimpleNamespace(monotonic=lambda: now_s))
    late = late_writes.LateWrites()
    late.wrote([answer(1)])
    late.drop_old(99.0)
    now_s = 160.0
    late.wrote([answer(2)])
    late.drop_old(99.0)
    late.forget(Invalidation.create(namespace="acme").means, [])
    assert late.take() == {"acme": ["id1", "id2"]}
    late.wrote([answer(3)])
    now_s = 170.0
    late.wrote([answer(4)])
    late.drop_old(169.0)
    late.forget(Invalidation.create(namespace="acme").means, [])
    assert late.take() == {"acme": ["id4"]}


class Unreadable(MemoryTier):
    """Takes answers, and does not tell what others removed."""

    name = "unreadable"

    def __init__(self):
        super().__init__(max_bytes=1 << 20)
        self.is_readable = False

    def invalidations(self, after):
        if not self.is_readable:
            raise TierError("not now")
        return super().invalidations(after)


def test_nothing_is_written_before_it_is_known_what_others_removed():
    tier = Unreadable()
    sync = sync_of(tier, poll_s=0.05)
    sync.write([answer(1)])
    assert not sync.drain(0.5)
    assert list(tier.answers("acme")) == []
    tier.is_readable = True
    assert sync.drain(60)
    assert len(list(tier.answers("acme"))) == 1
    sync.close()


def test_where_memory_is_small_the_tier_is_read_until_it_is_full_and_compared_by_id():
    tier = MemoryTier(max_bytes=1 << 24)
    tier.put([answer(number, namespace=f"tenant{number % 2}") for number in range(1200)])
    taken, gone = [], []
    memory = MemoryBefore(
        on_added=taken.extend,
        on_forgotten=lambda forgotten: gone.extend(forgotten.removed),
        # Unread, one is there all the same; the other left while we did not look.
        held=lambda: {("tenant1", "id1199"), ("tenant1", "id7777")},
        has_room=lambda: len(taken) < 600,
    )
    sync = TierSync(tier, memory)
    assert sync.caught_up.wait(60)
    assert 600 <= len(taken) < 1200
    assert {a.namespace for a in taken} == {"tenant0", "tenant1"}
    assert ("tenant1", "id1199") not in {(a.namespace, a.answer_id) for a in taken}
    assert gone == [("tenant1", "id7777")]
    sync.close()


def test_what_waits_is_written_at_the_end_though_the_machine_stood_still(monkeypatch):
    tier = MemoryTier(max_bytes=1 << 20)
    monkeypatch.setattr(tier, "close", lambda: None)  # which empties it
    sync = sync_of(tier, poll_s=0.05)
    assert sync.caught_up.wait(60)
    with sync._changed:
        sync._reader._followed_s = float("-inf")
        sync.write([answer(1)])
        sync.record_usage("acme", {"id1": UsageCounts(1, 3)})
    sync.close(timeout_s=60)
    [kept] = tier.answers("acme")
    assert (kept.uses, kept.accepted_tokens) == (1, 3)


class Full(MemoryTier):
    """Holds nothing, and has nothing to drop."""

    name = "full"

    def __init__(self, *, is_readable=True):
        super().__init__(max_bytes=1 << 20)
        self.is_readable = is_readable
        self.num_reads = self.num_expiries = 0

    def put(self, _):
        raise TierError("full")

    def expire(self):
        self.num_expiries += 1

    def invalidations(self, after):
        self.num_reads += 1
        if not self.is_readable:
            raise TierError("not there")
        return super().invalidations(after)


def test_having_nothing_to_drop_is_not_writing(monkeypatch, wait_until):
    for name in ("_USAGE_EVERY_S", "_RETRY_S", "_SECOND_TRY_S"):
        monkeypatch.setattr(tier_sync, name, 0.0)
    tier = Full()
    sync = sync_of(tier, poll_s=0.05)
    sync.write([answer(1)])
    wait_until(lambda: sync.breakers["write"] != "closed")
    num_expiries = tier.num_expiries
    assert num_expiries > 0
    reads = tier.num_reads
    wait_until(lambda: tier.num_reads > reads + 5)
    assert sync.breakers["write"] != "closed"
    assert tier.num_expiries == num_expiries
    sync.close()


def test_nothing_is_dropped_before_the_tier_was_read(monkeypatch, wait_until):
    monkeypatch.setattr(tier_sync, "_USAGE_EVERY_S", 0.0)
    tier = Full(is_readable=False)
    sync = sync_of(tier, poll_s=0.01)
    wait_until(lambda: sync.breakers["read"] != "closed" and tier.num_reads > 3)
    assert tier.num_expiries == 0
    sync.close()


def test_an_end_waits_for_no_thread_that_is_stuck():
    go_on = threading.Event()

    class Stuck(MemoryTier):
        name = "stuck"

        def put(self, answers):
            with self.lock:
                go_on.wait(60)
            return super().put(answers)

        def close(self):
            with self.lock:
                super().close()

    tier = Stuck(max_bytes=1 << 20)
    tier.lock = threading.Lock()
    sync = sync_of(tier)
    sync.write([answer(1)])
    began_s = time.monotonic()
    sync.close(timeout_s=0.1)
    assert time.monotonic() - began_s < 30
    go_on.set()
