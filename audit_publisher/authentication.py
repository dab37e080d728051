"""Who sends a request: its four signature headers against the consumer's public keys."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from django.core.signals import setting_changed
from django.db import close_old_connections
from rest_framework.authentication import BaseAuthentication
from rest_framework.request import Request

from audit_logging import signing
from audit_logging.background import Snapshot

from . import metrics
from .conf import PublisherSettings, conf
from .keys import load_public_key, verifies
from .problems import Problem

logger = logging.getLogger(__name__)

_CHALLENGE = 'Signature realm="audit"'


@dataclass(frozen=True, slots=True)
class Key:
    """One public key; times in epoch seconds."""

    public_key: Any
    not_before: float | None
    not_after: float | None
    revoked: bool


@dataclass(frozen=True, slots=True)
class KnownConsumer:
    """What the admin says of a consumer."""

    active: bool
    enforcement: str
    services: frozenset[str]
    keys: Mapping[str, Key]


@dataclass(frozen=True, slots=True)
class Sender:
    """Who sent a request.

    :ivar consumer_id: as claimed, or "".
    :ivar verified: whether a good signature says so.
    :ivar services: the services it may publish for; empty means every one.
    """

    consumer_id: str = ""
    verified: bool = False
    services: frozenset[str] = frozenset()
    is_authenticated: bool = True

    def may_publish_for(self, service_name: str) -> bool:
        """Whether events of this service may come from this sender."""
        return not self.services or service_name in self.services


class SignatureRefused(Exception):
    """The signature is not good. `reason` is the metric's label; the text is for the sender."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


@lru_cache(maxsize=4096)
def _parsed(pem: str) -> Any:
    return load_public_key(pem)


def _load() -> Mapping[str, KnownConsumer]:
    from .models import Consumer

    found = {}
    for consumer in Consumer.objects.prefetch_related("keys"):
        keys = {}
        for key in consumer.keys.all():
            try:
                public_key = _parsed(key.public_key)
            except ValueError as error:
                logger.error("%s cannot be used: %s", key, error)
                continue
            keys[key.key_version] = Key(
                public_key,
                key.not_before.timestamp() if key.not_before else None,
                key.not_after.timestamp() if key.not_after else None,
                key.revoked,
            )
        found[consumer.consumer_id] = KnownConsumer(
            consumer.active, consumer.enforcement, consumer.services(), keys
        )
    return found


def _snapshot() -> Snapshot[Mapping[str, KnownConsumer]]:
    return Snapshot(
        _load,
        initial={},
        interval=conf.REFRESH_SECONDS,
        name="audit consumers and keys",
        load_first=True,
        # The background thread keeps its connection; one that broke must not be used for ever.
        # A request's, or a test's, is its own to close.
        before=close_old_connections,
    )


_consumers = _snapshot()


def refresh() -> bool:
    """Read consumers and keys now; return whether that worked."""
    return _consumers.refresh()


def known() -> bool:
    """Whether consumers and keys were read at least once."""
    _consumers.get()
    return _consumers.loaded_at is not None


def _received(meta: Mapping[str, Any], header: str) -> str:
    """A signature header exactly as it was received; both spellings arrive under one name."""
    value = meta.get("HTTP_" + header.upper().replace("-", "_"), "")
    if "," in value:
        # Two headers that a server merged: nobody can say which of them was signed.
        raise SignatureRefused("duplicate", f"{header} was sent more than once.")
    if not value.isascii() or len(value) > 4096:
        raise SignatureRefused("malformed", f"{header} is not usable text.")
    return value


