"""What can go wrong in the capture tier, split by what the caller does about it.

AuditLoggingError
├── BuilderUnavailable      the builder process is away: build here
├── BatchUnreadable         the bytes are no batch of ours: set them aside, do not send them again
├── SpoolError
│   ├── SpoolFull            count the records as dropped, or refuse them
│   └── SpoolUnavailable     the disk failed: same, and try again later
├── DeliveryUnavailable     DELIVERY asks for what is not installed: set it up
└── DeliveryError
    ├── RetryLater           the publisher is away: keep the batch and send it again
    ├── Declined             this batch is not taken: let others pass, and try it again later
    └── DeliveryRefused      sending it again cannot help: dead-letter it
"""

from __future__ import annotations


class AuditLoggingError(Exception):
    """Base of every error this app raises on purpose."""


class BatchUnreadable(AuditLoggingError):
    """The bytes of a batch are damaged."""


class DeliveryUnavailable(AuditLoggingError):
    """This installation cannot deliver in the way that DELIVERY asks for."""


class BuilderUnavailable(AuditLoggingError):
    """The builder process is not there, or cannot take these events."""


class SpoolError(AuditLoggingError):
    """The durable local queue did not take, or give, a record."""


class SpoolFull(SpoolError):
    """The queue holds as many bytes as it may; see SPOOL_MAX_BYTES."""


class SpoolUnavailable(SpoolError):
    """The queue's file cannot be written or read: disk full, read-only, or damaged."""


class DeliveryError(AuditLoggingError):
    """A batch did not reach the publisher."""


class RetryLater(DeliveryError):
    """The publisher is down, slow or refuses for now.

    :ivar retry_after: seconds the publisher asked us to wait, or None.
    """

    def __init__(self, message: str, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class Declined(DeliveryError):
    """The publisher, or something before it, answered, but neither took this batch nor refused it.

    :ivar by_content: whether what the batch holds may be the reason. Never so for an answer that
        asks who we are, nor for one that is not understood.
    :ivar status: the HTTP status of the answer, where there was one.
    """

    def __init__(
        self, message: str, *, by_content: bool = False, status: int | None = None
    ) -> None:
        super().__init__(message)
        self.by_content = by_content
        self.status = status


class DeliveryRefused(DeliveryError):
    """The publisher refuses this batch, of one event, for good (size, form).

    :ivar status: the HTTP status of the answer, where there was one.
    """

    def __init__(self, message: str, status: int | None = None) -> None:
        super().__init__(message)
        self.status = status
