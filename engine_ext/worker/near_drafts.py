"""Near answers in a worker: asked for when a request arrives, drafted from when they are there."""

import itertools
import secrets
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

from reprise.engine_ext.core.error_counter import ErrorCounter
from reprise.engine_ext.worker.live_request import LiveRequest
from reprise.retrieval.api.near_answer import NearAnswer, require_namespace
from reprise.retrieval.api.retriever import Retriever
from reprise.retrieval.search.token_overlap import TokenOverlap
from reprise.spec.api.near_answer import are_tokens


class DraftsFromNearAnswers(Protocol):
    """What drafts, on the host or on the device, from near answers that come at any time."""

    def attach(self, request_id: str, near_answers: Sequence[NearAnswer]) -> None:
        """Give a request near answers to draft from; an unknown id is ignored."""


class NearDrafts:
    """Attaches to live requests what is near: in meaning, as soon as that is known, and until then
    by shared tokens. Never waits and never raises: a request for which something fails goes on
    without near answers.

    What was found can be read for a while after its request is over, and the next one may have the
    same id: so each search has an id of its own, and nothing of another namespace is attached.

    Args:
        provider: drafts from what is attached.
        retriever: finds what is near in meaning.
        overlap: finds what shares tokens.
        max_near: near answers of a request; 0: nothing is searched for.
        vocabulary_size: of the model, which looks up whatever is drafted.
        errors: counts what goes wrong.
    """

    def __init__(
        self,
        provider: DraftsFromNearAnswers,
        retriever: Retriever,
        overlap: TokenOverlap,
        *,
        max_near: int,
        vocabulary_size: int,
        errors: ErrorCounter,
    ) -> None:
        self._errors = errors
        self._provider = provider
        self._retriever = retriever
        self._overlap = overlap
        self._max_near = max_near
        self._vocabulary_size = vocabulary_size
        self._searches = itertools.count()
        self._searcher = secrets.token_hex(8)  # one process finds for many workers
        self._awaiting: dict[str, tuple[LiveRequest, str]] = {}
        self._seen_progress = -1
        self._in_time = {"meaning": 0, "tokens": 0}
        self._late = 0

    def begin(self, request_id: str, live: LiveRequest, namespace: str) -> None:
        """Start the search by meaning, unless the front end already has."""
        if not self._max_near or not live.hints.drafts or live.prompt_token_ids is None:
            return
        with self._recording(request_id):
            if live.search_id is None:
                live.search_id = f"{request_id}-{self._searcher}-{next(self._searches)}"
                self._retriever.submit(
                    live.search_id, namespace=namespace, prompt_token_ids=live.prompt_token_ids
                )
            self._awaiting[request_id] = live, namespace

    def attach_first(self, request_id: str, live: LiveRequest, namespace: str) -> None:
        """Attach what there is to a request whose drafts begin."""
        if request_id not in self._awaiting or live.has_begun:
            return
        live.has_begun = True
        with self._recording(request_id):
            near_answers = self._found_by_meaning(request_id, live, namespace)
            if near_answers:
                self._attach(request_id, live, near_answers)
                self._in_time["meaning"] += 1
                return
            near_by_tokens = self._found_by_tokens(live, namespace)
            if near_by_tokens:
                self._attach(request_id, live, near_by_tokens)
                self._in_time["tokens"] += 1
            elif near_answers is None:
                self._late += 1

    def attach_arrived(self) -> None:
        """Attach what has been found since the last call to requests whose drafts have begun."""
        if not self._awaiting:
            return
        with self._errors.recording("near answers"):
            progress = self._retriever.progress()
            if progress == self._seen_progress:
                return
            self._seen_progress = progress
        for request_id, (live, namespace) in tuple(self._awaiting.items()):
            if live.has_begun:
                with self._recording(request_id):
                    near_answers = self._found_by_meaning(request_id, live, namespace)
                    if near_answers:
                        # What shares tokens and is not near in meaning may be of use all the same.
                        self._attach(request_id, live, near_answers, live.near_by_tokens)

    def end(
        self,
        request_id: str,
        live: LiveRequest,
        namespace: str,
        accepted_by_answer: Mapping[str, int],
    ) -> None:
        """End a request; count its accepted tokens, by answer, as uses of the answers."""
        self._awaiting.pop(request_id, None)
        with self._errors.recording("near answers"):
            if live.search_id is not None:
                self._retriever.discard(live.search_id)
        with self._errors.recording("near answers"):
            if accepted_by_answer:
                self._retriever.record_usage(namespace, accepted_by_answer)

    def forget(self, request_id: str) -> None:
        """Attach nothing to this request any more."""
        self._awaiting.pop(request_id, None)

    def report(self) -> dict[str, Any]:
        """Return figures since the start."""
        figures: dict[str, Any] = {
            "near_answers_in_time": self._in_time,
            "near_answers_late": self._late,
        }
        # Where API server processes that have no retrieval of their own tell it to forget.
        address = getattr(self._retriever, "address", None)
        return figures if address is None else {**figures, "retrieval_address": address}

    @contextmanager
    def _recording(self, request_id: str) -> Iterator[None]:
        """Run a block that may fail; what fails for a request is not tried again for it."""
        try:
            yield
        except Exception as error:
            self._awaiting.pop(request_id, None)
            self._errors.record("near answers", error)

    def _found_by_meaning(
        self, request_id: str, live: LiveRequest, namespace: str
    ) -> list[NearAnswer] | None:
        """Return what is near in meaning, once; None while that is not known."""
        assert live.search_id is not None
        near_answers = self._retriever.poll(live.search_id)
        if near_answers is None:
            return None
        del self._awaiting[request_id]
        require_namespace(near_answers, namespace)
        return near_answers

    def _found_by_tokens(self, live: LiveRequest, namespace: str) -> list[NearAnswer]:
        """Return what shares tokens, and remember it for when more is known."""
        assert live.prompt_token_ids is not None
        live.near_by_tokens = self._overlap.search(
            namespace, live.prompt_token_ids, count=self._max_near
        )
        return live.near_by_tokens

    def _attach(
        self,
        request_id: str,
        live: LiveRequest,
        near_answers: Sequence[NearAnswer],
        attached: Sequence[NearAnswer] = (),
    ) -> None:
        """Attach these, beside those that are attached already."""
        known = [
            each
            for each in near_answers
            if are_tokens(each.response_token_ids, self._vocabulary_size)
        ]
        self._provider.attach(request_id, [*known, *attached])
        if live.recorder is not None:
            live.recorder.note_near(known)
        if len(known) < len(near_answers):
            raise ValueError("a near answer holds what is no token of the model's vocabulary")
