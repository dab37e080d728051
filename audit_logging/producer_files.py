"""Tallies: what a process leaves behind when it is killed, so that its loss can be told.

A tally is a small file of one process: who it is, how many numbers it has given, what it dropped
on purpose. The process holds a lock on it, which the kernel lets go of when the process ends,
however that happens; a tally that nobody holds is an abandoned one. (Process ids would not do:
they are given anew, and two containers may share them.)

On a tmpfs the count is a page of memory that the request thread stores into: exact at any moment,
and never written to a disk. Elsewhere nothing is mapped, as a store into a page of a stalled or
failed disk can hold or kill the process: the background writes the count about once a second.
"""

from __future__ import annotations

import errno
import json
import mmap
import os
import socket
import stat
import struct
import time
import zlib
from collections.abc import Iterator
from contextlib import suppress
from hashlib import blake2b
from pathlib import Path
from typing import Any

from .chance import chance
from .folders import make_private

try:
    import fcntl
except ImportError:  # Windows: no tallies; heartbeats are sent all the same.
    fcntl = None  # type: ignore[assignment]

_MAGIC = b"audit-producer1\n"
_COUNT = 16
_IDENTITY = 64
#: Two places in turn: a process killed within one leaves the other whole.
_TOTALS = (4096, 6144)
_SLOT = 2048
SIZE = 8192

_SUFFIX = ".producer"
_UNFINISHED = ".new"
_SHARED_MEMORY = Path("/dev/shm")  # noqa: S108 - a private folder is made in it, and checked
#: A tally of another host's, on a shared disk whose locks may not reach us, is abandoned when it
#: was not touched for so many seconds.
_SILENT = 3600.0
#: Seconds after which a dead process of a service that is not here any more is forgotten.
_FORGOTTEN = 30 * 86_400.0
#: Files that are looked at in one go: of the group, and of others.
_MOST_OWN = 32
_MOST_OTHERS = 4
_HEAD = struct.Struct("<III")


def host_name() -> str:
    """The name of this host, as records have it."""
    return socket.gethostname()[:255]


def boot_id() -> str:
    """What tells this run of this kernel from others; "" where it cannot be known."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""


class Folder:
    """A private folder of tallies.

    :ivar mapped: it lies in memory, so that its files may be mapped.
    :raises OSError: it cannot be made, or somebody else could write to it.
    """

    def __init__(self, path: Path, *, mapped: bool) -> None:
        self.path = path
        self.mapped = mapped
        self.fd = -1
        with suppress(FileExistsError):
            path.mkdir(mode=0o700)
        flags = os.O_RDONLY | getattr(os, "O_DIRECTORY", 0) | getattr(os, "O_NOFOLLOW", 0)
        self.fd = os.open(path, flags)
        found = os.fstat(self.fd)
        if found.st_uid != os.geteuid() or found.st_mode & 0o077:
            self.close()
            raise PermissionError(f"{path} belongs to somebody else, or is open to others.")

    def close(self) -> None:
        """Let go of the folder."""
        fd, self.fd = self.fd, -1
        if fd >= 0:
            os.close(fd)

    __del__ = close


def in_memory() -> Folder | None:
    """The folder of this user's tallies that lies in memory; None where there is no such thing."""
    if fcntl is None or not _is_tmpfs(_SHARED_MEMORY):
        return None
    with suppress(OSError):
        return Folder(_SHARED_MEMORY / f"audit-logging-{os.geteuid()}", mapped=True)
    return None


def on_disk(data_dir: Path, *, make: bool) -> Folder | None:
    """The folder of tallies below DATA_DIR; None if it is not there and not to be made.

    :raises OSError: it cannot be made.
    """
    path = data_dir / "producers"
    if fcntl is None or not (make or path.exists()):
        return None
    make_private(data_dir)
    return Folder(path, mapped=False)


def group_of(data_dir: Path, service: str) -> str:
    """How the names of the tallies begin whose processes share a service and a DATA_DIR: any of
    them may speak for a dead one."""
    text = f"{data_dir.absolute()}\n{service}"
    return blake2b(text.encode(), digest_size=8).hexdigest()


