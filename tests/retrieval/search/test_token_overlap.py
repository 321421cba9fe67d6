"""Near answers by shared tokens, against a plain reference."""

import math
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reprise.retrieval.api.answer import PROMPT_END, AnswerUpdate
from reprise.retrieval.search.token_overlap import TokenOverlap


def joined(answer_id, prompt, *, namespace="", response=(1, 2, 3)):
    return AnswerUpdate(
        answer_id=answer_id,
        namespace=namespace,
        added=True,
        prompt_tokens=np.array(prompt, "<i4").tobytes(),
        response_tokens=np.array(response, "<i4").tobytes(),
    )


def left(answer_id, *, namespace=""):
    return AnswerUpdate(answer_id=answer_id, namespace=namespace, added=False)


def index_of(prompts, *, namespace=""):
    overlap = TokenOverlap()
    for answer_id, prompt in prompts.items():
        overlap.apply(joined(answer_id, prompt, namespace=namespace))
    return overlap


def cosines(query, prompts):
    """By answer id: the cosine of token sets, weighted by rarity."""

    def squared(token):
        frequency = sum(token in prompt for prompt in prompts.values())
        return math.log((len(prompts) + 1) / max(1, frequency)) ** 2

    def length(tokens):
        return math.sqrt(sum(map(squared, set(tokens))))

    return {
        answer_id: sum(map(squared, set(query) & set(prompt))) / (length(query) * length(prompt))
        for answer_id, prompt in prompts.items()
    }


def test_likeness_is_the_weighted_cosine():
    random = np.random.default_rng(3)
    # Too few tokens for two of them to share a hash.
    prompts = {str(n): random.zipf(1.5, 20).clip(0, 60).tolist() for n in range(50)}
    overlap = index_of(prompts)
    for _ in range(20):
        query = random.zipf(1.5, 20).clip(0, 60).tolist()
        wanted = cosines(query, prompts)
        found = overlap.search("", query, count=10)
        assert len(found) > 5
        # Those at the end may give way to others nearly as like.
        assert [near.similarity for near in found[:5]] == pytest.approx(
            sorted(wanted.values(), reverse=True)[:5], abs=1e-4
        )
        assert all(near.similarity == pytest.approx(wanted[near.answer_id]) for near in found)


def test_what_all_prompts_share_says_nothing():
    template = list(range(1000, 1040))
    overlap = index_of({str(n): [*template, n, n + 1] for n in range(200)})
    [best, *others] = overlap.search("", [*template, 77, 78], count=5)
    assert best.answer_id == "77"
    assert best.similarity == pytest.approx(1.0, abs=1e-3)
    assert others[0].similarity < 0.6


def test_a_near_answer_brings_its_tokens():
    overlap = TokenOverlap()
    prompt = list(range(2 * PROMPT_END))
    overlap.apply(joined("a", prompt[-PROMPT_END:], response=[7, 8], namespace="n"))
    [near] = overlap.search("n", prompt, count=3)
    assert near.prompt_token_ids.tolist() == prompt[-PROMPT_END:]
    assert near.response_token_ids.tolist() == [7, 8]
    assert (near.namespace, near.clause) == ("n", 0)


def test_an_answer_that_left_is_not_found_and_its_place_is_reused():
    overlap = index_of({"a": [1, 2, 3], "b": [1, 2, 4]})
    overlap.apply(left("a"))
    overlap.apply(left("a"))
    assert [near.answer_id for near in overlap.search("", [1, 2, 3], count=5)] == ["b"]
    overlap.apply(joined("c", [9, 8, 7]))
    assert [near.answer_id for near in overlap.search("", [1, 2, 3], count=5)] == ["b"]
    assert [near.answer_id for near in overlap.search("", [9, 8], count=5)] == ["c"]
    assert len(overlap) == 2
    for answer_id in "bc":
        overlap.apply(left(answer_id))
    assert (len(overlap), overlap.num_bytes) == (0, 0)


def test_what_left_leaves_its_room_to_what_joins():
    random = np.random.default_rng(5)
    overlap, live, held = TokenOverlap(), [], []
    for number in range(3000):
        prompt = random.integers(0, 50_000, random.integers(1, 60)).tolist()
        overlap.apply(joined(str(number), prompt))
        live.append(str(number))
        if len(live) > 100:
            overlap.apply(left(live.pop(int(random.integers(len(live))))))
        held.append(overlap.num_bytes)
    assert len(overlap) == 100
    assert held[-1] < 1.2 * held[500]


def test_nothing_is_near_where_there_is_nothing():
    overlap = TokenOverlap()
    assert overlap.search("", [1, 2], count=5) == []
    overlap.apply(joined("a", []))
    overlap.apply(joined("b", [5]))
    assert overlap.search("", [], count=5) == []
    assert overlap.search("", [6], count=5) == []


def test_rare_tokens_find_what_common_ones_have_forgotten():
    # Token 5 is in every prompt, and the first answer joined long before the last.
    overlap = index_of({str(n): [5, 100_000 + n] for n in range(5000)})
    assert overlap.search("", [5, 100_003], count=1)[0].answer_id == "3"
    assert overlap.num_bytes < 5000 * 2000


@settings(deadline=None)  # the first example may load compiled code
@given(
    st.lists(
        st.tuples(
            st.sampled_from(["one", "other"]),
            st.booleans(),
            st.integers(0, 8),
            st.lists(st.integers(0, 12), min_size=1, max_size=6),
        ),
        max_size=40,
    ),
    st.lists(st.integers(0, 12), min_size=1, max_size=6),
)
def test_walls_and_changes(changes, query):
    """Each namespace finds what an index of its own finds, whatever joined and left before."""
    both = TokenOverlap()
    held = {"one": {}, "other": {}}
    for namespace, joins, number, prompt in changes:
        answer_id = f"{namespace}-{number}"
        if joins:
            both.apply(joined(answer_id, prompt, namespace=namespace))
            held[namespace].setdefault(answer_id, prompt)
        else:
            both.apply(left(answer_id, namespace=namespace))
            held[namespace].pop(answer_id, None)
    for namespace, prompts in held.items():
        alone = index_of(prompts, namespace=namespace)
        found = {n.answer_id: n.similarity for n in both.search(namespace, query, count=99)}
        wanted = {n.answer_id: n.similarity for n in alone.search(namespace, query, count=99)}
        assert found == pytest.approx(wanted)
        assert set(found) <= set(prompts)


def test_a_namespace_for_every_user_costs_what_its_answer_costs():
    random = np.random.default_rng(7)
    prompts = [random.integers(0, 50_000, 40).tolist() for _ in range(1000)]
    overlap = TokenOverlap()
    tracemalloc.start()
    before, _ = tracemalloc.get_traced_memory()
    for number, prompt in enumerate(prompts):
        overlap.apply(joined(str(number), prompt, namespace=f"salt{number}"))
    taken = tracemalloc.get_traced_memory()[0] - before
    tracemalloc.stop()
    assert taken < 5000 * len(prompts)
    assert taken < overlap.num_bytes < 2 * taken
    assert overlap.search("salt7", prompts[7], count=3)[0].similarity == pytest.approx(1.0)
    assert overlap.search("salt8", prompts[7], count=3) == []
