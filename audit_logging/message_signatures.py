"""HTTP message signatures (RFC 9421) with Content-Digest (RFC 9530), as this log uses them.

What signer and verifier must agree on to the byte: the digest of a body, the signature base, and
the two algorithms. It needs nothing but ``cryptography``; docs/signatures.md has it for people.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterable
from functools import lru_cache
from typing import Any, Literal

INPUT = "Signature-Input"
SIGNATURE = "Signature"
DIGEST = "Content-Digest"

#: The label under which we sign; a verifier takes any.
LABEL = "audit"

Algorithm = Literal["rsa-v1_5-sha256", "rsa-pss-sha512"]
ALGORITHMS: tuple[Algorithm, ...] = ("rsa-v1_5-sha256", "rsa-pss-sha512")


def content_digest(body: bytes) -> str:
    """The Content-Digest of a body, as its bytes are sent: compressed, if they are."""
    return f"sha-256=:{base64.b64encode(hashlib.sha256(body).digest()).decode()}:"


@lru_cache(maxsize=1024)
def quoted(text: str) -> str:
    """`text` as a string of structured fields (RFC 8941).

    :raises ValueError: it holds what such a string cannot.
    """
    if not text.isascii() or not text.isprintable():
        raise ValueError(f"{text!r} is not printable ASCII")
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


def signature_base(components: Iterable[tuple[str, str]], params: str) -> bytes:
    """The bytes that are signed.

    :param components: name and value of each, in the order of `params`.
    :param params: the inner list with its parameters, as in Signature-Input.
    """
    lines = [f"{quoted(name)}: {value}\n" for name, value in components]
    return f'{"".join(lines)}"@signature-params": {params}'.encode()


def padding_and_hash(algorithm: Algorithm) -> tuple[Any, Any]:
    """What ``cryptography`` calls the algorithm."""
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.asymmetric import padding

    if algorithm == "rsa-pss-sha512":
        # The salt's length is the standard's.
        return padding.PSS(mgf=padding.MGF1(hashes.SHA512()), salt_length=64), hashes.SHA512()
    return padding.PKCS1v15(), hashes.SHA256()
