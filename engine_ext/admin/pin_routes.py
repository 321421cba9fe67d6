"""The admin routes `/reprise/pins`: list, pin, unpin."""

from collections.abc import Mapping
from typing import Any, Protocol

from fastapi import HTTPException

from reprise.retrieval.api.namespace import check_namespace, is_encodable

_FIELDS = ("prompt", "prompt_token_ids", "namespace", "cache_salt")


class PinningEngine(Protocol):
    """What the routes need of the engine client: `PinningAsyncLLM` has it."""

    @property
    def pins_prefixes(self) -> bool: ...

    def get_tokenizer(self) -> Any: ...

    async def get_pins(self) -> list[list[dict[str, Any]] | None]: ...

    async def get_pin_stats(self) -> list[dict[str, Any] | None]: ...

    async def unpin(self, pin_id: str | None = None) -> list[list[dict[str, Any]] | None]: ...

    async def pin_prefix(
        self, token_ids: list[int], *, namespace: str | None = None, cache_salt: str | None = None
    ) -> None: ...


async def list_pins(engine: PinningEngine) -> dict[str, Any]:
    """Return the reply to `GET /reprise/pins`: figures and pins of each engine, with the text that
    a pinned prefix begins with."""
    _check_enabled(engine)
    stats, listed = await engine.get_pin_stats(), await engine.get_pins()
    decode = engine.get_tokenizer().decode
    pins = [
        {**pin, "engine": rank, "begins_with": decode(pin["head_token_ids"])}
        for rank, of_engine in enumerate(listed)
        for pin in of_engine or ()
    ]
    return {"stats": stats, "pins": pins}


async def add_pin(engine: PinningEngine, body: Any) -> dict[str, Any]:
    """Return the reply to `POST /reprise/pins`, once the prefix is computed and pinned."""
    _check_enabled(engine)
    if not isinstance(body, Mapping) or body.keys() - set(_FIELDS):
        raise HTTPException(400, f"expected a JSON object of {', '.join(_FIELDS)}")
    for name in ("prompt", "namespace", "cache_salt"):
        text = body.get(name)
        if text is not None and not (isinstance(text, str) and is_encodable(text)):
            raise HTTPException(400, f"{name} must be a text that UTF-8 can encode")
    if body.get("namespace") is not None:
        _check_namespace(body["namespace"])
    if body.get("cache_salt") == "":
        raise HTTPException(400, "cache_salt must not be empty")
    prompt, token_ids = body.get("prompt"), body.get("prompt_token_ids")
    if (prompt is None) == (token_ids is None):
        raise HTTPException(400, "give either prompt or prompt_token_ids")
    if token_ids is None:
        token_ids = engine.get_tokenizer().encode(prompt)
    if not isinstance(token_ids, list) or not all(type(each) is int for each in token_ids):
        raise HTTPException(400, "prompt_token_ids must be a list of whole numbers")
    given = {name: body.get(name) for name in ("namespace", "cache_salt")}
    try:
        await engine.pin_prefix(token_ids, **given)
    except ValueError as error:
        raise HTTPException(400, str(error)) from None
    return {"tokens": len(token_ids)}


async def remove_pins(engine: PinningEngine, given: Mapping[str, str]) -> dict[str, Any]:
    """Return the reply to `DELETE /reprise/pins`, with `pin_id` or `everything`."""
    _check_enabled(engine)
    if set(given) not in ({"pin_id"}, {"everything"}) or given.get("everything", "true") != "true":
        raise HTTPException(400, "expected pin_id=ID or everything=true")
    removed = await engine.unpin(given.get("pin_id"))
    return {"removed": sum(len(of_engine or ()) for of_engine in removed)}


def _check_namespace(namespace: str) -> None:
    try:
        check_namespace(namespace)
    except ValueError as error:
        raise HTTPException(400, str(error)) from None


def _check_enabled(engine: PinningEngine) -> None:
    if not engine.pins_prefixes:
        raise HTTPException(409, "kv_pins.enabled is false: no prefixes are pinned")
