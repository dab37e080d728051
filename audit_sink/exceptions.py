"""What can go wrong in the sink, split by what the caller does about it.

SinkError
├── Retry                    the lane stands still and tries the same range again
│   ├── BucketError          the site's bucket did not do as asked
│   │   ├── BucketMissing    there is no such bucket: tell the operator its name
│   │   ├── BucketRefused    it does not let us in: an operator must give rights; stalls at once
│   │   └── BucketUnavailable
│   ├── ConflictError        an object of that name holds other bytes: an operator must look
│   ├── ClaimLost            somebody else took the claim over: stop, write nothing more
│   ├── RangeUnavailable     the log cannot give a whole range (any more): an operator must look
│   └── DeadLetterFailed     poison could not be handed to the dead-letter topic
├── PoisonRecord             one record that can never be stored: dead-letter it, go on
└── QueryError               the question is wrong: show the one line to whoever asked
"""

from __future__ import annotations


class SinkError(Exception):
    """Base of every error this app raises on purpose."""


class Retry(SinkError):
    """The range could not be finished now; the same range is tried again."""


class BucketError(Retry):
    """A bucket did not do as asked."""


class BucketMissing(BucketError):
    """The bucket does not exist, or its address names no kind of bucket that we know."""


class BucketRefused(BucketError):
    """The bucket does not let us in: no credentials, wrong ones, or no right to do what is asked.

    Trying again soon is no use: the message names what an operator must do.
    """


class BucketUnavailable(BucketError):
    """The bucket does not answer in time, is out of order or full, or mangled what we sent."""


class ConflictError(Retry):
    """An object of that name exists and holds other bytes."""


class ClaimLost(Retry):
    """The claim's lease ran out and another worker has taken it over, or finished it."""


class RangeUnavailable(Retry):
    """The event log does not hold (all of) the records that the ledger says come next."""


class DeadLetterFailed(Retry):
    """The dead-letter topic did not take a record."""


class PoisonRecord(SinkError):
    """One record that can never be stored, with the reason.

    :ivar reason: a short stable word for metrics: ``framing``, ``schema``, ``avro``, ``value``.
    """

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


class QueryError(SinkError):
    """A question that cannot be answered, in one line that says why."""
