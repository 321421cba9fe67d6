"""EnhancedAsyncLLM: vLLM's engine client, with the cache in front of the engine."""

import asyncio
import os
import shutil
import weakref
from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Sequence
from contextlib import (
    AbstractContextManager,
    aclosing,
    asynccontextmanager,
    contextmanager,
    nullcontext,
)
from contextvars import ContextVar
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vllm.exceptions import VLLMClientError
from vllm.logger import init_logger
from vllm.sampling_params import SamplingParams
from vllm.usage.usage_lib import UsageContext
from vllm.utils.async_utils import cancel_task_threadsafe
from vllm.v1.engine import EngineCoreRequest
from vllm.v1.engine.async_llm import AsyncLLM

from reprise.engine_ext.compat.patches import Feature, Role
from reprise.engine_ext.compat.registry import registry
from reprise.engine_ext.core.identity import PROPOSER_PATH
from reprise.engine_ext.core.request_hints import RequestHints, with_hints
from reprise.engine_ext.frontend.draft_counts_fetcher import DraftCountsFetcher
from reprise.engine_ext.frontend.exact_forgetting import ExactForgetting
from reprise.engine_ext.frontend.front_end import FrontEnd
from reprise.engine_ext.frontend.health import health_report
from reprise.engine_ext.request import server_middleware
from reprise.engine_ext.request.http_exchange import current_exchange
from reprise.engine_ext.request.request_control import wants_info
from reprise.engine_ext.request.request_info import InfoCollector
from reprise.engine_ext.request.request_plan import (
    RequestPlan,
    alone,
    behind_wall,
    isolate,
    settle,
    with_plan,
)
from reprise.engine_ext.request.tenants import tell_of_private_requests
from reprise.engine_ext.worker.worker_retriever import ADDRESS_VARIABLE, start_retrieval
from reprise.retrieval.host.owned_folder import make_folder

if TYPE_CHECKING:
    from vllm.config import VllmConfig
    from vllm.engine.arg_utils import AsyncEngineArgs
    from vllm.outputs import RequestOutput
    from vllm.v1.engine.output_processor import RequestOutputCollector
    from vllm.v1.engine.parallel_sampling import ParentRequest

    from reprise.engine_ext.core.config import RepriseConfig
    from reprise.retrieval.service.process_retriever import ProcessRetriever

logger = init_logger(__name__)

# From `add_request`, which knows what the client asked, to `_add_request`, which knows the
# processed request. Both run in one task.
_current_plan: ContextVar[RequestPlan | None] = ContextVar("reprise_plan", default=None)
# From `generate`, which hands outputs on, to `add_request`.
_current_info: ContextVar[InfoCollector | None] = ContextVar("reprise_info", default=None)


