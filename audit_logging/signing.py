"""Signatures of deliveries, in one of two schemes; docs/signatures.md tells them for people.

The legacy scheme is the public one of the partner APIs this log serves: the canonical string is the
values of WM_CONSUMER.ID, WM_CONSUMER.INTIMESTAMP and WM_SEC.KEY_VERSION, in the order of the
sorted header names, each stripped and followed by a newline; RSA PKCS#1 v1.5 with SHA-256, in
base64. Method, path and body are not covered. Message signatures cover them: see
:mod:`.message_signatures`.
"""

from __future__ import annotations

import base64
import logging
import re
import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from . import message_signatures as messages
from .exceptions import AuditLoggingError

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey

logger = logging.getLogger(__name__)

# Hyphen spellings: servers and proxies drop header names with underscores.
#: The headers by which a body is read.
READ_BY = frozenset({"content-type", "content-encoding"})

CONSUMER_ID = "WM-CONSUMER.ID"
TIMESTAMP = "WM-CONSUMER.INTIMESTAMP"
KEY_VERSION = "WM-SEC.KEY-VERSION"
SIGNATURE = "WM-SEC.AUTH-SIGNATURE"

#: What a delivery is signed with: the legacy scheme, or a message signature of this algorithm.
Scheme = Literal["legacy", "rsa-v1_5-sha256", "rsa-pss-sha512"]

#: What may stand in a header, and sorts; a leading dot is a hidden file.
_VERSION = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,63}", re.ASCII)
_DIGITS = re.compile(r"([0-9]+)")


class SigningError(AuditLoggingError):
    """The private key cannot be read or used."""


def canonical(consumer_id: str, timestamp: str, key_version: str) -> bytes:
    """Return the bytes that are signed.

    :param timestamp: epoch milliseconds, as the header has it.
    """
    return "".join(f"{part.strip()}\n" for part in (consumer_id, timestamp, key_version)).encode()


@dataclass(frozen=True)
class SigningKey:
    """A private key and the version it is registered under: always changed together."""

    version: str
    key: RSAPrivateKey


