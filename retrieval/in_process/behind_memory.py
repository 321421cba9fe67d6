"""What lies behind a retriever's memory: a tier, and an index of it for searches beyond memory."""

from __future__ import annotations

import threading
import time
from typing import Any

from reprise.retrieval.api.answer import Answer
from reprise.retrieval.api.config import RetrievalConfig
from reprise.retrieval.api.invalidation import Forgotten
from reprise.retrieval.api.search_url import parse_search
from reprise.retrieval.in_process.open_tier import open_tier
from reprise.retrieval.in_process.retriever_memory import RetrieverMemory
from reprise.retrieval.in_process.second_level import SecondLevel
from reprise.retrieval.remote.milvus_index import MilvusIndex
from reprise.retrieval.remote.remote_search import TIMEOUT_S, RemoteSearch
from reprise.retrieval.remote.remote_writer import RemoteWriter
from reprise.retrieval.search.embedding import Embedder
from reprise.retrieval.tiers.sync.circuit_breaker import State
from reprise.retrieval.tiers.sync.memory_before import (
    MemoryBefore,
    OnAdded,
    OnForgotten,
    WaitForRoom,
)
from reprise.retrieval.tiers.sync.tier_sync import TierSync


class BehindMemory:
    """The tier that a configuration names, and what searches it; there may be neither.

    Args:
        config: Settings.
        memory: Before them.
        changed: The retriever's lock.
        tokenizer_key: Of the answers that may be drafted from.
        on_added: Called with answers found in the tier.
        on_forgotten: Called with what others removed or had forgotten.
        wait_for_room: See `MemoryBefore`.

    Raises:
        ValueError: The configured URL names no tier.
    """

    def __init__(
        self,
        config: RetrievalConfig,
        *,
        memory: RetrieverMemory,
        changed: threading.Condition,
        tokenizer_key: str,
        on_added: OnAdded,
        on_forgotten: OnForgotten,
        wait_for_room: WaitForRoom,
    ) -> None:
        self._config, self._memory, self._changed = config, memory, changed
        self._tokenizer_key, self._on_forgotten = tokenizer_key, on_forgotten
        self._search_url = parse_search(config.search)
        self.second: SecondLevel | None = None
        """Set by `open_search`."""
        self.tiers: TierSync | None = None
        tier = open_tier(
            config.url,
            ttl_s=config.ttl_s,
            stream_length=config.stream_length,
            max_bytes=config.tier_bytes,
            max_namespaces=config.max_namespaces,
        )
        self._writer: RemoteWriter | None = None
        if self._search_url is not None:
            self._writer = RemoteWriter(
                max_rows=config.queue_length,
                ttl_s=config.ttl_s,
                ahead_s=lambda: 0.0 if tier is None else tier.ahead_s,
            )
        if tier is not None:
            self.tiers = TierSync(
                tier,
                MemoryBefore(
                    on_added=on_added,
                    on_forgotten=self._forgotten,
                    on_removed=memory.remove,
                    held=memory.held,
                    # What does not fit is searched where it is.
                    has_room=None if self._writer is None else memory.has_room,
                    wait_for_room=wait_for_room,
                    take_orphans=memory.tier.take_orphans,
                    on_orphans=memory.admit_orphans,
                ),
                queue_length=config.queue_length,
                queue_bytes=config.queue_bytes,
                poll_s=config.poll_s,
                mirror=self._writer,
            )

    def open_search(self, embedder: Embedder) -> None:
        """Begin to search beyond memory, if that is configured; it connects in its own thread."""
        url, writer, tiers = self._search_url, self._writer, self.tiers
        if url is None or writer is None or tiers is None:
            return
        index = MilvusIndex(
            url,
            tokenizer_key=self._tokenizer_key,
            embedder=embedder.identity,
            dim=embedder.dim,
            timeout_s=TIMEOUT_S,
        )
        writer.start(index, embedder=embedder.identity, dim=embedder.dim)
        remote = RemoteSearch(
            index,
            writer,
            budget_s=self._config.search_budget_ms / 1000,
            holds=self._memory.tier.knows,
            find=tiers.find,
        )
        self.second = SecondLevel(
            remote,
            memory=self._memory,
            changed=self._changed,
            count=self._config.near_answers,
            tokenizer_key=self._tokenizer_key,
            is_being_forgotten=tiers.is_being_forgotten,
        )

    def is_being_forgotten(self, answer: Answer) -> bool:
        """Return whether the tier has yet to forget an answer, which it hands out until then."""
        return self.tiers is not None and self.tiers.is_being_forgotten(answer)

    @property
    def has_found(self) -> bool:
        """Whether a search beyond memory has come to something."""
        return self.second is not None and self.second.has_found

    @property
    def is_asking(self) -> bool:
        """Whether something is searched beyond memory."""
        return self.second is not None and self.second.num_waiting > 0

    def pause_s(self, longest_s: float) -> float:
        """Return how long until a search beyond memory is not waited for any longer."""
        return longest_s if self.second is None else self.second.pause_s(longest_s)

    @property
    def tier_name(self) -> str:
        """sqlite, redis or nothing."""
        return "" if self.tiers is None else self.tiers.tier_name

    @property
    def breakers(self) -> dict[str, State]:
        """The state of each circuit breaker."""
        tier = {} if self.tiers is None else self.tiers.breakers
        return tier if self.second is None else {**tier, **self.second.breakers}

    @property
    def troubles(self) -> list[str]:
        """What does not work now."""
        parts = [part.degraded for part in (self.tiers, self.second) if part is not None]
        return [trouble for trouble in parts if trouble]

    @property
    def num_errors(self) -> int:
        """Errors of ours in searching beyond memory."""
        searching = 0 if self.second is None else self.second.remote.errors.num
        return searching + (0 if self._writer is None else self._writer.errors.num)

    def figures(self) -> dict[str, Any]:
        """Return counts by their names in `RetrievalStats`."""
        figures: dict[str, Any] = {}
        if self.tiers is not None:
            figures["unreadable"] = self.tiers.unreadable
            figures["unwritten"] = self.tiers.unwritten
            figures["uncredited"] = self.tiers.uncredited
        return figures if self.second is None else {**figures, **self.second.figures()}

    def drain(self, timeout_s: float) -> bool:
        """Wait until all is written; False if it took longer."""
        deadline_s = time.monotonic() + timeout_s
        done = self.tiers is None or self.tiers.drain(timeout_s)
        if self._writer is not None:
            # What the tier gets, the index gets after it.
            done = self._writer.drain(max(0.0, deadline_s - time.monotonic())) and done
        return done

    def close(self) -> None:
        """Write what waits to be written, and stop."""
        if self.tiers is not None:
            self.tiers.close()
        if self._writer is not None:
            self._writer.close()
        if self.second is not None:
            self.second.remote.close()

    def _forgotten(self, forgotten: Forgotten) -> None:
        """Have what others removed forgotten; what of it is on its way to the index, too."""
        self._on_forgotten(forgotten)
        if self._writer is not None and forgotten.removed:
            self._writer.others_removed(forgotten.removed)
