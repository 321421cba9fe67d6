"""The tier of files that `--kv-tiers disk=PATH:SIZE` adds behind host memory.

vLLM's own tier of files knows no bound, and finds blocks by the model's name and their tokens: once
its weights have changed, it would load what was computed with the old ones. Here each set of
weights has a folder of its own. vLLM loads this class by its path, in the engine core.
"""

from pathlib import Path
from typing import Any

from vllm.v1.kv_offload.tiering.fs.manager import FileSystemTierManager

from reprise.engine_ext.core.fingerprint import FingerprintError, folder_of_model
from reprise.engine_ext.core.weights_digest import cached_weights_digest, model_files
from reprise.engine_ext.scheduling.folder_bound import FolderBound

_DIGITS = 16


class DiskTier(FileSystemTierManager):  # type: ignore[misc]
    """Keeps blocks in a folder, up to a number of bytes of all weights together.

    Args:
        folder: Where the files go; made if need be, for this user alone.
        max_bytes: How much they may be.
        revision: Of the model on its hub.
        download_dir: Where vLLM keeps what it has fetched from there; None: where it is usual.
        given: What vLLM gives to each tier.

    Raises:
        ValueError: The model's weights, by which the files are told apart, cannot be read.
    """

    def __init__(
        self,
        *,
        folder: str,
        max_bytes: int,
        revision: str | None = None,
        download_dir: str | None = None,
        **given: Any,
    ) -> None:
        model = given["offloading_spec"].config.model.name
        weights = _weights_digest(model, revision, download_dir)
        root = Path(folder)
        root.mkdir(mode=0o700, parents=True, exist_ok=True)
        super().__init__(root_dir=str(root / f"weights-{weights[:_DIGITS]}"), **given)
        self._bound = FolderBound(root, max_bytes)

    def shutdown(self) -> None:
        """Release what the tier holds; the files stay."""
        self._bound.close()
        super().shutdown()


def _weights_digest(model: str, revision: str | None, download_dir: str | None) -> str:
    try:
        files, _ = model_files(folder_of_model(model, revision, download_dir))
        if files:
            return cached_weights_digest(files, None)
    except (FingerprintError, OSError, ValueError) as error:
        raise ValueError(f"--kv-tiers disk: the weights of {model}: {error}") from error
    raise ValueError(f"--kv-tiers disk: {model} has no files of weights to tell its KV by")
