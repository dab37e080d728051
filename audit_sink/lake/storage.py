"""The bucket's contract: named objects, created once and never changed.

::

    <bucket>/
        events/service=…/date=…/endpoint=…/*.parquet   finished files, nothing else
        _temporary/                                    objects on their way (folders only)

`file://` (a folder) is the embedded backend, `gs://` the production one; both pass the suite in
``tests/contracts/bucket.py`` unchanged. `storages://` names one of them by an entry of Django's
STORAGES. :func:`get_bucket` opens one by its address.
"""

from __future__ import annotations

import os
import threading
from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import TYPE_CHECKING, BinaryIO, TypeAlias
from urllib.parse import urlsplit

from ..exceptions import BucketMissing

if TYPE_CHECKING:
    from pyarrow import Buffer
    from pyarrow.fs import FileSystem

    #: Bytes that need not be copied to be stored.
    Data: TypeAlias = bytes | bytearray | memoryview | Buffer


class Bucket(ABC):
    """One bucket. Thread-safe; made per process, never shared across a fork.

    Names are relative, with ``/`` between their parts. Every method may raise
    :class:`~audit_sink.exceptions.BucketMissing`, :class:`~audit_sink.exceptions.BucketRefused` or
    :class:`~audit_sink.exceptions.BucketUnavailable`, within BUCKET_TIMEOUT_SECONDS where a network
    lies between. After any of them it is open whether `create` has stored its object: doing it
    again with the same bytes is always right.
    """

    def __init__(self, url: str) -> None:
        self.url = url

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.url!r})"

    @abstractmethod
    def create(self, name: str, data: Data) -> bool:
        """Store `data` as `name`, durably, unless there is such an object.

        :returns: True if it was created; False if an object with the same bytes was there, as
            after a retry whose first answer was lost.
        :raises ConflictError: an object of that name holds other bytes; it is left alone.
        """

    @abstractmethod
    def read(self, name: str) -> bytes:
        """Return the bytes of `name`.

        :raises FileNotFoundError: there is no such object.
        """

    @abstractmethod
    def open(self, name: str) -> BinaryIO:
        """Open `name` for reading, seekable, without fetching all of it first.

        :raises FileNotFoundError: there is no such object.
        """

    @abstractmethod
    def size(self, name: str) -> int | None:
        """Return the size of `name` in bytes, or None when there is no such object."""

    def exists(self, name: str) -> bool:
        """Whether there is an object `name`."""
        return self.size(name) is not None

    @abstractmethod
    def list(self, prefix: str = "") -> Iterator[str]:
        """Yield the names of all objects that start with `prefix`, in order."""

    @abstractmethod
    def delete(self, name: str) -> None:
        """Remove `name`; nothing happens when there is no such object."""

    @abstractmethod
    def probe(self) -> None:
        """Find out whether the bucket is there and can be written, without leaving anything."""

    @abstractmethod
    def arrow(self) -> tuple[FileSystem, str]:
        """Return (file system, prefix) through which PyArrow reads this bucket's objects."""


_buckets: dict[tuple[int, str], Bucket] = {}
_lock = threading.Lock()


def open_bucket(url: str) -> Bucket:
    """Return a new bucket for `url`.

    :raises BucketMissing: `url` names no kind of bucket.
    """
    scheme = urlsplit(url).scheme
    if scheme == "storages":
        from .django_storages import open_entry

        return open_entry(url)
    if scheme == "file":
        from .folder import FolderBucket

        return FolderBucket(url)
    if scheme == "gs":
        try:
            from .gcs import GcsBucket
        except ImportError as error:
            raise BucketMissing(
                f"{url} needs {error.name}. Run `pip install 'django-api-audit[gcs]'`."
            ) from error
        return GcsBucket(url)
    raise BucketMissing(
        f"{url!r} is no bucket's address. Use file:///folder or gs://bucket, or storages://name "
        f"for an entry of STORAGES."
    )


def get_bucket(url: str) -> Bucket:
    """Return this process's bucket for `url`, opened on first use and kept."""
    # The pid makes a forked child open its own.
    key = (os.getpid(), url)
    bucket = _buckets.get(key)
    if bucket is None:
        with _lock:
            bucket = _buckets.get(key)
            if bucket is None:
                bucket = _buckets[key] = open_bucket(url)
    return bucket


os.register_at_fork(after_in_child=_buckets.clear)
