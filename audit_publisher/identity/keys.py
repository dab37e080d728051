"""Public keys: reading them, naming them, and verifying what they signed."""

from __future__ import annotations

import hashlib
from functools import cache
from typing import Any

from audit_logging.message_signatures import Algorithm, padding_and_hash

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


_padding_and_hash = cache(padding_and_hash)


def fingerprint(pem: str) -> str:
    """SHA-256 of the key in DER, in hex: what ``openssl pkey -pubin -outform der | sha256sum``
    prints."""
    from cryptography.hazmat.primitives import serialization

    der = load_public_key(pem).public_bytes(
        serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    return hashlib.sha256(der).hexdigest()


def verifies(
    key: Any, signature: bytes, message: bytes, algorithm: Algorithm = "rsa-v1_5-sha256"
) -> bool:
    """Whether `signature` over `message` was made with the private half of `key`."""
    from cryptography.exceptions import InvalidSignature

    try:
        key.verify(signature, message, *_padding_and_hash(algorithm))
    except (InvalidSignature, ValueError):
        return False
    return True
