"""EnhancedAsyncLLM: vLLM's engine client, with the cache in front of the engine."""

import asyncio
import inspect
import os
import shutil
import sys
import tempfile
import weakref
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from contextvars import ContextVar
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vllm import envs
from vllm.logger import init_logger
from vllm.sampling_params import SamplingParams
from vllm.utils.async_utils import cancel_task_threadsafe
from vllm.v1.engine import EngineCoreRequest
from vllm.v1.engine.async_llm import AsyncLLM

from reprise.engine_ext import http_front_door
from reprise.engine_ext.exact_hits import is_greedy
from reprise.engine_ext.front_end import FrontEnd, RequestPlan
from reprise.engine_ext.http_exchange import current_exchange
from reprise.engine_ext.plugin import PROPOSER_PATH, uses_our_proposer
from reprise.engine_ext.request_control import namespace_of, parse_control, without_control
from reprise.engine_ext.request_hints import RequestHints, with_hints
from reprise.engine_ext.vllm_expectations import unexpected_in_vllm
from reprise.engine_ext.worker_retriever import ADDRESS_VARIABLE, start_retrieval

if TYPE_CHECKING:
    from vllm.config import VllmConfig
    from vllm.engine.arg_utils import AsyncEngineArgs
    from vllm.v1.engine.output_processor import RequestOutputCollector
    from vllm.v1.engine.parallel_sampling import ParentRequest

    from reprise.engine_ext.config import RepriseConfig
    from reprise.retrieval.process_retriever import ProcessRetriever

logger = init_logger(__name__)

_WORKERS_ANSWER_WITHIN_S = 5.0

# From `add_request`, which knows what the client asked, to `_add_request`, which knows the
# processed request. Both run in one task.
_current_plan: ContextVar[RequestPlan | None] = ContextVar("reprise_plan", default=None)


