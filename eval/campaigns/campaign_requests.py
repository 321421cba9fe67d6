"""What a fault campaign asks of its servers, and how replies are judged."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import Sequence
from typing import Any, NamedTuple

import aiohttp

from reprise.engine_ext.request.reply_headers import INFO_HEADER, REPLY_HEADER
from reprise.eval.demo_data.demo_topics import TOPICS

TENANTS = ("key-of-one", "key-of-another")
"""API keys; each tenant asks of its own half of the questions."""
REPLY_WITHIN_S = 120.0
_CACHE, _INFO = REPLY_HEADER.decode(), INFO_HEADER.decode()
_MAX_TOKENS = 48
_MAX_LONG_TOKENS = 160

_SETTINGS: tuple[dict[str, Any], ...] = (
    {},
    {"max_tokens": 9},
    {"stop": [" you", "."]},
    {"seed": 7},
    {"temperature": 0.8, "seed": 3},
    {"repetition_penalty": 1.15},
    {"min_tokens": 20, "max_tokens": 24},
)


class Outcome(NamedTuple):
    """What of a reply must be equal, whatever happened meanwhile."""

    text: str
    finish_reason: str | None
    stop_reason: int | str | None
    prompt_tokens: int
    completion_tokens: int


class Question(NamedTuple):
    """One request; its outcome is determined by it."""

    path: str
    body: str
    """JSON, without what only concerns the cache."""

    is_long: bool = False
    """Whether its answer goes on for as long as it may."""

    def fields(self) -> dict[str, Any]:
        """Return the request's body."""
        fields: dict[str, Any] = json.loads(self.body)
        return fields


class Asked(NamedTuple):
    """A question as one tenant asks it, once."""

    question: Question
    tenant: str
    cache_salt: str | None = None
    """Set: nobody has used it before, so there is nothing that this request may draw on."""


class Verdict(NamedTuple):
    """How one request went; at most one of the first three holds."""

    lost: str | None = None
    """Why there is no reply."""
    wrong: tuple[Outcome, Outcome] | None = None
    """Wanted and given."""
    crossed: str | None = None
    """What of another tenant's answers was used, or that a reply does not tell."""
    tells_drafts: bool | None = None
    """Whether the reply told what was drafted from; None: it was not asked to."""

    @property
    def is_good(self) -> bool:
        """Whether the reply is what plain vLLM gives, made of nothing that is not the tenant's."""
        return self.lost is None and self.wrong is None and self.crossed is None


def make_questions(seed: int, number: int) -> list[Question]:
    """Make questions about the demo's topics: chats and completions, greedy and seeded."""
    generator = random.Random(seed)
    phrases = [phrase for topic in TOPICS for phrase in topic.phrases]
    questions = []
    for _ in range(number):
        phrase = generator.choice(phrases).format(order="77123", amount="20", date="May 4")
        text = f"How do I {phrase}?"
        body = {"temperature": 0, "max_tokens": _MAX_TOKENS, **generator.choice(_SETTINGS)}
        if generator.random() < 0.7:
            path, body = (
                "/v1/chat/completions",
                {
                    "messages": [{"role": "user", "content": text}],
                    **body,
                },
            )
        else:
            path, body = "/v1/completions", {"prompt": text, **body}
        questions.append(Question(path, json.dumps(body, sort_keys=True)))
    return list(dict.fromkeys(questions))


def long_question(question: Question) -> Question:
    """Return the question, greedy, with an answer as long as it may be."""
    body = {**question.fields(), "ignore_eos": True, "temperature": 0}
    for name in ("stop", "seed", "min_tokens"):
        body.pop(name, None)
    text = json.dumps({**body, "max_tokens": _MAX_LONG_TOKENS}, sort_keys=True)
    return Question(question.path, text, is_long=True)


async def outcomes(
    url: str, model: str, questions: Sequence[Question], *, concurrency: int
) -> list[Outcome]:
    """Ask a server that nothing happens to.

    Raises:
        RuntimeError: it did not answer one of them.
    """
    slots = asyncio.Semaphore(concurrency)

    async def one(session: aiohttp.ClientSession, question: Question) -> Outcome:
        async with slots:
            outcome, _ = await _ask(session, url, model, Asked(question, TENANTS[0]), stream=False)
            return outcome

    async with _session() as session:
        try:
            return list(await asyncio.gather(*(one(session, each) for each in questions)))
        except (aiohttp.ClientError, TimeoutError, _RefusedError) as error:
            raise RuntimeError(f"plain vLLM did not answer a question: {error!r}") from error


async def judged(
    url: str, model: str, asked: Sequence[Asked], wanted: dict[Question, Outcome], seed: int
) -> list[Verdict]:
    """Ask all at once, half of them as streams, and judge each reply."""
    generator = random.Random(seed)
    async with _session() as session:
        return list(
            await asyncio.gather(
                *(
                    _judge(session, url, model, each, wanted, stream=generator.random() < 0.5)
                    for each in asked
                )
            )
        )


