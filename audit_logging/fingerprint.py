"""Which token a caller came with, told without telling the token.

A fingerprint is a keyed hash: equal for equal tokens, and of no use to who has no key, not even
for trying out likely passwords. Services that share a key share fingerprints.
"""

from __future__ import annotations

import base64
import hmac
import logging
import re
import time
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from django.conf import settings
from django.core.exceptions import ImproperlyConfigured

logger = logging.getLogger(__name__)

#: A key file holds as many bytes at least: what is shorter can be tried out.
SHORTEST_KEY = 16
_LARGEST_KEY = 65_536

_LABEL = b"audit_logging token fingerprint 1"
_HEX_DIGITS = 16
#: How often it is looked whether the key file has changed: seconds.
_LOOK_AGAIN = 1.0

_AUTHORIZATION = "HTTP_AUTHORIZATION"
#: Headers that hold a key and nothing else, and what they are called in a fingerprint.
_KEY_HEADERS = {
    "HTTP_X_API_KEY": "x-api-key",
    "HTTP_API_KEY": "api-key",
    "HTTP_OCP_APIM_SUBSCRIPTION_KEY": "ocp-apim-subscription-key",
}
# What is shown of an Authorization header. Another first word may be the token itself.
_SCHEMES = frozenset(
    ("bearer", "basic", "digest", "token", "apikey", "api-key", "key", "jwt", "dpop", "gnap",
     "negotiate", "ntlm", "hawk", "mac", "oauth", "signature", "sharedkey", "aws4-hmac-sha256",
     "wsse", "usernametoken")
)  # fmt: skip
# Schemes that sign each request anew name who signs.
_SIGNER = {
    "digest": "username",
    "hawk": "id",
    "mac": "id",
    "signature": "keyid",
    "oauth": "oauth_token",
    "aws4-hmac-sha256": "credential",
    "usernametoken": "username",
    "wsse": "username",
}


def token_of(meta: Mapping[str, Any]) -> tuple[str, bytes] | None:
    """Return the kind of credential in a request's headers, and what of it stays the same.

    Authorization goes before the headers of API keys.
    """
    value = meta.get(_AUTHORIZATION)
    if isinstance(value, str) and value.strip():
        return _authorization(value.strip())
    for header, kind in _KEY_HEADERS.items():
        value = meta.get(header)
        if isinstance(value, str) and value.strip():
            return kind, _bytes(value.strip())
    return None


def _authorization(value: str) -> tuple[str, bytes]:
    first, *rest = value.split(None, 1)
    scheme = first.lower()
    if not rest or scheme not in _SCHEMES:
        return "other", _bytes(value)
    credential = rest[0]
    if scheme == "basic":
        try:
            # User and password as they are, however they were padded.
            padding = "=" * (-len(credential) % 4)
            return scheme, base64.b64decode(credential + padding, validate=True)
        except ValueError:
            return scheme, _bytes(credential)
    signer = _signer(scheme, credential)
    return scheme, _bytes(credential if signer is None else signer)


def _signer(scheme: str, credential: str) -> str | None:
    name = _SIGNER.get(scheme)
    if name is None:
        return None
    found = re.search(rf'(?i)(?<![\w-]){name}\s?=\s?(?:"([^"]*)"|([^\s,"]+))', credential)
    if found is None:
        return None
    # An access key, and then the day and the place it signs for.
    return (
        (found[1] or found[2] or "").partition("/")[0] if "aws" in scheme else found[1] or found[2]
    )


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")


class KeyFile:
    """A key on disk, read again when it changes there.

    One that cannot be read, or that is too short, leaves the former in force; where there was
    none, there are no fingerprints.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._key: bytes | None = None
        self._stamp: tuple[int, ...] | None = None
        self._complaint = ""
        self._next_look = 0.0

    def key(self, now: float | None = None) -> bytes | None:
        """Return the key, or None.

        :param now: monotonic seconds.
        """
        now = time.monotonic() if now is None else now
        if now >= self._next_look:
            self._next_look = now + _LOOK_AGAIN
            self._look()
        return self._key

    def _look(self) -> None:
        try:
            found = self._path.stat()
            stamp = (found.st_mtime_ns, found.st_size, found.st_ino)
            if stamp == self._stamp:
                return
            with self._path.open("rb") as file:
                key = file.read(_LARGEST_KEY).strip()
        except OSError as error:
            self._complain(error.strerror or type(error).__name__)
            return
        self._stamp = stamp
        if len(key) < SHORTEST_KEY:
            self._complain(f"it holds fewer than {SHORTEST_KEY} bytes")
            return
        self._complaint = ""
        self._key = key

    def _complain(self, what: str) -> None:
        if what != self._complaint:
            self._complaint = what
            logger.warning(
                "FINGERPRINT_KEY_PATH %s: %s; %s", self._path, what,
                "the former key stays in force" if self._key else "there are no fingerprints",
            )  # fmt: skip


_key_file = lru_cache(maxsize=8)(KeyFile)


def _own_key() -> bytes | None:
    """The key of a service that was given none, derived from its SECRET_KEY."""
    try:
        secret = settings.SECRET_KEY
    except (ImproperlyConfigured, AttributeError):
        return None
    if not secret:
        return None
    raw = secret if isinstance(secret, bytes) else _bytes(str(secret))
    return hmac.digest(raw, _LABEL, "sha256")


class Fingerprints:
    """Makes fingerprints with one service's key.

    :param key_path: the file with the key; None: a key of the service's own.
    """

    def __init__(self, key_path: Path | None) -> None:
        self._file = _key_file(key_path) if key_path else None

    def of(self, meta: Mapping[str, Any]) -> str | None:
        """Return the fingerprint of the credential in a request's headers, as ``bearer:3f…``, or
        None: there is none, or no usable key."""
        token = token_of(meta)
        if token is None:
            return None
        key = self._file.key() if self._file else _own_key()
        if not key:
            return None
        kind, credential = token
        return f"{kind}:{hmac.digest(key, credential, 'sha256').hex()[:_HEX_DIGITS]}"
