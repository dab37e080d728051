"""The builder process: builds events outside the service's interpreter.

Building an event (parsing, redaction, encoding) is most of the audit's work, and on a thread of
the service it takes turns with the requests. With BUILD_IN = "process" each process of the
service has one of these beside it. It does nothing else: what comes in over its standard input
from the process that started it goes back as packed batches over its standard output, and it ends
with that process. Nothing that is not redacted goes anywhere else.

Frames are a length of eight bytes and :mod:`marshal` data: plain values alone, so that reading
them runs nobody's code.
"""

from __future__ import annotations

import logging
import marshal
import os
import select
import signal
import struct
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from django.core.exceptions import ImproperlyConfigured

if TYPE_CHECKING:
    from .buffer import Parcel
    from .capture import Exchange
    from .conf import LoggingSettings
    from .event import EventBuilder

logger = logging.getLogger(__name__)

#: What it says when it is ready to build.
READY = "ready"

_LENGTH = struct.Struct(">Q")
_CHUNK = 1 << 16
#: How often it is looked whether the parent is still there: seconds. Its end of the pipe may have
#: been inherited by a process that the service started.
_LOOK_UP = 5.0

#: What of an exchange makes its event.
FIELDS = (
    "started",
    "duration",
    "meta",
    "method",
    "path",
    "wants_request_body",
    "wants_response_body",
    "max_body_bytes",
    "request_body",
    "request_size",
    "request_unread",
    "request_taken",
    "response_body",
    "response_size",
    "response_is_file",
    "response_truncated",
    "response_type",
    "response_encoding",
    "reason_phrase",
    "route",
    "kwargs",
    "status",
    "outcome",
    "error",
    "user",
    "producer_epoch",
    "seq",
)


_KWARGS = FIELDS.index("kwargs")


class Converted:
    """What a route's converter made of a part of the path: known by its text alone."""

    def __init__(self, text: str) -> None:
        self._text = text

    def __str__(self) -> str:
        return self._text


def frame_of(content: Any) -> bytes:
    """Return one frame.

    :raises ValueError: it holds what is no plain value.
    """
    body = marshal.dumps(content)
    return _LENGTH.pack(len(body)) + body


def write_frame(fd: int, frame: bytes, seconds: float | None = None) -> None:
    """Write one frame, within `seconds` if given.

    :raises TimeoutError: nobody reads.
    :raises OSError: the other side is gone.
    """
    wait = _waiter(fd, select.POLLOUT, seconds)
    view = memoryview(frame)
    while view:
        wait()
        view = view[os.write(fd, view[:_CHUNK]) :]


def read_frame(fd: int, seconds: float | None = None) -> Any:
    """Read one frame, within `seconds` if given.

    :raises EOFError: the other side is gone.
    :raises TimeoutError: nothing comes.
    """
    wait = _waiter(fd, select.POLLIN, seconds)
    (length,) = _LENGTH.unpack(_read(fd, _LENGTH.size, wait))
    return marshal.loads(_read(fd, length, wait))  # noqa: S302  # from our own parent or child


def _waiter(fd: int, event: int, seconds: float | None) -> Callable[[], None]:
    # Not select(), which knows no file numbers above 1023.
    poll = select.poll()
    poll.register(fd, event)
    end = None if seconds is None else time.monotonic() + seconds

    def wait() -> None:
        left = None if end is None else max(0.0, end - time.monotonic()) * 1000
        if not poll.poll(left):
            raise TimeoutError("the other side does not answer")

    return wait


def _read(fd: int, size: int, wait: Callable[[], None]) -> bytes:
    parts = []
    while size:
        wait()
        part = os.read(fd, min(size, _CHUNK))
        if not part:
            raise EOFError
        parts.append(part)
        size -= len(part)
    return b"".join(parts)


def state_of(exchange: Exchange, is_sensitive: Callable[[str], bool]) -> list[Any]:
    """Return what makes an exchange's event.

    :param is_sensitive: tells which of a route's values are secrets; no other is looked at.
    """
    state = [getattr(exchange, name) for name in FIELDS]
    if exchange.kwargs:
        state[_KWARGS] = {
            name: value if type(value) in (str, int, bool) else (str(value),)
            for name, value in exchange.kwargs.items()
            if value is not None and is_sensitive(name)
        }
    else:
        state[_KWARGS] = {}
    return state


