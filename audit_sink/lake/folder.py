"""A folder as a bucket: `file:///path`."""

from __future__ import annotations

import errno
import os
import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO
from urllib.parse import unquote, urlsplit

from ..exceptions import (
    BucketError,
    BucketMissing,
    BucketRefused,
    BucketUnavailable,
    ConflictError,
)
from .storage import Bucket

if TYPE_CHECKING:
    from pyarrow.fs import FileSystem

    from .storage import Data

#: Beside the events, never among them: readers of the lake must not meet a half-written file.
TEMPORARY = "_temporary"

#: Seconds after which a file in TEMPORARY is what a killed writer left; none writes for so long.
_LEFT_BEHIND = 86_400.0
#: Folders remembered as durable; beyond that all are forgotten, which costs a few syncs.
_MAX_KNOWN = 20_000

#: What the system says when an operator must give rights, and what he or she does about it.
_REFUSALS = {
    errno.EACCES: "Give this service's user the right to write there.",
    errno.EPERM: "Give this service's user the right to write there; the disk needs hard links.",
    errno.EROFS: "Mount it so that it can be written.",
}
_CURES = {
    errno.ENOSPC: "Make room on the disk.",
    errno.EDQUOT: "Raise the quota, or make room.",
}


class FolderBucket(Bucket):
    """Objects are files; a name appears at once and complete, through a hard link.

    The folder itself is made on first use, but its parent must exist: a mount that is missing
    must not become an empty folder on the wrong disk. The default bucket's parents are ours and
    are made too.
    """

    def __init__(self, url: str, path: str = "") -> None:
        """`path` is the folder where `url` does not say it."""
        super().__init__(url)
        self.root = Path(path or unquote(urlsplit(url).path))
        self._root = str(self.root)
        self._temporary = f"{self._root}/{TEMPORARY}"
        # Folder -> inode, of those whose name is durable, up to the root: only their own content
        # needs a sync then. One that was removed and made anew has another inode.
        self._known: dict[str, int] = {}
        self._lock = threading.Lock()
        self._swept = False

    def create(self, name: str, data: Data) -> bool:
        # Arrow's buffers hold signed bytes, which are not equal to the others.
        view = memoryview(data).cast("B")
        target = str(self._path(name))
        folder = target.rpartition("/")[0]
        try:
            temporary = self._write(view)
            try:
                # Create-only and atomic: of two writers one wins, and no reader sees a part.
                self._link(temporary, target, folder)
            finally:
                Path(temporary).unlink(missing_ok=True)
            self._make_durable(folder)
        except FileExistsError:
            if self.read(name) == view:
                # The writer before us may have died between its link and its sync.
                self._make_durable(folder)
                return False
            raise ConflictError(
                f"{target} exists and holds other bytes. If no row of the ledger names it, move "
                f"it away; the range is then written again."
            ) from None
        except OSError as error:
            raise self._map(error) from error
        return True

    def _write(self, rest: memoryview) -> str:
        """Put `rest` into a new file among the temporary ones, durably; return its path."""
        if not self._swept:
            self._sweep()
        path = f"{self._temporary}/{uuid.uuid4().hex}"
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL
        try:
            descriptor = os.open(path, flags, 0o666)
        except FileNotFoundError:
            # Asked only now: it is there but for the first time.
            self._make_root()
            Path(self._temporary).mkdir(exist_ok=True)
            descriptor = os.open(path, flags, 0o666)
        try:
            try:
                while rest:
                    rest = rest[os.write(descriptor, rest) :]
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
        except BaseException:
            Path(path).unlink(missing_ok=True)
            raise
        return path

    def _link(self, temporary: str, target: str, folder: str) -> None:
        try:
            os.link(temporary, target)
        except FileNotFoundError:
            # A disk may give a folder that is made anew the inode of the one before.
            self._known.pop(folder, None)
            os.makedirs(folder, exist_ok=True)  # noqa: PTH103
            os.link(temporary, target)

    def _make_durable(self, folder: str) -> None:
        """Sync a new name in `folder`, and the folders above as far as they may be new."""
        inode = _sync(folder)
        if self._known.get(folder) == inode:
            return
        found = {folder: inode}
        while folder != self._root:
            folder = folder.rpartition("/")[0]
            # Always up to the root: who made the middle one may have died before its sync.
            found[folder] = _sync(folder)
        with self._lock:
            if len(self._known) + len(found) > _MAX_KNOWN:
                self._known.clear()
            self._known.update(found)

    def _sweep(self) -> None:
        """Remove what writers that were killed left behind; once in a bucket's life."""
        self._swept = True
        before = time.time() - _LEFT_BEHIND
        try:
            with os.scandir(self._temporary) as entries:
                for entry in entries:
                    if entry.stat().st_mtime < before:
                        Path(entry.path).unlink(missing_ok=True)
        except OSError:
            # Not there yet, or not ours to clean.
            pass

    def read(self, name: str) -> bytes:
        try:
            return self._path(name).read_bytes()
        except FileNotFoundError:
            raise
        except OSError as error:
            raise self._map(error) from error

    def open(self, name: str) -> BinaryIO:
        try:
            return self._path(name).open("rb")
        except FileNotFoundError:
            raise
        except OSError as error:
            raise self._map(error) from error

    def size(self, name: str) -> int | None:
        try:
            return self._path(name).stat().st_size
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            raise self._map(error) from error

    def list(self, prefix: str = "") -> Iterator[str]:
        # Walk only the deepest folder that the prefix names.
        folder = self._path(prefix.rpartition("/")[0]) if "/" in prefix else self.root
        names = (
            path.relative_to(self.root).as_posix()
            for path in folder.rglob("*")
            if path.is_file() and self.root / TEMPORARY not in path.parents
        )
        yield from sorted(name for name in names if name.startswith(prefix))

    def delete(self, name: str) -> None:
        try:
            self._path(name).unlink(missing_ok=True)
        except OSError as error:
            raise self._map(error) from error

    def probe(self) -> None:
        temporary = self.root / TEMPORARY / uuid.uuid4().hex
        try:
            self._make_root()
            temporary.parent.mkdir(exist_ok=True)
            temporary.touch()
            temporary.unlink()
        except OSError as error:
            raise self._map(error) from error

    def arrow(self) -> tuple[FileSystem, str]:
        from pyarrow.fs import LocalFileSystem

        return LocalFileSystem(), f"{self.root}/"

    def _path(self, name: str) -> Path:
        if name.startswith("/") or ".." in name.split("/"):
            raise ValueError(f"{name!r} would leave the bucket.")
        return self.root / name

    def _make_root(self) -> None:
        if self.root.is_dir():
            return
        from ..conf import conf

        ours = self.root.is_relative_to(conf.DATA_DIR.absolute())
        try:
            # It will hold what callers sent. A folder made beforehand keeps its own mode.
            self.root.mkdir(mode=0o700, parents=ours, exist_ok=True)
        except FileNotFoundError:
            raise BucketMissing(
                f"{self.root.parent} does not exist, so the bucket {self.url} cannot be made. "
                f"Make the folder, or correct the site's bucket URL."
            ) from None

    def _map(self, error: OSError) -> BucketError:
        line = f"{self.url}: {error.strerror or error} ({error.filename or self.root})."
        code = error.errno or 0
        if cure := _REFUSALS.get(code):
            return BucketRefused(f"{line} {cure}")
        return BucketUnavailable(f"{line} {_CURES.get(code, '')}".rstrip())


def _sync(folder: str) -> int:
    """Make the names in `folder` durable; return its inode."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
        return os.fstat(descriptor).st_ino
    finally:
        os.close(descriptor)
