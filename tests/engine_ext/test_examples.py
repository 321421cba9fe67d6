"""The programs in `examples/` do what they say, with real engines and the demo model."""

import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import light_processes
import pytest

from reprise.eval.live.redis_server import RedisServer

pytest.importorskip("vllm")

FOLDER = Path(__file__).resolve().parents[2] / "examples"
# As small as engines are made here: 1,024 tokens for each of a few requests.
OPTIONS = ("--enforce-eager", "--max-model-len", "1024", "--kv-cache-memory-bytes", str(1 << 27))
MAX_LINES = 60
IN_TIME = light_processes.BY_WORDS
"""Settings with which near answers are there before the reply begins."""
MOST_RUNS = 3
"""Until they are, where others have the cores."""


def run(name: str, *arguments: str, **environment: str) -> str:
    done = subprocess.run(
        [sys.executable, str(FOLDER / name), *arguments],
        capture_output=True,
        text=True,
        timeout=850,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1", "VLLM_NO_USAGE_STATS": "1", **environment},
    )
    assert done.returncode == 0, f"{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    return done.stdout


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.py")), ids=lambda path: path.stem)
def test_an_example_is_short_guarded_and_listed(path: Path) -> None:
    source = path.read_text(encoding="utf-8")
    assert source.count("\n") <= MAX_LINES
    if path.name != "server.py":
        assert 'if __name__ == "__main__":' in source
        assert f"def test_{path.stem}" in Path(__file__).read_text(encoding="utf-8")
    assert path.name in (FOLDER / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    "path", sorted({*FOLDER.glob("*.py")} - {FOLDER / "server.py"}), ids=lambda path: path.stem
)
def test_an_example_says_what_it_wants(path: Path) -> None:
    done = subprocess.run(
        [sys.executable, str(path)], capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 1
    assert f"python examples/{path.name} " in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.engine
def test_quickstart(reprise_server: Any) -> None:
    output = run("quickstart.py", reprise_server.url, OPENAI_API_KEY=reprise_server.api_keys[0])
    taken = re.findall(r"ms +(\w+(?:; reason=\w+)?) +\S+ ", output)
    assert taken[1] == "exact"
    assert taken[3].endswith("; reason=sampled")


@pytest.mark.engine
def test_tenants(reprise_server: Any) -> None:
    output = run("tenants.py", reprise_server.url, KEYS=",".join(reprise_server.api_keys))
    kinds = [line.split()[1].rstrip(";") for line in output.splitlines()]
    assert [kind == "exact" for kind in kinds] == [False, True, False, True]


@pytest.mark.engine
def test_prometheus_scrape(reprise_server: Any) -> None:
    output = run(
        "prometheus_scrape.py", reprise_server.url, OPENAI_API_KEY=reprise_server.api_keys[0]
    )
    assert int(re.findall(r"(\d+) of \d+ requests were exact hits", output)[0]) >= 3
    assert int(re.findall(r"(\d+) tokens were not generated", output)[0]) >= 27


@pytest.mark.slow
@pytest.mark.engine
@pytest.mark.timeout(1800)
def test_in_process(demo_model: Path, memory_waiter: Callable[[], None]) -> None:
    memory_waiter()
    output = run("in_process.py", str(demo_model), VLLM_CPU_KVCACHE_SPACE="1")
    lines = [line for line in output.splitlines() if " ms " in line]
    assert [line.split()[2] for line in lines] == ["miss", "exact"]
    assert lines[0].split("miss")[1].strip() == lines[1].split("exact")[1].strip()
    assert "'exact': 1" in output


@pytest.mark.slow
@pytest.mark.engine
@pytest.mark.timeout(1800)
def test_redis_two_servers(
    demo_model: Path, redis_server: RedisServer, memory_waiter: Callable[[], None]
) -> None:
    kinds = []
    while len(kinds) < MOST_RUNS and "semantic" not in kinds:
        memory_waiter()
        redis_server.kill()
        redis_server.start()  # empty
        output = run("redis_two_servers.py", redis_server.url, str(demo_model), *OPTIONS, **IN_TIME)
        first, second = (line for line in output.splitlines() if line.startswith("http"))
        assert first.split()[1].rstrip(";") == "miss"
        kinds.append(second.split()[1].rstrip(";"))
    assert "semantic" in kinds, kinds


@pytest.mark.slow
@pytest.mark.engine
@pytest.mark.timeout(1800)
def test_preload_from_logs(
    demo_model: Path, tmp_path: Path, memory_waiter: Callable[[], None]
) -> None:
    log = tmp_path / "chats.jsonl"
    questions = ("How do I cancel an order?", "Where is my parcel?", "What does delivery cost?")
    rows = [
        {
            "messages": [
                {"role": "user", "content": question},
                {"role": "assistant", "content": "Open your orders and choose it there."},
            ]
        }
        for question in questions
    ]
    log.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    for _ in range(MOST_RUNS):
        memory_waiter()
        output = run("preload_from_logs.py", str(log), str(demo_model), *OPTIONS, **IN_TIME)
        assert "3 answers imported" in output
        assert "3 of 3 answers embedded" in output
        if re.search(r"(?m)^semantic +How can I cancel an order\?$", output):
            return
    pytest.fail(output[-3000:])


def test_a_server_that_checks_no_keys_tells_no_tenants_apart() -> None:
    class Open(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("content-type", "application/json")
            self.end_headers()
            self.wfile.write(b'{"object": "list", "data": []}')

        def log_message(self, *_: object) -> None:
            pass

    http = HTTPServer(("127.0.0.1", 0), Open)
    threading.Thread(target=http.serve_forever, args=(0.02,), daemon=True).start()
    try:
        done = subprocess.run(
            [sys.executable, str(FOLDER / "tenants.py"), f"http://127.0.0.1:{http.server_port}"],
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
    finally:
        http.shutdown()
        http.server_close()
    assert done.returncode == 1
    assert "checks no API keys" in done.stderr
    assert done.stdout == ""
