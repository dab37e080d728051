"""What can go wrong in the capture tier, split by what the caller does about it.

AuditLoggingError
├── SpoolError
│   ├── SpoolFull            count the records as dropped, or refuse them
│   └── SpoolUnavailable     the disk failed: same, and try again later
└── DeliveryError
    ├── RetryLater           keep the batch and send it again
    └── DeliveryRefused      sending it again cannot help: dead-letter it
"""

from __future__ import annotations


class AuditLoggingError(Exception):
    """Base of every error this app raises on purpose."""


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


class DeliveryRefused(DeliveryError):
    """The publisher refuses this batch for good (signature, size, form)."""
