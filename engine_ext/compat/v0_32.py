"""The table of vLLM 0.32. Rows of scheduling, pins and model runner V2 have files of their own."""

from reprise.engine_ext.compat import (
    v0_32_kv_pins,
    v0_32_runner_v2,
    v0_32_scheduling,
    v0_32_verification_v2,
)
from reprise.engine_ext.compat.patches import Feature, Kind, Patch, Role, Table

_API, _WORKER = (Role.API_SERVER,), (Role.WORKER,)

_ASYNC_LLM = "vllm.v1.engine.async_llm:AsyncLLM"
_BUILD_APP = "vllm.entrypoints.launchers.api_server.entry:build_app"
_PROCESSOR = "vllm.v1.engine.output_processor:OutputProcessor"
_RUNNER = "vllm.v1.worker.gpu_model_runner:GPUModelRunner"
_SCHEDULER = "vllm.v1.core.sched.scheduler:Scheduler"
_WORKER_BASE = "vllm.v1.worker.worker_base:WorkerBase"

_PROCESS_OUTPUTS = (
    "self", "engine_core_outputs", "engine_core_timestamp", "iteration_stats", "weight_version",
)  # fmt: skip
_ADD_TO_PROCESSOR = ("self", "request", "prompt", "parent_req", "request_index", "queue")

_TENANTS = (
    Patch(
        "vllm.v1.engine.input_processor:InputProcessor.process_inputs",
        Feature.TENANTS,
        _API,
        Kind.WRAP,
        parameters=("self", "request_id", "prompt", "params", "..."),
    ),
    Patch(
        "vllm.v1.engine.llm_engine:LLMEngine.__init__",
        Feature.TENANTS,
        _API,
        Kind.WRAP,
        parameters=("self", "vllm_config", "..."),
        hook="init_llm_engine",
    ),
    Patch(
        "vllm.v1.engine:EngineCoreRequest",
        Feature.TENANTS,
        _API,
        Kind.RELY,
        fields=("cache_salt", "sampling_params", "..."),
    ),
)

_REQUESTS = (
    Patch(
        f"{_RUNNER}._update_states",
        Feature.REQUESTS,
        _WORKER,
        parameters=("self", "scheduler_output", "..."),
        hook="before_step",
        fallback="before_step",  # tried twice: the ends of requests are reported once
    ),
    Patch(
        f"{_RUNNER}.propose_draft_token_ids",
        Feature.REQUESTS,
        _WORKER,
        parameters=("self", "scheduler_output", "sampled_token_ids", "..."),
        hook="before_propose",
    ),
    Patch(
        f"{_RUNNER}._input_fits_in_drafter",
        Feature.REQUESTS,
        _WORKER,
        hook="input_fits_in_drafter",
        optional=True,
    ),
    Patch(f"{_SCHEDULER}.add_request", Feature.REQUESTS, _WORKER, parameters=("self", "request")),
    Patch(
        "vllm.v1.worker.cpu_worker:CPUWorker.compile_or_warm_up_model",
        Feature.REQUESTS,
        _WORKER,
        parameters=("self",),
        hook="before_serving",
        only_on="cpu",
    ),
    Patch(f"{_WORKER_BASE}.reprise_stats", Feature.REQUESTS, _WORKER, Kind.ADD),
    Patch(f"{_WORKER_BASE}.reprise_draft_counts", Feature.REQUESTS, _WORKER, Kind.ADD),
    Patch(f"{_WORKER_BASE}.reprise_flush", Feature.REQUESTS, _WORKER, Kind.ADD),
)


def _relies(target: str, *parameters: str) -> Patch:
    """Expect a method that `EnhancedAsyncLLM` and what it is made of call or override."""
    return Patch(target, Feature.FRONT_END, _API, Kind.RELY, parameters=(*parameters, "..."))


