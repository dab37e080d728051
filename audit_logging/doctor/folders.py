"""Folders and files on disk: there, private, on a disk of this host, with room."""

from __future__ import annotations

import errno
import os
import shutil
import stat
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

from ..checks.host import LAYERS, MEMORY, NETWORK, file_system, nearest, refused
from .examinations import Finding, failure, ok, warning

#: What the system says where nobody may write any more.
_FULL = frozenset(map(os.strerror, (errno.ENOSPC, errno.EDQUOT)))
#: A certificate that ends within this is told of.
SOON = timedelta(days=21)


def look_at_folder(setting: str, folder: Path, wanted: int) -> Iterator[Finding]:
    """Examine a folder that holds what must not be lost.

    :param setting: what names it.
    :param wanted: bytes that it may still grow by.
    """
    folder = folder.absolute()
    there = nearest(folder)
    why = refused(there)
    if why:
        full = why in _FULL
        yield failure(
            f"{setting}: {'the disk is full: ' * full}{folder} cannot be written: {why}.",
            "Make room on it, or name a folder on another disk."
            if full
            else "Give the service's user write access, or name another folder.",
        )
        return
    kind = file_system(there)
    if kind in NETWORK:
        yield failure(
            f"{setting}: {folder} lies on {kind}, a network file system, where SQLite's files can "
            "be damaged.",
            "Name a folder on a local disk or a block device.",
        )
    elif kind in MEMORY or kind in LAYERS:
        yield warning(
            f"{setting}: {folder} lies on {kind}: it is gone when the host restarts, or the "
            "container is replaced.",
            "Mount a volume, and name a folder on it.",
        )
    if there == folder:
        mode = stat.S_IMODE(folder.stat().st_mode)
        if mode & 0o077 and not _is_kept_away(folder):
            yield warning(
                f"{setting}: {folder} has the mode {mode:04o}: it holds what callers sent.",
                f"chmod 700 {folder}",
            )
    free = shutil.disk_usage(there).free
    if free < wanted:
        yield warning(
            f"{setting}: {free:,} bytes are free at {there}; it may still grow by {wanted:,}.",
            "Make room, or lower its bound.",
        )
    state = "" if there == folder else ", to be made at first use"
    yield ok(f"{folder}: {free / 1e9:.1f} GB free on {kind or 'its disk'}{state}")


def _is_kept_away(folder: Path) -> bool:
    """Whether a folder above keeps everybody else out."""
    return any(not above.stat().st_mode & 0o077 for above in folder.parents)


def look_at_secret(setting: str, path: Path) -> Iterator[Finding]:
    """Examine a file that holds a secret: readable for us, and for nobody else."""
    try:
        with path.open("rb"):
            mode = stat.S_IMODE(path.stat().st_mode)
    except OSError as error:
        yield failure(
            f"{setting}: {path} cannot be read: {error.strerror}.",
            "Look at the secret's mount, its mode and its owner.",
        )
        return
    if mode & (stat.S_IROTH | stat.S_IWOTH):
        yield warning(
            f"{setting}: {path} has the mode {mode:04o}: everybody on this host can read it.",
            f"chmod 600 {path}, or mount the secret with a defaultMode of 0400 or 0440.",
        )
    else:
        yield ok(f"{setting}: {path}, mode {mode:04o}")


def look_at_certificates(setting: str, path: Path) -> Iterator[Finding]:
    """Examine a PEM file of certificates: which end soonest, and whether they have."""
    from cryptography import x509

    try:
        certificates = x509.load_pem_x509_certificates(path.read_bytes())
    except OSError as error:
        yield failure(
            f"{setting}: {path} cannot be read: {error.strerror}.", "Name a file that can be read."
        )
        return
    except ValueError:
        yield failure(
            f"{setting}: {path} holds no certificate in PEM.",
            "It begins with -----BEGIN CERTIFICATE-----.",
        )
        return
    first = min(certificates, key=lambda each: each.not_valid_after_utc)
    ends = first.not_valid_after_utc
    name = first.subject.rfc4514_string()
    now = datetime.now(UTC)
    if ends <= now:
        yield failure(f"{setting}: {name} in {path} ended at {ends:%F %R} UTC.", "Renew it.")
    elif ends <= now + SOON:
        yield warning(f"{setting}: {name} in {path} ends at {ends:%F %R} UTC.", "Renew it.")
    else:
        yield ok(f"{setting}: {len(certificates)} in {path}, valid until {ends:%F}")


def size_of(*files: Path) -> int:
    """Bytes that files have now; those that are not there have none."""
    return sum(os.stat(file).st_size for file in files if file.exists())  # noqa: PTH116
