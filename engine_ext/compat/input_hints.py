"""Hints for requests that did not pass our front end: attached where vLLM processes its inputs.

That is where `vllm.LLM` is used, and where vLLM's front end is not one that we know.
"""

from functools import wraps
from typing import Any

from vllm.v1.engine import EngineCoreRequest
from vllm.v1.engine.input_processor import InputProcessor
from vllm.v1.engine.llm_engine import LLMEngine

from reprise.engine_ext.core.identity import uses_our_proposer
from reprise.engine_ext.core.request_hints import RequestHints, attach_hints, has_hints
from reprise.engine_ext.request.tenants import SOLE_TENANT, isolation_of, warn_of_private_requests

_TENANT = "_reprise_tenant"
_HAS_TOLD = "_reprise_has_told"
_NEEDED_FIELDS = frozenset({"cache_salt", "sampling_params"})


def install() -> None:
    """Wrap `InputProcessor.process_inputs` and `LLMEngine.__init__`. Idempotent.

    An `LLMEngine` belongs to the program that has built it: its requests are one tenant's, but for
    their salts. Of an `AsyncLLM` that is not ours nobody knows whom it serves: without a salt a
    request stays private.

    Raises:
        RuntimeError: this vLLM's requests are not as expected. The worker sees no hints then, and
            every request stays private.
    """
    if not _NEEDED_FIELDS.issubset(EngineCoreRequest.__struct_fields__):
        raise RuntimeError(
            f"EngineCoreRequest has {EngineCoreRequest.__struct_fields__}, expected "
            f"{sorted(_NEEDED_FIELDS)} among them; without, requests share no cached answers"
        )
    if not hasattr(InputProcessor.process_inputs, _TENANT):
        InputProcessor.process_inputs = _with_hints_attached(InputProcessor.process_inputs)
        LLMEngine.__init__ = _as_sole_tenant(LLMEngine.__init__)


def _with_hints_attached(original: Any) -> Any:
    @wraps(original)
    def process_inputs(self: Any, *args: Any, **kwargs: Any) -> Any:
        request = original(self, *args, **kwargs)
        params = request.sampling_params
        if params is None or has_hints(params) or not uses_our_proposer(self.vllm_config):
            return request
        tenant = getattr(self, _TENANT, None)
        namespace = isolation_of(tenant=tenant, cache_salt=request.cache_salt).namespace
        attach_hints(params, RequestHints(namespace=namespace))
        if namespace is None:
            _tell(self)
        return request

    setattr(process_inputs, _TENANT, None)
    return process_inputs


def _tell(processor: Any) -> None:
    if getattr(processor, _HAS_TOLD, False):
        return
    setattr(processor, _HAS_TOLD, True)
    # Imported late: it draws in numba, which must not be in a process that forks workers.
    from reprise.engine_ext.core.config import engine_config

    if engine_config(processor.vllm_config).namespace is None:
        warn_of_private_requests("this engine client is none that Reprise knows")


def _as_sole_tenant(original: Any) -> Any:
    @wraps(original)
    def init(self: Any, *args: Any, **kwargs: Any) -> None:
        original(self, *args, **kwargs)
        setattr(self.input_processor, _TENANT, SOLE_TENANT)

    return init
