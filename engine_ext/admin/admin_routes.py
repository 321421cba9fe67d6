"""Serves `health`, `stats`, `view`, `cache` and `pins` below `/reprise`: an endpoint plugin.

vLLM adds routes of plugins only if `VLLM_PLUGINS` names them; who may use ours, `admin_access`
decides. They are the operator's: tenants, with their API keys, have no part in them.
"""

import asyncio
import json
import math
import os
import time
from argparse import Namespace
from collections.abc import Awaitable, Callable, Mapping
from typing import TYPE_CHECKING, Any, Protocol

import msgspec
from fastapi import APIRouter, FastAPI, HTTPException, Request
from starlette.datastructures import State
from starlette.responses import HTMLResponse, Response
from vllm import envs
from vllm.logger import init_logger

from reprise.engine_ext.admin import pin_routes
from reprise.engine_ext.admin.admin_access import AdminAccess
from reprise.engine_ext.admin.answers_view import answers_view, callers_namespace
from reprise.retrieval.api.answer import Answer
from reprise.retrieval.api.invalidation import CONDITIONS, Invalidation

if TYPE_CHECKING:
    from vllm.engine.protocol import EngineClient

    from reprise.engine_ext.frontend.exact_forgetting import ExactForgetting
    from reprise.engine_ext.frontend.front_end import FrontEnd

logger = init_logger(__name__)

_STATE = "reprise_admin"
_MAX_LISTED = 1000
_DEFAULT_LISTED = 100
_STATS_EVERY_S = 2.0
_TRUE, _FALSE = ("true", "1", "yes", "on"), ("false", "0", "no", "off")


class SharedReply:
    """Shares the result of one slow call among all who ask: one at a time, and not too often.

    Args:
        call: What is called; here, once between two steps of the engine.
        max_age_s: From the end of one call to the beginning of the next.
    """

    def __init__(self, call: Callable[[], Awaitable[Any]], *, max_age_s: float) -> None:
        self._call, self._max_age_s = call, max_age_s
        self._task: asyncio.Task[Any] | None = None
        self._over_s = -math.inf

    async def get(self) -> Any:
        """Return what the call in flight will return, or what the last one returned.

        Raises:
            Exception: Whatever the call raised.
        """
        task = self._task
        is_old = time.monotonic() - self._over_s >= self._max_age_s
        if task is None or (task.done() and is_old):
            task = self._task = asyncio.create_task(self._make())
        # A client that disconnects must not cancel it for the others.
        return await asyncio.shield(task)

    async def _make(self) -> Any:
        try:
            return await self._call()
        finally:
            self._over_s = time.monotonic()


class _Engine(pin_routes.PinningEngine, Protocol):
    """What the routes need of the engine client: `EnhancedAsyncLLM` has it."""

    front_end: "FrontEnd | None"
    exact_forgetting: "ExactForgetting | None"

    async def get_worker_stats(self) -> list[Any]: ...

    async def health_check(self) -> dict[str, Any]: ...


class _Admin:
    """What the routes need."""

    def __init__(self, engine: _Engine, access: AdminAccess) -> None:
        self.engine = engine
        self.access = access
        self.worker_stats = SharedReply(engine.get_worker_stats, max_age_s=_STATS_EVERY_S)


router = APIRouter(prefix="/reprise")


@router.get("/health")
async def health(request: Request) -> Response:
    """Report whether engine and cache work: 200, or 503 when the engine is dead."""
    admin = _admin(request)
    report = await admin.engine.health_check()
    return _json(report, status=503 if report["state"] == "dead" else 200)


@router.get("/stats")
async def stats(request: Request) -> Response:
    """Return figures of this API server process and, up to two seconds old, of the workers."""
    admin = _admin(request)
    assert admin.engine.front_end is not None
    workers = await admin.worker_stats.get()
    report = {"front_end": admin.engine.front_end.figures.stats(), "workers": workers}
    if pins := await admin.engine.get_pin_stats():
        report["kv_pins"] = pins
    return _json(report)


@router.get("/view")
async def view(request: Request) -> Response:
    """Return a page of the last answers of the caller's own namespace that were recorded."""
    admin = _admin(request)
    front_end = admin.engine.front_end
    assert front_end is not None
    namespace = callers_namespace(front_end.config)
    recorded = front_end.recorded.of(namespace)
    page = await asyncio.to_thread(
        answers_view,
        namespace,
        recorded,
        admin.engine.get_tokenizer(),
        front_end=front_end.figures.stats(),
        workers=await admin.worker_stats.get(),
    )
    headers = {"cache-control": "no-store", "x-content-type-options": "nosniff"}
    return HTMLResponse(page, headers=headers)


@router.get("/cache")
async def look_up(request: Request) -> Response:
    """List answers held for exact hits in this process, most recently used first."""
    admin = _admin(request)
    given = _parameters(request.query_params.multi_items())
    limit = _whole_number(given.pop("limit", str(_DEFAULT_LISTED)), "limit")
    wants_texts = _switch(given.pop("texts", "false"), "texts")
    forgetting = admin.engine.exact_forgetting
    assert forgetting is not None
    found = await forgetting.find(_conditions(given or {"everything": True}))
    listed = found[: min(limit, _MAX_LISTED)]
    rows = [_describe(answer) for answer in listed]
    if wants_texts:
        for row, (prompt, response) in zip(rows, await forgetting.texts_of(listed), strict=True):
            row |= {"prompt": prompt, "response": response}
    return _json({"found": len(found), "answers": rows})


