"""Real OpenAI servers on the CPU, one of each kind for all tests."""

import contextlib
import functools
import http.client
import json
import os
import re
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import light_processes
import pytest
from warm_starts import start_program

from reprise.engine_ext.core.proposer_path import PROPOSER_PATH
from reprise.eval.demo_data.demo_model import DEMO_DTYPE
from reprise.eval.live.engine_environment import engine_environment
from reprise.eval.live.server_process import free_port

API_KEYS = ("key-of-one", "key-of-another")
ADMIN_TOKEN = "token-of-the-operator"
MODEL_NAME = "demo"
_CHAT = "/v1/chat/completions"
_STARTS_WITHIN_S = 800.0
_STOPS_WITHIN_S = 100.0


class Reply(NamedTuple):
    """One reply of a server."""

    status: int
    headers: dict[str, str]
    """Names in lower case."""
    body: str

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def cache(self) -> str | None:
        """The kinds, without a reason."""
        kinds, _, _ = self.headers.get("x-reprise-cache", "").partition(";")
        return kinds or None

    @property
    def reason(self) -> str | None:
        """Why it could not be an exact hit; None: it could, for all that the reply says."""
        return self.headers.get("x-reprise-cache", "").partition("; reason=")[2] or None

    @property
    def generated(self) -> bool:
        """Whether the engine generated it, with or without near answers to draft from."""
        return self.cache in ("miss", "semantic", "clause")

    @property
    def text(self) -> str:
        """The text of the first choice, streamed or not."""
        if not self.headers["content-type"].startswith("text/event-stream"):
            choice = self.json["choices"][0]
            return str(choice["text"] if "text" in choice else choice["message"]["content"])
        return "".join(piece(chunk) for chunk in self.chunks)

    @property
    def chunks(self) -> list[Any]:
        """The events of a stream, without its comments."""
        lines = [line for line in self.body.splitlines() if line and not line.startswith(":")]
        lines = [line.removeprefix("data: ") for line in lines]
        assert lines[-1] == "[DONE]"
        return [json.loads(line) for line in lines[:-1]]


def piece(chunk: Any) -> str:
    """The text in one event of a stream."""
    if not chunk["choices"]:
        return ""
    choice = chunk["choices"][0]
    return str(choice["text"] if "text" in choice else choice["delta"].get("content") or "")


class Server:
    """`vllm serve`, as `reprise serve` starts it, in a process group of its own."""

    api_keys = API_KEYS
    model_name = MODEL_NAME

    def __init__(
        self, model: Path, *arguments: str, api_keys: Sequence[str] = API_KEYS, **environment: str
    ) -> None:
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self._is_ending = False
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 - open as long as the server
        command = [
            "-m",
            "reprise.engine_ext.cli.vllm_serve",
            str(model),
            "--served-model-name",
            MODEL_NAME,
        ]
        command += ["--host", "127.0.0.1", "--port", str(self.port), "--enforce-eager"]
        command += ["--max-num-seqs", "32", "--max-model-len", "1024", "--dtype", DEMO_DTYPE]
        command += ["--kv-cache-memory-bytes", str(1 << 28)]
        command += [*(["--api-key", *api_keys] if api_keys else []), *arguments]
        self.process = start_program(
            command,
            environment={
                **os.environ,
                "OMP_NUM_THREADS": "1",
                "VLLM_NO_USAGE_STATS": "1",
                light_processes.PATIENT: "1",
                **environment,
            },
            folder=tempfile.gettempdir(),
            stdout=self._log.fileno(),
            stderr=self._log.fileno(),
        )

    def wait(self) -> None:
        """Until it answers."""
        deadline = time.monotonic() + _STARTS_WITHIN_S
        while time.monotonic() < deadline and self.process.poll() is None:
            with contextlib.suppress(OSError, http.client.HTTPException):
                if self.send("/health").status == 200:
                    return
            time.sleep(0.25)
        raise RuntimeError(f"the server did not start:\n{self.log()[-6000:]}")

    def wait_for_retrieval(self) -> None:
        """Of a server of ours with admin routes: until its embedding model is loaded."""
        deadline = time.monotonic() + _STARTS_WITHIN_S
        while self.send("/reprise/stats").json["front_end"]["retrieval"]["state"] == "starting":
            assert time.monotonic() < deadline, self.log()[-6000:]
            time.sleep(0.25)

    def log(self) -> str:
        """Everything that it has printed."""
        self._log.seek(0)
        return self._log.read().decode(errors="replace")

    def terminate(self) -> None:
        """Ask it to end; `stop` has still to be called."""
        if not self._is_ending:
            self._is_ending = True
            self.process.send_signal(signal.SIGTERM)

    def stop(self) -> None:
        """Ask it to end, and make sure of it."""
        self.terminate()
        try:
            self.process.wait(_STOPS_WITHIN_S)
        except subprocess.TimeoutExpired:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
            raise
        finally:
            self._log.close()

    def send(
        self,
        path: str,
        body: dict[str, Any] | None = None,
        *,
        key: str | None = API_KEYS[0],
        method: str | None = None,
        **headers: str,
    ) -> Reply:
        """One request, read to the end; `headers` with underscores for dashes."""
        return _read(self._begin(path, body, key=key, method=method, **headers))

    def _begin(
        self,
        path: str,
        body: dict[str, Any] | None,
        *,
        key: str | None,
        method: str | None = None,
        **headers: str,
    ) -> http.client.HTTPConnection:
        """Send a request; its reply is still to be read."""
        given = {name.replace("_", "-"): value for name, value in headers.items()}
        # Asks for nothing, but to be told, which streams are not otherwise.
        given.setdefault("x-reprise-cache", "")
        if path.startswith("/reprise/"):
            given.setdefault("x-reprise-admin-token", ADMIN_TOKEN)
        if key is not None:
            given["Authorization"] = f"Bearer {key}"
        data = None
        if body is not None:
            given["Content-Type"] = "application/json"
            data = json.dumps({"model": MODEL_NAME, **body}).encode()
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=280)
        connection.request(method or ("GET" if data is None else "POST"), path, data, given)
        return connection

    def metric(self, name: str, **labels: str) -> float:
        """The sum of a metric's samples with these labels."""
        total = 0.0
        for line in self.send("/metrics").body.splitlines():
            if re.match(rf"{re.escape(name)}[{{ ]", line) and all(
                f'{label}="{value}"' in line for label, value in labels.items()
            ):
                total += float(line.rsplit(" ", 1)[1])
        return total

    def chat(self, question: str, *, key: str | None = API_KEYS[0], **body: Any) -> Reply:
        """One greedy chat completion; `headers` in `body` go into the request's head."""
        headers = body.pop("headers", {})
        return self.send(_CHAT, _one_question(question, **body), key=key, **headers)

    def chat_together(self, question: str, num_requests: int, **body: Any) -> list[Reply]:
        """The same chat completion several times, every second one streamed: all are sent
        before the first reply is read."""
        headers = body.pop("headers", {})
        begun = [
            self._begin(
                _CHAT,
                _one_question(question, stream=index % 2 == 1, **body),
                key=API_KEYS[0],
                **headers,
            )
            for index in range(num_requests)
        ]
        return [_read(connection) for connection in begun]

    def complete(self, prompt: str, *, key: str | None = API_KEYS[0], **body: Any) -> Reply:
        """One greedy completion."""
        return self.send(
            "/v1/completions",
            {"prompt": prompt, "temperature": 0, "max_tokens": 48, **body},
            key=key,
        )


