"""Which signed requests were taken already, known to every process while they could come again.

A request is claimed before anything of it is taken. Once it is answered the claim is settled: kept
until the signature is too old for anybody, if the answer was a 2xx; given back, if nothing was
taken. A process that is killed in between leaves a claim that lapses.

Processes of one host share a file; hosts share one of Django's caches, if REPLAY_CACHE names it.
A store that fails refuses nobody: what is taken twice is still one row of the lake, and what is
refused may be lost. It is counted, and left alone for some seconds.
"""

from __future__ import annotations

import hashlib
import logging
import math
import random
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol, TypeVar

from django.core.signals import setting_changed

from .. import metrics
from ..conf import PublisherSettings, conf
from .replay_file import FileClaims

logger = logging.getLogger(__name__)

T = TypeVar("T")

#: Seconds after which a claim that nobody settled lapses, unless requests may take longer.
LEASE = 45.0
#: Seconds for which a store that failed is not asked.
PAUSE = 5.0
#: Seconds that a cache may take to answer. Its client's own limit may be longer, or none.
PATIENCE = 1.0
#: Questions that may wait for a cache at a time, in one process.
_ASKERS = 8

#: What a claim may come to, beside a token.
TAKEN, BUSY = "taken", "busy"


class Claims(Protocol):
    """Where claims are kept."""

    def claim(self, key: bytes, token: int, now: float, until: float) -> str | None:
        """Claim `key` until `until`, for `token`; return TAKEN or BUSY if somebody was first.

        :raises Exception: the store failed, or cannot tell.
        """

    def keep(self, key: bytes, token: int, now: float, until: float) -> None:
        """The request was taken: nobody claims `key` before `until`."""

    def release(self, key: bytes, token: int) -> None:
        """Nothing was taken: `key` may be claimed anew, if it is still this token's."""


class CacheClaims:
    """Claims in one of Django's caches, for publishers on several hosts.

    :param alias: of CACHES.
    :param patience: seconds after which a question counts as failed.
    """

    def __init__(self, alias: str, patience: float = PATIENCE) -> None:
        from django.core.cache import caches

        # Whether it exists is told now. Each thread has a client of its own.
        caches[alias]
        self._cache: Callable[[], Any] = lambda: caches[alias]
        self._patience = patience
        # A question that nobody answers keeps its thread, and those behind it give up in time.
        self._askers = ThreadPoolExecutor(_ASKERS, thread_name_prefix="audit replay cache")

    def _ask(self, look: Callable[..., T], *arguments: Any) -> T:
        asked = self._askers.submit(look, *arguments)
        try:
            return asked.result(self._patience)
        except TimeoutError:
            asked.cancel()
            raise TimeoutError(f"no answer within {self._patience:g} s") from None

    @staticmethod
    def _name(key: bytes) -> str:
        return f"audit-replay-{key.hex()}"

    def claim(self, key: bytes, token: int, now: float, until: float) -> str | None:
        """See :class:`Claims`."""
        return self._ask(self._claim, self._name(key), token, until - now)

    def _claim(self, name: str, token: int, seconds: float) -> str | None:
        cache = self._cache()
        # Whoever adds is the first: the one thing that caches do in one step.
        if cache.add(name, token, max(1, round(seconds + 0.5))):
            return None
        found = cache.get(name)
        if found is None:
            raise LookupError("the cache neither takes a claim nor has one")
        return TAKEN if found == 0 else BUSY

    def keep(self, key: bytes, token: int, now: float, until: float) -> None:
        """See :class:`Claims`."""
        seconds = max(1, round(until - now + 0.5))
        self._ask(lambda: self._cache().set(self._name(key), 0, seconds))

    def release(self, key: bytes, token: int) -> None:
        """See :class:`Claims`."""
        self._ask(self._release, self._name(key), token)

    def _release(self, name: str, token: int) -> None:
        cache = self._cache()
        if cache.get(name) == token:
            cache.delete(name)


class Claim:
    """What one request holds until it is answered."""

    __slots__ = ("_key", "_memory", "_token", "_until")

    def __init__(self, memory: Memory, key: bytes, token: int, until: float) -> None:
        self._memory = memory
        self._key = key
        self._token = token
        self._until = until

    def settle(self, taken: bool) -> None:
        """The request was answered; never raises.

        :param taken: whether with a 2xx.
        """
        self._memory.settle(self._key, self._token, self._until, taken)


class Memory:
    """Remembers which requests were taken; one per process.

    :param claims: makes the store, at first use.
    :param clock: returns epoch seconds: hosts have them in common.
    :param lease: seconds until a claim lapses; longer than any request takes.
    :param waits: returns seconds, monotonic: a clock that is set back prolongs no pause.
    """

    def __init__(
        self,
        claims: Callable[[], Claims],
        clock: Callable[[], float] = time.time,
        lease: float = LEASE,
        waits: Callable[[], float] = time.monotonic,
    ) -> None:
        self._make = claims
        self._claims: Claims | None = None
        self._clock = clock
        self._lease = lease
        self._waits = waits
        self._resting_until = -math.inf
        self._lock = threading.Lock()

    def claim(self, identity: bytes, until: float) -> Claim | str | None:
        """Claim a request before it is taken.

        :param identity: tells it from every other.
        :param until: epoch seconds after which its signature is too old.
        :returns: a claim to settle; TAKEN or BUSY (somebody else has it, and is not done); None if
            the store cannot tell.
        """
        if self._waits() < self._resting_until:
            metrics.REPLAYS_UNSEEN.labels("store").inc()
            return None
        now = self._clock()
        key = hashlib.sha256(identity).digest()[:16]
        # 0 is what was taken.
        token = random.getrandbits(62) + 1
        try:
            found = self._store().claim(key, token, now, now + self._lease)
        except Exception as error:  # noqa: BLE001  # whatever a cache's client raises
            metrics.REPLAYS_UNSEEN.labels("store").inc()
            self._failed(error)
            return None
        return found if found is not None else Claim(self, key, token, until)

    def settle(self, key: bytes, token: int, until: float, taken: bool) -> None:
        """See :meth:`Claim.settle`."""
        if self._waits() < self._resting_until:
            # Nobody waits for a store that fails; the claim lapses by itself.
            return
        now = self._clock()
        try:
            if taken:
                self._store().keep(key, token, now, until)
            else:
                self._store().release(key, token)
        except Exception as error:  # noqa: BLE001  # see above
            self._failed(error)

    def _store(self) -> Claims:
        if self._claims is None:
            with self._lock:
                self._claims = self._claims or self._make()
        return self._claims

    def _failed(self, error: Exception) -> None:
        now = self._waits()
        if now >= self._resting_until:
            logger.warning(
                "Requests are taken without looking for replays for %g s: %s: %s",
                PAUSE,
                type(error).__name__,
                error,
            )
        self._resting_until = now + PAUSE


def _claims() -> Claims:
    if conf.REPLAY_CACHE:
        return CacheClaims(conf.REPLAY_CACHE)
    return FileClaims(conf.spool_dir() / "replays-1.bin")


def _fresh() -> Memory:
    # Two regions and the spool, one after the other, and as long again.
    return Memory(_claims, lease=max(LEASE, 2 * (2 * conf.DELIVERY_TIMEOUT + 10)))


_memory = _fresh()


def get_memory() -> Memory:
    """This process's memory of requests."""
    return _memory


def _reconfigure(*, setting: str, **kwargs: object) -> None:
    global _memory
    if setting in (PublisherSettings.prefix, "CACHES"):
        _memory = _fresh()


setting_changed.connect(_reconfigure)
