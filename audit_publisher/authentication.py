"""Who sends a request: its signature against the consumer's public keys, by the rule in force."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any, Protocol

from rest_framework.authentication import BaseAuthentication
from rest_framework.request import Request

from audit_logging import signing

from . import metrics, routing
from .conf import conf
from .http.problems import Problem
from .identity import consumers
from .identity.allowed import EVERY
from .identity.consumers import KnownConsumer, known, refresh
from .identity.message_verification import BODILESS, is_signed, verify_message
from .identity.senders import CHALLENGE, Sender, refused, report
from .identity.signatures import SignatureRefused, verify_legacy

__all__ = ["Sender", "SignatureAuthentication", "identify", "known", "refresh"]

_CONSUMER = "HTTP_" + signing.CONSUMER_ID.replace("-", "_")


class Asked(Protocol):
    """A request, as far as its sender is concerned; Django's are such.

    :ivar META: WSGI's or ASGI's.
    :ivar scheme: of the URL, as the client has it.
    """

    @property
    def META(self) -> Mapping[str, Any]: ...

    @property
    def scheme(self) -> str | None: ...


def identify(request: Asked, now: float) -> Sender:
    """Return who sent a request, as far as the rule in force wants to know.

    Whoever reads its body calls :meth:`Sender.check_body` with it before anything else, and
    :meth:`Sender.answered` in the end.

    :param now: epoch seconds.
    :raises Problem: 401 when the rule is `enforce` and the signature is not good; 503 while
        consumers and topic routes could not be read even once.
    """
    meta = request.META
    # Whatever the rule: each consumer may have a stricter one, or be switched off; and where
    # events go is in the same database. Whoever is told so keeps them, and sends them again.
    if not (known() and routing.known()):
        raise Problem(
            503,
            "Consumers, public keys and topic routes could not be read yet. Try again.",
            code="not-ready",
            retry_after=5,
        )
    everybody = consumers.get()
    claimed = str(meta.get(_CONSUMER, "")).strip()
    consumer = everybody.get(claimed)
    if consumer is not None and not consumer.active:
        metrics.SIGNATURES.labels("inactive").inc()
        raise refused(
            SignatureRefused(
                "inactive", "This consumer is switched off. Ask the operator.", signing.CONSUMER_ID
            )
        )
    mode: str = conf.SIGNATURE
    if consumer is not None and consumer.enforcement != "inherit":
        mode = consumer.enforcement
    sender = Sender(
        claimed,
        # Whom nobody registered is here only where nothing is enforced.
        services=consumer.services if consumer is not None else EVERY,
        callers=consumer.callers if consumer is not None else EVERY,
        enforced=mode == "enforce",
    )
    if mode == "off":
        return sender
    try:
        if is_signed(meta):
            proof = verify_message(meta, everybody, now, request.scheme or "http")
        else:
            proof = verify_legacy(meta, everybody, now)
    except SignatureRefused as refusal:
        report(claimed, refusal, enforced=sender.enforced)
        return sender
    sender.verified = True
    sender.proof = proof
    sender.replay = _replay(proof.consumer, sender.enforced)
    if meta.get("REQUEST_METHOD") in BODILESS:
        sender.accept()
    return sender


def _replay(consumer: KnownConsumer, enforced: bool) -> str:
    mode: str = conf.REPLAY if consumer.replay == "inherit" else consumer.replay
    # Where a bad signature is let in, a good one is not refused for having come before.
    return "report" if mode == "enforce" and not enforced else mode


class SignatureAuthentication(BaseAuthentication):
    """DRF's hook: `request.user` becomes the :class:`Sender`."""

    clock: Callable[[], float] = staticmethod(time.time)

    def authenticate(self, request: Request) -> tuple[Any, None]:
        """Identify the sender, or refuse."""
        return identify(request._request, self.clock()), None

    def authenticate_header(self, request: Request) -> str:
        """What a 401 says is wanted."""
        return CHALLENGE
