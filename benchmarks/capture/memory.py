"""Memory: flat over very many requests, and bounded under many large bodies at once."""

from __future__ import annotations

import asyncio
import os
import statistics
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from tests.services.processes import descendants

from .conductor import Process, folder
from .contenders import OURS
from .servers import HOST, UVICORN, Kind, Server, gunicorn, serving
from .service import Spec

_PAGE = os.sysconf("SC_PAGE_SIZE")
#: Bytes of JSON, about: of small bodies, as the number of requests is what counts.
_SMALL = 200
_SAMPLES = 100
_UPLOADS = 100
_UPLOAD_BYTES = 10_000_000
_CHUNK = 1 << 16
_MEGA = 1_000_000
#: What still counts as flat: MB for a million requests, over the second half.
_FLAT = 8.0

_SERVERS = (
    Kind("gunicorn, gthread worker of 100 threads", gunicorn("-k", "gthread", "--threads", "100")),
    UVICORN,
)


@dataclass(frozen=True)
class Memory:
    """One line of the table; `samples` are bytes, at equal steps."""

    what: str
    bare: str
    audited: str
    verdict: str
    samples: Sequence[int] = ()


def measure(*, requests: int) -> list[Memory]:
    """Measure both."""
    return [_long_run(requests), *(_uploads(kind) for kind in _SERVERS)]


def _long_run(requests: int) -> Memory:
    """As many requests as fast as they go, with a worker that takes from the broker."""
    with folder() as root:
        spec = Spec(OURS.name, True, str(root / "audited"), chain=False, body_bytes=_SMALL)
        step = max(1, requests // _SAMPLES)
        with Process(replace(spec, recorded=False, folder=str(root / "bare"))) as bare:
            bare.tell("flat_out", requests=step)
            before = resident(bare.pid)
        samples = []
        with Process(spec) as audited:
            for _ in range(_SAMPLES):
                audited.tell("flat_out", requests=step)
                samples.append(resident(audited.pid))
                _consume(root / "audited" / "audit")
            audited.tell("flush")
            counted = audited.tell("state")["counted"]
    half = samples[len(samples) // 2 :]
    # Theil and Sen's slope: the median of all, which a single jump does not move.
    slopes = [
        (later - earlier) / ((there - here) * step)
        for here, earlier in enumerate(half)
        for there, later in enumerate(half)
        if there > here
    ]
    slope = statistics.median(slopes) * _MEGA / _MEGA
    verdict = "flat" if slope < _FLAT else "GROWS"
    return Memory(
        f"{requests:,} requests, one process",
        f"{before / _MEGA:.0f} MB",
        f"{samples[len(samples) // 10] / _MEGA:.0f} MB after a tenth, {samples[-1] / _MEGA:.0f} MB "
        f"at the end; most {max(samples) / _MEGA:.0f} MB",
        f"{verdict}: {slope:+.1f} MB per million in the second half; {_told(counted)}",
        samples,
    )


def resident(pid: int) -> int:
    """Bytes in memory of a process and all below it."""
    total = 0
    for each in (pid, *descendants(pid)):
        with suppress(OSError):
            total += int(Path(f"/proc/{each}/statm").read_text().split()[1]) * _PAGE
    return total


def _told(counted: dict[str, float]) -> str:
    return ", ".join(f"{name} {value:,.0f}" for name, value in counted.items() if value)


def _consume(audit: Path) -> None:
    """Take everything out of the embedded broker, as workers would."""
    from audit_logging.spool import DurableQueue

    for path in audit.rglob("broker*.sqlite3"):
        queue = DurableQueue(path)
        for stream in queue.streams():
            queue.trim(stream, queue.watermarks(stream)[1])
        queue.close()


def _uploads(kind: Kind) -> Memory:
    """Many large bodies at the same time, in and out."""
    peaks = []
    for recorded in (False, True):
        with folder() as root:
            spec = Spec(OURS.name, recorded, str(root / "service"), kind.mode)
            with serving(kind, spec) as server:
                before = server.peak_bytes()
                asyncio.run(_all_at_once(server))
                server.rest()
                peaks.append((before, server.peak_bytes()))
    (_, bare), (_, audited) = peaks
    return Memory(
        f"{_UPLOADS} bodies of {_UPLOAD_BYTES // _MEGA} MB at once, in and out: {kind.name}",
        f"peak {bare / _MEGA:,.0f} MB",
        f"peak {audited / _MEGA:,.0f} MB",
        f"{(audited - bare) / _MEGA:+,.0f} MB",
        [bare, audited],
    )


async def _all_at_once(server: Server) -> None:
    everybody = asyncio.Barrier(_UPLOADS)
    await asyncio.gather(*(_upload(server.port, everybody) for _ in range(_UPLOADS)))


async def _upload(port: int, everybody: asyncio.Barrier) -> None:
    reader, writer = await asyncio.open_connection(HOST, port)
    writer.write(
        b"POST /iac/v1/upload HTTP/1.1\r\nHost: benchmark\r\nConnection: close\r\n"
        b"Content-Type: application/json\r\n"
        b"Content-Length: %d\r\n\r\n" % _UPLOAD_BYTES
    )
    # A JSON string; but for its end, which waits until all the others are as far.
    left = _UPLOAD_BYTES - _CHUNK
    writer.write(b'"')
    left -= 1
    while left:
        piece = min(left, _CHUNK)
        writer.write(b"x" * piece)
        left -= piece
        await writer.drain()
    await everybody.wait()
    writer.write(b"x" * (_CHUNK - 1) + b'"')
    await writer.drain()
    received = 0
    while piece_of_answer := await reader.read(_CHUNK):
        received += len(piece_of_answer)
    writer.close()
    assert received > _UPLOAD_BYTES, received