def _one_question(question: str, **body: Any) -> dict[str, Any]:
    messages = [{"role": "user", "content": question}]
    return {"messages": messages, "temperature": 0, "max_tokens": 48, **body}


def _read(connection: http.client.HTTPConnection) -> Reply:
    with contextlib.closing(connection):
        reply = connection.getresponse()
        headers = {name.lower(): value for name, value in reply.getheaders()}
        return Reply(reply.status, headers, reply.read().decode())


def reprise_arguments() -> list[str]:
    """What makes a vLLM server ours."""
    return [
        "--speculative-config",
        json.dumps({"model": PROPOSER_PATH, "num_speculative_tokens": 16}),
    ]


def build_server(
    model: Path, *arguments: str, with_reprise: bool, embeds: bool = False, **others: Any
) -> Server:
    """A server that is starting; one of ours has its admin routes on, and compares questions by
    their words, whole, unless `embeds`."""
    given = ["--enable-auto-tool-choice", "--tool-call-parser", "hermes", *arguments]
    if "--data-parallel-size" in arguments:
        others.setdefault("VLLM_CPU_OMP_THREADS_BIND", "auto")  # else it wants a list for each rank
    if with_reprise:
        given += reprise_arguments()
        ours = {"VLLM_PLUGINS": "reprise", "REPRISE_SERVING__ADMIN_TOKEN": ADMIN_TOKEN}
        others = ours | ({} if embeds else light_processes.BY_WORDS) | others
    else:
        others = {"VLLM_PLUGINS": engine_environment(with_reprise=False)["VLLM_PLUGINS"], **others}
    return Server(model, *given, **others)


@pytest.fixture(scope="session")
def server_builder(memory_waiter: Callable[[], None]) -> Callable[..., Server]:
    """For tests that need a server of their own."""

    def build(*arguments: Any, **others: Any) -> Server:
        memory_waiter()
        return build_server(*arguments, **others)

    return build


@pytest.fixture
def plain_server(shared: Any, demo_model: Path, server_builder: Callable[..., Server]) -> Server:
    """vLLM as it comes; shared by all tests."""
    return _shared_server("plain_server", shared, demo_model, server_builder)


@pytest.fixture(autouse=True)
def _begins_anew(request: pytest.FixtureRequest) -> None:
    """A server that tests share has kept what the first try of one has asked for."""
    is_second_try = getattr(request.node, "execution_count", 1) > 1
    if is_second_try and "reprise_server" in request.fixturenames:
        server = request.getfixturevalue("reprise_server")
        server.send("/reprise/cache?everything=true", method="DELETE")


@pytest.fixture
def reprise_server(shared: Any, demo_model: Path, server_builder: Callable[..., Server]) -> Server:
    """vLLM with our proposer, and thereby with our front end, admin routes on; shared by all."""
    return _shared_server("reprise_server", shared, demo_model, server_builder)


def _shared_server(
    name: str, shared: Any, model: Path, server_builder: Callable[..., Server]
) -> Server:
    """The two start side by side, if both will be used."""
    for each in ("plain_server", "reprise_server"):
        if shared.has_users(each):
            with_reprise = each == "reprise_server"
            build = functools.partial(server_builder, model, with_reprise=with_reprise, embeds=True)
            shared.get(each, build, Server.stop)
    server: Server = shared.get(name, lambda: None, Server.stop)
    server.wait()
    return server
