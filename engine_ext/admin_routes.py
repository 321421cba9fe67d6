"""`/reprise/health`, `/reprise/stats` and `/reprise/cache`: an endpoint plugin of vLLM.

vLLM adds routes of plugins only if `VLLM_PLUGINS` names them. They are behind the server's API
keys. Where the server has several keys these are tenants': each sees and drops only what lies
behind its own wall.
"""

import hashlib
import secrets
from argparse import Namespace
from typing import TYPE_CHECKING, Any

import msgspec
from fastapi import APIRouter, FastAPI, HTTPException, Request
from starlette.datastructures import State
from starlette.responses import Response
from vllm import envs
from vllm.logger import init_logger

from reprise.engine_ext.request_control import key_namespace
from reprise.retrieval.answer import Answer, token_bytes

if TYPE_CHECKING:
    from vllm.engine.protocol import EngineClient

    from reprise.engine_ext.async_llm import EnhancedAsyncLLM

logger = init_logger(__name__)

_STATE = "reprise_admin"
_MOST_LISTED = 1000


class _Admin:
    """What the routes need: the engine client and the server's keys."""

    def __init__(self, engine: "EnhancedAsyncLLM", api_keys: list[str]) -> None:
        self.engine = engine
        self._digests = {key: hashlib.sha256(key.encode()).digest() for key in api_keys}

    def tenant(self, request: Request) -> str | None:
        """The namespace prefix that this caller is confined to; None: the operator.

        Raises:
            HTTPException: 401, the caller has none of the server's keys.
        """
        if not self._digests:
            return None
        scheme, _, given = request.headers.get("authorization", "").partition(" ")
        digest = hashlib.sha256(given.strip().encode()).digest()
        matches = [
            key for key, known in self._digests.items() if secrets.compare_digest(digest, known)
        ]
        if scheme.lower() != "bearer" or not matches:
            raise HTTPException(401, "Unauthorized")
        return None if len(self._digests) == 1 else key_namespace(matches[0])

    def find(
        self,
        tenant: str | None,
        *,
        namespace: str | None,
        answer_id: str | None,
        prompt: str | None,
        older_than_s: float | None,
    ) -> list[Answer]:
        """Answers that meet every given condition and that the caller may see."""
        assert self.engine.front_end is not None
        memory = self.engine.front_end.memory
        encoded: list[bytes | None] = [None]
        if prompt is not None:
            # Completions begin with the tokenizer's special tokens, rendered chats bring theirs.
            tokenizer = self.engine.get_tokenizer()
            encoded = list(
                {
                    token_bytes(tokenizer.encode(prompt, add_special_tokens=special))
                    for special in (True, False)
                }
            )
        found = [
            answer
            for token_ids in encoded
            for answer in memory.find(
                namespace=namespace,
                answer_id=answer_id,
                prompt_token_ids=token_ids,
                older_than_s=older_than_s,
            )
        ]
        if tenant is None:
            return found
        return [
            answer
            for answer in found
            if answer.namespace == tenant or answer.namespace.startswith(tenant + ".")
        ]


router = APIRouter(prefix="/reprise")


@router.get("/health")
async def health(request: Request) -> Response:
    """Whether engine and cache work: 200, or 503 when the engine is dead."""
    admin = _admin(request)
    admin.tenant(request)
    report = await admin.engine.health_check()
    return _json(report, status=503 if report["state"] == "dead" else 200)


@router.get("/stats")
async def stats(request: Request) -> Response:
    """Figures of this API server process and of the engine's workers."""
    admin = _admin(request)
    admin.tenant(request)
    return _json(await admin.engine.get_stats())


@router.get("/cache")
async def look_up(
    request: Request,
    namespace: str | None = None,
    answer_id: str | None = None,
    prompt: str | None = None,
    limit: int = 100,
) -> Response:
    """Answers held for exact hits in this process, most recently used first."""
    admin = _admin(request)
    found = admin.find(
        admin.tenant(request),
        namespace=namespace,
        answer_id=answer_id,
        prompt=prompt,
        older_than_s=None,
    )
    listed = found[: max(0, min(limit, _MOST_LISTED))]
    decode = admin.engine.get_tokenizer().decode
    return _json({"found": len(found), "answers": [_describe(answer, decode) for answer in listed]})


@router.delete("/cache")
async def invalidate(
    request: Request,
    namespace: str | None = None,
    answer_id: str | None = None,
    prompt: str | None = None,
    older_than_s: float | None = None,
    everything: bool = False,
) -> Response:
    """Drop the answers that meet every given condition; 400 without any, unless `everything`."""
    admin = _admin(request)
    tenant = admin.tenant(request)
    if not everything and (namespace, answer_id, prompt, older_than_s) == (None,) * 4:
        raise HTTPException(
            400, "name namespace, answer_id, prompt or older_than_s, or say everything=true"
        )
    found = admin.find(
        tenant,
        namespace=namespace,
        answer_id=answer_id,
        prompt=prompt,
        older_than_s=older_than_s,
    )
    assert admin.engine.front_end is not None
    return _json({"removed": admin.engine.front_end.memory.remove(found)})


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
        """Hand the routes the engine client."""
        front_end = getattr(engine_client, "front_end", None)
        if front_end is None:
            logger.warning(
                "Reprise: /reprise answers 503, because this engine has no Reprise front end."
            )
            return
        keys = [key for key in (args.api_key or [envs.VLLM_API_KEY]) if key]
        setattr(state, _STATE, _Admin(engine_client, keys))  # type: ignore[arg-type]


def _admin(request: Request) -> _Admin:
    admin = getattr(request.app.state, _STATE, None)
    if not isinstance(admin, _Admin):
        raise HTTPException(503, "this engine has no Reprise front end")
    return admin


def _describe(answer: Answer, decode: Any) -> dict[str, Any]:
    return {
        "answer_id": answer.answer_id,
        "namespace": answer.namespace,
        "prompt": decode(answer.prompt_token_ids.tolist()),
        "response": decode(answer.response_token_ids.tolist()),
        "response_tokens": len(answer.response_token_ids),
        "finish_reason": answer.finish_reason,
        "stop_reason": answer.stop_reason,
        "created_s": answer.created_s,
    }


def _json(body: Any, *, status: int = 200) -> Response:
    return Response(
        msgspec.json.encode(body, enc_hook=str), status_code=status, media_type="application/json"
    )
