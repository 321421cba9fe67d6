"""Exact hits beyond one process: two front ends on one tier, with vLLM's output processor."""

import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("vllm")

from vllm.lora.request import LoRARequest
from vllm.v1.engine import FinishReason

from reprise.engine_ext.core.fingerprint import FingerprintError
from reprise.engine_ext.frontend import shared_exact
from reprise.engine_ext.request.request_control import RequestControl
from reprise.engine_ext.request.request_policy import RequestPolicy
from reprise.retrieval.host import steady_clock
from reprise.retrieval.in_process.open_tier import open_tier
from reprise.tests.engine_ext.frontend.shared_exact.replica import MakeReplica


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
    began_s = steady_clock.now_s()

    def set_clocks(ahead_s: float) -> None:
        monkeypatch.setattr(steady_clock, "now_s", lambda: began_s + ahead_s)

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
    tier = open_tier(url, timeout_s=20.0)
    assert tier is not None
    (answer,) = tier.exact_answers("acme")
    tier.close()
    assert (answer.uses, answer.accepted_tokens) == (3, 9)
