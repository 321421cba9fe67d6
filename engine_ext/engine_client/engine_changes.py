"""Notifies the front end of whatever changes what the engine answers: weights, adapters, pauses."""

import asyncio
from contextlib import AbstractContextManager, nullcontext, suppress
from typing import TYPE_CHECKING, Any

from vllm.v1.engine.async_llm import AsyncLLM

if TYPE_CHECKING:
    from reprise.engine_ext.frontend.front_end import FrontEnd

# An engine that does not answer would be kept alive by who asks it.
_LABEL_TIMEOUT_S = 30.0


class ChangeTrackingAsyncLLM(AsyncLLM):  # type: ignore[misc]
    """Overrides those methods of `AsyncLLM` through which a client changes the engine."""

    front_end: "FrontEnd | None" = None
    _num_pause_changes = 0
    """Pauses that began here, and that ended here: what was asked before one is out of date."""

    # Whatever may change the weights ends what was answered before. Refusing too much costs
    # hits; one stale answer would be a wrong one.

    async def collective_rpc(self, method: Any, *args: Any, **kwargs: Any) -> Any:
        """As `AsyncLLM.collective_rpc`."""
        if isinstance(method, str) and method.startswith("reprise_"):
            return await super().collective_rpc(method, *args, **kwargs)
        # Of several engines one answers with new weights while another still has the old ones: what
        # was asked before, meanwhile and after the call has nothing in common.
        self._model_changed()
        try:
            return await super().collective_rpc(method, *args, **kwargs)
        finally:
            self._model_changed()

    async def update_weight_version(self, new_version: str) -> None:
        """As `AsyncLLM.update_weight_version`."""
        self._model_changed()
        await super().update_weight_version(new_version)
        if self.front_end is not None:
            self.front_end.flights.weight_version = new_version

    async def learn_weight_version(self) -> None:
        """Learn the label of the weights, which every reply carries, before the engine's first
        output says it: an answer from the tier may come first."""
        if (front_end := self.front_end) is None:
            return
        with front_end.errors.recording("weight_version"):
            version = await asyncio.wait_for(self.get_weight_version(), _LABEL_TIMEOUT_S)
            if front_end.flights.weight_version is None:
                front_end.flights.weight_version = version

    async def sleep(self, *args: Any, **kwargs: Any) -> None:
        """As `AsyncLLM.sleep`."""
        self._model_changed()
        await super().sleep(*args, **kwargs)

    async def wake_up(self, *args: Any, **kwargs: Any) -> Any:
        """As `AsyncLLM.wake_up`."""
        self._model_changed()
        is_awake = await super().wake_up(*args, **kwargs)
        if self.front_end is not None and self.front_end.is_paused:
            # Waking up may end a pause.
            await self.is_paused()
        return is_awake

    # A paused engine answers nothing, neither does the cache: vLLM 0.32 queues what arrives, vLLM
    # 0.33 refuses it, to be sent again.

    async def pause_generation(self, **kwargs: Any) -> None:
        """As `AsyncLLM.pause_generation`; until it ends, no request is answered from the cache."""
        self._set_paused(True)
        try:
            await super().pause_generation(**kwargs)
        except Exception:
            with suppress(Exception):
                await self.is_paused()
            raise

    async def resume_generation(self) -> None:
        """As `AsyncLLM.resume_generation`."""
        as_of = self._num_pause_changes
        await super().resume_generation()
        if as_of == self._num_pause_changes:
            self._set_paused(False)

    async def is_paused(self) -> bool:
        """As `AsyncLLM.is_paused`."""
        as_of = self._num_pause_changes
        paused = bool(await super().is_paused())
        if self.front_end is not None and as_of == self._num_pause_changes:
            self.front_end.is_paused = paused
        return paused

    def _set_paused(self, paused: bool) -> None:
        self._num_pause_changes += 1
        if self.front_end is not None:
            self.front_end.is_paused = paused

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
        return self.front_end.exact.adapters.change(adapter_id, loads=loads)

    def _model_changed(self) -> None:
        if self.front_end is not None:
            self.front_end.model_changed()
