"""What is on the device is what was added and not removed, of each namespace alone."""

import random
import subprocess
import sys
import tracemalloc
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch.overrides import TorchFunctionMode

from reprise.engine_ext.speculator import waiting_writes
from reprise.engine_ext.speculator.device_corpora import DeviceCorpora
from reprise.engine_ext.speculator.host_corpus import MAX_ROOM, HostCorpus
from reprise.kernels.draft.constants import (
    BOS,
    END,
    ORDER_BEGIN,
    ORDER_LENGTH,
    RECENT_BEGIN,
    TEXT_BEGIN,
    TEXT_LENGTH,
)
from reprise.kernels.draft.state import DraftState

NAMESPACES = ("one", "two", "three")
ARENA_TOKENS = 8192


@pytest.fixture
def state() -> DraftState:
    return DraftState.create(
        num_slots=2, max_draft=4, max_near_tokens=8, num_corpora=4, arena_tokens=ARENA_TOKENS
    )


def answers_on_device(state: DraftState, row: int) -> list[tuple[int, ...]]:
    """The answers that a request which names this row could be drafted from."""
    fields = state.corpora[row].tolist()
    begin = fields[TEXT_BEGIN]
    text = state.arena[begin : begin + fields[TEXT_LENGTH]].tolist()
    found: list[tuple[int, ...]] = []
    at = 0
    while at < len(text):
        assert text[at] == BOS
        end = text.index(END, at)
        if text[at + 1] >= 0:
            found.append(tuple(text[at + 1 : end]))
        at = end + 1
    return found


def put_all_in_place(corpora: DeviceCorpora) -> None:
    """As many steps as it takes."""
    while corpora.has_changes:
        corpora.put_in_place()


def assert_sorted(state: DraftState, row: int) -> None:
    """The suffix array has every BOS and token of the sorted part, in order."""
    fields = state.corpora[row].tolist()
    begin, order_begin = fields[TEXT_BEGIN], fields[ORDER_BEGIN]
    text = state.arena[begin : begin + fields[TEXT_LENGTH]].numpy()
    order = state.arena[order_begin : order_begin + fields[ORDER_LENGTH]].tolist()
    known = [i for i in range(fields[RECENT_BEGIN]) if text[i] != END]
    assert sorted(order) == known

    def suffix(at: int) -> list[int]:
        tokens = [t if t >= BOS else t + (1 << 31) for t in text[at : at + 17].tolist()]
        return tokens[: tokens.index(END) + 1] if END in tokens else tokens

    assert [suffix(at) for at in order] == sorted(suffix(at) for at in order)


class Model:
    """Adds and removes, and knows what there should be."""

    def __init__(self, state: DraftState) -> None:
        self.state = state
        self.corpora = DeviceCorpora(state)
        self.known: dict[str, dict[str, tuple[int, ...]]] = {name: {} for name in NAMESPACES}
        self.rows: dict[str, int] = {}

    def add(self, namespace: str, number: int, length: int) -> None:
        # Tokens say whose they are.
        first = 1000 * NAMESPACES.index(namespace)
        tokens = tuple(first + (number * 7 + i * i) % 50 for i in range(length))
        answer_id = f"{namespace}-{number}"
        self.corpora.add_answer(answer_id, np.array(tokens, np.int32), namespace=namespace)
        self.known[namespace].setdefault(answer_id, tokens)

    def remove(self, namespace: str, number: int) -> None:
        self.corpora.remove_answer(f"{namespace}-{number}", namespace=namespace)
        self.known[namespace].pop(f"{namespace}-{number}", None)

    def check(self) -> None:
        put_all_in_place(self.corpora)
        for namespace, answers in self.known.items():
            row = self.corpora.enter(namespace)
            self.corpora.leave(namespace)
            if row < 0:
                assert not answers
                continue
            assert sorted(answers_on_device(self.state, row)) == sorted(answers.values())
            assert_sorted(self.state, row)


@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    st.lists(
        st.tuples(
            st.sampled_from(["add", "add", "remove", "check"]),
            st.sampled_from(NAMESPACES),
            st.integers(0, 9),
            st.integers(1, 25),
        ),
        max_size=40,
    )
)
def test_the_device_has_what_was_added_and_not_removed(
    steps: list[tuple[str, str, int, int]],
) -> None:
    model = Model(
        DraftState.create(
            num_slots=2, max_draft=4, max_near_tokens=8, num_corpora=4, arena_tokens=ARENA_TOKENS
        )
    )
    for what, namespace, number, length in steps:
        if what == "add":
            model.add(namespace, number, length)
        elif what == "remove":
            model.remove(namespace, number)
        else:
            model.check()
    model.check()


def tokens(length: int, first: int = 0) -> Any:
    return np.arange(first, first + length, dtype=np.int32)


