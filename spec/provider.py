# mypy: allow-untyped-calls
"""DraftProvider: the request life cycle, from prompt and near answers to drafts."""

import logging
import os
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from reprise.spec.api.config import DraftConfig
from reprise.spec.api.near_answer import NearAnswer, PlainNearAnswer, TokenIds, as_token_ids
from reprise.spec.api.recorded_steps import DraftedToken
from reprise.spec.api.scheduling_mode import SchedulingMode
from reprise.spec.api.stats import SOURCES, ProviderStats, RequestStats
from reprise.spec.batching.batch import BatchRunner, Tables
from reprise.spec.batching.request import Request
from reprise.spec.batching.request_table import RequestTable, stats_of
from reprise.spec.corpus.corpora import Corpora
from reprise.spec.lengths.best_lengths import select_lengths
from reprise.spec.lengths.draft_length import DraftLength
from reprise.spec.predictor.features import weights_table
from reprise.spec.predictor.prediction_trace import trace_table
from reprise.spec.predictor.weights import LearnedWeights, salt_of
from reprise.spec.runtime.layout import CORPUS_ROW, DRAFTED, PREDICTED
from reprise.spec.runtime.step_lock import StepLock

logger = logging.getLogger(__name__)

UNREACHABLE_PROB = 0.95  # where a token has to be likelier, none is worth looking for


