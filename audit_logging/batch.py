"""A batch on its way: JSON lines, compressed once, and passed on as they are.

The same bytes go to the broker, lie in the spool, and are the body of the delivery: compressing
lets go of the interpreter, and everything behind it moves a quarter of the bytes.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence

from .exceptions import BatchUnreadable

#: Fast: the lines are kept for seconds.
_LEVEL = 1
_GZIP = 31

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
