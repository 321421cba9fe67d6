"""What DraftProvider keeps to: namespaces, sizes, threads, wrong input, compiled code."""

import itertools
import subprocess
import sys
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reprise.spec import DraftConfig, DraftProvider
from reprise.spec.predictor.features import HASHED_TOKEN
from reprise.tests.spec.providers import (
    answers_of,
    near,
    new_provider,
    replay,
)


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
    began = time.thread_time()  # a request is not shared out among threads
    drafts = replay(provider, "r", text[:400])
    tokens_predicted = sum(len(draft) + 1 for draft in drafts)
    assert (time.thread_time() - began) / tokens_predicted < 2e-3
    assert provider.stats().bytes < 32 * 60 * 500
    assert provider.stats().errors == 0


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


def test_unknown_requests_are_ignored() -> None:
    provider = new_provider()
    provider.attach("x", [])
    provider.observe("x", [1])
    assert provider.propose("x", limit=4) == []
    assert provider.step(["x"], [[1]]) == [[]]
    assert provider.finish("x") is None
    provider.remove_answer("x")
    assert provider.stats().errors == 0


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
