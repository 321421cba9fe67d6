"""Exact memories of several replicas, behind real retrieval processes that share one tier."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from typer.testing import CliRunner

from reprise.engine_ext.core.error_counter import ErrorCounter
from reprise.engine_ext.frontend import exact_forgetting
from reprise.engine_ext.frontend.exact_forgetting import ExactForgetting
from reprise.engine_ext.frontend.exact_memory import ExactMemory
from reprise.engine_ext.frontend.pin_forgetting import PinForgetting
from reprise.engine_ext.request.recorded_answers import RecordedAnswer, RecordedAnswers
from reprise.retrieval.api.answer import Answer
from reprise.retrieval.api.config import RetrievalConfig
from reprise.retrieval.api.invalidation import Forgetting, Forgotten, Invalidation
from reprise.retrieval.cli.cache_cli import app
from reprise.retrieval.host import steady_clock
from reprise.retrieval.service.process_retriever import ProcessRetriever
from reprise.spec.api.recorded_steps import RecordedRequest


class Tokenizer:
    """Characters for tokens, and no chat template."""

    def decode(self, token_ids: list[int], **_: Any) -> str:
        return "".join(map(chr, token_ids))


def answer(prompt: str, *, namespace: str = "person", exact: bool = True) -> Answer:
    return Answer.create(
        prompt_token_ids=[ord(c) for c in prompt],
        response_token_ids=[1, 2],
        namespace=namespace,
        prompt_text="" if exact else prompt,
        exact_key=(namespace + prompt).encode() if exact else None,
    )


class Replica:
    """What an API server process has of the cache; without `url`, a sibling of `other`."""

    def __init__(self, url: str | None, other: "Replica | None" = None) -> None:
        self.memory = ExactMemory(max_bytes=1 << 20)
        self.recorded = RecordedAnswers(ttl_s=3600)
        self.errors = ErrorCounter()
        self.unpinned: list[Invalidation] = []
        self.retrieval: ProcessRetriever | None = None
        if url is not None:
            config = RetrievalConfig(url=url, embedding_model="lexical", clauses=False)
            self.retrieval = ProcessRetriever(config, for_front_end=True)

        async def find() -> list[str]:
            assert other is not None
            assert other.retrieval is not None
            return [other.retrieval.address]

        self.forgetting = ExactForgetting(
            self.memory,
            recorded=self.recorded,
            tokenizer=Tokenizer,
            pins=PinForgetting(self.forget_pins, errors=self.errors),
            retrieval=self.retrieval,
            find_retrieval=find,
            errors=self.errors,
        )
        self.forgetting.start()

    async def forget_pins(self, invalidation: Invalidation) -> None:
        self.unpinned.append(invalidation)

    @property
    def prompts(self) -> set[str]:
        return {Tokenizer().decode(a.prompt_token_ids.tolist()) for a in self.memory.answers()}

    def close(self) -> None:
        self.forgetting.close()
        if self.retrieval is not None:
            self.retrieval.close()


async def eventually(condition: Callable[[], Any]) -> None:
    deadline_s = time.monotonic() + 60.0
    while not condition():
        assert time.monotonic() < deadline_s, "waited in vain"
        await asyncio.sleep(0.02)


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path}/answers.sqlite"


@pytest.fixture
async def replicas(url: str) -> AsyncIterator[list[Replica]]:
    """Two replicas with retrieval, and an API server process beside the first."""
    first, second = Replica(url), Replica(url)
    made = [first, second, Replica(None, first)]
    try:
        for replica in made:
            await eventually(lambda r=replica: r.forgetting.health())
            await eventually(lambda r=replica: r.forgetting.health()[0].state == "ready")
        for client in made[0].forgetting._clients, made[2].forgetting._clients:
            await eventually(lambda c=client: all(each._position for each in c.values()))
        await eventually(lambda: second.retrieval is not None and second.retrieval._position)
        for replica in made:
            for each in ("asked", "asked too"):
                replica.memory.put(answer(each))
            replica.memory.put(answer("asked", namespace="other"))
        yield made
    finally:
        for replica in made:
            replica.close()


async def test_what_one_process_is_asked_to_forget_all_forget(
    replicas: list[Replica], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exact_forgetting, "_TIER_WITHIN_S", 60.0)
    first, _, sibling = replicas
    assert first.retrieval is not None
    first.retrieval.store(answer("asked", exact=False))
    assert await asyncio.to_thread(first.retrieval.flush, 60)
    # Both processes of the replica hold it, and so does retrieval: one answer all the same.
    report = await sibling.forgetting.forget(Invalidation.create(tenant="person", prompt="asked"))
    assert report == (1, 1, 1, False)
    for replica in replicas:
        await eventually(lambda r=replica: r.memory.stats().answers == 2)
        assert {a.namespace for a in replica.memory.answers()} == {"person", "other"}
        assert replica.errors.counts() == {}
    # What is asked again is kept again: an invalidation is applied once.
    sibling.memory.put(answer("asked"))
    await asyncio.sleep(0.5)
    assert sibling.memory.stats().answers == 3


async def test_what_the_command_line_removes_leaves_exact_memories(
    replicas: list[Replica], url: str
) -> None:
    result = CliRunner().invoke(app, ["invalidate", "--url", url, "--namespace", "person"])
    # Of the tier, which has none.
    assert result.output.startswith("0 answers removed\nno answers in the namespace 'person'")
    for replica in replicas:
        await eventually(lambda r=replica: r.memory.namespaces() == {"other": 1})
        await eventually(lambda r=replica: [each.namespace for each in r.unpinned] == ["person"])


async def test_what_names_a_tenant_unpins_its_prefixes_everywhere(
    replicas: list[Replica],
) -> None:
    first, _, sibling = replicas
    await first.forgetting.forget(Invalidation.create(tenant="person", prompt="asked"))
    report = await sibling.forgetting.forget(Invalidation.create(tenant="person"))
    assert not report.is_pending
    for replica in replicas:
        await eventually(lambda r=replica: r.unpinned)
        assert [(each.tenant, each.prompt_digest) for each in replica.unpinned] == [
            ("person", None)
        ]
    await first.forgetting._apply(Forgotten(complete=False))
    await eventually(lambda: first.unpinned[1:])
    assert first.unpinned[1].everything


async def test_an_erasure_is_pending_until_the_engines_have_unpinned(
    replicas: list[Replica], monkeypatch: pytest.MonkeyPatch
) -> None:
    first = replicas[0]
    is_dead = True

    async def forget_pins(_: Invalidation) -> None:
        if is_dead:
            raise RuntimeError("the engine does not answer")

    monkeypatch.setattr(exact_forgetting, "_TIER_WITHIN_S", 0.2)
    monkeypatch.setattr(first.forgetting._pins, "_forget_pins", forget_pins)
    monkeypatch.setattr(first.forgetting._pins, "pause_s", 0.01)
    assert (await first.forgetting.forget(Invalidation.create(namespace="other"))).is_pending
    assert first.memory.namespaces() == {"person": 2}
    assert first.forgetting.num_pending >= 1
    is_dead = False
    await eventually(lambda: not first.forgetting.num_pending)


async def test_what_was_recorded_goes_with_it_or_after_its_time(
    replicas: list[Replica], advance_clock: Callable[[float], None]
) -> None:
    def record(*made: Replica) -> None:
        advance_clock(10)
        for replica in made:
            record = RecordedRequest([])
            answer = RecordedAnswer([1], [2], record, steady_clock.now_s())
            replica.recorded.add("person", answer)

    record(*replicas)
    invalidation = Invalidation.create(tenant="person", prompt="asked")
    await replicas[0].forgetting.forget(invalidation)
    for replica in replicas:
        await eventually(lambda r=replica: r.recorded.of("person") == [])
    # Until retrieval has forgotten it too, it is drafted from, whoever was asked to forget it.
    record(replicas[0])
    assert replicas[0].retrieval is not None
    replicas[0].retrieval._forgotten.append(Forgotten((invalidation,)))
    await eventually(lambda: replicas[0].recorded.of("person") == [])
    record(replicas[1])
    advance_clock(3500)
    await replicas[1].forgetting.follow_once()
    assert replicas[1].recorded.of("person") != []
    advance_clock(200)
    await eventually(lambda: replicas[1].recorded.of("person") == [])
    assert replicas[0].errors.counts() == replicas[1].errors.counts() == {}


async def test_a_log_with_a_gap_leaves_nothing_to_repeat(replicas: list[Replica]) -> None:
    first = replicas[0]
    assert first.retrieval is not None
    first.retrieval._forgotten.append(Forgotten(complete=False))
    await eventually(lambda: first.memory.stats().answers == 0)


async def test_answers_removed_by_id_and_past_their_time_go(replicas: list[Replica]) -> None:
    first = replicas[0]
    assert first.retrieval is not None
    first.memory.put(answer("brief"), ttl_s=0.05)
    name = ("person", answer("asked").answer_id)
    first.retrieval._forgotten.append(Forgotten(removed=(name,)))
    await eventually(lambda: first.prompts == {"asked", "asked too"})
    assert {a.namespace for a in first.memory.answers()} == {"person", "other"}
    assert first.memory.stats().expired == 1


async def test_without_retrieval_the_answer_is_pending(replicas: list[Replica]) -> None:
    first = replicas[0]
    assert first.retrieval is not None
    await asyncio.to_thread(first.retrieval.close)
    report = await first.forgetting.forget(Invalidation.create(everything=True))
    assert report.exact == 3
    assert report.is_pending
    assert first.forgetting.num_pending == 1


async def test_what_was_forgotten_is_known_when_the_tier_still_has_it(url: str) -> None:
    replica = Replica(url)
    try:
        before = msgspec.structs.replace(answer("hello"), prompt_text="hello")
        other = msgspec.structs.replace(answer("bye"), prompt_text="bye")
        elsewhere = answer("hello", namespace="another")
        assert not replica.forgetting.is_forgotten(before)
        await replica.forgetting.forget(Invalidation.create(prompt="hello", namespace="person"))
        assert replica.forgetting.is_forgotten(before)
        assert not replica.forgetting.is_forgotten(other)
        assert not replica.forgetting.is_forgotten(elsewhere)
        # Without its query it may be the one.
        assert replica.forgetting.is_forgotten(answer("bye"))
        later = msgspec.structs.replace(before, created_s=before.created_s + 60)
        assert not replica.forgetting.is_forgotten(later)
        # More was removed than is known.
        await replica.forgetting._apply(Forgotten(complete=False))
        assert replica.forgetting.is_forgotten(elsewhere)
        assert not replica.forgetting.is_forgotten(later)
    finally:
        replica.close()


class OneUnreadable(Tokenizer):
    """Fails on one prompt."""

    def decode(self, token_ids: list[int], **given: Any) -> str:
        text = super().decode(token_ids, **given)
        if text == "unreadable":
            raise RuntimeError("no text of that")
        return text


class Queued:
    """A retrieval process that hands over what was forgotten, once."""

    num_unconfirmed = 0

    def __init__(self, *forgotten: Forgotten) -> None:
        self._forgotten = list(forgotten)
        self.told: list[Invalidation] = []

    def forgotten(self) -> list[Forgotten]:
        given, self._forgotten = self._forgotten, []
        return given

    def forget(self, invalidation: Invalidation, **_: Any) -> Forgetting:
        self.told.append(invalidation)
        return Forgetting(removed=(), done=True)


def alone(tokenizer: Callable[[], Any], retrieval: Queued) -> tuple[ExactForgetting, ExactMemory]:
    """Without a process of retrieval behind it."""
    memory = ExactMemory(max_bytes=1 << 20)
    forgetting = ExactForgetting(
        memory,
        recorded=RecordedAnswers(ttl_s=3600),
        tokenizer=tokenizer,
        pins=PinForgetting(lambda _: asyncio.sleep(0), errors=ErrorCounter()),
        retrieval=None,
        find_retrieval=lambda: asyncio.sleep(0, []),
        errors=ErrorCounter(),
    )
    forgetting._clients = {"there": retrieval}  # type: ignore[dict-item]
    for namespace in ("a", "b"):
        for prompt in ("asked", "unreadable", "kept"):
            memory.put(answer(prompt, namespace=namespace))
    return forgetting, memory


def held(memory: ExactMemory) -> set[tuple[str, str]]:
    decode = Tokenizer().decode
    return {(each.namespace, decode(each.prompt_token_ids.tolist())) for each in memory.answers()}


async def test_what_cannot_be_read_is_forgotten_where_it_may_be_meant_and_nothing_is_lost() -> None:
    retrieval = Queued(
        Forgotten(invalidations=(Invalidation.create(namespace="a", prompt="asked"),)),
        Forgotten(removed=(("b", answer("kept", namespace="b").answer_id),)),
    )
    forgetting, memory = alone(OneUnreadable, retrieval)
    await forgetting.follow_once()
    assert held(memory) == {("a", "kept"), ("b", "asked"), ("b", "unreadable")}


async def test_one_that_fails_loses_none_behind_it(monkeypatch: pytest.MonkeyPatch) -> None:
    broken = Invalidation.create(namespace="a", prompt="asked")
    retrieval = Queued(
        Forgotten(invalidations=(broken, Invalidation.create(namespace="a", prompt="kept"))),
        Forgotten(removed=(("b", answer("kept", namespace="b").answer_id),)),
    )
    forgetting, memory = alone(Tokenizer, retrieval)
    own = forgetting._forget_here

    async def forget_here(invalidation: Invalidation) -> Any:
        if invalidation is broken:
            raise RuntimeError("broken")
        return await own(invalidation)

    monkeypatch.setattr(forgetting, "_forget_here", forget_here)
    await forgetting.follow_once()
    assert not {("a", "kept"), ("b", "kept")} & held(memory)
    with pytest.raises(RuntimeError, match="broken"):
        await forgetting.forget(broken)
    assert retrieval.told == [broken]  # all the same


async def test_without_a_tokenizer_a_prompt_is_forgotten_with_all_that_may_be_it() -> None:
    def none() -> Any:
        raise ValueError("Unable to get tokenizer because `skip_tokenizer_init=True`")

    retrieval = Queued()
    forgetting, memory = alone(none, retrieval)
    report = await forgetting.forget(Invalidation.create(namespace="a", prompt="asked"))
    assert report.exact == 3
    assert len(retrieval.told) == 1
    assert {namespace for namespace, _ in held(memory)} == {"b"}
