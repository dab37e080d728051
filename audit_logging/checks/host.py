"""What only the host can tell: the folder, the disk, the broker, the database. With --deploy."""

from __future__ import annotations

import json
import os
import shutil
import socket
import stat
import tempfile
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar
from urllib.parse import unquote, urlsplit

from django.core.checks import CheckMessage

from ..conf import LoggingSettings, conf
from .catalogue import found
from .registering import app_installed, check, middleware, positions

T = TypeVar("T")

#: Seconds that the broker has to answer.
BROKER_SECONDS = 2.0
#: Seconds that the publisher has.
PUBLISHER_SECONDS = 3.0

MEMORY = frozenset({"tmpfs", "ramfs", "devtmpfs"})
LAYERS = frozenset({"overlay", "aufs"})
NETWORK = frozenset(
    {"nfs", "nfs4", "cifs", "smb3", "smbfs", "9p", "afs", "ceph", "glusterfs", "lustre", "ncpfs"}
    | {"fuse.sshfs", "fuse.s3fs", "fuse.gcsfuse", "fuse.glusterfs", "fuse.juicefs"}
)
_MOUNTS = Path("/proc/self/mountinfo")
_DEFAULT_URL: str = LoggingSettings._options["PUBLISHER_URL"].default
_GZIP = "django.middleware.gzip.GZipMiddleware"


@check(deploy=True)
def check_compression() -> Iterator[CheckMessage]:
    """I001: compression between the audit and the views."""
    names, at = middleware(), positions()
    if _GZIP in names[at[0] + 1 :]:
        yield found("I001", "In MIDDLEWARE GZipMiddleware stands after the audit middleware.")


@check(deploy=True)
def check_publisher() -> Iterator[CheckMessage]:
    """W006, W007: the publisher's address."""
    if conf.DELIVERY == "kafka" and conf.FLAGS_SOURCE != "publisher":
        return
    parts = urlsplit(conf.PUBLISHER_URL)
    host = (parts.hostname or "").rstrip(".")
    if conf.PUBLISHER_URL == _DEFAULT_URL:
        yield found("W007", f"AUDIT_LOGGING PUBLISHER_URL is the default, {conf.PUBLISHER_URL}.")
    elif parts.scheme == "http" and not _is_local(host):
        yield found("W006", f"AUDIT_LOGGING PUBLISHER_URL is plain HTTP to {host}.")


@check(deploy=True)
def check_publisher_answers() -> Iterator[CheckMessage]:
    """W023 to W026, W029: the publisher is there, knows the key, and takes these events."""
    if conf.DELIVERY == "kafka" and conf.FLAGS_SOURCE != "publisher":
        return
    if conf.PUBLISHER_URL == _DEFAULT_URL:
        # W007 says what there is to say.
        return
    yield from publisher_answers().messages()


#: The key is at fault, which other checks tell.
_UNSIGNED = -1


@dataclass(frozen=True, slots=True)
class PublisherAnswer:
    """What the publisher says when it is asked for this service's flags.

    :ivar status: the HTTP status; 0: nobody answers.
    :ivar said: one line of it.
    :ivar max_event_bytes: the largest event that it takes, if it says so.
    :ivar time: its clock, in epoch seconds, if it says so.
    """

    status: int
    said: str
    max_event_bytes: int | None = None
    time: float | None = None

    def messages(self) -> Iterator[CheckMessage]:
        """W023 to W026, W029."""
        limit = self.max_event_bytes
        if limit is not None and limit < conf.MAX_EVENT_BYTES:
            yield found(
                "W029",
                f"AUDIT_LOGGING MAX_EVENT_BYTES is {conf.MAX_EVENT_BYTES:,}, the publisher takes "
                f"{limit:,}.",
            )
        if self.status in (200, _UNSIGNED):
            return
        number = {401: "W025", 403: "W026", 404: "W024"}.get(self.status, "W023")
        where = f"AUDIT_LOGGING PUBLISHER_URL ({_shown(conf.PUBLISHER_URL)})"
        yield found(number, f"{where}: {self.said}")


def publisher_answers() -> PublisherAnswer:
    """Ask the publisher, within PUBLISHER_SECONDS."""
    return _within(PUBLISHER_SECONDS, _ask_publisher) or PublisherAnswer(
        0, f"the publisher does not answer within {PUBLISHER_SECONDS:g} s"
    )


def _ask_publisher() -> PublisherAnswer:
    from ..exceptions import RetryLater
    from ..publisher_client import Publisher
    from ..signing import SigningError

    publisher = Publisher(conf, timeout=PUBLISHER_SECONDS)
    try:
        status, said = publisher.ask(conf.SERVICE_NAME)
    except RetryLater as error:
        unsigned = isinstance(error.__cause__, SigningError)
        status, said = _UNSIGNED if unsigned else 0, str(error)
    finally:
        publisher.close()
    return PublisherAnswer(status, said, publisher.max_event_bytes, publisher.said_at)