def verify(
    meta: Mapping[str, Any], consumers: Mapping[str, KnownConsumer], now: float
) -> KnownConsumer:
    """Return the consumer whose good signature the request carries.

    :param meta: WSGI's or ASGI's META.
    :param now: epoch seconds.
    :raises SignatureRefused: with the reason.
    """
    consumer_id = _received(meta, signing.CONSUMER_ID)
    timestamp = _received(meta, signing.TIMESTAMP)
    key_version = _received(meta, signing.KEY_VERSION)
    signature = _received(meta, signing.SIGNATURE)
    for header, value in (
        (signing.CONSUMER_ID, consumer_id),
        (signing.TIMESTAMP, timestamp),
        (signing.KEY_VERSION, key_version),
        (signing.SIGNATURE, signature),
    ):
        if not value.strip():
            raise SignatureRefused("missing", f"{header} is missing.")
    consumer = consumers.get(consumer_id.strip())
    if consumer is None:
        raise SignatureRefused("unknown_consumer", f"{signing.CONSUMER_ID} is not registered.")
    _check_age(timestamp.strip(), now)
    key = consumer.keys.get(key_version.strip())
    if key is None:
        raise SignatureRefused(
            "unknown_key", f"{signing.KEY_VERSION} is not registered for this consumer."
        )
    if key.revoked:
        raise SignatureRefused("key_revoked", "This key is revoked.")
    if key.not_before is not None and now < key.not_before:
        raise SignatureRefused("key_not_yet_valid", "This key is not valid yet.")
    if key.not_after is not None and now >= key.not_after:
        raise SignatureRefused("key_expired", "This key is no longer valid.")
    message = signing.canonical(consumer_id, timestamp, key_version)
    if not verifies(key.public_key, signature, message):
        raise SignatureRefused("bad_signature", f"{signing.SIGNATURE} does not fit its headers.")
    return consumer


def _check_age(timestamp: str, now: float) -> None:
    if not timestamp.isdigit() or len(timestamp) > 16:
        raise SignatureRefused("malformed", f"{signing.TIMESTAMP} is not epoch milliseconds.")
    age = now - int(timestamp) / 1000
    if age > conf.SIGNATURE_MAX_AGE:
        raise SignatureRefused(
            "expired",
            f"The signature is {age:.0f} s old; {conf.SIGNATURE_MAX_AGE:g} s are allowed.",
        )
    if age < -conf.SIGNATURE_FUTURE_SKEW:
        raise SignatureRefused(
            "future", f"The signature is from {-age:.0f} s ahead of our clock; set yours."
        )


def _refused(reason: str, detail: str) -> Problem:
    return Problem(401, detail, headers={"WWW-Authenticate": _CHALLENGE}, reason=reason)


def identify(meta: Mapping[str, Any], now: float) -> Sender:
    """Return who sent a request, as far as the rule in force wants to know.

    :raises Problem: 401 when the rule is `enforce` and the signature is not good; 503 while the
        keys could not be read even once.
    """
    consumers = _consumers.get()
    claimed = str(meta.get("HTTP_" + signing.CONSUMER_ID.replace("-", "_"), "")).strip()
    known = consumers.get(claimed)
    if known is not None and not known.active:
        metrics.SIGNATURES.labels("inactive").inc()
        raise _refused("inactive", "This consumer is switched off.")
    mode: str = conf.SIGNATURE
    if known is not None and known.enforcement != "inherit":
        mode = known.enforcement
    services = known.services if known is not None else frozenset()
    if mode == "off":
        return Sender(claimed, services=services)
    if _consumers.loaded_at is None:
        raise Problem(503, "Public keys could not be read yet. Try again.", retry_after=5)
    try:
        consumer = verify(meta, consumers, now)
    except SignatureRefused as refusal:
        metrics.SIGNATURES.labels(refusal.reason).inc()
        if mode == "enforce":
            raise _refused(refusal.reason, str(refusal)) from refusal
        logger.warning("Consumer %r: %s (reported, not enforced)", claimed[:200], refusal)
        return Sender(claimed, services=services)
    metrics.SIGNATURES.labels("ok").inc()
    return Sender(claimed, verified=True, services=consumer.services)


class SignatureAuthentication(BaseAuthentication):
    """DRF's hook: `request.user` becomes the :class:`Sender`."""

    clock: Callable[[], float] = staticmethod(time.time)

    def authenticate(self, request: Request) -> tuple[Any, None]:
        """Identify the sender, or refuse."""
        return identify(request.META, self.clock()), None

    def authenticate_header(self, request: Request) -> str:
        """What a 401 says is wanted."""
        return _CHALLENGE


def _reconfigure(*, setting: str, **kwargs: Any) -> None:
    global _consumers
    if setting == PublisherSettings.prefix:
        _consumers.stop(0)
        _consumers = _snapshot()


setting_changed.connect(_reconfigure)
