"""Results of `acceptance_rate.py` as rows in a file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from reprise.eval.replay.results import Run
from reprise.eval.report.results_csv import append_rows

FIELDS = (
    "engine", "trace", "method", "model", "requests", "concurrency", "cost", "tokens_per_s",
    "mean_acceptance_length", "acceptance_rate", "drafted_per_step", "model_speedup",
    "identical_outputs",
)  # fmt: skip


def append_runs(path: Path, config: Mapping[str, Any], runs: Sequence[Run]) -> None:
    """Add a row for each run.

    Args:
        path: of the file.
        config: the settings, as in the command's JSON; `model` or `tokenizer` may be a folder.
        runs: as in the JSON.
    """
    model = Path(config.get("model") or config["tokenizer"])
    common = {
        "engine": config["engine"],
        "model": model.parent.name if model.name == "tokenizer.json" else model.stem,
        "cost": config["cost"],
        "concurrency": config.get("concurrency", ""),
    }
    names = [name for name in FIELDS if name not in common and name != "tokens_per_s"]
    append_rows(path, [common | _cells(run, names) for run in runs], fields=FIELDS)


def _cells(run: Run, names: Sequence[str]) -> dict[str, Any]:
    values = {name: getattr(run, name) for name in names}
    values["tokens_per_s"] = run.output_tokens_per_s
    cells = {name: value for name, value in values.items() if value is not None}
    return {k: round(v, 5) if isinstance(v, float) else v for k, v in cells.items()}
