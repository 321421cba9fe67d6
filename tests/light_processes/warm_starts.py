"""Start vLLM's processes as forks of one that has imported vLLM already.

A server on a CPU spawns its engine core, and that its worker: three times vLLM is imported, which
takes longer than all else of a start. Here Python's fork server starts them instead: a process that
imports what they import, does nothing else, and forks whenever it is asked. What a spawned process
knows comes to a forked one in the same way, and it has the environment of who starts it. Where that
environment would have changed what is imported, processes are spawned as ever.

Programs of tests that run vLLM are forked likewise (`start_program`, `run_program`), and so are
workers of our commands (`WorkerProcess`) where a test's process, or such a program, is the command.
"""

import atexit
import glob
import io
import os
import runpy
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from multiprocessing import (
    forkserver,
    get_context,
    popen_fork,
    popen_forkserver,
    popen_spawn_posix,
    process,
    reduction,
    resource_tracker,
    spawn,
    util,
)
from multiprocessing.context import set_spawning_popen
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

SPAWN = "LIGHT_PROCESSES_SPAWN"
"""An environment variable: where it is set, processes are spawned as vLLM does it."""
_IMPORTS = "warm_imports"
_READ_BY_IMPORTS = (
    *("ATEN_", "HF_", "HOME", "KMP_", "MKL_", "NUMBA_", "OMP_", "OPENBLAS_"),
    *("OTHER_PROCESSOR", "PYTHONPATH", "TORCH_", "TRANSFORMERS_", "TRITON_", "V2_ON_CPU"),
    *("VLLM_BATCH_INVARIANT", "VLLM_CACHE", "VLLM_CONFIG", "VLLM_CPU_ATTN", "VLLM_LOG"),
    *("VLLM_LORA", "VLLM_RING", "VLLM_TARGET", "VLLM_USE", "XDG_"),
)
# Scikit-learn sets these, for another OpenMP than torch's, in a process that embeds.
_OF_EMBEDDING = ("KMP_DUPLICATE_LIB_OK", "KMP_INIT_AT_FORK")
_MOST_SERVERS = 2
_V2 = "V2_ON_CPU"
_PIPE = "the pipe that this process is given"
_LEADS = "leads"
_SESSION, _GROUP = "a session", "a group"
_MainProcess = type(process.current_process())
_spawned = popen_spawn_posix.Popen
_servers: dict[str, forkserver.ForkServer] = {}
"""By what decides what they have imported."""
_set_by_imports: dict[str, str] = {}
"""What they have set in the environment of the process of which this one was forked."""


def begin() -> None:
    """Have vLLM's processes that this one starts be forked."""
    popen_spawn_posix.Popen = _popen  # type: ignore[assignment, misc]


def _popen(process_obj: Any) -> Any:
    module = getattr(process_obj._target, "__module__", None) or ""
    if module.partition(".")[0] != "vllm" or (server := _server_of(os.environ)) is None:
        return _spawned(process_obj)
    data = spawn.get_preparation_data(process_obj._name)
    return _Forked(process_obj, server, data, os.environ)


def imports_of(environment: Mapping[str, str]) -> str:
    """Return what decides what is imported."""
    names = sorted(name for name in environment if name.startswith(_READ_BY_IMPORTS))
    return repr([(name, environment[name]) for name in names if name not in _OF_EMBEDDING])


def _server_of(environment: Mapping[str, str]) -> forkserver.ForkServer | None:
    """Return the server that has imported what a process with this environment would, if any."""
    if SPAWN in environment:
        return None
    key = imports_of(environment)
    is_v2 = _V2 in environment and _V2 not in os.environ
    if key not in _servers and (not _servers or is_v2) and len(_servers) < _MOST_SERVERS:
        server = forkserver.ForkServer()
        server.set_forkserver_preload([_IMPORTS])
        with _environment({**environment, "LD_PRELOAD": _preloaded(environment)}):
            server.ensure_running()
        _servers[key] = server
    return _servers.get(key)


@contextmanager
def _environment(environment: Mapping[str, str]) -> Iterator[None]:
    before = dict(os.environ)
    try:
        os.environ.clear()
        os.environ.update(environment)
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def _preloaded(environment: Mapping[str, str]) -> str:
    """Return the libraries that vLLM has its processes load first, and those of the environment."""
    found = environment.get("LD_PRELOAD", "").split(":")
    for name, pattern in (
        ("torch", "../torch.libs/libgomp*.so*"),
        ("torch", "lib/libgomp*.so*"),
        ("vllm", "libs/libtcmalloc_minimal*.so*"),
    ):
        spec = find_spec(name)
        if spec is not None and spec.origin is not None:
            found += glob.glob(os.path.join(os.path.dirname(spec.origin), pattern))[:1]
    return ":".join(dict.fromkeys(os.path.realpath(path) for path in found if path))