class EnhancedAsyncLLM(AsyncLLM):  # type: ignore[misc]
    """An `AsyncLLM` that answers repeated requests from the cache, token for token.

    It stands wherever an `AsyncLLM` stands; see `front_end` for what it adds.
    """

    front_end: FrontEnd | None = None
    exact_forgetting: ExactForgetting | None = None
    is_sole_tenant = False
    """Whether what comes past an HTTP server is one tenant's: of the program that says so. What
    comes without a tenant otherwise is private."""
    _config: "RepriseConfig | None" = None
    _draft_counts: DraftCountsFetcher | None = None
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
        if self._is_first_api_server and not starts_workers:
            logger.info(
                "Reprise: the workers of these %d API servers search by themselves; replies say "
                "miss where they would say semantic.",
                self._num_api_servers,
            )
        with _announced_retrieval(wanted=starts_workers) as self._retrieval_socket:
            super().__init__(vllm_config, *args, **kwargs)
            self._attach_front_end()
        usage = kwargs.get("usage_context")
        # Whoever runs a batch has given all of its requests.
        self.is_sole_tenant = usage is UsageContext.OPENAI_BATCH_RUNNER
        # Also where the rest of the front end is off: tenants have drafts of their own even then.
        registry.apply(Feature.HTTP, server_middleware, role=Role.API_SERVER)
        has_middleware = registry.num_patched(Feature.HTTP) > 0
        if not has_middleware and usage is UsageContext.OPENAI_API_SERVER:
            self._tell_of_private_requests()

    def _tell_of_private_requests(self) -> None:
        if self._config is not None and self._config.namespace is None:
            tell_of_private_requests("this server's HTTP front end, if it has one, was not found")

    def _run_output_handler(self) -> None:
        # Called from `__init__` where a loop runs already: outputs must not be handled before
        # they are watched.
        self._attach_front_end()
        super()._run_output_handler()
        if self.exact_forgetting is not None:
            self.exact_forgetting.start()
        if self.front_end is not None and self._report_task is None:
            interval_s = self.front_end.config.serving.stats_interval_s
            self._report_task = asyncio.create_task(_keep_reporting(weakref.ref(self), interval_s))

    def _attach_front_end(self) -> None:
        if self.front_end is not None:
            return
        # Imported late: the settings of drafting draw in numba, and a worker forked from a
        # process with llvmlite in it does not start (vLLM's scan for kernels trips over it).
        from reprise.engine_ext.core.config import engine_config

        config = self._config = engine_config(self.vllm_config)
        if self._retrieval_socket is not None and self._retriever is None:
            self._retriever = start_retrieval(
                self.vllm_config, config.retrieval, for_front_end=True
            )
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
        # Not the methods themselves: they would hold this engine when nobody else does.
        get_tokenizer = weakref.WeakMethod(self.get_tokenizer)
        find_retrieval = weakref.WeakMethod(self._find_retrieval)
        self.exact_forgetting = ExactForgetting(
            self.front_end.memory,
            tokenizer=lambda: get_tokenizer()(),  # type: ignore[misc]
            retrieval=self._retriever,
            find_retrieval=lambda: find_retrieval()(),  # type: ignore[misc]
            errors=self.front_end.errors,
        )

    def generate(
        self, prompt: Any, sampling_params: SamplingParams, *args: Any, **kwargs: Any
    ) -> "AsyncGenerator[RequestOutput, None]":
        """As `AsyncLLM.generate`; where the client asks to be told of its request, the last output
        carries a `RequestInfo` as `reprise_info`."""
        outputs: AsyncGenerator[RequestOutput, None] = super().generate(
            prompt, sampling_params, *args, **kwargs
        )
        if isinstance(prompt, EngineCoreRequest):
            sampling_params = prompt.sampling_params or sampling_params
        if self.front_end is None:
            return outputs
        try:
            exchange = current_exchange.get()
            headers = exchange.headers if exchange is not None else {}
            is_told = wants_info(headers, sampling_params.extra_args)
        except Exception as error:
            self.front_end.errors.swallow("info", error)
            is_told = False
        return self._with_info(outputs, InfoCollector()) if is_told else outputs

    async def _with_info(
        self, outputs: "AsyncGenerator[RequestOutput, None]", collector: InfoCollector
    ) -> "AsyncGenerator[RequestOutput, None]":
        async with aclosing(outputs):
            token = _current_info.set(collector)
            try:
                # The request is added on the way to its first output. What its caller's task does
                # after that, or after a refusal, is none of this request.
                output = await anext(outputs, None)
            finally:
                _current_info.reset(token)
            while output is not None:
                if output.finished:
                    await self._add_info(output, collector)
                yield output
                output = await anext(outputs, None)

    async def _add_info(self, output: "RequestOutput", collector: InfoCollector) -> None:
        assert self.front_end is not None
        if self._draft_counts is None:
            self._draft_counts = DraftCountsFetcher(self._ask_for_draft_counts)
        try:
            output.reprise_info = await collector.collect(self._draft_counts.fetch)
        except Exception as error:
            self.front_end.errors.swallow("info", error)
            return
        if (exchange := current_exchange.get()) is not None:
            exchange.add_info(output.reprise_info)

    async def _ask_for_draft_counts(self, request_ids: Sequence[str]) -> list[Any]:
        return await self._ask_workers("reprise_draft_counts", list(request_ids))

    async def add_request(
        self, request_id: str, prompt: Any, params: Any, *args: Any, **kwargs: Any
    ) -> "RequestOutputCollector":
        """As `AsyncLLM.add_request`; settles namespace and control before anything else.

        Raises:
            VLLMValidationError: the client asks of the cache what makes no sense.
        """
        if isinstance(prompt, EngineCoreRequest):
            params = prompt.sampling_params or params
        if self._config is None or not isinstance(params, SamplingParams):
            return await super().add_request(request_id, prompt, params, *args, **kwargs)
        if self.front_end is None:
            isolation = isolate(self._config, prompt, is_sole_tenant=self.is_sole_tenant)
            params = with_hints(params, RequestHints(namespace=isolation.namespace))
            if isinstance(prompt, EngineCoreRequest):
                prompt.sampling_params = params
            return await super().add_request(request_id, prompt, params, *args, **kwargs)
        try:
            plan = settle(
                self._config,
                prompt,
                params,
                _current_info.get(),
                is_sole_tenant=self.is_sole_tenant,
            )
            params = with_plan(params, plan)
            prompt = behind_wall(prompt, plan, params)
        except VLLMClientError:
            raise
        except Exception as error:
            self.front_end.errors.swallow("plan", error)
            prompt, params = alone(prompt, params)
            return await super().add_request(request_id, prompt, params, *args, **kwargs)
        if params.n > 1 and plan.exchange is not None:
            plan.exchange.add_outcome(lambda: "miss")
        token = _current_plan.set(plan)
        try:
            queue = await super().add_request(request_id, prompt, params, *args, **kwargs)
        finally:
            _current_plan.reset(token)
        if plan.info is not None and params.n > 1:
            for index in range(params.n):
                # As vLLM's `ParentRequest` names them.
                plan.info.generates(f"{index}_{queue.request_id}")
        return queue

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
        if plan.info is not None:
            plan.info.generates(request.request_id)
        try:
            await super()._add_request(request, prompt, parent_req, index, queue)
        except Exception as error:
            front_end.not_admitted(request.request_id, error)
            raise
        except BaseException:
            # Its client left in this moment, and the engine may never have heard of it.
            left = RuntimeError("the client whose generation it followed has left")
            front_end.not_admitted(request.request_id, left)
            await self.abort(request.request_id, internal=True)
            raise

    def shutdown(self, timeout: float | None = None) -> None:
        """As `AsyncLLM.shutdown`."""
        if self.exact_forgetting is not None:
            self.exact_forgetting.close()
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
            workers = await self._ask_workers("reprise_stats")
        self.front_end.report(workers)

    async def _ask_workers(self, method: str, *args: Any) -> list[Any]:
        """What each worker of every data parallel engine returns.

        Without a time limit: a worker that answered after it would leave its answer in the
        executor's queue, where the next step would take it for its own, and the engine would die.
        """
        per_engine = await self.engine_core.call_utility_all_async(
            "collective_rpc", method, None, args, None
        )
        return [worker for workers in per_engine for worker in workers]

    async def get_stats(self) -> dict[str, Any]:
        """Figures of this front end and of the engine's workers, plain values."""
        front_end = self.front_end.stats() if self.front_end is not None else {}
        return {"front_end": front_end, "workers": await self.get_worker_stats()}

    async def get_worker_stats(self) -> list[Any]:
        """Figures of each worker, plain values; asked for between two steps of the engine."""
        return await self._ask_workers("reprise_stats")

    async def _find_retrieval(self) -> list[str]:
        """Where the workers have retrieval processes of their own."""
        reports = await self.get_worker_stats()
        addresses = [report.get("retrieval_address") for report in reports]
        return [address for address in addresses if address]

    async def health_check(self) -> dict[str, Any]:
        """Whether the engine and the cache work, see `health_report`; asks nobody."""
        forgetting = self.exact_forgetting
        return health_report(
            is_dead=self.errored,
            errors=self.front_end.errors if self.front_end is not None else None,
            retrieval=forgetting.health() if forgetting is not None else [],
            num_pending=forgetting.num_pending if forgetting is not None else 0,
        )

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
        with self._adapter_change(lora_request.lora_int_id, loads=True):
            return bool(await super().add_lora(lora_request))

    async def remove_lora(self, lora_id: int) -> bool:
        """As `AsyncLLM.remove_lora`."""
        with self._adapter_change(lora_id, loads=False):
            return bool(await super().remove_lora(lora_id))

    def _adapter_change(self, adapter_id: int, *, loads: bool) -> AbstractContextManager[None]:
        if self.front_end is None:
            return nullcontext()
        return self.front_end.adapters.change(adapter_id, loads=loads)

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
    folder = make_folder()
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

    The engine is the calling program's, which is one tenant: what it asks without a `cache_salt`
    shares cached answers. A program that serves several gives each prompt its tenant's
    `cache_salt`, or puts `ExchangeMiddleware` with its API keys into its app.

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
    engine.is_sole_tenant = True
    try:
        yield engine
    finally:
        engine.shutdown()