def test_long_corpora_are_merged_and_lose_their_oldest_answers(state: DraftState) -> None:
    corpora = DeviceCorpora(state)
    for number in range(100):
        corpora.add_answer(str(number), tokens(50, 100 * number), namespace="n")
    corpora.put_in_place()
    row = corpora.enter("n")
    found = answers_on_device(state, row)
    assert found[-1] == tuple(range(9900, 9950))
    assert 5 < len(found) < 100
    assert found == sorted(found)
    assert_sorted(state, row)
    assert corpora.counts()["answers"] == len(found)


def test_what_is_not_sorted_stays_within_what_a_step_looks_through() -> None:
    state = DraftState.create(
        num_slots=2, max_draft=4, max_near_tokens=8, num_corpora=4, arena_tokens=1 << 18
    )
    corpora = DeviceCorpora(state)
    for number in range(200):
        corpora.add_answer(str(number), tokens(97, number), namespace="n")
        corpora.put_in_place()
        fields = state.corpora[corpora.enter("n")].tolist()
        assert fields[TEXT_LENGTH] - fields[RECENT_BEGIN] <= MAX_ROOM
        corpora.leave("n")
    assert len(answers_on_device(state, corpora.enter("n"))) == 200


def test_a_row_is_another_namespaces_only_after_every_request_has_left(state: DraftState) -> None:
    corpora = DeviceCorpora(state)
    for name in ("a", "b", "c", "d"):
        corpora.add_answer(name, tokens(10), namespace=name)
    corpora.put_in_place()
    rows = {name: corpora.enter(name) for name in ("a", "b", "c", "d")}
    assert sorted(rows.values()) == [0, 1, 2, 3]
    corpora.add_answer("e", tokens(10, 500), namespace="e")
    assert corpora.put_in_place() == {}
    assert corpora.enter("e") == -1, "all rows have requests"
    assert answers_on_device(state, rows["b"]) == [tuple(range(10))]
    corpora.leave("b")
    corpora.add_answer("e2", tokens(10, 500), namespace="e")
    # Given up, though not overwritten yet: nobody enters any more.
    assert corpora.enter("b") == -1
    assert corpora.put_in_place() == {"e": rows["b"]}
    assert answers_on_device(state, rows["b"]) == [tuple(range(500, 510))]
    assert corpora.enter("e") == rows["b"]


def test_a_corpus_without_room_is_emptied_and_begins_anew(state: DraftState) -> None:
    """While a request drafts from it, so that its row cannot be taken away."""
    corpora = DeviceCorpora(state)
    corpora.add_answer("a", tokens(30), namespace="small")
    corpora.put_in_place()
    row = corpora.enter("small")
    # All that is left of the arena goes to others, which have requests too.
    for number, name in enumerate(("b", "c", "d")):
        corpora.enter(name)
        for k in range(40):
            corpora.add_answer(f"{name}{k}", tokens(60, 100 * (number + 1) + k), namespace=name)
    corpora.put_in_place()
    taken = corpora._arena._take(max(size for _, size in corpora._arena._free))
    assert taken >= 0
    for k in range(60):
        corpora.add_answer(f"more{k}", tokens(40, 1000 + 50 * k), namespace="small")
        corpora.put_in_place()
        on_device = answers_on_device(state, row)
        known = corpora._corpora["small"]
        assert len(on_device) == len(known)
    # What is told to be removed is gone, whatever happened before.
    for k in range(60):
        corpora.remove_answer(f"more{k}", namespace="small")
        corpora.put_in_place()
        assert (1000 + 50 * k,) not in [answer[:1] for answer in answers_on_device(state, row)]


class NoTorch(TorchFunctionMode):
    """Stands for a step's thread that captures graphs: no other may ask anything of CUDA."""

    def __torch_function__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        raise AssertionError(f"{function} in the thread that learns")


def test_the_thread_that_learns_leaves_the_device_alone(state: DraftState) -> None:
    corpora = DeviceCorpora(state)
    with NoTorch():
        for name in ("a", "b", "c", "d", "e"):  # one more than there are rows: one is given up
            for number in range(6):
                corpora.add_answer(str(number), tokens(200, 10 * number), namespace=name)
        corpora.remove_answer("5", namespace="d")
        corpora.remove_answer("5", namespace="e")
    put_all_in_place(corpora)
    assert len(answers_on_device(state, corpora.enter("e"))) == 5


def test_what_waits_for_a_step_is_bounded() -> None:
    """A worker on standby learns what other replicas have answered, and makes no step."""
    state = DraftState.create(
        num_slots=2, max_draft=4, max_near_tokens=8, num_corpora=4, arena_tokens=1 << 16
    )
    corpora = DeviceCorpora(state)
    draw = np.random.default_rng(0)
    tracemalloc.start()
    for number in range(1500):
        answer = draw.integers(0, 1000, 40, dtype=np.int32)
        corpora.add_answer(str(number), answer, namespace=NAMESPACES[number % 3])
    waiting_bytes, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    # With what the host keeps: text, order, and the ids.
    assert waiting_bytes < 3 * state.arena.nbytes
    put_all_in_place(corpora)
    for name in NAMESPACES:
        row = corpora.enter(name)
        assert len(answers_on_device(state, row)) == len(corpora._corpora[name])
        assert_sorted(state, row)


