"""The operations on events, whatever carries the request: what is asked, and what is answered."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from audit_logging.fitting import LIMIT_HEADER

from .conf import conf
from .exceptions import AmbiguousHeader, InvalidHeader, TooManyItems
from .http.problems import Problem
from .identity.senders import Sender
from .intake import Result, error_of, problem_of
from .routing import TRACE, http_headers
from .serializers import split_array, split_lines

JSON = "application/json"
NDJSON = "application/x-ndjson"

Events = Sequence[bytes | msgspec.Raw]


@dataclass(frozen=True, slots=True)
class Operation:
    """One way to bring events.

    :ivar name: in the metrics.
    :ivar path: without its first slash.
    :ivar many: whether it takes a batch.
    :ivar silent: whether a good answer is empty.
    """

    name: str
    path: str
    many: bool = False
    silent: bool = False

    @property
    def forms(self) -> tuple[str, ...]:
        """The content types it takes."""
        return (JSON, NDJSON, "application/jsonl") if self.many else (JSON,)

    @property
    def limit(self) -> int:
        """Bytes that a body may have."""
        return conf.MAX_BATCH_BYTES if self.many else conf.MAX_EVENT_BYTES

    def form_of(self, content_type: str) -> str:
        """The form of a body with this Content-Type.

        :raises Problem: 415.
        """
        essence, _, parameters = content_type.partition(";")
        essence = essence.strip().lower()
        charset = parameters.lower().partition("charset=")[2].strip(" \"'")
        if essence not in self.forms:
            raise Problem(
                415,
                f"Send {' or '.join(self.forms)}, not {essence[:100] or 'nothing'}.",
                header="Content-Type",
            )
        if charset not in {"", "utf-8", "utf8"}:
            raise Problem(415, "Send UTF-8.", header="Content-Type")
        return essence

    def events_in(self, body: bytes, form: str) -> Events:
        """The events in a body, each still as its bytes.

        :raises Problem: 400 or 413.
        """
        if not self.many:
            return [body]
        try:
            if form == JSON:
                return split_array(body, conf.MAX_BATCH_EVENTS)
            return split_lines(body, conf.MAX_BATCH_EVENTS)
        except TooManyItems as error:
            raise Problem(413, str(error), code="too-many-events", field="") from error
        except ValueError as error:
            raise Problem(400, str(error), code="not-json", field="") from error

    def forwarded(self, meta: Mapping[str, Any], consumer_id: str) -> dict[str, str]:
        """What of the request's headers is forwarded with its events.

        :raises Problem: 400 or 422, naming the header.
        """
        try:
            http = http_headers(meta, consumer_id)
        except AmbiguousHeader as error:
            raise Problem(400, str(error), code="ambiguous-header", header=error.header) from error
        except InvalidHeader as error:
            raise Problem(422, str(error), code="invalid-header", header=error.header) from error
        if self.many:
            # That of the delivery, which says nothing of the events in it.
            http.pop(TRACE, None)
        return http

    def answer(self, results: Sequence[Result], sender: Sender | None = None) -> bytes:
        """The good answer's body; "" for none.

        :param sender: is told whether anything was taken; a batch may be answered well without.
        :raises Problem: nothing was taken of it.
        """
        if sender is not None:
            sender.took = any(result.outcome.status != "rejected" for result in results)
        if self.many:
            if results and all(result.outcome.retryable for result in results):
                raise problem_of(results[0].outcome)
            return msgspec.json.encode({"items": [_item(result) for result in results]})
        (result,) = results
        if result.outcome.status == "rejected":
            raise problem_of(result.outcome)
        if self.silent:
            return b""
        body = {"status": result.outcome.status, "request_id": result.request_id}
        if result.outcome.region is not None:
            body["region"] = result.outcome.region
        return msgspec.json.encode(body)


def _item(result: Result) -> dict[str, Any]:
    outcome = result.outcome
    return {
        "request_id": result.request_id,
        "status": outcome.status,
        "region": outcome.region,
        "retryable": outcome.retryable,
        "error": None if outcome.error is None else error_of(outcome),
    }


EVENT = Operation("event", "v1/logs/api-requests")
BATCH = Operation("batch", "v1/logs/api-requests:batch", many=True)
LEGACY = Operation("legacy", "v1/logRequest", silent=True)


def fixed_headers() -> dict[str, str]:
    """Headers of each answer: what we take, so that no sender needs a setting that agrees."""
    return {LIMIT_HEADER: str(conf.MAX_EVENT_BYTES)}
