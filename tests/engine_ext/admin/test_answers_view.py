"""`/reprise/view`: whose answers it shows, to whom, and that it is a page of them."""

import asyncio
import re
from types import SimpleNamespace
from typing import Any

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from reprise.engine_ext.admin.admin_routes import AdminRoutes
from reprise.engine_ext.admin.answers_view import live_figures
from reprise.engine_ext.core.config import load_config
from reprise.engine_ext.request.http_context import HttpContextMiddleware
from reprise.engine_ext.request.recorded_answers import RecordedAnswer, RecordedAnswers
from reprise.engine_ext.request.tenants import ServerTenants, key_namespace
from reprise.spec.api.recorded_steps import (
    DraftedToken,
    RecordedNear,
    RecordedRequest,
    RecordedStep,
)

TOKEN = "token-of-the-operator"
ONE, ANOTHER = "key-of-one", "key-of-another"
HOSTILE = "</script><img src=x onerror=alert(1)>"
WORKER = {
    "provider": {
        "steps": 10,
        "accepted": 25,
        "by_source": {
            source: {"drafted": 9, "accepted": number}
            for source, number in (("near_answer", 20), ("context", 4), ("corpus", 1))
        },
    }
}


class Tokenizer:
    """Characters for tokens."""

    eos_token_id = 0
    all_special_tokens: tuple[str, ...] = ()
    chat_template = None

    def decode(self, token_ids: list[int], **_: Any) -> str:
        return "".join(map(chr, token_ids))


def ids(text: str) -> list[int]:
    return [ord(c) for c in text]


def recorded(said: str) -> RecordedAnswer:
    tokens = [*ids(said), 0]
    draft = [DraftedToken(token, "near_answer", "a") for token in tokens[1:-1]]
    steps = [RecordedStep(len(tokens) - 1, len(draft), draft)]
    near = {"a": RecordedNear(0.875, 0, ids(f"earlier {HOSTILE}"))}
    return RecordedAnswer(ids(f"asked {HOSTILE}"), tokens, RecordedRequest(steps, near), 0.0)


def client(
    *answers: tuple[str, RecordedAnswer],
    api_keys: tuple[str, ...] = (ONE, ANOTHER),
    others_check: bool = False,
    has_middleware: bool = True,
    **config: Any,
) -> TestClient:
    kept = RecordedAnswers()
    for namespace, answer in answers:
        kept.add(namespace, answer)
    config = {"serving": {"admin_token": TOKEN}, **config}

    async def workers() -> list[Any]:
        return [WORKER]

    engine = SimpleNamespace(
        front_end=SimpleNamespace(
            config=load_config(config),
            recorded=kept,
            figures=SimpleNamespace(
                stats=lambda: {
                    "counts": {"miss": 3, "exact": 2},
                    "retrieval": {"breakers": {"answers": "open"}},
                }
            ),
        ),
        get_worker_stats=workers,
        get_tokenizer=Tokenizer,
    )
    app, routes = FastAPI(), AdminRoutes()
    routes.attach_router(app)
    args: Any = SimpleNamespace(api_key=list(api_keys))
    asyncio.run(routes.init_state(engine, app.state, args))  # type: ignore[arg-type]
    if has_middleware:
        app.add_middleware(
            HttpContextMiddleware,  # type: ignore[arg-type]
            tenants=ServerTenants(api_keys, others_check=others_check),
        )
    return TestClient(app, base_url="http://127.0.0.1:8000", client=("127.0.0.1", 50_000))


def view(of: TestClient, key: str | None = None, **headers: str) -> Any:
    given = {"x-reprise-admin-token": TOKEN}
    if key is not None:
        given["authorization"] = f"Bearer {key}"
    given |= {name.replace("_", "-"): value for name, value in headers.items()}
    return of.get("/reprise/view", headers=given)


