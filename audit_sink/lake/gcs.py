"""Google Cloud Storage as a bucket: `gs://bucket` or `gs://bucket/prefix`.

Credentials are the environment's own (Application Default Credentials). With the usual variable
``STORAGE_EMULATOR_HOST`` set, an emulator is used, without credentials.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from datetime import timedelta
from typing import TYPE_CHECKING, Any, BinaryIO, cast
from urllib.parse import urlsplit

import google_crc32c
from google.api_core import exceptions as google_errors
from google.api_core.retry import Retry as GoogleRetry
from google.auth import exceptions as auth_errors
from google.auth.credentials import AnonymousCredentials
from google.cloud import storage
from google.cloud.storage.retry import DEFAULT_RETRY
from requests import exceptions as request_errors

from ..conf import conf
from ..exceptions import BucketError, BucketMissing, BucketUnavailable, ConflictError
from .storage import Bucket

if TYPE_CHECKING:
    from pyarrow.fs import FileSystem

EMULATOR = "STORAGE_EMULATOR_HOST"

_FAILURES = (
    google_errors.GoogleAPIError,
    auth_errors.GoogleAuthError,
    request_errors.RequestException,
    OSError,
)


def _emulator() -> str:
    address = os.environ.get(EMULATOR, "")
    return address if not address or "://" in address else f"http://{address}"


class GcsBucket(Bucket):
    """Objects are created under the precondition that none of their name exists."""

    def __init__(self, url: str) -> None:
        super().__init__(url)
        parts = urlsplit(url)
        self.bucket_name = parts.netloc
        self.prefix = f"{parts.path.strip('/')}/" if parts.path.strip("/") else ""
        self._timeout = conf.BUCKET_TIMEOUT_SECONDS
        self._retry: GoogleRetry = DEFAULT_RETRY.with_timeout(self._timeout)
        try:
            self._client = self._connect()
        except _FAILURES as error:
            raise self._map(error) from error
        self._bucket = self._client.bucket(self.bucket_name)

    @staticmethod
    def _connect() -> storage.Client:
        emulator = _emulator()
        if emulator:
            return storage.Client(
                project="emulator",
                credentials=AnonymousCredentials(),
                client_options={"api_endpoint": emulator},
            )
        return storage.Client()

    def create(self, name: str, data: bytes) -> bool:
        blob = self._bucket.blob(self.prefix + name)
        try:
            blob.upload_from_string(
                data,
                content_type="application/vnd.apache.parquet",
                if_generation_match=0,
                checksum="crc32c",
                **self._limits(),
            )
        except google_errors.PreconditionFailed:
            self._compare(name, data)
            return False
        except _FAILURES as error:
            raise self._map(error) from error
        return True

    def _compare(self, name: str, data: bytes) -> None:
        # A retried create is refused although its first try landed: equal bytes are success.
        try:
            there = self._bucket.get_blob(self.prefix + name, **self._limits())
        except _FAILURES as error:
            raise self._map(error) from error
        checksum = google_crc32c.value(data)
        if there is None or there.size != len(data) or _crc32c(there) != checksum:
            raise ConflictError(
                f"{self.url}/{name} exists and holds other bytes. If no row of the ledger names "
                f"it, move it away; the range is then written again."
            )

    def read(self, name: str) -> bytes:
        try:
            return self._bucket.blob(self.prefix + name).download_as_bytes(**self._limits())
        except google_errors.NotFound as error:
            raise self._missing_object(name, error) from error
        except _FAILURES as error:
            raise self._map(error) from error

    def open(self, name: str) -> BinaryIO:
        if self.size(name) is None:
            raise FileNotFoundError(f"{self.url}/{name}")
        blob = self._bucket.blob(self.prefix + name)
        return cast("BinaryIO", blob.open("rb", **self._limits()))

    def size(self, name: str) -> int | None:
        try:
            blob = self._bucket.get_blob(self.prefix + name, **self._limits())
        except _FAILURES as error:
            raise self._map(error) from error
        return None if blob is None else blob.size

    def list(self, prefix: str = "") -> Iterator[str]:
        try:
            for blob in self._client.list_blobs(
                self.bucket_name, prefix=self.prefix + prefix, **self._limits()
            ):
                yield blob.name.removeprefix(self.prefix)
        except _FAILURES as error:
            raise self._map(error) from error

    def delete(self, name: str) -> None:
        try:
            self._bucket.blob(self.prefix + name).delete(**self._limits())
        except google_errors.NotFound:
            pass
        except _FAILURES as error:
            raise self._map(error) from error

    def probe(self) -> None:
        # Writing and deleting an object would cost two operations, and a locked bucket could not
        # delete it: listing tells a missing bucket and missing rights to read apart from success.
        try:
            next(
                iter(self._client.list_blobs(self.bucket_name, max_results=1, **self._limits())),
                None,
            )
        except _FAILURES as error:
            raise self._map(error) from error

    def arrow(self) -> tuple[FileSystem, str]:
        from pyarrow.fs import GcsFileSystem

        options: dict[str, Any] = {"retry_time_limit": timedelta(seconds=self._timeout)}
        emulator = urlsplit(_emulator())
        if emulator.netloc:
            options |= {
                "anonymous": True,
                "endpoint_override": emulator.netloc,
                "scheme": emulator.scheme,
            }
        return GcsFileSystem(**options), f"{self.bucket_name}/{self.prefix}"

    def _limits(self) -> dict[str, Any]:
        return {"timeout": self._timeout, "retry": self._retry}

    def _missing_object(self, name: str, error: Exception) -> Exception:
        # The same status says "no object" and "no bucket".
        if "bucket" in str(error).lower() and "object" not in str(error).lower():
            return self._map(error)
        return FileNotFoundError(f"{self.url}/{name}")

    def _map(self, error: BaseException) -> BucketError:
        if isinstance(error, google_errors.NotFound):
            return BucketMissing(
                f"There is no bucket {self.bucket_name!r}. Make it, or correct the site's "
                f"bucket URL ({self.url})."
            )
        if isinstance(error, (google_errors.Forbidden, google_errors.Unauthorized)):
            return BucketUnavailable(
                f"{self.url} refuses us ({error.code}). Give this service's account the role "
                f"Storage Object User on the bucket."
            )
        if isinstance(error, auth_errors.GoogleAuthError):
            return BucketUnavailable(f"{self.url}: no credentials. {error}")
        text = " ".join(str(error).split())[:300]
        return BucketUnavailable(f"{self.url}: {type(error).__name__}: {text}")


def _crc32c(blob: Any) -> int:
    import base64

    return int.from_bytes(base64.b64decode(blob.crc32c or ""), "big")
