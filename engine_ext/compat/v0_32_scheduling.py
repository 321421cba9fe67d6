"""What is patched in vLLM 0.32 to schedule and run steps, on model runner V1."""

from reprise.engine_ext.compat.patches import Feature, Kind, Patch, Role

_CORE, _WORKER = (Role.ENGINE_CORE,), (Role.WORKER,)

_KV_CACHE_MANAGER = "vllm.v1.core.kv_cache_manager:KVCacheManager"
_MP_EXECUTOR = "vllm.v1.executor.multiproc_executor:MultiprocExecutor"
_RUNNER = "vllm.v1.worker.gpu_model_runner:GPUModelRunner"
_SCHEDULER = "vllm.v1.core.sched.scheduler:Scheduler"

_EXECUTE_MODEL = ("self", "scheduler_output", "non_block")

_STEP_EXCHANGE = (
    Patch(
        f"{_MP_EXECUTOR}.execute_model",
        Feature.STEP_EXCHANGE,
        _CORE,
        parameters=_EXECUTE_MODEL,
        fallback="execute_alone",
    ),
    Patch(
        f"{_MP_EXECUTOR}.sample_tokens",
        Feature.STEP_EXCHANGE,
        _CORE,
        parameters=("self", "grammar_output", "non_block"),
        fallback="sample_once",
    ),
    Patch(
        f"{_MP_EXECUTOR}.take_draft_token_ids",
        Feature.STEP_EXCHANGE,
        _CORE,
        parameters=("self",),
    ),
    Patch(
        f"{_MP_EXECUTOR}.collective_rpc",
        Feature.STEP_EXCHANGE,
        _CORE,
        Kind.RELY,
        parameters=(
            "self", "method", "timeout", "args", "kwargs", "non_block", "unique_reply_rank",
            "kv_output_aggregator", "ec_output_aggregator",
        ),
    ),
    Patch(
        "vllm.v1.worker.worker_base:WorkerWrapperBase.execute_model",
        Feature.STEP_EXCHANGE,
        _CORE,
        Kind.RELY,
        parameters=("self", "scheduler_output"),
    ),
    # Not in the worker's part: it is called by a worker that was forked with it.
    Patch(
        "vllm.v1.worker.worker_base:WorkerWrapperBase.reprise_step",
        Feature.STEP_EXCHANGE,
        _CORE,
        Kind.ADD,
        hook="run_step",
    ),
    Patch(
        f"{_RUNNER}.sample_tokens",
        Feature.STEP_EXCHANGE,
        _WORKER,
        parameters=("self", "grammar_output", "..."),
        hook="attach_drafts",
    ),
)  # fmt: skip


def _at_start(target: str, hook: str, *parameters: str) -> Patch:
    return Patch(
        target, Feature.ASYNC_SCHEDULING, _CORE, Kind.WRAP, parameters=parameters, hook=hook
    )


def _in_step(target: str, hook: str, fallback: str | None, *parameters: str) -> Patch:
    """Patch the scheduler or the runner of an engine that schedules asynchronously."""
    return Patch(
        target,
        Feature.ASYNC_SCHEDULING,
        _CORE,
        parameters=parameters,
        hook=hook,
        fallback=fallback,
        per_object=True,
    )


