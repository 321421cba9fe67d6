"""Rows of GPU runs: appended as they come, and read again by a run that goes on."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from reprise.eval.gpu.gpu_worker import GpuReply
from reprise.eval.gpu.workloads import Workload
from reprise.eval.report.results_csv import append_rows, read_rows

FIELDS = (
    "model", "vllm", "torch", "method", "runner", "workload", "concurrency", "requests",
    "tokens_per_s", "to_none", "mean_acceptance_length", "drafted_per_step", "identical_outputs",
    "wall_s", "note",
)  # fmt: skip


class GpuRows:
    """The file of a run, and which of its rows are there already: those of the same model on the
    same machine, not those of a dry run before.

    A row whose engine failed has a note and no speed; a run that goes on tries it again.
    """

    def __init__(self, path: Path, about: dict[str, str]) -> None:
        self._path, self._about = path, about
        found = read_rows(path) if path.exists() else []
        self._none_speeds: dict[str, float] = {}
        self._done: set[tuple[str, str]] = set()
        for row in found:
            is_of_this = all(row[name] == about[name] for name in ("machine", "model"))
            if is_of_this and row["tokens_per_s"]:
                self._note(row["method"], row["workload"], float(row["tokens_per_s"]))

    def is_done(self, method: str, workload: Workload) -> bool:
        """Whether this was measured already."""
        return (method, workload.name) in self._done

    def add(
        self,
        method: str,
        runner: str,
        workload: Workload,
        reply: GpuReply,
        reference: Sequence[Sequence[int]] | None,
        note: str = "",
    ) -> dict[str, Any]:
        """Append what a workload came to; `reference`: outputs of none, if it ran in this run;
        `note`: of the engine."""
        outputs = reply.output_token_ids
        speed = sum(map(len, outputs)) / reply.wall_s
        self._note(method, workload.name, speed)
        none = self._none_speeds.get(workload.name)
        row = self._row(method, workload) | {
            "runner": runner,
            "tokens_per_s": round(speed, 1),
            "to_none": round(speed / none, 3) if none else "",
            "mean_acceptance_length": round(1 + reply.accepted_tokens / max(1, reply.steps), 3),
            "drafted_per_step": round(reply.drafted_tokens / max(1, reply.steps), 2),
            "wall_s": round(reply.wall_s, 2),
            "note": "; ".join(filter(None, (note, reply.note))),
        }
        if reference is not None:
            same = sum(a == b for a, b in zip(outputs, reference, strict=True))
            row["identical_outputs"] = same
        append_rows(self._path, [row], fields=FIELDS)
        return row

    def add_failure(self, method: str, workload: Workload, reason: str) -> None:
        """Append that there is no result, and why."""
        row = self._row(method, workload) | {"note": " ".join(reason.split())[:300]}
        append_rows(self._path, [row], fields=FIELDS)

    def _row(self, method: str, workload: Workload) -> dict[str, Any]:
        return {
            **self._about,
            "method": method,
            "workload": workload.name,
            "concurrency": workload.concurrency,
            "requests": len(workload.rows),
        }

    def _note(self, method: str, workload: str, speed: float) -> None:
        self._done.add((method, workload))
        if method == "none":
            self._none_speeds[workload] = speed
