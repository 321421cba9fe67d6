"""The request life cycle of DraftProvider."""

import itertools
import subprocess
import sys
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reprise.spec import DraftConfig, DraftProvider
from reprise.spec.api.near_answer import PlainNearAnswer
from reprise.spec.api.scheduling_mode import SchedulingMode
from reprise.spec.predictor.features import HASHED_TOKEN
from reprise.spec.runtime.layout import TOKEN


def near(
    answer_id: str, response: list[int], similarity: float = 0.9, clause: int = 0
) -> PlainNearAnswer:
    empty = np.zeros(0, np.int32)
    return PlainNearAnswer(answer_id, similarity, empty, np.array(response, np.int32), clause)


def new_provider(**settings: object) -> DraftProvider:
    return DraftProvider(DraftConfig.model_validate({"verify_cost": 0.02, **settings}))


def replay(
    provider: DraftProvider, request_id: str, answer: list[int], limit: int = 16
) -> list[list[int]]:
    """Feed `answer` through as a greedy engine would; return the drafts."""
    drafts = []
    provider.observe(request_id, answer[:1])
    at = 1
    while at < len(answer):
        draft = provider.propose(request_id, limit=min(limit, len(answer) - at))
        drafts.append(draft)
        accepted = 0
        while accepted < len(draft) and draft[accepted] == answer[at + accepted]:
            accepted += 1
        emitted = answer[at : at + accepted + 1]
        provider.observe(request_id, emitted)
        at += len(emitted)
    return drafts


