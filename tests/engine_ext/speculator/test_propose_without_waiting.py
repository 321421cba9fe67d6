"""Neither verification nor `propose` waits for the device, or makes it wait for the host."""

import ast
import inspect
import re
import textwrap
from collections.abc import Callable
from typing import Any

import pytest

pytest.importorskip("vllm")

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from reprise.engine_ext.speculator import device_speculator
from reprise.engine_ext.speculator.device_corpora import DeviceCorpora
from reprise.engine_ext.speculator.device_speculator import DeviceSpeculator
from reprise.engine_ext.speculator.rank_drafts import RankDrafts
from reprise.engine_ext.speculator.slot_counts import SlotCounts
from reprise.engine_ext.speculator.upload import Upload
from reprise.engine_ext.speculator.waiting_writes import WaitingWrites
from reprise.engine_ext.worker.verification import on_v2
from reprise.kernels import draft
from reprise.kernels.draft import step_counts
from reprise.kernels.draft.state import DraftState
from reprise.kernels.draft.triton_counts import count_step_triton
from reprise.kernels.draft.triton_kernels import draft_tokens_triton
from reprise.kernels.verify.coupled import verify_coupled
from reprise.kernels.verify.triton_coupled import verify_coupled_triton

# Methods that wait, and functions that make a tensor on the host or read one.
FORBIDDEN = {
    "item", "cpu", "tolist", "numpy", "to", "cuda", "synchronize", "nonzero", "pin_memory",
    "masked_select", "unique", "tensor", "as_tensor", "from_numpy", "arange", "zeros", "empty",
    "ones", "full", "one_hot", "wait", "acquire", "sleep", "bool", "int", "float",
    "repeat_interleave",
}  # fmt: skip
# What stays on the device, is made there, or asks arrays of the host.
HARMLESS = re.compile(r"to\(torch\.int32\)$|, device=device\)$|^bool\(np\.")
IN_PROPOSE: tuple[Callable[..., Any], ...] = (
    DeviceSpeculator.propose,
    DeviceSpeculator._draft,
    DeviceSpeculator._mark_unknown,
    SlotCounts.add_step,
    step_counts.count_step,
    count_step_triton,
    RankDrafts.share,
    draft.draft_tokens,
    draft.check,
    draft_tokens_triton,
    # Before it:
    on_v2.verify,
    on_v2._verify,
    on_v2._verify_by_vllm,
    on_v2.needs_vllms_processing,
    verify_coupled,
    verify_coupled_triton,
    # Between two steps:
    DeviceCorpora.put_in_place,
    WaitingWrites.send,
    WaitingWrites._send_table,
    WaitingWrites._send_parts,
    Upload.enqueue,
)


@pytest.mark.parametrize("function", IN_PROPOSE, ids=lambda each: each.__qualname__)
def test_nothing_in_it_waits_or_makes_host_tensors(function: Callable[..., Any]) -> None:
    tree = ast.parse(textwrap.dedent(inspect.getsource(inspect.unwrap(function))))
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            called = node.func
            name = called.attr if isinstance(called, ast.Attribute) else getattr(called, "id", "")
            if name in FORBIDDEN and not HARMLESS.search(ast.unparse(node)):
                found.append(ast.unparse(node))
    assert found == []


class OnDevice(TorchDispatchMode):
    """Lets tensors neither leave the device nor come to it."""

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        result = function(*args, **(kwargs or {}))
        for each in result if isinstance(result, tuple | list) else (result,):
            if isinstance(each, torch.Tensor):
                assert each.device.type == "meta", f"{function} made a tensor on the host"
        return result


class Batch:
    """What vLLM knows of a batch, as far as it is read here."""

    def __init__(self, num_reqs: int, device: str) -> None:
        self.num_reqs = num_reqs
        self.idx_mapping = torch.zeros(num_reqs, dtype=torch.int64, device=device)


def speculator_on(device: str) -> DeviceSpeculator:
    """One without an engine."""
    made = object.__new__(DeviceSpeculator)
    made.enable_adaptive_verification = False
    state = DraftState.create(
        num_slots=4, max_draft=3, max_near_tokens=16, num_corpora=2, arena_tokens=64, device=device
    )
    made._state = state
    made._counts = SlotCounts(state)
    made._drafts = torch.zeros((4, 3), dtype=torch.int64, device=device)
    made.draft_token_confidence_probs = torch.zeros((4, 3), device=device)
    made._ranks = RankDrafts(made._drafts, made.draft_token_confidence_probs)
    made._requests = type("Requests", (), {"has_failed": False})()
    made._vocabulary_size = 1000
    made._req_states = type("States", (), {})()
    tokens = torch.zeros((4, 32), dtype=torch.int32, device=device)
    lengths = torch.full((4,), 5, dtype=torch.int32, device=device)
    made._req_states.all_token_ids = type("Tokens", (), {"gpu": tokens})()
    made._req_states.total_len = type("Lengths", (), {"gpu": lengths})()
    made._errors = device_speculator.ErrorCounter()
    return made


def propose(
    made: DeviceSpeculator, batch: Batch, device: str, num_sampled: Any = None, **others: Any
) -> torch.Tensor:
    ones = torch.ones(batch.num_reqs, dtype=torch.int32, device=device)
    sampled = ones if num_sampled is None else num_sampled
    last = torch.full((4, 1), 7, dtype=torch.int64, device=device)
    nothing: Any = None
    return made.propose(
        batch, nothing, nothing, nothing, nothing, sampled, 0 * ones, last,
        nothing, nothing, nothing, **others,
    )  # fmt: skip