class _Preparation(dict[str, Any]):
    """What prepares a process, and before that the environment."""

    def __init__(self, data: Mapping[str, Any], environment: Mapping[str, str]) -> None:
        super().__init__(data)
        self._environment = dict(environment)

    def __reduce__(self) -> tuple[Any, ...]:
        return _enter, (self._environment, dict(self))


def _enter(environment: Mapping[str, str], preparation: dict[str, Any]) -> dict[str, Any]:
    """Take over an environment, in the process that was forked, before anything else."""
    atexit.unregister(os._exit)
    if (leads := preparation.pop(_LEADS, None)) == _SESSION:
        os.setsid()
    elif leads == _GROUP:
        os.setpgid(0, 0)
    for fd, given in enumerate(forkserver.get_inherited_fds()[:3]):
        os.dup2(given, fd)
        os.close(given)
    os.environ.clear()
    os.environ.update(_set_by_imports | environment)
    if (cores := environment.get("GOMP_CPU_AFFINITY")) is not None:
        os.sched_setaffinity(0, map(int, cores.split()))  # libgomp reads it when it is loaded
    tempfile.tempdir = None  # of another environment
    _fork_server()  # for what it starts: its descendants, as if it spawned them
    return preparation


class _Forked(popen_forkserver.Popen):
    """As Python's own, of one of several servers."""

    method = "spawn"

    def __init__(
        self,
        process_obj: Any,
        server: forkserver.ForkServer,
        data: Mapping[str, Any],
        environment: Mapping[str, str],
        files: Sequence[int] = (0, 1, 2),
    ) -> None:
        self._fds = list(files)  # what it reads, says and complains to; others come behind them
        self._server = server
        self._preparation = _Preparation(data, environment)
        popen_fork.Popen.__init__(self, process_obj)

    def _launch(self, process_obj: Any) -> None:
        data = io.BytesIO()
        set_spawning_popen(self)
        try:
            reduction.dump(self._preparation, data)
            reduction.dump(process_obj, data)
        finally:
            set_spawning_popen(None)
        self.sentinel, writer = self._server.connect_to_new_process(self._fds)
        kept = os.dup(writer)  # its end tells the process that this one has ended
        self.finalizer = util.Finalize(self, util.close_fds, (kept, self.sentinel))
        with open(writer, "wb") as pipe:
            pipe.write(data.getbuffer())
        self.pid = forkserver.read_signed(self.sentinel)


def start_program(
    words: Sequence[str],
    *,
    environment: Mapping[str, str],
    folder: str,
    stdout: int,
    stderr: int,
    stdin: int | None = None,
) -> "subprocess.Popen[bytes] | Program":
    """Start `python WORD ...`, which runs vLLM, in a session of its own. The words are a file, `-m`
    and a module, or `-c` and code, and behind them what it is given.

    Its three files are file descriptors; without `stdin` it has nothing to read.
    """
    if stdin is None:
        with open(os.devnull, "rb") as nothing:
            return start_program(
                words,
                environment=environment,
                folder=folder,
                stdout=stdout,
                stderr=stderr,
                stdin=nothing.fileno(),
            )
    fds = (stdin, stdout, stderr)
    if (server := _server_of(environment)) is not None:
        return Program(server, words, environment, folder, fds)
    return subprocess.Popen(
        [sys.executable, *words],
        env=environment,
        cwd=folder,
        stdin=stdin,
        stdout=stdout,
        stderr=stderr,
        start_new_session=True,
    )


def run_program(
    words: Sequence[str],
    *,
    environment: Mapping[str, str],
    folder: str | None = None,
    timeout_s: float = 1700.0,
) -> "subprocess.CompletedProcess[str]":
    """Run such a program to its end, as `subprocess.run` does."""
    with tempfile.TemporaryFile() as output, tempfile.TemporaryFile() as errors:
        program = start_program(
            words,
            environment=environment,
            folder=folder or os.getcwd(),
            stdout=output.fileno(),
            stderr=errors.fileno(),
        )
        try:
            status = program.wait(timeout_s)
        except BaseException:
            with suppress(ProcessLookupError):
                os.killpg(program.pid, signal.SIGKILL)
            raise
        said = []
        for file in (output, errors):
            file.seek(0)
            said.append(file.read().decode())
    return subprocess.CompletedProcess([*words], status, *said)


