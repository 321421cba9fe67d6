"""Which answers a client has been told of, and what it has yet to report of them."""

from __future__ import annotations

from reprise.retrieval.api.answer import AnswerUpdate
from reprise.retrieval.in_process.update_queue import Key, UpdateQueue


class ToldAnswers:
    """Makes updates of what a process says: at first all that it holds, then what joins and leaves.

    One thread calls `begin`, `added`, `removed` and `end_of_list`; any other one `take`.

    Args:
        max_bytes: Bound on the updates that wait.
    """

    def __init__(self, *, max_bytes: int) -> None:
        self._updates = UpdateQueue(max_bytes=max_bytes)
        self._known: set[Key] = set()
        self._listed: set[Key] | None = None
        # Whether answers joined that `take` did not return, for want of room.
        self._missed = False

    def begin(self) -> None:
        """Take what is added from here on for a list of all that there is, until its end."""
        self._listed = set()

    def end_of_list(self) -> None:
        """Report that those left which were not listed; nothing where no list has begun."""
        if self._listed is not None:
            for key in self._known - self._listed:
                self.removed(*key)
            self._listed = None

    def added(self, update: AnswerUpdate) -> None:
        """Report an answer that is there, once."""
        key = (update.namespace, update.answer_id)
        if self._listed is not None:
            self._listed.add(key)
        if key not in self._known:
            self._known.add(key)
            self._report(update)

    def removed(self, namespace: str, answer_id: str) -> None:
        """Report that an answer is there no more."""
        key = (namespace, answer_id)
        if key in self._known:
            self._known.remove(key)
            self._report(AnswerUpdate.removal(namespace, answer_id))

    def take(self) -> tuple[list[AnswerUpdate], bool]:
        """Return updates since the last call, and whether there was no room for some: another list
        is needed for these."""
        updates = self._updates.take()
        if missed := self._missed:  # else it is left to the thread that may be setting it now
            self._missed = False
        return updates, missed

    def _report(self, update: AnswerUpdate) -> None:
        unreported = self._updates.put(update)
        self._known.difference_update(unreported)
        self._missed = self._missed or bool(unreported)