def plain(value: Any) -> Any:
    """Return `value` as one of the plain types that it is a kind of: a status that is an
    HTTPStatus, a header that is a SafeString.

    :raises ValueError: it is of no such kind.
    """
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float):
        return float(value)
    if isinstance(value, bytes):
        return bytes(value)
    if isinstance(value, str):
        # Not str(), which may be overridden.
        return "".join((value, ""))
    if isinstance(value, Mapping):
        return {plain(key): plain(item) for key, item in value.items()}
    if isinstance(value, list):
        return [plain(item) for item in value]
    if isinstance(value, tuple):
        return tuple(plain(item) for item in value)
    raise ValueError(f"{type(value).__name__} is no plain value")


def exchange_from(state: list[Any]) -> Exchange:
    """Return the exchange of a state."""
    from .capture import Exchange

    exchange = Exchange.__new__(Exchange)
    exchange.__dict__.update(zip(FIELDS, state, strict=True))
    exchange.kwargs = {
        name: Converted(value[0]) if type(value) is tuple else value
        for name, value in exchange.kwargs.items()
    }
    return exchange


#: The options that events are built by.
_OPTIONS = (
    "SERVICE_NAME",
    "HEADERS",
    "REDACT_KEYS",
    "MAX_EVENT_BYTES",
    "BATCH_BYTES",
    "FINGERPRINT_KEY_PATH",
)


def settings_of(options: LoggingSettings) -> dict[str, Any]:
    """Return the settings that events are built by, as plain values."""
    from django.conf import settings

    values = {name: getattr(options, name, None) for name in _OPTIONS}
    return {
        "django": {
            "SECRET_KEY": _secret_key(settings),
            "DATA_UPLOAD_MAX_MEMORY_SIZE": settings.DATA_UPLOAD_MAX_MEMORY_SIZE,
        },
        "options": {
            name: value if isinstance(value, (int, str)) else _listed(value)
            for name, value in values.items()
            if value is not None
        },
    }


def _secret_key(settings: Any) -> str | bytes:
    try:
        key = settings.SECRET_KEY
    except ImproperlyConfigured:
        return ""
    return bytes(key) if isinstance(key, bytes) else str(key)


def _listed(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else str(value)


def pack_all(
    builder: EventBuilder, states: list[list[Any]], max_bytes: int
) -> tuple[list[Parcel], int]:
    """Return the packed batches of some exchanges, and how many could not be built."""
    from .batch import pack

    parcels: list[Parcel] = []
    lines: list[str] = []
    size = failed = 0
    for state in states:
        try:
            line = builder.encode(builder.build(exchange_from(state)))
        except Exception:
            logger.exception("an event could not be built and is lost")
            failed += 1
            continue
        length = len(line) if line.isascii() else len(line.encode())
        if lines and size + length >= max_bytes:
            parcels.append((pack(lines), len(lines)))
            lines, size = [], 0
        lines.append(line)
        size += length + 1
    if lines:
        parcels.append((pack(lines), len(lines)))
    return parcels, failed


def main() -> None:
    """Build until the parent ends, or closes the pipe."""
    # The terminal's, and a service manager's, go to the whole group: the parent's end is ours.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    # What a library prints must not get between the frames.
    target = os.dup(1)
    os.dup2(2, 1)
    parent = os.getppid()
    try:
        _configure(read_frame(0))
        from .conf import conf
        from .event import EventBuilder

        builder = EventBuilder(conf)
        write_frame(target, frame_of(READY))
        while _asked(parent):
            answer = pack_all(builder, read_frame(0), conf.BATCH_BYTES)
            write_frame(target, frame_of(answer))
    except (EOFError, BrokenPipeError):
        pass


def _configure(configured: dict[str, Any]) -> None:
    from django.conf import settings

    logging.basicConfig(format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    settings.configure(**configured["django"], AUDIT_LOGGING=configured["options"])


def _asked(parent: int) -> bool:
    """Wait for a frame; return False when the parent is gone."""
    poll = select.poll()
    poll.register(0, select.POLLIN)
    while not poll.poll(_LOOK_UP * 1000):
        if os.getppid() != parent:
            return False
    return True


if __name__ == "__main__":
    main()
