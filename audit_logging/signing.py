"""Signatures of deliveries: SHA256withRSA over consumer id, timestamp and key version.

The scheme is the public one of the partner APIs this log serves: the canonical string is the
values of WM_CONSUMER.ID, WM_CONSUMER.INTIMESTAMP and WM_SEC.KEY_VERSION, in the order of the
sorted header names, each stripped and followed by a newline; RSA PKCS#1 v1.5 with SHA-256, in
base64. Method, path and body are not covered.
"""

from __future__ import annotations

import base64
from pathlib import Path
from typing import TYPE_CHECKING

from .exceptions import AuditLoggingError

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey

# Hyphen spellings: servers and proxies drop header names with underscores.
CONSUMER_ID = "WM-CONSUMER.ID"
TIMESTAMP = "WM-CONSUMER.INTIMESTAMP"
KEY_VERSION = "WM-SEC.KEY-VERSION"
SIGNATURE = "WM-SEC.AUTH-SIGNATURE"


class SigningError(AuditLoggingError):
    """The private key cannot be read or used."""


def canonical(consumer_id: str, timestamp: str, key_version: str) -> bytes:
    """Return the bytes that are signed.

    :param timestamp: epoch milliseconds, as the header has it.
    """
    return "".join(f"{part.strip()}\n" for part in (consumer_id, timestamp, key_version)).encode()


class Signer:
    """Signs for one consumer with the key in a file, read again whenever the file changes.

    :param consumer_id: the id under which the publisher knows the public key.
    :param key_version: the version under which it knows it.
    :param key_path: PEM file with an RSA private key, not encrypted.
    """

    def __init__(self, consumer_id: str, key_version: str, key_path: Path) -> None:
        self.consumer_id = consumer_id
        self.key_version = key_version
        self.key_path = Path(key_path)
        self._stamp: tuple[int, int, int] | None = None
        self._key: RSAPrivateKey | None = None

    def headers(self, now_ms: int) -> dict[str, str]:
        """Return the four signature headers for a request made at `now_ms` (epoch ms).

        :raises SigningError: naming what is wrong with the key.
        """
        from cryptography.hazmat.primitives import hashes
        from cryptography.hazmat.primitives.asymmetric import padding

        if not self.consumer_id:
            raise SigningError("CONSUMER_ID is empty: a signature needs it.")
        timestamp = str(now_ms)
        signature = self._load().sign(
            canonical(self.consumer_id, timestamp, self.key_version),
            padding.PKCS1v15(),
            hashes.SHA256(),
        )
        return {
            CONSUMER_ID: self.consumer_id,
            TIMESTAMP: timestamp,
            KEY_VERSION: self.key_version,
            SIGNATURE: base64.b64encode(signature).decode(),
        }

    def _load(self) -> RSAPrivateKey:
        from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey
        from cryptography.hazmat.primitives.serialization import load_pem_private_key

        try:
            stat = self.key_path.stat()
            # A mounted secret is replaced by a new inode, possibly within the same second.
            stamp = (stat.st_ino, stat.st_mtime_ns, stat.st_size)
            if self._key is not None and stamp == self._stamp:
                return self._key
            key = load_pem_private_key(self.key_path.read_bytes(), password=None)
        except OSError as error:
            if self._key is not None:
                # Between unmount and mount of a rotated secret the old key still serves.
                return self._key
            raise SigningError(f"PRIVATE_KEY_PATH: {error.strerror}: {self.key_path}") from error
        except (ValueError, TypeError) as error:
            raise SigningError(
                f"PRIVATE_KEY_PATH: {self.key_path} is not an unencrypted PEM private key."
            ) from error
        if not isinstance(key, RSAPrivateKey):
            raise SigningError(f"PRIVATE_KEY_PATH: {self.key_path} is not an RSA key.")
        self._key, self._stamp = key, stamp
        return key
