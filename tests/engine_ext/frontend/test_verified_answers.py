"""What is found in the tier to be verified, and what is worth it: front ends without an engine."""

import asyncio
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

pytest.importorskip("vllm")

from vllm.sampling_params import SamplingParams
from vllm.v1.engine import EngineCoreRequest
from vllm.v1.engine.output_processor import OutputProcessor, RequestOutputCollector

from reprise.engine_ext.core.config import load_config
from reprise.engine_ext.core.fingerprint import FingerprintError
from reprise.engine_ext.frontend import shared_exact, verified_answers
from reprise.engine_ext.frontend.front_end import FrontEnd
from reprise.engine_ext.request.request_control import RequestControl
from reprise.engine_ext.request.request_policy import RequestPolicy
from reprise.retrieval import RetrievalConfig
from reprise.retrieval.api.answer import Answer, token_bytes
from reprise.retrieval.in_process.local_retriever import LocalRetriever
from reprise.retrieval.in_process.open_tier import open_tier
from reprise.retrieval.search.embedding import Embedder
from reprise.tests.engine_ext.front_ends import Client, core_request, vllm_config, wait_longer


async def ignore(_: EngineCoreRequest) -> None:
    """An engine that is never asked."""


class Server(Client):
    """A front end on a tier, whose engine verifies."""

    def __init__(self, url: str, whose: str = "verified", **changes: Any) -> None:
        retrieval = {"url": url, "embedding_model": "lexical", "clauses": False}
        serving = {"exact_hits_from_others": whose, "exact_budget_s": 1.0}
        self.retriever = LocalRetriever(
            RetrievalConfig(**retrieval),  # type: ignore[arg-type]
            embedder=Embedder("lexical"),
            decode=lambda token_ids: " ".join(map(str, token_ids)),
        )
        front_end = FrontEnd(
            vllm_config(**changes),
            load_config({"serving": serving, "retrieval": retrieval}),
            OutputProcessor(None, log_stats=False),
            retriever=self.retriever,
        )
        front_end.open_others(loaded_since_s=time.time() + 60, submit=ignore)
        wait_longer(front_end)
        super().__init__(front_end, namespace="acme")
        self.offered: Answer | None = None
        if (shared := front_end.exact.shared) is not None:
            assert shared.wait(60)

    @property
    def outcomes(self) -> dict[str, int]:
        shared = self.front_end.exact.shared
        assert shared is not None
        return {name: count for name, count in shared.outcomes.items() if count}

    def ask(self, **asked: Any) -> tuple[str, list[int]]:
        """Also wait until the answer is stored."""
        given = super().ask(**asked)
        assert self.retriever.flush(60)
        return given

    def look_up(self, request: Any, queue: Any, policy: RequestPolicy) -> bool:
        """In the tier first."""
        self.offered = asyncio.run(self.front_end.fetch(request, policy))
        return super().look_up(request, queue, policy)

    def offers(self, **asked: Any) -> list[int] | None:
        """What is to be verified for a request, which is then generated and not stored."""
        asked.setdefault("policy", RequestPolicy(RequestControl(store=False), "acme"))
        assert self.ask(**asked)[0] == "miss"
        return None if self.offered is None else self.offered.response_token_ids.tolist()

    def check(self, answer: Answer, *, prompt: int = 3, **params: Any) -> list[int] | None:
        """What of a stored answer the engine is given to check."""
        sampling = SamplingParams(**{"temperature": 0, "max_tokens": 50, **params})
        request = core_request("c", sampling, tuple(range(1, prompt + 1)))
        queue = RequestOutputCollector(sampling.output_kind, "c")
        self.front_end.answer(request, None, queue, self._policy)
        check = self.front_end.others.check(request, answer)
        self.front_end.not_admitted("c", RuntimeError("it was a try"))
        return None if check is None else (check.prompt_token_ids or [])[prompt:]


Make = Callable[..., Server]


