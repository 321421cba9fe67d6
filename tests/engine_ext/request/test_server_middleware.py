"""The middleware gets into vLLM's own app, and knows the keys that the server checks."""

import sys
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from starlette.responses import PlainTextResponse
from starlette.routing import Route

from reprise.engine_ext.compat.patches import Feature, Role
from reprise.engine_ext.compat.registry import registry
from reprise.engine_ext.request import server_middleware
from reprise.engine_ext.request.http_context import current_http_context
from reprise.engine_ext.request.tenants import SOLE_TENANT, key_namespace

ENTRY = "vllm.entrypoints.launchers.api_server.entry"


@pytest.fixture(autouse=True)
def _reverted() -> Iterator[None]:
    registry.revert(Feature.HTTP)
    yield
    registry.revert(Feature.HTTP)


def install() -> int:
    assert registry.apply(Feature.HTTP, server_middleware, role=Role.API_SERVER)
    return registry.num_patched(Feature.HTTP)


def server_arguments(**given: Any) -> SimpleNamespace:
    return SimpleNamespace(**{"api_key": None, "middleware": [], "ssl_cert_reqs": 0, **given})


def test_the_middleware_goes_in_by_vllms_own_option(monkeypatch: pytest.MonkeyPatch) -> None:
    def build_app(args: Any, *_others: Any) -> list[str]:
        return list(args.middleware)

    build_app.__module__ = "vllm.entrypoints.launchers.app"
    entry = SimpleNamespace(build_app=build_app)
    monkeypatch.setitem(sys.modules, ENTRY, entry)
    assert install() == install() == 1
    args = server_arguments(middleware=["theirs"])
    assert entry.build_app(args, ("generate",)) == ["theirs", server_middleware.MIDDLEWARE]
    assert entry.build_app(args, ("generate",)) == ["theirs", server_middleware.MIDDLEWARE]
    args.middleware = None
    assert server_middleware.build_app(lambda args: args, args).middleware is None


async def test_vllms_app_has_the_middleware_and_it_the_keys() -> None:
    """With vLLM's own app, as its server builds it."""
    from vllm.entrypoints.launchers.api_server import entry
    from vllm.entrypoints.launchers.cli_args import make_arg_parser
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    seen = []

    async def health(_request: Any) -> PlainTextResponse:
        context = current_http_context.get()
        seen.append(context.tenant if context is not None else "no context")
        return PlainTextResponse("")

    assert install()
    args = make_arg_parser(FlexibleArgumentParser()).parse_args(["--api-key", "a", "b"])
    app = entry.build_app(args, ("generate",), None)
    app.router.routes.insert(0, Route("/health", health))
    transport = httpx.ASGITransport(app=app)
    async with httpx.AsyncClient(transport=transport, base_url="http://server") as client:
        for token in ("Bearer a", "Bearer b", "Bearer c", ""):
            headers = {"authorization": token} if token else {}
            assert (await client.get("/health", headers=headers)).status_code == 200
    assert seen == [key_namespace("a"), key_namespace("b"), None, None]


def test_tenants_are_told_apart_as_the_server_does_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def tenant(authorization: str | None, **given: Any) -> str | None:
        return server_middleware.server_tenants(server_arguments(**given)).tenant_of(authorization)

    monkeypatch.delenv("VLLM_API_KEY", raising=False)
    assert tenant("Bearer EMPTY") == tenant(None) == SOLE_TENANT
    assert tenant("Bearer a", api_key=["a", "b"]) == key_namespace("a")
    assert tenant("Bearer c", api_key=["a", "b"]) is None
    assert tenant(None, api_key=["a", "b"]) is None
    # Somebody else may tell clients apart, by what is not seen here.
    assert tenant("Bearer a", middleware=["their.Login"]) is None
    assert tenant("Bearer a", ssl_cert_reqs=2) is None
    assert tenant("Bearer a", middleware=[server_middleware.MIDDLEWARE]) == SOLE_TENANT
    assert server_middleware.server_tenants(SimpleNamespace()).tenant_of(None) is None
    monkeypatch.setenv("VLLM_API_KEY", "e")
    assert tenant("Bearer e") == key_namespace("e")
    assert tenant("Bearer EMPTY") is None
