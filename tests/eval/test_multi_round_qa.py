"""The workload of several rounds, against a server of OpenAI's protocol in this process."""

import asyncio
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from reprise.eval import multi_round_qa
from reprise.eval.live.multi_round import _COUNTERS, parse_counters, words


class Server:
    """Answers every chat with three pieces; keeps what it was asked."""

    def __init__(self) -> None:
        self.asked: list[dict[str, Any]] = []
        self.url = ""
        self.ending: list[Any] = [
            {"choices": [], "usage": {"prompt_tokens": 9, "completion_tokens": 3}}
        ]
        """What a stream ends with."""
        self.metrics_status = 200

    async def chat(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        self.asked.append(body)
        reply = web.StreamResponse()
        await reply.prepare(request)
        number = len(self.asked)
        for piece in ("one", " two", f" {number}"):
            await reply.write(_event({"choices": [{"delta": {"content": piece}}]}))
            await asyncio.sleep(0.01)
        for event in self.ending:
            await reply.write(_event(event))
        await reply.write(b"data: [DONE]\n\n")
        return reply

    async def metrics(self, _: web.Request) -> web.Response:
        found = 5 * len(self.asked)
        text = f'# HELP x y\nvllm:prefix_cache_hits_total{{engine="0"}} {found}.0\nother 1\n'
        return web.Response(text=text, status=self.metrics_status)


def _event(value: Any) -> bytes:
    return b"data: " + json.dumps(value).encode() + b"\n\n"


@pytest.fixture
def server() -> Iterator[Server]:
    one, loop, is_up = Server(), asyncio.new_event_loop(), threading.Event()
    app = web.Application()
    app.router.add_post("/v1/chat/completions", one.chat)
    app.router.add_get("/metrics", one.metrics)
    runner = web.AppRunner(app)

    def serve() -> None:
        asyncio.set_event_loop(loop)
        loop.run_until_complete(runner.setup())
        site = web.TCPSite(runner, "127.0.0.1", 0)
        loop.run_until_complete(site.start())
        one.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
        is_up.set()
        loop.run_forever()
        loop.run_until_complete(runner.cleanup())
        loop.close()

    thread = threading.Thread(target=serve)
    thread.start()
    assert is_up.wait(60)
    yield one
    loop.call_soon_threadsafe(loop.stop)
    thread.join(60)


def test_users_talk_in_turns_and_all_is_reported(
    server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, plot = tmp_path / "out.json", tmp_path / "out.svg"
    status = multi_round_qa.main(
        ["--base-url", server.url, "--model", "m", "--num-users", "3", "--num-rounds", "2",
         "--qps", "100", "--output", str(out), "--plot", str(plot), "--quiet"]
    )  # fmt: skip
    assert status == 0
    report = json.loads(out.read_text())
    assert (report["requests"], len(report["rounds"])) == (6, 2)
    assert report["server"] == {"found in the prefix cache": 30.0}
    assert report["first_token_ms"]["p50"] > 0
    assert report["token_ms"]["p50"] > 0
    assert plot.read_text().count("<svg") == 1
    assert "first token in round 2" in capsys.readouterr().out
    systems = {asked["messages"][0]["content"] for asked in server.asked}
    assert len(systems) == 1
    questions = [asked["messages"][-1]["content"] for asked in server.asked]
    assert len(set(questions)) == 6
    second = [asked["messages"] for asked in server.asked if len(asked["messages"]) == 4]
    assert len(second) == 3
    assert all(messages[2]["content"].startswith("one two") for messages in second)


def test_a_server_that_is_not_there_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    given = ["--base-url", "http://127.0.0.1:9", "--model", "m", "--num-users", "1", "--quiet"]
    assert multi_round_qa.main(given) == 2
    assert "a request failed" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("ending", "said"),
    [([], "a stream without usage"), ([{"error": {"message": "died"}}], "in a stream: ")],
)
def test_a_stream_that_does_not_say_all_is_no_answer(
    server: Server, capsys: pytest.CaptureFixture[str], ending: list[Any], said: str
) -> None:
    server.ending = ending
    given = ["--base-url", server.url, "--model", "m", "--num-users", "1", "--quiet"]
    assert multi_round_qa.main(given) == 2
    assert said in capsys.readouterr().err


def test_a_server_that_tells_nothing_of_its_caches_is_named(
    server: Server, capsys: pytest.CaptureFixture[str]
) -> None:
    server.metrics_status = 404
    given = ["--base-url", server.url, "--model", "m", "--num-users", "1", "--num-rounds", "1"]
    assert multi_round_qa.main([*given, "--quiet"]) == 0
    (line,) = capsys.readouterr().err.splitlines()
    assert line.endswith(f"caches and drafts: {server.url}/metrics: 404")


def test_our_counters_are_those_of_a_server() -> None:
    documented = (Path(__file__).resolve().parents[2] / "docs" / "metrics.md").read_text()
    asked = {name for names in _COUNTERS.values() for name in names}
    assert {name for name in asked if f"`{name}`" in documented} >= {
        name for name in asked if name.startswith("reprise:")
    }


def test_counters_are_summed_over_labels() -> None:
    text = 'vllm:prompt_tokens_total{engine="0"} 2\nvllm:prompt_tokens_total{engine="1"} 3\n'
    assert parse_counters(text) == {"prompt tokens": 5.0}


def test_words_are_the_same_for_the_same_seed() -> None:
    assert words(20, "a") == words(20, "a") != words(20, "b")
    assert len(words(20, "a").split()) == 20