async def abandoned(url: str, model: str, asked: Sequence[Asked], *, after_s: float) -> None:
    """Ask all at once as streams, and close the connections a moment later."""
    async with _session() as session:
        tasks = [
            asyncio.create_task(_ask(session, url, model, each, stream=True)) for each in asked
        ]
        await asyncio.sleep(after_s)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


class _RefusedError(Exception):
    pass


def _session() -> aiohttp.ClientSession:
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0, force_close=True),
        timeout=aiohttp.ClientTimeout(total=REPLY_WITHIN_S),
    )


async def _judge(
    session: aiohttp.ClientSession,
    url: str,
    model: str,
    asked: Asked,
    wanted: dict[Question, Outcome],
    *,
    stream: bool,
) -> Verdict:
    try:
        outcome, told = await _ask(session, url, model, asked, stream=stream)
    except Exception as error:  # whatever it is, the client has no reply
        return Verdict(lost=f"{type(error).__name__}: {error}")
    if outcome != wanted[asked.question]:
        return Verdict(wrong=(wanted[asked.question], outcome))
    if told is None:
        return Verdict()
    return Verdict(crossed=_crossing(told), tells_drafts=told.info.get("drafts") is not None)


class _Told(NamedTuple):
    """What a reply tells of the cache and the drafts."""

    cache: str | None
    info: dict[str, Any]


async def _ask(
    session: aiohttp.ClientSession, url: str, model: str, asked: Asked, *, stream: bool
) -> tuple[Outcome, _Told | None]:
    body = {"model": model, **asked.question.fields(), "stream": stream}
    headers = {"Authorization": f"Bearer {asked.tenant}"}
    if stream:
        body["stream_options"] = {"include_usage": True}
    if asked.cache_salt is not None:
        body["cache_salt"] = asked.cache_salt
        headers[_INFO] = "on"
    async with session.post(url + asked.question.path, json=body, headers=headers) as reply:
        text = await reply.text()
        if reply.status != 200:
            raise _RefusedError(f"status {reply.status}: {text[:300]}")
        outcome = _of_stream(text) if stream else _of_body(json.loads(text))
        if asked.cache_salt is None:
            return outcome, None
        return outcome, _Told(reply.headers.get(_CACHE), _info(reply, text))


def _of_body(body: dict[str, Any]) -> Outcome:
    choice, usage = body["choices"][0], body["usage"]
    return Outcome(
        choice["text"] if "text" in choice else choice["message"]["content"],
        choice["finish_reason"],
        choice.get("stop_reason"),
        usage["prompt_tokens"],
        usage["completion_tokens"],
    )


def _of_stream(text: str) -> Outcome:
    lines = [line[6:] for line in text.splitlines() if line.startswith("data: ")]
    if not lines or lines[-1] != "[DONE]":
        raise _RefusedError(f"the stream ended early: {text[-300:]}")
    chunks = [json.loads(line) for line in lines[:-1]]
    if failed := [chunk for chunk in chunks if "choices" not in chunk]:
        raise _RefusedError(f"an error in the stream: {failed[0]}")
    choices = [chunk["choices"][0] for chunk in chunks if chunk["choices"]]
    usage = chunks[-1]["usage"]
    return Outcome(
        "".join(
            choice["text"] if "text" in choice else choice["delta"].get("content") or ""
            for choice in choices
        ),
        choices[-1]["finish_reason"],
        choices[-1].get("stop_reason"),
        usage["prompt_tokens"],
        usage["completion_tokens"],
    )


def _info(reply: aiohttp.ClientResponse, text: str) -> dict[str, Any]:
    """What the server tells of the drafts: in a header, or in a comment line of a stream."""
    reported = reply.headers.get(_INFO)
    for line in text.splitlines():
        if line.startswith(f": {_INFO} "):
            reported = line.removeprefix(f": {_INFO} ")
    return json.loads(reported) if reported else {}


def _crossing(told: _Told) -> str | None:
    """Tell what a request that has nothing to draw on has drawn on all the same, or that its reply
    does not tell: what is not known may be a crossing."""
    if told.cache is None or "cache" not in told.info or "drafts" not in told.info:
        return f"a reply does not tell what was drawn on: {_CACHE} {told.cache}, {told.info}"
    kinds = {kind.strip() for kind in told.cache.partition(";")[0].split(",")}
    if found := (kinds | set(told.info["cache"])) - {"miss"}:
        return f"{', '.join(sorted(found))} for a namespace that has seen nothing"
    if told.info["drafts"] is None:  # the workers did not report in time
        return None
    for source, count in told.info["drafts"]["by_source"].items():
        if source != "context" and count["drafted"]:
            return (
                f"{count['drafted']} tokens drafted from {source} in a namespace that has seen "
                "nothing"
            )
    return None
