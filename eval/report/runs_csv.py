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
    common = {
        "engine": config["engine"],
        "model": model_name(config.get("model") or config["tokenizer"]),
        "cost": config["cost"],
        "concurrency": config.get("concurrency", ""),
    }
    names = [name for name in FIELDS if name not in common and name != "tokens_per_s"]
    append_rows(path, [common | _cells(run, names) for run in runs], fields=FIELDS)


def model_name(path_or_name: str) -> str:
    """Return what a row calls a model or a tokenizer.

    Example:
        >>> model_name("Qwen/Qwen2.5-0.5B"), model_name("tokenizers/gpt2.json")
        ('Qwen2.5-0.5B', 'gpt2')
    """
    path = Path(path_or_name)
    if path.name == "tokenizer.json":
        return path.parent.name
    # A name may have dots of its own.
    return path.stem if path.suffix in (".json", ".gguf") else path.name


def _cells(run: Run, names: Sequence[str]) -> dict[str, Any]:
    values = {name: getattr(run, name) for name in names}
    values["tokens_per_s"] = run.output_tokens_per_s
    cells = {name: value for name, value in values.items() if value is not None}
    return {k: round(v, 5) if isinstance(v, float) else v for k, v in cells.items()}