def _within(seconds: float, ask: Callable[[], T]) -> T | None:
    """What `ask` returns, if it does within so many seconds."""
    answers: list[T] = []
    # On a thread of its own: names that do not resolve know no timeout.
    thread = threading.Thread(target=lambda: answers.append(ask()), name="audit-check", daemon=True)
    thread.start()
    thread.join(seconds)
    return answers[0] if answers else None


def _shown(url: str) -> str:
    """An address without its password."""
    parts = urlsplit(url)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()


def _is_local(host: str) -> bool:
    return host in ("localhost", "::1") or host.startswith("127.") or host.endswith(".localhost")


# -- the folder --------------------------------------------------------------------------------


@check(deploy=True)
def check_folder() -> Iterator[CheckMessage]:
    """E015, W002, W010 to W014: where spools and dead letters are kept."""
    folder = conf.DATA_DIR.absolute()
    there = nearest(folder)
    why = refused(there)
    writable = not why
    if why:
        yield found("W002", f"AUDIT_LOGGING DATA_DIR: {folder} cannot be written: {why}.")
    files = sorted(folder.glob("*.sqlite3*")) if writable and there == folder else []
    for file in files:
        if not os.access(file, os.R_OK | os.W_OK):
            yield found("W002", f"AUDIT_LOGGING DATA_DIR: {file} cannot be written.")
    yield from _check_embedded_broker()
    yield from _check_file_system(there, folder)
    yield from _check_room(there, folder)
    if there == folder:
        yield from _check_private(folder, files)
    others = sorted(services_in(folder) - {conf.SERVICE_NAME})
    if others:
        yield found(
            "W013",
            f"AUDIT_LOGGING DATA_DIR: {folder} is that of {', '.join(others)} too.",
        )


def nearest(folder: Path) -> Path:
    """`folder`, or what stands nearest above it."""
    while not os.path.exists(folder) and folder != folder.parent:  # noqa: PTH110 - never raises
        folder = folder.parent
    return folder


def refused(folder: Path) -> str:
    """Say why nothing can be made in `folder`; empty when it can.

    By trying: root may do everything, but for what the file system refuses.
    """
    try:
        with tempfile.TemporaryDirectory(prefix=".audit-check-", dir=folder) as made:
            (Path(made) / "file").write_bytes(b"x")
    except OSError as error:
        return error.strerror or type(error).__name__
    return ""


def _check_embedded_broker() -> Iterator[CheckMessage]:
    url = conf.BROKER_URL
    if url.startswith("durable:"):
        path = Path(unquote(urlsplit(url).path))
        why = refused(nearest(path.parent))
        if path.is_dir():
            why = "it is a folder"
        if why:
            yield found("W002", f"AUDIT_LOGGING BROKER_URL: {path} cannot be written: {why}.")


def file_system(path: Path, mounts: Path = _MOUNTS) -> str:
    """The type of the file system that `path` lies on; "" where it cannot be known."""
    try:
        lines = mounts.read_text().splitlines()
    except OSError:
        return ""
    best, kind = "", ""
    target = f"{path.resolve()}/"
    for line in lines:
        left, _, right = line.partition(" - ")
        fields = left.split()
        if len(fields) < 5 or not right:
            continue
        # Spaces and the like are written in octal.
        point = fields[4].encode("latin-1", "replace").decode("unicode_escape")
        point = point.encode("latin-1", "replace").decode("utf-8", "replace").rstrip("/") + "/"
        # Of two mounts on one point the later hides the earlier.
        if target.startswith(point) and len(point) >= len(best):
            best, kind = point, right.split()[0]
    return kind


def _check_file_system(there: Path, folder: Path) -> Iterator[CheckMessage]:
    kind = file_system(there)
    for number, kinds in (("E015", NETWORK), ("W010", MEMORY), ("W011", LAYERS)):
        if kind in kinds:
            yield found(number, f"AUDIT_LOGGING DATA_DIR: {folder} lies on {kind}.")


def _check_room(there: Path, folder: Path) -> Iterator[CheckMessage]:
    try:
        free = shutil.disk_usage(there).free
        used = (folder / "capture-spool.sqlite3").stat().st_size
    except FileNotFoundError:
        used = 0
    except OSError:
        return
    wanted = conf.SPOOL_MAX_BYTES - used
    if conf.OVERFLOW == "spool" and free < wanted:
        yield found(
            "W012",
            f"AUDIT_LOGGING DATA_DIR: {free:,} bytes are free at {there}; the spool may grow by "
            f"{wanted:,} (SPOOL_MAX_BYTES).",
        )


