"""What became of a record."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ..exceptions import PublisherError

Status = Literal["published", "spooled", "rejected"]


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one record.

    :ivar region: where it is, when it is published.
    :ivar retryable: whether sending it again can help, when it is rejected.
    :ivar error: why it is rejected.
    """

    status: Status
    region: str | None = None
    retryable: bool = False
    error: PublisherError | None = None
