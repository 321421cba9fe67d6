"""An index of invalidations means what each of them does, and tries few of them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reprise.retrieval.api.answer import Answer
from reprise.retrieval.api.invalidation import Invalidation
from reprise.retrieval.host import steady_clock
from reprise.retrieval.tiers.memory_tier import MemoryTier
from reprise.retrieval.tiers.sync import known_invalidations
from reprise.retrieval.tiers.sync.invalidation_index import InvalidationIndex
from reprise.retrieval.tiers.sync.known_invalidations import KnownInvalidations
from reprise.retrieval.tiers.sync.memory_before import MemoryBefore
from reprise.retrieval.tiers.sync.tier_sync import TierSync

NOW_S = 1_000_000.0
NAMESPACES = ["", "a", "a.b", "a.b.c", "ab"]
# Some are late by now, and spare answers made since.
TIMES_S = st.sampled_from([NOW_S - each for each in (0.0, 1.0, 4.0, 6.0, 8.0, 20.0)])
TEXTS = ["one", "one\nmore", "other"]


@st.composite
def invalidations(draw):
    scope = draw(st.sampled_from(["", "namespace", "tenant"]))
    conditions = {
        "answer_id": draw(st.none() | st.sampled_from(["x", "y"])),
        "prompt": draw(st.none() | st.sampled_from(TEXTS)),
        "model_key": draw(st.none() | st.sampled_from(["m", "n"])),
    }
    if scope:
        conditions[scope] = draw(st.sampled_from(NAMESPACES[1:]))
    created_before_s = draw(st.none() | TIMES_S)
    if not any(conditions.values()):
        conditions["everything"] = True
    made = Invalidation.create(**conditions)
    return Invalidation(
        **{name: getattr(made, name) for name in made.__struct_fields__}
        | {"made_s": draw(TIMES_S), "created_before_s": created_before_s}
    )


@st.composite
def answers(draw):
    return Answer.create(
        prompt_token_ids=[1],
        response_token_ids=[2],
        prompt_text=draw(st.sampled_from(TEXTS)),
        namespace=draw(st.sampled_from(NAMESPACES)),
        answer_id=draw(st.sampled_from(["x", "y", "z"])),
        model_key=draw(st.sampled_from(["m", "n", "o"])),
        created_s=draw(TIMES_S),
    )


@given(st.lists(invalidations(), max_size=8), st.lists(answers(), min_size=1, max_size=5), TIMES_S)
def test_an_answer_is_meant_if_one_of_them_means_it(many, given_answers, since_s):
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(steady_clock, "now_s", lambda: NOW_S)
        index, known = InvalidationIndex(many), KnownInvalidations()
        known.add(many)
        for answer in given_answers:
            assert index.means(answer) == any(each.means(answer) for each in many)
            meant = any(each.means(answer) for each in many if each.made_s >= since_s)
            assert index.means(answer, since_s=since_s) == meant
            assert known.mean_since(since_s, answer) == meant
            for text in TEXTS:
                meant = any(each.means(answer, text) for each in many)
                assert index.means(answer, text_of=lambda _, text=text: text) == meant
            covers = any(each.covers(answer.namespace) for each in many)
            assert index.covers(answer.namespace) == covers


def log(kind, count):
    """Invalidations of a kind, as many as a tier's log holds."""
    for number in range(count):
        match kind:
            case "ids":
                yield Invalidation.create(namespace="a", answer_id=f"other{number}")
            case "prompts":
                yield Invalidation.create(namespace="a", prompt=f"other {number}")
            case "namespaces":
                yield Invalidation.create(namespace=f"other{number}")
            case "ages":
                yield Invalidation.create(namespace="a", older_than_s=1e6)
            case "models":
                yield Invalidation.create(model_key=f"other{number}")


def waiting(count):
    return [
        Answer.create(
            prompt_token_ids=[number],
            response_token_ids=[number],
            prompt_text=f"question {number}",
            namespace="a",
            answer_id=f"id{number}",
            created_s=steady_clock.now_s() - 100.0,
        )
        for number in range(count)
    ]


@pytest.mark.parametrize("kind", ["ids", "prompts", "namespaces", "ages", "models"])
def test_answers_that_wait_are_compared_with_few_of_a_log(kind, monkeypatch, wait_until):
    tier, compared, means = MemoryTier(max_bytes=1 << 30), [], Invalidation.means
    monkeypatch.setattr(tier, "put", lambda _: [])
    monkeypatch.setattr(
        Invalidation,
        "means",
        lambda each, *arguments: (compared.append(each), means(each, *arguments))[1],
    )
    sync = TierSync(tier, MemoryBefore(on_added=lambda _: None, on_forgotten=lambda _: None))
    wait_until(sync.caught_up.is_set)
    sync._reader._take_out(tuple(log(kind, 200)))
    sync.write(waiting(200))
    assert sync.drain(60)
    sync._reader._take_out(tuple(log(kind, 200)))
    assert len(compared) <= 3 * 200
    sync.close()


def test_what_is_forgotten_soon_is_compared_with_few(monkeypatch):
    tier = MemoryTier(max_bytes=1 << 30)
    monkeypatch.setattr(tier, "forget", None)  # none of it is done
    sync = TierSync(tier, MemoryBefore(on_added=lambda _: None, on_forgotten=lambda _: None))
    with sync._changed:  # nothing is tried meanwhile
        for each in log("ids", 200):
            sync.forget(each)
        sync.forget(Invalidation.create(answer_id="id3"))
        compared, means = [], Invalidation.means
        monkeypatch.setattr(
            Invalidation,
            "means",
            lambda each, *arguments: (compared.append(each), means(each, *arguments))[1],
        )
        found = [each.answer_id for each in waiting(200) if sync.is_being_forgotten(each)]
        assert found == ["id3"]
        assert len(compared) <= 200
    sync.close()


def test_what_is_known_is_bounded(monkeypatch):
    monkeypatch.setattr(known_invalidations, "_MAX_KNOWN", 10)
    known, made = KnownInvalidations(), list(log("ids", 100))
    known.add(made)
    assert [each in known for each in made] == [*[False] * 90, *[True] * 10]
    assert known._num_indexed <= 20
    meant = [
        known.mean_since(
            0.0,
            Answer.create(
                prompt_token_ids=[1],
                response_token_ids=[1],
                namespace="a",
                answer_id=f"other{number}",
                created_s=1.0,
            ),
        )
        for number in range(100)
    ]
    assert all(meant[90:])
    assert sum(meant) <= 20
