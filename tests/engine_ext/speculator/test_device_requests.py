"""What requests draft from on the device, and what they leave behind: real retrieval, no engine."""

import re
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("vllm")

import torch
import vllm
from vllm import SamplingParams

from reprise.engine_ext.core.config import RepriseConfig
from reprise.engine_ext.core.error_counter import ErrorCounter
from reprise.engine_ext.core.request_hints import RequestHints, with_hints
from reprise.engine_ext.request.request_info import counts_id
from reprise.engine_ext.speculator import device_requests, slot_rows
from reprise.engine_ext.speculator.device_requests import DeviceRequests
from reprise.engine_ext.speculator.slot_counts import SlotCounts
from reprise.kernels.draft import draft_tokens
from reprise.kernels.draft.constants import BOS, END, NEAR_LENGTH
from reprise.kernels.draft.state import DraftState
from reprise.retrieval import Answer, RetrievalConfig
from reprise.retrieval.api.invalidation import Invalidation
from reprise.retrieval.in_process.local_retriever import LocalRetriever
from reprise.tests.engine_ext.blocked_embedder import BlockedEmbedder

NUM_SLOTS, MAX_LEN, NUM_DRAFTED = 3, 64, 4
PROMPT = list(range(100, 108))
ANSWER = list(range(200, 216))


class World:
    """A worker's requests, and as much of vLLM's own state as they read."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.embedder = BlockedEmbedder()
        config = RetrievalConfig(embedding_model="lexical", clauses=False)
        self.retriever = LocalRetriever(
            config,
            embedder=self.embedder,
            decode=lambda token_ids: " ".join(f"word{token_id}" for token_id in token_ids),
        )
        monkeypatch.setattr(device_requests, "worker_retriever", lambda *_: self.retriever)
        monkeypatch.setattr(device_requests, "model_key_of", lambda _: "model")
        monkeypatch.setattr(device_requests, "tokenizer_key_of", lambda _: "")
        monkeypatch.setattr(device_requests, "vocabulary_size_of", lambda _: 1000)
        self.state = DraftState.create(
            num_slots=NUM_SLOTS, max_draft=NUM_DRAFTED, max_near_tokens=128, num_corpora=4,
            arena_tokens=1 << 14,
        )  # fmt: skip
        self.errors = ErrorCounter()
        self.counts = SlotCounts(self.state)
        settings: Any = None
        self.requests = DeviceRequests(
            settings, RepriseConfig(), self.state, self.counts, errors=self.errors
        )
        self.req_states = SimpleNamespace(
            req_id_to_index={},
            total_len=SimpleNamespace(gpu=torch.zeros(NUM_SLOTS, dtype=torch.int32)),
            all_token_ids=SimpleNamespace(gpu=torch.zeros((NUM_SLOTS, MAX_LEN), dtype=torch.int32)),
        )
        self.prompts: dict[str, tuple[list[int], SamplingParams]] = {}

    def step(
        self, begin: Sequence[str] = (), end: Sequence[str] = (), preempt: Sequence[str] = ()
    ) -> None:
        """Have requests begin and end as a step of vLLM's does."""
        slots = self.req_states.req_id_to_index
        new = []
        output = SimpleNamespace(
            finished_req_ids=set(end), preempted_req_ids=set(preempt), scheduled_new_reqs=new,
            num_scheduled_tokens={},
        )  # fmt: skip
        self.requests.end(self.req_states, output)
        for request_id in (*end, *preempt):
            slots.pop(request_id, None)
        for request_id in begin:
            slot = min(set(range(NUM_SLOTS)) - set(slots.values()))
            slots[request_id] = slot
            prompt, params = self.prompts[request_id]
            self.write(request_id, prompt)
            new.append(
                SimpleNamespace(
                    req_id=request_id,
                    prompt_token_ids=prompt,
                    prefill_token_ids=prompt,
                    sampling_params=params,
                    prompt_len=len(prompt),
                    num_computed_tokens=0,
                )
            )
        output.num_scheduled_tokens |= {name: len(self.prompts[name][0]) for name in slots}
        self.requests.begin_step(self.req_states, output)

    def request(
        self, name: str, namespace: str | None, prompt: list[int] = PROMPT, **hints: Any
    ) -> str:
        params = SamplingParams(max_tokens=32)
        if namespace is not None:
            params = with_hints(params, RequestHints(namespace=namespace, **hints))
        self.prompts[name] = prompt, params
        return name

    def write(self, name: str, tokens: Sequence[int]) -> None:
        slot = self.req_states.req_id_to_index[name]
        self.req_states.all_token_ids.gpu[slot, : len(tokens)] = torch.tensor(tokens)
        self.req_states.total_len.gpu[slot] = len(tokens)

    def emit(self, name: str, tokens: Sequence[int]) -> None:
        """The request's answer so far."""
        self.write(name, [*self.prompts[name][0], *tokens])

    def drafted(self, name: str) -> list[int]:
        """What would be drafted for a request now; empty: nothing."""
        return list(self.chances(name))

    def chances(self, name: str) -> dict[int, float]:
        """The tokens that would be drafted for a request now, and each one's chance."""
        slot = torch.tensor([self.req_states.req_id_to_index[name]], dtype=torch.int32)
        drafts = torch.zeros((1, NUM_DRAFTED), dtype=torch.int64)
        chances = torch.zeros((1, NUM_DRAFTED))
        draft_tokens(
            self.state,
            all_token_ids=self.req_states.all_token_ids.gpu,
            total_len=self.req_states.total_len.gpu,
            idx_mapping=slot,
            num_sampled=torch.ones(1, dtype=torch.int32),
            drafts=drafts,
            chances=chances,
        )
        pairs = zip(drafts[0].tolist(), chances[0].tolist(), strict=True)
        return {token: chance for token, chance in pairs if chance > 0}

    def learn(
        self, name: str, namespace: str | None, answer: list[int] = ANSWER, **hints: Any
    ) -> None:
        """A whole request, and wait until it has been learned, and is found by meaning."""
        self.step(begin=[self.request(name, namespace, **hints)])
        self.emit(name, answer)
        self.step(end=[name])
        assert self.requests.flush(60)
        if self.embedder.go_on.is_set():
            assert self.retriever.flush(60)


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    made = World(monkeypatch)
    yield made
    made.embedder.go_on.set()
    made.retriever.close()
    assert made.errors.counts() == {}


