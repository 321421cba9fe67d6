"""The corpora on the device: made in the thread that learns, and put in place by steps.

A corpus is a text, 4 bytes a token, and a suffix array over all but its latest answers, 4 more; the
host keeps a copy of both. New answers are appended. Before those that are not sorted are more than
a step can look through, they are merged into a new suffix array, which is written beside the old
one and takes its place between two steps. What does not fit is left out: first the corpora of
namespaces that have no request now, the least recently used first, then a corpus's oldest answers.
"""

import threading
from collections import Counter, OrderedDict, deque

import numpy as np
from numpy.typing import NDArray

from reprise.engine_ext.speculator.host_corpus import MAX_ROOM, HostCorpus
from reprise.engine_ext.speculator.waiting_writes import WaitingWrites
from reprise.kernels.draft.arena import CorpusArena
from reprise.kernels.draft.state import DraftState

_LARGEST_SHARE = 8
"""Of the arena: a text of that share, its suffix array, and a new version of both beside them."""


class DeviceCorpora:
    """The corpora of all namespaces that have one on the device.

    `add_answer` and `remove_answer` are one thread's, which asks nothing of the device, and take
    their time; should one fail, the namespace's corpus is forgotten and begins anew. `enter`,
    `leave` and `put_in_place` are that of the steps, and take microseconds. A row of the device's
    table is given to another namespace only after every request that drafted from it has left.
    """

    def __init__(self, state: DraftState) -> None:
        self._state = state
        self._max_tokens = state.arena.shape[0] // _LARGEST_SHARE
        self._corpora: OrderedDict[str, HostCorpus] = OrderedDict()
        # Under the lock:
        self._lock = threading.Lock()
        self._arena = CorpusArena(
            num_corpora=state.corpora.shape[0], arena_tokens=state.arena.shape[0]
        )
        self._waiting = WaitingWrites(state)
        self._rows: dict[str, int] = {}  # of corpora in place
        self._users: Counter[str] = Counter()
        self._entered: deque[str] = deque(maxlen=state.num_slots)  # since the learner looked

    @property
    def has_changes(self) -> bool:
        """Whether something is still to be put in place."""
        return len(self._waiting) > 0

    def enter(self, namespace: str) -> int:
        """Count a live request of the namespace; return the row that it drafts from, -1: none."""
        with self._lock:
            self._users[namespace] += 1
            self._entered.append(namespace)
            return self._rows.get(namespace, -1)

    def leave(self, namespace: str) -> None:
        """The request that entered has left its slot."""
        with self._lock:
            self._users[namespace] -= 1
            if self._users[namespace] <= 0:
                del self._users[namespace]

    def put_in_place(self) -> dict[str, int]:
        """Write some of what has been made and is not there yet; return the rows of namespaces that
        have none or another one now."""
        moved: dict[str, int] = {}
        if not self.has_changes:
            return moved
        with self._lock:
            for namespace, row in self._waiting.send():
                self._arena.settle(namespace)
                if self._rows.get(namespace) != row:
                    moved[namespace] = row
                self._rows[namespace] = row
        return moved

    def add_answer(
        self, answer_id: str, response_token_ids: NDArray[np.int32], *, namespace: str = ""
    ) -> None:
        """Index an answer of a namespace; one already indexed under this id stays as it is."""
        try:
            self._add(answer_id, np.asarray(response_token_ids, np.int32), namespace)
        except Exception:
            self._forget(namespace)
            raise

    def remove_answer(self, answer_id: str, *, namespace: str = "") -> None:
        """Take an answer out of the index; an unknown id is ignored."""
        corpus = self._corpora.get(namespace)
        if corpus is None:
            return
        if answer_id not in corpus:
            # It may have been left out of a version that is on its way, and be in the one in place.
            with self._lock:
                self._waiting.hide(namespace)
            return
        try:
            self._remove(answer_id, corpus, namespace)
        except Exception:
            self._forget(namespace)
            raise

    def counts(self) -> dict[str, int]:
        """Return how much there is on the device, in answers, tokens and bytes."""
        corpora = tuple(self._corpora.values())
        return {
            "answers": sum(map(len, corpora)),
            "cached_tokens": sum(corpus.num_tokens for corpus in corpora),
            "bytes": self._state.num_bytes,
        }

    def _add(self, answer_id: str, tokens: NDArray[np.int32], namespace: str) -> None:
        self._note_uses()
        corpus = self._corpora.setdefault(namespace, HostCorpus())
        if answer_id in corpus or not 0 < len(tokens) <= self._max_tokens:
            return
        self._corpora.move_to_end(namespace)
        corpus.append(answer_id, tokens)
        if corpus.num_recent_tokens > MAX_ROOM or not self._append(namespace, tokens):
            self._replace(namespace, corpus)

    def _append(self, namespace: str, tokens: NDArray[np.int32]) -> bool:
        """Put an answer behind the others, if there is room."""
        with self._lock:
            writes = self._arena.append(namespace, tokens) if namespace in self._arena else None
            if writes is not None:
                self._waiting.extend(namespace, writes)
        return writes is not None

    def _remove(self, answer_id: str, corpus: HostCorpus, namespace: str) -> None:
        begin, marked = corpus.remove(answer_id)
        if not len(corpus) and self._give_up(namespace):
            return
        marked = marked.copy()
        with self._lock:
            self._waiting.overwrite(namespace, self._arena.rewrite(namespace, begin, marked))

    def _replace(self, namespace: str, corpus: HostCorpus) -> None:
        """Put a new version of a corpus beside the old one, with all of it sorted."""
        limit = self._max_tokens
        while True:
            corpus.remove_oldest(limit)
            corpus.sort()
            text = corpus.text.copy()  # what is removed is marked where it is
            with self._lock:
                writes = self._arena.put(
                    namespace,
                    text,
                    corpus.order,
                    recent_begin=corpus.recent_begin,
                    room=corpus.room,
                )
                if writes is not None:
                    self._waiting.replace(namespace, writes)
                    return
            if not self._give_up_an_idle_one(namespace, len(corpus.text)):
                limit //= 2
            if limit == 0:
                self._forget(namespace)
                return

    def _forget(self, namespace: str) -> None:
        """Have nothing drafted from a corpus that has no room any more, or has failed: what is on
        the device and what is known of it here may not be the same."""
        if self._give_up(namespace):
            return
        self._corpora[namespace] = HostCorpus()
        with self._lock:
            has_row = namespace in self._arena
            self._waiting.drop(namespace, self._arena.empty(namespace) if has_row else -1)

    def _give_up_an_idle_one(self, needed: str, num_tokens: int) -> bool:
        """Give up one of the largest corpora that no request drafts from."""
        sizes = {name: len(corpus.text).bit_length() for name, corpus in self._corpora.items()}
        del sizes[needed]
        for name in sorted(sizes, key=lambda name: -sizes[name]):  # stable: by use within a size
            if sizes[name] < num_tokens.bit_length():
                break
            if self._give_up(name):
                return True
        return False

    def _give_up(self, namespace: str) -> bool:
        """Give a corpus up, unless a request drafts from it."""
        with self._lock:
            if self._users[namespace]:
                return False
            self._rows.pop(namespace, None)
            has_row = namespace in self._arena
            self._waiting.drop(namespace, self._arena.drop(namespace).row if has_row else -1)
        self._corpora.pop(namespace, None)
        return True

    def _note_uses(self) -> None:
        """Order namespaces by their last use."""
        with self._lock:
            entered = tuple(self._entered)
            self._entered.clear()
        for namespace in entered:
            if namespace in self._corpora:
                self._corpora.move_to_end(namespace)
