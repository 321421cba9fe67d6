"""One look-up of an exact hit in a tier, in this process, as a request waits for it."""

import asyncio
import tempfile
import time
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import msgspec

from reprise.engine_ext.core.config import load_config
from reprise.engine_ext.core.error_counter import ErrorCounter
from reprise.engine_ext.frontend.shared_exact import SharedExact
from reprise.engine_ext.request.adapter_epochs import AdapterEpochs
from reprise.eval.benchmarks.exact_hits.rows import figure_row
from reprise.eval.benchmarks.exact_hits.servers import FINGERPRINT_WITHIN_S
from reprise.eval.demo_data.demo_model import DEMO_DTYPE
from reprise.eval.live.redis_server import RedisServer
from reprise.retrieval.api.answer import Answer
from reprise.retrieval.in_process.open_tier import open_tier

_PROMPT_TOKENS, _ANSWER_TOKENS = 200, 200
_ENDS_WITHIN_S = 120.0
_PAUSE_S = 0.05


def bench_look_ups(model: str, count: int, tick: Callable[[], None]) -> list[dict[str, Any]]:
    """Time a look-up that finds an answer of 200 tokens, and one that finds nothing."""
    rows = []
    for kind, name, took_ms, num_others in timed_look_ups(model, count):
        for quantile, place in (("p50", 0.5), ("p99", 0.99)):
            value = took_ms[int(place * (count - 1))]
            row = figure_row("look-ups", kind, took_ms, f"{name}, {quantile}", value, "ms")
            rows.append({**row, "note": f"{num_others} more not in time"})
        tick()
    return rows


def timed_look_ups(model: str, count: int) -> Iterator[tuple[str, str, list[float], int]]:
    """Yield, for SQLite and Redis and for what is there and what is not: the tier, which of them,
    the times of `count` look-ups in ms that came within the budget, the shortest first, and how
    many did not.

    Raises:
        RuntimeError: a look-up came out wrong.
    """
    from vllm.engine.arg_utils import EngineArgs

    vllm_config = EngineArgs(model=model, dtype=DEMO_DTYPE).create_engine_config()
    with tempfile.TemporaryDirectory() as folder, RedisServer() as redis:
        for kind, url in (("sqlite", f"sqlite:///{folder}/answers.sqlite"), ("redis", redis.url)):
            serving = {"exact_hits_from_others": "trusted"}
            shared = SharedExact(
                vllm_config,
                load_config({"serving": serving, "retrieval": {"url": url}}),
                adapters=AdapterEpochs(),
                loaded_since_s=time.time(),
                retrieval=list,
                errors=ErrorCounter(),
            )
            shared.wait(FINGERPRINT_WITHIN_S)
            if shared.fingerprint is None:
                raise RuntimeError("there is no fingerprint of the demo model")
            _fill(url, shared.fingerprint, count)
            for name, first, good in (("found", 0, "hit"), ("nothing there", count, "miss")):
                shared.outcomes.clear()
                took_ms = asyncio.run(_look_up(shared, good, first, count))
                num_others = shared.outcomes.total() - count
                yield kind, name, took_ms, num_others
            shared.close()


def _fill(url: str, fingerprint: str, count: int) -> None:
    tier = open_tier(url)
    assert tier is not None
    for number in range(count):
        answer = Answer.create(
            prompt_token_ids=[number] * _PROMPT_TOKENS,
            response_token_ids=list(range(_ANSWER_TOKENS)),
            finish_reason="stop",
            exact_key=number.to_bytes(16, "little"),
        )
        tier.put([msgspec.structs.replace(answer, fingerprint=fingerprint)])
    tier.close()


async def _look_up(shared: SharedExact, good: str, first: int, count: int) -> list[float]:
    """Look each up until it comes within the budget: after one that is late, none is looked up for
    a while."""
    took_ms: list[float] = []
    deadline_s = time.monotonic() + _ENDS_WITHIN_S
    while len(took_ms) < count:
        number = first + len(took_ms)
        request: Any = SimpleNamespace(prompt_token_ids=[number] * _PROMPT_TOKENS)
        keys = [number.to_bytes(16, "little"), b"limit".ljust(16)]
        before = shared.outcomes[good]
        began_s = time.perf_counter()
        await shared.find(request, "", keys, shared.fingerprint or "")
        ended_s = time.perf_counter()
        if shared.outcomes[good] > before:
            took_ms.append((ended_s - began_s) * 1e3)
        elif time.monotonic() > deadline_s:
            raise RuntimeError(f"of {count} look-ups came {dict(shared.outcomes)}")
        else:
            await asyncio.sleep(_PAUSE_S)
    return sorted(took_ms)