def test_an_answer_is_drafted_from_by_its_namespace_only(world: World) -> None:
    world.learn("first", "mine")
    world.step(
        begin=[
            world.request("mine", "mine"),
            world.request("others", "theirs"),
            world.request("unknown", None),
        ]
    )
    for name in ("mine", "others", "unknown"):
        world.emit(name, ANSWER[:3])
    assert world.drafted("mine") == ANSWER[3:7]
    assert world.drafted("others") == []
    assert world.drafted("unknown") == []


def test_the_next_request_of_a_slot_inherits_nothing(world: World) -> None:
    world.learn("first", "mine")
    world.step(begin=[world.request("mine", "mine")])
    world.emit("mine", ANSWER[:3])
    assert world.drafted("mine") == ANSWER[3:7]
    world.step(end=["mine"], begin=[world.request("other", None)])
    assert world.req_states.req_id_to_index == {"other": 0}
    world.emit("other", ANSWER[:3])
    assert world.drafted("other") == []


def test_a_request_of_an_unknown_tenant_leaves_nothing_behind(world: World) -> None:
    world.learn("first", None)
    assert world.requests.report()["provider"].answers == 0
    assert world.retriever.stats().stored == 0


@pytest.mark.parametrize("hints", [{"drafts": False}, {"store": False}, {"retrieval_id": "f"}])
def test_hints_are_kept(world: World, hints: dict[str, Any]) -> None:
    world.learn("first", "mine", ANSWER[::-1])
    world.step(begin=[world.request("asks", "mine", **hints)])
    world.emit("asks", ANSWER[::-1][:3])
    drafted = world.drafted("asks")
    assert drafted == ([] if hints == {"drafts": False} else ANSWER[::-1][3:7])
    world.emit("asks", ANSWER)
    world.step(end=["asks"])
    assert world.requests.flush(60)
    # The front end stores what it has retrieved for.
    assert world.requests.report()["provider"].answers == (2 if hints == {"drafts": False} else 1)


