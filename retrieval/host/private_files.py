"""Files with prompts, answers or weights: for this user alone, whatever the umask."""

from __future__ import annotations

import errno
import fcntl
import glob
import os
import secrets
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from reprise.retrieval.host.owner_lock import is_at

PRIVATE = 0o600
PRIVATE_FOLDER = 0o700
PART = ".part"
"""The ending of a file that is being written."""
_LOCKABLE = os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_OTHERS = 0o077
_OTHERS_WRITE = 0o022


def claim_file(path: Path) -> None:
    """Create an empty file for this user alone, or take away what others may do with it.

    An existing file is not opened: that would cost SQLite the locks that it holds.

    Raises:
        OSError: It cannot be created, or is not this user's own.
    """
    check_ours(path)
    if path.is_symlink():
        path = path.resolve()
        check_ours(path)
    try:
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, PRIVATE))
    except FileExistsError:
        info = path.stat()
        if info.st_uid == os.geteuid() and info.st_mode & _OTHERS:
            path.chmod(info.st_mode & ~_OTHERS)


def check_ours(path: Path) -> None:
    """Refuse a file that somebody else may have put where others may write; absent is fine.

    Raises:
        PermissionError: It is a link or another user's, in a folder that others may write to.
    """
    if not path.parent.stat().st_mode & _OTHERS_WRITE:
        return
    try:
        info = path.lstat()
    except FileNotFoundError:
        return
    if stat.S_ISLNK(info.st_mode) or info.st_uid != os.geteuid():
        kind = "a link" if stat.S_ISLNK(info.st_mode) else "another user's file"
        raise PermissionError(
            errno.EACCES, f"is {kind} in a folder that others may write to", str(path)
        )


def unwritable(path: Path) -> Path | None:
    """Return what of a file and its folder this user cannot write to: the folder, or the file;
    None: both can be written to, and the file may be absent. Of a link, what it leads to."""
    path = path.resolve()
    if not os.access(path.parent, os.W_OK | os.X_OK):
        return path.parent
    return path if path.exists() and not os.access(path, os.W_OK) else None


def open_new(path: Path) -> BinaryIO:
    """Open a new file for writing, in place of one of that name.

    Raises:
        OSError: It cannot be written.
    """
    path.unlink(missing_ok=True)
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
    return os.fdopen(os.open(path, flags, PRIVATE), "wb")


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """Write a file that takes the place of `path` at the end: who reads sees the old one or the new
    one, whole. Processes may do so at once, in any container; what is not finished is removed.

    Raises:
        OSError: It cannot be written.
    """
    part, file = _open_part(path)
    try:
        with file:
            yield file
            file.flush()
            # It is locked until then: nobody takes it for a stale one.
            os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def remove_stale_parts(path: Path) -> None:
    """Remove what processes that are gone had half written of `path`: what nobody has locked."""
    for part in path.parent.glob(f"{glob.escape(path.name)}.*{PART}"):
        with suppress(OSError), os.fdopen(os.open(part, _LOCKABLE), "r+b", buffering=0) as file:
            # Refused while it is being written; also where nothing can be locked.
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if is_at(file.fileno(), part):
                part.unlink()


def _open_part(path: Path) -> tuple[Path, BinaryIO]:
    """Open a file for writing, of a name that no other process has, and lock it."""
    while True:
        part = path.with_name(f"{path.name}.{secrets.token_hex(8)}{PART}")
        file = open_new(part)
        try:
            with suppress(OSError):  # where nothing can be locked
                fcntl.flock(file, fcntl.LOCK_EX)
            if is_at(file.fileno(), part):
                return part, file
        except BaseException:
            file.close()
            raise
        file.close()  # taken for a stale one before it was locked


def open_private(path: Path) -> BinaryIO:
    """Open a file for writing from its beginning; a device or pipe as it is.

    Raises:
        OSError: It cannot be written, or is not this user's own.
    """
    check_ours(path)
    file = os.fdopen(
        os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, PRIVATE), "wb"
    )
    info = os.fstat(file.fileno())
    if stat.S_ISREG(info.st_mode) and info.st_uid == os.geteuid():
        os.fchmod(file.fileno(), PRIVATE)
    return file


@contextmanager
def replacing_file(path: Path) -> Iterator[BinaryIO]:
    """Write a file as `replacing` does, where a link leads to; a device or pipe as it is.

    Raises:
        OSError: It cannot be written, or is not this user's own.
    """
    check_ours(path)
    is_special = path.exists() and not path.is_file()
    with open_private(path) if is_special else replacing(path.resolve()) as file:
        yield file


def claim_folder(path: Path) -> None:
    """Create a folder for this user alone, or see that it is.

    Raises:
        OSError: It cannot be created, or is not this user's own.
    """
    try:
        path.mkdir(mode=PRIVATE_FOLDER)
    except FileExistsError:
        info = path.lstat()
        if not stat.S_ISDIR(info.st_mode) or info.st_uid != os.geteuid():
            raise PermissionError(
                errno.EACCES, "is not this user's own folder", str(path)
            ) from None
        if info.st_mode & _OTHERS:
            path.chmod(PRIVATE_FOLDER)
