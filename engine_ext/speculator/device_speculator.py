"""The speculator of model runner V2: drafts on the device, from what the host has sent there."""

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from vllm.logger import init_logger
from vllm.v1.worker.gpu.spec_decode.speculator import BaseSpeculator

from reprise.engine_ext.compat import model_runner_v2
from reprise.engine_ext.compat.engine_state import keep_tokens_on_device
from reprise.engine_ext.compat.guarded import step_errors
from reprise.engine_ext.compat.hooks import SpeculatorHooks
from reprise.engine_ext.compat.patches import Feature
from reprise.engine_ext.compat.registry import registry
from reprise.engine_ext.core.config import draft_config, engine_config
from reprise.engine_ext.core.error_counter import ErrorCounter
from reprise.engine_ext.core.identity import unsupported_start
from reprise.engine_ext.core.model_key import vocabulary_size_of
from reprise.engine_ext.request.request_info import no_draft_counts
from reprise.engine_ext.speculator.device_requests import DeviceRequests
from reprise.engine_ext.speculator.rank_drafts import RankDrafts
from reprise.engine_ext.speculator.slot_counts import SlotCounts
from reprise.engine_ext.worker import worker_installs
from reprise.engine_ext.worker.worker_retriever import worker_retriever
from reprise.kernels.draft import draft_tokens
from reprise.kernels.draft.state import DraftState

if TYPE_CHECKING:
    from vllm.config import VllmConfig
    from vllm.v1.core.sched.output import SchedulerOutput

    from reprise.retrieval.api.retriever import Retriever

logger = init_logger(__name__)

MAX_NEAR_TOKENS = 8192
"""Of all near answers of a request."""
SWITCH_INTERVAL_S = 0.0005
"""How long a thread may go on in Python while another waits for the interpreter."""


def wake_soon() -> None:
    """Have the thread that launches steps wait for the interpreter no longer than that: whenever it
    has waited for the device, one that learns may be in Python code, which keeps it 5 ms by
    default, as long as a step."""
    sys.setswitchinterval(min(sys.getswitchinterval(), SWITCH_INTERVAL_S))


