"""From a request's bytes to outcomes: each event is validated, routed, framed and made durable."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import msgspec

from audit_logging.spool import Record

from . import metrics, producer_records, routing
from .authentication import Sender
from .conf import conf
from .durable.outcome import Outcome
from .exceptions import (
    Backpressure,
    CodecError,
    InvalidEvent,
    PublisherError,
    RecordTooLarge,
    RegistryError,
    StorageExhausted,
    without_frames,
)
from .http.problems import Problem
from .producer_records import is_producer_record, parse_producer_record
from .publish import get_publisher
from .serializers import micros, parse_event, request_id_of

#: Seconds after which a sender should try again.
RETRY_AFTER = 5
#: Microseconds of a day.
_DAY = 86_400_000_000


class TooLarge(InvalidEvent):
    """One event is larger than MAX_EVENT_BYTES."""


class NotJson(InvalidEvent):
    """What should be an event is not JSON."""


class NotAllowed(InvalidEvent):
    """The sender may not publish for this service."""


class CallerNotAllowed(InvalidEvent):
    """The sender's events may not name this consumer."""


class OddTime(InvalidEvent):
    """The event's time is too long ago, or too far ahead."""


#: The codes of problems that are more than an invalid field.
_CODES = {
    NotAllowed: "service-not-allowed",
    CallerNotAllowed: "caller-not-allowed",
    OddTime: "odd-time",
}


@dataclass(frozen=True, slots=True)
class Result:
    """What is said of one event: its id, if it had one, and its outcome."""

    request_id: str | None
    outcome: Outcome


class Intake:
    """The events of one request, from their bytes to what is said of each.

    :param http: forwarded headers of the request.
    :param now: epoch microseconds.
    :param batch: there may be producer records among them.
    """

    def __init__(
        self,
        events: Sequence[bytes | msgspec.Raw],
        http: Mapping[str, str],
        sender: Sender,
        now: int,
        *,
        batch: bool = True,
    ) -> None:
        self._events = events
        self._sender = sender
        self._now = now
        self._router = routing.Router(http, now)
        # In seconds, and a little within the bounds: what is outside is looked at closely.
        self._oldest = (now - conf.MAX_EVENT_AGE_DAYS * _DAY) / 1e6 + 1
        self._newest = (now + conf.MAX_EVENT_AHEAD_DAYS * _DAY) / 1e6 - 1
        self._largest = conf.MAX_EVENT_BYTES
        self._batch = batch
        self._results: list[Result | None] = [None] * len(events)
        self._next = 0
        #: Index and request_id of what is in `items`.
        self._ready: list[tuple[int, str]] = []
        #: (topic, record) of each event that is valid so far.
        self.items: list[tuple[str, Record]] = []

    def prepare(self, until: float = math.inf) -> bool:
        """Validate, route and frame events; return whether more are left.

        What is refused has its result, and is counted.

        :param until: by `time.perf_counter`, when to stop for now.
        """
        end = len(self._events)
        for index in range(self._next, len(self._events)):
            # One at least, or a turn that is too short would be the first of endless many.
            if index > self._next and time.perf_counter() > until:
                end = index
                break
            data = self._events[index]
            try:
                request_id, item = self._prepare(data)
            except (InvalidEvent, CodecError, RegistryError) as error:
                retryable = isinstance(error, RegistryError)
                metrics.REJECTED.labels(_reason(error)).inc()
                self._results[index] = Result(
                    request_id_of(data),
                    Outcome("rejected", retryable=retryable, error=without_frames(error)),
                )
            else:
                self._ready.append((index, request_id))
                self.items.append(item)
        self._next = end
        if end < len(self._events):
            return True
        # Records are made of them; until these are durable, nobody needs both.
        self._events = ()
        return False

    def _prepare(self, data: bytes | msgspec.Raw) -> tuple[str, tuple[str, Record]]:
        size = len(memoryview(data))
        if size > self._largest:
            raise TooLarge("", f"it has {size:,} bytes; {self._largest:,} are allowed")
        try:
            event = parse_event(data)
        except InvalidEvent:
            # What it has is not enough for an event. Looked at only now, for nearly all are.
            if self._batch and is_producer_record(whole := bytes(data)):
                prepared = _prepare_producer(whole, self._sender, self._now)
                metrics.PRODUCER_RECORDS.inc()
                return prepared
            raise
        except ValueError as error:
            raise NotJson("", str(error)) from error
        sender = self._sender
        _check_service(event.service_name, sender)
        if not sender.callers.everything:
            for field, named in routing.consumers_named(event):
                if not sender.may_name(named):
                    raise CallerNotAllowed(
                        field,
                        "the sender's events may not name this consumer id. Name the sender's own "
                        "or none, or have it added to the sender (Consumers in the admin; "
                        "audit_key add --caller)",
                    )
        if not self._oldest <= event.request_ts <= self._newest:
            _check_age(event.request_ts, self._now)
        return event.request_id, self._router.to_record(event)

    def results(self, outcomes: Sequence[Outcome]) -> list[Result]:
        """One result for each event, in order.

        :param outcomes: what became of `items`.
        """
        for (index, request_id), outcome in zip(self._ready, outcomes, strict=True):
            self._results[index] = Result(request_id, outcome)
        return [result for result in self._results if result is not None]


