"""Delivery: from a Celery worker to the publisher, signed; kept in a spool when it is not there.

A batch ends in one of three places, each durable: with the publisher (it answered that it is), in
the worker's delivery spool (to be sent again), or in the dead-letter store (the publisher refuses
it for good).
"""

from __future__ import annotations

import json
import logging
import os
import random
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote

import urllib3

from . import metrics
from .background import Loop
from .breaker import Breaker
from .conf import LoggingSettings, conf
from .exceptions import DeliveryRefused, RetryLater, SpoolError, SpoolFull
from .signing import Signer, SigningError
from .spool import DurableQueue, Record

logger = logging.getLogger(__name__)

BATCH_PATH = "/v1/logs/api-requests:batch"
FLAGS_PATH = "/v1/config/"

#: Streams of the delivery spool: batches to send again, and single events refused for good.
RETRY_STREAM = "delivery"
DEAD_STREAM = "dead-letters"

#: The batch itself is at fault. Anything else is a publisher, proxy or key to be mended, and no
#: reason to give events up.
_REFUSED = frozenset({400, 413, 415, 422})
_BUSY = frozenset({408, 425, 429, 500, 502, 503, 504})


@dataclass
class Delivered:
    """What the publisher said of each event of a batch, as JSON lines.

    :ivar stored: how many are durable, by status (``published`` or ``spooled``).
    :ivar again: lines that may be sent again.
    :ivar refused: (line, reason) of those refused for good.
    """

    stored: dict[str, int] = field(default_factory=dict)
    again: list[str] = field(default_factory=list)
    refused: list[tuple[str, str]] = field(default_factory=list)


class Publisher:
    """The publisher, over HTTP; one per process, as it keeps connections open."""

    def __init__(
        self, options: LoggingSettings = conf, clock: Callable[[], float] = time.time
    ) -> None:
        self._options = options
        self._clock = clock
        self._base = options.PUBLISHER_URL.rstrip("/")
        timeout = options.DELIVERY_TIMEOUT
        self._pool = urllib3.PoolManager(
            maxsize=4,
            retries=False,
            timeout=urllib3.Timeout(connect=min(3.0, timeout), read=timeout),
        )
        self._signer = (
            Signer(options.CONSUMER_ID, options.KEY_VERSION, options.PRIVATE_KEY_PATH)
            if options.PRIVATE_KEY_PATH is not None
            else None
        )

    def send(self, lines: list[str]) -> Delivered:
        """Post one batch.

        :raises RetryLater: it is not known to be durable; send it again.
        :raises DeliveryRefused: the batch as a whole is refused for good.
        """
        response = self._request(
            "POST",
            BATCH_PATH,
            {"Content-Type": "application/x-ndjson"},
            body="\n".join(lines).encode(),
        )
        if response.status in _REFUSED:
            if len(lines) > 1:
                # Too much at once, or one bad event among good ones.
                return self._halves(lines)
            raise DeliveryRefused(_problem(response))
        if response.status in _BUSY:
            raise RetryLater(_problem(response), _retry_after(response))
        if not 200 <= response.status < 300:
            # A key not yet registered, a clock that is off, a proxy that redirects: there is
            # somebody to mend it, and no sense in asking often.
            raise RetryLater(_problem(response), 5.0)
        return _sort(lines, response)

    def flags(self, service_name: str, etag: str) -> tuple[dict[str, Any], str] | None:
        """Return the flags document of a service and its tag; None when `etag` still holds.

        :raises RetryLater: the publisher does not answer, or not with a document.
        """
        headers = {"If-None-Match": etag} if etag else {}
        response = self._request("GET", FLAGS_PATH + quote(service_name, safe=""), headers)
        if response.status == 304:
            return None
        if response.status != 200:
            raise RetryLater(_problem(response))
        try:
            document = json.loads(response.data)
        except ValueError as error:
            raise RetryLater(f"the publisher's flags are not JSON: {error}") from error
        if not isinstance(document, dict):
            raise RetryLater("the publisher's flags are not a JSON object")
        return document, response.headers.get("ETag", "")

    def _halves(self, lines: list[str]) -> Delivered:
        middle = len(lines) // 2
        total = Delivered()
        for part in (lines[:middle], lines[middle:]):
            try:
                result = self.send(part)
            except RetryLater:
                if not (total.stored or total.refused):
                    raise
                # What the first half came to is known: only the second is sent again.
                result = Delivered(again=part)
            except DeliveryRefused as error:
                result = Delivered(refused=[(line, str(error)) for line in part])
            for status, count in result.stored.items():
                total.stored[status] = total.stored.get(status, 0) + count
            total.again += result.again
            total.refused += result.refused
        return total

    def _request(
        self, method: str, path: str, headers: dict[str, str], body: bytes | None = None
    ) -> urllib3.BaseHTTPResponse:
        try:
            if self._signer is not None:
                headers = headers | self._signer.headers(int(self._clock() * 1000))
            return self._pool.request(
                method, self._base + path, body=body, headers=headers, redirect=False
            )
        except SigningError as error:
            raise RetryLater(str(error), 5.0) from error
        except urllib3.exceptions.HTTPError as error:
            raise RetryLater(f"the publisher at {self._base} does not answer: {error}") from error


