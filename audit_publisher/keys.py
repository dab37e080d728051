"""Public keys: reading them, naming them, and verifying what they signed."""

from __future__ import annotations

import base64
import binascii
import hashlib
from typing import Any

MINIMUM_BITS = 2048


def load_public_key(pem: str) -> Any:
    """Return the RSA public key in `pem`.

    :raises ValueError: with a sentence that says what it is instead, and the cure.
    """
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import rsa

    if "PRIVATE KEY" in pem:
        raise ValueError(
            "This is a private key: it must stay with the consumer. Make the public one with "
            "openssl pkey -in private.pem -pubout"
        )
    try:
        key = serialization.load_pem_public_key(pem.strip().encode())
    except (ValueError, UnsupportedAlgorithm) as error:
        raise ValueError(
            "This is not a public key in PEM. It begins with -----BEGIN PUBLIC KEY-----; make it "
            "with openssl pkey -in private.pem -pubout"
        ) from error
    if not isinstance(key, rsa.RSAPublicKey):
        raise ValueError("This is not an RSA key. Use RSA with 2048 bits or more.")
    if key.key_size < MINIMUM_BITS:
        raise ValueError(f"The key has {key.key_size} bits. Use {MINIMUM_BITS} or more.")
    return key


def fingerprint(pem: str) -> str:
    """SHA-256 of the key in DER, in hex: what ``openssl pkey -pubin -outform der | sha256sum``
    prints."""
    from cryptography.hazmat.primitives import serialization

    der = load_public_key(pem).public_bytes(
        serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    return hashlib.sha256(der).hexdigest()


def verifies(key: Any, signature: str, message: bytes) -> bool:
    """Whether `signature` (base64) over `message` was made with the private half of `key`."""
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.asymmetric import padding

    try:
        key.verify(
            base64.b64decode(signature.strip(), validate=True),
            message,
            padding.PKCS1v15(),
            hashes.SHA256(),
        )
    except (InvalidSignature, binascii.Error, ValueError):
        return False
    return True