def take(
    events: Sequence[bytes | msgspec.Raw],
    http: Mapping[str, str],
    sender: Sender,
    now: int,
    *,
    batch: bool = True,
) -> list[Result]:
    """Take `events`, and wait; return one result each, in order. See :class:`Intake`."""
    intake = Intake(events, http, sender, now, batch=batch)
    intake.prepare()
    return intake.results(get_publisher().publish(intake.items))


def _prepare_producer(data: bytes, sender: Sender, now: int) -> tuple[str, tuple[str, Record]]:
    try:
        said = parse_producer_record(data)
    except InvalidEvent:
        raise
    except ValueError as error:
        raise NotJson("", str(error)) from error
    _check_service(said.service_name, sender)
    _check_age(said.at, now, "at")
    return str(said.request_id), producer_records.to_record(said, now)


def _check_service(service_name: str, sender: Sender) -> None:
    if not sender.may_publish_for(service_name):
        raise NotAllowed(
            "service_name",
            "the sender may not publish for this service. Have it added to the sender (Consumers "
            "in the admin; audit_key add --service)",
        )


def _check_age(seconds: int | float, now: int, name: str = "request_ts") -> None:
    age = (now - micros(seconds)) / _DAY
    if age > conf.MAX_EVENT_AGE_DAYS:
        allowed = f"{conf.MAX_EVENT_AGE_DAYS:g} days are allowed"
        raise OddTime(name, f"it is {age:,.1f} days ago; {allowed}")
    if -age > conf.MAX_EVENT_AHEAD_DAYS:
        allowed = f"{conf.MAX_EVENT_AHEAD_DAYS:g} are allowed. Set the sender's clock"
        raise OddTime(name, f"it is {-age:,.1f} days ahead; {allowed}")


def _reason(error: PublisherError) -> str:
    if isinstance(error, TooLarge):
        return "too_large"
    if isinstance(error, NotJson):
        return "not_json"
    if isinstance(error, NotAllowed):
        return "service_not_allowed"
    if isinstance(error, CallerNotAllowed):
        return "caller_not_allowed"
    if isinstance(error, OddTime):
        return "odd_time"
    return "no_schema" if isinstance(error, RegistryError) else "invalid"


def problem_of(outcome: Outcome) -> Problem:
    """The answer to a request whose only event, or whose every event, was rejected like this."""
    error = outcome.error
    if isinstance(error, (TooLarge, RecordTooLarge)):
        return Problem(413, str(error), field="", reason="too_large")
    if isinstance(error, NotJson):
        return Problem(400, f"The body is not JSON: {error.reason}", code="not-json", field="")
    if isinstance(error, InvalidEvent):
        return Problem(422, error.reason, code=_CODES.get(type(error), ""), field=error.field)
    if isinstance(error, Backpressure):
        return Problem(
            429, "Too much is waiting to be stored. Try again later.", retry_after=RETRY_AFTER
        )
    if isinstance(error, StorageExhausted):
        return Problem(
            503,
            "No durable place takes events now. Try again later.",
            code="no-storage",
            retry_after=RETRY_AFTER,
        )
    if isinstance(error, RegistryError):
        return Problem(
            503,
            "The event's schema is not known yet. Try again later.",
            code="schema-unknown",
            retry_after=RETRY_AFTER,
        )
    return Problem(422, str(error), field="")


def error_of(outcome: Outcome) -> dict[str, str] | None:
    """The `error` member of one item of a batch's answer."""
    if outcome.status != "rejected":
        return None
    problem = problem_of(outcome)
    reason = outcome.error.reason if isinstance(outcome.error, InvalidEvent) else problem.detail
    return {"field": problem.field or "", "reason": reason, "code": problem.kind.code}