class EnhancedAsyncLLM(AsyncLLM):  # type: ignore[misc]
    """An `AsyncLLM` that answers repeated requests from the cache, token for token.

    It stands wherever an `AsyncLLM` stands; see `front_end` for what it adds.
    """

    front_end: FrontEnd | None = None
    _report_task: asyncio.Task[None] | None = None
    _retrieval_socket: Path | None = None
    _retriever: "ProcessRetriever | None" = None

    def __init__(self, vllm_config: "VllmConfig", *args: Any, **kwargs: Any) -> None:
        """As `AsyncLLM`; starts retrieval for its workers and itself.

        Raises:
            ValueError: a setting is unknown or out of bounds.
        """
        self._num_api_servers = int(kwargs.get("client_count", 1))
        self._is_first_api_server = int(kwargs.get("client_index", 0)) == 0
        starts_workers = not kwargs.get("client_addresses")
        with _announced_retrieval(wanted=starts_workers) as self._retrieval_socket:
            super().__init__(vllm_config, *args, **kwargs)
            self._attach_front_end()
        if self.front_end is not None:
            http_front_door.install()

    def _run_output_handler(self) -> None:
        # Called from `__init__` where a loop runs already: outputs must not be handled before
        # they are watched.
        self._attach_front_end()
        super()._run_output_handler()
        if self.front_end is not None and self._report_task is None:
            interval_s = self.front_end.config.serving.stats_interval_s
            self._report_task = asyncio.create_task(_keep_reporting(weakref.ref(self), interval_s))

    def _attach_front_end(self) -> None:
        if self.front_end is not None:
            return
        # Imported late: the settings of drafting draw in numba, and a worker forked from a
        # process with llvmlite in it does not start (vLLM's scan for kernels trips over it).
        from reprise.engine_ext.config import engine_config

        config = engine_config(self.vllm_config)
        if self._retrieval_socket is not None and self._retriever is None:
            self._retriever = start_retrieval(self.vllm_config, config.retrieval)
            self._retrieval_socket.symlink_to(self._retriever.address)
        if not config.serving.enabled:
            return
        self.front_end = FrontEnd(
            self.vllm_config,
            config,
            self.output_processor,
            num_api_servers=self._num_api_servers,
            retriever=self._retriever,
        )

    async def add_request(
        self, request_id: str, prompt: Any, params: Any, *args: Any, **kwargs: Any
    ) -> "RequestOutputCollector":
        """As `AsyncLLM.add_request`; settles namespace and control before anything else.

        Raises:
            VLLMValidationError: the client asks of the cache what makes no sense.
        """
        if isinstance(prompt, EngineCoreRequest):
            params = prompt.sampling_params or params
        if self.front_end is None or not isinstance(params, SamplingParams):
            return await super().add_request(request_id, prompt, params, *args, **kwargs)
        plan = _plan(self.front_end.config, prompt, params)
        params = _with_plan(params, plan)
        prompt = _behind_wall(prompt, plan.namespace, params)
        if params.n > 1 and plan.exchange is not None:
            plan.exchange.add_outcome(lambda: "miss")
        token = _current_plan.set(plan)
        try:
            return await super().add_request(request_id, prompt, params, *args, **kwargs)
        finally:
            _current_plan.reset(token)

    async def _add_request(
        self,
        request: EngineCoreRequest,
        prompt: str | None,
        parent_req: "ParentRequest | None",
        index: int,
        queue: "RequestOutputCollector",
    ) -> None:
        plan = _current_plan.get()
        front_end = self.front_end
        if front_end is None or plan is None or parent_req is not None:
            await super()._add_request(request, prompt, parent_req, index, queue)
            return
        if front_end.answer(request, prompt, queue, plan):
            if self.log_requests:
                logger.info("Answered request %s from the cache.", request.request_id)
            return
        try:
            await super()._add_request(request, prompt, parent_req, index, queue)
        except Exception as error:
            front_end.not_admitted(request.request_id, error)
            raise

    def shutdown(self, timeout: float | None = None) -> None:
        """As `AsyncLLM.shutdown`."""
        if self.front_end is not None:
            self.front_end.close()
        if self._retriever is not None:
            self._retriever.close()
        if self._retrieval_socket is not None:
            shutil.rmtree(self._retrieval_socket.parent, ignore_errors=True)
        if self._report_task is not None:
            cancel_task_threadsafe(self._report_task)
        super().shutdown(timeout=timeout)

    async def report(self) -> None:
        """Bring the metrics up to date; only the first API server process asks the workers."""
        if self.front_end is None:
            return
        workers = None
        if self._is_first_api_server:
            workers = await self.collective_rpc("reprise_stats", timeout=_WORKERS_ANSWER_WITHIN_S)
        self.front_end.report(workers)

    async def get_stats(self) -> dict[str, Any]:
        """Figures of this front end and of the engine's workers, plain values."""
        front_end = self.front_end.stats() if self.front_end is not None else {}
        workers = await self.collective_rpc("reprise_stats", timeout=_WORKERS_ANSWER_WITHIN_S)
        return {"front_end": front_end, "workers": workers}

    async def health_check(self) -> dict[str, Any]:
        """Whether the engine and the cache work.

        Returns:
            `state` (`ready`, `degraded` or `dead`), and the errors swallowed so far by place.
        """
        errors = self.front_end.errors.counts() if self.front_end is not None else {}
        if self.errored:
            return {"state": "dead", "errors": errors}
        return {"state": "degraded" if errors else "ready", "errors": errors}

    # Whatever may change the weights ends what was answered before. Refusing too much costs
    # hits; one stale answer would be a wrong one.

    async def collective_rpc(self, method: Any, *args: Any, **kwargs: Any) -> Any:
        """As `AsyncLLM.collective_rpc`."""
        try:
            return await super().collective_rpc(method, *args, **kwargs)
        finally:
            if not (isinstance(method, str) and method.startswith("reprise_")):
                self._model_changed()

    async def update_weight_version(self, new_version: str) -> None:
        """As `AsyncLLM.update_weight_version`."""
        self._model_changed()
        await super().update_weight_version(new_version)

    async def sleep(self, *args: Any, **kwargs: Any) -> None:
        """As `AsyncLLM.sleep`."""
        self._model_changed()
        await super().sleep(*args, **kwargs)

    async def wake_up(self, *args: Any, **kwargs: Any) -> Any:
        """As `AsyncLLM.wake_up`."""
        self._model_changed()
        return await super().wake_up(*args, **kwargs)

    async def add_lora(self, lora_request: Any) -> bool:
        """As `AsyncLLM.add_lora`."""
        if self.front_end is not None:
            self.front_end.adapter_changed(lora_request.lora_int_id)
        return bool(await super().add_lora(lora_request))

    async def remove_lora(self, lora_id: int) -> bool:
        """As `AsyncLLM.remove_lora`."""
        if self.front_end is not None:
            self.front_end.adapter_changed(lora_id)
        return bool(await super().remove_lora(lora_id))

    def _model_changed(self) -> None:
        if self.front_end is not None:
            self.front_end.model_changed()


@contextmanager
def _announced_retrieval(*, wanted: bool) -> Iterator[Path | None]:
    """Tell the workers that start meanwhile where retrieval will be found.

    The socket there is linked once the workers run: what retrieval needs in this process, threads
    and numba among it, must not be forked into them. Their clients try until it is there.
    """
    if not wanted:
        yield None
        return
    folder = Path(tempfile.mkdtemp(prefix="reprise-"))
    before = os.environ.get(ADDRESS_VARIABLE)
    os.environ[ADDRESS_VARIABLE] = str(folder / "retrieval")
    try:
        yield folder / "retrieval"
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    finally:
        if before is None:
            del os.environ[ADDRESS_VARIABLE]
        else:
            os.environ[ADDRESS_VARIABLE] = before


async def _keep_reporting(engine_ref: "weakref.ref[EnhancedAsyncLLM]", interval_s: float) -> None:
    """Report while there is traffic, and once after. Holds no engine that nobody else holds."""
    reported = -1
    while True:
        await asyncio.sleep(interval_s)
        engine = engine_ref()
        if engine is None or engine.front_end is None or engine.errored:
            return
        progress = engine.front_end.progress()
        if progress == reported and not engine.get_num_unfinished_requests():
            continue
        try:
            await engine.report()
        except Exception as error:
            engine.front_end.errors.swallow("report", error)
        reported = progress
        del engine


