"""What can go wrong with a service, split by what the caller does about it."""

from __future__ import annotations


class ServiceError(Exception):
    """Base of everything raised in this package."""


class Unavailable(ServiceError):
    """A part cannot be had on this machine: skip for a person, fail in CI."""

    def __init__(self, part: str, reason: str, cure: str) -> None:
        super().__init__(f"{part} is not available: {reason}. To add it: {cure}")
        self.part, self.reason, self.cure = part, reason, cure


class StartFailed(ServiceError):
    """The part is there, but did not come up; carries the end of its log."""

    def __init__(self, message: str, log: str = "") -> None:
        super().__init__(f"{message}\n--- end of its log ---\n{log}" if log else message)
        self.log = log


class NotOurs(ServiceError):
    """A server whose address was given is not ours to stop, kill or pause."""
