"""Servers of ours on a tier, what they are asked, and what they count."""

import asyncio
import contextlib
import time
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from reprise.eval.benchmarks.serving.load import SPECULATIVE, Server, Timing, ask_all
from reprise.eval.demo_data.demo_model import DEMO_DTYPE

FINGERPRINT_WITHIN_S = 60.0
WITHOUT_DRAFTS = {"x-reprise-drafts": "off"}


class Begun(NamedTuple):
    """A server that has been started, and may not answer yet."""

    server: Server
    trusts: bool

    def ready(self) -> Server:
        """Wait until it answers, searches, and shares if it is to."""
        self.server.wait()
        self.server.wait_for_retrieval()
        if self.trusts:
            _wait(
                lambda: shared_counts(self.server)["fingerprint"] is not None, FINGERPRINT_WITHIN_S
            )
        return self.server


@contextlib.contextmanager
def serving(model: str, url: str, **serving: str) -> Iterator[Begun]:
    """Start a server of ours on this tier; `serving`: its settings."""
    environment = {f"REPRISE_SERVING__{name.upper()}": value for name, value in serving.items()}
    environment |= {"REPRISE_RETRIEVAL__URL": url}
    server = Server(model, SPECULATIVE["reprise"], dtype=DEMO_DTYPE, environment=environment)
    try:
        yield Begun(server, serving.get("exact_hits_from_others") == "trusted")
    finally:
        server.stop()


def ask_alone(
    server: Server, questions: Sequence[str], max_tokens: int, headers: dict[str, str] | None = None
) -> list[Timing]:
    """Ask one after the other."""
    timings, _ = asyncio.run(
        ask_all(server, questions, concurrency=1, max_tokens=max_tokens, headers=headers or {})
    )
    return timings


def num_hits(server: Server) -> int:
    """Return how many requests were hits of any kind."""
    counts = server.hit_counts()
    return sum(int(counts.get(name, 0)) for name in ("exact", "verified", "followed"))


def shared_counts(server: Server) -> dict[str, Any]:
    """Return what the server counts of answers that others generated.

    Raises:
        RuntimeError: it shares none.
    """
    shared: dict[str, Any] | None = server.stats()["front_end"]["shared"]
    if shared is None:
        raise RuntimeError("this server shares no exact hits with others")
    return shared


def _wait(condition: Any, within_s: float) -> None:
    """Wait until a condition holds.

    Raises:
        RuntimeError: It did not in time.
    """
    deadline_s = time.monotonic() + within_s
    while not condition():
        if time.monotonic() > deadline_s:
            raise RuntimeError(f"waited in vain for {within_s:.0f} s")
        time.sleep(0.2)