def _is_tmpfs(path: Path) -> bool:
    if not hasattr(os, "posix_fallocate"):
        return False
    try:
        mounts = Path("/proc/self/mounts").read_text().splitlines()
    except OSError:
        return False
    found = [fields for line in mounts if (fields := line.split())[1:2] == [str(path)]]
    return bool(found) and found[-1][2] == "tmpfs"


class Tally:
    """The tally of this process, made and locked.

    :param folder: where.
    :param name: of the file: its group, and what tells it from others.
    :param identity: what :func:`read` shall give back; small.
    :raises OSError: no room, no locks, or the disk failed; nothing is left behind.
    """

    def __init__(self, folder: Folder, name: str, identity: dict[str, Any]) -> None:
        self._folder = folder
        self._name = name + _SUFFIX
        self._fd = -1
        self._map: mmap.mmap | None = None
        self._bytes: memoryview | None = None
        #: One number: the count, to be stored into; None where the file is not mapped.
        self.page: memoryview | None = None
        self._generation = 0
        unfinished = name + _UNFINISHED
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | getattr(os, "O_NOFOLLOW", 0)
        self._fd = os.open(unfinished, flags, 0o600, dir_fd=folder.fd)
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            text = json.dumps(identity).encode()
            if len(text) > _TOTALS[0] - _IDENTITY - 4:
                raise OSError(errno.ENAMETOOLONG, "the names of service and host are too long")
            content = bytearray(SIZE)
            content[: len(_MAGIC)] = _MAGIC
            content[_IDENTITY : _IDENTITY + 4 + len(text)] = struct.pack("<I", len(text)) + text
            if folder.mapped:
                # Without its memory set aside, a store into the page could kill the process.
                os.posix_fallocate(self._fd, 0, SIZE)
            os.pwrite(self._fd, content, 0)
            if folder.mapped:
                self._map = mmap.mmap(self._fd, SIZE)
                self._bytes = memoryview(self._map)[_COUNT : _COUNT + 8]
                self.page = self._bytes.cast("Q")
            # Nobody takes it for abandoned: it is locked since before it had this name.
            os.rename(unfinished, self._name, src_dir_fd=folder.fd, dst_dir_fd=folder.fd)
        except BaseException:
            self.let_go()
            with suppress(OSError):
                os.unlink(unfinished, dir_fd=folder.fd)
            raise

    def store(self, count: int) -> None:
        """Write the count, where the page does not have it already."""
        if self.page is None and self._fd >= 0:
            os.pwrite(self._fd, struct.pack("<Q", count), _COUNT)

    def store_totals(self, totals: dict[str, Any]) -> None:
        """Write what was dropped and left out; whole, or as it was before, at any moment."""
        if self._fd < 0:
            return
        text = json.dumps(totals, separators=(",", ":")).encode()
        if len(text) > _SLOT - _HEAD.size:
            return
        self._generation += 1
        head = _HEAD.pack(zlib.crc32(text), self._generation, len(text))
        os.pwrite(self._fd, head + text, _TOTALS[self._generation % 2])

    def touch(self) -> None:
        """Show a sign of life to hosts that our lock does not reach, and to who tidies up."""
        if self._fd >= 0:
            os.utime(self._fd)

    @property
    def gone(self) -> bool:
        """Whether somebody has removed the file: systemd does that in /dev/shm, when a user that
        is none of the system's logs out somewhere."""
        return self._fd >= 0 and os.fstat(self._fd).st_nlink == 0

    def remove(self) -> None:
        """Remove the file: there is nothing to be told any more. The page stays usable."""
        with suppress(FileNotFoundError):
            os.unlink(self._name, dir_fd=self._folder.fd)

    def let_go(self) -> None:
        """Close everything, and leave the file as it is.

        For a forked child, whose copies would keep the parent's lock held beyond its death; no
        other thread may be at the page.
        """
        for view in (self.page, self._bytes):
            if view is not None:
                view.release()
        self.page = self._bytes = None
        mapped, self._map = self._map, None
        if mapped is not None:
            mapped.close()
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)

    __del__ = let_go