class DraftProvider:
    """Makes drafts for the requests of one engine worker. Thread-safe.

    Args:
        config: settings; the defaults if None.
        clock: seconds from some start on, by which looking for drafts is timed. A replay in virtual
            time has its own.

    Example:
        >>> provider = DraftProvider(DraftConfig(verify_cost=0.0))
        >>> provider.add_answer("a1", [5, 6, 7, 8, 9])
        >>> provider.start("r1", [1, 2, 3])
        >>> drafts = provider.step(["r1"], [[5, 6]])
    """

    def __init__(
        self,
        config: DraftConfig | None = None,
        *,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._clock = clock
        self.config = config or DraftConfig()
        self._lock = StepLock()
        self._changes = threading.Lock()  # of the corpora, which never holds up a step
        self._live: dict[str, Request | RequestStats] = {}
        self._corpora = Corpora(max_bytes=self.config.max_corpus_bytes, lock=self._lock.giving_way)
        self._positions = self.config.num_speculative_tokens + 2
        self._table = RequestTable(self._positions)
        self._learned = LearnedWeights()
        self._tables: Tables | None = None
        self._runner = BatchRunner(min(self.config.num_threads, len(os.sched_getaffinity(0))))
        self._length = DraftLength(self.config)
        self._total = RequestStats()
        self._num_requests = self._errors = 0
        self._min_prob: float | None = None
        self._searched = False

    def warm_up(self) -> None:
        """Compile everything, or read it from the disk, so that no request waits for it."""
        # So little room that answers are dropped, and so many that the rest are merged and moved.
        other = DraftProvider(self.config.model_copy(update={"max_corpus_bytes": 100_000}))
        tokens = np.arange(128, dtype=np.int32)
        for answer in range(80):
            other.add_answer(str(answer), tokens)
        for answer in range(70):
            other.remove_answer(str(answer))
        near = PlainNearAnswer("0", 0.9, tokens, tokens)
        other.start("0", tokens)
        other.attach("0", [near])
        for drafted in (0, 4):
            other._length.costs.observe_step(1, drafted, 0.01)
        for token in range(8):
            other.step(["0"], [[token]], step_time_s=0.01)
        other.finish("0")

    def start(
        self,
        request_id: str,
        prompt_token_ids: TokenIds,
        *,
        namespace: str = "",
        max_draft: int | None = None,
    ) -> None:
        """Begin a request. A live one of the same id is replaced. `max_draft` 0: no drafts."""
        prompt = as_token_ids(prompt_token_ids, "prompt_token_ids")
        limit = self.config.num_speculative_tokens
        cap = limit if max_draft is None else max(0, min(max_draft, limit))
        with self._lock:
            self.finish(request_id)
            self._num_requests += 1
            if cap == 0:
                self._live[request_id] = RequestStats()
                return
            req_idx = self._table.take()
            row = self._table.rows[req_idx]
            salt = salt_of(namespace, self._learned.secret)
            room = self._positions + 2
            request = Request(
                req_idx, row, prompt, namespace=namespace, salt=salt, cap=cap, room=room
            )
            row[CORPUS_ROW] = self._corpora.enter(namespace)
            self._length.resume()
            self._live[request_id] = request

    def attach(self, request_id: str, near_answers: Sequence[NearAnswer]) -> None:
        """Give a request near answers to draft from; an unknown id is ignored."""
        with self._lock:
            request = self._live.get(request_id)
            if not isinstance(request, Request):
                return
            req_idx = request.req_idx
            self._table.trace.nears[req_idx] = -1
            request.attach(
                self._table.rows[req_idx],
                near_answers,
                self._table.trace.pointers[req_idx, 0],
                self._table.trace.hits[req_idx, 0],
                max_near=self.config.max_near_answers,
            )
            self._length.resume()

    def step(
        self,
        request_ids: Sequence[str],
        emitted: Sequence[Sequence[int]],
        *,
        limits: Callable[[], Sequence[int]] | None = None,
        step_time_s: float | None = None,
        num_drafted_tokens: int = 0,
        mode: SchedulingMode = SchedulingMode.SYNC,
        saved_s: float = 0.0,
    ) -> list[list[int]]:
        """Observe each request's new tokens, then draft for the whole batch. Never raises.

        Args:
            request_ids: B ids; unknown ones get no draft.
            emitted: B sequences of the tokens emitted since the last call, possibly empty: of one
                step, and of those for which `skip_drafting` returned True.
            limits: max tokens [B] that each may draft now, asked for only where drafts may pay;
                None: as configured.
            step_time_s: what the engine step that emitted these took, in seconds, without what
                the drafter took, if it did nothing but decode for these requests; None: the step
                teaches nothing of costs.
            num_drafted_tokens: tokens that it verified.
            mode: where the engine is. `IN_FLIGHT`: nothing of what is returned may be verified, and
                nothing is returned where it does not pay to wait for the next step.
            saved_s: how much of the time that drafting takes is no loss, in seconds, because the
                device is at work meanwhile.
        """
        with self._lock:
            began_s = self._clock()
            try:
                self._observe_cost(len(request_ids), step_time_s, num_drafted_tokens)
                known = self._observe(request_ids, emitted)
                drafts: list[list[int]] = [[] for _ in request_ids]
                if known:
                    self._propose(known, limits, drafts, mode, saved_s)
                    if self._searched:
                        self._length.observe_search(self._clock() - began_s)
                return drafts
            except Exception:
                self._note_error()
                return [[] for _ in request_ids]
            finally:
                self._min_prob = None

    def skip_drafting(
        self,
        num_requests: int,
        *,
        step_time_s: float | None = None,
        num_drafted_tokens: int = 0,
        mode: SchedulingMode = SchedulingMode.SYNC,
    ) -> bool:
        """Decide whether to do without drafts after this step; all its requests are started.

        True: no draft can pay. The step is over, and what it emitted may wait for the next call of
        `step`. False: `step` is to be called, without times, which are recorded here. Never raises.

        Args:
            num_requests: of the step's batch; the others as for `step`.
        """
        with self._lock:
            try:
                self._observe_cost(num_requests, step_time_s, num_drafted_tokens)
                self._min_prob = self._length.min_prob(num_requests, mode)
                if self._min_prob < UNREACHABLE_PROB:
                    return False
                self._length.observe_step(num_requests, num_drafted_tokens)
                self._min_prob = None
                return True
            except Exception:
                self._note_error()
                return False

    def observe(self, request_id: str, token_ids: Sequence[int]) -> None:
        """Record newly emitted tokens of one request; an unknown id is ignored."""
        with self._lock:
            try:
                self._observe([request_id], [token_ids])
            except Exception:
                self._note_error()

    def propose(self, request_id: str, *, limit: int) -> list[int]:
        """Draft at most `limit` tokens for one request; an unknown id gets none."""
        with self._lock:
            drafts: list[list[int]] = [[]]
            try:
                request = self._live.get(request_id)
                if isinstance(request, Request):
                    self._propose({0: request}, lambda: [limit], drafts)
                return drafts[0]
            except Exception:
                self._note_error()
                return []

    def drop_draft(self, request_id: str) -> None:
        """Record that the last draft of a request is not verified; an unknown id is ignored."""
        with self._lock:
            request = self._live.get(request_id)
            if isinstance(request, Request):
                request.num_drafted = 0
                self._table.rows[request.req_idx, DRAFTED] = 0

    def draft_chances(self, request_id: str) -> npt.NDArray[np.float32]:
        """Return the probability that the last draft is right up to and with each of its tokens,
        float32 [n]; none for an unknown id, and for a draft that was not to be verified."""
        with self._lock:
            request = self._live.get(request_id)
            if not isinstance(request, Request):
                return np.zeros(0, np.float32)
            chances: npt.NDArray[np.float32] = self._table.trace.probs[
                request.req_idx, : request.num_drafted
            ]
            return chances.copy()

    def drafted_tokens(self, request_id: str) -> list[DraftedToken]:
        """Return the last draft with where each token came from; none for an unknown id, and for a
        draft that was not to be verified. Only for those who want to see it: a step does without.
        """
        with self._lock:
            request = self._live.get(request_id)
            if not isinstance(request, Request):
                return []
            trace, at = self._table.trace, (request.req_idx, slice(request.num_drafted))
            answer_ids = [*request.answer_ids, None]  # of index -1: it is from none of them
            return [
                DraftedToken(token, SOURCES[source], answer_ids[near])
                for token, source, near in zip(
                    trace.tokens[at].tolist(),
                    trace.sources[at].tolist(),
                    trace.nears[at].tolist(),
                    strict=True,
                )
            ]

    def finish(self, request_id: str) -> RequestStats | None:
        """Forget a request and return its counters; None if the id is unknown."""
        with self._lock:
            request = self._live.pop(request_id, None)
            if request is None:
                return None
            if isinstance(request, Request):
                stats = self._read_stats(request)
                self._table.free(request.req_idx)
                self._corpora.leave(request.namespace)
            else:
                stats = request
            self._total.add(stats)
            return stats

    def add_answer(
        self, answer_id: str, response_token_ids: TokenIds, *, namespace: str = ""
    ) -> None:
        """Index an answer of a namespace; one already indexed under this id stays as it is."""
        tokens = as_token_ids(response_token_ids, "response_token_ids")
        with self._changes:
            self._corpora.add(answer_id, tokens, namespace)

    def remove_answer(self, answer_id: str, *, namespace: str = "") -> None:
        """Take an answer out of the index; an unknown id is ignored."""
        with self._changes:
            self._corpora.remove(answer_id, namespace)

    def stats(self) -> ProviderStats:
        """The counters of all requests, live ones included."""
        total = RequestStats()
        with self._lock.giving_way:
            total.add(self._total)
            req_indices = []
            for request in self._live.values():
                if isinstance(request, Request):
                    req_indices.append(request.req_idx)
                else:
                    total.add(request)
            rows = self._table.rows[req_indices]
            num_requests, errors, held = self._num_requests, self._errors, self._corpora.total
        if req_indices:
            total.add(stats_of(rows.sum(axis=0)))
        return ProviderStats(
            requests=num_requests,
            steps=total.steps,
            emitted=total.emitted,
            drafted=total.drafted,
            accepted=total.accepted,
            by_source=total.by_source,
            answers=held.answers,
            cached_tokens=held.tokens,
            bytes=held.bytes,
            errors=errors,
        )

    def note_ready(self, num_tokens: int) -> None:
        """Record that steps of up to so many tokens in all, drafted or not, pay for nothing that is
        made once, such as kernels for their number."""
        with self._lock:
            self._length.costs.note_ready(num_tokens)

    def save(self, path: str | Path) -> None:
        """Write the learned weights (not the corpus) to `path`, which drafting does not wait for.

        Raises:
            OSError: the file cannot be written.
        """
        self._learned.save(path, lock=self._lock.giving_way)

    def load(self, path: str | Path) -> None:
        """Go on from the weights that `save` wrote, before the first request.

        Raises:
            ValueError: if the file does not hold weights of this version.
            OSError: the file cannot be read.
        """
        with self._lock:
            self._learned.load(path)

    def _observe_cost(
        self, num_requests: int, step_time_s: float | None, num_drafted_tokens: int
    ) -> None:
        if step_time_s is not None:
            self._length.costs.observe_step(num_requests, num_drafted_tokens, step_time_s)

    def _observe(
        self, request_ids: Sequence[str], emitted: Sequence[Sequence[int]]
    ) -> dict[int, Request]:
        """Observe for all known requests; return those that may be drafted for, by batch index."""
        known: dict[int, Request] = {}
        flat: list[int] = []
        ends: list[int] = []
        drafted = stepped = 0
        for i, request_id in enumerate(request_ids):
            request = self._live.get(request_id)
            tokens = emitted[i]
            if isinstance(request, Request):
                request.make_room(self._table.rows, len(tokens))
                if len(tokens):
                    stepped += request.has_emitted or request.num_drafted > 0
                    drafted += request.num_drafted
                    request.has_emitted = True
                known[i] = request
                flat.extend(tokens)
                ends.append(len(flat))
            elif request is not None and len(tokens):
                request.steps += len(tokens) - (0 if request.emitted else 1)
                request.emitted += len(tokens)
        if flat:
            self._length.observe_step(stepped, drafted)
            self._runner.observe(
                [request.req_idx for request in known.values()],
                flat,
                ends,
                self._current_tables(),
                much=self._searched,
            )
        return known

    def _propose(
        self,
        known: Mapping[int, Request],
        limits: Callable[[], Sequence[int]] | None,
        drafts: list[list[int]],
        mode: SchedulingMode = SchedulingMode.SYNC,
        saved_s: float = 0.0,
    ) -> None:
        req_indices, min_prob = [request.req_idx for request in known.values()], self._min_prob
        batch = len(drafts)  # all share the step, those too that are not drafted for
        if min_prob is None:
            min_prob = self._length.min_prob(batch, mode)
        self._searched = min_prob < UNREACHABLE_PROB
        for request in known.values():
            request.num_drafted = 0
        if not self._searched:  # nothing can pay: do not even predict
            self._table.rows[req_indices, PREDICTED] = 0
            self._table.rows[req_indices, DRAFTED] = 0
            return
        caps = [request.cap for request in known.values()]
        if limits is not None:
            now = limits()
            caps = [min(now[index], cap) for index, cap in zip(known, caps, strict=True)]
        tables = self._current_tables()
        self._runner.draft(req_indices, caps, min_prob, tables)
        if any(caps):
            kept, tokens, gain = select_lengths(
                np.array(req_indices, np.int64),
                self._table.rows,
                tables.trace,
                *self._length.length_costs(batch, mode),
                batch - len(known),
            )
            pays = self._length.observe_gain(gain, mode, saved_s)
            if mode is SchedulingMode.IN_FLIGHT:  # none of them is verified
                self._table.rows[req_indices, DRAFTED] = 0
            for (index, request), draft, length in zip(
                known.items(), tokens.tolist(), kept.tolist(), strict=True
            ):
                request.num_drafted = 0 if mode is SchedulingMode.IN_FLIGHT else length
                drafts[index] = draft[:length] if pays else []

    def _current_tables(self) -> Tables:
        """The tables as they are: those of requests and corpora grow."""
        tables = self._tables
        rows, corpora = self._table.rows, self._corpora.table
        if tables is None or tables.requests is not rows or tables.corpora is not corpora:
            trace, weights = trace_table(self._table.trace), weights_table(self._learned.tables)
            self._tables = tables = Tables(rows, corpora, trace, weights)
        return tables

    def _note_error(self) -> None:
        if not self._errors:
            logger.exception("drafting failed; no draft for this step (logged once)")
        self._errors += 1

    def _read_stats(self, request: Request) -> RequestStats:
        stats = stats_of(self._table.rows[request.req_idx])
        stats.accepted_by_answer = request.accepted_by_answer()
        return stats