def _check_private(folder: Path, files: list[Path]) -> Iterator[CheckMessage]:
    wrong = [(folder, 0o022), *((file, 0o077) for file in files)]
    for path, forbidden in wrong:
        try:
            mode = stat.S_IMODE(path.stat().st_mode)
        except OSError:
            continue
        if mode & forbidden:
            yield found("W014", f"AUDIT_LOGGING DATA_DIR: {path} has the mode {mode:04o}.")


def services_in(folder: Path) -> set[str]:
    """The services whose traces lie in `folder`: kept flags, and events in its spools."""
    from ..batch import unpack
    from ..exceptions import AuditLoggingError
    from ..spool import DurableQueue

    services: set[str] = set()
    try:
        services.add(json.loads((folder / "flags.json").read_text())["service"])
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        pass
    for name, stream in (("capture-spool", "capture"), ("delivery-spool", "delivery")):
        path = folder / f"{name}.sqlite3"
        try:
            # SQLite makes files beside it: by another user they would lock the service out.
            if path.stat().st_uid != os.geteuid():
                continue
            queue = DurableQueue(path, timeout=0.5)
            try:
                records = queue.read(stream, queue.watermarks(stream)[1] - 20, max_records=20)
            finally:
                queue.close()
            for record in records:
                services.add(json.loads(unpack(record.value)[0])["service_name"])
        except (OSError, ValueError, KeyError, TypeError, RecursionError, AuditLoggingError):
            continue
    return {service for service in services if isinstance(service, str) and service}


# -- what answers ------------------------------------------------------------------------------


@check(deploy=True)
def check_broker() -> Iterator[CheckMessage]:
    """W008: the broker answers."""
    url = conf.broker_url()
    if conf.DELIVERY == "direct" or url.startswith(("durable:", "memory:")):
        return
    said = _within(BROKER_SECONDS, lambda: ask_broker(url))
    if said is None:
        said = f"it does not answer within {BROKER_SECONDS:g} s"
    if said:
        parts = urlsplit(url)
        port = f":{parts.port}" if parts.port else ""
        where = f"{parts.scheme}://{parts.hostname or 'localhost'}{port}"
        yield found("W008", f"AUDIT_LOGGING BROKER_URL: {where}: {said}.")


def ask_broker(url: str) -> str:
    """Return what is wrong, or nothing."""
    from kombu import Connection

    from ..celery import transport_options

    options = transport_options(url)
    if url.startswith("redis"):
        options |= {"socket_connect_timeout": BROKER_SECONDS, "socket_timeout": BROKER_SECONDS}
    elif url.startswith("amqp"):
        options |= {"read_timeout": BROKER_SECONDS}
    parts = urlsplit(url)
    port = parts.port or (
        6379 if url.startswith("redis") else 5671 if url.startswith("amqps") else 5672
    )
    try:
        # Its client would try again for longer than we wait, and say less.
        address = (parts.hostname or "127.0.0.1", port)
        with socket.create_connection(address, timeout=BROKER_SECONDS):
            pass
        with Connection(
            url, connect_timeout=BROKER_SECONDS, transport_options=options
        ) as connection:
            connection.connect()
            connection.default_channel  # noqa: B018 - Redis is not asked before
    except Exception as error:  # noqa: BLE001 - whatever its client raises
        # Its first line, and not its cause: that may hold the address with the password.
        text = str(error).partition("\n")[0][:200].rstrip(".")
        text = text.replace(parts.password, "***") if parts.password else text
        return f"{type(error).__name__}: {text}"
    return ""


@check(deploy=True)
def check_tables() -> Iterator[CheckMessage]:
    """W020: the tables of flags, rules and dead letters."""
    wanted = [
        name for name in ("FLAGS_SOURCE", "DEAD_LETTERS") if getattr(conf, name) == "database"
    ]
    if not wanted or not app_installed():
        return
    from django.apps import apps
    from django.db import connections, router

    said = f"AUDIT_LOGGING {wanted[0]} is database"
    missing = []
    for model in apps.get_app_config("audit_logging").get_models():
        table = model._meta.db_table
        try:
            connection = connections[router.db_for_read(model) or "default"]
            with connection.cursor() as cursor:
                if table not in connection.introspection.table_names(cursor, include_views=True):
                    missing.append(table)
        except Exception as error:  # noqa: BLE001 - whatever the database's client raises
            what = f"{type(error).__name__}: {str(error).partition(chr(10))[0][:200]}"
            yield found("W020", f"{said}, and the database cannot be asked: {what}")
            return
    if missing:
        yield found("W020", f"{said}, and it has no table {', '.join(missing)}.")


@check(deploy=True)
def check_metrics() -> Iterator[CheckMessage]:
    """W021: where prometheus_client keeps the counts of several processes."""
    for name in ("PROMETHEUS_MULTIPROC_DIR", "prometheus_multiproc_dir"):
        folder = os.environ.get(name)
        if folder and not (Path(folder).is_dir() and os.access(folder, os.W_OK | os.X_OK)):
            yield found("W021", f"{name}: {folder} is not a folder that can be written.")
