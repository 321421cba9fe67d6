"""Real OpenAI servers of each method on this machine, and what they are asked."""

import asyncio
import contextlib
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import aiohttp

from reprise.engine_ext.core.proposer_path import PROPOSER_PATH
from reprise.eval.live.engine_environment import engine_environment
from reprise.eval.live.live_worker import uses_reprise
from reprise.eval.live.server_process import free_port
from reprise.retrieval.host.process_end import end_groups

SPECULATIVE: dict[str, dict[str, Any] | None] = {
    "none": None,
    "ngram": {
        "method": "ngram",
        "num_speculative_tokens": 8,
        "prompt_lookup_max": 4,
        "prompt_lookup_min": 2,
    },
    "suffix": {"method": "suffix"},
    "reprise": {
        "model": PROPOSER_PATH,
        "num_speculative_tokens": 16,
    },
}
MODEL_NAME = "bench"
_STARTS_WITHIN_S = 300.0
_ENDS_WITHIN_S = 20.0


class Timing(NamedTuple):
    """One request."""

    first_token_s: float
    whole_s: float
    output_tokens: int
    text: str


class Load(NamedTuple):
    """One run of many requests."""

    tokens_per_s: float
    first_token_ms_p50: float
    whole_ms_p50: float
    whole_ms_p99: float


