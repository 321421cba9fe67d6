"""The admin routes without an engine: who is let in, what is refused, and what waits for whom."""

import asyncio
import time
from types import SimpleNamespace
from typing import Any

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from reprise.engine_ext.admin.admin_routes import AdminRoutes, SharedReply
from reprise.engine_ext.core.config import engine_config, load_config
from reprise.engine_ext.core.error_counter import ErrorCounter
from reprise.engine_ext.frontend.exact_forgetting import ExactForgetting
from reprise.engine_ext.frontend.exact_memory import ExactMemory
from reprise.engine_ext.frontend.pin_forgetting import PinForgetting
from reprise.engine_ext.request.recorded_answers import RecordedAnswers
from reprise.retrieval.api.answer import Answer

TOKEN = "token-of-the-operator"
ROUTES = ("/reprise/health", "/reprise/stats", "/reprise/cache")
HERE = "http://127.0.0.1:8000"


class Tokenizer:
    """Characters for tokens."""

    all_special_tokens = ("<s>",)

    def decode(self, token_ids: list[int], **_: Any) -> str:
        return "".join(map(chr, token_ids))

    def apply_chat_template(self, messages: list[dict[str, str]], **_: Any) -> str:
        turns = "".join(f"<{m['role']}>{m['content']}</{m['role']}>" for m in messages)
        return "<s>system" + turns


def answer(prompt: str, *, namespace: str = "acme", created_s: float | None = None) -> Answer:
    return Answer.create(
        prompt_token_ids=[ord(c) for c in prompt],
        response_token_ids=[1, 2],
        namespace=namespace,
        exact_key=(namespace + prompt).encode(),
        created_s=created_s,
    )


class Engine:
    """What the routes use of an engine client; its workers count how often they are asked."""

    def __init__(self, **serving: Any) -> None:
        self.asked = 0
        memory = ExactMemory(max_bytes=1 << 20)
        self.front_end = SimpleNamespace(
            config=load_config({"serving": serving}),
            exact=SimpleNamespace(memory=memory),
            figures=SimpleNamespace(stats=lambda: {"errors": {}}),
        )

        async def nowhere() -> list[str]:
            return []

        self.exact_forgetting = ExactForgetting(
            memory,
            recorded=RecordedAnswers(),
            tokenizer=Tokenizer,
            pins=PinForgetting(lambda _: asyncio.sleep(0), errors=ErrorCounter()),
            retrieval=None,
            find_retrieval=nowhere,
            errors=ErrorCounter(),
        )

    async def get_worker_stats(self) -> list[Any]:
        self.asked += 1
        await asyncio.sleep(0.05)
        return [{"asked": self.asked}]

    async def get_pin_stats(self) -> list[Any]:
        return []

    async def health_check(self) -> dict[str, Any]:
        return {"state": "ready"}


def client_of(
    engine: Engine, *, api_keys: tuple[str, ...] = (), caller: str = "127.0.0.1", url: str = HERE
) -> TestClient:
    app, routes = FastAPI(), AdminRoutes()
    routes.attach_router(app)
    args: Any = SimpleNamespace(api_key=list(api_keys))
    asyncio.run(routes.init_state(engine, app.state, args))  # type: ignore[arg-type]
    return TestClient(app, base_url=url, client=(caller, 50_000))


