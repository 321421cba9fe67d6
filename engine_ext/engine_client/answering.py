"""Answers requests from the cache, and gives the others to the engine, each by its policy."""

from collections.abc import AsyncGenerator
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

from vllm.exceptions import VLLMClientError, VLLMValidationError
from vllm.logger import init_logger
from vllm.sampling_params import RequestOutputKind, SamplingParams
from vllm.v1.engine import EngineCoreRequest

from reprise.engine_ext.core.request_hints import RequestHints, num_system_tokens, with_hints
from reprise.engine_ext.engine_client.reporting import ReportingAsyncLLM
from reprise.engine_ext.frontend.info_reporter import InfoReporter, current_info
from reprise.engine_ext.request.request_control import NotCachedError
from reprise.engine_ext.request.request_policy import (
    RequestPolicy,
    fully_isolated,
    resolve_isolation,
    resolve_policy,
    with_cache_salt,
    with_policy,
)

if TYPE_CHECKING:
    from vllm.outputs import RequestOutput
    from vllm.v1.engine.output_processor import RequestOutputCollector
    from vllm.v1.engine.parallel_sampling import ParentRequest

    from reprise.engine_ext.frontend.front_end import FrontEnd

logger = init_logger(__name__)

# From `add_request`, which knows what the client asked, to `_add_request`, which knows the
# processed request. Both run in one task.
_current_policy: ContextVar[RequestPolicy | None] = ContextVar("reprise_policy", default=None)
# From `_add_request` to vLLM's own, which checks every request that it does not know.
_is_admitted: ContextVar[bool] = ContextVar("reprise_admitted", default=False)


