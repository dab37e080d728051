"""Speaking HTTP over raw sockets: what is sent and what comes back, byte for byte."""

from __future__ import annotations

import gzip
import re
import socket
from collections.abc import Sequence
from dataclasses import dataclass, field

HOST = "127.0.0.1"
TIMEOUT = 30.0

#: Stands where a connection was reset: the server closed it with unread bytes of ours.
RESET = b"<reset>"


def message(
    method: str,
    target: str,
    body: bytes | None = None,
    *,
    content_type: str = "",
    headers: Sequence[str] = (),
    chunks: Sequence[bytes] | None = None,
    length: int | None = None,
    close: bool = True,
) -> bytes:
    """Return a request as bytes.

    :param chunks: send the body chunked, without a length.
    :param length: the length it claims, if not the body's.
    """
    lines = [f"{method} {target} HTTP/1.1", "Host: shop.test", *headers]
    if content_type:
        lines.append(f"Content-Type: {content_type}")
    if chunks is not None:
        lines.append("Transfer-Encoding: chunked")
        body = b"".join(b"%x\r\n%s\r\n" % (len(chunk), chunk) for chunk in [*chunks, b""])
    elif body is not None:
        lines.append(f"Content-Length: {len(body) if length is None else length}")
    if close:
        lines.append("Connection: close")
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + (body or b"")


def connect(port: int) -> socket.socket:
    """A connection to a server of ours."""
    made = socket.create_connection((HOST, port), TIMEOUT)
    made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return made


def read_all(connection: socket.socket) -> bytes:
    """Everything up to the server's end of the connection."""
    parts = []
    try:
        while part := connection.recv(65536):
            parts.append(part)
    except ConnectionResetError:
        parts.append(RESET)
    return b"".join(parts)


def exchange(port: int, sent: bytes) -> bytes:
    """Send a request, or several, and return everything that comes back."""
    with connect(port) as connection:
        try:
            connection.sendall(sent)
        except (BrokenPipeError, ConnectionResetError):
            pass  # an answer before the whole body was taken
        return read_all(connection)


@dataclass
class Answer:
    """One answer, taken apart."""

    status: int
    head: bytes
    body: bytes
    headers: dict[str, list[str]] = field(default_factory=dict)


def parse(raw: bytes) -> Answer:
    """Take the first answer in `raw` apart, interim ones (100) left away; none is status 0."""
    while re.match(rb"HTTP/1\.1 100 ", raw):
        raw = raw.partition(b"\r\n\r\n")[2]
    head, _, body = raw.partition(b"\r\n\r\n")
    if not head.startswith(b"HTTP/"):
        return Answer(0, b"", b"")
    lines = head.decode("latin-1").split("\r\n")
    headers: dict[str, list[str]] = {}
    for line in lines[1:]:
        name, _, value = line.partition(":")
        headers.setdefault(name.strip().lower(), []).append(value.strip())
    if headers.get("transfer-encoding") == ["chunked"]:
        body = _dechunked(body)
    return Answer(int(lines[0].split()[1]), head, body, headers)


def _dechunked(body: bytes) -> bytes:
    parts = []
    while body:
        size, _, body = body.partition(b"\r\n")
        length = int(size.split(b";")[0] or b"0", 16)
        if not length:
            break
        parts.append(body[:length])
        body = body[length + 2 :]
    return b"".join(parts)


#: What a server says of the moment, and not of the request.
_OF_THE_MOMENT = re.compile(rb"(?im)^(date|expires|last-modified):.*\r\n")


def comparable(raw: bytes, *, chunked: bool = True) -> bytes:
    """`raw` without what differs between any two runs.

    :param chunked: where the chunks of a stream begin and end counts, too.
    """
    raw = _OF_THE_MOMENT.sub(b"", raw).replace(RESET, b"")
    answer = parse(raw)
    if answer.headers.get("content-encoding") == ["gzip"]:
        # GZipMiddleware makes each answer's length a random one, against BREACH.
        head = re.sub(rb"(?im)^content-length:.*\r\n", b"", answer.head + b"\r\n")
        return head + b"\r\n" + gzip.decompress(answer.body)
    if not chunked and answer.headers.get("transfer-encoding") == ["chunked"]:
        return answer.head + b"\r\n\r\n" + answer.body
    return raw
