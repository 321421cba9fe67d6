# mypy: allow-untyped-calls
"""The learned weights on disk: those shipped to start from, and what was learned since."""

from pathlib import Path

import numpy as np

from .features import Weights, prior_weights

FORMAT = 2
START_WEIGHTS = Path(__file__).with_name("start_weights.npz")


def start_weights() -> Weights:
    """The shipped start values: eval/train_drafts.py says what they were learned from."""
    weights = prior_weights()
    load_weights(weights, START_WEIGHTS)
    return weights


def save_weights(weights: Weights, path: str | Path) -> None:
    """Write the weights to `path` (numpy's .npz, whatever the name ends in)."""
    with Path(path).open("wb") as file:
        np.savez_compressed(file, format=np.int64(FORMAT), **weights._asdict())


def load_weights(weights: Weights, path: str | Path) -> None:
    """Read into `weights` what `save_weights` wrote.

    Raises:
        ValueError: if the file is of another format, or was written for other tables.
    """
    with Path(path).open("rb") as file, np.load(file, allow_pickle=False) as stored:
        found = int(stored["format"]) if "format" in stored else None
        if found != FORMAT:
            raise ValueError(f"{path}: expected weights of format {FORMAT}, came {found}")
        for name, table in weights._asdict().items():
            if name not in stored or stored[name].shape != table.shape:
                came = stored[name].shape if name in stored else "none"
                raise ValueError(f"{path}: {name}: expected shape {table.shape}, came {came}")
            if not np.isfinite(stored[name]).all():
                raise ValueError(f"{path}: {name}: expected finite numbers")
        for name, table in weights._asdict().items():
            table[:] = stored[name]
