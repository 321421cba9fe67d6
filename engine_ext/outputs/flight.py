"""A generation in progress, what comes of it, and who is notified of it."""

from typing import TYPE_CHECKING, NamedTuple, Protocol

from reprise.engine_ext.outputs.replay import Ending

if TYPE_CHECKING:
    from vllm.v1.metrics.stats import PrefillStats


class FinishedFlight(NamedTuple):
    """A generation that was not aborted and did not fail."""

    token_ids: list[int]
    """[n] as the client got them, cut at a stop string."""
    text: str
    """Detokenised; empty where the request wants no text."""
    ending: Ending
    num_followers: int


class FlightWatcher(Protocol):
    """Is notified of the progress of a flight."""

    def on_first_token(self) -> None:
        """Handle the engine's first tokens."""

    def on_finish(self, finished: FinishedFlight) -> None:
        """Handle the whole answer; not called after an abort or an error."""

    def on_end(self) -> None:
        """Handle the end of the flight, whatever ended it; called once, last."""


class Flight:
    """A generation in progress, recorded so that others can follow it."""

    def __init__(
        self,
        key: bytes | None,
        request_id: str,
        *,
        watcher: "FlightWatcher",
        priority: int,
    ) -> None:
        self.key = key
        self.priority = priority
        self.request_id = request_id
        self.watcher = watcher
        self.token_ids: list[int] = []
        self.ending: Ending | None = None
        self.follower_ids: dict[str, None] = {}
        self.prefill_stats: PrefillStats | None = None
        self.leader_is_gone = False
        self.num_followers = 0