@pytest.mark.parametrize("fails", [False, True])
def test_all_that_it_launches_stays_on_the_device(
    monkeypatch: pytest.MonkeyPatch, fails: bool
) -> None:
    """Torch's device without values stands for a GPU: every look at one raises."""

    def kernel(state: Any, *, vocab_size: int, **others: Any) -> None:
        assert vocab_size == 1000
        draft.check(state, **others, backend="auto")
        if fails:
            raise RuntimeError("no such kernel")

    monkeypatch.setattr(device_speculator, "draft_tokens", kernel)
    made = speculator_on("meta")
    made.enable_adaptive_verification = True
    batch = Batch(3, "meta")
    with OnDevice():
        assert propose(made, batch, "meta").shape == (3, 3)
        with pytest.raises(NotImplementedError):
            made._drafts.cpu()
        with pytest.raises(RuntimeError):
            bool(made._drafts.any())
    assert made._errors.counts() == ({"propose": 1} if fails else {})


def test_what_cannot_be_drafted_repeats_the_last_token(monkeypatch: pytest.MonkeyPatch) -> None:
    made = speculator_on("cpu")
    made._drafts.fill_(-1)
    made.draft_token_confidence_probs.fill_(0.5)

    def kernel(*_: Any, **__: Any) -> None:
        raise RuntimeError("no such kernel")

    monkeypatch.setattr(device_speculator, "draft_tokens", kernel)
    found = propose(made, Batch(2, "cpu"), "cpu")
    assert found.tolist() == [[7, 7, 7]] * 2
    assert made.draft_token_confidence_probs[:2].tolist() == [[0.0] * 3] * 2
    assert made._errors.counts() == {"propose": 1}


def test_nothing_is_drafted_once_a_slot_could_not_be_cleared() -> None:
    made = speculator_on("cpu")
    made._requests.has_failed = True  # type: ignore[union-attr]
    assert propose(made, Batch(2, "cpu"), "cpu").tolist() == [[7, 7, 7]] * 2


def test_a_step_without_slots_after_it_is_counted_and_not_drafted_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made = speculator_on("cpu")
    calls: list[str] = []
    monkeypatch.setattr(device_speculator, "draft_tokens", lambda *_, **__: calls.append("draft"))
    monkeypatch.setattr(made._ranks, "share", lambda _: calls.append("share"))
    monkeypatch.setattr(made._counts, "add_step", lambda *_: calls.append("count"))
    assert propose(made, Batch(2, "cpu"), "cpu", num_speculative_tokens=0).shape == (2, 3)
    assert calls == ["count"]
    propose(made, Batch(2, "cpu"), "cpu", num_speculative_tokens=1)
    assert calls == ["count", "count", "draft", "share"]
    assert made._errors.counts() == {}


@pytest.mark.parametrize(("asked", "width"), [(1, 1), (2, 2), (3, 3), (None, 3)])
def test_as_many_tokens_are_drafted_as_are_verified(
    monkeypatch: pytest.MonkeyPatch, asked: int | None, width: int
) -> None:
    made = speculator_on("cpu")
    tokens = made._req_states.all_token_ids.gpu
    tokens[0, :5] = torch.tensor([1, 2, 3, 1, 2])
    made._drafts.fill_(-1)
    made.draft_token_confidence_probs.fill_(9.0)
    found = propose(made, Batch(1, "cpu"), "cpu", num_speculative_tokens=asked)
    assert found.tolist() == [[3, 1, 2][:width] + [-1] * (3 - width)]
    chances = made.draft_token_confidence_probs[0]
    assert (chances[:width] < 1).all()
    assert (chances[width:] == 9).all()
    # Where nothing can be drafted, likewise.
    monkeypatch.setattr(device_speculator, "draft_tokens", None)
    found = propose(made, Batch(2, "cpu"), "cpu", num_speculative_tokens=asked)
    assert found.tolist() == [[7] * width + [-1] * (3 - width)] * 2
    assert made._errors.counts() == {"propose": 1}


@pytest.mark.parametrize(("asked", "width"), [(0, 0), (2, 2), (None, 3)])
def test_what_is_not_drafted_has_chances_that_are_not_known(asked: int | None, width: int) -> None:
    """With adaptive verification: 1, as vLLM has them for a request that begins."""
    made = speculator_on("cpu")
    made.enable_adaptive_verification = True
    made.draft_token_confidence_probs.fill_(0.5)
    made._req_states.all_token_ids.gpu[0, :5] = torch.tensor([1, 2, 3, 1, 2])
    batch = Batch(3, "cpu")
    batch.idx_mapping = torch.arange(3)
    # The second has a prompt that is not computed to its end, the third nothing to copy from.
    sampled = torch.tensor([1, 0, 1], dtype=torch.int32)
    made._req_states.all_token_ids.gpu[2, :5] = torch.arange(5)
    propose(made, batch, "cpu", sampled, num_speculative_tokens=asked)
    drafted, prefilling, nothing, other = made.draft_token_confidence_probs.tolist()
    assert all(0.0 < chance < 1.0 for chance in drafted[:width])
    assert drafted[width:] == [1.0] * (3 - width)
    assert prefilling == [1.0] * 3
    assert nothing == [0.0] * width + [1.0] * (3 - width)
    assert other == [0.5] * 3
    assert made._errors.counts() == {}


def test_a_dummy_run_touches_nothing() -> None:
    made = speculator_on("cpu")
    made._req_states = None
    assert propose(made, Batch(4, "cpu"), "cpu", dummy_run=True).shape == (4, 3)