class Signer:
    """Signs for one consumer with a key from disk, read again whenever it changes there.

    :param consumer_id: the id under which the publisher knows the public key.
    :param key_version: the version under which it knows it; not used where `key_path` is a folder.
    :param key_path: a PEM file with an RSA private key, not encrypted; or a folder of such files,
        each named ``<key version>.pem``. Of a folder the highest version that can be used signs
        (10 is higher than 9), so that key and version change in one step: the file appears.
    :param scheme: how :meth:`sign` signs.
    :param nonce: makes what tells one message signature from every other.
    """

    def __init__(
        self,
        consumer_id: str,
        key_version: str,
        key_path: Path,
        scheme: Scheme = "legacy",
        nonce: Callable[[], str] = lambda: secrets.token_urlsafe(18),
    ) -> None:
        self.consumer_id = consumer_id
        self.key_version = key_version
        self.key_path = Path(key_path)
        self.scheme = scheme
        self._nonce = nonce
        self._stamp: object = None
        self._current: SigningKey | None = None

    def sign(
        self,
        method: str,
        target: str,
        body: bytes | None,
        now_ms: int,
        sent: Mapping[str, str] | None = None,
    ) -> dict[str, str]:
        """Return the headers that sign one request, in the scheme that was chosen.

        :param target: path and query, as they are sent.
        :param body: as it is sent; None: there is none.
        :param now_ms: when it is sent, epoch milliseconds. Each try is signed anew.
        :param sent: the request's other headers. What says how to read the body is covered.
        :raises SigningError: naming what is wrong with the key.
        """
        if self.scheme == "legacy":
            return self.headers(now_ms)
        consumer_id = self._named()
        current = self.current()
        path, mark, query = target.partition("?")
        components = [("@method", method), ("@path", path)]
        headers = {CONSUMER_ID: consumer_id}
        if mark:
            components.append(("@query", f"?{query}"))
        if body is not None:
            headers[messages.DIGEST] = messages.content_digest(body)
            components.append((messages.DIGEST.lower(), headers[messages.DIGEST]))
        for name, value in (sent or {}).items():
            if name.lower() in READ_BY:
                components.append((name.lower(), value.strip()))
        components.append((CONSUMER_ID.lower(), consumer_id))
        try:
            names = " ".join(messages.quoted(name) for name, _ in components)
            keyid = messages.quoted(f"{consumer_id}:{current.version}")
        except ValueError as error:
            raise SigningError(f"CONSUMER_ID or KEY_VERSION: {error}.") from error
        params = (
            f"({names});created={now_ms // 1000};keyid={keyid}"
            f';alg="{self.scheme}";nonce="{self._nonce()}"'
        )
        signature = current.key.sign(
            messages.signature_base(components, params),
            *messages.padding_and_hash(self.scheme),
        )
        return headers | {
            messages.INPUT: f"{messages.LABEL}={params}",
            messages.SIGNATURE: f"{messages.LABEL}=:{base64.b64encode(signature).decode()}:",
        }

    def _named(self) -> str:
        if not self.consumer_id.strip():
            raise SigningError("CONSUMER_ID is empty: a signature needs it.")
        return self.consumer_id.strip()

    def headers(self, now_ms: int) -> dict[str, str]:
        """Return the four headers of the legacy scheme for a request made at `now_ms` (epoch ms).

        :raises SigningError: naming what is wrong with the key.
        """
        self._named()
        timestamp = str(now_ms)
        # Once, as another thread may find a newer one meanwhile.
        current = self.current()
        signature = current.key.sign(
            canonical(self.consumer_id, timestamp, current.version),
            *messages.padding_and_hash("rsa-v1_5-sha256"),
        )
        return {
            CONSUMER_ID: self.consumer_id,
            TIMESTAMP: timestamp,
            KEY_VERSION: current.version,
            SIGNATURE: base64.b64encode(signature).decode(),
        }

    def current(self) -> SigningKey:
        """Return the key to sign with now.

        :raises SigningError: there is none that can be used, and there never was.
        """
        try:
            # Before the reading: what changes while we read is read again the next time.
            stamp = self._look()
            if self._current is not None and stamp == self._stamp:
                return self._current
            found = self._newest() if self.key_path.is_dir() else self._single()
        except OSError as error:
            if self._current is not None:
                # Between unmount and mount of a rotated secret the old key still serves.
                return self._current
            raise SigningError(f"PRIVATE_KEY_PATH: {error.strerror}: {self.key_path}") from error
        if self._current is not None and found.version != self._current.version:
            logger.info("deliveries are signed with key version %s now", found.version)
        self._current, self._stamp = found, stamp
        return found

    def _look(self) -> object:
        """Say what lies there, so that a change is seen."""
        if not self.key_path.is_dir():
            return _stamp(self.key_path)
        return tuple((path.name, _stamp(path)) for path in _key_files(self.key_path))

    def _single(self) -> SigningKey:
        return SigningKey(self.key_version, load_private_key(self.key_path))

    def _newest(self) -> SigningKey:
        problems = []
        for path in _key_files(self.key_path):
            try:
                return SigningKey(path.stem, load_private_key(path))
            except OSError as error:
                # Taken away since the folder was listed.
                problems.append(f"PRIVATE_KEY_PATH: {error.strerror}: {path}")
            except SigningError as error:
                # Half copied, perhaps: the next lower version signs until it is whole.
                problems.append(str(error))
                logger.warning("a signing key is passed over: %s", error)
        if self._current is not None:
            return self._current
        if problems:
            raise SigningError(" ".join(problems))
        raise SigningError(
            f"PRIVATE_KEY_PATH: {self.key_path} holds no key. Name each file <key version>.pem."
        )


def load_private_key(path: Path) -> RSAPrivateKey:
    """Read an RSA private key.

    :raises SigningError: it is none that can be used.
    :raises OSError: the file cannot be read.
    """
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    try:
        key = load_pem_private_key(path.read_bytes(), password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise SigningError(
            f"PRIVATE_KEY_PATH: {path} is not an unencrypted PEM private key."
        ) from error
    if not isinstance(key, RSAPrivateKey):
        raise SigningError(f"PRIVATE_KEY_PATH: {path} is not an RSA key.")
    return key


def _stamp(path: Path) -> tuple[int, int, int] | None:
    try:
        stat = path.stat()
    except FileNotFoundError:
        return None
    # A mounted secret is replaced by a new inode, possibly within the same second.
    return (stat.st_ino, stat.st_mtime_ns, stat.st_size)


def _key_files(folder: Path) -> list[Path]:
    """The keys of a folder, highest version first; names that are no version are left out."""
    found = [
        path
        for path in folder.iterdir()
        # What begins with a dot is the mount's own. The version becomes a header.
        if path.suffix == ".pem" and _VERSION.fullmatch(path.stem)
    ]
    return sorted(found, key=lambda path: (_order(path.stem), path.stem), reverse=True)


def _order(version: str) -> list[tuple[int, int, str]]:
    """A sort key by which numbers within a version count as numbers."""
    return [
        (1, int(part), "") if part.isdigit() else (0, 0, part)
        for part in _DIGITS.split(version)
        if part
    ]