def test_late_near_answers_are_used_from_the_next_step_on(
    world: World, wait_until: Callable[..., None]
) -> None:
    question = "how do I cancel my order"
    world.retriever.store(
        Answer.create(
            prompt_token_ids=PROMPT, response_token_ids=ANSWER, prompt_text=question,
            namespace="mine",
        )
    )  # fmt: skip
    assert world.requests.flush(60)
    world.embedder.go_on.clear()
    # Shares no tokens with the question that was learned: only embedding can find it.
    other = list(range(300, 308))
    world.step(begin=[world.request("late", "mine", other, retrieval_id="front")])
    world.retriever.submit("front", namespace="mine", text=question)
    world.step()
    assert near_answers(world, 0) == []
    world.embedder.go_on.set()

    def has_near_answers() -> bool:
        world.step()
        return bool(near_answers(world, 0))

    wait_until(has_near_answers, 60)
    assert near_answers(world, 0) == [BOS, *ANSWER, END]


def near_answers(world: World, slot: int) -> list[int]:
    return world.state.near_token_ids[slot, : world.state.slots[slot, NEAR_LENGTH]].tolist()


def test_a_preempted_request_goes_on_with_what_it_had(world: World) -> None:
    world.learn("first", "mine")
    world.step(begin=[world.request("goes on", "mine")])
    world.step(preempt=["goes on"], begin=[world.request("other", None)])
    assert world.req_states.req_id_to_index == {"other": 0}
    world.emit("other", ANSWER[:3])
    assert world.drafted("other") == []
    world.step(begin=["goes on"])
    world.emit("goes on", ANSWER[:3])
    assert world.drafted("goes on") == ANSWER[3:7]
    world.emit("goes on", ANSWER[::-1])
    world.step(end=["goes on"])
    assert world.requests.flush(60)
    assert world.requests.report()["provider"].answers == 2
    assert world.requests.report()["live_requests"] == 1


