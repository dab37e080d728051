"""Google Cloud Storage as a bucket: `gs://bucket` or `gs://bucket/prefix`.

Credentials are those of django-storages' settings (GS_CREDENTIALS, GS_PROJECT_ID) where they are
set, else the environment's own (Application Default Credentials). With the usual variable
``STORAGE_EMULATOR_HOST`` set, an emulator is used, without credentials.

Retries are the library's own policy, within BUCKET_TIMEOUT_SECONDS for one call all in all.
"""

from __future__ import annotations

import base64
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, BinaryIO, cast
from urllib.parse import urlsplit

import google_crc32c
import urllib3
from django.conf import settings
from google.api_core import exceptions as google_errors
from google.auth import exceptions as auth_errors
from google.auth.credentials import AnonymousCredentials, Credentials, with_scopes_if_required
from google.cloud import storage
from google.cloud.storage import exceptions as storage_errors
from google.cloud.storage.retry import DEFAULT_RETRY
from requests import exceptions as request_errors

from ..conf import conf
from ..exceptions import (
    BucketError,
    BucketMissing,
    BucketRefused,
    BucketUnavailable,
    ConflictError,
)
from .deadline import DeadlineAdapter, deadline, time_left
from .storage import Bucket

if TYPE_CHECKING:
    from pyarrow.fs import FileSystem

    from .storage import Data

EMULATOR = "STORAGE_EMULATOR_HOST"

#: A larger object goes in parts of this size, in bytes, so that a cut costs one part. The library
#: sends smaller ones in one request whatever this says.
CHUNK = 8 << 20

_FAILURES = (
    google_errors.GoogleAPIError,
    auth_errors.GoogleAuthError,
    storage_errors.InvalidResponse,
    storage_errors.DataCorruption,
    request_errors.RequestException,
    urllib3.exceptions.HTTPError,
    OSError,
)
#: Reasons of a 403 that are no refusal: try again later.
_TOO_MUCH = ("rateLimitExceeded", "userRateLimitExceeded", "quotaExceeded")


@dataclass(frozen=True)
class Place:
    """Where objects go, and as whom.

    :ivar prefix: ends with a slash, or is empty.
    :ivar credentials: None: the environment's own.
    :ivar parameters: what is set on a new object of a name: a storage class, a key, an ACL.
    """

    client: storage.Client
    bucket: str
    prefix: str = ""
    credentials: Credentials | None = None
    chunk: int = CHUNK
    parameters: Callable[[str], Mapping[str, Any]] = lambda name: {}


def _emulator() -> str:
    address = os.environ.get(EMULATOR, "")
    return address if not address or "://" in address else f"http://{address}"


def _place(url: str) -> Place:
    """Read the address `gs://bucket/prefix`."""
    parts = urlsplit(url)
    path = parts.path.strip("/")
    credentials = getattr(settings, "GS_CREDENTIALS", None)
    project = getattr(settings, "GS_PROJECT_ID", None)
    if emulator := _emulator():
        client = storage.Client(
            project=project or "emulator",
            credentials=AnonymousCredentials(),
            client_options={"api_endpoint": emulator},
        )
    else:
        client = storage.Client(project=project, credentials=credentials)
    return Place(client, parts.netloc, f"{path}/" if path else "", credentials)