_FRONT_END = (
    Patch(
        f"{_ASYNC_LLM}.from_vllm_config",
        Feature.FRONT_END,
        _API,
        Kind.WRAP,
        parameters=("cls", "vllm_config", "..."),
        hook="build_engine",
    ),
    Patch(
        f"{_ASYNC_LLM}.from_engine_args",
        Feature.FRONT_END,
        _API,
        Kind.WRAP,
        parameters=("cls", "engine_args", "..."),
        hook="build_engine",
    ),
    _relies(f"{_ASYNC_LLM}.__init__", "self", "vllm_config", "executor_class", "log_stats"),
    _relies(f"{_ASYNC_LLM}.add_request", "self", "request_id", "prompt", "params"),
    _relies(f"{_ASYNC_LLM}._add_request", "self", "request", "prompt", "parent_req", "index"),
    _relies(f"{_ASYNC_LLM}.check_admission", "self", "n", "request_id"),
    _relies(f"{_ASYNC_LLM}.generate", "self", "prompt", "sampling_params", "request_id"),
    _relies(f"{_ASYNC_LLM}._run_output_handler", "self"),
    _relies(
        "vllm.v1.engine.core_client:AsyncMPClient.call_utility_all_async", "self", "method", "args"
    ),
    _relies(f"{_PROCESSOR}.process_outputs", *_PROCESS_OUTPUTS),
    _relies(f"{_PROCESSOR}.abort_requests", "self", "request_ids", "internal"),
    _relies(f"{_PROCESSOR}.add_request", *_ADD_TO_PROCESSOR),
    # The app is built after the engine client, by whichever of them is the server.
    Patch(_BUILD_APP, Feature.HTTP, _API, Kind.WRAP, only_if_loaded=True),
    Patch("__main__:build_app", Feature.HTTP, _API, Kind.WRAP, only_if_loaded=True),
)


def _on_processor(name: str, feature: Feature, parameters: tuple[str, ...]) -> Patch:
    return Patch(
        f"{_PROCESSOR}.{name}", feature, _API, Kind.REPLACE, parameters=parameters, per_object=True
    )


_OUTPUTS = (
    _on_processor("process_outputs", Feature.SINGLE_FLIGHT, _PROCESS_OUTPUTS),
    _on_processor("abort_requests", Feature.SINGLE_FLIGHT, ("self", "request_ids", "internal")),
    _on_processor("get_num_unfinished_requests", Feature.SINGLE_FLIGHT, ("self",)),
    _on_processor("get_num_queued_tokens", Feature.SINGLE_FLIGHT, ("self",)),
    _on_processor("process_outputs", Feature.VERIFIED_REPLAY, _PROCESS_OUTPUTS),
    _on_processor("abort_requests", Feature.VERIFIED_REPLAY, ("self", "request_ids", "internal")),
    _on_processor("add_request", Feature.VERIFIED_REPLAY, _ADD_TO_PROCESSOR),
    _on_processor("process_outputs", Feature.ONE_TOKEN_OUTPUTS, _PROCESS_OUTPUTS),
    _on_processor("add_request", Feature.ONE_TOKEN_OUTPUTS, _ADD_TO_PROCESSOR),
    Patch("vllm.parser:ParserManager.get_parser", Feature.ONE_TOKEN_OUTPUTS, _API, Kind.WRAP),
)

_UNDRAFTED_SETTINGS = (
    Patch(
        "vllm.sampling_params:SamplingParams._validate_spec_decode",
        Feature.UNDRAFTED_SETTINGS,
        _API,
        Kind.WRAP,
        parameters=("self", "speculative_config"),
        hook="validate_spec_decode",
    ),
    Patch(
        "vllm.v1.worker.gpu_model_runner:build_logitsprocs",
        Feature.UNDRAFTED_SETTINGS,
        _WORKER,
        Kind.WRAP,
    ),
    # The same in both processes: neither half is applied without the other.
    Patch(
        "vllm.v1.sample.logits_processor:build_logitsprocs",
        Feature.UNDRAFTED_SETTINGS,
        _API + _WORKER,
        Kind.RELY,
        parameters=(
            "vllm_config", "device", "is_pin_memory", "is_pooling_model", "custom_logitsprocs",
        ),
    ),
    Patch(
        "vllm.v1.sample.logits_processor:BUILTIN_LOGITS_PROCESSORS",
        Feature.UNDRAFTED_SETTINGS,
        _API + _WORKER,
        Kind.RELY,
        fields=(
            "MinTokensLogitsProcessor", "LogitBiasLogitsProcessor", "MinPLogitsProcessor",
        ),
    ),
    *(
        Patch(
            f"vllm.v1.sample.thinking_budget_state:ThinkingBudgetStateHolder.{method}",
            Feature.UNDRAFTED_SETTINGS,
            _WORKER,
            Kind.RELY,
            parameters=("self", *parameters),
        )
        for method, parameters in {
            "__init__": (
                "reasoning_config", "max_num_seqs", "num_spec_tokens", "device", "is_pin_memory",
            ),
            "update_state": ("output_token_ids", "spec_token_ids", "repeat_indices"),
            "apply_to_logits": ("logits", "predict_bonus_token", "spec_token_ids"),
        }.items()
    ),
)  # fmt: skip