class AnsweringAsyncLLM(ReportingAsyncLLM):
    """Overrides those methods of `AsyncLLM` that requests pass through."""

    is_sole_tenant = False
    """Whether requests that bypass an HTTP server belong to one tenant, as the program says.
    Otherwise a request without a tenant is private."""
    _info_reporter: InfoReporter | None = None

    def generate(
        self, prompt: Any, sampling_params: SamplingParams, *args: Any, **kwargs: Any
    ) -> "AsyncGenerator[RequestOutput, None]":
        """As `AsyncLLM.generate`; for a client that asks for information on its request, the last
        output carries a `RequestInfo` as `reprise_info`."""
        outputs: AsyncGenerator[RequestOutput, None] = super().generate(
            prompt, sampling_params, *args, **kwargs
        )
        if isinstance(prompt, EngineCoreRequest):
            sampling_params = prompt.sampling_params or sampling_params
        reporter = self._info_reporter
        if reporter is None:
            return outputs
        informs = reporter.is_wanted(sampling_params)
        records = reporter.is_recorded(sampling_params)
        if not informs and not records:
            return outputs
        is_delta = sampling_params.output_kind is RequestOutputKind.DELTA
        return reporter.add_to(outputs, informs=informs, is_delta=is_delta, records=records)

    async def _submit(self, request: EngineCoreRequest) -> None:
        await self.engine_core.add_request_async(request)

    async def add_request(
        self, request_id: str, prompt: Any, params: Any, *args: Any, **kwargs: Any
    ) -> "RequestOutputCollector":
        """As `AsyncLLM.add_request`; resolves the request's policy first.

        Raises:
            VLLMValidationError: the client sends an invalid header or argument of ours.
        """
        if isinstance(prompt, EngineCoreRequest):
            params = prompt.sampling_params or params
        if self._config is None or not isinstance(params, SamplingParams):
            return await super().add_request(request_id, prompt, params, *args, **kwargs)
        if self.front_end is None:
            isolation = resolve_isolation(self._config, prompt, is_sole_tenant=self.is_sole_tenant)
            hints = RequestHints(
                namespace=isolation.namespace, pin_tokens=num_system_tokens(prompt)
            )
            params = with_hints(params, hints)
            if isinstance(prompt, EngineCoreRequest):
                prompt.sampling_params = params
            return await super().add_request(request_id, prompt, params, *args, **kwargs)
        try:
            policy = resolve_policy(
                self._config,
                prompt,
                params,
                current_info.get(),
                is_sole_tenant=self.is_sole_tenant,
            )
            params = with_policy(params, policy, num_system_tokens=num_system_tokens(prompt))
            prompt = with_cache_salt(prompt, policy, params)
        except VLLMClientError:
            raise
        except Exception as error:
            self.front_end.errors.record("policy", error)
            prompt, params = fully_isolated(prompt, params)
            return await super().add_request(request_id, prompt, params, *args, **kwargs)
        if params.n > 1:
            # Those that it becomes do not pass through `_add_request`.
            _refuse_live(self.front_end, getattr(prompt, "request_id", request_id))
            if policy.http_context is not None:
                policy.http_context.add_outcome(lambda: "miss", reason=lambda: "n")
            if policy.control.only_if_cached:
                raise NotCachedError
        token = _current_policy.set(policy)
        try:
            queue = await super().add_request(request_id, prompt, params, *args, **kwargs)
        finally:
            _current_policy.reset(token)
        if policy.info is not None and params.n > 1:
            for index in range(params.n):
                # As vLLM's `ParentRequest` names them.
                policy.info.generates(f"{index}_{queue.request_id}")
        return queue

    async def _add_request(
        self,
        request: EngineCoreRequest,
        prompt: str | None,
        parent_req: "ParentRequest | None",
        index: int,
        queue: "RequestOutputCollector",
    ) -> None:
        policy = _current_policy.get()
        front_end = self.front_end
        if front_end is None or policy is None or parent_req is not None:
            await super()._add_request(request, prompt, parent_req, index, queue)
            return
        if policy.streams_input:
            # A piece, or the end, which looks like a request of its own.
            if policy.control.only_if_cached:
                raise NotCachedError
            if policy.info is not None:
                policy.info.generates(request.request_id)
            await super()._add_request(request, prompt, parent_req, index, queue)
            return
        _refuse_live(front_end, request.request_id)
        stored, waited = None, front_end.waits_for_others(request, policy)
        if waited:
            self.check_admission(request_id=request.request_id)
            stored = await front_end.fetch_as_known(request, prompt, queue, policy)
            if queue.output is not None:
                return  # aborted, or the engine died: its client finds that in there
        if front_end.answer(request, prompt, queue, policy):
            if self.log_requests:
                logger.info("Answered request %s from the cache.", request.request_id)
            return
        given = front_end.others.check(request, stored) or request
        if policy.info is not None and given is request:
            policy.info.generates(request.request_id)
        token = _is_admitted.set(waited)
        try:
            await super()._add_request(given, prompt, parent_req, index, queue)
        except Exception as error:
            if policy.info is not None:
                policy.info.generates_nothing(request.request_id)
            front_end.not_admitted(request.request_id, error)
            raise
        except BaseException:
            if policy.info is not None:
                policy.info.generates_nothing(request.request_id)
            # Its client disconnected just now, and the engine may never have received it.
            left = RuntimeError("the client of the request that it followed has disconnected")
            front_end.not_admitted(request.request_id, left)
            await self.abort(request.request_id, internal=True)
            raise
        finally:
            _is_admitted.reset(token)

    def check_admission(self, *args: Any, **kwargs: Any) -> None:
        """As `AsyncLLM.check_admission`; who was admitted before it waited is not asked again."""
        if not _is_admitted.get():
            super().check_admission(*args, **kwargs)


def _refuse_live(front_end: "FrontEnd", request_id: str) -> None:
    """Raise if a request of this id is not over.

    Raises:
        VLLMValidationError: vLLM would take the new one for input of that request, and the engine
            would end.
    """
    if front_end.is_live(request_id):
        message = "a request of this id is not over"
        raise VLLMValidationError(message, parameter="request_id", value=request_id)
