"""How often copies have been right outlives the worker that counted it."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from vllm.logger import init_logger

from reprise.engine_ext.core.config import RepriseConfig
from reprise.engine_ext.core.error_counter import ErrorCounter
from reprise.engine_ext.speculator.read_back import ReadBack
from reprise.engine_ext.worker.weights_keeper import SAVE_EVERY_S, weights_path
from reprise.kernels.draft.state import DraftState, worths_of
from reprise.retrieval.host.private_files import check_ours, replacing

logger = init_logger(__name__)


def hits_path(config: RepriseConfig, tokenizer_key: str) -> Path | None:
    """Return where the counts are stored, beside the weights of model runner V1; None: nowhere."""
    path = weights_path(config, tokenizer_key)
    return path and path.with_name(path.name + ".hits")


class HitKeeper:
    """Restores the counts from a file, and keeps the file up to date. A file that cannot be used is
    replaced; one that cannot be written costs the next start what was learned.

    Args:
        state: has the counts; nothing has been drafted yet.
        path: the file.
        read_back: copies the counts and writes the file, in its thread.
        errors: counts what goes wrong.
    """

    def __init__(
        self,
        state: DraftState,
        path: Path,
        read_back: ReadBack,
        *,
        errors: ErrorCounter,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._state = state
        self._path = path
        self._read_back = read_back
        self._errors = errors
        self._clock = clock
        self._next_s = clock() + SAVE_EVERY_S
        self._restore()

    def step(self) -> None:
        """Have the file written if a minute has passed. The thread that launches steps only."""
        if self._clock() >= self._next_s:
            self.save()

    def save(self) -> None:
        """Have the file written with the counts as of now. The thread that launches steps only."""
        self._next_s = self._clock() + SAVE_EVERY_S
        self._read_back.send([self._state.hit_counts], self._write)

    def _restore(self) -> None:
        try:
            check_ours(self._path)
            counts = self._read()
            if counts.shape != self._state.hit_counts.shape or counts.dtype != np.float32:
                raise ValueError(f"{self._path} has {counts.dtype} of shape {counts.shape}")
            tried, right = counts[..., 0], counts[..., 1]
            if not (np.isfinite(tried) & (tried > 0) & (right >= 0) & (right <= tried)).all():
                raise ValueError(f"{self._path} has counts that cannot be")
        except FileNotFoundError:
            return
        except Exception as error:  # the next save replaces it
            logger.warning("Reprise: drafting begins with start values: %s", error)
            return
        self._state.hit_counts.copy_(torch.from_numpy(counts))
        self._state.hit_chances.copy_(torch.from_numpy(right / tried))
        self._state.hit_worths.copy_(worths_of(self._state.hit_chances))

    def _read(self) -> NDArray[Any]:
        """Return the file's array.

        Raises:
            ValueError: It is none.
            OSError: It cannot be read.
        """
        with self._path.open("rb") as file:
            try:
                counts: NDArray[Any] = np.load(file, allow_pickle=False)
            except OSError:
                raise
            except Exception as error:  # numpy's, of many kinds
                raise ValueError(f"{self._path}: expected counts, came other bytes") from error
        return counts

    def _write(self, values: list[NDArray[Any]]) -> None:
        with self._errors.writing("save hits", self._path):
            check_ours(self._path)
            with replacing(self._path) as file:
                np.save(file, values[0])
