"""Extends vLLM's engine client with the cache in front of the engine: `EnhancedAsyncLLM`."""

import asyncio
import threading
import time
import weakref
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from contextvars import Context
from typing import TYPE_CHECKING, Any

import psutil
from vllm import envs
from vllm.logger import init_logger
from vllm.usage.usage_lib import UsageContext
from vllm.utils.async_utils import cancel_task_threadsafe, run_in_loop
from vllm.v1.engine.exceptions import EngineDeadError

from reprise.engine_ext import instances
from reprise.engine_ext.checks.start_up import end_soon_on_sigterm
from reprise.engine_ext.compat.patches import Feature, Role
from reprise.engine_ext.compat.registry import registry
from reprise.engine_ext.core.config import engine_config
from reprise.engine_ext.core.engine_retrieval import (
    SOCKET,
    announced_retrieval,
    start_retrieval,
)
from reprise.engine_ext.core.identity import PROPOSER_PATH
from reprise.engine_ext.engine_client.answering import AnsweringAsyncLLM
from reprise.engine_ext.engine_client.pinning import pin_configured
from reprise.engine_ext.engine_client.reporting import keep_reporting
from reprise.engine_ext.frontend.announcements import (
    announce_near_answers,
    end_line,
    start_line,
)
from reprise.engine_ext.frontend.exact_forgetting import ExactForgetting
from reprise.engine_ext.frontend.front_end import FrontEnd
from reprise.engine_ext.frontend.info_reporter import InfoReporter
from reprise.engine_ext.frontend.pin_forgetting import PinForgetting
from reprise.engine_ext.request import server_middleware
from reprise.engine_ext.request.tenants import SOLE_TENANT, isolation_of, warn_of_private_requests
from reprise.retrieval.api.invalidation import Invalidation

if TYPE_CHECKING:
    from vllm.config import VllmConfig
    from vllm.engine.arg_utils import AsyncEngineArgs

    from reprise.engine_ext.core.config import RepriseConfig
    from reprise.retrieval.host.owned_folder import OwnedFolder
    from reprise.retrieval.service.process_retriever import ProcessRetriever

logger = init_logger(__name__)

_SPECULATIVE = {"model": PROPOSER_PATH, "num_speculative_tokens": 16}