_ASYNC_SCHEDULING = (
    _at_start("vllm.config:VllmConfig.__post_init__", "check_config", "self"),
    Patch(
        "vllm.engine.arg_utils:EngineArgs.create_engine_config",
        Feature.ASYNC_SCHEDULING,
        _CORE,
        Kind.WRAP,
        parameters=("self", "..."),
    ),
    _at_start(
        "vllm.v1.executor.uniproc_executor:UniProcExecutor._init_executor", "init_uniproc", "self"
    ),
    _at_start(f"{_MP_EXECUTOR}._init_executor", "init_multiproc", "self"),
    Patch(
        "vllm.v1.engine.core:EngineCore.step_with_batch_queue",
        Feature.ASYNC_SCHEDULING,
        _CORE,
        parameters=("self",),
        fallback="step_in_sync",
    ),
    Patch(
        "vllm.v1.core.sched.async_scheduler:AsyncScheduler.update_draft_token_ids",
        Feature.ASYNC_SCHEDULING,
        _CORE,
        Kind.RELY,
        parameters=("self", "draft_token_ids"),
    ),
    Patch(
        "vllm.v1.core.sched.async_scheduler:AsyncScheduler.has_requests",
        Feature.ASYNC_SCHEDULING,
        _CORE,
        Kind.RELY,
        parameters=("self",),
    ),
    _in_step(
        f"{_SCHEDULER}._update_after_schedule",
        "update_after_schedule",
        "leave_no_room",
        "self",
        "scheduler_output",
    ),
    _in_step(
        f"{_SCHEDULER}.update_from_output",
        "update_from_output",
        None,
        "self",
        "scheduler_output",
        "model_runner_output",
    ),
    Patch(
        "vllm.distributed.device_communicators.shm_broadcast:SpinCondition.wait",
        Feature.ASYNC_SCHEDULING,
        _CORE,
        Kind.REPLACE,
        parameters=("self", "timeout_ms"),
        hook="poll_sleep",
        per_object=True,
    ),
    # Where engine core and model runner share a process.
    Patch(
        f"{_RUNNER}.sample_tokens",
        Feature.ASYNC_SCHEDULING,
        _WORKER,
        parameters=("self", "grammar_output", "..."),
        fallback="sample_later",
        per_object=True,
    ),
    Patch(
        f"{_RUNNER}.propose_draft_token_ids",
        Feature.ASYNC_SCHEDULING,
        _WORKER,
        parameters=("self", "scheduler_output", "sampled_token_ids", "..."),
        per_object=True,
    ),
    Patch(
        "vllm.v1.outputs:AsyncModelRunnerOutput.get_output",
        Feature.ASYNC_SCHEDULING,
        _WORKER,
        parameters=("self",),
        per_object=True,
    ),
    # Where the model runner is a process of its own.
    Patch(
        f"{_RUNNER}.execute_model",
        Feature.ASYNC_SCHEDULING,
        _WORKER,
        parameters=("self", "scheduler_output", "..."),
        fallback="execute_without_drafts",
    ),
    Patch(
        f"{_RUNNER}.sample_tokens",
        Feature.ASYNC_SCHEDULING,
        _WORKER,
        parameters=("self", "grammar_output", "..."),
        hook="attach_num_drafted",
    ),
)

_ENGINE_CORE = (
    Patch(
        f"{_SCHEDULER}._update_after_schedule",
        Feature.DRAFT_PADDING,
        _CORE,
        parameters=("self", "scheduler_output"),
        hook="update_after_schedule",
        fallback="update_after_schedule",
    ),
    Patch(
        f"{_SCHEDULER}._handle_invalid_blocks",
        Feature.FAILED_LOADS,
        _CORE,
        parameters=("self", "invalid_block_ids", "..."),
        hook="handle_invalid_blocks",
    ),
    Patch(
        f"{_KV_CACHE_MANAGER}.evict_blocks",
        Feature.FAILED_LOADS,
        _CORE,
        Kind.RELY,
        parameters=("self", "block_ids"),
    ),
    Patch(
        f"{_KV_CACHE_MANAGER}.get_block_ids",
        Feature.FAILED_LOADS,
        _CORE,
        Kind.RELY,
        parameters=("self", "request_id"),
    ),
    # Outside of what async scheduling does there: the workers are up by then.
    Patch(
        f"{_MP_EXECUTOR}._init_executor",
        Feature.CPU_PLACEMENT,
        _CORE,
        Kind.WRAP,
        parameters=("self",),
        hook="init_executor",
    ),
)

PATCHES = (*_STEP_EXCHANGE, *_ASYNC_SCHEDULING, *_ENGINE_CORE)
