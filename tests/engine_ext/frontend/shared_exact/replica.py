"""An API server process as tests of exact hits from the tier need it."""

import asyncio
import time
from collections.abc import Callable
from typing import Any

from vllm.v1.engine.output_processor import OutputProcessor

from reprise.engine_ext.core.config import load_config
from reprise.engine_ext.frontend.front_end import FrontEnd
from reprise.engine_ext.frontend.shared_exact import SharedExact
from reprise.engine_ext.request.request_policy import RequestPolicy
from reprise.retrieval import RetrievalConfig
from reprise.retrieval.in_process.local_retriever import LocalRetriever
from reprise.retrieval.search.embedding import Embedder
from reprise.tests.engine_ext.front_ends import Client, vllm_config, wait_longer


def decode(token_ids: Any) -> str:
    return " ".join(f"word{token_id}" for token_id in token_ids)


class Replica(Client):
    """A front end with retrieval of its own, and the engine behind it."""

    def __init__(self, url: str, **settings: Any) -> None:
        retrieval = {"url": url, "embedding_model": "lexical", "clauses": False, "poll_s": 0.05}
        retrieval |= settings.pop("retrieval", {})
        serving = {"exact_hits_from_others": "trusted", **settings}
        self.retriever = LocalRetriever(
            RetrievalConfig(**retrieval), embedder=Embedder("lexical"), decode=decode
        )
        assert self.retriever.wait_until_warm(60)
        front_end = FrontEnd(
            vllm_config(),
            load_config({"serving": serving, "retrieval": retrieval}),
            OutputProcessor(None, log_stats=False),
            retriever=self.retriever,
        )
        front_end.open_others(loaded_since_s=time.time() + 60, submit=None)
        if "exact_budget_s" not in settings:
            wait_longer(front_end)
        super().__init__(front_end, namespace="acme")
        if self.shared is not None:
            assert self.shared.wait(60)

    @property
    def shared(self) -> SharedExact | None:
        return self.front_end.exact.shared

    @property
    def outcomes(self) -> dict[str, int]:
        assert self.shared is not None
        return {name: count for name, count in self.shared.outcomes.items() if count}

    def ask(self, **asked: Any) -> tuple[str, list[int]]:
        """Also wait until the answer is stored."""
        given = super().ask(**asked)
        assert self.retriever.flush(60)
        return given

    def look_up(self, request: Any, queue: Any, policy: RequestPolicy) -> bool:
        """Beyond this process first."""
        asyncio.run(self.front_end.fetch(request, policy))
        return super().look_up(request, queue, policy)

    def close(self) -> None:
        self.front_end.close()
        self.retriever.close()


MakeReplica = Callable[..., Replica]