@pytest.fixture(autouse=True)
def _no_keys_of_the_shell(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("VLLM_API_KEY", raising=False)


BOTH = (
    (key_namespace(ONE), recorded("said to one")),
    (key_namespace(ANOTHER), recorded("said to another")),
    ("", recorded("said to nobody")),
)


def said(page: Any) -> set[str]:
    """Which of the answers a reply has, read as a browser would."""
    text = re.sub("<[^>]*>", "", page.text)
    return {name for name in ("one", "another", "nobody") if f"said to {name}" in text}


def test_a_key_sees_its_own_and_no_other() -> None:
    server = client(*BOTH)
    assert said(view(server, ONE)) == {"one"}
    assert said(view(server, ANOTHER)) == {"another"}


@pytest.mark.parametrize("key", [None, "key-of-nobody", TOKEN])
def test_without_a_key_that_the_server_knows_nothing_is_shown(key: str | None) -> None:
    reply = view(client(*BOTH), key)
    assert reply.status_code == 403
    assert said(reply) == set()


def test_where_others_may_check_or_nobody_knows_nothing_is_shown() -> None:
    for server in (
        client(*BOTH, api_keys=(), others_check=True),
        client(*BOTH, has_middleware=False),
    ):
        assert view(server).status_code == 403


def test_the_admin_token_is_needed_beside_the_key() -> None:
    server = client(*BOTH)
    assert (
        server.get("/reprise/view", headers={"authorization": f"Bearer {ONE}"}).status_code == 401
    )
    assert view(server, ONE, x_reprise_admin_token="wrong").status_code == 401


def test_a_server_without_keys_has_one_tenant() -> None:
    assert said(view(client(*BOTH, api_keys=()))) == {"nobody"}


def test_a_declared_namespace_is_the_only_one() -> None:
    server = client(*BOTH, ("acme", recorded("said to another")), namespace="acme")
    assert said(view(server, ONE)) == {"another"}


def test_a_named_namespace_counts_only_where_the_operator_honours_it() -> None:
    answers = (*BOTH, ("mine", recorded("said to another")))
    assert said(view(client(*answers), ONE, x_reprise_namespace="mine")) == {"one"}
    honoured = client(*answers, serving={"admin_token": TOKEN, "client_namespaces": True})
    assert said(view(honoured, ONE, x_reprise_namespace="mine")) == {"another"}
    forged = view(honoured, ONE, x_reprise_namespace=key_namespace(ANOTHER))
    assert forged.status_code == 400
    assert said(forged) == set()


def test_it_is_a_page_of_answers_and_figures() -> None:
    reply = view(client(*BOTH), ONE)
    assert reply.status_code == 200
    assert reply.headers["content-type"].startswith("text/html")
    assert reply.headers["cache-control"] == "no-store"
    assert reply.text.startswith("<!doctype html>")
    assert "<img" not in reply.text
    assert "earlier &lt;/script&gt;" in reply.text
    assert "similarity 0.88" in reply.text
    assert "the last that asked to be recorded" in reply.text
    assert "semantic cache" not in reply.text.partition("<section>")[2].partition("<script>")[0]
    assert "<td>mean acceptance length</td><td>3.50</td>" in reply.text


def test_without_answers_it_says_how_to_ask() -> None:
    text = view(client(), ONE).text
    assert "x-reprise-record: on" in text
    assert "<script>" not in text


def test_live_figures() -> None:
    counts = {"miss": 3, "tokens_saved": 1200, "stored": 2, "exact": 1}
    front_end = {"counts": counts, "retrieval": {"breakers": {"answers": "open"}}}
    figures = dict(live_figures(front_end, [WORKER, {}]))
    assert [name for name in figures if name.startswith("requests")] == [
        "requests: exact",
        "requests: miss",
    ]
    assert figures["requests: miss"] == "3"
    assert figures["output tokens not generated"] == "1,200"
    assert figures["answers stored"] == "2"
    assert figures["accepted tokens: near answer"] == "20"
    assert figures["circuit breaker: answers"] == "open"
    assert dict(live_figures({}, []))["mean acceptance length"] == "no steps"
