"""The row tracker against a model of vLLM's input batch."""

import numpy as np
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule

from reprise.engine_ext.worker.row_tracker import RowTracker

MAX_REQS = 6
MAX_MODEL_LEN = 400
# Few prompts over few tokens, so that requests share prompts and outputs for a while.
PROMPTS = ((1,), (1, 2), (1, 2, 1), (2, 2, 2, 2), (1, 2, 1, 2, 1, 2, 1))
TOKENS = st.integers(min_value=1, max_value=2)


class _Request:
    def __init__(self, name: str, prompt: tuple[int, ...], prefill_steps: int) -> None:
        self.name = name
        self.prompt = prompt
        self.output: list[int] = []
        self.prefill_steps = prefill_steps

    @property
    def tokens(self) -> list[int]:
        return [*self.prompt, *self.output]


class _Batch(RuleBasedStateMachine):
    """Rows as vLLM's InputBatch keeps them: appended, swapped, condensed from the end."""

    def __init__(self) -> None:
        super().__init__()
        self.rows: list[_Request] = []
        self.preempted: list[_Request] = []
        self.num_named = 0
        self.token_ids_cpu = np.zeros((MAX_REQS, MAX_MODEL_LEN), np.int32)
        self.num_tokens_no_spec = np.zeros(MAX_REQS, np.int32)
        self.num_prompt_tokens = np.zeros(MAX_REQS, np.int32)

    def _write(self, row: int) -> None:
        request = self.rows[row]
        # What lies beyond a row's tokens is left over from others, as in vLLM.
        self.token_ids_cpu[row, : len(request.tokens)] = request.tokens
        self.num_tokens_no_spec[row] = len(request.tokens)
        self.num_prompt_tokens[row] = len(request.prompt)

    def _remove(self, row: int) -> _Request:
        request = self.rows[row]
        last = self.rows.pop()
        if row < len(self.rows):
            self.rows[row] = last
            self._write(row)
        return request

    @precondition(lambda self: len(self.rows) < MAX_REQS)
    @rule(prompt=st.sampled_from(PROMPTS), prefill_steps=st.integers(0, 2))
    def admit(self, prompt: tuple[int, ...], prefill_steps: int) -> None:
        self.num_named += 1
        self.rows.append(_Request(f"r{self.num_named}", prompt, prefill_steps))
        self._write(len(self.rows) - 1)
        self.on_start()

    @precondition(lambda self: len(self.rows) > 1)
    @rule(data=st.data())
    def swap(self, data: st.DataObject) -> None:
        row, other = (data.draw(st.integers(0, len(self.rows) - 1)) for _ in range(2))
        self.rows[row], self.rows[other] = self.rows[other], self.rows[row]
        self._write(row)
        self._write(other)

    @precondition(lambda self: self.rows)
    @rule(data=st.data())
    def finish_or_abort(self, data: st.DataObject) -> None:
        self.on_end(self._remove(data.draw(st.integers(0, len(self.rows) - 1))).name)

    @precondition(lambda self: self.rows)
    @rule(data=st.data())
    def preempt(self, data: st.DataObject) -> None:
        self.preempted.append(self._remove(data.draw(st.integers(0, len(self.rows) - 1))))

    @precondition(lambda self: self.preempted and len(self.rows) < MAX_REQS)
    @rule(prefill_steps=st.integers(0, 2))
    def resume(self, prefill_steps: int) -> None:
        request = self.preempted.pop(0)
        request.prefill_steps = prefill_steps
        self.rows.append(request)
        self._write(len(self.rows) - 1)

    def _decode(self, data: st.DataObject) -> list[list[int]]:
        sampled: list[list[int]] = []
        for row, request in enumerate(self.rows):
            if request.prefill_steps:
                request.prefill_steps -= 1
                sampled.append([])
                continue
            room = MAX_MODEL_LEN - len(request.tokens)
            emitted = data.draw(st.lists(TOKENS, min_size=1, max_size=3))[:room]
            request.output += emitted
            self._write(row)
            sampled.append(emitted)
        return sampled

    def on_start(self) -> None:
        """A request was admitted."""

    def on_end(self, name: str) -> None:
        """A request finished or was aborted."""


class IdTracking(_Batch):
    def __init__(self) -> None:
        super().__init__()
        self.tracker = RowTracker()
        self.seen: dict[str, list[int]] = {}

    def on_end(self, name: str) -> None:
        self.tracker.forget(name)
        self.seen.pop(name, None)

    @precondition(lambda self: self.rows)
    @rule(data=st.data(), is_reported=st.booleans())
    def step(self, data: st.DataObject, is_reported: bool) -> None:
        """vLLM skips the proposer where a draft would not fit the model's length."""
        sampled = self._decode(data)
        if not is_reported:
            return
        self.tracker.name_rows([request.name for request in self.rows], self.num_prompt_tokens)
        tracked = self.tracker.update(sampled, self.num_tokens_no_spec, self.token_ids_cpu)
        assert [row.row for row in tracked] == [i for i, tokens in enumerate(sampled) if tokens]
        for row in tracked:
            request = self.rows[row.row]
            assert row.request_id == request.name
            if row.prompt_token_ids is not None:
                assert request.name not in self.seen
                assert row.prompt_token_ids.tolist() == list(request.prompt)
                self.seen[request.name] = list(request.prompt)
            self.seen[request.name] += row.emitted_token_ids
            assert self.seen[request.name] == request.tokens
            assert row.num_tokens == len(request.tokens)


TestIdTracking = IdTracking.TestCase
TestIdTracking.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)


def _rows(*requests: list[int]) -> tuple[np.ndarray, np.ndarray]:
    table = np.zeros((8, 64), np.int32)
    lengths = np.zeros(8, np.int32)
    for row, tokens in enumerate(requests):
        table[row, : len(tokens)] = tokens
        lengths[row] = len(tokens)
    return lengths, table


def test_output_taken_back_restarts_the_request() -> None:
    tracker = RowTracker()
    prompts = np.full(8, 1, np.int32)
    tracker.name_rows(["a"], prompts)
    tracker.update([[5, 6]], *_rows([1, 5, 6]))
    tracker.name_rows(["a"], prompts)
    (row,) = tracker.update([[7]], *_rows([1, 7]))
    assert row.prompt_token_ids is not None
    assert row.emitted_token_ids == [7]


def test_rows_are_settled_while_the_same_requests_decode() -> None:
    tracker = RowTracker()
    prompts = np.array([2, 2], np.int32)
    num_tokens, tokens = _rows([1, 2, 3], [1, 2])
    tracker.name_rows(["a", "b"], prompts)
    assert not tracker.is_settled
    tracker.update([[3], []], num_tokens, tokens)
    tracker.name_rows(["a", "b"], prompts)
    assert not tracker.is_settled  # the second still prefills
    num_tokens, tokens = _rows([1, 2, 3, 4], [1, 2, 7])
    tracker.update([[4], [7]], num_tokens, tokens)
    tracker.name_rows(["a", "b"], prompts)
    assert tracker.is_settled
    assert tracker.unseen("a", 6) == 2
    num_tokens, tokens = _rows([1, 2, 3, 4, 5, 6], [1, 2, 7, 8, 9])
    rows = tracker.update([[6], [9]], num_tokens, tokens)
    assert [row.emitted_token_ids for row in rows] == [[5, 6], [8, 9]]
    tracker.name_rows(["b", "a"], prompts)
    assert not tracker.is_settled
    tracker.name_rows(["a", "b"], prompts)
    tracker.forget("a")
    assert not tracker.is_settled