def test_a_preempted_request_whose_counts_are_lost_has_no_slot(
    world: World, wait_until: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What comes for it later must not be drafted from by whoever has the slot then."""

    def fail(*_: Any) -> None:
        raise RuntimeError("no memory")

    world.learn("first", "mine")
    world.embedder.go_on.clear()
    other = list(range(300, 308))  # shares no tokens with what was learned
    world.step(begin=[world.request("late", "mine", other, retrieval_id="front")])
    world.retriever.submit("front", namespace="mine", prompt_token_ids=PROMPT)
    with monkeypatch.context() as broken:
        broken.setattr(world.requests._read_back, "send", fail)
        world.step(preempt=["late"], begin=[world.request("other", "theirs")])
    assert world.req_states.req_id_to_index == {"other": 0}
    assert world.errors.counts() == {"preempt request": 1}
    world.errors._counts.clear()
    world.embedder.go_on.set()

    def has_come() -> bool:
        world.step()
        return not world.requests._near._awaiting.keys() & {"late"}

    wait_until(has_come, 60)
    assert near_answers(world, 0) == []
    world.emit("other", ANSWER[:3])
    assert world.drafted("other") == []
    world.step(begin=["late"])
    assert near_answers(world, 1) == [BOS, *ANSWER, END]


def test_a_request_that_ends_while_preempted_is_forgotten(world: World) -> None:
    world.step(begin=[world.request("gone", "mine")])
    world.step(preempt=["gone"])
    world.step(end=["gone"])
    assert world.requests.flush(60)
    assert world.requests.report()["live_requests"] == 0
    assert world.requests.report()["provider"].answers == 0


def warm_up_ids() -> set[str]:
    """How the ids of vLLM's own requests begin, by its sources."""
    sources = Path(vllm.__file__).parent
    text = "".join(
        path.read_text()
        for folder in ("v1/worker/gpu", "model_executor/warmup")
        for path in (sources / folder).glob("*warmup*.py")
    )
    prefixes = re.findall(r'req_id_prefix(?:: str)? ?= ?"(\w+)"', text)
    return {*prefixes, *re.findall(r'req_ids = \[f"(\w+){i}_"', text)}


def test_warm_up_runs_are_no_requests(world: World) -> None:
    prefixes = warm_up_ids()
    assert {"_warmup_", "_v2_mixed_warmup"} <= prefixes
    for name in sorted(f"{prefix}_decode_" for prefix in prefixes):
        world.step(begin=[world.request(name, "mine")])
        world.emit(name, ANSWER)
        assert world.requests.report()["live_requests"] == 0
        world.step(end=[name])
    assert world.requests.flush(60)
    assert world.requests.report()["provider"].answers == 0


def test_nothing_is_read_back_while_graphs_are_captured(world: World) -> None:
    """Warm-up runs come shortly before that, and the thread that reads back waits for copies."""
    saved: list[None] = []
    hits: Any = SimpleNamespace(step=lambda: saved.append(None), save=lambda: None)
    world.requests._hits = hits
    world.step(begin=[world.request("_warmup_0_", "mine")])
    world.step(end=["_warmup_0_"])
    assert saved == []
    world.learn("first", "mine")
    assert saved == [None]


@pytest.mark.parametrize("method", ["clear", "send"])
def test_drafting_ends_where_a_slot_cannot_be_cleared(
    world: World, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    def fail(*_: Any) -> None:
        raise RuntimeError("no memory")

    monkeypatch.setattr(world.requests._rows, method, fail)
    assert not world.requests.has_failed
    with pytest.raises(RuntimeError):
        world.step(begin=[world.request("any", "mine")])
    assert world.requests.has_failed


def test_slots_of_others_stay_as_they_are(world: World) -> None:
    free = world.state.slots[1:].tolist()
    world.learn("first", "mine")
    world.step(begin=[world.request("mine", "mine")])
    assert world.state.slots[1:].tolist() == free
    mine = world.state.slots[0].tolist()
    world.step(begin=[world.request("other", "theirs")])
    assert world.state.slots[0].tolist() == mine
    assert world.state.slots[2:].tolist() == free[1:]


def test_near_answers_that_could_not_be_sent_are_not_drafted_from(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What lies there may be another request's."""
    world.learn("first", "mine")
    sent = slot_rows.prepare

    def prepare(target: torch.Tensor, values: Any) -> Any:
        if target.shape[0] == len(ANSWER) + 2:
            raise RuntimeError("no memory")
        return sent(target, values)

    monkeypatch.setattr(slot_rows, "prepare", prepare)
    world.step(begin=[world.request("mine", "mine")])
    assert near_answers(world, 0) == []
    assert set(world.errors.counts()) == {"near answers"}
    world.errors._counts.clear()


def test_what_is_to_be_forgotten_before_it_was_read_back_is_not_kept(world: World) -> None:
    goes_on = threading.Event()
    world.requests._read_back.send([], lambda _: goes_on.wait(60) and None)
    for name in ("before", "after"):
        world.step(begin=[world.request(name, "mine")])
        world.emit(name, [*ANSWER, len(name)])
        world.step(end=[name])
        if name == "before":
            assert world.retriever.forget(Invalidation.create(namespace="mine"), timeout_s=60).done
    goes_on.set()
    assert world.requests.flush(60)
    (kept,) = world.retriever.answers()
    assert kept.response_token_ids[-1] == len("after")


def test_counts_are_of_the_request_that_asked(world: World) -> None:
    world.learn("first", "mine")
    world.step(begin=[world.request("asks", "mine", counts_nonce="c")])
    world.emit("asks", ANSWER[:1])
    assert world.drafted("asks") == ANSWER[1:5]
    # All four were right, and the model has added one.
    slots = torch.zeros(1, dtype=torch.int32)
    sampled, rejected = (torch.tensor([n], dtype=torch.int32) for n in (5, 0))
    world.counts.add_step(slots, sampled, rejected)
    world.emit("asks", ANSWER[:6])
    world.drafted("asks")
    # The first one was wrong, of three that there was room for.
    sampled, rejected = (torch.tensor([n], dtype=torch.int32) for n in (1, 3))
    world.counts.add_step(slots, sampled, rejected)
    world.step(end=["asks"])
    assert world.requests.flush(60)
    own = counts_id("c", "asks")
    (found,) = world.requests.take_draft_counts([own, "asks", "first"]).values()
    assert found["steps"] == 2
    sources = found["by_source"].values()
    assert sum(each["drafted"] for each in sources) == 7
    assert sum(each["accepted"] for each in sources) == 4
    assert world.requests.take_draft_counts([own]) == {}
    total = world.requests.report()["provider"]
    assert (total.steps, total.emitted, total.drafted, total.accepted) == (2, 6, 7, 4)


def test_each_turn_of_a_streaming_session_is_counted(world: World) -> None:
    world.learn("first", "mine")
    for nonce in "cd":
        # The second one goes on with the first one's id, which has not ended.
        world.step(begin=[world.request("asks", "mine", counts_nonce=nonce)])
        world.emit("asks", ANSWER[:1])
        assert world.drafted("asks") == ANSWER[1:5]
        slots = torch.tensor([world.req_states.req_id_to_index["asks"]], dtype=torch.int32)
        sampled, rejected = (torch.tensor([n], dtype=torch.int32) for n in (3, 2))
        world.counts.add_step(slots, sampled, rejected)
    world.step(end=["asks"])
    assert world.requests.flush(60)
    ids = [counts_id(nonce, "asks") for nonce in "cd"]
    found = world.requests.take_draft_counts(ids)
    assert [each["steps"] for each in found.values()] == [1, 1]
    total = world.requests.report()["provider"]
    assert (total.requests, total.steps, total.drafted, total.accepted) == (3, 2, 8, 4)


def test_counts_that_nobody_fetched_are_not_for_the_next_request_of_that_id(world: World) -> None:
    for nonce, namespace in (("c", "mine"), ("d", "others")):
        world.step(begin=[world.request("asks", namespace, counts_nonce=nonce)])
        assert world.requests.take_draft_counts([counts_id("d", "asks")]) == {}
        world.emit("asks", ANSWER[:1])
        world.step(end=["asks"])
        assert world.requests.flush(60)
    ids = [counts_id(nonce, "asks") for nonce in "cd"]
    assert list(world.requests.take_draft_counts(ids)) == ids


def test_chances_follow_what_becomes_of_near_answers(
    world: World, wait_until: Callable[..., None]
) -> None:
    def has_near() -> bool:
        """What is near in meaning is there, which on a busy machine takes some steps."""
        world.step()
        return not world.requests._near._awaiting

    def chance() -> float:
        world.step(begin=[world.request("asks", "mine", store=False, drafts=True)])
        wait_until(has_near)
        world.emit("asks", [ANSWER[0], 397, ANSWER[1], 398, ANSWER[2]])
        found = world.chances("asks").get(ANSWER[3], 0.0)
        world.step(end=["asks"])
        return found

    world.learn("first", "mine")
    at_first = chance()
    for number in range(6):
        # Every token of the near answer is followed by another one than there.
        others = [400 + 20 * number + i for i in range(len(ANSWER))]
        answer = [token for pair in zip(ANSWER, others, strict=True) for token in pair]
        walk(world, f"wrong {number}", answer, lambda: wait_until(has_near))
    misled = chance()
    assert 0.0 < misled < 0.6 * at_first
    for number in range(6):
        # Every other token is followed by the same one as there.
        others = [600 + 20 * number + i for i in range(len(ANSWER))]
        pairs = zip(ANSWER[::2], ANSWER[1::2], others, strict=False)
        answer = [token for pair in pairs for token in pair]
        walk(world, f"right {number}", answer, lambda: wait_until(has_near))
    assert chance() > misled + 0.1


def walk(world: World, name: str, answer: list[int], wait: Callable[[], None]) -> None:
    """A request that is drafted for at each of its tokens, and whose answer is not stored."""
    world.step(begin=[world.request(name, "mine", store=False)])
    wait()
    for length in range(1, len(answer) + 1):
        world.emit(name, answer[:length])
        world.drafted(name)
    world.step(end=[name])
    assert world.requests.flush(60)
