"""The schema registry: which id a schema has, and which schema an id means.

Every schema and id ever seen is kept on disk, so that a registry that is down stops nothing that
is known, not even after a restart.
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from django.core.exceptions import ImproperlyConfigured
from django.core.signals import setting_changed

from audit_logging.folders import make_private

from ..conf import PublisherSettings, conf
from ..exceptions import RegistryError, RegistryUnavailable, SchemaIncompatible, UnknownSchema
from .compatibility import backward_problems

T = TypeVar("T")


class Registry(ABC):
    """Schemas by id. Thread-safe."""

    @abstractmethod
    def register(self, subject: str, schema_text: str) -> int:
        """Return the id of `schema_text` under `subject`, registering it when it is new.

        :raises SchemaIncompatible: it cannot read what the subject's last schema wrote.
        :raises RegistryUnavailable: the registry does not answer, and the id is not known.
        """

    @abstractmethod
    def schema(self, schema_id: int) -> str:
        """Return the schema with this id, as JSON text.

        :raises UnknownSchema: there is none.
        :raises RegistryUnavailable: the registry does not answer, and the id is not known.
        """

    #: Whether it is asked over a network.
    remote = False

    def kept(self, subject: str, schema_text: str) -> int | None:
        """Return the id of `schema_text` under `subject`, if it is known without asking anybody."""
        return None

    def close(self) -> None:  # noqa: B027  (a folder has nothing to close)
        """Let go of connections."""


class FolderRegistry(Registry):
    """The embedded registry: one file per schema, BACKWARD compatibility enforced.

    ``<folder>/<id>.json`` holds ``{"subjects": …}`` for one schema text; the number in the name is
    taken by creating the file, so that two processes cannot take the same.
    """

    def __init__(self, folder: str | Path) -> None:
        self._folder = Path(folder)
        self._schemas: dict[int, str] = {}
        self._ids: dict[tuple[str, str], int] = {}

    def register(self, subject: str, schema_text: str) -> int:
        canonical = _canonical(schema_text)
        known = self._ids.get((subject, canonical))
        if known is not None:
            return known
        try:
            return self._register(subject, schema_text, canonical)
        except OSError as error:
            raise RegistryUnavailable(f"{self._folder}: {error}") from error

    def _register(self, subject: str, schema_text: str, canonical: str) -> int:
        while True:
            entries = self._entries()
            latest = None
            for schema_id, entry in entries.items():
                if entry["subject"] == subject:
                    if _canonical(entry["schema"]) == canonical:
                        self._ids[subject, canonical] = schema_id
                        return schema_id
                    latest = entry["schema"]
            if latest is not None:
                _check_backward(subject, json.loads(schema_text), json.loads(latest))
            schema_id = max(entries, default=0) + 1
            text = json.dumps({"subject": subject, "schema": schema_text}, indent=1)
            if _create(self._folder / f"{schema_id}.json", text):
                self._ids[subject, canonical] = schema_id
                return schema_id

    def schema(self, schema_id: int) -> str:
        if schema_id not in self._schemas:
            path = self._folder / f"{schema_id}.json"
            try:
                self._schemas[schema_id] = _entry(path)["schema"]
            except FileNotFoundError:
                raise UnknownSchema(f"{self._folder} has no schema {schema_id}.") from None
            except OSError as error:
                raise RegistryUnavailable(f"{path}: {error}") from error
        return self._schemas[schema_id]

    def _entries(self) -> dict[int, dict[str, str]]:
        found = {}
        for path in self._folder.glob("*.json"):
            if path.stem.isdigit():
                found[int(path.stem)] = _entry(path)
        return dict(sorted(found.items()))


class ConfluentRegistry(Registry):
    """A Confluent-compatible registry over HTTP.

    :param url: base address, under which ``/subjects`` and ``/schemas`` lie.
    :param cache: folder that keeps what was learned.
    :param credentials: returns ``user:password``, or ""; called when a connection is needed.
    :param ca_file: certificate authority, or None for the public ones.
    :param timeout: seconds for one request.
    """

    def __init__(
        self,
        url: str,
        cache: str | Path,
        *,
        credentials: Callable[[], str] = str,
        ca_file: str | Path | None = None,
        timeout: float = 2.0,
    ) -> None:
        self._url = url.rstrip("/")
        self._cache = Path(cache) / hashlib.sha256(self._url.encode()).hexdigest()[:16]
        self._credentials = credentials
        self._ca_file = ca_file
        self._timeout = timeout
        self._schemas: dict[int, str] = {}
        self._ids: dict[tuple[str, str], int] = {}
        self._pool: Any = None
        self._pid = 0

    remote = True

    def _kept_at(self, subject: str, canonical: str) -> Path:
        digest = hashlib.sha256(f"{subject}\n{canonical}".encode()).hexdigest()
        return self._cache / f"{digest}.id"

    def kept(self, subject: str, schema_text: str) -> int | None:
        canonical = _canonical(schema_text)
        known = self._ids.get((subject, canonical))
        return (
            known if known is not None else _read(self._kept_at(subject, canonical), _whole_number)
        )

    def register(self, subject: str, schema_text: str) -> int:
        canonical = _canonical(schema_text)
        known = self._ids.get((subject, canonical))
        if known is not None:
            return known
        path = self._kept_at(subject, canonical)
        try:
            schema_id = self._register(subject, canonical)
            # The end of the line says that the number is whole.
            _keep(path, f"{schema_id}\n")
            _keep(self._cache / f"{schema_id}.avsc", schema_text)
        except RegistryUnavailable:
            kept = _read(path, _whole_number)
            if kept is None:
                raise
            schema_id = kept
        self._ids[subject, canonical] = schema_id
        return schema_id

    def _register(self, subject: str, canonical: str) -> int:
        # Always the same bytes for the same schema: registries tell texts apart by blanks.
        body = {"schema": canonical}
        try:
            # Looked for first: who may only read can publish what is registered.
            return self._id("POST", f"/subjects/{subject}", body)
        except UnknownSchema:
            pass
        # Asked here, too: a registry may be set to take everything, and says little of the field.
        try:
            latest = self._request("GET", f"/subjects/{subject}/versions/latest")
        except UnknownSchema:
            pass
        else:
            _check_backward(subject, json.loads(canonical), json.loads(latest["schema"]))
        return self._id("POST", f"/subjects/{subject}/versions", body)

    def _id(self, method: str, path: str, body: Any) -> int:
        answer = self._request(method, path, body)
        schema_id = answer.get("id")
        if type(schema_id) is not int or not 0 <= schema_id < 2**32:
            raise RegistryUnavailable(f"{self._url} answered without an id. {answer}"[:300])
        return schema_id

    def schema(self, schema_id: int) -> str:
        text = self._schemas.get(schema_id)
        if text is None:
            path = self._cache / f"{schema_id}.avsc"
            text = _read(path, _schema_text)
            if text is None:
                text = str(self._request("GET", f"/schemas/ids/{schema_id}")["schema"])
                _keep(path, text)
            self._schemas[schema_id] = text
        return text

    def guards(self, subject: str, schema_text: str) -> bool:
        """Whether the registry itself would refuse a schema of `subject` that cannot read what
        `schema_text` wrote, whoever sends it.

        Asked with such a schema, which is not registered: what a registry says of its
        configuration differs (some answer NONE for a subject that follows the global rule).

        :raises RegistryError: it does not answer.
        """
        breaking = json.loads(schema_text)
        breaking["fields"] = [{"name": "without_default", "type": "string"}]
        path = f"/compatibility/subjects/{subject}/versions/latest"
        answer = self._request("POST", path, {"schema": json.dumps(breaking)})
        return answer.get("is_compatible") is False

    def enforce(self, subject: str) -> None:
        """Have the registry refuse what breaks readers of `subject`.

        :raises RegistryError: it does not answer, or the credentials may not set this.
        """
        self._request("PUT", f"/config/{subject}", {"compatibility": "BACKWARD"})

    def close(self) -> None:
        if self._pool is not None and self._pid == os.getpid():
            self._pool.clear()
        self._pool = None

    def _request(self, method: str, path: str, body: Any = None) -> Any:
        import urllib3

        if self._pool is None or self._pid != os.getpid():
            headers = {"Content-Type": "application/vnd.schemaregistry.v1+json"}
            if credentials := self._credentials():
                headers |= urllib3.make_headers(basic_auth=credentials)
            options: dict[str, Any] = {"ca_certs": str(self._ca_file)} if self._ca_file else {}
            self._pool = urllib3.PoolManager(
                headers=headers,
                timeout=urllib3.Timeout(connect=self._timeout, read=self._timeout),
                retries=False,
                **options,
            )
            self._pid = os.getpid()
        try:
            response = self._pool.request(
                method,
                self._url + path,
                body=None if body is None else json.dumps(body).encode(),
            )
        except (urllib3.exceptions.HTTPError, OSError) as error:
            raise RegistryUnavailable(
                f"The schema registry {self._url} does not answer ({type(error).__name__}). "
                "Check AUDIT_PUBLISHER_REGISTRY_URL."
            ) from error
        return self._answer(response.status, response.data)

    def _answer(self, status: int, data: bytes) -> Any:
        try:
            answer = json.loads(data)
        except (ValueError, RecursionError):
            answer = None
        if not isinstance(answer, dict):
            raise RegistryUnavailable(
                f"{self._url} answered {status} with something that no registry says. Check "
                "AUDIT_PUBLISHER_REGISTRY_URL, and the proxies on the way."
            )
        said = answer.get("message", "")
        if status == 409:
            raise SchemaIncompatible(f"The registry refuses the schema: {said}")
        if status == 404 and "error_code" in answer:
            raise UnknownSchema(f"{self._url}: {said or 'not found'}")
        if status == 422:
            raise RegistryError(f"The registry cannot use the schema: {said}")
        if status != 200:
            # 401 and 403 too: what is already known goes on, and readiness says why.
            raise RegistryUnavailable(f"{self._url} answered {status}. {said}".strip())
        return answer


_registry: Registry | None = None
_lock = threading.Lock()


def get_registry() -> Registry:
    """Return this process's registry; made at first use and kept."""
    global _registry
    if _registry is None:
        with _lock:
            if _registry is None:
                _registry = open_registry()
    return _registry


