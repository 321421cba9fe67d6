# mypy: allow-untyped-calls
"""The learned weights on disk: those shipped to start from, and what was learned since.

Weights that are hashed by token are found with a salt of their namespace (`salt_of`), which takes a
secret: where no tenant knows it, none can aim at another's weights. So the secret is kept with what
was learned under it.
"""

import glob
import hashlib
import os
import secrets
import time
from contextlib import AbstractContextManager, suppress
from pathlib import Path
from typing import Any

import numpy as np

from reprise.spec.predictor.features import Weights, prior_weights

FORMAT = 3
START_WEIGHTS = Path(__file__).with_name("start_weights.npz")
SECRET_BYTES = 16
_PROCESS_SECRET = os.urandom(SECRET_BYTES)  # where none was saved


class LearnedWeights:
    """The weights that one engine worker learns, and the secret under which it does."""

    def __init__(self) -> None:
        self.tables = start_weights()
        self.secret = _PROCESS_SECRET

    def save(self, path: str | Path, *, lock: AbstractContextManager[Any]) -> None:
        """Write all as it is at one moment; learning, which holds `lock`, does not wait for it.

        Raises:
            OSError: the file cannot be written.
        """
        copies = Weights(*(table.copy() for table in self.tables))
        with lock:  # again, into memory that is there
            for table, copied in zip(self.tables, copies, strict=True):
                copied[:] = table
            secret = self.secret
        save_weights(copies, path, secret=secret)

    def load(self, path: str | Path) -> None:
        """Go on from what `save` wrote.

        Raises:
            ValueError: the file does not hold weights of this version.
            OSError: the file cannot be read.
        """
        self.secret = load_weights(self.tables, path) or self.secret


def salt_of(namespace: str, secret: bytes) -> int:
    """32 bits for the hashes of a namespace's tokens; 0 for the one without a name."""
    if not namespace:
        return 0
    name = namespace.encode(errors="surrogatepass")
    return int.from_bytes(hashlib.blake2b(name, key=secret, digest_size=4).digest(), "little")


def start_weights() -> Weights:
    """The shipped start values: eval/train_drafts.py says what they were learned from."""
    weights = prior_weights()
    load_weights(weights, START_WEIGHTS)
    return weights


def save_weights(weights: Weights, path: str | Path, *, secret: bytes = b"") -> None:
    """Write the weights to `path` (numpy's .npz, whatever the name ends in), for this user only;
    whoever reads it sees the old file or the new one, whole.

    Raises:
        OSError: the file cannot be written.
    """
    path = Path(path)
    _remove_unfinished(path)
    # Process ids are none: of two containers that share a folder, both have a process 1.
    part = path.with_name(f"{path.name}.{secrets.token_hex(8)}.part")
    members = {**weights._asdict(), "secret": np.frombuffer(secret, np.uint8)}
    try:
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        with os.fdopen(os.open(part, flags, 0o600), "w+b") as file:
            np.savez_compressed(file, format=np.int64(FORMAT), **members)
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def _remove_unfinished(path: Path) -> None:
    """Remove what processes that ended while they wrote have left; writing takes no hour."""
    oldest_s = time.time() - 3600.0
    for part in path.parent.glob(f"{glob.escape(path.name)}.*.part"):
        with suppress(OSError):
            if part.lstat().st_mtime < oldest_s:
                part.unlink()


def load_weights(weights: Weights, path: str | Path) -> bytes:
    """Read into `weights` what `save_weights` wrote; the secret that was kept with it, if any.

    Raises:
        ValueError: if the file is damaged, of another format, or was written for other tables;
            `weights` are as they were.
        OSError: the file cannot be read.
    """
    try:
        with Path(path).open("rb") as file, np.load(file, allow_pickle=False) as archive:
            stored = dict(archive)
    except OSError:
        raise
    except Exception as error:  # zipfile's, zlib's and numpy's, of many kinds
        # Not their words: of any bytes numpy says that they could be loaded unsafely.
        raise ValueError(f"{path}: expected a file of weights, came other bytes") from error
    found = int(stored["format"]) if "format" in stored else None
    if found != FORMAT:
        raise ValueError(f"{path}: expected weights of format {FORMAT}, came {found}")
    for name, table in weights._asdict().items():
        if name not in stored or stored[name].shape != table.shape:
            came = stored[name].shape if name in stored else "none"
            raise ValueError(f"{path}: {name}: expected shape {table.shape}, came {came}")
        if not np.isfinite(stored[name]).all():
            raise ValueError(f"{path}: {name}: expected finite numbers")
    secret = stored["secret"].tobytes() if "secret" in stored else b""
    if len(secret) not in (0, SECRET_BYTES):
        raise ValueError(f"{path}: secret: expected {SECRET_BYTES} bytes, came {len(secret)}")
    for name, table in weights._asdict().items():
        table[:] = stored[name]
    return secret
