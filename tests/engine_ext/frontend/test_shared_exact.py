"""Exact hits beyond one process: two front ends on one tier, with vLLM's output processor."""

import asyncio
import sqlite3
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

pytest.importorskip("vllm")

from vllm.lora.request import LoRARequest
from vllm.v1.engine import FinishReason
from vllm.v1.engine.output_processor import OutputProcessor

from reprise.engine_ext.core.config import load_config
from reprise.engine_ext.core.fingerprint import FingerprintError
from reprise.engine_ext.frontend import shared_exact
from reprise.engine_ext.frontend.exact_answers import ExactAnswers
from reprise.engine_ext.frontend.front_end import FrontEnd
from reprise.engine_ext.frontend.shared_exact import SharedExact
from reprise.engine_ext.request.adapter_epochs import AdapterEpochs
from reprise.engine_ext.request.request_control import RequestControl
from reprise.engine_ext.request.request_policy import RequestPolicy
from reprise.retrieval import RetrievalConfig
from reprise.retrieval.api.answer import Answer, exact_id
from reprise.retrieval.api.invalidation import Invalidation
from reprise.retrieval.host import steady_clock
from reprise.retrieval.in_process.local_retriever import LocalRetriever
from reprise.retrieval.in_process.open_tier import open_tier
from reprise.retrieval.search.embedding import Embedder
from reprise.tests.engine_ext.front_ends import Client, vllm_config, wait_longer

SECRET = [30011, 30012, 30013, 30014, 30015]


def decode(token_ids: Any) -> str:
    return " ".join(f"word{token_id}" for token_id in token_ids)


@pytest.fixture(params=["sqlite", pytest.param("redis", marks=pytest.mark.redis)])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "redis":
        return str(request.getfixturevalue("redis_server").url)
    return f"sqlite:///{tmp_path}/answers.sqlite"


class Replica(Client):
    """A front end with retrieval of its own, and the engine behind it."""

    def __init__(self, url: str, **settings: Any) -> None:
        retrieval = {"url": url, "embedding_model": "lexical", "clauses": False, "poll_s": 0.05}
        retrieval |= settings.pop("retrieval", {})
        serving = {"exact_hits_from_others": "trusted", **settings}
        self.retriever = LocalRetriever(
            RetrievalConfig(**retrieval), embedder=Embedder("lexical"), decode=decode
        )
        assert self.retriever.wait_until_warm(60)
        front_end = FrontEnd(
            vllm_config(),
            load_config({"serving": serving, "retrieval": retrieval}),
            OutputProcessor(None, log_stats=False),
            retriever=self.retriever,
            loaded_since_s=time.time() + 60,
        )
        if "exact_budget_s" not in settings:
            wait_longer(front_end)
        super().__init__(front_end, namespace="acme")
        if self.shared is not None:
            assert self.shared.wait(60)

    @property
    def shared(self) -> SharedExact | None:
        return self.front_end.exact.shared

    @property
    def outcomes(self) -> dict[str, int]:
        assert self.shared is not None
        return {name: count for name, count in self.shared.outcomes.items() if count}

    def ask(self, **asked: Any) -> tuple[str, list[int]]:
        """Also wait until the answer is stored."""
        given = super().ask(**asked)
        assert self.retriever.flush(60)
        return given

    def look_up(self, request: Any, queue: Any, policy: RequestPolicy) -> bool:
        """Beyond this process first."""
        asyncio.run(self.front_end.fetch(request, policy))
        return super().look_up(request, queue, policy)

    def close(self) -> None:
        self.front_end.close()
        self.retriever.close()


MakeReplica = Callable[..., Replica]


