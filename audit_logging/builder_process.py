"""The builder process: builds events, and hands them to the broker, outside the service's
interpreter.

Building an event (parsing, redaction, encoding) and talking to the broker is most of the audit's
work, and on a thread of the service it takes turns with the requests. With BUILD_IN = "process"
each process of the service has one of these beside it. It does nothing else: what comes in over
its standard input, a socket, from the process that started it goes to the broker in packed
batches; what the broker does not take goes back; and it ends with that process. Nothing that is
not redacted goes anywhere.

Frames are a length of eight bytes and :mod:`marshal` data: plain values alone, so that reading
them runs nobody's code.
"""

from __future__ import annotations

import logging
import marshal
import operator
import os
import select
import signal
import socket
import struct
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
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

#: Seconds after which no further batch of a frame is sent.
SENDING = 5.0

_LENGTH = struct.Struct(">Q")
#: Bytes that are received at once, at least.
_PIECE = 1 << 16
#: How often it is looked whether the parent is still there: seconds. Its end of the line may have
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


_fields = operator.attrgetter(*FIELDS)
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


def send_frame(line: socket.socket, frame: bytes) -> None:
    """Send one frame.

    :raises OSError: the other side is gone, or has not taken it in the time of `line`.
    """
    line.sendall(frame)


def receive_frame(line: socket.socket) -> Any:
    """Receive the one frame that is on its way.

    :raises EOFError: the other side is gone, or says more than one frame.
    :raises OSError: nothing has come in the time of `line`.
    """
    # Each call gives the interpreter away, which a busy service is slow to give back: few calls.
    content = bytearray()
    most = _LENGTH.size
    while len(content) < most:
        piece = line.recv(max(_PIECE, most - len(content)))
        if not piece:
            raise EOFError
        content += piece
        if len(content) >= _LENGTH.size:
            most = _LENGTH.size + _LENGTH.unpack_from(content)[0]
    if len(content) > most:
        raise EOFError("more than one frame")
    return marshal.loads(memoryview(content)[_LENGTH.size :])  # noqa: S302  # parent's or child's


def state_of(exchange: Exchange, is_sensitive: Callable[[str], bool]) -> list[Any]:
    """Return what makes an exchange's event.

    :param is_sensitive: tells which of a route's values are secrets; no other is looked at.
    """
    state = list(_fields(exchange))
    if exchange.kwargs:
        state[_KWARGS] = {
            name: value if type(value) in (str, int, bool) else (str(value),)
            for name, value in exchange.kwargs.items()
            if value is not None and is_sensitive(name)
        }
    else:
        state[_KWARGS] = {}
    return state


def packed_state(exchange: Exchange, is_sensitive: Callable[[str], bool]) -> bytes:
    """Return :func:`state_of` as :func:`exchange_from` reads it.

    :raises ValueError: it holds what is of no plain kind.
    """
    state = state_of(exchange, is_sensitive)
    try:
        return marshal.dumps(state)
    except ValueError:
        return marshal.dumps(plain(state))


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


def exchange_from(packed: bytes) -> Exchange:
    """Return the exchange of a packed state."""
    from .capture import Exchange

    state = marshal.loads(packed)  # noqa: S302  # from our own parent
    exchange = Exchange.__new__(Exchange)
    exchange.__dict__.update(zip(FIELDS, state, strict=True))
    exchange.kwargs = {
        name: Converted(value[0]) if type(value) is tuple else value
        for name, value in exchange.kwargs.items()
    }
    return exchange


#: The options that events are built and sent by.
_OPTIONS = (
    "SERVICE_NAME",
    "HEADERS",
    "REDACT_KEYS",
    "MAX_EVENT_BYTES",
    "BATCH_BYTES",
    "FINGERPRINT_KEY_PATH",
    "BROKER_TIMEOUT",
    "CELERY_QUEUE",
    "DELIVERY_RETRIES",
    "DELIVERY_TIMEOUT",
)


def settings_of(options: LoggingSettings, *, sends: bool = False) -> dict[str, Any]:
    """Return the settings that events are built and sent by, as plain values.

    :param sends: whether the process is to hand batches to the broker, too.
    """
    from django.conf import settings

    values = {name: getattr(options, name, None) for name in _OPTIONS}
    # Not what depends on the working directory, which a service may change.
    values |= {"BROKER_URL": options.broker_url(), "DATA_DIR": options.DATA_DIR.absolute()}
    return {
        "django": {
            "SECRET_KEY": _secret_key(settings),
            "DATA_UPLOAD_MAX_MEMORY_SIZE": settings.DATA_UPLOAD_MAX_MEMORY_SIZE,
        },
        "options": {
            name: value if isinstance(value, (int, float, str)) else _listed(value)
            for name, value in values.items()
            if value is not None
        },
        "sends": sends,
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
    builder: EventBuilder, states: list[bytes], max_bytes: int
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


class Courier:
    """Hands batches to the broker, once what that needs has been imported, which takes a while."""

    def __init__(self) -> None:
        self._send: Callable[[bytes, int], None] | None = None
        self._problem: str | None = None
        threading.Thread(target=self._prepare, name="audit-prepare", daemon=True).start()

    def _prepare(self) -> None:
        try:
            from .conf import conf
            from .handover import make_send

            self._send = make_send(conf)
        except Exception as error:
            logger.exception("this process cannot hand events over")
            self._problem = repr(error)[:1000]

    def send(self, parcels: list[Parcel]) -> tuple[int, list[Parcel], str | None]:
        """Return how many events the broker has taken, the batches that it has not, and why."""
        if self._send is None:
            return 0, parcels, self._problem
        sent = 0
        end = time.monotonic() + SENDING
        for position, (batch, count) in enumerate(parcels):
            if time.monotonic() >= end:
                # Whoever asked waits no longer than this and one batch more.
                return sent, parcels[position:], None
            try:
                self._send(batch, count)
            except Exception as error:  # noqa: BLE001 - whatever the broker's client raises
                return sent, parcels[position:], str(error)[:1000] or type(error).__name__
            sent += count
        return sent, [], None


def main() -> None:
    """Build until the parent ends, or closes the line."""
    # The terminal's, and a service manager's, go to the whole group: the parent's end is ours.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    # What a library prints is for whoever reads the service's log, if there is one.
    with suppress(OSError):
        os.dup2(2, 1)
    parent = os.getppid()
    line = socket.socket(fileno=0)
    # The service may have made it otherwise, by a timeout for all its sockets.
    line.setblocking(True)
    try:
        configured = receive_frame(line)
        _configure(configured)
        from .conf import conf
        from .event import EventBuilder

        builder = EventBuilder(conf)
        send_frame(line, frame_of(READY))
        courier = Courier() if configured["sends"] else None
        while _asked(parent):
            may_send, states = receive_frame(line)
            parcels, failed = pack_all(builder, states, conf.BATCH_BYTES)
            sent, error = 0, None
            if courier is not None and may_send:
                sent, parcels, error = courier.send(parcels)
            send_frame(line, frame_of((sent, parcels, failed, error)))
    except (EOFError, ConnectionError):
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