def open_registry() -> Registry:
    """Return a new registry, as configured.

    :raises RegistryUnavailable: a file that the settings name is gone.
    """
    if not conf.REGISTRY_URL:
        return FolderRegistry(conf.DATA_DIR / "schemas")
    try:
        ca_file = conf.REGISTRY_CA_FILE
    except ImproperlyConfigured as error:
        raise RegistryUnavailable(str(error)) from error
    return ConfluentRegistry(
        conf.REGISTRY_URL,
        conf.DATA_DIR / "schemas",
        credentials=_credentials,
        ca_file=ca_file,
        timeout=conf.REGISTRY_TIMEOUT,
    )


def _credentials() -> str:
    # Looked at again with each try: a mounted secret may be late, or be exchanged.
    try:
        path = conf.REGISTRY_CREDENTIALS_FILE
        return "" if path is None else path.read_text().strip()
    except ImproperlyConfigured as error:
        raise RegistryUnavailable(str(error)) from error
    except (OSError, UnicodeDecodeError) as error:
        raise RegistryUnavailable(
            f"AUDIT_PUBLISHER_REGISTRY_CREDENTIALS_FILE cannot be read: {error}"
        ) from error


def _check_backward(subject: str, new: Any, latest: Any) -> None:
    problems = backward_problems(new, latest)
    if problems:
        raise SchemaIncompatible(
            f"Subject {subject} cannot change like this: {'; '.join(problems)}."
        )


