"""What drafting has learned outlives the worker that learned it."""

import threading
from pathlib import Path

from vllm.logger import init_logger

from reprise.engine_ext.core.config import RepriseConfig
from reprise.engine_ext.core.error_counter import ErrorCounter
from reprise.retrieval.api.tier_url import beside_sqlite
from reprise.retrieval.host.private_files import check_ours
from reprise.spec.provider import DraftProvider

logger = init_logger(__name__)

SAVE_EVERY_S = 60.0


def weights_path(config: RepriseConfig, tokenizer_key: str) -> Path | None:
    """Return where an engine's weights are stored; None: nowhere. By default for each tokenizer
    apart, as some weights are of token ids."""
    if config.drafts.weights_file is not None:
        return Path(config.drafts.weights_file)
    return beside_sqlite(config.retrieval.url, f".{tokenizer_key[:8]}.weights")


class WeightsKeeper:
    """Restores a provider's weights from a file, and keeps the file up to date in a thread of its
    own. A file that cannot be used is replaced; one that cannot be written costs the next start
    what was learned.

    Args:
        provider: has no request yet.
        path: the file.
        errors: counts what goes wrong.
    """

    def __init__(self, provider: DraftProvider, path: Path, *, errors: ErrorCounter) -> None:
        self._provider = provider
        self._path = path
        self._errors = errors
        self._lock = threading.Lock()
        self._restore()
        self._num_saved = provider.stats().emitted
        # A daemon: it ends with the worker, which loses a minute's learning at most.
        threading.Thread(target=self._run, name="reprise-weights", daemon=True).start()

    def _restore(self) -> None:
        try:
            check_ours(self._path)
            self._provider.load(self._path)
        except FileNotFoundError:
            return
        except Exception as error:  # the next save replaces it
            logger.warning("Reprise: drafting begins with the shipped weights: %s", error)

    def _run(self) -> None:
        never = threading.Event()
        while not never.wait(SAVE_EVERY_S):
            self.save()

    def save(self) -> None:
        """Write the file now, if there was anything to learn from since it was written."""
        with self._lock, self._errors.writing("save weights", self._path):
            num_emitted = self._provider.stats().emitted
            if num_emitted != self._num_saved:
                self._provider.save(self._path)
                self._num_saved = num_emitted
