"""Many mixed requests at once against plain vLLM; a soak, and what is left after it."""

import os
import random
import statistics
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil
import pytest
from warm_starts import SPAWN

# Defined in this folder's conftest.py, which pytest imports under a name of its own.
Server = Any

pytestmark = [pytest.mark.engine, pytest.mark.slow, pytest.mark.timeout(3000)]

NUM_REQUESTS = 240
CONCURRENCY = 32
# Ten minutes before a release; every day, 12 rounds of 64 requests.
SOAK_S = float(os.environ.get("SOAK_S", "0"))
_MIN_ROUNDS = 12
_MAY_GROW_MIB = 48

SUBJECTS = ["order", "refund", "password", "delivery"]
VERBS = ["cancel", "change", "find", "check", "report a problem with"]
SETTINGS: list[dict[str, Any]] = [
    {},
    {"max_tokens": 9},
    {"stop": [" you", "."]},
    {"temperature": 0.8, "seed": 3},
    {"temperature": 1.0, "seed": 4, "top_p": 0.8, "top_k": 40},
    {"repetition_penalty": 1.15},
    {"min_tokens": 20, "max_tokens": 24},
]


def mixed_requests(seed: int) -> list[dict[str, Any]]:
    """Chats and completions, streamed or not, greedy and seeded; about a third repeats."""
    generator = random.Random(seed)
    requests = []
    for _ in range(NUM_REQUESTS):
        subject, verb = generator.choice(SUBJECTS), generator.choice(VERBS)
        requests.append(
            {
                "question": f"How do I {verb} my {subject}?",
                "is_chat": generator.random() < 0.7,
                "max_tokens": 48,
                **generator.choice(SETTINGS),
                "stream": generator.random() < 0.5,
            }
        )
    return requests


def outcome(server: Server, asked: dict[str, Any]) -> tuple[str, Any, Any, Any]:
    """Text, ending and usage of one request."""
    body = dict(asked)
    question, is_chat = body.pop("question"), body.pop("is_chat")
    if body["stream"]:
        body["stream_options"] = {"include_usage": True}
    reply = server.chat(question, **body) if is_chat else server.complete(question, **body)
    assert reply.status == 200, f"{reply.body}\n{server.log()[-4000:]}"
    if body["stream"]:
        chunks = reply.chunks
        assert all("choices" in chunk for chunk in chunks), f"{chunks}\n{server.log()[-4000:]}"
        choice = [chunk["choices"][0] for chunk in chunks if chunk["choices"]][-1]
        usage = chunks[-1]["usage"]
    else:
        choice, usage = reply.json["choices"][0], reply.json["usage"]
    counts = (usage["prompt_tokens"], usage["completion_tokens"])
    return reply.text, choice["finish_reason"], choice.get("stop_reason"), counts


def all_outcomes(server: Server, requests: list[dict[str, Any]]) -> list[Any]:
    with ThreadPoolExecutor(CONCURRENCY) as pool:
        return list(pool.map(lambda asked: outcome(server, asked), requests))


def test_mixed_requests_are_byte_for_byte_vllms_own(
    plain_server: Server, reprise_server: Server
) -> None:
    requests = mixed_requests(seed=1)
    wanted = all_outcomes(plain_server, requests)
    given = all_outcomes(reprise_server, requests)
    different = [
        (asked, ours, theirs)
        for asked, ours, theirs in zip(requests, given, wanted, strict=True)
        if ours != theirs
    ]
    assert different == []
    stats = reprise_server.send("/reprise/stats").json["front_end"]
    assert stats["counts"]["exact"] > 20
    assert stats["errors"] == {}
    assert stats["flights"] == 0


class Watch:
    """Private memory of every process of a server, by what each is.

    Private: pages of shared memory, of which a ring is filled once, count for nobody.
    """

    def __init__(self, server: Server) -> None:
        root = psutil.Process(server.process.pid)
        self._processes = {_role(each): each for each in [root, *root.children(recursive=True)]}
        self.samples: dict[str, list[float]] = {role: [] for role in self._processes}

    def sample(self) -> None:
        """Take a sample; a process that is gone raises."""
        for role, process in self._processes.items():
            self.samples[role].append(process.memory_full_info().uss / (1 << 20))

    def growth_mib(self) -> dict[str, float]:
        """By process, from the median of the first third of the samples to that of the last."""
        return {role: _growth(samples) for role, samples in self.samples.items()}