@asynccontextmanager
async def create_enhanced_system(engine_args: "AsyncEngineArgs") -> AsyncIterator[EnhancedAsyncLLM]:
    """Build, start and in the end clean up an engine with everything in front of it.

    Engine args without a speculative config get ours, with up to 16 tokens a draft.

    Raises:
        ValueError: a setting is unknown or out of bounds.

    Example:
        >>> async def main():
        ...     async with create_enhanced_system(AsyncEngineArgs(model="...")) as engine:
        ...         async for output in engine.generate("Hello", SamplingParams(), "1"):
        ...             print(output.outputs[0].text)
    """
    if engine_args.speculative_config is None:
        engine_args.speculative_config = {"model": PROPOSER_PATH, "num_speculative_tokens": 16}
    engine = EnhancedAsyncLLM.from_engine_args(engine_args)
    try:
        yield engine
    finally:
        engine.shutdown()


def install() -> bool:
    """Have `AsyncLLM.from_vllm_config` and `from_engine_args` build an `EnhancedAsyncLLM` where
    the speculative config names our proposer. Idempotent.

    The class itself stays in place: whoever imported it by name gets the same, and `isinstance`
    holds. An engine with any other speculative config is built as ever.

    Returns:
        False, with one line in the log, where this vLLM is not as expected.

    Raises:
        SystemExit: the Rust front end is asked for together with our proposer. It would carry no
            namespaces to the workers: one tenant's answers would draft for another.
    """
    if getattr(AsyncLLM, "_reprise_installed", False):
        return True
    if envs.VLLM_USE_RUST_FRONTEND and any(PROPOSER_PATH in word for word in sys.argv):
        raise SystemExit(
            "Reprise needs vLLM's Python front end, and VLLM_USE_RUST_FRONTEND asks for the other "
            "one: unset it."
        )
    problem = unexpected_in_vllm()
    if problem is not None:
        logger.warning(
            "Reprise: %s; there will be no exact hits, control per request or metrics, drafts "
            "only.",
            problem,
        )
        return False
    for name in ("from_vllm_config", "from_engine_args"):
        _gate(name)
    AsyncLLM._reprise_installed = True
    return True


def _gate(name: str) -> None:
    original = getattr(AsyncLLM, name).__func__
    signature = inspect.signature(original)

    @wraps(original)
    def build(cls: type[AsyncLLM], *args: Any, **kwargs: Any) -> AsyncLLM:
        config = list(signature.bind(cls, *args, **kwargs).arguments.values())[1]
        if cls is AsyncLLM and _wants_enhancement(config):
            cls = EnhancedAsyncLLM
        engine: AsyncLLM = original(cls, *args, **kwargs)
        return engine

    setattr(AsyncLLM, name, classmethod(build))


def _wants_enhancement(config: Any) -> bool:
    """Whether engine args or a vLLM config name our proposer."""
    speculative = getattr(config, "speculative_config", None)
    if isinstance(speculative, Mapping):
        return speculative.get("model") == PROPOSER_PATH
    return speculative is not None and uses_our_proposer(config)


def _plan(config: "RepriseConfig", prompt: Any, params: SamplingParams) -> RequestPlan:
    exchange = current_exchange.get()
    control = parse_control(exchange.headers if exchange else {}, params.extra_args)
    if isinstance(prompt, Mapping):
        cache_salt = prompt.get("cache_salt")
    else:
        cache_salt = getattr(prompt, "cache_salt", None)
    namespace = namespace_of(
        operators=config.namespace,
        clients=control.namespace,
        client_namespaces=config.serving.client_namespaces,
        api_key=exchange.api_key if exchange else None,
        cache_salt=cache_salt,
    )
    return RequestPlan(control, namespace, exchange)


def _with_plan(params: SamplingParams, plan: RequestPlan) -> SamplingParams:
    """A copy of `params` that tells the worker what it has to know, and nothing else of ours."""
    control = plan.control
    # Verifying drafts draws random numbers: a seeded sample would no longer be the one that the
    # seed gives without drafts.
    keeps_its_draws = is_greedy(params) or params.seed is None
    hinted = with_hints(
        params,
        RequestHints(
            namespace=plan.namespace,
            drafts=control.drafts and keeps_its_draws,
            max_draft=control.max_draft,
            store=control.store,
        ),
    )
    hinted.extra_args = without_control(hinted.extra_args)
    hinted.skip_clone = True
    return hinted


def _behind_wall(prompt: Any, namespace: str, params: SamplingParams) -> Any:
    """The prompt with the namespace as its cache salt, where it has none: the time of a prefill
    must not tell what another namespace has asked."""
    if isinstance(prompt, EngineCoreRequest):
        prompt.sampling_params = params
        prompt.cache_salt = prompt.cache_salt or namespace or None
    elif isinstance(prompt, dict) and namespace and not prompt.get("cache_salt"):
        return {**prompt, "cache_salt": namespace}
    return prompt