@pytest.fixture(autouse=True)
def _no_keys_of_the_shell(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("VLLM_API_KEY", raising=False)


def statuses(client: TestClient, **headers: str) -> set[int]:
    given = {name.replace("_", "-"): value for name, value in headers.items()}
    found = {client.get(path, headers=given).status_code for path in ROUTES}
    return found | {client.delete("/reprise/cache?answer_id=x", headers=given).status_code}


def test_the_token_opens_and_nothing_else_does() -> None:
    for caller in ("127.0.0.1", "10.0.0.9"):
        client = client_of(Engine(admin_token=TOKEN), api_keys=("key",), caller=caller)
        assert statuses(client) == {401}
        assert statuses(client, x_reprise_admin_token=TOKEN[:-1]) == {401}
        assert statuses(client, authorization="Bearer key") == {401}
        assert statuses(client, authorization=f"Bearer {TOKEN}") == {401}
        assert statuses(client, x_reprise_admin_token="") == {401}
        # Beside vLLM's own key.
        given = {"authorization": "Bearer key", "x_reprise_admin_token": TOKEN}
        assert statuses(client, **given) == {200}


def test_without_a_token_only_this_machine_and_only_without_keys() -> None:
    for caller in ("127.0.0.1", "127.3.2.1", "::1", "::ffff:127.0.0.1"):
        assert statuses(client_of(Engine(), caller=caller)) == {200}
    for caller in ("10.0.0.9", "::ffff:10.0.0.9", "2001:db8::1", "testclient", ""):
        assert statuses(client_of(Engine(), caller=caller)) == {403}
    assert statuses(client_of(Engine(), url="http://localhost:8000")) == {200}
    assert statuses(client_of(Engine(), url="http://rebound.example:8000")) == {403}
    keyed = client_of(Engine(), api_keys=("key",))
    assert statuses(keyed) == statuses(keyed, authorization="Bearer key") == {403}


def test_a_key_from_the_environment_closes_them_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_API_KEY", "key")
    app, routes = FastAPI(), AdminRoutes()
    routes.attach_router(app)
    args: Any = SimpleNamespace(api_key=None)
    asyncio.run(routes.init_state(Engine(), app.state, args))  # type: ignore[arg-type]
    assert statuses(TestClient(app, base_url=HERE, client=("127.0.0.1", 1))) == {403}


@pytest.mark.parametrize(
    "header",
    ["x-forwarded-for", "forwarded", "x-real-ip", "via", "x-forwarded-host", "origin"],
)
def test_what_a_proxy_or_a_page_sends_is_not_from_this_machine(header: str) -> None:
    client = client_of(Engine())
    assert statuses(client, **{header.replace("-", "_"): "127.0.0.1"}) == {403}


def test_the_token_is_not_taken_where_vllm_logs_it_and_never_shown() -> None:
    assert TOKEN not in repr(load_config({"serving": {"admin_token": TOKEN}}))
    vllm_config: Any = SimpleNamespace(
        additional_config={"reprise": {"serving": {"admin_token": TOKEN}}}, speculative_config=None
    )
    with pytest.raises(ValueError, match="REPRISE_SERVING__ADMIN_TOKEN") as refused:
        engine_config(vllm_config)
    assert TOKEN not in str(refused.value)


def test_texts_are_returned_only_on_request() -> None:
    engine = Engine()
    engine.front_end.exact.memory.put(answer("secret"))
    client = client_of(engine)
    assert "secret" not in client.get("/reprise/cache").text
    [row] = client.get("/reprise/cache?texts=true").json()["answers"]
    assert row["prompt"] == "secret"


REFUSED = {
    "": "at least one condition",
    "everything=false": "at least one condition",
    "everything=true&namespace=acme": "no other condition",
    "everything=perhaps": "true or false",
    "prompt=": "prompt must not be empty",
    "prompt=%20": "prompt must not be empty",
    "answer_id=": "answer_id must not be empty",
    "tenant=": "tenant must not be empty",
    "older_than_s=-1": "0 or more",
    "older_than_s=nan": "0 or more",
    "older_than_s=inf": "0 or more",
    "older_than_s=7d": "0 or more",
    "namespace=a/b": "must not contain",
    "namespace=acme&tenant=acme": "exclude each other",
    "namespace=acme&namespace=other": "given twice",
    "older_than=0": "unknown condition 'older_than'",
    "promt=x&namespace=acme": "unknown condition 'promt'",
    "texts=true": "unknown condition 'texts'",
}


@pytest.mark.parametrize("query", REFUSED)
def test_what_makes_no_sense_is_refused_and_removes_nothing(query: str) -> None:
    engine = Engine()
    engine.front_end.exact.memory.put(answer("kept"))
    reply = client_of(engine).delete("/reprise/cache?" + query)
    assert reply.status_code == 400
    assert REFUSED[query] in reply.json()["detail"]
    assert "\n" not in reply.json()["detail"]
    assert engine.front_end.exact.memory.stats().answers == 1


@pytest.mark.parametrize(
    "body",
    [
        *(b"[]", b"{", b'{"prompt": 7}', b'{"older_than_s": true}', b'{"namespace": null}'),
        *(b"[" * 100_000, b'{"older_than_s": ' + b"9" * 400 + b"}"),
        # No tier could be told of it: the removal would stay pending.
        *(b'{"%s": "\\ud800"}' % name for name in (b"namespace", b"tenant", b"answer_id")),
        *(b'{"%s": "\\ud800"}' % name for name in (b"prompt", b"model_key")),
    ],
)
def test_a_body_that_makes_no_sense_is_refused(body: bytes) -> None:
    engine = Engine()
    engine.front_end.exact.memory.put(answer("kept"))
    assert client_of(engine).request("DELETE", "/reprise/cache", content=body).status_code == 400
    assert engine.front_end.exact.memory.stats().answers == 1


CHAT = "<s>system<user>What is AI?</user>"
FOLLOW_UP = "<s>system<user>What is AI?</user><assistant>It is</assistant><user>And ML?</user>"
KEPT: dict[str, set[str]] = {
    "prompt=What%20is%20AI?": {FOLLOW_UP, "<s>To be", "old"},
    "prompt=And%20ML?": {CHAT, "<s>To be", "old"},
    "prompt=To%20be": {CHAT, FOLLOW_UP, "old"},
    "prompt=nothing": {CHAT, FOLLOW_UP, "<s>To be", "old"},
    "older_than_s=50": {CHAT, FOLLOW_UP, "<s>To be"},
    "older_than_s=0": set(),
    "everything=true": set(),
    "namespace=acme": {"<s>To be", "old"},
    "tenant=acme": {"old"},
    "tenant=acm": {CHAT, FOLLOW_UP, "<s>To be", "old"},
}


@pytest.mark.parametrize("query", KEPT)
def test_each_condition_does_what_it_says(query: str) -> None:
    engine = Engine()
    memory = engine.front_end.exact.memory
    for each in (
        answer(CHAT),
        answer(FOLLOW_UP),
        answer("<s>To be", namespace="acme.salt"),
        answer("old", namespace="zeta", created_s=time.time() - 100),
    ):
        memory.put(each)
    client = client_of(engine)
    found = client.get("/reprise/cache?" + query).json()["found"]
    reply = client.delete("/reprise/cache?" + query)
    assert reply.status_code == 200
    left = {Tokenizer().decode(a.prompt_token_ids.tolist()) for a in memory.answers()}
    assert left == KEPT[query]
    assert reply.json()["removed"] == reply.json()["exact_memory"] == found == 4 - len(left)


def test_conditions_in_the_body_do_the_same() -> None:
    engine = Engine()
    engine.front_end.exact.memory.put(answer(CHAT))
    reply = client_of(engine).request("DELETE", "/reprise/cache", json={"prompt": "What is AI?"})
    assert reply.json()["removed"] == 1


async def test_however_many_ask_the_workers_are_asked_once_in_a_while() -> None:
    engine = Engine()
    shared = SharedReply(engine.get_worker_stats, max_age_s=600.0)
    replies = await asyncio.gather(*(shared.get() for _ in range(100)))
    assert replies == [[{"asked": 1}]] * 100
    leaver = asyncio.create_task(shared.get())
    assert await shared.get() == [{"asked": 1}]
    shared._over_s -= 600.0  # it is old by now
    leaver = asyncio.create_task(shared.get())
    stayer = asyncio.create_task(shared.get())
    await asyncio.sleep(0.01)
    leaver.cancel()
    assert await stayer == [{"asked": 2}]
    assert engine.asked == 2
