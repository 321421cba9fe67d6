"""Pins prefixes by way of the engine client: for the operator, and at the start."""

import asyncio
import json
import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from vllm.logger import init_logger
from vllm.sampling_params import RequestOutputKind, SamplingParams

from reprise.engine_ext.compat.patches import Feature, Role
from reprise.engine_ext.compat.registry import registry
from reprise.engine_ext.core.request_hints import RequestHints, with_hints
from reprise.engine_ext.engine_client.engine_changes import ChangeTrackingAsyncLLM
from reprise.engine_ext.kv_pins.system_prefix import forget_system_prefixes
from reprise.engine_ext.request.tenants import SOLE_TENANT, isolation_of
from reprise.retrieval.api.invalidation import Invalidation, encode_invalidation

if TYPE_CHECKING:
    from reprise.engine_ext.core.config import RepriseConfig

logger = init_logger(__name__)


class PinningAsyncLLM(ChangeTrackingAsyncLLM):
    """Adds to `AsyncLLM` what lists, adds and removes pinned prefixes."""

    _config: "RepriseConfig | None" = None

    @property
    def pins_prefixes(self) -> bool:
        """Whether the settings have prefixes pinned."""
        is_wanted = self._config is not None and self._config.kv_pins.enabled
        return is_wanted and registry.is_applied(Feature.KV_PINS, Role.ENGINE_CORE)

    async def get_pins(self) -> list[list[dict[str, Any]] | None]:
        """List the pins of each data parallel engine; None: it pins nothing."""
        return await self._ask_for_pins("list")

    async def get_pin_stats(self) -> list[dict[str, Any] | None]:
        """Return figures of each data parallel engine; None: it pins nothing."""
        return await self._ask_for_pins("stats") if self.pins_prefixes else []

    async def unpin(self, pin_id: str | None = None) -> list[list[dict[str, Any]] | None]:
        """Remove a pin, or all, from each data parallel engine; return those removed."""
        return await self._ask_for_pins("unpin", pin_id)

    async def forget_pins(self, invalidation: Invalidation) -> None:
        """Remove what an erasure covers from each data parallel engine, and what was found for
        chats in this process."""
        if (renderer := getattr(self, "renderer", None)) is not None:  # as old versions have none
            forget_system_prefixes(renderer)
        if self.pins_prefixes:
            await self._ask_for_pins("forget", encode_invalidation(invalidation))

    async def pin_prefix(
        self,
        token_ids: Sequence[int],
        *,
        namespace: str | None = None,
        cache_salt: str | None = None,
    ) -> None:
        """Compute a prefix in each data parallel engine, and pin it for the operator.

        Args:
            token_ids: of the prefix; its full blocks are pinned.
            namespace: of the requests that it is for, as pins and answers are listed; None: of
                those without a tenant.
            cache_salt: of these requests, where they have one.

        Raises:
            ValueError: it is shorter than a block, or longer than a prompt may be.
        """
        longest = self.vllm_config.model_config.max_model_len - 1
        blocks = [stats["block_tokens"] for stats in await self.get_pin_stats() if stats]
        shortest = max(blocks, default=1)
        if not shortest <= len(token_ids) <= longest:
            raise ValueError(
                f"a prefix has {shortest} tokens, a block of the prefix cache, to {longest}, got"
                f" {len(token_ids)}"
            )
        assert self._config is not None
        isolation = isolation_of(
            operators=self._config.namespace,
            tenant=SOLE_TENANT if namespace is None else namespace,
            cache_salt=cache_salt,
        )
        hints = RequestHints(
            namespace=isolation.namespace,
            drafts=False,
            store=False,
            pin_tokens=len(token_ids),
            pin_origin="operator",
        )
        params = with_hints(
            SamplingParams(max_tokens=1, temperature=0.0, output_kind=RequestOutputKind.FINAL_ONLY),
            hints,
        )
        prompt: dict[str, Any] = {"prompt_token_ids": list(token_ids)}
        if isolation.cache_salt is not None:
            prompt["cache_salt"] = isolation.cache_salt
        parallel = self.vllm_config.parallel_config
        here = parallel.local_engines_only  # the others are other servers' to pin in
        num_ranks = parallel.data_parallel_size_local if here else parallel.data_parallel_size
        for rank in range(num_ranks):
            # Past what an answer from the cache would keep from the engine.
            queue = await super().add_request(
                f"reprise-pin-{uuid4().hex}",
                prompt,
                params,
                data_parallel_rank=rank,
            )
            while not (await queue.get()).finished:
                pass

    async def _ask_for_pins(self, *command: Any) -> list[Any]:
        answers: list[Any] = await self.engine_core.call_utility_all_async(
            "reprise_kv_pins", *command
        )
        return answers


async def pin_configured(engine_ref: "weakref.ref[PinningAsyncLLM]") -> None:
    """Pin the prefixes that the settings name; this task does not keep the engine alive."""
    engine = engine_ref()
    if engine is None or engine._config is None:
        return
    prefixes, num_pinned = engine._config.kv_pins.prefixes, 0
    for given in prefixes:
        try:
            await engine.pin_prefix(
                await asyncio.to_thread(_token_ids, given, engine.get_tokenizer())
            )
            num_pinned += 1
        except Exception as error:
            logger.warning("Reprise: the prefix %.60r is not pinned: %s", given, error)
    logger.info(
        "Reprise: %d of the %d prefixes of the settings are pinned.", num_pinned, len(prefixes)
    )


def _token_ids(given: str, tokenizer: Any) -> list[int]:
    """Return the tokens of a prefix as the settings name it.

    Raises:
        ValueError: it cannot be read.
    """
    text = given
    if given.startswith("@"):
        try:
            text = Path(given[1:]).read_text(encoding="utf-8")
        except OSError as error:
            raise ValueError(f"cannot read {given[1:]}: {error.strerror}") from None
        try:
            found = json.loads(text)
        except ValueError:
            found = None
        if isinstance(found, list) and all(isinstance(each, int) for each in found):
            return found
    encoded: list[int] = tokenizer.encode(text)
    return encoded
