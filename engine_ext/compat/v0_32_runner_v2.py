"""What is patched in vLLM 0.32 for its model runner V2, and to choose it.

All but the worker's part of `SPECULATOR` is applied by the plugin, in every process, and before a
worker imports its model runner: `init_speculator` is imported by name there.
"""

from reprise.engine_ext.compat.patches import Feature, Kind, Patch, Role

_CORE, _WORKER = (Role.ENGINE_CORE,), (Role.WORKER,)
_CONFIG = "vllm.config:VllmConfig"
_RUNNER = "vllm.v1.worker.gpu.model_runner:GPUModelRunner"
_WORKER_BASE = "vllm.v1.worker.worker_base:WorkerBase"

_INIT_SPECULATOR = ("vllm_config", "device", "req_states")

CHECK_CONFIG = Patch(
    # vLLM 0.32 refuses asynchronous scheduling by the drafter, whatever the model runner.
    f"{_CONFIG}.__post_init__",
    Feature.RUNNER,
    _CORE,
    Kind.WRAP,
    parameters=("self",),
    hook="check_config",
)

_CHOICE = (
    Patch(
        f"{_CONFIG}._get_v2_model_runner_unsupported_features",
        Feature.RUNNER,
        _CORE,
        Kind.WRAP,
        parameters=("self",),
        hook="unsupported_by_v2",
    ),
    CHECK_CONFIG,
    Patch(
        "vllm.engine.arg_utils:EngineArgs.create_engine_config",
        Feature.RUNNER,
        _CORE,
        Kind.WRAP,
        parameters=("self", "..."),
    ),
)

_SLOTS = (
    Patch(
        "vllm.v1.core.sched.async_scheduler:AsyncScheduler._update_after_schedule",
        Feature.DRAFT_SLOTS,
        _CORE,
        parameters=("self", "scheduler_output"),
        hook="limit_slots",
        fallback="leave_no_slots",
    ),
    Patch(
        "vllm.v1.core.sched.scheduler:Scheduler.update_draft_token_ids",
        Feature.DRAFT_SLOTS,
        _CORE,
        parameters=("self", "draft_token_ids"),
        hook="limit_handed_over",
        fallback="limit_handed_over",  # tried twice: requests that promise a sample must keep it
    ),
)

_LENGTHS = (
    Patch(
        f"{_CONFIG}.__post_init__",
        Feature.DRAFT_LENGTHS,
        _CORE,
        Kind.WRAP,
        parameters=("self",),
        hook="plan_lengths",
    ),
    Patch(
        f"{_CONFIG}._maybe_disable_dynamic_sd_for_data_parallel",
        Feature.DRAFT_LENGTHS,
        _CORE,
        Kind.WRAP,
        parameters=("self",),
        hook="keep_lengths",
    ),
    Patch(
        "vllm.v1.core.sched.async_scheduler:AsyncScheduler.__init__",
        Feature.DRAFT_LENGTHS,
        _CORE,
        Kind.WRAP,
        parameters=("self", "..."),
        hook="begin_scheduler",
    ),
    Patch(
        "vllm.v1.core.sched.scheduler:Scheduler.update_from_output",
        Feature.DRAFT_LENGTHS,
        _CORE,
        parameters=("self", "scheduler_output", "model_runner_output"),
        hook="learn_lengths",
    ),
    Patch(
        "vllm.config.speculative:SpeculativeConfig",
        Feature.DRAFT_LENGTHS,
        _CORE,
        Kind.RELY,
        fields=(
            "num_speculative_tokens_per_batch_size",
            "enable_adaptive_verification",
            "...",
        ),
    ),
)

_SPECULATOR = (
    Patch(
        "vllm.v1.worker.gpu.spec_decode:init_speculator",
        Feature.SPECULATOR,
        _CORE,
        Kind.WRAP,
        parameters=_INIT_SPECULATOR,
    ),
    Patch(
        "vllm.v1.worker.gpu.model_runner:init_speculator",
        Feature.SPECULATOR,
        _CORE,
        Kind.WRAP,
        parameters=_INIT_SPECULATOR,
        only_if_loaded=True,
    ),
    Patch(
        f"{_RUNNER}.finish_requests",
        Feature.SPECULATOR,
        _WORKER,
        parameters=("self", "scheduler_output"),
    ),
    Patch(
        f"{_RUNNER}.add_requests",
        Feature.SPECULATOR,
        _WORKER,
        parameters=("self", "scheduler_output"),
    ),
    Patch(
        "vllm.v1.worker.gpu.states:RequestState.add_request",
        Feature.SPECULATOR,
        _WORKER,
        Kind.RELY,
        parameters=(
            "self", "req_id", "prompt_len", "all_token_ids", "num_computed_tokens", "max_tokens",
        ),
    ),
    Patch(
        "vllm.v1.worker.gpu.spec_decode.speculator:BaseSpeculator.propose",
        Feature.SPECULATOR,
        _WORKER,
        Kind.RELY,
        parameters=(
            "self", "input_batch", "attn_metadata", "slot_mappings", "last_hidden_states",
            "aux_hidden_states", "num_sampled", "num_rejected", "last_sampled",
            "next_prefill_tokens", "temperature", "seeds", "dp_sync_state", "dummy_run",
            "skip_attn_for_dummy_run", "mm_inputs", "is_profile", "num_speculative_tokens",
        ),
    ),
    Patch(f"{_WORKER_BASE}.reprise_stats", Feature.SPECULATOR, _WORKER, Kind.ADD),
    Patch(f"{_WORKER_BASE}.reprise_draft_counts", Feature.SPECULATOR, _WORKER, Kind.ADD),
    Patch(f"{_WORKER_BASE}.reprise_flush", Feature.SPECULATOR, _WORKER, Kind.ADD),
)  # fmt: skip

PATCHES = (*_CHOICE, *_SLOTS, *_LENGTHS, *_SPECULATOR)
