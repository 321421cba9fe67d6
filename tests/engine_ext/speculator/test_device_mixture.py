"""The weights that the device predicts with: those that V1 has saved, or those that are shipped."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("vllm")

from reprise.engine_ext.core.config import RepriseConfig, load_config
from reprise.engine_ext.speculator import device_mixture
from reprise.engine_ext.speculator.device_mixture import DeviceMixture
from reprise.kernels.draft.state import DraftState
from reprise.spec.predictor.weights import LearnedWeights, salt_of, save_weights, start_weights


@pytest.fixture
def make(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Build one with a file of weights, or none."""
    monkeypatch.setattr(device_mixture, "tokenizer_key_of", lambda _: "")

    def build(path: Path | None) -> DeviceMixture:
        settings: Any = None
        state = DraftState.create(num_slots=1, max_draft=2, num_corpora=1, arena_tokens=8)
        config = RepriseConfig()
        if path is not None:
            config = load_config({"drafts": {"weights_file": str(path)}})
        return DeviceMixture(settings, config, state)

    return build


def test_what_v1_has_saved_is_predicted_with(make: Any, tmp_path: Path) -> None:
    weights, secret = start_weights(), bytes(range(16))
    weights.choice[7] += 3.0
    save_weights(weights, tmp_path / "weights", secret=secret)
    made = make(tmp_path / "weights")
    assert np.array_equal(made.state.choice_weights.numpy(), weights.choice)
    assert np.array_equal(made.state.mixture_weights.numpy(), weights.mixture)
    assert made.salt("mine") == salt_of("mine", secret) != made.salt("theirs")


@pytest.mark.parametrize("content", [None, b"", b"no weights"])
def test_a_file_that_cannot_be_used_costs_what_was_learned(
    make: Any, tmp_path: Path, content: bytes | None
) -> None:
    path = tmp_path / "weights"
    if content is not None:
        path.write_bytes(content)
        path.chmod(0o600)
    made = make(path)
    assert np.array_equal(made.state.choice_weights.numpy(), start_weights().choice)
    assert made.salt("mine") == salt_of("mine", LearnedWeights().secret)
    assert make(None).salt("mine") == made.salt("mine")
