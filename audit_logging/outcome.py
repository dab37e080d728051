"""What became of a batch, event by event, whoever it was handed to."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

from .batch import Batch


@dataclass(frozen=True)
class Refusal:
    """One event that is refused for good.

    :ivar line: the event, as JSON; of a damaged batch, its bytes in base64.
    :ivar reason: what was said of it.
    :ivar status: the HTTP status that said so, where one did.
    :ivar events: how many it stands for: more than one, of a damaged batch.
    """

    line: str
    reason: str
    status: int | None = None
    events: int = 1


@dataclass
class Delivered:
    """What was said of each event of a batch.

    :ivar stored: how many are durable, by status (``published`` or ``spooled``).
    :ivar again: lines that may be sent again.
    :ivar refused: those refused for good.
    """

    stored: dict[str, int] = field(default_factory=dict)
    again: list[str] = field(default_factory=list)
    refused: list[Refusal] = field(default_factory=list)

    def add(self, other: Delivered) -> None:
        """Add what was said of further events."""
        for status, count in other.stored.items():
            self.stored[status] = self.stored.get(status, 0) + count
        self.again += other.again
        self.refused += other.refused


class Target(Protocol):
    """Where deliveries go: the publisher over HTTP, or its own way to the event log."""

    def send(self, batch: Batch) -> Delivered:
        """Bring one batch there.

        :raises RetryLater: it is away; what is sent now will not be taken.
        :raises Declined: this batch is not known to be durable; others may fare better.
        :raises DeliveryRefused: the batch, of one event, is refused for good.
        :raises BatchUnreadable: its bytes are damaged.
        """
        ...
