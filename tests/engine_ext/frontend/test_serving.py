"""A real server with our front end, beside the same server without it."""

import contextlib
import http.client
import json
import re
import socket
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from urllib.parse import urlencode

import openai
import pytest

# Defined in this folder's conftest.py, which pytest imports under a name of its own.
Reply = Any
Server = Any

pytestmark = [pytest.mark.engine, pytest.mark.slow, pytest.mark.timeout(1800)]

QUESTION = "How do I cancel my order"


def generated(reply: Reply) -> Any:
    """A reply without what differs between any two: ids and times."""
    body = reply.json
    for name in ("id", "created", "system_fingerprint"):
        body.pop(name)
    for choice in body["choices"]:
        for call in choice.get("message", {}).get("tool_calls") or ():
            call.pop("id")
    return body


CHATS: dict[str, dict[str, Any]] = {
    "plain": {},
    "cut": {"max_tokens": 7},
    "seeded": {"temperature": 0.8, "seed": 5},
    "seeded, narrowed": {"temperature": 1.0, "seed": 5, "top_k": 20, "top_p": 0.9},
    "stop string": {"stop": ["ou", " the "]},
    "stop string kept": {"stop": ["ou"], "include_stop_str_in_output": True},
    "penalties": {"presence_penalty": 0.5, "repetition_penalty": 1.2},
    "special tokens": {"skip_special_tokens": False},
    "at least": {"min_tokens": 30, "max_tokens": 40},
    # vLLM refuses these two with any other speculative config.
    "least probability": {"temperature": 1.2, "min_p": 0.2, "seed": 5},
    "biased": {"logit_bias": {"15": -100.0, "17": -100.0, "265": -100.0}},
    "choice": {"structured_outputs": {"choice": ["yes", "no", "perhaps"]}},
    "tools": {
        "tools": [
            {
                "type": "function",
                "function": {
                    "name": "cancel",
                    "parameters": {"type": "object", "properties": {"order": {"type": "string"}}},
                },
            }
        ],
        "tool_choice": {"type": "function", "function": {"name": "cancel"}},
        "max_tokens": 60,
    },
}


@pytest.mark.parametrize("name", CHATS)
def test_generated_and_repeated_chats_are_vllms_own(
    reprise_server: Server, plain_server: Server, name: str
) -> None:
    asked = CHATS[name]
    wanted = generated(plain_server.chat(QUESTION, **asked))
    first = reprise_server.chat(QUESTION, **asked)
    again = reprise_server.chat(QUESTION, **asked)
    # What is cut may be the beginning of what a test before it asked for.
    assert first.generated or name == "cut"
    assert again.cache == "exact"
    assert generated(first) == wanted
    assert generated(again) == wanted


@pytest.mark.parametrize("name", CHATS)
def test_streams_of_exact_hits_add_up_to_the_same(reprise_server: Server, name: str) -> None:
    asked = {**CHATS[name], "stream": True, "stream_options": {"include_usage": True}}
    question = QUESTION + ", as a stream"
    first = reprise_server.chat(question, **asked)
    again = reprise_server.chat(question, **asked)
    assert first.generated or name == "cut"
    assert again.cache == "exact"
    assert again.text == first.text
    assert again.chunks[-1]["usage"] == first.chunks[-1]["usage"]
    ends = [[c["choices"][0] for c in reply.chunks if c["choices"]][-1] for reply in (first, again)]
    assert ends[0]["finish_reason"] == ends[1]["finish_reason"]
    assert ends[0].get("stop_reason") == ends[1].get("stop_reason")
    calls = [
        "".join(
            call["function"].get("arguments") or ""
            for chunk in reply.chunks
            for choice in chunk["choices"]
            for call in choice["delta"].get("tool_calls") or ()
        )
        for reply in (first, again)
    ]
    assert calls[0] == calls[1]
    assert bool(calls[0]) == (name == "tools")


def test_a_stream_tells_who_asks_how_it_was_taken(reprise_server: Server) -> None:
    asked = {"input": "Tell me of responses", "temperature": 0, "max_output_tokens": 24}
    whole = reprise_server.send("/v1/responses", asked)
    text = whole.json["output"][0]["content"][0]["text"]
    for headers, told in (({"x_reprise_cache": ""}, "exact"), ({"x_reprise_info": "on"}, "exact")):
        streamed = reprise_server.send("/v1/responses", {**asked, "stream": True}, **headers)
        assert streamed.cache == told
        assert json.dumps(text) in streamed.body


