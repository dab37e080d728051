"""What can go wrong in the publisher, split by what the caller does about it.

PublisherError
├── EventLogError
│   ├── RegionUnavailable    try the next region, then the spool
│   │   └── UnknownTopic     the same, and tell the operator the topic's name
│   ├── RecordRejected       no region will take it: refuse the event for good
│   │   └── RecordTooLarge   refuse with 413
│   ├── Backpressure         refuse for now (429), or spool
│   └── OffsetOutOfRange     a reader's position is gone: report it, never skip in silence
├── RegistryError
│   ├── RegistryUnavailable  go on with schemas already known
│   ├── SchemaIncompatible   refuse to start: the new schema breaks readers
│   └── UnknownSchema        no such schema id: a record that names it is poison
├── CodecError               the bytes are not a framed record: poison
├── InvalidEvent             refuse the event for good, naming the field (422)
├── TooManyItems             refuse the batch (413)
├── AmbiguousHeader          refuse the request, naming the header (400)
├── InvalidHeader            refuse the request, naming the header (422)
└── StorageExhausted         no durable place takes the event: 503
"""

from __future__ import annotations

from typing import TypeVar

E = TypeVar("E", bound=BaseException)


class PublisherError(Exception):
    """Base of every error this app raises on purpose."""


class EventLogError(PublisherError):
    """One region of the event log did not do as asked."""


class RegionUnavailable(EventLogError):
    """The region does not answer, or refuses all that we send; another may take it."""


class UnknownTopic(RegionUnavailable):
    """The topic does not exist in this region."""


class RecordRejected(EventLogError):
    """The record itself is refused; no region will take it."""


class RecordTooLarge(RecordRejected):
    """The record is larger than the event log takes; see MAX_EVENT_BYTES."""


class Backpressure(EventLogError):
    """Too much is in flight; the same record may be sent again later."""


class OffsetOutOfRange(EventLogError):
    """The wanted offset is no longer, or not yet, in the log.

    :ivar low: the first offset still kept.
    :ivar high: the next offset to be written.
    """

    def __init__(self, message: str, low: int, high: int) -> None:
        super().__init__(message)
        self.low = low
        self.high = high


class RegistryError(PublisherError):
    """The schema registry did not do as asked."""


class RegistryUnavailable(RegistryError):
    """The schema registry does not answer."""


class SchemaIncompatible(RegistryError):
    """The registry refuses the schema: it would break readers of older data."""


class UnknownSchema(RegistryError):
    """The registry has no schema of this id."""


class CodecError(PublisherError):
    """The bytes are not a record in Confluent framing, or do not fit their schema."""


class InvalidEvent(PublisherError):
    """The event breaks the contract.

    :ivar field: the field's name, or "" for the event as a whole.
    :ivar reason: what is wrong with it, without its value.
    """

    def __init__(self, field: str, reason: str) -> None:
        super().__init__(f"{field}: {reason}" if field else reason)
        self.field = field
        self.reason = reason


class TooManyItems(PublisherError):
    """A batch has more items than are taken at once."""

    def __init__(self, limit: int) -> None:
        super().__init__(f"It has more than {limit:,} events, which are allowed in one batch.")


class AmbiguousHeader(PublisherError):
    """A header came twice, perhaps in two spellings: nobody can say which of them is meant.

    :ivar header: its name.
    """

    def __init__(self, header: str) -> None:
        super().__init__(f"{header} was sent more than once, in one spelling or in several.")
        self.header = header


class InvalidHeader(PublisherError):
    """A forwarded header of the request is not text that a record can carry.

    :ivar header: its name.
    """

    def __init__(self, header: str, reason: str) -> None:
        super().__init__(f"{header} {reason}")
        self.header = header


class StorageExhausted(PublisherError):
    """Neither a region nor the spool takes the event."""


def without_frames(error: E) -> E:
    """Return `error` without the frames that it, and what it came from, passed through.

    They hold all that was there, a body of megabytes, in a circle that only the garbage collector
    opens.
    """
    each: BaseException | None = error
    while each is not None:
        each.__traceback__ = None
        each = each.__cause__ or each.__context__
    return error
