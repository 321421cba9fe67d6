"""Invalidates answers in an API server process: at its own request, and at that of others."""

import asyncio
import time
import weakref
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec
from vllm.logger import init_logger
from vllm.utils.async_utils import cancel_task_threadsafe

from reprise.engine_ext.core.error_counter import ErrorCounter
from reprise.engine_ext.frontend.exact_memory import ExactMemory
from reprise.engine_ext.frontend.pin_forgetting import PinForgetting
from reprise.engine_ext.request.recorded_answers import RecordedAnswers
from reprise.retrieval.api.answer import Answer
from reprise.retrieval.api.invalidation import Forgetting, Forgotten, Invalidation
from reprise.retrieval.host import steady_clock
from reprise.retrieval.query.prompt_tokenizer import PromptTokenizer
from reprise.retrieval.service.retrieval_client import RetrievalClient

if TYPE_CHECKING:
    from reprise.retrieval.api.retriever import RetrievalHealth

logger = init_logger(__name__)
FindRetrieval = Callable[[], Awaitable[list[str]]]

_LOOK_EVERY_S = 0.1
_FIND_EVERY_S, _MAX_FIND_EVERY_S = 5.0, 300.0
_STARTS_WITHIN_S = 300.0
_TIER_WITHIN_S = 2.0
_MAX_APPLIED = 1000
_CLOCK_SKEW_S = 2.0


class ForgetReport(NamedTuple):
    """The outcome of an invalidation."""

    removed: int
    """Answers that were there, in whichever stores."""
    exact: int
    """Of them, in this process's exact memory."""
    shared: int
    """Of them, in retrieval's memory or the tier."""
    is_pending: bool
    """Whether a store is out of reach now, and follows later."""