class GcsBucket(Bucket):
    """Objects are created under the precondition that none of their name exists."""

    def __init__(self, url: str, place: Callable[[str], Place] = _place) -> None:
        super().__init__(url)
        self.bucket_name, self.prefix = urlsplit(url).netloc, ""
        self._timeout = conf.BUCKET_TIMEOUT_SECONDS
        try:
            self._place = place(url)
            session = self._place.client._http
        except _FAILURES as error:
            raise self._map(error) from error
        session.mount("http://", DeadlineAdapter())
        session.mount("https://", DeadlineAdapter())
        self.bucket_name, self.prefix = self._place.bucket, self._place.prefix
        self._client = self._place.client
        self._bucket = self._client.bucket(self.bucket_name)

    def create(self, name: str, data: Data) -> bool:
        # The library copies them into its request in any case.
        data = data if isinstance(data, bytes) else bytes(data)
        checksum = base64.b64encode(google_crc32c.value(data).to_bytes(4, "big")).decode()
        with deadline(self._timeout):
            try:
                self._upload(name, data, checksum)
            except google_errors.PreconditionFailed as error:
                # A retried create is refused although its first try landed: equal is success.
                if self._compare(name, data, checksum):
                    return False
                raise self._map(error) from error
            except _FAILURES as error:
                if self._landed(name, data, checksum):
                    return False
                if isinstance(error, google_errors.NotFound):
                    # Of the bucket, or of an upload that the server forgot half-way?
                    self.probe()
                    raise BucketUnavailable(f"{self.url}: the upload was lost. {error}") from error
                raise self._map(error) from error
        return True

    def _upload(self, name: str, data: bytes, checksum: str) -> None:
        blob = self._bucket.blob(self.prefix + name, chunk_size=self._place.chunk)
        acl = None
        for key, value in self._place.parameters(self.prefix + name).items():
            if key == "acl":
                acl = value
            else:
                setattr(blob, key, value)
        blob.upload_from_string(
            data,
            content_type="application/vnd.apache.parquet",
            predefined_acl=acl,
            if_generation_match=0,
            # Given beforehand, so that the server refuses what was mangled on the way. The
            # library's own check of a large one comes after, and deletes by name.
            checksum="crc32c" if len(data) <= CHUNK else None,
            crc32c_checksum_value=checksum,
            **self._limits(),
        )
        if blob.crc32c not in (None, checksum):
            # A server that did not check. Nobody has taken this generation for the object.
            blob.delete(if_generation_match=blob.generation, **self._limits())
            raise storage_errors.DataCorruption(None, "the server stored other bytes than we sent")

    def _compare(self, name: str, data: bytes, checksum: str) -> bool:
        """Whether the object is there with these bytes.

        :raises ConflictError: it is there with others.
        """
        try:
            there = self._bucket.get_blob(self.prefix + name, **self._limits())
        except _FAILURES as error:
            raise self._map(error) from error
        if there is None:
            return False
        if there.size != len(data) or there.crc32c != checksum:
            raise ConflictError(
                f"{self.url}/{name} exists and holds other bytes. If no row of the ledger names "
                f"it, move it away; the range is then written again."
            )
        return True

    def _landed(self, name: str, data: bytes, checksum: str) -> bool:
        """Whether a create that failed has stored the object all the same, if it can be told."""
        if time_left(self._timeout) <= 0:
            return False
        try:
            return self._compare(name, data, checksum)
        except BucketError:
            return False

    def read(self, name: str) -> bytes:
        try:
            with deadline(self._timeout):
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
            with deadline(self._timeout):
                blob = self._bucket.get_blob(self.prefix + name, **self._limits())
        except _FAILURES as error:
            raise self._map(error) from error
        return None if blob is None else blob.size

    def list(self, prefix: str = "") -> Iterator[str]:
        pages = self._client.list_blobs(
            self.bucket_name, prefix=self.prefix + prefix, **self._limits()
        ).pages
        while True:
            try:
                with deadline(self._timeout):
                    page = next(pages, None)
            except _FAILURES as error:
                raise self._map(error) from error
            if page is None:
                return
            for blob in page:
                yield blob.name.removeprefix(self.prefix)

    def delete(self, name: str) -> None:
        try:
            with deadline(self._timeout):
                self._bucket.blob(self.prefix + name).delete(**self._limits())
        except google_errors.NotFound:
            pass
        except _FAILURES as error:
            raise self._map(error) from error

    def probe(self) -> None:
        # Writing and deleting an object would cost two operations, and a locked bucket could not
        # delete it: listing tells a missing bucket and missing rights to read apart from success.
        try:
            with deadline(self._timeout):
                found = self._client.list_blobs(self.bucket_name, max_results=1, **self._limits())
                next(iter(found), None)
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
        elif self._place.credentials is not None:
            options |= self._token(self._place.credentials)
        return GcsFileSystem(**options), f"{self.bucket_name}/{self.prefix}"

    def _token(self, credentials: Credentials) -> dict[str, Any]:
        """PyArrow takes no credentials, but a token; good for about an hour."""
        from google.auth.transport.requests import Request

        credentials = with_scopes_if_required(credentials, storage.Client.SCOPE)
        try:
            if not credentials.valid:
                credentials.refresh(Request())
        except _FAILURES as error:
            raise self._map(error) from error
        # The expiry is UTC, and does not say so.
        expiry = credentials.expiry or datetime.now(UTC) + timedelta(hours=1)
        expiry = expiry.replace(tzinfo=UTC)
        return {"access_token": credentials.token, "credential_token_expiration": expiry}

    def _limits(self) -> dict[str, Any]:
        left = time_left(self._timeout)
        return {"timeout": self._timeout, "retry": DEFAULT_RETRY.with_timeout(left)}

    def _missing_object(self, name: str, error: Exception) -> Exception:
        # The same status says "no object" and "no bucket".
        if "bucket" in str(error).lower() and "object" not in str(error).lower():
            return self._map(error)
        return FileNotFoundError(f"{self.url}/{name}")

    def _map(self, error: BaseException) -> BucketError:
        if isinstance(error, google_errors.RetryError) and error.cause is not None:
            error = error.cause
        text = " ".join(str(error).split())[:300]
        if isinstance(error, google_errors.NotFound):
            return BucketMissing(
                f"There is no bucket {self.bucket_name!r}. Make it, or correct the site's "
                f"bucket URL ({self.url})."
            )
        if isinstance(error, google_errors.Forbidden) and not _rate_limited(error):
            return BucketRefused(
                f"{self.url} refuses us (403). Give this service's account the role Storage "
                f"Object User on the bucket. ({text})"
            )
        if isinstance(error, google_errors.Unauthorized):
            return BucketRefused(
                f"{self.url} does not accept our credentials (401). Renew them. ({text})"
            )
        if isinstance(error, auth_errors.GoogleAuthError) and not (
            error.retryable or isinstance(error, auth_errors.TransportError)
        ):
            return BucketRefused(
                f"{self.url}: no credentials that can be used. Set GOOGLE_APPLICATION_CREDENTIALS "
                f"or GS_CREDENTIALS, or run where the account is known. ({text})"
            )
        return BucketUnavailable(f"{self.url}: {type(error).__name__}: {text}")


def _rate_limited(error: google_errors.GoogleAPICallError) -> bool:
    # Of an upload, the library keeps the reason in the answer's text alone.
    answer = error.response
    said = f"{error.errors} {answer.text if answer is not None else ''}"
    return any(reason in said for reason in _TOO_MUCH)