class Abandoned:
    """A dead process's tally, which this process alone holds now.

    :ivar identity: as its owner gave it.
    :ivar count: how many numbers it had given.
    :ivar totals: what it had dropped and left out.
    """

    def __init__(
        self,
        folder: Folder,
        name: str,
        fd: int,
        identity: dict[str, Any],
        count: int,
        totals: dict[str, Any],
    ) -> None:
        self.identity = identity
        self.count = count
        self.totals = totals
        self._folder = folder
        self._name = name
        self._fd = fd

    def remove(self) -> None:
        """Remove the file: what it says is in a durable place."""
        with suppress(FileNotFoundError):
            os.unlink(self._name, dir_fd=self._folder.fd)
        self.let_go()

    def let_go(self) -> None:
        """Leave it to whoever looks next."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)

    __del__ = let_go


def abandoned(folder: Folder, group: str, limit: int) -> Iterator[Abandoned]:
    """Take over up to `limit` tallies of the group's processes that are dead.

    Where there are many, some of them, and others the next time: the sender waits for each look.
    """
    names = os.listdir(folder.fd)  # noqa: PTH208 - by descriptor
    names = [name for name in names if name.endswith((_SUFFIX, _UNFINISHED))]
    own = [name for name in names if name.startswith(group)]
    others = [name for name in names if not name.startswith(group)]
    for name in chance.sample(others, min(len(others), _MOST_OTHERS)):
        _clear(folder, name)
    for name in chance.sample(own, min(len(own), _MOST_OWN)):
        if limit <= 0:
            return
        found = _take_over(folder, name)
        if found is not None:
            limit -= 1
            yield found


def _clear(folder: Folder, name: str) -> None:
    """Remove a tally that nobody has spoken for in a long time: its service is here no more."""
    try:
        if time.time() - os.stat(name, dir_fd=folder.fd).st_mtime < _FORGOTTEN:
            return
    except FileNotFoundError:
        return
    found = _take_over(folder, name)
    if found is not None:
        found.remove()


def _take_over(folder: Folder, name: str) -> Abandoned | None:
    flags = os.O_RDWR | os.O_NONBLOCK | getattr(os, "O_NOFOLLOW", 0)
    try:
        fd = os.open(name, flags, dir_fd=folder.fd)
    except FileNotFoundError:
        return None
    kept = False
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return None
        there = os.fstat(fd)
        try:
            # Whoever held it a moment ago may have settled and removed it.
            if os.stat(name, dir_fd=folder.fd).st_ino != there.st_ino:
                return None
        except FileNotFoundError:
            return None
        if not stat.S_ISREG(there.st_mode):
            return None
        silent = time.time() - there.st_mtime
        content = _read(os.pread(fd, SIZE, 0)) if name.endswith(_SUFFIX) else None
        if content is None:
            # Begun and never finished, or damaged: it says nothing.
            if silent > _SILENT:
                os.unlink(name, dir_fd=folder.fd)
            return None
        identity, count, totals = content
        if not folder.mapped and silent < _SILENT and not _ours(identity):
            return None
        kept = True
        return Abandoned(folder, name, fd, identity, count, totals)
    finally:
        if not kept:
            os.close(fd)


def _ours(identity: dict[str, Any]) -> bool:
    """Whether locks of whoever made it are seen here, or it cannot be alive."""
    boot = boot_id()
    return (bool(boot) and identity.get("boot") == boot) or identity.get("host") == host_name()


def _read(content: bytes) -> tuple[dict[str, Any], int, dict[str, Any]] | None:
    if len(content) != SIZE or not content.startswith(_MAGIC):
        return None
    (count,) = struct.unpack_from("<Q", content, _COUNT)
    (length,) = struct.unpack_from("<I", content, _IDENTITY)
    identity = _object(content[_IDENTITY + 4 : _IDENTITY + 4 + length])
    if identity is None:
        return None
    best: tuple[int, dict[str, Any]] = (0, {})
    for start in _TOTALS:
        crc, generation, length = _HEAD.unpack_from(content, start)
        text = content[start + _HEAD.size : start + _HEAD.size + min(length, _SLOT)]
        if generation > best[0] and zlib.crc32(text) == crc:
            best = (generation, _object(text) or {})
    return identity, count, best[1]


def _object(text: bytes) -> dict[str, Any] | None:
    try:
        found = json.loads(text)
    except ValueError:
        return None
    return found if isinstance(found, dict) else None
