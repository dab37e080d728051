"""A folder as a bucket: `file:///path`."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO
from urllib.parse import unquote, urlsplit

from ..exceptions import BucketMissing, BucketUnavailable, ConflictError
from .storage import Bucket

if TYPE_CHECKING:
    from pyarrow.fs import FileSystem

#: Beside the events, never among them: readers of the lake must not meet a half-written file.
TEMPORARY = "_temporary"


class FolderBucket(Bucket):
    """Objects are files; a name appears at once and complete, through a hard link.

    The folder itself is made on first use, but its parent must exist: a mount that is missing
    must not become an empty folder on the wrong disk. The default bucket's parents are ours and
    are made too.
    """

    def __init__(self, url: str) -> None:
        super().__init__(url)
        self.root = Path(unquote(urlsplit(url).path))

    def create(self, name: str, data: bytes) -> bool:
        target = self._path(name)
        temporary = self.root / TEMPORARY / uuid.uuid4().hex
        try:
            self._make_root()
            temporary.parent.mkdir(exist_ok=True)
            target.parent.mkdir(parents=True, exist_ok=True)
            try:
                with temporary.open("xb") as file:
                    file.write(data)
                    file.flush()
                    os.fsync(file.fileno())
                # Create-only and atomic: of two writers one wins, and no reader sees a part.
                target.hardlink_to(temporary)
            finally:
                temporary.unlink(missing_ok=True)
            self._sync_folders(target.parent)
        except FileExistsError:
            if self.read(name) == data:
                # The writer before us may have died between its link and its sync.
                self._sync_folders(target.parent)
                return False
            raise ConflictError(
                f"{target} exists and holds other bytes. If no row of the ledger names it, move "
                f"it away; the range is then written again."
            ) from None
        except OSError as error:
            raise self._unavailable(error) from error
        return True

    def read(self, name: str) -> bytes:
        try:
            return self._path(name).read_bytes()
        except FileNotFoundError:
            raise
        except OSError as error:
            raise self._unavailable(error) from error

    def open(self, name: str) -> BinaryIO:
        try:
            return self._path(name).open("rb")
        except FileNotFoundError:
            raise
        except OSError as error:
            raise self._unavailable(error) from error

    def size(self, name: str) -> int | None:
        try:
            return self._path(name).stat().st_size
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            raise self._unavailable(error) from error

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
            raise self._unavailable(error) from error

    def probe(self) -> None:
        temporary = self.root / TEMPORARY / uuid.uuid4().hex
        try:
            self._make_root()
            temporary.parent.mkdir(exist_ok=True)
            temporary.touch()
            temporary.unlink()
        except OSError as error:
            raise self._unavailable(error) from error

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

    def _sync_folders(self, folder: Path) -> None:
        # A new name is durable when its folder is; each new folder in turn needs its parent.
        while folder.is_relative_to(self.root):
            descriptor = os.open(folder, os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
            folder = folder.parent

    def _unavailable(self, error: OSError) -> BucketUnavailable:
        return BucketUnavailable(f"{self.url}: {error.strerror or error} ({error.filename})")