def _role(process: psutil.Process) -> str:
    line = " ".join(process.cmdline())
    for role in ("retrieval_process", "resource_tracker", "EngineCore", "Worker", "vllm_serve"):
        if role in line or role in process.name():
            return role if role != "resource_tracker" else f"{role} {process.pid}"
    return f"{process.name()} {process.pid}"


def _growth(samples: list[float]) -> float:
    third = max(1, len(samples) // 3)
    return statistics.median(samples[-third:]) - statistics.median(samples[:third])


def test_growth_is_seen_and_noise_is_not() -> None:
    noise = [300.0 + (7 * number) % 11 for number in range(30)]
    assert abs(_growth(noise)) < 5
    assert _growth([mib + 2.0 * number for number, mib in enumerate(noise)]) > 35
    assert _growth([100.0]) == 0


@pytest.fixture
def short_folder() -> Iterator[Path]:
    """Make one whose path leaves room for vLLM's sockets; pytest's in a second process does not."""
    with tempfile.TemporaryDirectory(prefix="r-") as folder:
        yield Path(folder)


def test_memory_is_flat_under_load_and_nothing_is_left_after_shutdown(
    demo_model: Path, short_folder: Path, server_builder: Any
) -> None:
    """Memory after a third of the time for warming up: what is left must not grow in the rest.

    Its processes are spawned as users' are.

    oneDNN keeps nothing here: it caches code for every batch shape that it has seen, some 200 MiB
    in the worker before it is full, of plain vLLM as of ours, and would hide a leak.
    """
    server = server_builder(
        demo_model,
        with_reprise=True,
        embeds=True,
        ONEDNN_PRIMITIVE_CACHE_CAPACITY="0",
        TMPDIR=str(short_folder),
        **{SPAWN: "1"},
    )
    try:
        server.wait()
        # Under load it may take longer to load than the warming up takes.
        server.wait_for_retrieval()
        growth = growth_under_load(server)
        assert {role: mib for role, mib in growth.items() if mib > _MAY_GROW_MIB} == {}
        stats = server.send("/reprise/stats").json["front_end"]
        assert stats["errors"] == {}
        assert stats["flights"] == 0
        before = server.chat("before the end")
        assert before.status == 200
        assert server.chat("before the end").cache == "exact"
        root = psutil.Process(server.process.pid)
        processes = [root, *root.children(recursive=True)]
        assert any("retrieval" in " ".join(each.cmdline()) for each in processes)
        assert list(short_folder.glob("reprise-*"))
    finally:
        server.stop()
    _, alive = psutil.wait_procs(processes, timeout=60)
    assert alive == []
    assert list(short_folder.glob("reprise-*")) == []
    pids = {str(process.pid) for process in processes}
    if os.path.isdir("/dev/shm"):
        ours = [name for name in os.listdir("/dev/shm") if name.startswith("reprise")]
        assert [name for name in ours if pids & set(name.replace("_", "-").split("-"))] == []


def growth_under_load(server: Server) -> dict[str, float]:
    """Ask the server for a while; return the MiB that each of its processes has grown by."""
    requests = mixed_requests(seed=2)[:64]
    refresh = {"vllm_xargs": {"reprise_cache": "refresh"}}
    watch = Watch(server)
    assert {"vllm_serve", "EngineCore", "Worker", "retrieval_process"} <= watch.samples.keys()
    rounds = 0
    started_s = time.monotonic()
    while (elapsed_s := time.monotonic() - started_s) < SOAK_S or rounds < _MIN_ROUNDS:
        rounds += 1
        # Exact hits in one round, generations in the next.
        extra = refresh if rounds % 2 else {}
        all_outcomes(server, [{**asked, **extra} for asked in requests])
        if elapsed_s > SOAK_S / 3 and rounds > _MIN_ROUNDS / 3:
            watch.sample()
    growth = watch.growth_mib()
    print(f"{rounds} rounds; MiB grown by process: {growth}")
    assert len(watch.samples["Worker"]) >= 3
    return growth
