"""A bucket by the name of an entry of Django's STORAGES: `storages://name` or with `/prefix`.

The entry is made as Django makes it, by its own class and OPTIONS, so that what django-storages
takes from its settings (GS_CREDENTIALS, GS_LOCATION …) counts here, too. Of it we use where it
points and as whom; objects go through our own buckets, as a storage's `save` may overwrite, rename
or compress.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from urllib.parse import quote, unquote, urlsplit

from django.core.exceptions import ImproperlyConfigured
from django.core.files.storage import FileSystemStorage, InvalidStorageError, Storage, storages

from ..exceptions import BucketMissing
from .storage import Bucket

if TYPE_CHECKING:
    from .gcs import Place

#: What a storage sets on an object that would change how its bytes are read, or that we set.
_OURS = frozenset({"content_encoding", "content_type"})


def open_entry(url: str) -> Bucket:
    """Open the bucket to which the entry of `url` points.

    :raises BucketMissing: there is no such entry, or none that we can write to, once for each name.
    """
    storage, prefix = _storage(url)
    if _is_google(storage):
        from .gcs import GcsBucket

        return GcsBucket(url, lambda url: _google_place(storage, prefix))
    from .folder import FolderBucket

    return FolderBucket(url, _folder(storage, prefix))


def address(url: str) -> str:
    """The `file://` or `gs://` address to which the entry of `url` points.

    :raises BucketMissing: as :func:`open_entry`.
    """
    storage, prefix = _storage(url)
    if _is_google(storage):
        return f"gs://{storage.bucket_name}/{_joined(storage.location, prefix)}"
    return f"file://{quote(_folder(storage, prefix))}"


def _storage(url: str) -> tuple[Any, str]:
    """A storage of our own for the entry, and the address's prefix."""
    parts = urlsplit(url)
    name, prefix = parts.netloc, unquote(parts.path).strip("/")
    if name not in storages.backends:
        raise BucketMissing(
            f"STORAGES has no entry {name!r}, only {', '.join(sorted(storages.backends))}. Add "
            f"it, or correct the site's bucket URL ({url})."
        )
    try:
        # Not Django's own instance: a client must not be shared across a fork.
        storage: Storage = storages.create_storage(storages.backends[name])
    except (ImproperlyConfigured, InvalidStorageError, TypeError) as error:
        raise BucketMissing(f"{url}: STORAGES[{name!r}] cannot be used: {error}") from error
    if _is_google(storage):
        if not storage.bucket_name:
            raise BucketMissing(
                f"{url}: STORAGES[{name!r}] names no bucket. Set bucket_name in its OPTIONS, or "
                f"GS_BUCKET_NAME."
            )
    elif not isinstance(storage, FileSystemStorage):
        raise BucketMissing(
            f"{url}: STORAGES[{name!r}] is a {type(storage).__name__}, which cannot create an "
            f"object once for each name. Use a FileSystemStorage, or GoogleCloudStorage of "
            f"django-storages."
        )
    return storage, prefix


def _is_google(storage: Any) -> bool:
    try:
        from storages.backends.gcloud import GoogleCloudStorage
    except (ImportError, ImproperlyConfigured):
        return False
    return isinstance(storage, GoogleCloudStorage)


def _folder(storage: FileSystemStorage, prefix: str) -> str:
    return f"{storage.location}/{prefix}".rstrip("/")


def _joined(location: str, prefix: str) -> str:
    return "/".join(filter(None, (location.strip("/"), prefix)))


def _google_place(storage: Any, prefix: str) -> Place:
    from .gcs import CHUNK, Place

    def parameters(name: str) -> dict[str, Any]:
        found = {"acl": storage.default_acl} if storage.default_acl else {}
        found |= storage.get_object_parameters(name)
        return {key: value for key, value in found.items() if key not in _OURS}

    inside = _joined(storage.location, prefix)
    return Place(
        client=storage.client,
        bucket=storage.bucket_name,
        prefix=f"{inside}/" if inside else "",
        credentials=storage.credentials,
        chunk=storage.blob_chunk_size or CHUNK,
        parameters=parameters,
    )