def _entry(path: Path) -> dict[str, str]:
    """One file of the folder registry.

    :raises RegistryUnavailable: it is damaged.
    :raises OSError: it cannot be read.
    """
    try:
        entry = json.loads(path.read_text())
        return {"subject": entry["subject"], "schema": _schema_text(entry["schema"])}
    except (ValueError, TypeError, KeyError) as error:
        raise RegistryUnavailable(
            f"{path} is damaged. Put it back from a backup, or from another publisher: records "
            f"that name schema {path.stem} cannot be read without it."
        ) from error


def _schema_text(text: str) -> str:
    """`text`, if it is JSON.

    :raises ValueError: it is not.
    """
    json.loads(text)
    return text


def _whole_number(text: str) -> int:
    """The id in a cache file.

    :raises ValueError: it is damaged.
    """
    number, end, rest = text.partition("\n")
    if not end or rest or not (number.isascii() and number.isdigit()):
        raise ValueError("damaged")
    return int(number)


def _read(path: Path, parse: Callable[[str], T]) -> T | None:
    """What a cache file holds; None if there is none, or it is damaged: it is only a cache."""
    try:
        return parse(path.read_text())
    except (OSError, ValueError):
        return None


def _canonical(schema_text: str) -> str:
    return json.dumps(json.loads(schema_text), separators=(",", ":"))


def _create(path: Path, text: str) -> bool:
    """Write a file that must not exist yet, whole or not at all; return whether it was ours."""
    make_private(path.parent)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(6)}")
    try:
        with temporary.open("w") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        path.hardlink_to(temporary)
    except FileExistsError:
        return False
    finally:
        temporary.unlink(missing_ok=True)
    return True


def _keep(path: Path, text: str) -> None:
    """Write a cache file; a disk that is full costs the cache, not the event."""
    try:
        make_private(path.parent)
        temporary = path.with_name(f".{path.name}.{secrets.token_hex(6)}")
        temporary.write_text(text)
        temporary.replace(path)
    except OSError:
        pass


def _reconfigure(*, setting: str, **kwargs: Any) -> None:
    global _registry
    if setting == PublisherSettings.prefix:
        if _registry is not None:
            _registry.close()
        _registry = None


setting_changed.connect(_reconfigure)
