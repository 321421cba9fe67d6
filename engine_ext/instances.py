"""The engines of this process, for programs that have several: asked and ended all at once."""

import asyncio
import weakref
from typing import Any, Protocol


class _Engine(Protocol):
    """What is asked of an engine client: `EnhancedAsyncLLM` has it."""

    model_config: Any

    async def get_stats(self) -> dict[str, Any]: ...

    def shutdown(self) -> None: ...


_running: weakref.WeakSet[_Engine] = weakref.WeakSet()


def started(engine: _Engine) -> None:
    """Take an engine in; one that is gone is forgotten by itself."""
    _running.add(engine)


def ended(engine: _Engine) -> None:
    """Leave an engine out from now on."""
    _running.discard(engine)


async def get_instance_stats() -> list[dict[str, Any]]:
    """Return `get_stats()` of each running engine, with the name of its model, by that name.

    Example:
        >>> async def main():
        ...     for each in await get_instance_stats():
        ...         print(each["model"], each["front_end"]["exact"])
    """
    engines = sorted(_running, key=lambda engine: str(engine.model_config.served_model_name))
    stats = await asyncio.gather(*(engine.get_stats() for engine in engines))
    return [
        {"model": engine.model_config.served_model_name, **each}
        for engine, each in zip(engines, stats, strict=True)
    ]


def cleanup_all() -> int:
    """Shut down every running engine of this process; return how many they were.

    For a program's end, where it does not hold them itself: `create_enhanced_system` ends its own.
    """
    engines = list(_running)
    for engine in engines:
        engine.shutdown()
    return len(engines)