@router.delete("/cache")
async def invalidate(request: Request) -> Response:
    """Remove the answers that meet every given condition, in this process, in retrieval, in the
    tier and on all replicas.

    Conditions come in the query or, so that no access log holds them, as a JSON object in the
    body. 400 without any, and for an invalid one; 202 if a store is unreachable and will follow
    later.
    """
    admin = _admin(request)
    given = _parameters(request.query_params.multi_items())
    body = await request.body()
    if body:
        given |= _body_conditions(body, given)
    forgetting = admin.engine.exact_forgetting
    assert forgetting is not None
    report = await forgetting.forget(_conditions(given))
    reply = {
        "removed": report.removed,
        "exact_memory": report.exact,
        "retrieval": report.shared,
        "pending": report.is_pending,
    }
    return _json(reply, status=202 if report.is_pending else 200)


@router.get("/pins")
async def list_pins(request: Request) -> Response:
    """List pinned prefixes, with figures; 409 where the settings switch pins off."""
    return _json(await pin_routes.list_pins(_admin(request).engine))


@router.post("/pins")
async def add_pin(request: Request) -> Response:
    """Compute a prefix and pin it."""
    admin = _admin(request)
    body = _json_of(await request.body())
    return _json(await pin_routes.add_pin(admin.engine, body))


@router.delete("/pins")
async def remove_pins(request: Request) -> Response:
    """Unpin one prefix, or all."""
    admin = _admin(request)
    given = _parameters(request.query_params.multi_items())
    return _json(await pin_routes.remove_pins(admin.engine, given))


class AdminRoutes:
    """The plugin, as vLLM's `EndpointPlugin` wants it."""

    name = "reprise"
    required_tasks = ("generate",)

    def attach_router(self, app: FastAPI) -> None:
        """Add the routes."""
        app.include_router(router)

    async def init_state(
        self, engine_client: "EngineClient | None", state: State, args: Namespace
    ) -> None:
        """Pass the engine client to the routes."""
        front_end = getattr(engine_client, "front_end", None)
        if front_end is None:
            logger.warning(
                "Reprise: /reprise answers 503, because this engine has no Reprise front end."
            )
            return
        has_api_keys = any(args.api_key or [envs.VLLM_API_KEY])
        access = AdminAccess(front_end.config.serving.admin_token, has_api_keys=has_api_keys)
        setattr(state, _STATE, _Admin(engine_client, access))  # type: ignore[arg-type]


def _admin(request: Request) -> _Admin:
    """Return what the routes need, if the caller is admitted."""
    admin = getattr(request.app.state, _STATE, None)
    if not isinstance(admin, _Admin):
        raise HTTPException(503, "this engine has no Reprise front end")
    admin.access.check(request)
    return admin


def _parameters(pairs: list[tuple[str, str]]) -> dict[str, Any]:
    given: dict[str, Any] = {}
    for name, value in pairs:
        if name in given:
            raise HTTPException(400, f"{name} is given twice")
        given[name] = value
    return given


def _body_conditions(body: bytes, given: Mapping[str, Any]) -> dict[str, Any]:
    conditions = _json_of(body)
    if not isinstance(conditions, dict):
        raise HTTPException(400, "the body must be a JSON object of conditions")
    for name in conditions.keys() & given.keys():
        raise HTTPException(400, f"{name} is given twice")
    return conditions


def _json_of(body: bytes) -> Any:
    """Return what a body says; None: it is no JSON, or nested too deeply to be read."""
    try:
        return json.loads(body)
    except (ValueError, RecursionError):
        return None


def _conditions(given: Mapping[str, Any]) -> Invalidation:
    """Return the conditions as given; an invalid one is refused, never ignored."""
    values = dict(given)
    for name in values:
        if name not in CONDITIONS:
            raise HTTPException(
                400, f"unknown condition {name!r}; expected {', '.join(CONDITIONS)}"
            )
    if "older_than_s" in values:
        values["older_than_s"] = _seconds(values["older_than_s"])
    if "everything" in values:
        values["everything"] = _switch(values["everything"], "everything")
    for name, value in values.items():
        if name not in ("older_than_s", "everything") and not isinstance(value, str):
            raise HTTPException(400, f"{name} must be a text")
    try:
        return Invalidation.create(**values)
    except ValueError as error:
        raise HTTPException(400, str(error)) from None


def _seconds(value: Any) -> float:
    try:
        seconds = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError, OverflowError):
        seconds = math.nan
    if not 0.0 <= seconds < math.inf:
        raise HTTPException(400, f"older_than_s must be seconds, 0 or more, got {value!r}")
    return seconds


def _whole_number(value: str, name: str) -> int:
    if not value.isdecimal():
        raise HTTPException(400, f"{name} must be a whole number, 0 or more, got {value!r}")
    return int(value)


def _switch(value: Any, name: str) -> bool:
    word = str(value).strip().lower()
    if word not in _TRUE + _FALSE:
        raise HTTPException(400, f"{name} must be true or false, got {value!r}")
    return word in _TRUE


def _describe(answer: Answer) -> dict[str, Any]:
    return {
        "answer_id": answer.answer_id,
        "namespace": answer.namespace,
        "model_key": answer.model_key,
        "prompt_tokens": len(answer.prompt_token_ids),
        "response_tokens": len(answer.response_token_ids),
        "finish_reason": answer.finish_reason,
        "stop_reason": answer.stop_reason,
        "created_s": answer.created_s,
    }


def _json(body: dict[str, Any], *, status: int = 200) -> Response:
    """Reply, with the process whose figures they are: a server may have several."""
    content = msgspec.json.encode({**body, "process_id": os.getpid()}, enc_hook=str)
    return Response(content, status_code=status, media_type="application/json")
