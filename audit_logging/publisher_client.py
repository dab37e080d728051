"""The publisher as a worker sees it: signed requests, and what each answer means for a batch."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote

import urllib3

from .conf import LoggingSettings, conf
from .exceptions import Declined, DeliveryRefused, RetryLater
from .signing import Signer, SigningError

BATCH_PATH = "/v1/logs/api-requests:batch"
FLAGS_PATH = "/v1/config/"

#: The publisher says that the batch itself is at fault.
_REFUSED = frozenset({400, 413, 415, 422})
#: Nobody's batch would be taken now.
_AWAY = frozenset({408, 429, 502, 503, 504})
#: Asks who we are: a key to be registered, a clock to be set. No event is the reason.
_STRANGER = frozenset({401, 407})


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

        :raises RetryLater: the publisher is away; what is sent now will not be taken.
        :raises Declined: this batch is not known to be durable; others may fare better.
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
        if response.status in _AWAY:
            raise RetryLater(_problem(response), _retry_after(response))
        if not 200 <= response.status < 300:
            # A firewall that dislikes one event, a bug that one event meets; or a proxy that
            # redirects, a wrong address: there is somebody to mend it.
            by_content = response.status >= 400 and response.status not in _STRANGER
            raise Declined(_problem(response), by_content=by_content)
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
            except (RetryLater, Declined):
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


def _sort(lines: list[str], response: urllib3.BaseHTTPResponse) -> Delivered:
    try:
        items = json.loads(response.data)["items"]
        statuses = [(item.get("status"), item) for item in items]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise Declined("the publisher's answer is not understood") from error
    if len(items) != len(lines):
        raise Declined(f"the publisher answered {len(items)} of {len(lines)} events")
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