class Deliverer:
    """Sends batches, retries, and keeps what cannot be sent; one per worker process."""

    def __init__(
        self,
        publisher: Publisher,
        options: LoggingSettings = conf,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._publisher = publisher
        self._options = options
        self._sleep = sleep
        self.spool = DurableQueue(
            options.DATA_DIR / "delivery-spool.sqlite3", max_bytes=options.SPOOL_MAX_BYTES
        )
        self.dead_letters = DurableQueue(
            options.DATA_DIR / "dead-letters.sqlite3", max_bytes=options.SPOOL_MAX_BYTES
        )
        self.breaker = Breaker()
        self._drain = Loop(self.drain_step, name="audit-delivery-drain")

    def start(self) -> None:
        """Begin to replay the spool in the background."""
        self._drain.ensure_running()

    def stop(self) -> None:
        """End the background replay."""
        self._drain.stop(1.0)

    def deliver(self, payload: str) -> None:
        """Bring one batch to a durable place.

        :raises SpoolError: the publisher is away and the spool does not take it either; the
            broker still has it.
        """
        lines = payload.split("\n")
        tries = 1 + self._options.DELIVERY_RETRIES
        for attempt in range(tries):
            if not self.breaker.allows:
                break
            try:
                again = self._send(lines)
            except RetryLater as error:
                if attempt + 1 < tries:
                    self._sleep(max(self._pause(attempt), min(error.retry_after or 0.0, 2.0)))
                    continue
                self.breaker.failed(error.retry_after)
                logger.warning("deliveries are spooled: %s", error)
                break
            self.breaker.succeeded()
            if not again:
                return
            lines = again
            if attempt + 1 < tries:
                self._sleep(self._pause(attempt))
        self._keep(lines)

    @staticmethod
    def _pause(attempt: int) -> float:
        return min(2.0, 0.1 * 2**attempt) * (0.5 + random.random())  # noqa: S311

    def _send(self, lines: list[str]) -> list[str]:
        """Send; account for what was settled; return the lines to send again."""
        try:
            result = self._publisher.send(lines)
        except RetryLater:
            metrics.delivery_failures.inc(reason="unavailable")
            raise
        except DeliveryRefused as error:
            result = Delivered(refused=[(line, str(error)) for line in lines])
        for status, count in result.stored.items():
            metrics.delivered.inc(count, status=status)
        if result.refused:
            self._bury(result.refused)
        return result.again

    def _keep(self, lines: list[str]) -> None:
        record = Record("\n".join(lines).encode(), headers=(("events", str(len(lines)).encode()),))
        self.spool.append(RETRY_STREAM, [record])
        metrics.spooled.inc(len(lines), reason="publisher_down")
        self._measure()
        self.start()

    def _measure(self) -> None:
        try:
            metrics.spool_bytes.set(self.spool.used_bytes(), spool="delivery")
        except SpoolError:
            # The next write says what is wrong with it.
            pass

    def _bury(self, refused: list[tuple[str, str]]) -> None:
        try:
            self.dead_letters.append(
                DEAD_STREAM,
                [
                    Record(line.encode(), headers=(("reason", why.encode()),))
                    for line, why in refused
                ],
            )
        except SpoolFull as error:
            # To wait for room would hold up every good event behind these.
            metrics.rejected.inc(len(refused), reason="dead_letters_full")
            logger.error("%s events are LOST, refused for good: %s", len(refused), error)
            return
        metrics.dead_lettered.inc(len(refused))
        logger.error(
            "%s events are refused for good and kept as dead letters: %s",
            len(refused),
            refused[0][1],
        )

    def drain_step(self) -> float:
        """Send one batch of the spool; return the seconds until the next is due."""
        if not self.breaker.allows:
            return 0.5
        if not self.spool.path.exists():
            return 1.0
        records = self.spool.lease(
            RETRY_STREAM, seconds=60.0, owner=str(os.getpid()), max_records=1, max_bytes=64 << 20
        )
        if not records:
            return 1.0
        lines = records[0].value.decode().split("\n")
        try:
            again = self._send(lines)
        except RetryLater as error:
            self.breaker.failed(error.retry_after)
            self.spool.release(RETRY_STREAM, records)
            return 0.5
        self.breaker.succeeded()
        if again:
            # Stored again before the old record goes: a crash between leaves both, and the lake
            # has each event once.
            self._keep(again)
        self.spool.settle(RETRY_STREAM, records)
        metrics.replayed.inc(len(lines) - len(again), spool="delivery")
        self._measure()
        return 0.5 if again else 0.0


def _sort(lines: list[str], response: urllib3.BaseHTTPResponse) -> Delivered:
    try:
        items = json.loads(response.data)["items"]
        statuses = [(item.get("status"), item) for item in items]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise RetryLater("the publisher's answer is not understood") from error
    if len(items) != len(lines):
        raise RetryLater(f"the publisher answered {len(items)} of {len(lines)} events")
    result = Delivered()
    for line, (status, item) in zip(lines, statuses, strict=True):
        if status in ("published", "spooled"):
            result.stored[status] = result.stored.get(status, 0) + 1
        elif status == "rejected" and not item.get("retryable"):
            result.refused.append((line, json.dumps(item.get("error"))))
        else:
            # Also what is not understood: an event is not given up on a guess.
            result.again.append(line)
    return result


def _problem(response: urllib3.BaseHTTPResponse) -> str:
    """One line on what the publisher said."""
    text = response.data[:500].decode("utf-8", "replace").replace("\n", " ")
    return f"the publisher answered {response.status}: {text}"


def _retry_after(response: urllib3.BaseHTTPResponse) -> float | None:
    value = response.headers.get("Retry-After", "")
    return float(value) if value.isascii() and value.isdigit() else None


_publisher: tuple[int, Publisher] | None = None
_deliverer: tuple[int, Deliverer] | None = None


def get_publisher() -> Publisher:
    """Return this process's client of the publisher."""
    global _publisher
    if _publisher is None or _publisher[0] != os.getpid():
        _publisher = (os.getpid(), Publisher())
    return _publisher[1]


def get_deliverer() -> Deliverer:
    """Return this process's deliverer."""
    global _deliverer
    if _deliverer is None or _deliverer[0] != os.getpid():
        _deliverer = (os.getpid(), Deliverer(get_publisher()))
    return _deliverer[1]
