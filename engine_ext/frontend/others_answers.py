"""Answers of other servers and of before a restart: looked for, trusted, verified, waited for."""

from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING

from vllm.logger import init_logger

from reprise.engine_ext.core.error_counter import ErrorCounter
from reprise.engine_ext.frontend.exact_answers import ExactAnswers
from reprise.engine_ext.frontend.serving_metrics import ServingMetrics
from reprise.engine_ext.frontend.shared_exact import SharedExact
from reprise.engine_ext.frontend.verified_answers import VerifiedAnswers
from reprise.engine_ext.outputs.replay import Replayer
from reprise.engine_ext.outputs.single_flight import SingleFlight
from reprise.engine_ext.request.request_policy import RequestPolicy
from reprise.engine_ext.request.verifiable import unverifiable_engine
from reprise.retrieval.api.answer import Answer

if TYPE_CHECKING:
    from vllm.config import VllmConfig
    from vllm.v1.engine import EngineCoreRequest
    from vllm.v1.engine.output_processor import OutputProcessor

    from reprise.engine_ext.core.config import RepriseConfig
    from reprise.retrieval.api.retriever import Retriever

logger = init_logger(__name__)
Submit = Callable[["EngineCoreRequest"], Awaitable[None]]


class OthersAnswers:
    """What one front end does with a tier's answers for exact hits. Nothing here raises.

    Args:
        exact: Takes in what is trusted.
        flights: Where requests that the engine generates for are recorded.
        metrics: Count verified answers.
        counts: As of the front end.
        errors: Counts what goes wrong here.
    """

    def __init__(
        self,
        *,
        exact: ExactAnswers,
        flights: SingleFlight,
        metrics: ServingMetrics,
        counts: Counter[str],
        errors: ErrorCounter,
    ) -> None:
        self._exact, self._flights, self._metrics = exact, flights, metrics
        self._counts, self._errors = counts, errors
        self.verified: VerifiedAnswers | None = None
        """None: nothing is verified."""

    def open(
        self,
        vllm_config: "VllmConfig",
        config: "RepriseConfig",
        *,
        processor: "OutputProcessor",
        replayer: Replayer,
        submit: Submit | None,
        loaded_since_s: float,
        retrieval: "Callable[[], Sequence[Retriever]]",
    ) -> None:
        """Use the configured tier, as the settings have it.

        Args:
            vllm_config: Of the engine.
            config: Our settings.
            processor: Of the engine's client.
            replayer: Ends requests that have failed.
            submit: Gives the engine a request that the processor knows; None: nothing is verified.
            loaded_since_s: The time of day before the engine began to load its weights.
            retrieval: Returns the retrieval processes that answers may be written through.
        """
        whose = config.serving.exact_hits_from_others
        if whose == "off" or not self._exact.may_share:
            return
        if not config.retrieval.has_tier:
            if whose == "trusted":
                logger.warning(
                    "Reprise: exact hits stay in this process: retrieval.url names no tier."
                )
            return
        if submit is not None and (reason := unverifiable_engine(vllm_config)) is not None:
            logger.info("Reprise: no stored answer is verified by this engine: %s.", reason)
            submit = None
        if submit is not None:
            self.verified = VerifiedAnswers(
                vllm_config,
                processor,
                submit=submit,
                flights=self._flights,
                replayer=replayer,
                exact=self._exact,
                metrics=self._metrics,
                counts=self._counts,
                errors=self._errors,
            )
        elif whose == "verified":
            return
        self._exact.shared = SharedExact(
            vllm_config,
            config,
            adapters=self._exact.adapters,
            loaded_since_s=loaded_since_s,
            retrieval=retrieval,
            errors=self._errors,
            verifies=self.verified is not None,
        )

    def may_answer(self, request: "EngineCoreRequest", policy: RequestPolicy) -> bool:
        """Return whether `fetch` asks the tier for the answer to a request."""
        if not self._looks_up(policy):
            return False
        try:
            return self._exact.missing(request, policy) is not None
        except Exception as error:
            self._errors.record("exact_fetch", error)
            return False

    async def fetch(self, request: "EngineCoreRequest", policy: RequestPolicy) -> Answer | None:
        """Look for the answer to `request`, for as long as the budget allows.

        What is found and trusted is in memory then.

        Returns:
            What is not trusted, for `check`; None: nothing.
        """
        if not self._looks_up(policy):
            return None
        try:
            return await self._exact.fetch(request, policy, is_led=self._flights.is_led)
        except Exception as error:
            self._errors.record("exact_fetch", error)
            return None

    def _looks_up(self, policy: RequestPolicy) -> bool:
        return self._exact.shared is not None and policy.shares and policy.control.look_up

    def check(
        self, request: "EngineCoreRequest", stored: Answer | None
    ) -> "EngineCoreRequest | None":
        """Return what the engine is to be given in place of a request that it has to generate, in
        order to verify a stored answer; None: the request itself."""
        if stored is None or self.verified is None:
            return None
        try:
            return self.verified.begin(request, stored)
        except Exception as error:
            self._errors.record("verify", error)
            self.verified.forget(request.request_id)
            return None

    def end_lease(self, request_id: str) -> None:
        """Let other servers generate what a request was to be answered with."""
        try:
            if self._exact.shared is not None:
                self._exact.shared.ended(request_id)
        except Exception as error:
            self._errors.record("end_lease", error)

    def forget(self, request_id: str) -> None:
        """Drop the check of a request that the engine was not given after all."""
        if self.verified is not None:
            self.verified.forget(request_id)

    def close(self) -> None:
        """Stop look-ups, and give the engine nothing more."""
        if self.verified is not None:
            self.verified.close()
        if self._exact.shared is not None:
            self._exact.shared.close()