def test_the_head_of_a_stream_leaves_before_the_cache_is_asked(reprise_server: Server) -> None:
    body = {"model": reprise_server.model_name, "stream": True, "max_tokens": 8}
    body |= {"messages": [{"role": "user", "content": QUESTION}]}
    connection = http.client.HTTPConnection("127.0.0.1", reprise_server.port, timeout=60)
    key = f"Bearer {reprise_server.api_keys[0]}"
    head = {"Authorization": key, "Content-Type": "application/json"}
    with contextlib.closing(connection):
        connection.request("POST", "/v1/chat/completions", json.dumps(body), head)
        reply = connection.getresponse()
        assert reply.getheader("x-reprise-cache") is None
        assert reply.read().rstrip().endswith(b"data: [DONE]")


def test_completions_streamed_and_not(reprise_server: Server, plain_server: Server) -> None:
    wanted = generated(plain_server.complete("To cancel your"))
    assert generated(reprise_server.complete("To cancel your")) == wanted
    again = reprise_server.complete("To cancel your", stream=True)
    assert again.cache == "exact"
    assert again.text == wanted["choices"][0]["text"]
    assert len([chunk for chunk in again.chunks if chunk["choices"][0]["text"]]) > 1
    echoed = reprise_server.complete("To cancel your", echo=True)
    assert echoed.text == "To cancel your" + again.text
    both = reprise_server.complete(["To cancel your", "something new"])  # type: ignore[arg-type]
    assert both.cache.split(", ")[0] == "exact"
    assert both.json["choices"][0]["text"] == again.text


@pytest.mark.parametrize(
    "asked",
    [
        {"n": 2, "temperature": 0.5, "seed": 1},
        {"logprobs": True, "top_logprobs": 2, "max_tokens": 4},
        {"temperature": 0.7},
    ],
    ids=["two choices", "logprobs", "sampled"],
)
def test_what_cannot_be_replayed_passes_through(
    reprise_server: Server, asked: dict[str, Any]
) -> None:
    for _ in range(2):
        reply = reprise_server.chat("pass through", **asked)
        assert reply.status == 200
        assert reply.generated


def test_a_whole_answer_serves_other_limits(reprise_server: Server) -> None:
    whole = reprise_server.complete("limits", max_tokens=400, stop=[" "])
    assert whole.json["choices"][0]["finish_reason"] == "stop"
    assert reprise_server.complete("limits", max_tokens=300, stop=[" "]).cache == "exact"


def test_the_beginning_of_an_answer_is_vllms_own(
    reprise_server: Server, plain_server: Server
) -> None:
    asked = {"ignore_eos": True}
    assert reprise_server.complete("a beginning", max_tokens=40, **asked).generated
    for max_tokens in (40, 23, 1):
        cut = reprise_server.complete("a beginning", max_tokens=max_tokens, **asked)
        assert cut.cache == "exact"
        wanted = plain_server.complete("a beginning", max_tokens=max_tokens, **asked)
        assert generated(cut) == generated(wanted)
    assert reprise_server.complete("a beginning", max_tokens=41, **asked).generated


def test_control_in_headers_and_arguments(reprise_server: Server) -> None:
    ask = reprise_server.chat
    question = "control"
    missing = ask(question, headers={"x_reprise_cache": "only-if-cached"})
    assert (missing.status, missing.cache) == (504, "miss")
    assert ask(question, vllm_xargs={"reprise_cache": "no-store"}).generated
    assert ask(question, headers={"x_reprise_cache": "off"}).generated
    assert ask(question).generated
    assert ask(question).cache == "exact"
    assert ask(question, headers={"x_reprise_cache": "refresh"}).generated
    assert ask(question, vllm_xargs={"reprise_cache": "only-if-cached"}).cache == "exact"
    refused = ask(question, headers={"x_reprise_cache": "perhaps"})
    assert refused.status == 400
    assert "only-if-cached" in refused.json["error"]["message"]
    # Another one that lives longer, if the machine stood still until the first one's time was over.
    for ttl_s in (2, 8, 32):
        question, short = f"lives for {ttl_s} s", {"x_reprise_ttl": str(ttl_s)}
        began_s = time.monotonic()
        ask(question, headers=short)
        kind = ask(question, headers=short).cache
        if kind == "exact":
            break
        assert time.monotonic() - began_s > ttl_s
    assert kind == "exact"
    time.sleep(ttl_s + 0.1)
    assert ask(question).generated


