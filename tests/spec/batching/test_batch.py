"""Threads that draft: the same drafts for any number of them, and none that stays."""

import threading
import time

import numpy as np

from reprise.spec.api.config import DraftConfig
from reprise.spec.api.near_answer import PlainNearAnswer
from reprise.spec.batching.batch import BatchRunner
from reprise.spec.batching.shares import KIND, STOP, post_all
from reprise.spec.provider import DraftProvider


def drafting_threads() -> list[threading.Thread]:
    return [one for one in threading.enumerate() if one.name == "reprise-draft"]


def new_provider(num_threads: int) -> DraftProvider:
    """A provider whose runner has so many threads, however few cores there are."""
    provider = DraftProvider(DraftConfig(verify_cost=0.02))
    provider._runner = BatchRunner(num_threads)
    return provider


def drafts_of(provider: DraftProvider, batch: int) -> list[list[list[int]]]:
    """Drafts of requests that follow answers they are near to, step by step."""
    random = np.random.default_rng(7)
    answers = random.integers(0, 40, (batch, 60)).astype(np.int32)
    ids = [str(i) for i in range(batch)]
    for request_id, answer in zip(ids, answers, strict=True):
        near = PlainNearAnswer(request_id, 0.9, answer[:0], answer)
        provider.start(request_id, answer[:3])
        provider.attach(request_id, [near])
    steps = [
        provider.step(ids, [answer[at : at + 2].tolist() for answer in answers])
        for at in range(0, 40, 2)
    ]
    assert provider.stats().errors == 0
    return steps


def test_any_number_of_threads_drafts_the_same() -> None:
    for batch in (1, 4, 7, 40):
        expected = drafts_of(new_provider(1), batch)
        assert any(draft for step in expected for draft in step)
        for num_threads in (2, 3, 8):
            assert drafts_of(new_provider(num_threads), batch) == expected


def test_threads_end_with_their_provider() -> None:
    before = set(drafting_threads())
    provider = new_provider(4)
    drafts_of(provider, 1)
    assert set(drafting_threads()) <= before  # nothing was shared out
    for _ in range(2):
        drafts_of(provider, 16)
        started = set(drafting_threads()) - before
        assert len(started) == 3
        time.sleep(0.01)  # asleep by now
    del provider
    for thread in started:
        thread.join(60.0)
        assert not thread.is_alive()


def test_shares_of_threads_that_are_gone_are_done_by_the_caller() -> None:
    """As after a fork, which takes none of the threads along."""
    provider = new_provider(3)
    before = set(drafting_threads())
    drafts_of(provider, 12)
    runner = provider._runner
    runner._job[KIND] = STOP
    post_all(runner._semaphores)
    for thread in set(drafting_threads()) - before:
        thread.join(60.0)
    assert set(drafting_threads()) <= before
    for i in range(12):
        provider.finish(str(i))
    fresh = new_provider(1)
    drafts_of(fresh, 12)
    for i in range(12):
        fresh.finish(str(i))
    assert drafts_of(provider, 12) == drafts_of(fresh, 12)
