"""A batch on its way: JSON lines, compressed once, and passed on as they are.

The same bytes go to the broker, lie in the spool, and are the body of the delivery: compressing
lets go of the interpreter, and everything behind it moves a quarter of the bytes.
"""

from __future__ import annotations

import base64
import binascii
import zlib
from collections.abc import Sequence

from .exceptions import BatchUnreadable

#: Fast: the lines are kept for seconds.
_LEVEL = 1
_GZIP = 31

#: How a line begins that is a producer record: it travels like an event and is none.
NO_EVENT = '{"record":"producer",'

#: A batch is our own making; this only keeps a damaged file from filling the memory.
MAX_UNPACKED = 256 << 20


def pack(lines: Sequence[str]) -> bytes:
    """Return the batch of `lines`, each one event's JSON."""
    compressor = zlib.compressobj(_LEVEL, zlib.DEFLATED, _GZIP)
    return compressor.compress("\n".join(lines).encode()) + compressor.flush()


def unpack(batch: bytes) -> list[str]:
    """Return the lines of a batch.

    :raises BatchUnreadable: it is damaged, or larger than MAX_UNPACKED.
    """
    inflater = zlib.decompressobj(_GZIP)
    try:
        text = inflater.decompress(batch, MAX_UNPACKED)
        if not inflater.eof:
            raise BatchUnreadable("The batch is cut short, or larger than any we make.")
        # Not splitlines(): JSON may hold other line ends than this one.
        return text.decode().split("\n")
    except (zlib.error, UnicodeDecodeError) as error:
        raise BatchUnreadable(f"The batch is damaged: {error}") from error


class Batch:
    """A batch as it travels, unpacked only where somebody has to look into it.

    :ivar packed: the bytes, as :func:`pack` made them.
    :ivar count: how many events it holds, as its sender said; 0 for one of producer records.
    """

    __slots__ = ("_lines", "count", "packed")

    def __init__(self, packed: bytes, count: int) -> None:
        self.packed = packed
        self.count = count
        self._lines: list[str] | None = None

    def __repr__(self) -> str:
        return f"Batch({self.count} events, {len(self.packed)} bytes)"

    @classmethod
    def of(cls, lines: Sequence[str]) -> Batch:
        """Return the batch of `lines`."""
        batch = cls(pack(lines), sum(not line.startswith(NO_EVENT) for line in lines))
        batch._lines = list(lines)
        return batch

    @classmethod
    def from_message(cls, payload: str, count: int) -> Batch:
        """Return the batch of a Celery message: base64, or the plain lines of an older version.

        :raises BatchUnreadable: it is neither.
        """
        if payload.startswith("{"):
            return cls.of(payload.split("\n"))
        try:
            value = base64.b64decode(payload, validate=True)
        except (ValueError, binascii.Error) as error:
            raise BatchUnreadable(f"The message is not base64: {error}") from error
        return cls.from_record(value, count)

    @classmethod
    def from_record(cls, value: bytes, count: int) -> Batch:
        """Return the batch that a spool's record holds: packed, or one or more plain lines.

        :raises BatchUnreadable: it is neither.
        """
        if not value.startswith(b"{"):
            return cls(value, count)
        try:
            return cls.of(value.decode().split("\n"))
        except UnicodeDecodeError as error:
            raise BatchUnreadable(f"The lines are not UTF-8: {error}") from error

    def message(self) -> str:
        """Return what goes into a Celery message, which is JSON."""
        return base64.b64encode(self.packed).decode("ascii")

    def lines(self) -> list[str]:
        """Return the events, one JSON text each.

        :raises BatchUnreadable: the bytes are damaged.
        """
        if self._lines is None:
            self._lines = unpack(self.packed)
        return self._lines
