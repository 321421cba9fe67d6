"""Figures of a front end: what it reports to Prometheus, and as plain values."""

from collections import Counter
from typing import TYPE_CHECKING, Any

from reprise.engine_ext.compat.registry import registry
from reprise.engine_ext.core.error_counter import ErrorCounter, ReportedErrors
from reprise.engine_ext.frontend.exact_answers import ExactAnswers
from reprise.engine_ext.frontend.hit_rates import hit_rates
from reprise.engine_ext.frontend.near_answers import NearAnswers
from reprise.engine_ext.frontend.no_metrics import NoMetrics
from reprise.engine_ext.frontend.serving_metrics import ServingMetrics
from reprise.engine_ext.outputs.single_flight import SingleFlight
from reprise.retrieval.api.tier_url import tier_behind

if TYPE_CHECKING:
    from vllm.config import VllmConfig
    from vllm.v1.engine.output_processor import OutputProcessor

    from reprise.engine_ext.core.config import RepriseConfig


class FrontEndFigures:
    """Reads what the parts of one front end have counted. Event loop only."""

    def __init__(
        self,
        config: "RepriseConfig",
        processor: "OutputProcessor",
        *,
        exact: ExactAnswers,
        flights: SingleFlight,
        near_answers: NearAnswers | None,
        metrics: ServingMetrics,
        counts: Counter[str],
        refusals: Counter[str],
        errors: ErrorCounter,
    ) -> None:
        self._config, self._processor = config, processor
        self._exact, self._flights, self._near_answers = exact, flights, near_answers
        self._metrics, self._counts = metrics, counts
        self._refusals, self._errors = refusals, errors
        self.worker_errors = ReportedErrors()

    def progress(self) -> tuple[Any, ...]:
        """Return what changes with every request, every answer that comes or goes, and what
        works."""
        retrieval = None if self._near_answers is None else self._near_answers.stats()
        return (self._counts.total(), retrieval)

    def report(self, workers: list[Any] | None, pins: list[Any] | None = None) -> None:
        """Bring the metrics up to date; `workers` are their reports, and `pins` those of the
        engine cores on pinned prefixes, in one process only."""
        self._metrics.active(len(self._processor.request_states))
        self._metrics.memory(self._exact.memory.stats())
        if self._exact.shared is not None:
            self._metrics.shared(self._exact.shared.stats())
        self._metrics.errors("front_end", self._errors.counts())
        self._metrics.features("front_end", registry.states())
        if self._near_answers is not None:
            self._metrics.retrieval(self._near_answers.stats())
        if workers is not None:
            self._metrics.workers(workers)
            self.worker_errors.take(workers)
        if pins is not None:
            self._metrics.pins(pins)

    def stats(self) -> dict[str, Any]:
        """Return plain figures since this process started."""
        return {
            "counts": dict(self._counts),
            "hit_rates": hit_rates(
                self._counts,
                shared=self._exact.shared,
                near=self._near_answers,
                url=self._config.retrieval.url,
            ),
            "active_requests": len(self._processor.request_states),
            "refusals": dict(self._refusals),
            "memory": self._exact.memory.stats()._asdict(),
            "memory_bytes": self._memory_bytes(),
            "shared": self._exact.shared.stats() if self._exact.shared is not None else None,
            "flights": len(self._flights),
            "errors": self._errors.counts(),
            "near_answers": None if (near := self._near_answers) is None else dict(near.kinds),
            "retrieval": self._near_answers.stats() if self._near_answers is not None else None,
        }

    def _memory_bytes(self) -> dict[str, int]:
        """Return the bytes that this process and its retrieval process hold, by store."""
        stores = {"exact": self._exact.memory.stats().bytes}
        if self._near_answers is not None:
            stores["retrieval"] = self._near_answers.stats()["bytes"]
            stores["shared_results"] = self._config.retrieval.shared_bytes
        return stores


def metrics_of(
    vllm_config: "VllmConfig", config: "RepriseConfig", *, searches_here: bool
) -> ServingMetrics:
    """Return what Prometheus is told by a front end; `searches_here`: it has a retriever."""
    if not config.features.monitoring:
        return NoMetrics()
    tier = tier_behind(config.retrieval.url) if searches_here else None
    return ServingMetrics(vllm_config.model_config.served_model_name, tier=tier)
