"""What was to be forgotten before a process first reads a tier's log is kept from the tier too."""

import threading

import msgspec
import pytest

from reprise.retrieval import Answer
from reprise.retrieval.api.invalidation import Invalidation
from reprise.retrieval.host import steady_clock
from reprise.retrieval.in_process.open_tier import open_tier
from reprise.retrieval.tiers import change_log
from reprise.retrieval.tiers.redis import redis_invalidations
from reprise.retrieval.tiers.sync.memory_before import MemoryBefore
from reprise.retrieval.tiers.sync.tier_sync import TierSync
from reprise.retrieval.tiers.tier import TierError


def answer(name, age_s, *, namespace="acme"):
    return Answer.create(
        prompt_token_ids=[1],
        response_token_ids=[1] * 20,
        namespace=namespace,
        answer_id=name,
        created_s=steady_clock.now_s() - age_s,
    )


def invalidation(age_s, **conditions):
    made_s = steady_clock.now_s() - age_s
    return msgspec.structs.replace(Invalidation.create(**conditions), made_s=made_s)


@pytest.fixture(params=["sqlite", pytest.param("redis", marks=pytest.mark.redis)])
def make_tier(request, tmp_path):
    made = []

    def make():
        if request.param == "redis":
            url = request.getfixturevalue("redis_server").url
        else:
            url = f"sqlite:///{tmp_path}/answers.sqlite"
        made.append(open_tier(url, timeout_s=20.0))
        return made[-1]

    yield make
    for tier in made:
        tier.close()


class Reader:
    """A `TierSync` that cannot read the log before `is_readable` is set."""

    def __init__(self, tier):
        self.is_readable = threading.Event()
        self.joined, self.forgotten = [], []
        read = tier.invalidations

        def invalidations(after):
            if not self.is_readable.is_set():
                raise TierError("not now")
            return read(after)

        tier.invalidations = invalidations
        self.sync = TierSync(
            tier,
            MemoryBefore(
                on_added=lambda batch: self.joined.extend(each.answer_id for each in batch),
                on_forgotten=self.forgotten.append,
            ),
            poll_s=0.02,
        )

    def read_on(self):
        """Let it read the log, and wait until all is taken and written."""
        self.is_readable.set()
        assert self.sync.caught_up.wait(60)
        assert self.sync.drain(60)


@pytest.fixture
def make_reader(make_tier):
    made = []

    def make():
        made.append(Reader(make_tier()))
        return made[-1]

    yield make
    for reader in made:
        reader.sync.close()


def ids_in(tier):
    return {each.answer_id for each in tier.answers("acme")}


def test_what_waits_and_was_meant_is_not_written(make_tier, make_reader):
    other, reader = make_tier(), make_reader()
    reader.sync.write([answer("meant", 60), answer("younger", 20)])
    assert other.forget(invalidation(40, namespace="acme")) == []
    # Imported since then, whenever it was made.
    other.put([answer("imported", 600)])
    reader.read_on()
    # What comes from the engine only now may have been on its way all the time.
    reader.sync.write([answer("late", 50), answer("young", 10)])
    assert reader.sync.drain(60)
    assert ids_in(other) == {"imported", "younger", "young"}
    assert "imported" in reader.joined
    assert reader.sync.position == other.invalidations(None).position


def test_what_was_made_before_the_log_begins_may_have_been_meant(
    monkeypatch, make_tier, make_reader
):
    for module in (change_log, redis_invalidations):
        monkeypatch.setattr(module, "_MAX_INVALIDATIONS", 100)
    other, reader = make_tier(), make_reader()
    reader.sync.write([answer("meant", 900), answer("unknown", 880), answer("younger", 5)])
    other.forget(invalidation(890, answer_id="meant"))
    for number in range(400):
        other.announce(invalidation(800 - 2 * number, answer_id="of another"))
    other.put([answer("imported", 5000)])
    reader.read_on()
    reader.sync.write([answer("late", 895), answer("young", 4)])
    assert reader.sync.drain(60)
    assert ids_in(other) == {"imported", "younger", "young"}
    assert reader.joined[0] == "imported"


def test_what_is_not_understood_may_mean_whatever_was_made_before_the_next(
    monkeypatch, make_tier, make_reader
):
    other, reader = make_tier(), make_reader()
    reader.sync.write([answer("older", 60), answer("younger", 20)])
    for module in (change_log, redis_invalidations):
        with monkeypatch.context() as patched:
            patched.setattr(module, "encode_invalidation", lambda _: b"?")
            other.announce(invalidation(50, answer_id="older"))
    other.announce(invalidation(40, answer_id="of another"))
    reader.read_on()
    assert ids_in(other) == {"younger"}