@pytest.fixture
def fingerprints(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What the next replicas' fingerprints are; the last one is that of all others."""
    named = ["f"]

    def take(*_: Any, **__: Any) -> str:
        return named.pop(0) if len(named) > 1 else named[0]

    monkeypatch.setattr(shared_exact, "fingerprint_of", take)
    monkeypatch.setattr(shared_exact, "_TIER_TIMEOUT_S", 30.0)
    return named


@pytest.fixture
def make_replica(fingerprints: list[str]) -> Iterator[MakeReplica]:
    assert fingerprints
    made = []

    def make(url: str, **settings: Any) -> Replica:
        made.append(Replica(url, **settings))
        return made[-1]

    yield make
    for replica in made:
        replica.close()


def test_the_first_repeat_after_a_restart_is_a_hit(url: str, make_replica: MakeReplica) -> None:
    before = make_replica(url)
    assert before.ask() == ("miss", [5, 6, 7])
    before.close()
    after = make_replica(url)
    assert after.ask(emits=(9,)) == ("exact", [5, 6, 7])
    assert after.outcomes == {"hit": 1}
    assert after.ask(emits=(9,)) == ("exact", [5, 6, 7])
    assert after.outcomes == {"hit": 1}, "the second repeat comes from memory"
    assert after.ask(prompt=(1, 2), emits=(8,)) == ("miss", [8])
    assert after.ask(seed=3, temperature=1.0, emits=(8,)) == ("miss", [8])
    assert after.front_end.errors.counts() == {}


def test_replicas_repeat_each_other_if_their_fingerprints_agree(
    url: str, make_replica: MakeReplica, fingerprints: list[str]
) -> None:
    one, two = make_replica(url), make_replica(url)
    fingerprints[:] = ["another"]
    other = make_replica(url)
    assert one.ask()[0] == "miss"
    assert two.ask(emits=(9,)) == ("exact", [5, 6, 7])
    assert other.ask(emits=(9,)) == ("miss", [9])
    assert two.ask(policy=RequestPolicy(RequestControl(), "others"), emits=(8,)) == ("miss", [8])
    assert one.ask() == ("exact", [5, 6, 7])


def test_what_was_cut_is_good_for_no_larger_limit(url: str, make_replica: MakeReplica) -> None:
    one, two = make_replica(url), make_replica(url)
    one.ask(max_tokens=3, reason=FinishReason.LENGTH)
    assert two.ask(max_tokens=10, emits=(5, 6, 7, 8))[0] == "miss"
    assert two.ask(max_tokens=3) == ("exact", [5, 6, 7])
    three = make_replica(url)
    assert three.ask(max_tokens=2) == ("exact", [5, 6])
    assert three.ask(max_tokens=20) == ("exact", [5, 6, 7, 8])


def test_nothing_is_shared_that_a_request_or_a_setting_forbids(
    url: str, make_replica: MakeReplica
) -> None:
    one, two = make_replica(url), make_replica(url)
    one.ask(policy=RequestPolicy(RequestControl(store=False), "acme"))
    assert two.ask()[0] == "miss"
    three = make_replica(url)
    refresh = RequestPolicy(RequestControl(look_up=False), "acme")
    assert three.ask(policy=refresh, emits=(9,)) == ("miss", [9])
    off = make_replica(url, exact_hits_from_others="off")
    assert off.shared is None
    assert off.ask(emits=(9,))[0] == "miss"
    assert make_replica("memory://").shared is None
    assert make_replica(url, exact_hits="off").shared is None


def test_changed_weights_have_no_fingerprint(url: str, make_replica: MakeReplica) -> None:
    one, two = make_replica(url), make_replica(url)
    one.front_end.model_changed()
    one.ask()
    assert two.ask()[0] == "miss"
    two.front_end.model_changed()
    assert two.ask(emits=(9,)) == ("miss", [9])
    assert two.outcomes == {"miss": 1, "written": 1}


def test_without_a_fingerprint_hits_stay_here(
    url: str, make_replica: MakeReplica, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = make_replica(url)
    one.ask()

    def fails(*_: Any, **__: Any) -> str:
        raise FingerprintError("the files were not found")

    monkeypatch.setattr(shared_exact, "fingerprint_of", fails)
    two = make_replica(url)
    assert two.ask(emits=(9,)) == ("miss", [9])
    assert two.ask(emits=(8,)) == ("exact", [9])
    assert two.outcomes == {}
    assert two.front_end.errors.counts() == {}


def tamper(url: str, change: Callable[[Answer], Answer]) -> None:
    """Put other records in the place of those for exact hits."""
    tier = open_tier(url)
    assert tier is not None
    for name in tier.namespaces():
        for answer in list(tier.exact_answers(name)):
            changed = change(answer)
            assert changed.stored_id == answer.stored_id
            tier.put([changed])
    tier.close()


@pytest.mark.parametrize(
    "field",
    [
        {"fingerprint": "g"},
        {"prompt_tokens": b"\0\0\0\0"},
        {"expires_s": 5.0},
        {"expires_s": steady_clock.now_s() + 0.001},
    ],
)
def test_a_record_that_is_not_what_its_key_says_is_a_miss(
    url: str, make_replica: MakeReplica, field: dict[str, Any]
) -> None:
    one, two = make_replica(url), make_replica(url)
    one.ask()
    tamper(url, lambda answer: msgspec.structs.replace(answer, **field))
    assert two.ask(emits=(9,)) == ("miss", [9])
    assert two.outcomes in ({"refused": 1, "miss": 1, "written": 1}, {"miss": 1, "written": 1})


def test_a_damaged_record_is_a_miss_and_counted(
    url: str, make_replica: MakeReplica, tmp_path: Path
) -> None:
    one, two = make_replica(url), make_replica(url)
    one.ask()
    if url.startswith("sqlite"):
        with sqlite3.connect(tmp_path / "answers.sqlite") as db:
            db.execute("update answers set record = zeroblob(length(record))")
    else:
        import redis

        client = redis.Redis.from_url(url)
        for key in client.keys("*:a:exact:*"):
            client.set(key, b"RA\x01\x00....garbage")
    assert two.ask(emits=(9,)) == ("miss", [9])
    assert two.shared is not None
    assert two.shared.stats()["unreadable"] == 1


@pytest.mark.parametrize("of_whom", ["request", "serving", "retrieval"])
def test_a_time_to_live_holds_beyond_the_process(
    url: str, make_replica: MakeReplica, of_whom: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings: dict[str, Any] = {}
    if of_whom == "serving":
        settings = {"ttl_s": 60.0}
    elif of_whom == "retrieval":
        settings = {"retrieval": {"ttl_s": 60.0}}
    control = RequestControl(ttl_s=60.0) if of_whom == "request" else RequestControl()
    one, two = make_replica(url, **settings), make_replica(url, **settings)
    three = make_replica(url, **settings)
    one.ask(policy=RequestPolicy(control, "acme"))
    began_s, began_monotonic_s = steady_clock.now_s(), time.monotonic()

    def set_clocks(ahead_s: float) -> None:
        monkeypatch.setattr(steady_clock, "now_s", lambda: began_s + ahead_s)
        for replica in (one, two, three):
            memory = replica.front_end.exact.memory
            monkeypatch.setattr(memory, "_clock", lambda: began_monotonic_s + ahead_s)

    set_clocks(40.0)
    assert two.ask(emits=(9,))[0] == "exact"
    set_clocks(60.1)
    # Neither from the tier nor from the memory that it was taken into, and nobody's time begins
    # anew because it was repeated.
    assert two.ask(emits=(9,)) == ("miss", [9])
    no_store = RequestPolicy(RequestControl(store=False), "acme")
    assert three.ask(policy=no_store, prompt=(1, 2, 3, 4), emits=(8,)) == ("miss", [8])


def test_a_request_asks_for_an_age(url: str, make_replica: MakeReplica) -> None:
    one, two = make_replica(url), make_replica(url)
    one.ask()
    time.sleep(0.3)
    young = RequestPolicy(RequestControl(max_age_s=0.1), "acme")
    assert two.ask(policy=young, emits=(9,)) == ("miss", [9])


def test_what_was_forgotten_does_not_come_back_by_the_tier(
    url: str, make_replica: MakeReplica
) -> None:
    """Also if the tier still holds it, because somebody else has yet to remove it there."""
    one, two = make_replica(url), make_replica(url)
    one.ask()
    two.front_end.exact.is_forgotten = lambda answer: answer.namespace == "acme"
    assert two.ask(emits=(9,)) == ("miss", [9])


@pytest.fixture
def stored_bytes(
    url: str, tmp_path: Path, redis_bytes: Callable[[str], bytes]
) -> Callable[[], bytes]:
    """A function that returns all that the tier has on disk or in Redis."""

    def read() -> bytes:
        if url.startswith("redis"):
            return redis_bytes(url)
        return b"".join(path.read_bytes() for path in tmp_path.iterdir() if path.is_file())

    return read


@pytest.mark.parametrize(
    "condition",
    [{"namespace": "acme"}, {"tenant": "acme"}, {"older_than_s": 0.0}, {"everything": True},
     {"prompt": " ".join(f"word{token_id}" for token_id in SECRET)}],
)  # fmt: skip
def test_no_store_holds_what_was_forgotten(
    url: str,
    make_replica: MakeReplica,
    stored_bytes: Callable[[], bytes],
    condition: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("reprise.retrieval.tiers.record._COMPRESS_FROM_BYTES", 1 << 30)
    replica = make_replica(url)
    replica.ask(prompt=tuple(SECRET), emits=tuple(SECRET))
    needles = [b"word30012 word30013", b"".join(i.to_bytes(2, "little") for i in SECRET)]
    assert all(needle in stored_bytes() for needle in needles)
    assert exact_id(b"").encode() in stored_bytes()
    outcome = replica.retriever.forget(Invalidation.create(**condition), timeout_s=30)
    assert outcome.done
    # Kept for drafts and for exact hits, it is still one answer.
    assert len(outcome.removed) == 1
    left = stored_bytes()
    assert not [needle for needle in needles if needle in left]
    assert exact_id(b"").encode() not in left
    assert make_replica(url).ask(prompt=tuple(SECRET), emits=(9,)) == ("miss", [9])


def test_an_answer_made_before_a_removal_is_not_written_after_it(
    url: str, make_replica: MakeReplica
) -> None:
    one, two = make_replica(url), make_replica(url)
    assert one.shared is not None
    held: list[Answer] = []
    store = one.retriever.store
    one.retriever.store = held.append  # type: ignore[method-assign]
    one.ask()
    assert one.retriever.forget(Invalidation.create(namespace="acme"), timeout_s=30).done
    for answer in held:
        store(answer)
    assert one.retriever.flush(60)
    assert len(held) == 2
    assert two.ask(emits=(9,)) == ("miss", [9])


def test_a_slow_tier_costs_the_budget_and_then_nothing(
    url: str, make_replica: MakeReplica, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_replica(url).ask()
    slow = make_replica(url, exact_budget_s=0.1)
    assert slow.shared is not None
    assert slow.shared._tier is not None
    looked_up = []

    def find_exact(*_: Any) -> list[Answer]:
        looked_up.append(time.monotonic())
        time.sleep(0.8)
        return []

    monkeypatch.setattr(slow.shared._tier, "find_exact", find_exact)
    request: Any = SimpleNamespace(prompt_token_ids=[1], lora_request=None)

    async def ask_often() -> list[float]:
        took_s = []
        for _ in range(100):
            began_s = time.monotonic()
            assert await slow.shared.find(request, "acme", [b"k"], "f") == []  # type: ignore[union-attr]
            took_s.append(time.monotonic() - began_s)
            await asyncio.sleep(0.005)
        return took_s

    took_s = asyncio.run(ask_often())
    # Each waits for its budget at most; with all threads busy, or the breaker open, for nothing. A
    # machine that stands still now and then has some others wait too.
    assert sorted(took_s)[50] < 0.05
    assert sum(took > 0.09 for took in took_s) <= 30
    assert len(looked_up) <= 12
    assert slow.outcomes["late"] >= 3
    assert slow.outcomes.get("failed", 0) + slow.outcomes.get("busy", 0) >= 50
    assert slow.shared.stats()["breaker"] != "closed"


@pytest.mark.redis
def test_a_redis_that_is_gone_or_stands_still_is_a_miss_until_it_is_back(
    start_redis: Any, make_replica: MakeReplica, wait_until: Any
) -> None:
    server = start_redis()
    one, two = make_replica(server.url), make_replica(server.url, exact_budget_s=0.1)
    one.ask()
    server.freeze()
    request: Any = SimpleNamespace(prompt_token_ids=[1, 2, 3], lora_request=None)
    assert two.shared is not None
    took_s = []
    for _ in range(8):
        began_s = time.monotonic()
        assert asyncio.run(two.shared.find(request, "acme", [b"k" * 16], "f")) == []
        took_s.append(time.monotonic() - began_s)
    # The machine may stand still for some of them; who waits for Redis waits for 30 s.
    assert sorted(took_s)[3] < 1.0
    server.thaw()

    def is_back() -> bool:
        return two.ask(emits=(9,), policy=RequestPolicy(RequestControl(store=False), "acme")) == (
            "exact",
            [5, 6, 7],
        )

    wait_until(is_back)


def test_an_adapter_is_shared_by_its_content(
    url: str, make_replica: MakeReplica, tmp_path: Path, wait_until: Any
) -> None:
    adapter = b'\x3c\0\0\0\0\0\0\0{"a": {"dtype": "U8", "shape": [2], "data_offsets": [0, 2]}}'
    requests = {}
    for name, content in (("here", b"ab"), ("there", b"ab"), ("other", b"cd")):
        folder = tmp_path / "adapters" / name
        folder.mkdir(parents=True)
        (folder / "adapter_model.safetensors").write_bytes(adapter + content)
        (folder / "adapter_config.json").write_text("{}")
        requests[name] = LoRARequest(name, len(requests) + 1, str(folder))
    one, two = make_replica(url), make_replica(url)
    for replica, name in ((one, "here"), (two, "there"), (two, "other")):
        assert replica.shared is not None
        asked: Any = SimpleNamespace(lora_request=requests[name])
        # The first request of an adapter has its fingerprint taken.
        wait_until(lambda r=replica, a=asked: r.shared.state_of(a) is not None)
    one.ask(lora=requests["here"])
    assert two.ask(emits=(9,), lora=requests["other"]) == ("miss", [9])
    assert two.ask(emits=(9,)) == ("miss", [9])
    assert two.ask(emits=(9,), lora=requests["there"]) == ("exact", [5, 6, 7])
    # Its files have changed, and nobody has loaded it again: it is no known adapter any more.
    file = Path(requests["here"].lora_path) / "adapter_model.safetensors"
    file.write_bytes(adapter + b"ef!")
    changed: Any = SimpleNamespace(lora_request=requests["here"])
    assert one.shared is not None
    assert one.shared.state_of(changed) is None


def test_repeats_are_reported_to_the_tier(url: str, make_replica: MakeReplica) -> None:
    one, two = make_replica(url), make_replica(url)
    one.ask()
    for _ in range(3):
        assert two.ask()[0] == "exact"
    assert two.retriever.flush(60)
    tier = open_tier(url)
    assert tier is not None
    (answer,) = tier.exact_answers("acme")
    tier.close()
    assert (answer.uses, answer.accepted_tokens) == (3, 9)


@pytest.mark.parametrize(
    ("owner", "name"),
    [
        *((SharedExact, name) for name in ("state_of", "find", "store", "used", "_adapter_state")),
        *((ExactAnswers, name) for name in ("shared_keys", "fetch", "used", "_share", "_take_in")),
        (AdapterEpochs, "loaded_since_s"),
        (shared_exact, "_is_answer_to"),
    ],
)
def test_an_error_in_any_part_costs_a_hit_and_no_request(
    make_replica: MakeReplica,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    owner: Any,
    name: str,
) -> None:
    called = 0

    def fail(*_: Any, **__: Any) -> Any:
        nonlocal called
        called += 1
        raise RuntimeError("injected")

    url = f"sqlite:///{tmp_path}/answers.sqlite"
    one, two = make_replica(url), make_replica(url)
    one.ask()
    monkeypatch.setattr(owner, name, fail)
    adapter = LoRARequest("a", 1, str(tmp_path))
    for replica, lora in ((one, None), (two, None), (two, adapter)):
        for prompt in ((1, 2, 3), (1, 2, 3), (4, 5)):
            kind, token_ids = replica.ask(lora=lora, prompt=prompt)
            assert kind in ("exact", "miss")
            assert token_ids == [5, 6, 7]
    assert called
    errors = sum((one.front_end.errors.counts() | two.front_end.errors.counts()).values())
    assert errors
    monkeypatch.undo()
