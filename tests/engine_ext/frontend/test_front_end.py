"""What the front end stores, serves and forgets, with vLLM's output processor and no engine."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from vllm.lora.request import LoRARequest
from vllm.v1.engine import FinishReason
from vllm.v1.engine.output_processor import OutputProcessor

from reprise.engine_ext.core.config import load_config
from reprise.engine_ext.frontend.front_end import FrontEnd
from reprise.engine_ext.request.http_context import HttpRequestContext
from reprise.engine_ext.request.request_control import NotCachedError, RequestControl
from reprise.engine_ext.request.request_policy import RequestPolicy
from reprise.engine_ext.request.shared_keys import SharedKeys
from reprise.tests.engine_ext.front_ends import Client, vllm_config


def make_front_end(*, num_api_servers: int = 1, **serving: Any) -> FrontEnd:
    processor = OutputProcessor(None, log_stats=False)
    settings = load_config({"serving": serving})
    return FrontEnd(vllm_config(), settings, processor, num_api_servers=num_api_servers)


class Shared:
    """Trusts, and keeps what would be written for others."""

    trusts = True

    def __init__(self) -> None:
        self.stored: list[Any] = []

    def keys_of(self, _: Any, keys: Any) -> SharedKeys:
        return SharedKeys(keys, "state", verifiable=False)

    def store(self, answer: Any, **_: Any) -> None:
        self.stored.append(answer)

    def keep_lease(self, request_id: str) -> None:
        pass

    def ended(self, request_id: str) -> None:
        pass


@pytest.fixture
def client() -> Client:
    return Client(make_front_end())


def test_the_second_time_comes_from_the_cache(client: Client) -> None:
    assert client.ask() == ("miss", [5, 6, 7])
    assert client.ask(emits=(9,)) == ("exact", [5, 6, 7])
    stats = client.front_end.figures.stats()
    assert stats["counts"] == {"miss": 1, "stored": 1, "exact": 1, "tokens_saved": 3}
    assert stats["flights"] == 0
    assert stats["errors"] == {}


def test_a_whole_answer_serves_every_limit(client: Client) -> None:
    client.ask(max_tokens=10)
    assert client.ask(max_tokens=3) == ("exact", [5, 6, 7])
    assert client.reason is FinishReason.STOP
    assert client.ask(max_tokens=400)[0] == "exact"
    assert client.ask(max_tokens=2) == ("exact", [5, 6])
    assert client.reason is FinishReason.LENGTH


@pytest.mark.parametrize("max_tokens", [10, 2])
def test_what_cannot_be_replayed_is_dropped_whether_whole_or_cut(
    client: Client, monkeypatch: pytest.MonkeyPatch, max_tokens: int
) -> None:
    client.ask()
    no_store = RequestPolicy(RequestControl(store=False), "")
    with monkeypatch.context() as patched:
        patched.setattr(client.front_end, "_replay", lambda *_: False)
        assert client.ask(policy=no_store, max_tokens=max_tokens) == ("miss", [5, 6, 7])
    assert client.front_end.exact.memory.stats().answers == 0


def test_a_cut_answer_serves_smaller_limits(client: Client) -> None:
    client.ask(max_tokens=3, reason=FinishReason.LENGTH)
    assert client.ask(max_tokens=3) == ("exact", [5, 6, 7])
    assert client.ask(max_tokens=1) == ("exact", [5])
    assert client.reason is FinishReason.LENGTH
    longer = (5, 6, 7, 8)
    assert client.ask(max_tokens=4, emits=longer, reason=FinishReason.LENGTH)[0] == "miss"
    assert client.ask(max_tokens=4) == ("exact", [5, 6, 7, 8])
    assert client.ask(max_tokens=3) == ("exact", [5, 6, 7])
    assert client.front_end.figures.stats()["memory"]["answers"] == 1


def test_an_answer_cut_by_the_models_context_serves_its_own_limit(client: Client) -> None:
    client.ask(max_tokens=10, reason=FinishReason.LENGTH)
    assert client.ask(max_tokens=10) == ("exact", [5, 6, 7])
    assert client.ask(max_tokens=11)[0] == "miss"


@pytest.mark.parametrize("reason", [FinishReason.ABORT, FinishReason.ERROR])
def test_what_did_not_end_by_itself_is_not_stored(client: Client, reason: FinishReason) -> None:
    client.ask(reason=reason)
    assert client.ask()[0] == "miss"


def test_control_words(client: Client) -> None:
    def policy(**fields: Any) -> RequestPolicy:
        return RequestPolicy(RequestControl(**fields), "")

    client.ask(policy=policy(store=False))
    assert client.ask(policy=policy(look_up=False, store=False))[0] == "miss"
    assert client.ask()[0] == "miss"
    assert client.ask(policy=policy(look_up=False), emits=(8,)) == ("miss", [8])
    assert client.ask() == ("exact", [8])
    assert client.ask(policy=policy(only_if_cached=True)) == ("exact", [8])
    with pytest.raises(NotCachedError, match="only-if-cached") as refused:
        client.ask(policy=policy(only_if_cached=True), max_tokens=10, stop_token_ids=[4])
    assert refused.value.http_status == 504
    assert client.front_end.figures.stats()["flights"] == 0


def test_namespaces_do_not_share(client: Client) -> None:
    client.ask(policy=RequestPolicy(RequestControl(), "a"))
    assert client.ask(policy=RequestPolicy(RequestControl(), "b"))[0] == "miss"
    assert client.ask()[0] == "miss"
    assert client.ask(policy=RequestPolicy(RequestControl(), "a"))[0] == "exact"


def test_seeded_and_sampled(client: Client) -> None:
    client.ask(temperature=0.9, seed=1)
    assert client.ask(temperature=0.9, seed=1)[0] == "exact"
    assert client.ask(temperature=0.9, seed=2)[0] == "miss"
    client.ask(temperature=0.9)
    assert client.ask(temperature=0.9)[0] == "miss"
    always = Client(make_front_end(exact_hits="always"))
    always.ask(temperature=0.9)
    assert always.ask(temperature=0.9)[0] == "exact"
    off = Client(make_front_end(exact_hits="off"))
    off.ask()
    assert off.ask()[0] == "miss"


def test_other_weights_other_answers(client: Client) -> None:
    client.ask()
    client.front_end.model_changed()
    assert client.ask()[0] == "miss"


def test_an_answer_from_before_a_change_of_weights_is_not_stored(client: Client) -> None:
    front_end = client.front_end
    original = front_end.flights.process_outputs

    def change_midway(outputs: Any, *others: Any) -> Any:
        front_end.model_changed()
        return original(outputs, *others)

    front_end._replayer._processor.process_outputs = change_midway
    client.ask()
    front_end._replayer._processor.process_outputs = original
    assert client.ask()[0] == "miss"


@pytest.mark.parametrize("loads", [True, False])
def test_an_answer_from_before_a_change_of_its_adapter_is_neither_stored_nor_shared(
    client: Client, loads: bool
) -> None:
    exact, shared = client.front_end.exact, Shared()
    exact.shared = shared  # type: ignore[assignment]
    original = client.front_end.flights.process_outputs

    def change_midway(outputs: Any, *others: Any) -> Any:
        with exact.adapters.change(1, loads=loads):
            pass
        return original(outputs, *others)

    client.ask(lora=LoRARequest("b", 2, "/adapters/b"))
    assert len(shared.stored) == exact.memory.stats().answers == 1
    client.front_end._replayer._processor.process_outputs = change_midway
    client.ask(lora=LoRARequest("a", 1, "/adapters/a"))
    assert len(shared.stored) == exact.memory.stats().answers == 1
    # Another one's changes are none of its own.
    client.ask(lora=LoRARequest("c", 3, "/adapters/c"))
    assert len(shared.stored) == exact.memory.stats().answers == 2
    assert client.front_end.errors.counts() == {}


def test_a_reloaded_adapter_is_another_model(client: Client) -> None:
    adapter = LoRARequest("a", 1, "/adapters/a")
    client.ask(lora=adapter)
    assert client.ask(lora=adapter)[0] == "exact"
    assert client.ask()[0] == "miss"
    with client.front_end.exact.adapters.change(1, loads=True):
        # A generation that begins while it loads may have either weights.
        assert client.ask(lora=adapter)[0] == "miss"
        assert client.ask(lora=adapter)[0] == "miss"
    assert client.ask(lora=adapter)[0] == "miss"
    assert client.ask(lora=adapter)[0] == "exact"
    several = Client(make_front_end(num_api_servers=2))
    several.ask(lora=adapter)
    assert several.ask(lora=adapter)[0] == "miss"


def test_an_adapter_reloaded_in_place_has_hits_again(client: Client, tmp_path: Path) -> None:
    """vLLM's requests for it say `load_inplace` from then on, and its worker reads the files
    whenever one of them is scheduled."""
    (tmp_path / "adapter_model.safetensors").write_bytes(b"old")
    in_place = LoRARequest("a", 1, str(tmp_path), load_inplace=True)
    # Not loaded by way of the engine client: nobody knows when its weights change.
    client.ask(lora=in_place)
    assert client.ask(lora=in_place)[0] == "miss"
    with client.front_end.exact.adapters.change(1, loads=True):
        pass
    assert client.ask(lora=in_place)[0] == "miss"
    assert client.ask(lora=in_place)[0] == "exact"
    with (
        pytest.raises(RuntimeError, match="no such adapter"),
        client.front_end.exact.adapters.change(1, loads=True),
    ):
        raise RuntimeError("no such adapter")
    client.ask(lora=in_place)
    assert client.ask(lora=in_place)[0] == "miss"
    with client.front_end.exact.adapters.change(1, loads=True):
        pass
    client.ask(lora=in_place)
    assert client.ask(lora=in_place)[0] == "exact"
    (tmp_path / "adapter_model.safetensors").write_bytes(b"newer")
    assert client.ask(lora=in_place)[0] == "miss"
    with client.front_end.exact.adapters.change(1, loads=False):
        pass
    client.ask(lora=in_place)
    assert client.ask(lora=in_place)[0] == "miss"


def test_an_answer_that_ended_by_repetition_needs_room_for_one_more(client: Client) -> None:
    """At the limit, vLLM calls the limit the reason."""
    repetition = FinishReason.REPETITION
    client.ask(max_tokens=10, reason=repetition)
    assert client.ask(max_tokens=4)[0] == "exact"
    assert client.reason is repetition
    assert client.ask(max_tokens=3)[0] == "exact"
    assert client.reason is FinishReason.LENGTH
    client.ask(max_tokens=10, reason=FinishReason.STOP, stop_token_ids=[7])
    assert client.ask(max_tokens=3, stop_token_ids=[7])[0] == "exact"


def test_an_answer_older_than_the_request_accepts_is_generated_anew(
    client: Client, advance_clock: Callable[[float], None]
) -> None:
    client.ask()
    young = RequestPolicy(RequestControl(max_age_s=60.0), "")
    assert client.ask(policy=young)[0] == "exact"
    advance_clock(61)
    assert client.ask()[0] == "exact"
    assert client.ask(policy=young, emits=(9,)) == ("miss", [9])
    assert client.ask(policy=young) == ("exact", [9])


def test_the_latest_answer_is_repeated_however_it_ended(
    advance_clock: Callable[[float], None],
) -> None:
    """Two samples may end in different ways, and so lie under different keys."""
    client = Client(make_front_end(exact_hits="always"))
    sampled = {"temperature": 0.9, "max_tokens": 3}
    refresh = RequestPolicy(RequestControl(look_up=False), "")
    young = RequestPolicy(RequestControl(max_age_s=60.0), "")
    client.ask(**sampled)
    advance_clock(61)
    length = FinishReason.LENGTH
    client.ask(policy=refresh, emits=(8, 9, 4), reason=length, **sampled)
    assert client.ask(**sampled) == ("exact", [8, 9, 4])
    assert client.ask(policy=young, **sampled) == ("exact", [8, 9, 4])
    assert client.ask(temperature=0.9, max_tokens=2) == ("exact", [8, 9])
    advance_clock(61)
    client.ask(policy=refresh, emits=(7,), **sampled)
    assert client.ask(**sampled) == ("exact", [7])
    assert client.ask(policy=young, **sampled) == ("exact", [7])


def test_outcomes_are_added_to_the_http_context(client: Client) -> None:
    http_context = HttpRequestContext({}, None)
    client.ask(policy=RequestPolicy(RequestControl(), "", http_context))
    assert http_context.outcome() == "miss"
    http_context = HttpRequestContext({}, None)
    client.ask(policy=RequestPolicy(RequestControl(), "", http_context))
    assert http_context.outcome() == "exact"


def test_a_sampled_request_is_told_why_and_the_log_once(
    client: Client, caplog: pytest.LogCaptureFixture
) -> None:
    for _ in range(2):
        http_context = HttpRequestContext({}, None)
        with caplog.at_level("INFO"):
            client.ask(policy=RequestPolicy(RequestControl(), "", http_context), temperature=0.7)
        assert http_context.outcome() == "miss; reason=sampled"
    said = [each for each in caplog.records if "temperature 0 or a seed" in each.getMessage()]
    assert len(said) == 1
    http_context = HttpRequestContext({}, None)
    private = RequestPolicy(RequestControl(), "\0private", http_context)
    client.ask(policy=private)
    assert http_context.outcome() == "miss; reason=unknown-tenant"


def test_an_error_of_ours_becomes_a_generation(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    client.ask()

    def broken(_key: bytes) -> None:
        raise RuntimeError("broken")

    monkeypatch.setattr(client.front_end.exact.memory, "get", broken)
    assert client.ask(emits=(4,)) == ("miss", [4])
    assert client.front_end.figures.stats()["errors"] == {"exact_hit": 1}


def test_a_paused_engine_decides_on_every_request(client: Client) -> None:
    client.ask()
    client.front_end.is_paused = True
    assert client.ask(emits=(9,)) == ("miss", [9])
    assert client.front_end.refusals == {"paused engine": 1}
    assert client.front_end.figures.stats()["flights"] == 0
    with pytest.raises(NotCachedError):
        client.ask(policy=RequestPolicy(RequestControl(only_if_cached=True), ""))
    client.front_end.is_paused = False
    assert client.ask() == ("exact", [5, 6, 7])