class ExactForgetting:
    """Keeps an exact memory, and recorded answers, in step with the retrieval processes of their
    engine. Event loop only.

    Args:
        memory: Of this process.
        recorded: Of this process.
        tokenizer: Returns the engine's tokenizer, for conditions on prompts.
        pins: Of the engines.
        retrieval: This process's own client, if it has one.
        find_retrieval: Otherwise: where the engine's workers have theirs.
    """

    def __init__(
        self,
        memory: ExactMemory,
        *,
        recorded: RecordedAnswers,
        tokenizer: Callable[[], Any],
        pins: PinForgetting,
        retrieval: RetrievalClient | None,
        find_retrieval: FindRetrieval,
        errors: ErrorCounter,
    ) -> None:
        self._memory, self._recorded, self._pins = memory, recorded, pins
        self._get_tokenizer, self._errors = tokenizer, errors
        self._clients = {} if retrieval is None else {retrieval.address: retrieval}
        self._find_retrieval = find_retrieval if retrieval is None else None
        self._found: dict[str, RetrievalClient] = {}
        self._began_s = self._look_s = time.monotonic()
        self._pause_s = _FIND_EVERY_S
        self._reader: PromptTokenizer | None = None
        self._applied: dict[str, Invalidation] = {}
        # Answers made until then may have been removed without our knowing.
        self._unknown_until_s = float("-inf")
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Follow invalidations from now on, on the running loop. Idempotent."""
        if self._task is None:
            self._task = asyncio.create_task(_follow(weakref.ref(self)))

    def close(self) -> None:
        """Stop following."""
        if self._task is not None:
            cancel_task_threadsafe(self._task)
        self._pins.close()
        for client in self._found.values():
            client.close()

    def health(self) -> "list[RetrievalHealth]":
        """Return the health of each retrieval process that is known."""
        found = [client.health() for client in self._clients.values()]
        if time.monotonic() - self._began_s < _STARTS_WITHIN_S:
            return found
        late = f"not there after {_STARTS_WITHIN_S:.0f} s"
        return [
            replace(each, state="degraded", detail=late) if each.state == "starting" else each
            for each in found
        ]

    @property
    def clients(self) -> list[RetrievalClient]:
        """Of the retrieval processes that are known."""
        return list(self._clients.values())

    def is_forgotten(self, answer: Answer) -> bool:
        """Return whether an answer from the tier, with its query, was to be forgotten: who carries
        that out there may not have come to it yet."""
        if answer.created_s <= self._unknown_until_s:
            return True
        has_text = bool(answer.prompt_text)
        return any(
            answer.created_s <= each.made_s + _CLOCK_SKEW_S
            and (each.matches(answer) if has_text or not each.needs_text else True)
            for each in self._applied.values()
            if each.covers(answer.namespace)
        )

    @property
    def num_pending(self) -> int:
        """Invalidations that some store has yet to carry out."""
        unconfirmed = sum(client.num_unconfirmed for client in self._clients.values())
        return unconfirmed + self._pins.num_pending

    async def find(self, invalidation: Invalidation) -> list[Answer]:
        """Return the answers here that meet the conditions, most recently used first."""
        # Decoding thousands of prompts must not hold up the event loop.
        return await asyncio.to_thread(
            self._find, self._memory.answers(), invalidation, self._query
        )

    async def texts_of(self, answers: list[Answer]) -> list[tuple[str, str]]:
        """Return prompt and response of each, decoded."""
        decode = self._get_tokenizer().decode

        def texts() -> list[tuple[str, str]]:
            return [
                (decode(a.prompt_token_ids.tolist()), decode(a.response_token_ids.tolist()))
                for a in answers
            ]

        return await asyncio.to_thread(texts)

    async def forget(self, invalidation: Invalidation) -> ForgetReport:
        """Remove the answers in this process, in the tier and on all replicas."""
        if not self._clients:
            await self._look_for_retrieval()
        exact: list[tuple[str, str]] = []
        try:
            exact = await self._forget_here(invalidation)
        finally:  # whatever has failed here, the tier and the replicas hear of it
            outcomes: list[Forgetting] = await asyncio.gather(
                *(
                    asyncio.to_thread(client.forget, invalidation, timeout_s=_TIER_WITHIN_S)
                    for client in self._clients.values()
                )
            )
        has_unpinned = await self._pins.finish(within_s=_TIER_WITHIN_S)
        shared = {key for outcome in outcomes for key in outcome.removed}
        return ForgetReport(
            removed=len(shared.union(exact)),
            exact=len(exact),
            shared=len(shared),
            is_pending=not (has_unpinned and all(outcome.done for outcome in outcomes)),
        )

    async def follow_once(self) -> None:
        """Apply the invalidations since the last call, and drop expired answers."""
        with self._errors.recording("forget"):
            self._memory.expire()
            self._recorded.expire()
            if not self._clients and time.monotonic() >= self._look_s:
                await self._look_for_retrieval()
        for client in tuple(self._clients.values()):
            with self._errors.recording("forget"):
                # Each is handed over once: none may be lost by what fails of one before it.
                for forgotten in client.forgotten():
                    with self._errors.recording("forget"):
                        await self._apply(forgotten)

    async def _apply(self, forgotten: Forgotten) -> None:
        if not forgotten.complete:
            logger.warning(
                "Reprise: some removals by other processes are not known here, so this process "
                "drops all its answers for exact hits."
            )
            self._unknown_until_s = steady_clock.now_s()
            self._memory.clear()
            everything = Invalidation.create(everything=True)
            self._recorded.forget(everything)
            self._pins.begin(everything)
            return
        self._memory.remove_ids(forgotten.removed)
        for invalidation in forgotten.invalidations:
            with self._errors.recording("forget"):
                if invalidation.invalidation_id not in self._applied:
                    await self._forget_here(invalidation)
                else:
                    # Near answers were found until retrieval had forgotten them too.
                    self._recorded.forget(invalidation)

    async def _forget_here(self, invalidation: Invalidation) -> list[tuple[str, str]]:
        self._applied[invalidation.invalidation_id] = invalidation
        self._pins.begin(invalidation)
        self._recorded.forget(invalidation)
        if len(self._applied) > _MAX_APPLIED:
            del self._applied[next(iter(self._applied))]
        answers = self._memory.answers()
        found = await asyncio.to_thread(self._find, answers, invalidation, self._query_if_readable)
        return self._memory.remove(found)

    def _find(
        self,
        answers: list[Answer],
        invalidation: Invalidation,
        query_of: Callable[[Answer], str | None],
    ) -> list[Answer]:
        """Return the answers that meet the conditions; where a query is None, but that on it."""
        whatever_asked = msgspec.structs.replace(invalidation, prompt_digest=None)
        found = []
        for answer in answers:
            if not whatever_asked.means(answer):
                continue
            query = query_of(answer) if invalidation.needs_text else None
            if query is None or invalidation.means(answer, query):
                found.append(answer)
        return found

    def _query(self, answer: Answer) -> str:
        """Return what an answer's prompt asks.

        Raises:
            Exception: it cannot be read, or the engine has no tokenizer.
        """
        reader = self._reader = self._reader or PromptTokenizer.wrapping(self._get_tokenizer())
        return reader.query_of(reader.decode(answer.prompt_token_ids.tolist()))

    def _query_if_readable(self, answer: Answer) -> str | None:
        try:
            return self._query(answer)
        except Exception as error:
            self._errors.record("forget_by_prompt", error)
            return None

    async def _look_for_retrieval(self) -> None:
        if self._find_retrieval is None:
            return
        self._look_s = time.monotonic() + self._pause_s
        self._pause_s = min(2 * self._pause_s, _MAX_FIND_EVERY_S)
        for address in await self._find_retrieval():
            if address not in self._found:
                client = RetrievalClient(address, wants_updates=False, wants_forgotten=True)
                self._found[address] = client
        self._clients = self._found


async def _follow(forgetting_ref: "weakref.ref[ExactForgetting]") -> None:
    """Follow until the object is gone; this task does not keep it alive."""
    while (forgetting := forgetting_ref()) is not None:
        await forgetting.follow_once()
        del forgetting
        await asyncio.sleep(_LOOK_EVERY_S)
