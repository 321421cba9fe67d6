"""Run in the workers of an engine on V2: what tests see and change there.

Functions take the worker first, and what they return has to be such as JSON can say.
"""

import time
from typing import Any

import msgspec

_steps: list[dict[str, Any]] = []
_drafts: list[dict[str, Any]] = []
_FOUND_WITHIN_S = 60.0


def watch_verification(worker: Any) -> None:
    """Have what vLLM's adaptive verification decides kept, see `verified_steps`."""
    manager = worker.model_runner.adaptive_verification
    reallocate = manager.reallocate_drafts

    def watched(req_ids: list[str], idx_mapping: Any) -> Any:
        scheduled, _, budget = manager._batch_budget
        expected = manager._stale_confidences[manager._stale_idx].np[idx_mapping.numpy()]
        chances = manager._confidence_probs[idx_mapping].tolist()
        result = reallocate(req_ids, idx_mapping)
        _steps.append(
            {
                "requests": [request_id.split("-")[0] for request_id in req_ids],
                "scheduled": [scheduled[request_id] for request_id in req_ids],
                "admitted": (result[0].diff() - manager.num_bonus_tokens).tolist(),
                "budget": budget,
                "expected": expected.tolist(),
                "chances": chances,
            }
        )
        return result

    manager.reallocate_drafts = watched


def verified_steps(_: Any) -> list[dict[str, Any]]:
    """Return the steps with drafts since the last call. By request: how many tokens it had, how
    many of them were verified, the chances by which their number was decided, and their own."""
    taken = _steps.copy()
    _steps.clear()
    return taken


def watch_drafts(worker: Any) -> None:
    """Have what is drafted kept, see `drafts`."""
    runner = worker.model_runner
    propose = runner.speculator.propose

    def watched(batch: Any, *args: Any, **kwargs: Any) -> Any:
        result = propose(batch, *args, **kwargs)
        if not kwargs.get("dummy_run"):
            step = {}
            for name, slot, draft in zip(batch.req_ids, batch.idx_mapping, result, strict=True):
                states = runner.req_states
                num_output = int(states.total_len.gpu[slot]) - int(states.prompt_len.np[slot])
                step[name] = int(slot), num_output, draft.tolist()
            _drafts.append(step)
        return result

    runner.speculator.propose = watched


def drafts(_: Any) -> list[dict[str, Any]]:
    """Return what was drafted at the end of each step since the last call. By request: its slot,
    how many tokens of its answer there were, and the draft."""
    taken = _drafts.copy()
    _drafts.clear()
    return taken


def draft_counts(worker: Any, names: list[str]) -> dict[str, Any]:
    """Return the counts under these ids, of requests that are over; on the first rank."""
    counts: dict[str, Any] = msgspec.to_builtins(worker.reprise_draft_counts(names))
    return counts


class LateRetriever:
    """A retriever that has found nothing before a step, and then all that the real one finds.

    Args:
        retriever: the real one.
        late: steps after the one in which the first search begins; None: nothing is late.
    """

    def __init__(self, retriever: Any, late: int | None) -> None:
        self.real = retriever
        self._late = late
        self._steps: int | None = None
        self.attached: list[tuple[int, str, int]] = []
        """Steps since then, the request, and how many near answers it got."""

    def __getattr__(self, name: str) -> Any:
        return getattr(self.real, name)

    def begin_step(self) -> None:
        if self._steps is not None:
            self._steps += 1

    def submit(self, request_id: str, **others: Any) -> None:
        if self._steps is None:
            self._steps = 0
        self.real.submit(request_id, **others)

    def _is_held_back(self) -> bool:
        return self._late is not None and (self._steps or 0) < self._late

    def progress(self) -> int:
        return 2 * int(self.real.progress()) + self._is_held_back()

    def poll(self, request_id: str) -> Any:
        if self._is_held_back():
            return None
        # What is decided by steps must not depend on how long the search takes.
        deadline = time.monotonic() + _FOUND_WITHIN_S
        while (found := self.real.poll(request_id)) is None and time.monotonic() < deadline:
            time.sleep(0.001)
        return found

    def note(self, request_id: str, near_answers: Any) -> None:
        self.attached.append((self._steps or 0, request_id, len(near_answers)))


def hold_back(worker: Any, late: int | None) -> None:
    """Have near answers come late, see `LateRetriever`, and nothing else be there to draft from but
    the context."""
    requests = worker.model_runner.speculator._requests
    if requests is None:
        return
    near = requests._near
    if isinstance(near._retriever, LateRetriever):
        near._retriever = LateRetriever(near._retriever.real, late)
        return
    near._retriever = LateRetriever(near._retriever, late)
    near._overlap.search = lambda *_, **__: []
    _leave_corpora_out(requests._corpora)
    begin_step, attach = requests.begin_step, requests._rows.attach

    def watched_step(*args: Any) -> None:
        near._retriever.begin_step()
        begin_step(*args)

    def watched_attach(request_id: str, near_answers: Any) -> None:
        near._retriever.note(request_id, near_answers)
        attach(request_id, near_answers)

    requests.begin_step, requests._rows.attach = watched_step, watched_attach


def _leave_corpora_out(corpora: Any) -> None:
    enter, put_in_place = corpora.enter, corpora.put_in_place

    def without_row(namespace: str) -> int:
        enter(namespace)
        return -1

    def without_moves() -> dict[str, int]:
        put_in_place()
        return {}

    corpora.enter, corpora.put_in_place = without_row, without_moves


def attached(worker: Any) -> list[Any]:
    """Return what was attached since `hold_back`; on the first rank."""
    requests = worker.model_runner.speculator._requests
    return [] if requests is None else requests._near._retriever.attached