def test_who_asks_is_told_of_drafts_and_retrieval(reprise_server: Server) -> None:
    asked = {"max_tokens": 40, "ignore_eos": True, "headers": {"x_reprise_info": "1"}}

    def told(**more: Any) -> Any:
        reply = reprise_server.chat("tell me of my request", **asked, **more)
        if "x-reprise-info" in reply.headers:
            return json.loads(reply.headers["x-reprise-info"])
        (line,) = re.findall(r"^: x-reprise-info (.*)$", reply.body, re.MULTILINE)
        return json.loads(line)

    whole = told()
    drafts = whole["drafts"]
    assert set(drafts["by_source"]) == {"context", "near_answer", "corpus"}
    accepted = sum(counts["accepted"] for counts in drafts["by_source"].values())
    # The first token comes from the prefill.
    assert drafts["steps"] + accepted == 39
    assert told()["cache"] == ["exact"]
    streamed = told(stream=True, vllm_xargs={"reprise_cache": "refresh"})
    accepted = sum(counts["accepted"] for counts in streamed["drafts"]["by_source"].values())
    assert streamed["drafts"]["steps"] + accepted == 39
    assert streamed["cache"] != ["exact"]
    assert "x-reprise-info" not in reprise_server.chat("tell me nothing").headers


def test_a_near_answer_is_told_in_the_reply(reprise_server: Server) -> None:
    question = "Could you please tell me how I can get my money back for this order?"
    reprise_server.chat(question)
    deadline = time.monotonic() + 60
    kinds = {"miss"}
    while "semantic" not in kinds and time.monotonic() < deadline:
        # The same words, whose embedding is remembered: the search must be over in a few ms.
        again = reprise_server.chat(question, headers={"x_reprise_cache": "refresh"})
        kinds.add(again.cache or "")
        time.sleep(0.2)
    assert "semantic" in kinds
    assert reprise_server.metric("reprise:near_answers_total", kind="semantic") > 0


def requests_by_kind(server: Server) -> dict[str, float]:
    """Requests so far by how the cache took them."""
    kinds = ("exact", "followed", "miss")
    return {kind: server.metric("reprise:requests_total", kind=kind) for kind in kinds}


def test_identical_requests_in_flight_cost_one_generation(reprise_server: Server) -> None:
    """A machine may stall for so long that the first has ended before another is taken: those
    are exact hits, and another question is asked."""
    asked = {"max_tokens": 900, "ignore_eos": True, "headers": {"x-reprise-drafts": "off"}}
    for attempt in range(3):
        generated_before = reprise_server.metric("vllm:request_success_total")
        before = requests_by_kind(reprise_server)
        # All are sent before the first is read: the first takes 900 steps.
        replies = reprise_server.chat_together(f"all at once, {attempt}", 8, **asked)
        assert len({reply.text for reply in replies}) == 1
        assert reprise_server.metric("vllm:request_success_total") - generated_before == 1
        assert sorted(reply.generated for reply in replies) == [False] * 7 + [True]
        taken = {
            kind: number - before[kind] for kind, number in requests_by_kind(reprise_server).items()
        }
        assert taken["miss"] == 1
        assert taken["followed"] + taken["exact"] == 7
        if taken["followed"]:
            return
    pytest.fail("of three questions asked eight times at once, none was followed")


def read_first_piece_and_leave(server: Server, question: str, **body: Any) -> None:
    """A client that closes its connection in mid-stream."""
    asked = {
        "model": server.model_name,
        "messages": [{"role": "user", "content": question}],
        "temperature": 0,
        "stream": True,
        **body,
    }
    data = json.dumps(asked).encode()
    key = server.api_keys[0]
    with socket.create_connection(("127.0.0.1", server.port)) as connection:
        connection.sendall(
            b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
            + f"Authorization: Bearer {key}\r\nContent-Length: {len(data)}\r\n\r\n".encode()
            + data
        )
        received = b""
        while received.count(b"data: ") < 2:
            piece = connection.recv(4096)
            assert piece
            received += piece


def test_what_was_aborted_is_no_answer_and_followers_go_on(
    reprise_server: Server, plain_server: Server
) -> None:
    question = "aborted in mid-stream"
    asked = {"max_tokens": 600, "ignore_eos": True}
    with ThreadPoolExecutor(2) as pool:
        leaver = pool.submit(read_first_piece_and_leave, reprise_server, question, **asked)
        time.sleep(0.05)
        follower = pool.submit(reprise_server.chat, question, **asked)
        leaver.result()
    wanted = generated(plain_server.chat(question, **asked))
    assert generated(follower.result()) == wanted
    # Again, if this process stood still and the server had all the time to end the answer.
    kinds = set()
    for attempt in range(3):
        alone, slowly = f"aborted alone, {attempt}", {"vllm_xargs": {"reprise_drafts": "off"}}
        read_first_piece_and_leave(reprise_server, alone, **asked, **slowly)
        again = reprise_server.chat(alone, **asked)
        kinds.add(again.cache)
        if again.generated:
            return
    pytest.fail(f"of three answers that were left, all are repeated: {kinds}")