@pytest.fixture
def fingerprints(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What the next servers' fingerprints are; the last one is that of all others."""
    named = ["f"]

    def take(*_: Any, **__: Any) -> str:
        if named[0] == "":
            raise FingerprintError("the files were not found")
        return named.pop(0) if len(named) > 1 else named[0]

    monkeypatch.setattr(shared_exact, "fingerprint_of", take)
    monkeypatch.setattr(shared_exact, "_TIER_TIMEOUT_S", 30.0)
    return named


@pytest.fixture
def make(tmp_path: Path, fingerprints: list[str]) -> Iterator[Make]:
    assert fingerprints
    made = []

    def build(whose: str = "verified", **changes: Any) -> Server:
        made.append(Server(f"sqlite:///{tmp_path}/answers.sqlite", whose, **changes))
        return made[-1]

    yield build
    for server in made:
        server.front_end.close()
        server.retriever.close()


@pytest.mark.parametrize("second", ["f", "another", ""])
@pytest.mark.parametrize("whose", ["verified", "trusted"])
def test_greedy_answers_are_offered_whoever_has_generated_them(
    make: Make, fingerprints: list[str], whose: str, second: str
) -> None:
    one = make(whose)
    fingerprints[:] = [second]
    two = make(whose)
    one.ask()
    if whose == "trusted" and second == "f":
        assert two.ask() == ("exact", [5, 6, 7])
        assert two.offered is None
        return
    assert two.offers() == [5, 6, 7]
    assert two.outcomes == {"unproven": 1}
    assert two.offers(prompt=(1, 2)) is None
    assert two.offers(policy=RequestPolicy(RequestControl(store=False), "others")) is None
    assert two.offers(max_tokens=2) == [5, 6, 7]
    assert two.front_end.errors.counts() == {}


def test_without_a_fingerprint_nothing_is_ever_trusted(make: Make, fingerprints: list[str]) -> None:
    fingerprints[:] = [""]
    one, two = make("trusted"), make("trusted")
    one.ask()
    assert two.offers() == [5, 6, 7]


def test_after_a_change_of_weights_all_is_verified(make: Make) -> None:
    one, two = make("trusted"), make("trusted")
    one.ask()
    two.front_end.model_changed()
    assert two.offers() == [5, 6, 7]


def test_the_longest_is_offered(make: Make) -> None:
    from vllm.v1.engine import FinishReason

    one, two = make(), make()
    one.ask(max_tokens=3, reason=FinishReason.LENGTH)
    one.ask(max_tokens=5, emits=(5, 6, 7, 8, 9), reason=FinishReason.LENGTH)
    assert two.offers(max_tokens=4) == [5, 6, 7, 8, 9]


@pytest.mark.parametrize("params", [{"temperature": 1.0, "seed": 4}, {"min_tokens": 2}])
def test_others_are_neither_looked_for_nor_written(make: Make, params: dict[str, Any]) -> None:
    one, two = make(), make()
    one.ask(**params)
    assert one.outcomes == {}
    assert two.offers(**params) is None
    assert two.outcomes == {}


def test_what_was_forgotten_is_old_or_of_another_prompt_is_not_offered(
    make: Make, tmp_path: Path
) -> None:
    one, two = make(), make()
    one.ask()
    time.sleep(0.2)
    aged = RequestControl(store=False, max_age_s=0.1)
    assert two.offers(policy=RequestPolicy(aged, "acme")) is None
    two.front_end.exact.is_forgotten = lambda _: True
    assert two.offers() is None
    two.front_end.exact.is_forgotten = lambda _: False
    assert two.offers() == [5, 6, 7]
    tier = open_tier(f"sqlite:///{tmp_path}/answers.sqlite")
    assert tier is not None
    (answer,) = tier.exact_answers("acme")
    tier.put([msgspec.structs.replace(answer, prompt_tokens=token_bytes([4]))])
    tier.close()
    assert two.offers() is None
    assert two.outcomes["refused"] == 1


def test_an_engine_that_cannot_verify_does_not_look(make: Make) -> None:
    config = vllm_config()
    config.model_config.is_multimodal_model = True
    server = make(model_config=config.model_config)
    assert server.front_end.exact.shared is None
    assert make("off").front_end.exact.shared is None
    trusting = make("trusted", model_config=config.model_config)
    trusting.ask()
    assert make("trusted").offers() is None
    assert make("trusted", model_config=config.model_config).ask() == ("exact", [5, 6, 7])


def test_what_is_checked_is_bounded(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    server = make()
    answer = Answer.create(prompt_token_ids=[1], response_token_ids=list(range(200)))
    assert server.check(answer) == list(range(50))
    assert server.check(answer, max_tokens=7) == list(range(7))
    assert server.check(answer, max_tokens=1) is None
    assert server.check(answer, prompt=90, max_tokens=50) == list(range(9))
    assert server.check(answer, prompt=99) is None
    alien = Answer.create(prompt_token_ids=[1], response_token_ids=[5, 1000, 6])
    assert server.check(alien) is None
    assert server.check(alien, max_tokens=2) is None
    monkeypatch.setattr(verified_answers, "_MAX_LOGITS_BYTES", 12 * 1000 * 40)
    assert make().check(answer) is None
    assert make().check(answer, max_tokens=30) == list(range(30))
    parallel = SimpleNamespace(enable_batch_sharded_sampling=False)
    v2 = make(use_v2_model_runner=True, parallel_config=parallel)
    assert v2.check(answer) == list(range(50))
    assert server.front_end.errors.counts() == {}


def test_an_error_leaves_the_request_to_the_engine(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = make()
    monkeypatch.setattr(server.front_end.others.verified, "_checkable", lambda *_: 1 / 0)
    answer = Answer.create(prompt_token_ids=[1], response_token_ids=[5, 6])
    assert server.check(answer) is None
    assert server.front_end.errors.counts() == {"verify": 1}