class Program:
    """What is forked in place of `python WORD ...`, with the methods of a `subprocess.Popen`."""

    stdin: Any = None

    def __init__(
        self,
        server: forkserver.ForkServer,
        words: Sequence[str],
        environment: Mapping[str, str],
        folder: str,
        fds: Sequence[int],
        leads: str = _SESSION,
    ) -> None:
        how, *given = words if words[0] in ("-m", "-c") else ("", *words)
        arguments = ["-c", *given[1:]] if how == "-c" else given
        data = {"sys_argv": arguments, "dir": folder, _LEADS: leads}
        about = get_context("spawn").Process(target=_run, args=(how, given[0]))
        self._popen = _Forked(about, server, data, environment, fds)
        self.pid = self._popen.pid

    def poll(self) -> int | None:
        """Return its exit status, if it has ended."""
        return self._popen.poll()

    def wait(self, timeout: float | None = None) -> int:
        """Wait until it has ended, and return its exit status."""
        status = self._popen.wait(timeout)
        if status is None:
            raise subprocess.TimeoutExpired("vLLM", timeout or 0.0)
        return int(status)

    def send_signal(self, number: int) -> None:
        """Send it a signal, unless it has ended."""
        if self.poll() is None:
            os.kill(self.pid, number)


def begin_with_workers(module: ModuleType) -> None:
    """Have the module of `WorkerProcess`, which has just been imported, fork them too."""
    others = {name: getattr(subprocess, name) for name in subprocess.__all__}
    module.subprocess = SimpleNamespace(**{**others, "Popen": _worker})  # type: ignore[attr-defined]


def _worker(command: Sequence[str], **options: Any) -> "subprocess.Popen[bytes] | Program":
    """Start a worker: what it says goes into a pipe, whose descriptor is its last word."""
    environment, (pipe,) = options["env"], options["pass_fds"]
    can_fork = _servers or "pytest" in sys.modules  # other commands are started as by users
    if not can_fork or (server := _server_of(environment)) is None:
        return subprocess.Popen(command, **options)
    assert command[-1] == str(pipe)
    reads, writes = os.pipe()
    log = options["stderr"].fileno()
    fds = (reads, log, log, pipe)
    words = [*command[1:-1], _PIPE]
    program = Program(server, words, environment, os.getcwd(), fds, leads=_GROUP)
    os.close(reads)
    program.stdin = os.fdopen(writes, "wb")
    return program


def _run(how: str, program: str) -> None:
    """Be that program, in the process that was forked for it."""
    sys.stdin = os.fdopen(0, closefd=False)  # Python has closed that of a process's child
    # It is nobody's child, as far as it knows, and tracks what it shares itself.
    process._parent_process = None  # type: ignore[attr-defined]
    process._current_process = _MainProcess()  # type: ignore[attr-defined]
    resource_tracker._resource_tracker._fd = None  # type: ignore[attr-defined]
    if sys.argv[-1] == _PIPE:
        sys.argv[-1] = str(forkserver.get_inherited_fds()[3])
    file = "" if how else os.path.abspath(program)
    sys.path.insert(0, {"-m": os.getcwd(), "-c": ""}.get(how, os.path.dirname(file)))
    try:
        if how == "-m":
            runpy.run_module(program, run_name="__main__", alter_sys=True)
            return
        code = Path(file).read_bytes() if file else program
        sys.modules["__main__"] = main = ModuleType("__main__")
        if file:
            main.__file__ = file
        exec(compile(code, file or "<string>", "exec"), vars(main))
    finally:
        atexit._run_exitfuncs()


def _fork_server() -> None:
    """Fork the server of this process from itself."""
    own = forkserver._forkserver  # type: ignore[attr-defined]
    os.close(own._forkserver_alive_fd)
    alive, own._forkserver_alive_fd = os.pipe()
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind("")  # to a name of Linux's choice, without a file
        listener.listen()
        if os.fork() == 0:
            try:
                for fd in (own._forkserver_alive_fd, *own._inherited_fds[3:]):
                    os.close(fd)
                forkserver.main(os.dup(listener.fileno()), alive, [])
            finally:
                os._exit(0)
        own._forkserver_address = listener.getsockname()
    os.close(alive)


def become_server(before: Mapping[str, str]) -> None:
    """Note, in a server, that it has imported all, and with which environment it began."""
    # What is forked starts others by the same server. Python would start another.
    own = forkserver._forkserver  # type: ignore[attr-defined]
    own.ensure_running = resource_tracker.ensure_running
    _servers.clear()
    for environment in (before, os.environ):
        _servers[imports_of(environment)] = own
    changed = {name: value for name, value in os.environ.items() if before.get(name) != value}
    _set_by_imports.update(changed)
    atexit.register(os._exit, 0)  # its libraries would tell at length what they leave
