"""The publisher as a worker sees it: signed requests, and what each answer means for a batch."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Mapping
from datetime import UTC
from email.utils import parsedate_to_datetime
from types import MappingProxyType
from typing import Any
from urllib.parse import quote

import urllib3
from urllib3.util import parse_url

from . import tracing
from .batch import Batch
from .conf import LoggingSettings, conf
from .exceptions import Declined, DeliveryRefused, RetryLater
from .fitting import LIMIT_HEADER, fit, fit_batch, size
from .outcome import Delivered, Refusal
from .signing import Signer, SigningError

BATCH_PATH = "/v1/logs/api-requests:batch"
FLAGS_PATH = "/v1/config/"

#: The publisher says that the batch itself is at fault.
_REFUSED = frozenset({400, 413, 415, 422})
#: Nobody's batch would be taken now.
_AWAY = frozenset({408, 425, 429, 502, 503, 504})
#: Asks who we are: a key to be registered, a clock to be set. No event is the reason.
_STRANGER = frozenset({401, 407})

#: An answer has a few hundred bytes for each event. What is longer is not the publisher's.
_MAX_ANSWER = 16 << 20


_UNSEEN = re.compile(r"<(script|style)\b[^>]*>[^<]*", re.IGNORECASE)
_TAGS = re.compile(r"<[^<>]*>")


class _Answer:
    """A response, read to its end."""

    def __init__(self, response: urllib3.BaseHTTPResponse, data: bytes) -> None:
        self.status = response.status
        self.headers = response.headers
        self.data = data

    def problem(self) -> str:
        """One line on what the publisher said."""
        # The publisher answers in JSON; a page is that of a proxy, or of something else.
        json_like = self.data.lstrip()[:1] in (b"{", b"[")
        text = self.data[: 500 if json_like else 1 << 14].decode("utf-8", "replace")
        if not json_like:
            text = _TAGS.sub(" ", _UNSEEN.sub(" ", text))
        text = " ".join(text.split())[: 500 if json_like else 200]
        return f"the publisher answered {self.status}: {text}"


class Publisher:
    """The publisher, over HTTP; one per process, as it keeps connections open.

    :param connect_timeout: seconds for a connection; by default 3 at most.
    :param timeout: seconds for each answer as a whole; by default DELIVERY_TIMEOUT.
    """

    def __init__(
        self,
        options: LoggingSettings = conf,
        clock: Callable[[], float] = time.time,
        *,
        connect_timeout: float = 3.0,
        timeout: float | None = None,
    ) -> None:
        self._options = options
        self._clock = clock
        self._base = options.PUBLISHER_URL.rstrip("/")
        self._timeout = options.DELIVERY_TIMEOUT if timeout is None else timeout
        self._pool = urllib3.PoolManager(
            # As many are kept open as threads deliver at once; made when they are needed.
            maxsize=64,
            retries=False,
            timeout=urllib3.Timeout(
                connect=min(connect_timeout, self._timeout), read=self._timeout
            ),
        )
        self._signer = (
            Signer(
                options.CONSUMER_ID,
                options.KEY_VERSION,
                options.PRIVATE_KEY_PATH,
                options.SIGNATURE_SCHEME,
            )
            if options.PRIVATE_KEY_PATH is not None
            else None
        )
        #: Bytes of the largest event that the publisher takes, once it has said so.
        self.max_event_bytes: int | None = None
        #: Its clock in its last answer, in epoch seconds.
        self.said_at: float | None = None

    def send(self, batch: Batch) -> Delivered:
        """Post one batch, the very bytes it travels as.

        Events that are larger than the publisher takes are sent without their bodies.

        :raises RetryLater: the publisher is away; what is sent now will not be taken.
        :raises Declined: this batch is not known to be durable; others may fare better.
        :raises DeliveryRefused: the batch, of one event, is refused for good.
        :raises BatchUnreadable: it is refused, and its bytes are damaged.
        """
        limit = self.max_event_bytes
        if limit is not None and limit < self._options.MAX_EVENT_BYTES:
            batch = fit_batch(batch, limit)
        try:
            delivered = self._post(batch)
        except DeliveryRefused:
            # Its answer may have told the limit.
            fitted = self._fitted(batch.lines()[0])
            if fitted is None:
                raise
            return self._post(Batch.of([fitted]))
        too_large = [line for each in delivered.refused if (line := self._fitted(each.line))]
        if too_large:
            delivered.refused = [each for each in delivered.refused if not self._fitted(each.line)]
            try:
                delivered.add(self._post(Batch.of(too_large)))
            except (RetryLater, Declined):
                delivered.again += too_large
            except DeliveryRefused as error:
                delivered.refused.append(Refusal(too_large[0], str(error), error.status))
        return delivered

    def _fitted(self, line: str) -> str | None:
        """A refused event without its bodies, if it was too large and now is not."""
        limit = self.max_event_bytes
        if limit is None or size(line) <= limit:
            return None
        fitted = fit(line, limit)
        return fitted if size(fitted) <= limit else None

    def _post(self, batch: Batch) -> Delivered:
        answer = self._request(
            "POST",
            BATCH_PATH,
            {"Content-Type": "application/x-ndjson", "Content-Encoding": "gzip"},
            body=batch.packed,
        )
        if answer.status in _REFUSED:
            if len(batch.lines()) > 1:
                # Too much at once, or one bad event among good ones.
                return self._halves(batch.lines())
            raise DeliveryRefused(answer.problem(), answer.status)
        if answer.status in _AWAY:
            raise RetryLater(answer.problem(), self._retry_after(answer))
        if not 200 <= answer.status < 300:
            # A firewall that dislikes one event, a bug that one event meets; or a proxy that
            # redirects, a wrong address: there is somebody to mend it.
            by_content = answer.status >= 400 and answer.status not in _STRANGER
            raise Declined(answer.problem(), by_content=by_content, status=answer.status)
        return _sort(batch, answer)

    def flags(
        self, service_name: str, etag: str, headers: Mapping[str, str] = MappingProxyType({})
    ) -> tuple[dict[str, Any], str] | None:
        """Return the flags document of a service and its tag; None when `etag` still holds.

        :param headers: sent along; which process asks.
        :raises RetryLater: the publisher does not answer, or not with a document.
        """
        sent = dict(headers) | ({"If-None-Match": etag} if etag else {})
        answer = self._request("GET", FLAGS_PATH + quote(service_name, safe=""), sent)
        if answer.status == 304:
            return None
        if answer.status != 200:
            raise RetryLater(answer.problem())
        try:
            document = json.loads(answer.data)
        except ValueError as error:
            raise RetryLater(f"the publisher's flags are not JSON: {error}") from error
        if not isinstance(document, dict):
            raise RetryLater("the publisher's flags are not a JSON object")
        return document, answer.headers.get("ETag", "")

    def ask(self, service_name: str) -> tuple[int, str]:
        """Ask for a service's flags; return the answer's HTTP status, and a line on what it said.

        :raises RetryLater: nobody answers, or the request cannot be signed.
        """
        answer = self._request("GET", FLAGS_PATH + quote(service_name, safe=""), {})
        return answer.status, answer.problem()

    def close(self) -> None:
        """Close the connections."""
        self._pool.clear()

    def _halves(self, lines: list[str]) -> Delivered:
        middle = len(lines) // 2
        total = Delivered()
        for part in (lines[:middle], lines[middle:]):
            try:
                result = self.send(Batch.of(part))
            except (RetryLater, Declined):
                if not (total.stored or total.refused):
                    raise
                # What the first half came to is known: only the second is sent again.
                result = Delivered(again=part)
            except DeliveryRefused as error:
                result = Delivered(refused=[Refusal(part[0], str(error), error.status)])
            total.add(result)
        return total

    def _request(
        self, method: str, path: str, headers: dict[str, str], body: bytes | None = None
    ) -> _Answer:
        deadline = time.monotonic() + self._timeout
        try:
            if self._signer is not None:
                headers = headers | self._signer.sign(
                    method,
                    # As it goes over the wire, with the path that PUBLISHER_URL may have.
                    parse_url(self._base + path).request_uri,
                    body,
                    int(self._clock() * 1000),
                    headers,
                )
            headers = headers | tracing.headers()
            response = self._pool.request(
                method,
                self._base + path,
                body=body,
                headers=headers,
                redirect=False,
                preload_content=False,
            )
            return self._read(response, deadline)
        except SigningError as error:
            raise RetryLater(str(error), 5.0) from error
        except (urllib3.exceptions.HTTPError, OSError) as error:
            raise RetryLater(f"the publisher at {self._base} does not answer: {error}") from error

    def _read(self, response: urllib3.BaseHTTPResponse, deadline: float) -> _Answer:
        # By hand, as the timeout of a socket starts anew with each byte that drips in.
        parts = []
        size = 0
        try:
            while part := response.read1(1 << 16):
                parts.append(part)
                size += len(part)
                if size > _MAX_ANSWER:
                    raise RetryLater(f"the answer of {self._base} does not end")
                if time.monotonic() > deadline:
                    raise RetryLater(f"the answer of {self._base} takes too long")
        except BaseException:
            # It cannot be used again with half an answer in it.
            response.close()
            raise
        response.release_conn()
        limit = response.headers.get(LIMIT_HEADER, "")
        if limit.isascii() and limit.isdigit():
            self.max_event_bytes = int(limit[:12])
        self.said_at = epoch(response.headers.get("Date", ""))
        return _Answer(response, b"".join(parts))

    def _retry_after(self, answer: _Answer) -> float | None:
        """Seconds to wait, from either form of the header; None where it says nothing usable."""
        value = answer.headers.get("Retry-After", "").strip()
        if value.isascii() and value.isdigit():
            return float(value[:9])
        when = epoch(value)
        return None if when is None else max(0.0, when - self._clock())


def epoch(value: str) -> float | None:
    """Epoch seconds of a time as HTTP's headers have it."""
    try:
        when = parsedate_to_datetime(value)
    except (ValueError, TypeError, IndexError):
        return None
    return (when if when.tzinfo else when.replace(tzinfo=UTC)).timestamp()


def _sort(batch: Batch, answer: _Answer) -> Delivered:
    try:
        items = json.loads(answer.data)["items"]
        statuses = [item.get("status") for item in items]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise Declined("the publisher's answer is not understood") from error
    result = Delivered()
    for status in statuses:
        if status in ("published", "spooled"):
            result.stored[status] = result.stored.get(status, 0) + 1
    if len(items) == batch.count == sum(result.stored.values()):
        # As nearly always: nobody has to look into the batch.
        return result
    lines = batch.lines()
    if len(items) != len(lines):
        raise Declined(f"the publisher answered {len(items)} of {len(lines)} events")
    for line, status, item in zip(lines, statuses, items, strict=True):
        if status in ("published", "spooled"):
            continue
        if status == "rejected" and not item.get("retryable"):
            result.refused.append(Refusal(line, json.dumps(item.get("error")), None))
        else:
            # Also what is not understood: an event is not given up on a guess.
            result.again.append(line)
    return result
