"""Making an event fit a limit that its builder did not know: it loses its bodies, never its record.

The limit is the publisher's, told with each of its answers.
"""

from __future__ import annotations

import json

from .batch import NO_EVENT, Batch

#: The header by which the publisher says how large an event may be, in bytes of its JSON.
LIMIT_HEADER = "Audit-Max-Event-Bytes"

_LEFT_OUT = "[too large: the event would pass the publisher's MAX_EVENT_BYTES]"


def size(line: str) -> int:
    """Bytes of a line as it is sent."""
    return len(line) if line.isascii() else len(line.encode())


def fit(line: str, limit: int) -> str:
    """Return an event's JSON without its bodies, as far as it is larger than `limit` bytes.

    What is no event is returned as it is, and so is an event that is too large without them.
    """
    if size(line) <= limit or line.startswith(NO_EVENT):
        return line
    try:
        event = json.loads(line)
    except (ValueError, RecursionError):
        return line
    if not isinstance(event, dict):
        return line
    made = line
    for body in ("response_body", "request_body"):
        if size(made) > limit and event.get(body):
            event[body] = _LEFT_OUT
            event[f"{body}_state"] = "omitted_size"
            made = json.dumps(event, separators=(",", ":"))
    return made if size(made) < size(line) else line


def fit_batch(batch: Batch, limit: int) -> Batch:
    """Return a batch whose events fit `limit` as far as they can; mostly the very same one."""
    # A batch is one gzip member, whose last bytes are its length: seldom is there more to look at.
    if int.from_bytes(batch.packed[-4:], "little") <= limit:
        return batch
    lines = [fit(line, limit) for line in batch.lines()]
    return batch if lines == batch.lines() else Batch.of(lines)
