"""What both kinds of signature share, and the legacy one: four headers, verified as received."""

from __future__ import annotations

import binascii
import hashlib
import hmac
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from audit_logging import signing

from ..conf import conf
from .consumers import Key, KnownConsumer
from .keys import verifies

#: Digests that a body is compared with, by their names in Content-Digest.
DIGESTS = {"sha-256": hashlib.sha256, "sha-512": hashlib.sha512}


class SignatureRefused(Exception):
    """The signature is not good.

    :ivar reason: the metric's label.
    :ivar header: the request header at fault, if it is one.
    """

    def __init__(self, reason: str, message: str, header: str | None = None) -> None:
        super().__init__(message)
        self.reason = reason
        self.header = header


@dataclass(frozen=True, slots=True)
class Proof:
    """A good signature, and what is still to be seen.

    :ivar consumer: whose it is.
    :ivar identity: tells the signature from every other one that is good at this time. That of the
        legacy scheme belongs to all requests that were signed in one millisecond.
    :ivar until: epoch seconds after which nobody accepts it.
    :ivar digests: what the body's bytes must come to, by the names in DIGESTS; none: it is not
        covered.
    """

    consumer: KnownConsumer
    identity: bytes
    until: float
    digests: Mapping[str, bytes] | None = None

    def check_body(self, raw: bytes) -> None:
        """Compare the body, as it was received, with the digest that was signed.

        :raises SignatureRefused: it is another one.
        """
        for name, digest in (self.digests or {}).items():
            if not hmac.compare_digest(DIGESTS[name](raw).digest(), digest):
                raise SignatureRefused(
                    "bad_digest",
                    f"Content-Digest ({name}) does not fit the body as it arrived. Digest the "
                    "bytes that are sent, after compression; a proxy must not change them.",
                    "Content-Digest",
                )


def received(meta: Mapping[str, Any], header: str) -> str:
    """A signature header exactly as it was received; both spellings arrive under one name.

    :raises SignatureRefused: it came twice, or cannot be used.
    """
    value = meta.get("HTTP_" + header.upper().replace("-", "_"), "")
    if "," in value:
        # Two headers that a server merged: nobody can say which of them was signed.
        raise SignatureRefused("duplicate", f"{header} was sent more than once.", header)
    if not value.isascii() or len(value) > 4096:
        raise SignatureRefused("malformed", f"{header} is not usable text.", header)
    return value


def check_age(created: float, now: float, header: str) -> float:
    """Refuse what was signed too long ago, or too far ahead; return until when it is accepted.

    :param created: epoch seconds.
    """
    age = now - created
    if age > conf.SIGNATURE_MAX_AGE:
        raise SignatureRefused(
            "expired",
            f"The signature is {age:.0f} s old; {conf.SIGNATURE_MAX_AGE:g} s are allowed. Sign "
            "each request when it is sent, and set the sender's clock.",
            header,
        )
    if age < -conf.SIGNATURE_FUTURE_SKEW:
        raise SignatureRefused(
            "future", f"The signature is from {-age:.0f} s ahead of our clock; set yours.", header
        )
    # Another publisher's clock may be as far behind ours as a sender's may be ahead.
    return created + conf.SIGNATURE_MAX_AGE + conf.SIGNATURE_FUTURE_SKEW


def key_of(consumer: KnownConsumer, version: str, now: float, header: str) -> Key:
    """The consumer's key of this version, which must be in use.

    :raises SignatureRefused: it is not.
    """
    key = consumer.keys.get(version)
    if key is None:
        raise SignatureRefused(
            "unknown_key",
            f"The key version in {header} is not registered for this consumer. Register it: "
            "manage.py audit_key add.",
            header,
        )
    if key.revoked:
        raise SignatureRefused("key_revoked", "This key is revoked. Sign with another.", header)
    if key.not_before is not None and now < key.not_before:
        raise SignatureRefused("key_not_yet_valid", "This key is not valid yet.", header)
    if key.not_after is not None and now >= key.not_after:
        raise SignatureRefused(
            "key_expired", "This key is no longer valid. Sign with a newer one.", header
        )
    return key


def verify_legacy(
    meta: Mapping[str, Any], consumers: Mapping[str, KnownConsumer], now: float
) -> Proof:
    """Return what the four headers of the legacy scheme prove.

    :param meta: WSGI's or ASGI's META.
    :param now: epoch seconds.
    :raises SignatureRefused: with the reason.
    """
    consumer_id = received(meta, signing.CONSUMER_ID)
    timestamp = received(meta, signing.TIMESTAMP)
    key_version = received(meta, signing.KEY_VERSION)
    signature = received(meta, signing.SIGNATURE)
    for header, value in (
        (signing.CONSUMER_ID, consumer_id),
        (signing.TIMESTAMP, timestamp),
        (signing.KEY_VERSION, key_version),
        (signing.SIGNATURE, signature),
    ):
        if not value.strip():
            raise SignatureRefused("missing", f"{header} is missing.", header)
    consumer = consumers.get(consumer_id.strip())
    if consumer is None:
        raise unknown_consumer()
    if consumer.message_only:
        raise SignatureRefused(
            "weak_scheme",
            "This consumer signs messages (RFC 9421, Signature-Input); the legacy signature is "
            "not enough. Set AUDIT_LOGGING_SIGNATURE_SCHEME, or accept both in its admin page.",
            signing.SIGNATURE,
        )
    digits = timestamp.strip()
    if not digits.isdigit() or len(digits) > 16:
        raise SignatureRefused(
            "malformed", f"{signing.TIMESTAMP} is not epoch milliseconds.", signing.TIMESTAMP
        )
    until = check_age(int(digits) / 1000, now, signing.TIMESTAMP)
    key = key_of(consumer, key_version.strip(), now, signing.KEY_VERSION)
    message = signing.canonical(consumer_id, timestamp, key_version)
    try:
        raw = binascii.a2b_base64(signature.strip(), strict_mode=True)
    except binascii.Error:
        raw = b""
    if not verifies(key.public_key, raw, message):
        raise SignatureRefused(
            "bad_signature",
            f"{signing.SIGNATURE} does not fit its headers. Sign what was sent in them with the "
            "private half of the registered key.",
            signing.SIGNATURE,
        )
    return Proof(consumer, b"legacy\n" + message, until)


def unknown_consumer() -> SignatureRefused:
    """Nobody knows who claims to have signed."""
    return SignatureRefused(
        "unknown_consumer",
        f"{signing.CONSUMER_ID} is not registered. Register it with its key: manage.py audit_key "
        "add.",
        signing.CONSUMER_ID,
    )