def test_admin_routes_are_the_operators(
    reprise_server: Server, wait_until: Callable[..., None]
) -> None:
    send = reprise_server.send
    for path in ("/reprise/health", "/reprise/stats", "/reprise/cache"):
        for key in (None, *reprise_server.api_keys):  # tenants' keys open nothing
            assert send(path, key=key, x_reprise_admin_token="wrong").status == 401
    # Its retrieval process may have been silent for some seconds.
    wait_until(lambda: send("/reprise/health").json["state"] == "ready")
    reprise_server.complete("kept for the admin")
    stats = send("/reprise/stats").json
    assert stats["front_end"]["errors"] == {}
    assert stats["front_end"]["memory"]["bytes"] > 0


def test_the_operator_forgets_what_a_person_typed(reprise_server: Server) -> None:
    """Once as a chat, whose template nobody types, once as a completion."""
    question = "What is forgotten here?"
    other = {"key": reprise_server.api_keys[1]}

    def admin(method: str | None = None, **conditions: str) -> Any:
        path = "/reprise/cache?" + urlencode(conditions)
        reply = reprise_server.send(path, method=method)
        assert reply.status == 200
        return reply.json

    for ask in (reprise_server.chat, reprise_server.complete):
        ask(question)
        ask(question, **other)
        theirs, mine = admin(prompt=question)["answers"]
        assert "prompt" not in theirs
        [told] = admin(answer_id=mine["answer_id"], texts="true")["answers"]
        assert question in told["prompt"]
        # The same answer in exact memory, retrieval and its tier is one.
        gone = admin("DELETE", prompt=question, namespace=theirs["namespace"])
        counts = {"removed": 1, "exact_memory": 1, "retrieval": 1, "pending": False}
        assert gone.items() >= counts.items()
        assert ask(question, **other).generated
        assert ask(question).cache == "exact"
        assert admin("DELETE", prompt=question)["removed"] == 2
        assert admin(prompt=question)["found"] == 0
        assert ask(question).generated
        assert admin("DELETE", older_than_s="0", namespace=mine["namespace"])["removed"] > 0
        assert ask(question).cache == "miss"
        assert admin("DELETE", prompt=question)["removed"] == 1


def test_metrics_count_what_happened(reprise_server: Server) -> None:
    def counts() -> list[float]:
        return [
            reprise_server.metric("reprise:requests_total", kind="exact"),
            reprise_server.metric("reprise:requests_total", kind="miss"),
            reprise_server.metric("reprise:tokens_saved_total"),
        ]

    before = counts()
    tokens = reprise_server.chat("counted").json["usage"]["completion_tokens"]
    reprise_server.chat("counted")
    assert [after - was for after, was in zip(counts(), before, strict=True)] == [1, 1, tokens]
    assert reprise_server.metric("reprise:exact_memory_bytes") > 0
    deadline = time.monotonic() + 120
    while not reprise_server.metric("reprise:propose_calls_total"):
        assert time.monotonic() < deadline, "the workers' figures did not come"
        time.sleep(0.5)
    assert reprise_server.metric("reprise:drafted_tokens_total", source="context") > 0
    assert reprise_server.metric("reprise:errors_total") == 0


@pytest.fixture
def client(reprise_server: Server) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(
        base_url=reprise_server.url + "/v1", api_key=reprise_server.api_keys[0]
    ) as client:
        yield client


def test_the_openai_client(client: openai.OpenAI, reprise_server: Server) -> None:
    asked: dict[str, Any] = {
        "model": reprise_server.model_name,
        "messages": [{"role": "user", "content": "the openai client"}],
        "temperature": 0,
        "max_tokens": 40,
    }
    first = client.chat.completions.with_raw_response.create(**asked)
    again = client.chat.completions.with_raw_response.create(**asked)
    assert first.headers["x-reprise-cache"] != "exact"
    assert again.headers["x-reprise-cache"] == "exact"
    assert first.parse().choices[0].message == again.parse().choices[0].message
    assert first.parse().usage == again.parse().usage
    with client.chat.completions.create(**asked, stream=True) as stream:
        text = "".join(chunk.choices[0].delta.content or "" for chunk in stream)
    assert text == first.parse().choices[0].message.content
