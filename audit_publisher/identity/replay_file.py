"""Claims in a file that the processes of one host share: a table of fixed size, no server.

The file is a hash table of sets; a claim reads one set, and writes one entry of it, under a lock
on the set's bytes. It is not synced: what a host that loses power forgets is a few seconds of
claims, and what they guard against makes no second row anyway. A killed process's locks end with
it. Where a set is full of claims that still hold, which begins at some 300,000 of them, a request
that was answered makes room, the one that ends first; one that is being taken only if all are.

Locks belong to the process: a thread's own lock keeps threads apart, and nothing else may open
and close the file in this process, as that would end them.
"""

from __future__ import annotations

import fcntl
import os
import struct
import threading
import time
from pathlib import Path

from audit_logging.folders import make_private

from .. import metrics

_ENTRY = struct.Struct("<16sdQ")
_WAYS = 16
_SET_BYTES = _ENTRY.size * _WAYS
_SETS = 1 << 16
_WHOLE = struct.Struct("<" + "16sdQ" * _WAYS)

#: Seconds that another process may hold a set, which takes some microseconds; longer, and it is
#: stopped with the lock in its hands.
PATIENCE = 0.25
_NAP = 0.0002

#: The token of an entry whose request was taken.
_KEPT = 0


class FileClaims:
    """Claims in a file; safe for threads and processes, also for those that were forked.

    :param path: made on first use, for its owner alone; 32 MB when every set was used.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._pid = 0
        self._fd = -1
        #: One for each process: one that a fork copied may be locked for ever.
        self._locks: dict[int, threading.Lock] = {}

    def claim(self, key: bytes, token: int, now: float, until: float) -> str | None:
        """See :class:`~audit_publisher.identity.replay.Claims`.

        :raises OSError: the file cannot be used.
        """
        at = self._place(key)
        with _Locked(self, at) as fd:
            raw = os.pread(fd, _SET_BYTES, at)
            # Beyond the end of the file, which grows as sets are used.
            raw = raw.ljust(_SET_BYTES, b"\0")
            found = _find(raw, key)
            if found >= 0:
                _, end, holder = _ENTRY.unpack_from(raw, found)
                if end > now:
                    return "taken" if holder == _KEPT else "busy"
            else:
                found = _room(raw, now)
            os.pwrite(fd, _ENTRY.pack(key, until, token), at + found)
        return None

    def keep(self, key: bytes, token: int, now: float, until: float) -> None:
        """See :class:`~audit_publisher.identity.replay.Claims`."""
        at = self._place(key)
        with _Locked(self, at) as fd:
            raw = os.pread(fd, _SET_BYTES, at).ljust(_SET_BYTES, b"\0")
            found = _find(raw, key)
            if found < 0:
                # It had to make room meanwhile, and is the younger now.
                found = _room(raw, now)
            os.pwrite(fd, _ENTRY.pack(key, until, _KEPT), at + found)

    def release(self, key: bytes, token: int) -> None:
        """See :class:`~audit_publisher.identity.replay.Claims`."""
        at = self._place(key)
        with _Locked(self, at) as fd:
            raw = os.pread(fd, _SET_BYTES, at)
            found = _find(raw, key)
            if found >= 0 and _ENTRY.unpack_from(raw, found)[2] == token:
                os.pwrite(fd, _ENTRY.pack(key, 0.0, _KEPT), at + found)

    @staticmethod
    def _place(key: bytes) -> int:
        return (int.from_bytes(key[:4], "little") % _SETS) * _SET_BYTES

    def _open(self) -> int:
        """The descriptor of this process; a child's own, as it may outlive its parent's."""
        if self._pid != os.getpid():
            make_private(self.path.parent)
            self._fd = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            self._pid = os.getpid()
        return self._fd


class _Locked:
    """``with _Locked(claims, at) as fd: …``: the set at `at` is nobody else's."""

    __slots__ = ("_at", "_claims", "_lock")

    def __init__(self, claims: FileClaims, at: int) -> None:
        self._claims = claims
        self._at = at
        self._lock = claims._locks.setdefault(os.getpid(), threading.Lock())

    def __enter__(self) -> int:
        claims = self._claims
        self._lock.acquire()
        try:
            fd = claims._open()
            deadline = 0.0
            while True:
                try:
                    fcntl.lockf(fd, fcntl.LOCK_EX | fcntl.LOCK_NB, _SET_BYTES, self._at)
                except (BlockingIOError, PermissionError):
                    now = time.monotonic()
                    deadline = deadline or now + PATIENCE
                    if now > deadline:
                        raise TimeoutError(
                            f"{claims.path}: another process holds it for {PATIENCE:g} s"
                        ) from None
                    time.sleep(_NAP)
                else:
                    return fd
        except BaseException:
            self._lock.release()
            raise

    def __exit__(self, *exc: object) -> None:
        claims = self._claims
        try:
            fcntl.lockf(claims._fd, fcntl.LOCK_UN, _SET_BYTES, self._at)
        finally:
            self._lock.release()


def _room(raw: bytes, now: float) -> int:
    """Where in a whole set the entry begins that matters least."""
    entries = _WHOLE.unpack(raw)
    ends, tokens = entries[1::3], entries[2::3]
    held = [(end > now, token != _KEPT, end) for end, token in zip(ends, tokens, strict=True)]
    least = min(held)
    if least[0]:
        metrics.REPLAYS_UNSEEN.labels("full").inc()
    return held.index(least) * _ENTRY.size


def _find(raw: bytes, key: bytes) -> int:
    """Where in a set the entry of `key` begins; -1: it has none."""
    found = raw.find(key)
    # Bytes of two entries may look like a key.
    while found >= 0 and found % _ENTRY.size:
        found = raw.find(key, found + 1)
    return found
