"""What a retriever's worker thread does with a batch of work."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import msgspec

from reprise.retrieval.api.answer import Answer
from reprise.retrieval.api.found_clause import FoundClause
from reprise.retrieval.api.near_answer import NearAnswer
from reprise.retrieval.in_process.near_duplicates import NearDuplicates
from reprise.retrieval.in_process.second_level import Lookup, SecondLevel
from reprise.retrieval.in_process.shared_state import SharedState
from reprise.retrieval.in_process.work_queue import Prompt
from reprise.retrieval.search.near_search import NearSearch, Query
from reprise.retrieval.tiers.memory_tier import MemoryTier

OnFound = Callable[[str, str, list[NearAnswer], list[FoundClause]], None]


class BatchProcessor:
    """Answers prompts and indexes answers; one thread at a time.

    Args:
        shared: Where near answers are picked up; prompts to queries.
        memory: The answers that are held.
        on_found: Called with each request's id, namespace, near answers and clauses.
        duplicates: Told what was indexed; None where all is held.
    """

    def __init__(
        self,
        shared: SharedState,
        *,
        memory: MemoryTier,
        on_found: OnFound | None,
        duplicates: NearDuplicates | None,
    ) -> None:
        self._memory, self._on_found, self._duplicates = memory, on_found, duplicates
        self._results, self._queries = shared.results, shared.queries
        self._changed, self._count = shared.changed, shared.count

    def leave(self, search: NearSearch, gone: Iterable[tuple[str, str]]) -> None:
        """Make answers (namespace, id) that left memory unfindable. One that has come back since,
        with another prompt perhaps, has yet to join."""
        for namespace, answer_id in gone:
            search.leave(namespace, answer_id)

    def answer(
        self, search: NearSearch, prompts: Sequence[Prompt], second: SecondLevel | None = None
    ) -> None:
        """Search near answers for the prompts, and hand them over; those that `second` is asked for
        too may be handed over later."""
        with self._changed:
            # Under load some requests are over before their batch comes.
            awaited = [p for p in prompts if self._results.is_awaited(p.request_id)]
            self._count(submitted=len(prompts), abandoned=len(prompts) - len(awaited))
        if not awaited:
            return
        queries = [
            Query(p.namespace, self._queries.read(p.text, p.prompt_token_ids)) for p in awaited
        ]
        for found in search.search(queries):
            for place, near_answers, clauses, vectors in zip(
                found.places, found.near_answers, found.clauses, found.vectors, strict=True
            ):
                lookup = Lookup(awaited[place], near_answers, clauses, vectors)
                if second is None or not second.ask(lookup):
                    self.publish(awaited[place], near_answers, clauses)
            with self._changed:
                self._count(
                    found=sum(map(bool, found.near_answers)),
                    compound=sum(map(bool, found.clauses)),
                    clause_s=found.clause_s,
                    embed_s=found.embed_s,
                    search_s=found.search_s,
                )

    def give_nothing(self, prompts: Iterable[Prompt]) -> None:
        """Hand over no near answers: the search failed."""
        with self._changed:
            for prompt in prompts:
                self._results.give(prompt.request_id, [])

    def join(self, search: NearSearch, batch: Sequence[tuple[Answer, bool]]) -> list[Answer]:
        """Index answers that are still held; return ours, with embeddings, to be written.

        `batch` has each answer with whether it is ours.
        """
        held = [
            (self._with_prompt_text(answer), ours)
            for answer, ours in batch
            if self._is_held(answer.namespace, answer.answer_id)
        ]
        if len(held) < len(batch):
            lost = sum(ours for _, ours in batch) - sum(ours for _, ours in held)
            with self._changed:
                self._count(evicted_early=lost)
        texts = [self._queries.read(answer.prompt_text, None) for answer, _ in held]
        joined = search.join([answer for answer, _ in held], texts)
        if self._duplicates is not None:
            self._duplicates.joined((a.namespace, a.answer_id) for a in joined)
        ours = {(a.namespace, a.answer_id) for a, is_ours in held if is_ours}
        return [a for a in joined if (a.namespace, a.answer_id) in ours]

    def with_prompt_texts(self, answers: Iterable[Answer]) -> list[Answer]:
        """Return answers with their queries for texts, as they are written."""
        return [self._with_prompt_text(answer) for answer in answers]

    def publish(
        self,
        prompt: Prompt,
        near_answers: list[NearAnswer],
        clauses: list[FoundClause],
        is_elsewhere: Callable[[NearAnswer], bool] = lambda _: False,
    ) -> None:
        """Hand over a request's near answers, if it still waits for them, but for those that have
        left memory since they were found; `is_elsewhere` says, with the lock held, what need not
        be there."""
        with self._changed:
            there = [
                near
                for near in near_answers
                if self._is_held(near.namespace, near.answer_id) or is_elsewhere(near)
            ]
            # The request may be gone, or submitted anew, by now.
            given = self._results.give(prompt.request_id, there, clauses)
        if given and self._on_found is not None:
            self._on_found(prompt.request_id, prompt.namespace, there, clauses)

    def _is_held(self, namespace: str, answer_id: str) -> bool:
        return self._memory.get(namespace, [answer_id])[0] is not None

    def _with_prompt_text(self, answer: Answer) -> Answer:
        """Return the answer with its query for text, by which people name it, if it came
        without."""
        if answer.prompt_text:
            return answer
        text = self._queries.read(None, answer.prompt_token_ids)
        self._memory.set_prompt_text(answer.namespace, answer.answer_id, text)
        return msgspec.structs.replace(answer, prompt_text=text)
