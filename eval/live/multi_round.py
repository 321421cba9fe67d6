"""Users who talk to an OpenAI-compatible server over several rounds, at a steady rate.

All share one `system` prompt; each has a history of its own, which its first turn begins with, and
questions that nobody else asks. Requests begin at fixed times, `qps` of them a second, the users
taking turns; a user's next round waits for the answer to the one before.
"""

import asyncio
import json
import random
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import aiohttp

TIMEOUT_S = 600.0
_SYLLABLES = ("ka", "lo", "mi", "ru", "te", "sa", "no", "vi", "de", "pu")
_COUNTERS = {
    "prompt tokens": ("vllm:prompt_tokens_total",),
    "found in the prefix cache": ("vllm:prefix_cache_hits_total",),
    "found by the KV connector": ("vllm:external_prefix_cache_hits_total",),
    "kept by pins": ("reprise:kv_pin_saved_tokens_total",),
    "drafted tokens": ("vllm:spec_decode_num_draft_tokens_total",),
    "accepted tokens": ("vllm:spec_decode_num_accepted_tokens_total",),
}
"""What a server of vLLM's counts, by what it is called here."""


class Workload(NamedTuple):
    """What is asked."""

    base_url: str
    model: str
    num_users: int
    num_rounds: int
    qps: float
    """Requests a second."""
    system_words: int
    history_words: int
    answer_tokens: int
    """Upper bound on an answer's tokens."""
    headers: Mapping[str, str]
    seed: int


class Answered(NamedTuple):
    """One request."""

    user: int
    round: int
    began_s: float
    """Since the first."""
    first_token_s: float
    token_s: float
    """Of each token after the first, on average."""
    whole_s: float
    prompt_tokens: int
    output_tokens: int
    text: str


def words(count: int, seed: str) -> str:
    """Return made-up words, the same for the same seed."""
    chance = random.Random(seed)
    return " ".join(
        "".join(chance.choices(_SYLLABLES, k=chance.randint(1, 3))) for _ in range(count)
    )


async def run(workload: Workload, tick: Callable[[], None]) -> list[Answered]:
    """Run all rounds of all users; `tick` is called after each answer.

    Raises:
        RuntimeError: a request failed.
    """
    timeout = aiohttp.ClientTimeout(total=TIMEOUT_S)
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(
        connector=connector, timeout=timeout, headers=workload.headers
    ) as session:
        began_s = time.perf_counter()
        try:
            per_user = await asyncio.gather(
                *(
                    _talk(session, workload, user, began_s, tick)
                    for user in range(workload.num_users)
                )
            )
        except (aiohttp.ClientError, TimeoutError) as error:
            reason = str(error) or type(error).__name__
            raise RuntimeError(f"{workload.base_url}: a request failed: {reason}") from error
    return sorted((one for user in per_user for one in user), key=lambda one: one.began_s)


class Counted(NamedTuple):
    """What a server has counted so far."""

    counts: dict[str, float]
    problem: str = ""
    """Why there are none; empty if there are some."""


async def counters(base_url: str) -> Counted:
    """Return what the server has counted so far, where it has the metrics of vLLM."""
    url = base_url.rstrip("/").removesuffix("/v1") + "/metrics"
    try:
        async with aiohttp.ClientSession() as session, session.get(url) as reply:
            if reply.status != 200:
                return Counted({}, f"{url}: {reply.status}")
            counts = parse_counters(await reply.text())
    except (aiohttp.ClientError, TimeoutError) as error:
        return Counted({}, f"{url}: {error!r}")
    return Counted(counts, "" if counts else f"{url}: none of vLLM's metrics")


def parse_counters(text: str) -> dict[str, float]:
    """Return the counters that are known here, of Prometheus' text format."""
    totals: dict[str, float] = {}
    for line in text.splitlines():
        if not line or line.startswith("#"):
            continue
        name = line.partition("{")[0].partition(" ")[0]
        totals[name] = totals.get(name, 0.0) + float(line.rsplit(" ", 1)[1])
    return {
        label: sum(totals[name] for name in names if name in totals)
        for label, names in _COUNTERS.items()
        if any(name in totals for name in names)
    }


async def _talk(
    session: aiohttp.ClientSession,
    workload: Workload,
    user: int,
    began_s: float,
    tick: Callable[[], None],
) -> list[Answered]:
    """Have one user's conversation."""
    seed = f"{workload.seed} user {user}"
    messages = [
        {"role": "system", "content": words(workload.system_words, f"{workload.seed} system")}
    ]
    answered = []
    for number in range(workload.num_rounds):
        due_s = began_s + (number * workload.num_users + user) / workload.qps
        await asyncio.sleep(max(0.0, due_s - time.perf_counter()))
        question = f"Question {number} of user {user}: {words(12, f'{seed} round {number}')}?"
        history = f"{words(workload.history_words, seed)}\n\n" if number == 0 else ""
        messages.append({"role": "user", "content": history + question})
        one = await _ask(session, workload, messages, user, number, began_s)
        messages.append({"role": "assistant", "content": one.text})
        answered.append(one)
        tick()
    return answered


async def _ask(
    session: aiohttp.ClientSession,
    workload: Workload,
    messages: list[dict[str, str]],
    user: int,
    number: int,
    began_s: float,
) -> Answered:
    body: dict[str, Any] = {
        "model": workload.model,
        "messages": messages,
        "temperature": 0,
        "max_tokens": workload.answer_tokens,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    asked_s = time.perf_counter()
    first_s = last_s = 0.0
    usage: Mapping[str, int] = {}
    pieces: list[str] = []
    url = f"{workload.base_url.rstrip('/').removesuffix('/v1')}/v1/chat/completions"
    async with session.post(url, json=body) as reply:
        if reply.status != 200:
            raise RuntimeError(f"{url}: {reply.status}: {(await reply.text())[:200]}")
        async for line in reply.content:
            if not line.startswith(b"data: {"):
                continue
            event = json.loads(line[6:])
            if "error" in event:
                raise RuntimeError(f"{url}: in a stream: {event['error']}")
            if event.get("choices") and (piece := event["choices"][0]["delta"].get("content")):
                last_s = time.perf_counter()
                first_s = first_s or last_s
                pieces.append(piece)
            usage = event.get("usage") or usage
    ended_s = time.perf_counter()
    if not usage:
        raise RuntimeError(f"{url}: a stream without usage, which was asked for")
    num_tokens = int(usage["completion_tokens"])
    return Answered(
        user=user,
        round=number,
        began_s=asked_s - began_s,
        first_token_s=(first_s or ended_s) - asked_s,
        token_s=(last_s - first_s) / (num_tokens - 1) if num_tokens > 1 else 0.0,
        whole_s=ended_s - asked_s,
        prompt_tokens=int(usage["prompt_tokens"]),
        output_tokens=num_tokens,
        text="".join(pieces),
    )
