"""Adapters: a change of weights is another adapter, and what may change unseen is refused."""

import time
from pathlib import Path

import pytest
from vllm.lora.request import LoRARequest

from reprise.engine_ext.request.adapter_epochs import AdapterEpochs


def test_a_change_ends_what_was_answered_before_and_meanwhile() -> None:
    epochs, adapter = AdapterEpochs(), LoRARequest("a", 1, "/adapters/a")
    before = epochs.key(adapter)
    with epochs.change(1, loads=True):
        assert epochs.refusal(adapter) == "an adapter that is being reloaded"
        meanwhile = epochs.key(adapter)
    assert epochs.refusal(adapter) is None
    assert len({before, meanwhile, epochs.key(adapter)}) == 3


def test_an_adapter_is_as_old_as_its_last_loading() -> None:
    epochs = AdapterEpochs()
    assert epochs.loaded_since_s(1, 5.0) == 5.0
    before_s = time.time()
    with epochs.change(1, loads=True):
        assert before_s <= epochs.loaded_since_s(1, 5.0) <= time.time()
    assert epochs.loaded_since_s(2, 5.0) == 5.0


def test_of_two_changes_at_once_the_later_end_counts() -> None:
    epochs, adapter = AdapterEpochs(), LoRARequest("a", 1, "/adapters/a")
    with epochs.change(1, loads=True):
        with epochs.change(1, loads=True):
            pass
        assert epochs.refusal(adapter) is not None
    assert epochs.refusal(adapter) is None


def test_an_adapter_that_requests_reload_has_answers_only_if_loaded_here(tmp_path: Path) -> None:
    epochs, adapter = AdapterEpochs(), LoRARequest("a", 1, str(tmp_path), load_inplace=True)
    assert epochs.refusal(adapter) == "an adapter that every request reloads"
    with pytest.raises(OSError, match="no such"), epochs.change(1, loads=True):
        raise OSError("no such adapter")
    assert epochs.refusal(adapter) is not None
    with epochs.change(1, loads=True):
        pass
    assert epochs.refusal(adapter) is None
    # The worker reads its files again: others are another adapter.
    before = epochs.key(adapter)
    (tmp_path / "adapter_model.safetensors").write_bytes(b"new")
    assert epochs.key(adapter) != before
    with epochs.change(1, loads=False):
        pass
    assert epochs.refusal(adapter) is not None
