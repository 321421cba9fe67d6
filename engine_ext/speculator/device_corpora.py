"""The corpora on the device: made in the thread that learns, and put in place by steps.

A corpus is a text, 4 bytes a token, and a suffix array over all but its latest answers, 4 more; the
host keeps a copy of both. New answers are appended. Before those that are not sorted are more than
a step can look through, they are merged into a new suffix array, which is written beside the old
one and takes its place between two steps. What does not fit is left out: first the corpora of
namespaces that have no request now, the least recently used first, then a corpus's oldest answers.
"""

import threading
from collections import Counter, OrderedDict, deque
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from reprise.engine_ext.speculator.host_corpus import MAX_ROOM, HostCorpus
from reprise.engine_ext.speculator.upload import Upload, prepare
from reprise.kernels.draft.arena import ArenaWrites, CorpusArena
from reprise.kernels.draft.state import DraftState

_LARGEST_SHARE = 8
"""Of the arena: a text of that share, its suffix array, and a new version of both beside them."""


class _Change(NamedTuple):
    namespace: str
    row: int
    """-1: the namespace has no corpus any more."""
    uploads: list[Upload]


class DeviceCorpora:
    """The corpora of all namespaces that have one on the device.

    `add_answer` and `remove_answer` are one thread's, and take their time; `enter`, `leave` and
    `put_in_place` are that of the steps, and take microseconds. A row of the device's table is
    given to another namespace only after every request that drafted from it has left.
    """

    def __init__(self, state: DraftState) -> None:
        self._state = state
        self._arena = CorpusArena(
            num_corpora=state.corpora.shape[0], arena_tokens=state.arena.shape[0]
        )
        self._max_tokens = state.arena.shape[0] // _LARGEST_SHARE
        self._corpora: OrderedDict[str, HostCorpus] = OrderedDict()
        self._emptied: set[str] = set()  # have a region on the device, with nothing in it
        # Under the lock:
        self._lock = threading.Lock()
        self._made: dict[str, int] = {}  # rows of corpora, some of which are still on their way
        self._rows: dict[str, int] = {}  # of those in place
        self._users: Counter[str] = Counter()
        self._entered: deque[str] = deque(maxlen=state.num_slots)  # since the learner looked
        self._changes: deque[_Change] = deque()

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
        """Write what has been made since the last call; return the rows of namespaces that have
        none or another one now."""
        moved: dict[str, int] = {}
        if not self._changes:
            return moved
        with self._lock:
            while self._changes:
                change = self._changes.popleft()
                for upload in change.uploads:
                    upload.enqueue()
                # What has been given up since must not be entered any more.
                if change.row >= 0 and self._made.get(change.namespace) == change.row:
                    if self._rows.get(change.namespace) != change.row:
                        moved[change.namespace] = change.row
                    self._rows[change.namespace] = change.row
        return moved

    def add_answer(
        self, answer_id: str, response_token_ids: NDArray[np.int32], *, namespace: str = ""
    ) -> None:
        """Index an answer of a namespace; one already indexed under this id stays as it is."""
        tokens = np.asarray(response_token_ids, np.int32)
        self._note_uses()
        corpus = self._corpora.setdefault(namespace, HostCorpus())
        if answer_id in corpus or not 0 < len(tokens) <= self._max_tokens:
            return
        self._corpora.move_to_end(namespace)
        corpus.append(answer_id, tokens)
        writes = None
        is_alike = namespace in self._arena and namespace not in self._emptied
        if is_alike and corpus.num_recent_tokens <= MAX_ROOM:
            writes = self._arena.append(namespace, tokens)
        if writes is not None:
            self._hand_over(namespace, writes)
        else:
            self._replace(namespace, corpus)

    def remove_answer(self, answer_id: str, *, namespace: str = "") -> None:
        """Take an answer out of the index; an unknown id is ignored."""
        corpus = self._corpora.get(namespace)
        if corpus is None or answer_id not in corpus:
            return
        begin, marked = corpus.remove(answer_id)
        self._hand_over(namespace, self._arena.rewrite(namespace, begin, marked))
        if not len(corpus):
            self._give_up(namespace)

    def counts(self) -> dict[str, int]:
        """Return how much there is on the device, in answers, tokens and bytes."""
        corpora = tuple(self._corpora.values())
        return {
            "answers": sum(map(len, corpora)),
            "cached_tokens": sum(corpus.num_tokens for corpus in corpora),
            "bytes": self._state.num_bytes,
        }

    def _replace(self, namespace: str, corpus: HostCorpus) -> None:
        """Put a new version of a corpus beside the old one, with all of it sorted."""
        limit = self._max_tokens
        while True:
            corpus.remove_oldest(limit)
            corpus.sort()
            writes = self._arena.put(
                namespace,
                corpus.text,
                corpus.order,
                recent_begin=corpus.recent_begin,
                room=corpus.room,
            )
            if writes is not None:
                self._emptied.discard(namespace)
                self._hand_over(namespace, writes)
                return
            if not self._give_up_an_idle_one(namespace, len(corpus.text)):
                limit //= 2
            if limit == 0:
                self._forget(namespace)
                return

    def _forget(self, namespace: str) -> None:
        """Have nothing drafted from a corpus that has no room any more: what is on the device and
        what is known of it here are not the same."""
        if self._give_up(namespace):
            return
        self._corpora[namespace] = HostCorpus()
        self._emptied.add(namespace)
        row = self._arena.row(namespace)
        if row >= 0:
            empty = np.zeros(self._state.corpora.shape[1], np.int32)
            self._hand_over(namespace, ArenaWrites([], row, empty))

    def _hand_over(self, namespace: str, writes: ArenaWrites) -> None:
        """Have the next step write these."""
        arena, corpora = self._state.arena, self._state.corpora
        uploads = [prepare(arena[at : at + len(part)], part) for at, part in writes.parts]
        uploads.append(prepare(corpora[writes.row], writes.fields))
        with self._lock:
            self._made[namespace] = writes.row
            self._changes.append(_Change(namespace, writes.row, uploads))

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
            self._made.pop(namespace, None)
            self._rows.pop(namespace, None)
        del self._corpora[namespace]
        self._emptied.discard(namespace)
        if namespace in self._arena:
            writes = self._arena.drop(namespace)
            row = prepare(self._state.corpora[writes.row], writes.fields)
            with self._lock:
                self._changes.append(_Change(namespace, -1, [row]))
        return True

    def _note_uses(self) -> None:
        """Order namespaces by their last use."""
        with self._lock:
            entered = tuple(self._entered)
            self._entered.clear()
        for namespace in entered:
            if namespace in self._corpora:
                self._corpora.move_to_end(namespace)