class EnhancedAsyncLLM(AnsweringAsyncLLM):
    """Answers repeated requests from the cache, token for token, as an `AsyncLLM` otherwise.

    It replaces an `AsyncLLM` anywhere; see `front_end` for what it adds.
    """

    _has_announced = False
    _has_ended = False
    _shutting_down: "threading.RLock | None" = None
    _report_task: asyncio.Task[None] | None = None
    _announcing: asyncio.Task[None] | None = None
    _pinning: asyncio.Task[None] | None = None
    _learning: asyncio.Task[None] | None = None
    _retrieval_folder: "OwnedFolder | None" = None
    _retriever: "ProcessRetriever | None" = None

    def __init__(self, vllm_config: "VllmConfig | None" = None, *args: Any, **kwargs: Any) -> None:
        """As `AsyncLLM`; starts retrieval for its workers and itself.

        In place of a vLLM config it takes the arguments of `AsyncEngineArgs`, by keyword, as
        `create_enhanced_system` does: the engine is then the calling program's, which is one
        tenant.

        Raises:
            ValueError: a setting is unknown or out of bounds.

        Example:
            >>> async def main():
            ...     engine = EnhancedAsyncLLM(model="...", max_model_len=4096)
            ...     async for output in engine.generate("Hello", SamplingParams(), "1"):
            ...         print(output.outputs[0].text)
            ...     engine.shutdown()
        """
        # A signal's handler may interrupt who holds it, and end this engine too.
        self._shutting_down = threading.RLock()
        is_programs = vllm_config is None
        if vllm_config is None:
            vllm_config, kwargs = _from_arguments(kwargs)
        # Before anything is started: a bad setting would otherwise cost a model's loading first.
        self._config = engine_config(vllm_config)
        end_soon_on_sigterm()
        self._began_s = time.time()
        self._num_api_servers = int(kwargs.get("client_count", 1))
        # vLLM's servers number the adapters of their command line alike, and others not at all.
        is_server = kwargs.get("usage_context") is UsageContext.OPENAI_API_SERVER
        self._has_fixed_adapters = is_server and not envs.VLLM_ALLOW_RUNTIME_LORA_UPDATING
        self._is_first_api_server = int(kwargs.get("client_index", 0)) == 0
        starts_workers = not kwargs.get("client_addresses")
        if not starts_workers and (parent := psutil.Process().parent()) is not None:
            # Who started this process has started the engine, and before.
            self._began_s = min(self._began_s, parent.create_time())
        if self._is_first_api_server and not starts_workers:
            logger.info(
                "Reprise: with %d API servers the workers search for near answers themselves; "
                "replies report miss in place of semantic.",
                self._num_api_servers,
            )
        with announced_retrieval(wanted=starts_workers) as self._retrieval_folder:
            super().__init__(vllm_config, *args, **kwargs)
            self._attach_front_end()
        instances.started(self)
        usage = kwargs.get("usage_context")
        # Whoever runs a batch has given all of its requests.
        self.is_sole_tenant = is_programs or usage is UsageContext.OPENAI_BATCH_RUNNER
        # Also where the rest of the front end is off: tenants have drafts of their own even then.
        registry.apply(Feature.HTTP, server_middleware, role=Role.API_SERVER)
        has_middleware = registry.num_patched(Feature.HTTP) > 0
        if not has_middleware and usage is UsageContext.OPENAI_API_SERVER:
            self._warn_of_private_requests()

    def _warn_of_private_requests(self) -> None:
        if self._config is not None and self._config.namespace is None:
            warn_of_private_requests("vLLM's HTTP server was not found in this process")

    def _run_output_handler(self) -> None:
        # Called from `__init__` where a loop runs already: outputs must not be handled before
        # they are watched.
        self._attach_front_end()
        super()._run_output_handler()
        if self.exact_forgetting is not None:
            self.exact_forgetting.start()
        front_end = self.front_end
        reports = front_end is not None and front_end.config.features.monitoring
        if front_end is not None and reports and self._report_task is None:
            interval_s = front_end.config.serving.stats_interval_s
            self._report_task = _start(keep_reporting(weakref.ref(self), interval_s))
        uses_near = self._config is not None and self._config.drafts.max_near_answers > 0
        if self._retriever is not None and uses_near and self._announcing is None:
            self._announcing = _start(announce_near_answers(self._retriever))
        if front_end is not None and front_end.exact.shared is not None and self._learning is None:
            self._learning = _start(self.learn_weight_version())
        if self._pinning is None:
            self._pin_configured()

    def _pin_configured(self) -> None:
        """Pin the prefixes of the settings, in a task; of several processes the first does."""
        has_prefixes = (
            self.pins_prefixes and self._config is not None and (self._config.kv_pins.prefixes)
        )
        if has_prefixes and self._is_first_api_server:
            if self._pinning is not None:
                self._pinning.cancel()
            self._pinning = _start(pin_configured(weakref.ref(self)))

    async def _forget_pins(self, invalidation: Invalidation) -> None:
        """Unpin what an erasure covers; what the settings name is no tenant's, and pinned again."""
        await self.forget_pins(invalidation)
        assert self._config is not None
        operators = self._config.namespace
        own = isolation_of(operators=operators, tenant=SOLE_TENANT, cache_salt=None).namespace
        if own is None or invalidation.covers(own):
            self._pin_configured()

    def _attach_front_end(self) -> None:
        if self.front_end is not None:
            return
        config = self._config
        assert config is not None
        if self._retrieval_folder is not None and self._retriever is None:
            self._retriever = start_retrieval(
                self.vllm_config, config.retrieval, for_front_end=True
            )
            (self._retrieval_folder.path / SOCKET).symlink_to(self._retriever.address)
        if self._is_first_api_server and not self._has_announced:
            self._has_announced = True
            searches_here = self._retriever is not None
            logger.info(start_line(config, self.vllm_config, searches_here=searches_here))
        if not config.serving.enabled:
            return
        self.front_end = FrontEnd(
            self.vllm_config,
            config,
            self.output_processor,
            num_api_servers=self._num_api_servers,
            has_fixed_adapters=self._has_fixed_adapters,
            retriever=self._retriever,
        )
        # Not the methods themselves: they would keep this engine alive.
        submit = weakref.WeakMethod(self._submit)
        self.front_end.open_others(
            loaded_since_s=self._began_s,
            submit=lambda request: submit()(request),  # type: ignore[misc]
        )
        ask_for_draft_counts = weakref.WeakMethod(self._ask_for_draft_counts)
        self._info_reporter = InfoReporter(
            lambda ids: ask_for_draft_counts()(ids),  # type: ignore[misc]
            recorded=self.front_end.recorded,
            errors=self.front_end.errors,
        )
        get_tokenizer = weakref.WeakMethod(self.get_tokenizer)
        find_retrieval = weakref.WeakMethod(self._find_retrieval)
        forget_pins = weakref.WeakMethod(self._forget_pins)
        self.exact_forgetting = ExactForgetting(
            self.front_end.exact.memory,
            recorded=self.front_end.recorded,
            tokenizer=lambda: get_tokenizer()(),  # type: ignore[misc]
            pins=PinForgetting(
                lambda invalidation: forget_pins()(invalidation),  # type: ignore[misc]
                errors=self.front_end.errors,
            ),
            retrieval=self._retriever,
            find_retrieval=lambda: find_retrieval()(),  # type: ignore[misc]
            errors=self.front_end.errors,
        )
        forgetting = self.exact_forgetting
        self.front_end.exact.is_forgotten = forgetting.is_forgotten
        self.front_end.find_retrieval = lambda: forgetting.clients

    def shutdown(self, timeout: float | None = None) -> None:
        """As `AsyncLLM.shutdown`, from several threads at once too.

        A server calls it in a thread when it is told to end, and again from the main thread as its
        context ends: whoever comes second returns once all has ended.
        """
        if (shutting_down := self._shutting_down) is None:
            return  # nothing was started
        with shutting_down:
            self._shut_down(timeout)

    def _shut_down(self, timeout: float | None) -> None:
        instances.ended(self)
        if self.exact_forgetting is not None:
            self.exact_forgetting.close()
        if self.front_end is not None:
            self.front_end.close()
            if not self._has_ended:
                self._has_ended = True
                if (line := end_line(self.front_end.figures.stats())) is not None:
                    logger.info(line)
        if self._retriever is not None:
            self._retriever.begin_to_close()  # the process ends beside the engine
        for task in (self._report_task, self._announcing, self._pinning, self._learning):
            if task is not None:
                cancel_task_threadsafe(task)
        super().shutdown(timeout=timeout)
        self._fail_unfinished_requests()
        if self._retriever is not None:
            self._retriever.close()
        if self._retrieval_folder is not None:
            self._retrieval_folder.remove()

    def _fail_unfinished_requests(self) -> None:
        """End requests of an engine that was killed, not having said what became of them.

        vLLM leaves them waiting, and the HTTP server waits for them until their clients leave.
        """
        if (handler := getattr(self, "output_handler", None)) is not None:
            error = EngineDeadError(suppress_context=True)
            run_in_loop(handler.get_loop(), self.output_processor.propagate_error, error)


