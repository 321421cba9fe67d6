"""vLLM's scheduler with its KV cache manager and block pool, and a model that emits one token."""

from collections.abc import Sequence
from typing import Any

from vllm import SamplingParams
from vllm.utils.hashing import get_hash_fn_by_name
from vllm.v1.core.kv_cache_utils import get_request_block_hasher, init_none_hash
from vllm.v1.core.sched.async_scheduler import AsyncScheduler
from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.kv_cache_interface import FullAttentionSpec, KVCacheConfig, KVCacheGroupSpec
from vllm.v1.outputs import ModelRunnerOutput
from vllm.v1.request import Request
from vllm.v1.structured_output import StructuredOutputManager

from reprise.engine_ext.core.kv_pins_config import KvPinsConfig
from reprise.engine_ext.core.request_hints import RequestHints, with_hints
from reprise.engine_ext.kv_pins.engine_pins import EnginePins

BLOCK_TOKENS = 16
_hash = get_hash_fn_by_name("sha256")


class RealScheduler:
    """A scheduler of vLLM's, stepped as an engine core steps it.

    Args:
        config: vLLM's.
        num_blocks: of the pool, the null block included.
        pins: settings; None: without pins.
        is_async: vLLM's asynchronous scheduler: a step is scheduled while the one before runs.
    """

    def __init__(
        self,
        config: Any,
        num_blocks: int,
        pins: KvPinsConfig | None,
        *,
        is_async: bool = False,
        max_running: int = 8,
    ) -> None:
        import torch

        init_none_hash(_hash)
        self._hasher = get_request_block_hasher(BLOCK_TOKENS, _hash)
        spec = FullAttentionSpec(
            block_size=BLOCK_TOKENS, num_kv_heads=1, head_size=1, dtype=torch.float32
        )
        kv_config = KVCacheConfig(
            num_blocks=num_blocks,
            kv_cache_tensors=[],
            kv_cache_groups=[KVCacheGroupSpec(["layer"], spec)],
        )
        config.cache_config.num_gpu_blocks = num_blocks
        config.scheduler_config.max_num_seqs = max_running
        self.scheduler = (AsyncScheduler if is_async else Scheduler)(
            vllm_config=config,
            kv_cache_config=kv_config,
            structured_output_manager=StructuredOutputManager(config),
            block_size=BLOCK_TOKENS,
            log_stats=True,
        )
        self.pins = EnginePins(self.scheduler, pins) if pins is not None else None
        self.pool = self.scheduler.kv_cache_manager.block_pool
        self._is_async = is_async
        self._in_flight: list[Any] = []
        self._found: dict[str, int] = {}
        self.finished: list[str] = []
        self.num_preempted = 0

    def add(
        self,
        name: str,
        token_ids: Sequence[int],
        *,
        max_tokens: int = 1,
        salt: str | None = None,
        **hints: Any,
    ) -> Request:
        """Queue a request; `hints` are fields of `RequestHints`."""
        params = SamplingParams(max_tokens=max_tokens, ignore_eos=True)
        params.update_from_generation_config({}, eos_token_id=0)
        request = Request(
            request_id=name,
            prompt_token_ids=list(token_ids),
            sampling_params=with_hints(params, RequestHints(**{"namespace": salt or "", **hints})),
            pooling_params=None,
            cache_salt=salt,
            block_hasher=self._hasher,
        )
        self.scheduler.add_request(request)
        return request

    def step(self) -> Any:
        """Schedule a step, and take in the output of the one before, or of this one."""
        output = self.scheduler.schedule()
        if output.preempted_req_ids:
            self.num_preempted += len(output.preempted_req_ids)
        self._found |= {new.req_id: new.num_computed_tokens for new in output.scheduled_new_reqs}
        self._in_flight.append(output)
        if len(self._in_flight) > self._is_async:
            self._take(self._in_flight.pop(0))
        return output

    def _take(self, step: Any) -> None:
        names = list(step.num_scheduled_tokens)
        sampled = []
        for name in names:
            request = self.scheduler.requests.get(name)
            done = request is not None and request.num_computed_tokens >= request.num_tokens - 1
            sampled.append([7] if done else [])
        outputs = self.scheduler.update_from_output(
            step,
            ModelRunnerOutput(
                req_ids=names,
                req_id_to_index={name: index for index, name in enumerate(names)},
                sampled_token_ids=sampled,
            ),
        )
        for each in outputs.values():
            self.finished += [one.request_id for one in each.outputs if one.finished]

    def run(self, max_steps: int = 10_000) -> None:
        """Step until nothing is left."""
        for _ in range(max_steps):
            if not self.scheduler.has_requests() and not self._in_flight:
                return
            if self.scheduler.get_num_unfinished_requests() or self.scheduler.has_requests():
                self.step()
            else:
                self._take(self._in_flight.pop(0))
        raise AssertionError("requests are left that never end")

    def ask(self, name: str, token_ids: Sequence[int], **given: Any) -> int:
        """Run one request alone; return how many tokens of its prompt were cached."""
        self.add(name, token_ids, **given)
        self.run()
        return self._found[name]

    def check_pool(self) -> None:
        """Every block is in use or in the queue of free blocks, once."""
        free = [block.block_id for block in self.pool.free_block_queue.get_all_free_blocks()]
        used = [block.block_id for block in self.pool.blocks if block.ref_cnt > 0]
        assert len(free) == len(set(free)) == self.pool.get_num_free_blocks()
        assert not set(free) & set(used)
        assert set(free) | set(used) | {0} == set(range(self.pool.num_gpu_blocks))
