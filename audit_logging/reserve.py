"""Room kept for a full disk: a file beside a queue, given up so that the queue can be emptied.

To hand out or to remove a record takes room, too: SQLite writes it into the write-ahead log before
the file itself. Without a reserve, a queue that filled its disk, or whose disk others filled, could
never be emptied again.
"""

from __future__ import annotations

import errno
import os
import sqlite3
from pathlib import Path

#: What is wanted beside the write-ahead log's own size: for the leases and removals of a few
#: records, and the shared memory file.
SLACK = 256 * 1024

_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
#: EDQUOT and a shared memory file that cannot be made are no SQLITE_FULL.
_CODES = frozenset({sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR, sqlite3.SQLITE_CANTOPEN})


def may_be_full(error: BaseException | None) -> bool:
    """Whether an error of SQLite's may be that of a full disk."""
    return getattr(error, "sqlite_errorcode", 0) & 0xFF in _CODES


class Reserve:
    """The file of one queue; its owner's alone, as the queue is.

    :param path: the queue's file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path.with_name(f"{path.name}-reserve")
        self._log = path.with_name(f"{path.name}-wal")

    def ensure(self, size: int = 0) -> None:
        """Keep enough that the queue's file can take over the whole write-ahead log.

        Under the queue's write lock.

        :param size: bytes about to be written into that log.
        :raises OSError: the disk has no room for it; errno is ENOSPC or one like it.
        """
        wanted = _size(self._log) + size + size // 4 + SLACK
        there = _size(self.path)
        if there >= wanted:
            return
        wanted = -(-wanted // SLACK) * SLACK
        try:
            flags = os.O_CREAT | os.O_WRONLY | os.O_CLOEXEC | os.O_NOFOLLOW
            descriptor = os.open(self.path, flags, 0o600)
            try:
                _allocate(descriptor, there, wanted)
            finally:
                os.close(descriptor)
        except OSError as error:
            if error.errno in _FULL:
                raise
            # A file system that cannot, or a folder that another user made: the queue works.

    def give_up(self) -> bool:
        """Free the room; return whether there was any."""
        try:
            self.path.unlink()
        except OSError:
            return False
        return True


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0


def _allocate(descriptor: int, there: int, wanted: int) -> None:
    try:
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(descriptor, there, wanted - there)
        else:
            os.lseek(descriptor, there, os.SEEK_SET)
            for _ in range((wanted - there) // 4096 + 1):
                os.write(descriptor, bytes(4096))
    except OSError:
        # A part of it would look like the whole to the next.
        os.ftruncate(descriptor, there)
        raise
