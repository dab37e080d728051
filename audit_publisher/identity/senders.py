"""Who sent a request, what the sender may do, and what is still to be checked of the request."""

from __future__ import annotations

import hashlib
import logging
import math
import time
from collections.abc import Callable
from dataclasses import dataclass

from django.core.signals import setting_changed

from .. import metrics
from ..conf import PublisherSettings
from ..http.problems import Problem
from .allowed import Allowed
from .replay import TAKEN, Claim, get_memory
from .signatures import Proof, SignatureRefused

logger = logging.getLogger(__name__)

CHALLENGE = 'Signature realm="audit"'
#: Seconds after which a request may be sent again whose twin is being taken.
_BUSY_RETRY = 1
#: Seconds for which the log says nothing again of one consumer's refusals for one reason, and how
#: many such lines it gets meanwhile.
_MINUTE = 60.0
_MOST_LINES = 20


def refused(refusal: SignatureRefused) -> Problem:
    """The answer to a request whose signature is not good."""
    return Problem(
        401,
        str(refusal),
        header=refusal.header,
        headers={"WWW-Authenticate": CHALLENGE},
        reason=refusal.reason,
    )


@dataclass(slots=True)
class Sender:
    """Who sent a request. As it is made by default it may do nothing.

    :ivar consumer_id: as claimed, or "".
    :ivar verified: whether a good signature says so.
    :ivar services: the services it may publish for.
    :ivar callers: the consumer ids that its events may name, beside its own.
    :ivar proof: of the signature, until the body has been compared with it.
    :ivar enforced: whether what is wrong with the signature is refused, not only reported.
    :ivar replay: what a request gets that was taken before: off, report or enforce.
    :ivar took: whether anything of its request was taken, if it is answered well.
    """

    consumer_id: str = ""
    verified: bool = False
    services: Allowed = Allowed()  # noqa: RUF009  # it cannot change
    callers: Allowed = Allowed()  # noqa: RUF009  # see above
    proof: Proof | None = None
    enforced: bool = False
    replay: str = "off"
    took: bool = True
    _claim: Claim | None = None
    is_authenticated: bool = True

    def may_publish_for(self, service_name: str) -> bool:
        """Whether events of this service may come from this sender."""
        return service_name in self.services

    def may_name(self, consumer_id: str) -> bool:
        """Whether its events may say that this consumer called."""
        return consumer_id == self.consumer_id or consumer_id in self.callers

    def check_body(self, raw: bytes) -> None:
        """See that the signature covers this body, and that the request was not taken before.

        To be called with the body as it was received, before anything of it is used; then
        :meth:`answered` with what became of it.

        :raises Problem: 401 or 409.
        """
        proof, self.proof = self.proof, None
        if proof is None:
            return
        try:
            proof.check_body(raw)
            # A signature that covers no body may honestly come with several.
            identity = proof.identity
            if proof.digests is None:
                identity += hashlib.sha256(raw).digest()
            self._check_replay(identity, proof.until)
        except SignatureRefused as refusal:
            self.verified = self.verified and refusal.reason == "replayed"
            report(self.consumer_id, refusal, enforced=self.enforced)
        else:
            metrics.SIGNATURES.labels("ok").inc()

    def accept(self) -> None:
        """The same for a request without a body, which may be asked again where that is honest."""
        proof = self.proof
        if proof is not None and proof.digests is None and proof.identity.startswith(b"legacy"):
            # It asks, and changes nothing; two processes may ask in one millisecond.
            self.replay = "off"
        self.check_body(b"")

    def _check_replay(self, identity: bytes, until: float) -> None:
        if self.replay == "off":
            return
        found = get_memory().claim(identity, until)
        if found is None:
            return
        if isinstance(found, Claim):
            self._claim = found
            return
        if self.replay == "enforce" and found != TAKEN:
            metrics.SIGNATURES.labels("in_progress").inc()
            raise Problem(
                409,
                "This very request is being taken already. Its answer tells; or send it again.",
                code="in-progress",
                retry_after=_BUSY_RETRY,
            )
        refusal = SignatureRefused(
            "replayed",
            "This very request was taken already: what was answered then holds, and nothing has "
            "to be sent again. To send it anyway, sign it anew.",
        )
        if self.replay == "enforce":
            raise refusal
        report(self.consumer_id, refusal, enforced=False)

    def answered(self, status: int) -> None:
        """The request was answered: what it claimed is kept if something was taken; never raises.

        Whatever was refused may be sent again as it is: also what was answered with 200 and
        nothing but refusals, as a copy is that somebody altered where the signature does not cover.
        """
        claim, self._claim = self._claim, None
        if claim is not None:
            claim.settle(self.took and (200 <= status < 300 or status == 304))


def report(consumer_id: str, refusal: SignatureRefused, *, enforced: bool) -> None:
    """Count what is wrong with a signature; warn of it, or refuse the request.

    :raises Problem: 401, if it is `enforced`.
    """
    metrics.SIGNATURES.labels(refusal.reason).inc()
    if _lines.spare(consumer_id, refusal.reason):
        what = "refused" if enforced else "reported, not enforced"
        logger.warning("Consumer %r: %s (%s)", consumer_id[:200], refusal, what)
    if enforced:
        raise refused(refusal) from refusal


class Lines:
    """Which lines the log gets: one a minute about the same, and few in all, for anybody can ask.

    :param clock: returns seconds, monotonic.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._since = -math.inf
        self._said: set[tuple[str, str]] = set()

    def spare(self, consumer_id: str, reason: str) -> bool:
        """Whether this one may be written now."""
        now = self._clock()
        if now - self._since >= _MINUTE:
            self._since, self._said = now, set()
        key = consumer_id[:200], reason
        if key in self._said or len(self._said) >= _MOST_LINES:
            return False
        self._said.add(key)
        return True


_lines = Lines()


def _reconfigure(*, setting: str, **kwargs: object) -> None:
    global _lines
    if setting == PublisherSettings.prefix:
        _lines = Lines()


setting_changed.connect(_reconfigure)