def answers_of(count: int, length: int, seed: int = 0) -> list[list[int]]:
    random = np.random.default_rng(seed)
    blocks = random.integers(100, 5000, (12, 15)).tolist()
    order = random.integers(0, 12, (count, length // 15))
    return [[token for block in row for token in blocks[block]] for row in order]


def test_near_answers_that_come_again_go_on_where_they_are() -> None:
    provider = new_provider()
    first, later = list(range(100, 160)), list(range(300, 340))
    provider.start("r", [1, 2, 3])
    provider.attach("r", [near("a", first, 0.6)])
    replay(provider, "r", first[:30])
    # The new one comes first: the other begins elsewhere in their text, and goes on where it is.
    provider.attach("r", [near("b", later, 0.9), near("a", first, 0.7)])
    req_idx = provider._live["r"].req_idx  # type: ignore[union-attr]
    text = provider._live["r"]._near[0][:, TOKEN]  # type: ignore[union-attr]
    unseen, followed = provider._table.trace.pointers[req_idx, 0, :2]
    assert unseen == -1
    assert text[followed] == first[30]
    assert provider._table.trace.hits[req_idx, 0, 1] > provider._table.trace.hits[req_idx, 0, 0]
    replay(provider, "r", first[30:])
    stats = provider.finish("r")
    assert stats is not None
    # The one accepted before it came again, and those after.
    assert stats.accepted_by_answer == {"a": stats.accepted}
    assert stats.accepted > 40


def test_a_near_answer_is_drafted_at_length_from_the_first_token() -> None:
    provider = new_provider()
    provider.start("r", [1, 2, 3])
    provider.attach("r", [near("a", list(range(100, 130)), 0.98)])
    assert provider.propose("r", limit=8)[:4] == [100, 101, 102, 103]
    provider.observe("r", [100])
    draft = provider.propose("r", limit=16)
    assert len(draft) >= 8
    assert draft == list(range(101, 101 + len(draft)))


def test_counters_name_source_and_answer() -> None:
    provider = new_provider()
    provider.start("r", [1, 2, 3])
    provider.attach("r", [near("a", list(range(100, 130)), 0.98)])
    provider.observe("r", [100])
    assert provider.propose("r", limit=3) == [101, 102, 103]
    provider.observe("r", [101, 102, 7])
    live = provider.stats()
    stats = provider.finish("r")
    assert stats is not None
    assert (stats.steps, stats.emitted, stats.drafted, stats.accepted) == (1, 4, 3, 2)
    assert stats.by_source["near_answer"].accepted == 2
    assert stats.accepted_by_answer == {"a": 2}
    total = provider.stats()
    for counts in (live, total):
        assert (counts.requests, counts.steps, counts.drafted, counts.accepted) == (1, 1, 3, 2)
    assert total.errors == 0


def test_another_clause_takes_over() -> None:
    provider = new_provider()
    first, second = list(range(100, 120)), list(range(300, 320))
    for i in range(30):  # it takes some such answers to learn that clauses follow each other
        provider.start("r", [1, 2, 3])
        shift = 1000 * i
        one, two = [t + shift for t in first], [t + shift for t in second]
        provider.attach("r", [near("a", one, clause=1), near("b", two, clause=2)])
        drafts = replay(provider, "r", one + two)
        provider.finish("r")
    crossing = [d for d in drafts if one[-1] in d and two[0] in d]
    assert crossing


def test_an_answer_of_the_corpus_is_found_by_its_words() -> None:
    provider = new_provider()
    for i, tokens in enumerate(answers_of(30, 150)):
        provider.add_answer(str(i), tokens)
    target = answers_of(31, 150)[30]
    provider.start("r", [1, 2, 3])
    replay(provider, "r", target)
    stats = provider.finish("r")
    assert stats is not None
    assert stats.by_source["corpus"].accepted > 50
    for i in range(30):
        provider.remove_answer(str(i))
    assert provider.stats().cached_tokens == 0
    provider.start("r", [1, 2, 3])
    replay(provider, "r", answers_of(31, 150)[30])
    stats = provider.finish("r")
    assert stats is not None
    assert stats.by_source["corpus"].drafted == 0


@settings(max_examples=15, deadline=None)
@given(st.lists(st.lists(st.integers(0, 30), min_size=1, max_size=30), max_size=8), st.booleans())
def test_namespaces_never_see_each_other(secrets: list[list[int]], remove: bool) -> None:
    """What one namespace drafts is the same whatever lies in another."""
    drafts = []
    for with_secrets in (False, True):
        provider = new_provider()
        provider.add_answer("a", list(range(25)), namespace="mine")
        for i, tokens in enumerate(secrets if with_secrets else []):
            provider.add_answer(str(i), tokens, namespace="theirs")
            provider.start(str(i), tokens, namespace="theirs")
            if remove:
                provider.remove_answer(str(i), namespace="theirs")
        provider.start("r", [1, 2, 3], namespace="mine")
        drafts.append(replay(provider, "r", [*range(3, 12), 40, 41, *range(5, 15)]))
        assert provider.stats().errors == 0
    assert drafts[0] == drafts[1]


def test_threads_and_repeats_change_nothing() -> None:
    results = []
    for num_threads in (1, 2, 2):
        provider = new_provider(num_threads=num_threads)
        answers = answers_of(80, 90, seed=4)
        for i, tokens in enumerate(answers[:40]):
            provider.add_answer(str(i), tokens)
        ids = [str(i) for i in range(40, 80)]
        for request_id in ids:
            provider.start(request_id, [1, 2])
        drafts = [
            provider.step(ids, [answers[int(i)][at : at + 3] for i in ids])
            for at in range(0, 90, 3)
        ]
        results.append(drafts)
        assert provider.stats().errors == 0
    assert results[0] == results[1] == results[2]
    assert any(draft for step in results[0] for draft in step)


def test_a_long_context() -> None:
    provider = new_provider()
    prompt = np.random.default_rng(0).integers(0, 150_000, 30_000).astype(np.int32)
    provider.start("r", prompt)
    drafts = replay(provider, "r", prompt[20_000:20_120].tolist())
    stats = provider.finish("r")
    assert stats is not None
    assert stats.by_source["context"].accepted > 60
    assert drafts
    assert provider.stats().errors == 0


def test_an_empty_cache_and_an_empty_prompt() -> None:
    provider = new_provider()
    provider.start("r", [])
    assert provider.propose("r", limit=8) == []
    replay(provider, "r", list(range(50)))
    stats = provider.finish("r")
    assert stats is not None
    assert stats.drafted <= stats.steps // 10
    assert provider.stats().errors == 0


@pytest.mark.parametrize("kind", ["repeated", "random"])
def test_adversarial_text_stays_within_bounds(kind: str) -> None:
    provider = new_provider()
    provider.warm_up()
    random = np.random.default_rng(1)
    for i in range(60):
        tokens = np.full(500, 9) if kind == "repeated" else random.integers(0, 150_000, 500)
        provider.add_answer(str(i), tokens.astype(np.int32))
    text = [9] * 4000 if kind == "repeated" else random.integers(0, 150_000, 4000).tolist()
    provider.start("r", text)
    provider.attach("r", [near(str(i), text[:500]) for i in range(32)])
    began = time.process_time()
    drafts = replay(provider, "r", text[:400])
    tokens_predicted = sum(len(draft) + 1 for draft in drafts)
    assert (time.process_time() - began) / tokens_predicted < 2e-3
    assert provider.stats().bytes < 32 * 60 * 500
    assert provider.stats().errors == 0


def test_late_near_answers_are_used_from_then_on() -> None:
    provider = new_provider()
    answer = list(range(500, 560))
    provider.start("r", [1, 2, 3])
    provider.observe("r", answer[:10])
    assert provider.propose("r", limit=8) == []
    provider.attach("r", [near("a", answer, 0.98)])
    provider.observe("r", answer[10:12])
    draft = provider.propose("r", limit=8)
    assert draft
    assert draft == answer[12 : 12 + len(draft)]


def test_what_is_learned_of_tokens_stays_in_its_namespace() -> None:
    """Hashed features of one namespace are other weights than those of another."""
    provider = DraftProvider(DraftConfig(verify_cost=0.0))
    answer = np.random.default_rng(5).integers(0, 50_000, 60).tolist()
    seen: dict[str, set[int]] = {}
    for namespace in ("", "mine", "theirs"):
        provider.add_answer("a", answer, namespace=namespace)
        provider.start("r", [1, 2, 3], namespace=namespace)
        req_idx = provider._live["r"].req_idx  # type: ignore[union-attr]
        provider.observe("r", answer[:1])
        seen[namespace] = set()
        for token in answer[1:]:
            assert provider.propose("r", limit=1)
            features = provider._table.trace.candidate_feature[req_idx, 0, 0].tolist()
            seen[namespace].update(f for f in features if f >= HASHED_TOKEN)
            provider.observe("r", [token])
        provider.finish("r")
    for one, other in itertools.combinations(seen.values(), 2):
        # Some 180 of 20,480: a few of them meet by probability.
        assert len(one) > 150 < len(other)
        assert len(one & other) < 15


def test_many_requests_and_namespaces_outgrow_the_first_tables() -> None:
    provider = new_provider()
    for i in range(70):
        provider.add_answer("a", list(range(40)), namespace=str(i % 20))
        provider.start(str(i), [1, 2], namespace=str(i % 20))
    ids = [str(i) for i in range(70)]
    for at in range(0, 20, 4):
        drafts = provider.step(ids, [list(range(at, at + 4))] * 70)
    assert len(drafts) == 70
    assert any(drafts)
    assert provider.stats().errors == 0


def test_a_merge_between_steps_is_survived() -> None:
    provider = new_provider()
    answers = answers_of(120, 150, seed=2)
    provider.start("r", [1, 2])
    for i, tokens in enumerate(answers):
        provider.step(["r"], [answers[-1][i : i + 1]])
        provider.add_answer(str(i), tokens)
        if i % 2:
            provider.remove_answer(str(i - 1))
    assert provider.stats().errors == 0


def test_limits_and_opt_out() -> None:
    provider = new_provider()
    answer = list(range(100, 130))
    for request_id, cap in (("off", 0), ("two", 2), ("free", None)):
        provider.start(request_id, [1, 2, 3], max_draft=cap)
        provider.attach(request_id, [near("a", answer, 0.98)])
    ids = ["off", "two", "free", "unknown"]
    drafts = provider.step(ids, [[100]] * 4)
    assert [len(draft) > 0 for draft in drafts] == [False, True, True, False]
    assert len(drafts[1]) <= 2
    limited = provider.step(ids, [[101]] * 4, limits=lambda: [5, 5, 1, 5])
    assert len(limited[2]) <= 1
    off = provider.finish("off")
    assert off is not None
    assert (off.steps, off.emitted, off.drafted) == (1, 2, 0)


def test_unknown_requests_are_ignored() -> None:
    provider = new_provider()
    provider.attach("x", [])
    provider.observe("x", [1])
    assert provider.propose("x", limit=4) == []
    assert provider.step(["x"], [[1]]) == [[]]
    assert provider.finish("x") is None
    provider.remove_answer("x")
    assert provider.stats().errors == 0


def test_restarting_a_live_id_replaces_it() -> None:
    provider = new_provider()
    provider.start("r", [1, 2, 3])
    provider.observe("r", [4, 5])
    provider.start("r", [7])
    provider.observe("r", [8])
    stats = provider.finish("r")
    assert stats is not None
    assert stats.emitted == 1
    assert provider.stats().emitted == 3


def test_bad_tokens_are_refused() -> None:
    provider = new_provider()
    with pytest.raises(ValueError, match="prompt_token_ids: expected a flat sequence"):
        provider.start("r", [[1, 2], [3, 4]])
    with pytest.raises(ValueError, match="response_token_ids: expected token ids in"):
        provider.add_answer("a", [-1])


def test_the_hot_path_never_raises() -> None:
    provider = new_provider()
    provider.start("r", [1, 2, 3])
    assert provider.step(["r"], [["no token"]]) == [[]]  # type: ignore[list-item]
    assert provider.stats().errors == 1


def test_steps_that_rest_are_caught_up_with() -> None:
    answer = answers_of(1, 90)[0]
    drafts = []
    for baselines in (False, True):
        provider = new_provider()
        provider.start("r", [1, 2, 3])
        provider.attach("r", [near("a", answer, 0.95)])
        first = provider.step(["r"], [answer[:1]])[0]
        assert len(first) > 3
        # The draft is accepted, and then the model says something else for three steps.
        emitted = [[*first, 9], [8], [7], [6]]
        assert first == answer[1 : 1 + len(first)]
        if baselines:
            emitted = [[token for step in emitted for token in step]]
        for step in emitted:
            provider.step(["r"], [step], limits=lambda: [0])
        at = 1 + len(first)
        drafts.append(provider.step(["r"], [answer[at : at + 4]])[0])
        stats = provider.finish("r")
        assert stats is not None
        assert stats.steps == 8  # four tokens without a draft are four steps
        assert stats.emitted == 1 + len(first) + 4 + 4
        assert stats.accepted == len(first)
    assert drafts[0] == drafts[1]


def test_what_is_drafted_while_an_engine_runs_ahead_is_never_verified() -> None:
    provider = new_provider()
    answer = list(range(100, 130))
    provider.start("r", [1, 2, 3])
    provider.attach("r", [near("a", answer)])
    for token in answer[:4]:
        assert len(provider.step(["r"], [[token]], mode=SchedulingMode.IN_FLIGHT)[0]) > 3
    verified = provider.step(["r"], [answer[4:5]], mode=SchedulingMode.DRAINED)[0]
    provider.step(["r"], [answer[5 : 6 + len(verified)]], mode=SchedulingMode.DRAINED)
    stats = provider.finish("r")
    assert stats is not None
    assert stats.accepted == len(verified) > 3
    assert stats.drafted < 2 * len(verified) + 16  # of two steps, and not of six
    assert stats.steps == 5


WARM_UP = """
import sys
import numpy as np
from numba.core.dispatcher import Dispatcher
from reprise.spec import DraftConfig, DraftProvider
from reprise.spec.api.near_answer import PlainNearAnswer

def compiled():
    modules = [m for name, m in sys.modules.items() if name.startswith("reprise.spec")]
    found = [f for m in modules for f in vars(m).values() if isinstance(f, Dispatcher)]
    return {(f.py_func.__name__, str(s)) for f in found for s in f.signatures}

DraftProvider().warm_up()
before = compiled()
provider = DraftProvider(DraftConfig(num_threads=4))
ids = [str(i) for i in range(12)]
tokens = np.arange(40, dtype=np.int32)
for i in ids:
    provider.start(i, tokens)
    provider.attach(i, [PlainNearAnswer("a", 0.9, tokens, tokens)])
drafted = 0
for token in range(30):
    drafts = provider.step(ids, [[token]] * 12, step_time_s=0.01, num_drafted_tokens=drafted)
    drafted = sum(map(len, drafts))
    provider.skip_drafting(12)
for i in ids:
    provider.finish(i)
    provider.add_answer(i, tokens)
del provider
print(len(before), sorted(compiled() - before))
"""


def test_nothing_is_compiled_while_requests_wait() -> None:
    ended = subprocess.run(
        [sys.executable, "-c", WARM_UP], capture_output=True, text=True, check=False
    )
    count, _, later = ended.stdout.partition(" ")
    assert int(count) > 10, ended.stderr
    assert later.strip() == "[]"


def test_a_loaded_worker_rests_without_looking_at_what_was_emitted() -> None:
    provider = new_provider(verify_cost=5.0)
    provider.start("r", [1, 2, 3])
    assert provider.step(["r"], [[4]]) == [[]]
    assert provider.skip_drafting(1)
    assert provider.step(["r"], [[5, 6]]) == [[]]
    stats = provider.finish("r")
    assert stats is not None
    assert (stats.steps, stats.emitted) == (2, 3)
    assert not new_provider(verify_cost=0.02).skip_drafting(1)
    assert provider.stats().errors == 0
