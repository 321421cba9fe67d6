"""Steps while the corpus changes: how long they wait, and that errors of changes are not theirs."""

import itertools
import subprocess
import sys
import threading
import time
from unittest.mock import Mock

import numpy as np
import numpy.typing as npt
import pytest

from reprise.spec import DraftConfig, DraftProvider
from reprise.spec.corpus import corpus as corpus_module


def test_an_error_of_upkeep_is_its_callers_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    provider = DraftProvider(DraftConfig(verify_cost=0.0))
    random = np.random.default_rng(1)
    answers = [random.integers(0, 500, 1000).tolist() for _ in range(8)]
    for number in range(4):
        provider.add_answer(str(number), answers[number])
    provider.start("r", [1])
    provider.observe("r", answers[0][:5])
    with monkeypatch.context() as patch:
        patch.setattr(corpus_module, "merge_suffixes", Mock(side_effect=MemoryError("no room")))
        with pytest.raises(MemoryError, match="no room"):
            provider.add_answer("4", answers[4])
        assert provider.step(["r"], [answers[0][5:8]])[0][:2] == answers[0][8:10]
        provider.remove_answer("3")  # needs no merge
    stats = provider.stats()
    assert (stats.answers, stats.cached_tokens, stats.errors) == (3, 3000, 0)
    for number in range(4, 8):
        provider.add_answer(str(number), answers[number])
    provider.start("s", [1])
    assert provider.step(["s"], [answers[7][:5]])[0][:2] == answers[7][5:7]
    assert provider.stats().answers == 7


_NOTHING_IS_COMPILED = """
import sys, types
import numpy as np
from numba.core.dispatcher import Dispatcher
from reprise.spec import DraftConfig, DraftProvider

def signatures():
    modules = [m for name, m in sys.modules.items() if name.startswith("reprise.spec")]
    found = {id(d): d for m in modules for d in vars(m).values() if isinstance(d, Dispatcher)}
    return {d.py_func.__name__: list(d.signatures) for d in found.values()}

DraftProvider(DraftConfig()).warm_up()
warm = signatures()
provider = DraftProvider(DraftConfig(verify_cost=0.0, max_corpus_bytes=400_000))
random = np.random.default_rng(1)
for number in range(400):
    size = 6000 if number == 200 else 100
    name = "x" if number % 3 else ""
    provider.add_answer(str(number), random.integers(0, 90, size), namespace=name)
    provider.remove_answer(str(number - 50), namespace=name)
    provider.start("r", [1, 2], namespace=name)
    provider.step(["r"], [random.integers(0, 90, 3).tolist()])
    provider.finish("r")
assert signatures() == warm, {k: v for k, v in signatures().items() if v != warm[k]}
assert provider.stats().errors == 0
"""


def test_nothing_is_compiled_after_warm_up() -> None:
    """Else the first merge, or the first move of a text, would take seconds."""
    done = subprocess.run(
        [sys.executable, "-c", _NOTHING_IS_COMPILED], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_a_step_hardly_waits_for_a_large_corpus_that_changes() -> None:
    """2 million tokens; the text is moved meanwhile. Where others use the machine too, steps wait
    for the cores: as long as they do for a small corpus."""
    random = np.random.default_rng(3)
    tokens = (random.zipf(1.2, 2_000_000) % 50_000).astype(np.int32)
    for _ in range(3):  # what others do may change between the two
        small_s, large_s = (
            np.quantile(waits_of_steps_s(tokens, num_old=number), 0.99) for number in (10, 500)
        )
        if large_s < max(0.002, 2 * small_s):
            return
    pytest.fail(f"{large_s} s beside {small_s} s of a small corpus")


def waits_of_steps_s(tokens: npt.NDArray[np.int32], *, num_old: int) -> list[float]:
    """Return how long each of many steps takes, which does nothing, while a corpus changes that
    has begun with so many answers of 4,000 tokens."""
    provider = DraftProvider(DraftConfig(num_threads=1, verify_cost=0.02))
    for number, answer in enumerate(np.split(tokens, 500)[:num_old]):
        provider.add_answer(f"old {number}", answer)
    stop = threading.Event()
    changes = 0

    def learn() -> None:
        nonlocal changes
        for number in itertools.count():
            provider.add_answer(str(number), tokens[130 * (number % 10_000) :][:130])
            provider.remove_answer(f"old {number}" if number < 100 else str(number - 100))
            changes += 1
            if stop.wait(0.004):
                return

    learner = threading.Thread(target=learn)
    learner.start()
    waits_s = []
    deadline_s = time.monotonic() + 100.0
    try:
        while changes < 500 and time.monotonic() < deadline_s:
            time.sleep(0.002)
            began_s = time.perf_counter()
            provider.step([], [])
            waits_s.append(time.perf_counter() - began_s)
    finally:
        stop.set()
        learner.join()
    assert changes >= 300
    return waits_s