def whose(found: list[tuple[int, ...]]) -> set[int]:
    """The namespaces, by number, that a `Model` gave these answers to."""
    return {answer[0] // 1000 for answer in found}


@pytest.mark.parametrize("seed", range(8))
def test_a_step_writes_so_much_and_no_row_names_what_is_not_there_yet(
    monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    """Steps and answers at random, and steps that fail: what could be drafted from is always one
    version of the namespace's own answers, and nothing that is to be forgotten."""
    monkeypatch.setattr(waiting_writes, "STEP_TOKENS", 100)
    draw = random.Random(seed)
    state = DraftState.create(
        num_slots=2, max_draft=4, max_near_tokens=8, num_corpora=3, arena_tokens=6000
    )
    model = Model(state)
    corpora = model.corpora
    sent = waiting_writes.prepare
    is_failing = False

    def prepare(*arguments: Any) -> Any:
        if is_failing and draw.random() < 0.5:
            raise RuntimeError("no page-locked memory")
        return sent(*arguments)

    monkeypatch.setattr(waiting_writes, "prepare", prepare)
    for number in range(600):
        name = draw.choice(NAMESPACES)
        action = draw.random()
        if action < 0.4:
            model.add(name, number, draw.randrange(1, 60))
        elif action < 0.6 and model.known[name]:
            answer_id = draw.choice(sorted(model.known[name]))
            model.remove(name, int(answer_id.split("-")[1]))
        is_failing = draw.random() < 0.2
        before = state.arena.clone()
        try:
            corpora.put_in_place()
        except RuntimeError:
            assert is_failing
            has_failed = True
        else:
            has_failed = False
        assert (state.arena != before).sum() <= 100
        for index, each in enumerate(NAMESPACES):
            row = corpora.enter(each)
            corpora.leave(each)
            if row < 0:
                continue
            found = answers_on_device(state, row)
            assert whose(found) <= {index}
            assert_sorted(state, row)
            # What could not be taken out is, with the next step that can write.
            assert has_failed or set(found) <= set(model.known[each].values())
    is_failing = False
    put_all_in_place(corpora)
    assert sum(len(known) for known in model.known.values()) > 20


def test_what_failed_on_the_way_is_no_others_draft(
    state: DraftState, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A corpus whose books may be wrong is forgotten, and begins anew."""
    corpora = DeviceCorpora(state)
    for number in range(30):
        corpora.add_answer(f"a{number}", tokens(50, 100 * number), namespace="a")
    corpora.add_answer("b0", tokens(20, 5000), namespace="b")
    put_all_in_place(corpora)
    row = corpora.enter("b")
    for number in range(30):
        corpora.remove_answer(f"a{number}", namespace="a")

    def fail(_: HostCorpus) -> None:
        raise MemoryError

    with monkeypatch.context() as patched:
        patched.setattr(HostCorpus, "sort", fail)
        with pytest.raises(MemoryError):
            corpora.add_answer("b1", tokens(600, 6000), namespace="b")
    for number in range(2, 6):
        corpora.add_answer(f"b{number}", tokens(20, 5000 + 100 * number), namespace="b")
    corpora.remove_answer("b3", namespace="b")
    put_all_in_place(corpora)
    left = [tuple(range(begin, begin + 20)) for begin in (5200, 5400, 5500)]
    assert sorted(answers_on_device(state, row)) == left
    assert_sorted(state, row)


@pytest.mark.slow
def test_nothing_is_compiled_for_an_answer() -> None:
    """What is made or loaded in another thread holds up the steps, which share its interpreter."""
    # A process of its own: nobody has had anything compiled there before.
    done = subprocess.run([sys.executable, "-c", ANSWERS], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    before, after = done.stdout.splitlines()
    assert "sort_suffixes" in before
    assert after == before


ANSWERS = """
import sys
import numpy as np
from numba.core.dispatcher import Dispatcher
from reprise.engine_ext.speculator.device_corpora import DeviceCorpora
from reprise.engine_ext.speculator.host_corpus import HostCorpus
from reprise.kernels.draft.state import DraftState

def say_what_is_compiled():
    found = {
        (each.__qualname__, len(each.signatures))
        for name, module in list(sys.modules.items())
        if name.startswith("reprise.")
        for each in vars(module).values()
        if isinstance(each, Dispatcher) and each.signatures
    }
    print(sorted(found))

state = DraftState.create(num_slots=2, max_draft=4, max_near_tokens=8, num_corpora=2)
HostCorpus.warm_up()
say_what_is_compiled()
corpora = DeviceCorpora(state)
for number in range(60):
    corpora.add_answer(str(number), np.arange(number, number + 150, dtype=np.int32), namespace="a")
for number in range(50):
    corpora.remove_answer(str(number), namespace="a")
for number in range(60, 120):
    corpora.add_answer(str(number), np.arange(number, number + 150, dtype=np.int32), namespace="a")
say_what_is_compiled()
"""
