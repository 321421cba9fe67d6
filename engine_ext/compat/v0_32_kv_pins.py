"""What is patched in vLLM 0.32 to pin prefixes, whatever the scheduler and the model runner."""

from reprise.engine_ext.compat.patches import Feature, Kind, Patch, Role

_API, _CORE = (Role.API_SERVER,), (Role.ENGINE_CORE,)
_CORE_CLASS = "vllm.v1.engine.core:EngineCore"
_POOL = "vllm.v1.core.block_pool:BlockPool"
_QUEUE = "vllm.v1.core.kv_cache_utils:FreeKVCacheBlockQueue"
_RENDERER = "vllm.renderers.base:BaseRenderer"
_SCHEDULER = "vllm.v1.core.sched.scheduler:Scheduler"

_RENDER_CHAT = ("self", "conversations", "chat_params", "tok_params", "...")


def _relies(target: str, *parameters: str) -> Patch:
    return Patch(target, Feature.KV_PINS, _CORE, Kind.RELY, parameters=parameters)


_PINS = (
    Patch(
        f"{_SCHEDULER}.__init__",
        Feature.KV_PINS,
        _CORE,
        Kind.WRAP,
        parameters=("self", "vllm_config", "..."),
        hook="begin_scheduler",
    ),
    Patch(
        f"{_SCHEDULER}.schedule",
        Feature.KV_PINS,
        _CORE,
        parameters=("self", "..."),
        per_object=True,
    ),
    Patch(
        f"{_POOL}.get_new_blocks",
        Feature.KV_PINS,
        _CORE,
        parameters=("self", "num_blocks"),
        per_object=True,
    ),
    Patch(
        f"{_POOL}.reset_prefix_cache",
        Feature.KV_PINS,
        _CORE,
        parameters=("self",),
        per_object=True,
    ),
    Patch(
        f"{_CORE_CLASS}.collective_rpc",
        Feature.KV_PINS,
        _CORE,
        Kind.WRAP,
        parameters=("self", "method", "..."),
    ),
    Patch(f"{_CORE_CLASS}.reprise_kv_pins", Feature.KV_PINS, _CORE, Kind.ADD),
    _relies(f"{_QUEUE}.remove", "self", "block"),
    _relies(f"{_QUEUE}.append", "self", "block"),
    _relies(f"{_POOL}.evict_blocks", "self", "block_ids"),
    _relies("vllm.v1.core.kv_cache_utils:make_block_hash_with_group_id", "block_hash", "group_id"),
    _relies("vllm.v1.core.kv_cache_utils:get_block_hash", "key"),
    _relies("vllm.v1.core.block_pool:BlockHashToBlockMap.get_one_block", "self", "key"),
    Patch(
        "vllm.v1.core.sched.output:NewRequestData",
        Feature.KV_PINS,
        _CORE,
        Kind.RELY,
        fields=("req_id", "num_computed_tokens", "..."),
    ),
)

_SYSTEM_PREFIX = (
    Patch(
        f"{_RENDERER}.render_chat",
        Feature.SYSTEM_PREFIX,
        _API,
        Kind.WRAP,
        parameters=_RENDER_CHAT,
    ),
    Patch(
        f"{_RENDERER}.render_chat_async",
        Feature.SYSTEM_PREFIX,
        _API,
        Kind.WRAP,
        parameters=_RENDER_CHAT,
    ),
)

PATCHES = (*_PINS, *_SYSTEM_PREFIX)