class Server:
    """A vLLM server on a free port of this machine."""

    def __init__(
        self,
        model: str,
        speculative: dict[str, Any] | None,
        *,
        dtype: str,
        options: Sequence[str] = (),
        environment: Mapping[str, str] | None = None,
    ) -> None:
        port = free_port()
        self.url = f"http://127.0.0.1:{port}"
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 - open as long as the server
        command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", model]
        command += ["--dtype", dtype, "--served-model-name", MODEL_NAME]
        command += ["--host", "127.0.0.1", "--port", str(port)]
        command += ["--enforce-eager", "--max-num-seqs", "32", "--disable-uvicorn-access-log"]
        command += options
        if speculative is not None:
            command += ["--speculative-config", json.dumps(speculative)]
        variables = {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_NO_USAGE_STATS": "1", **os.environ}
        variables = engine_environment(variables, with_reprise=uses_reprise(speculative))
        # A machine that stands still for vLLM's 5 s would have every connection closed under load.
        variables.setdefault("VLLM_HTTP_TIMEOUT_KEEP_ALIVE", "600")
        self._process = subprocess.Popen(
            command,
            env={**variables, **(environment or {})},
            cwd=tempfile.gettempdir(),
            stdout=self._log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )

    @property
    def pid(self) -> int:
        """Of the API server's process."""
        return self._process.pid

    def has_ended(self) -> bool:
        """Whether the API server's process is gone."""
        return self._process.poll() is not None

    def wait(self) -> None:
        """Until it answers.

        Raises:
            RuntimeError: it did not start; with the end of its log.
        """
        deadline_s = time.monotonic() + _STARTS_WITHIN_S
        while time.monotonic() < deadline_s and self._process.poll() is None:
            try:
                with urllib.request.urlopen(self.url + "/health"):
                    return
            except (OSError, urllib.error.URLError):
                time.sleep(0.3)
        raise RuntimeError(f"a server did not start; its log ends with:\n{self.log_end()}")

    def log_end(self) -> str:
        """The last 3000 bytes that it has printed."""
        self._log.seek(0, os.SEEK_END)
        self._log.seek(max(0, self._log.tell() - 3000))
        return self._log.read().decode(errors="replace")

    def wait_for_retrieval(self) -> None:
        """Of a server of ours: until near answers can be found.

        Raises:
            RuntimeError: they cannot, in the end; without them less would be measured.
        """
        deadline_s = time.monotonic() + _STARTS_WITHIN_S
        while (retrieval := self.stats()["front_end"]["retrieval"])["state"] == "starting":
            if time.monotonic() > deadline_s:
                break
            time.sleep(0.3)
        if retrieval["state"] != "ready":
            raise RuntimeError(
                f"near answers cannot be found: {retrieval['state']}: {retrieval['detail']}"
            )

    def stand_still(self) -> None:
        """Stop all its processes where they are."""
        self._signal(signal.SIGSTOP)

    def go_on(self) -> None:
        """Let them run."""
        self._signal(signal.SIGCONT)

    def terminate(self) -> None:
        """Tell it to stop."""
        self._process.terminate()
        self.go_on()

    def stop(self) -> None:
        """End it and all that it started, and wait for that; twice is as good as once."""
        if self._log.closed:
            return
        self.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(_ENDS_WITHIN_S)
        # What was ended while it started may leave its engine behind, in the same group.
        end_groups([self._process.pid])
        self._process.wait()
        self._log.close()

    def _signal(self, number: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, number)

    def hit_counts(self) -> dict[str, int]:
        """How many requests a server of ours has taken in which way: by kind."""
        counts: dict[str, int] = self.stats()["front_end"]["counts"]
        return counts

    def worker(self) -> dict[str, Any]:
        """The first worker's figures, of a server of ours."""
        figures: dict[str, Any] = self.stats()["workers"][0]
        return figures

    def stats(self) -> dict[str, Any]:
        """All figures of a server of ours."""
        with urllib.request.urlopen(self.url + "/reprise/stats") as reply:
            stats: dict[str, Any] = json.load(reply)
        return stats


def stop_all(servers: Iterable[Server]) -> None:
    """End servers side by side."""
    started = list(servers)
    for server in started:
        server.terminate()
    for server in started:
        server.stop()


@contextlib.contextmanager
def running(model: str, *methods: str, dtype: str) -> Iterator[list[Server]]:
    """Servers of these methods, started side by side, stopped in the end.

    `none` and the peers are vLLM as its users get it: our plugin is loaded into ours alone.
    """
    servers = [Server(model, SPECULATIVE[method], dtype=dtype) for method in methods]
    try:
        for method, server in zip(methods, servers, strict=True):
            server.wait()
            if method == "reprise":
                server.wait_for_retrieval()
        yield servers
    finally:
        stop_all(servers)


@contextlib.contextmanager
def alone(server: Server, servers: Sequence[Server]) -> Iterator[None]:
    """The others of `servers` stand still meanwhile: each has the machine to itself in turn."""
    others = [other for other in servers if other is not server]
    for other in others:
        other.stand_still()
    try:
        yield
    finally:
        for other in others:
            other.go_on()


async def ask(
    session: aiohttp.ClientSession,
    server: Server,
    question: str,
    *,
    max_tokens: int,
    headers: Mapping[str, str],
    cache_salt: str | None = None,
    system: str | None = None,
) -> Timing:
    """One streamed, greedy chat completion."""
    turns = [] if system is None else [{"role": "system", "content": system}]
    body: dict[str, Any] = {
        "model": MODEL_NAME,
        "messages": [*turns, {"role": "user", "content": question}],
        "temperature": 0,
        "max_tokens": max_tokens,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    if cache_salt is not None:
        body["cache_salt"] = cache_salt
    started_s = time.perf_counter()
    first_token_s = 0.0
    tokens: int | None = None
    pieces = []
    url = server.url + "/v1/chat/completions"
    async with session.post(url, json=body, headers=headers) as reply:
        reply.raise_for_status()
        async for line in reply.content:
            if not line.startswith(b"data: {"):
                continue
            event = json.loads(line[6:])
            if event["choices"] and (piece := event["choices"][0]["delta"].get("content")):
                first_token_s = first_token_s or time.perf_counter() - started_s
                pieces.append(piece)
            if event.get("usage"):
                tokens = event["usage"]["completion_tokens"]
    whole_s = time.perf_counter() - started_s
    if tokens is None:
        raise RuntimeError(f"{url}: a stream without usage: {''.join(pieces)[:200]!r}")
    # An answer of no text has its end for a beginning.
    return Timing(first_token_s or whole_s, whole_s, tokens, "".join(pieces))


async def ask_all(
    server: Server,
    questions: Sequence[str],
    *,
    concurrency: int,
    max_tokens: int,
    headers: Mapping[str, str],
    salt_prefix: str | None = None,
) -> tuple[list[Timing], float]:
    """All questions, `concurrency` at a time; their timings in order, and the wall time in s.

    With `salt_prefix` each question has a cache salt, and so stands in a namespace of its own:
    nothing is there to reuse, prefix cache included.
    """
    slots = asyncio.Semaphore(concurrency)

    async def one(session: aiohttp.ClientSession, number: int, question: str) -> Timing:
        async with slots:
            return await ask(
                session,
                server,
                question,
                max_tokens=max_tokens,
                headers=headers,
                cache_salt=f"{salt_prefix}-{number}" if salt_prefix is not None else None,
            )

    connector = aiohttp.TCPConnector(limit=concurrency)
    timeout = aiohttp.ClientTimeout(total=600)
    async with aiohttp.ClientSession(connector=connector, timeout=timeout) as session:
        started_s = time.perf_counter()
        try:
            timings = await asyncio.gather(
                *(one(session, number, question) for number, question in enumerate(questions))
            )
        except (aiohttp.ClientError, TimeoutError) as error:
            raise RuntimeError(
                f"a request failed ({error!r}); the server's log ends with:\n{server.log_end()}"
            ) from error
        return list(timings), time.perf_counter() - started_s


def load_of(timings: Sequence[Timing], wall_s: float) -> Load:
    """The figures of one run."""
    whole_ms = sorted(timing.whole_s * 1e3 for timing in timings)
    return Load(
        tokens_per_s=sum(timing.output_tokens for timing in timings) / wall_s,
        first_token_ms_p50=statistics.median(timing.first_token_s * 1e3 for timing in timings),
        whole_ms_p50=statistics.median(whole_ms),
        whole_ms_p99=whole_ms[min(len(whole_ms) - 1, int(0.99 * len(whole_ms)))],
    )