class DeviceSpeculator(BaseSpeculator, SpeculatorHooks):  # type: ignore[misc]
    """Drafts from near answers, from earlier answers and from the context, all in device memory.

    vLLM builds one per worker and calls `propose` after every step. Nothing in `propose` waits for
    the device, or makes it wait for the host: what requests bring along is sent when their step
    begins (`DeviceRequests`), and what became of drafts is read back when they have ended. Every
    row gets as many tokens as the next step verifies, never negative ones; where nothing predicts
    a token they repeat the last token, with chance 0.
    """

    supports_mm_inputs = False
    draft_logits = None  # a draft is one token with certainty

    def __init__(self, vllm_config: "VllmConfig", device: torch.device, req_states: Any) -> None:
        """Allocate device memory and, on the first rank, start retrieval.

        Raises:
            ValueError: a setting is unknown or out of bounds, or vLLM was started in a way that
                cannot be served (it then refuses to start).
        """
        if (refused := unsupported_start(vllm_config)) is not None:
            raise ValueError(refused)
        config = engine_config(vllm_config)
        if config.engine.runner == "v1":
            raise ValueError("Reprise: engine.runner is v1, and this is model runner V2")
        num_tokens = draft_config(config, vllm_config).num_speculative_tokens
        worker_installs.apply_needed(
            config, {Feature.SPECULATOR: model_runner_v2}, advice="; engine.runner=v1 may do"
        )
        wake_soon()
        num_slots = req_states.max_num_reqs
        self._errors = ErrorCounter()
        self._verification = worker_installs.install_on_v2(config, vllm_config, self._errors)
        self._req_states = req_states
        keep_tokens_on_device(req_states)
        self.enable_adaptive_verification = bool(
            vllm_config.speculative_config.enable_adaptive_verification
        )
        self._drafts = torch.zeros((num_slots, num_tokens), dtype=torch.int64, device=device)
        self.draft_token_confidence_probs = torch.zeros((num_slots, num_tokens), device=device)
        self._vocabulary_size = vocabulary_size_of(vllm_config)
        self._ranks = RankDrafts(self._drafts, self.draft_token_confidence_probs)
        self._state: DraftState | None = None
        self._counts: SlotCounts | None = None
        self._requests: DeviceRequests | None = None
        if self._ranks.is_first and config.features.drafts:
            self._state = DraftState.create(
                num_slots=num_slots,
                max_draft=num_tokens,
                max_near_tokens=MAX_NEAR_TOKENS,
                device=device,
            )
            self._counts = SlotCounts(self._state)
            num_bytes = self._state.num_bytes + req_states.all_token_ids.gpu.nbytes
            self._requests = DeviceRequests(
                vllm_config, config, self._state, self._counts, errors=self._errors
            )
            logger.info(
                "Reprise: drafts on the device, in %.0f MiB of its memory.", num_bytes / (1 << 20)
            )
        self._retriever: Retriever | None = None
        """Where the settings have drafts off; else `DeviceRequests` has it."""
        if self._ranks.is_first and not config.features.drafts:
            # What is to be forgotten in a tier, retrieval forgets.
            self._retriever = worker_retriever(vllm_config, config.retrieval)
        logger.info("Reprise: %s.", registry.summary())

    def init_cudagraph_manager(self, cudagraph_mode: Any) -> None:
        """vLLM calls this of every speculator; drafting is launched as it is."""

    def capture(self) -> None:
        """vLLM calls this of every speculator; there is nothing to capture."""

    @torch.inference_mode()
    def propose(
        self,
        input_batch: Any,
        attn_metadata: Any,  # noqa: ARG002 - vLLM's, as are all of these
        slot_mappings: Any,  # noqa: ARG002
        last_hidden_states: torch.Tensor,  # noqa: ARG002
        aux_hidden_states: Any,  # noqa: ARG002
        num_sampled: torch.Tensor,
        num_rejected: torch.Tensor,
        last_sampled: torch.Tensor,
        next_prefill_tokens: torch.Tensor,  # noqa: ARG002
        temperature: torch.Tensor,  # noqa: ARG002
        seeds: torch.Tensor,  # noqa: ARG002
        dp_sync_state: Any = None,  # noqa: ARG002
        dummy_run: bool = False,
        skip_attn_for_dummy_run: bool = False,  # noqa: ARG002
        mm_inputs: Any = None,  # noqa: ARG002
        is_profile: bool = False,  # noqa: ARG002
        num_speculative_tokens: int | None = None,
    ) -> torch.Tensor:
        """Draft for the next step, with the tokens of this one already in their requests.

        Args:
            num_sampled: [num_reqs] int32; 0: the request is still prefilling.
            num_rejected: [num_reqs] int32, of the slots for drafts that this step had.
            last_sampled: [max_num_reqs, 1] int64, by slot.
            num_speculative_tokens: that the next step has slots for, and that are drafted; 0 on
                any rank or none. None: the engine's own maximum.

        Returns:
            [num_reqs, K] int64, in the order of the batch, with K the engine's own maximum; what
            lies beyond `num_speculative_tokens` vLLM overwrites.
        """
        num_reqs = input_batch.num_reqs
        if dummy_run:
            return self._drafts[:num_reqs]
        wants_drafts = num_speculative_tokens != 0
        drafts = self._drafts[:num_reqs, :num_speculative_tokens]
        chances = self.draft_token_confidence_probs[:num_reqs, :num_speculative_tokens]
        if self._ranks.is_first:
            has_drafted = False
            if self._requests is not None:
                with self._errors.recording("propose"):
                    has_drafted = self._draft(
                        input_batch.idx_mapping, num_sampled, num_rejected, drafts, chances
                    )
            if wants_drafts and not has_drafted:
                drafts.copy_(last_sampled.view(-1)[input_batch.idx_mapping][:, None])
                chances.zero_()
        if wants_drafts:
            self._ranks.share(num_reqs)
        if self.enable_adaptive_verification:
            self._mark_unknown(num_sampled[:num_reqs], drafts.shape[1])
        return self._drafts[:num_reqs]

    def _mark_unknown(
        self,
        num_sampled: torch.Tensor,  # [num_reqs] int32
        length: int,
    ) -> None:
        """Have chances beyond `length`, and of requests that are still prefilling, be 1, as vLLM
        has them for a request that begins: how much it verifies in the step after next is decided
        by these, and 0 would leave out what is only drafted by then."""
        chances = self.draft_token_confidence_probs[: num_sampled.shape[0]]
        chances.masked_fill_((num_sampled == 0)[:, None], 1.0)
        chances[:, length:].fill_(1.0)

    def _draft(
        self,
        idx_mapping: torch.Tensor,  # [num_reqs] int
        num_sampled: torch.Tensor,  # [num_reqs] int32
        num_rejected: torch.Tensor,  # [num_reqs] int32
        drafts: torch.Tensor,  # [num_reqs, num_speculative_tokens] int64: out
        chances: torch.Tensor,  # [num_reqs, num_speculative_tokens] float32: out
    ) -> bool:
        """Count the step, and draft if that many tokens are any; return whether that was done."""
        assert self._state is not None
        assert self._counts is not None
        assert self._requests is not None
        if self._requests.has_failed:
            return False
        num_reqs, length = drafts.shape
        num_sampled = num_sampled[:num_reqs]
        self._counts.add_step(idx_mapping, num_sampled, num_rejected[:num_reqs])
        if not length:
            return False
        draft_tokens(
            self._state,
            all_token_ids=self._req_states.all_token_ids.gpu,
            total_len=self._req_states.total_len.gpu,
            idx_mapping=idx_mapping,
            num_sampled=num_sampled,
            drafts=drafts,
            chances=chances,
            vocab_size=self._vocabulary_size,
        )
        return True

    def end_requests(self, runner: Any, scheduler_output: "SchedulerOutput") -> None:
        """Read back what became of requests whose slots are about to be given up."""
        if self._requests is not None:
            self._requests.end(runner.req_states, scheduler_output)

    def begin_step(self, runner: Any, scheduler_output: "SchedulerOutput") -> None:
        """Send what requests draft from, of those that begin and of those that it came late to."""
        if self._requests is not None:
            self._requests.begin_step(runner.req_states, scheduler_output)

    def report(self) -> dict[str, Any]:
        """Return figures of this worker since it started."""
        address = getattr(self._retriever, "address", None)
        return {
            "live_requests": 0,
            **(self._requests.report() if self._requests is not None else {}),
            **({} if address is None else {"retrieval_address": address}),
            "runner": "V2",
            "verification": self._verification.report(),
            "compat": registry.states(),
            "errors": {**step_errors.counts(), **self._errors.counts()},
        }

    def take_draft_counts(self, counts_ids: Sequence[str]) -> dict[str, Any]:
        """Return, once, the counts under these ids, of requests that are over."""
        if self._retriever is not None:
            return no_draft_counts(counts_ids)
        return self._requests.take_draft_counts(counts_ids) if self._requests is not None else {}

    def flush(self, timeout_s: float) -> bool:
        """Wait until every finished request so far is learned; return whether it is."""
        return self._requests.flush(timeout_s) if self._requests is not None else True