def _start(work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
    """Have work done in a task that is no part of the request that has it started, if one has."""
    return asyncio.create_task(work, context=Context())


def _from_arguments(arguments: dict[str, Any]) -> tuple["VllmConfig", dict[str, Any]]:
    """Return the vLLM config and the keywords of `AsyncLLM` for the arguments of engine args."""
    from vllm.engine.arg_utils import AsyncEngineArgs
    from vllm.v1.executor import Executor

    if "model" not in arguments:
        raise TypeError("EnhancedAsyncLLM needs a vllm_config, or the arguments of AsyncEngineArgs")
    engine_args = AsyncEngineArgs(**{"speculative_config": dict(_SPECULATIVE), **arguments})
    config = engine_args.create_engine_config(UsageContext.ENGINE_CONTEXT)
    return config, {
        "executor_class": Executor.get_class(config),
        "log_stats": not engine_args.disable_log_stats,
        "log_requests": engine_args.enable_log_requests,
        "usage_context": UsageContext.ENGINE_CONTEXT,
    }


@asynccontextmanager
async def create_enhanced_system(
    engine_args: "AsyncEngineArgs", config: "RepriseConfig | None" = None
) -> AsyncIterator[EnhancedAsyncLLM]:
    """Build, start and in the end clean up an engine with everything in front of it.

    Engine args without a speculative config get ours, with up to 16 tokens a draft. What `config`
    sets wins over environment and settings file, as `additional_config` does.

    The engine is the calling program's, which is one tenant: its requests without a `cache_salt`
    share cached answers. A program that serves several gives each prompt its tenant's
    `cache_salt`, or puts `HttpContextMiddleware` with its API keys into its app.

    Raises:
        ValueError: a setting is unknown or out of bounds.

    Example:
        >>> async def main():
        ...     async with create_enhanced_system(AsyncEngineArgs(model="...")) as engine:
        ...         async for output in engine.generate("Hello", SamplingParams(), "1"):
        ...             print(output.outputs[0].text)
    """
    if engine_args.speculative_config is None:
        engine_args.speculative_config = dict(_SPECULATIVE)
    if config is not None:
        ours = {"reprise": config.model_dump(mode="json", exclude_unset=True)}
        engine_args.additional_config = {**(engine_args.additional_config or {}), **ours}
    engine = EnhancedAsyncLLM.from_engine_args(engine_args)
    engine.is_sole_tenant = True
    try:
        yield engine
    finally:
        engine.shutdown()