_WORKER_STEP = (
    Patch(
        "vllm.v1.sample.rejection_sampler:RejectionSampler.__init__",
        Feature.VERIFICATION,
        _WORKER,
        Kind.WRAP,
        parameters=("self", "sampler", "spec_config", "..."),
        hook="init_sampler",
    ),
    Patch(
        "vllm.v1.sample.rejection_sampler:RejectionSampler.forward",
        Feature.VERIFICATION,
        _WORKER,
        parameters=("self", "metadata", "draft_probs", "logits", "sampling_metadata"),
        fallback="forward_of_vllm",
    ),
    Patch(
        # What a request can change about sampling: a field unknown here might be ignored.
        "vllm.v1.sample.metadata:SamplingMetadata",
        Feature.VERIFICATION,
        _WORKER,
        Kind.RELY,
        fields=(
            "temperature", "all_greedy", "all_random", "top_p", "top_k", "generators",
            "max_num_logprobs", "no_penalties", "prompt_token_ids", "frequency_penalties",
            "presence_penalties", "repetition_penalties", "output_token_ids",
            "allowed_token_ids_mask", "bad_words_token_ids", "logitsprocs", "logprob_token_ids",
            "spec_token_ids", "thinking_budget_state_holder",
        ),
    ),
    Patch(
        f"{_RUNNER}._calc_spec_decode_metadata",
        Feature.DRAFT_METADATA,
        _WORKER,
        parameters=("self", "num_draft_tokens", "cu_num_scheduled_tokens"),
        hook="calc_spec_decode_metadata",
    ),
    Patch(
        "vllm.v1.spec_decode.metadata:SpecDecodeMetadata",
        Feature.DRAFT_METADATA,
        _WORKER,
        Kind.RELY,
        fields=(
            "draft_token_ids", "num_draft_tokens", "cu_num_draft_tokens", "cu_num_sampled_tokens",
            "target_logits_indices", "bonus_logits_indices", "logits_indices",
        ),
    ),
    Patch(
        f"{_RUNNER}._check_and_update_cudagraph_mode",
        Feature.FULL_GRAPHS,
        _WORKER,
        parameters=("self", "attention_backends", "kv_cache_groups", "is_profiling"),
        hook="check_cudagraph_mode",
    ),
    Patch(
        "vllm.v1.sample.rejection_sampler:expand_batch_to_tokens",
        Feature.SAMPLING_FIX,
        _WORKER,
        Kind.REPLACE,
        parameters=("x", "cu_num_tokens", "num_tokens", "replace_from", "replace_to"),
    ),
    Patch(
        f"{_RUNNER}.sample_tokens",
        Feature.UNFINISHED_PROMPTS,
        _WORKER,
        parameters=("self", "grammar_output", "..."),
        hook="sample_without_unfinished",
        fallback="sample_without_unfinished",  # tried twice: without it the engine ends
        only_on="cpu",
    ),
    Patch(
        "vllm.v1.attention.backends.cpu_attn:_get_attn_isa",
        Feature.BATCH_INVARIANCE,
        _WORKER,
        Kind.WRAP,
        parameters=("dtype", "block_size", "head_size", "..."),
        hook="attention_isa",
        only_on="cpu",
    ),
    Patch(
        "vllm.model_executor.layers.utils:check_cpu_sgl_kernel",
        Feature.BATCH_INVARIANCE,
        _WORKER,
        Kind.REPLACE,
        parameters=("n", "k", "dtype"),
        hook="uses_tile_kernel",
        only_on="cpu",
    ),
    Patch(
        f"{_RUNNER}._determine_batch_execution_and_padding",
        Feature.LONE_TOKENS,
        _WORKER,
        parameters=("self", "num_tokens", "num_reqs", "..."),
        hook="batch_of_several",
        only_on="cpu",
    ),
    Patch(
        "vllm.model_executor.layers.utils:dispatch_cpu_unquantized_gemm",
        Feature.LONE_TOKENS,
        _WORKER,
        Kind.WRAP,
        parameters=("layer", "remove_weight"),
        hook="dispatch_linear_layer",
        only_on="cpu",
    ),
    Patch(
        "vllm.v1.sample.sampler:batched_count_greater_than",
        Feature.PROMPT_RANKS,
        _WORKER,
        Kind.REPLACE,
        parameters=("x", "values"),
        only_on="cpu",
    ),
)  # fmt: skip

TABLE = Table(
    "0.32",
    (
        *_TENANTS,
        *_REQUESTS,
        *_FRONT_END,
        *_OUTPUTS,
        *_UNDRAFTED_SETTINGS,
        *v0_32_scheduling.PATCHES,
        *_WORKER_STEP,
        *v0_32_runner_v2.PATCHES,
        *v0_32_verification_v2.PATCHES,
        *v0_32_kv_pins.PATCHES,
    ),
)
