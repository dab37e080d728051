"""Is every event that was numbered in the lake, and if not, which ones: by producer and number.

Each capture process numbers its events from 0 and reports now and then how many numbers it has
given. Numbers that no row of the lake has are events that were lost, or are still on their way:
in a spool, at the broker, in the event log. So only what is old enough is compared.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from ..exceptions import QueryError
from ..ingest import Clock
from ..models import Lane, Producer
from .engine import TABLE, connect, dataset, files

if TYPE_CHECKING:
    import duckdb

_Key = tuple[str, str]

#: What is compared when nothing else is asked for: days back, and seconds that an event may be on
#: its way.
DAYS = 7.0
GRACE = 900.0

#: Ranges of missing numbers that are told of each producer; all are counted.
MOST_RANGES = 1000
#: A request may have begun before its process's first number was given.
_LONG_REQUEST = timedelta(days=1)
#: Rows looked at at once, as bits: some 100 MB.
_ROWS_AT_ONCE = 40_000_000
_ALL = 2**64 - 1

#: Nobody has told DuckDB how many rows the lake has: left to itself it would hold them all in
#: memory to join them with the few producers that are wanted.
_SETTINGS = """
    SET TimeZone = 'UTC';
    SET preserve_insertion_order = false;
    SET disabled_optimizers = 'join_order,build_side_probe_side'
"""
_SUMMARY = f"""
    SELECT service_name, producer_epoch, count(*), min(seq), max(seq), sum(seq),
           max(seq) FILTER (WHERE response_ts <= $settled)
    FROM {TABLE}
    WHERE producer_epoch IS NOT NULL AND seq IS NOT NULL {{since}}
    GROUP BY ALL
"""  # noqa: S608 - a constant
_WORDS = f"""
    SELECT wanted.id, seq // 64, bit_or(1::UBIGINT << (seq % 64)::INT), count(*)
    FROM {TABLE} JOIN wanted
      ON wanted.service_name = {TABLE}.service_name AND wanted.epoch = {TABLE}.producer_epoch
    WHERE seq >= wanted.low AND seq < wanted.high {{since}}
    GROUP BY ALL ORDER BY 1, 2
"""  # noqa: S608 - a constant


@dataclass
class Numbers:
    """One producer's numbers against the rows of the lake.

    :ivar state: ``open``, ``closed`` or ``lost`` as reported; ``unreported`` when nothing was.
    :ivar given: how many numbers it has given, as far as is known.
    :ivar start: the first number compared, 0 but for unreported producers of an earlier time.
    :ivar compared: the first number that was not compared: it, and those after it, may still be
        on their way.
    :ivar stored: rows of the numbers compared.
    :ivar missing: numbers that no row has.
    :ivar ranges: which, as (first, last), the first MOST_RANGES of them.
    :ivar dropped: what the producer says it dropped, by reason.
    """

    service: str
    epoch: str
    state: str = "unreported"
    host: str = ""
    pid: int = 0
    started_at: datetime | None = None
    last_at: datetime | None = None
    given: int = 0
    start: int = 0
    compared: int = 0
    stored: int = 0
    missing: int = 0
    ranges: list[tuple[int, int]] = field(default_factory=list)
    dropped: dict[str, int] = field(default_factory=dict)

    @property
    def unexplained(self) -> int:
        """Missing numbers beyond those that the producer dropped and counted."""
        return max(0, self.missing - sum(self.dropped.values()))

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {
            "service": self.service,
            "producer_epoch": self.epoch,
            "state": self.state,
            "host": self.host,
            "pid": self.pid,
            "started_at": self.started_at.isoformat() if self.started_at else None,
            "last_at": self.last_at.isoformat() if self.last_at else None,
            "given": self.given,
            "compared_from": self.start,
            "compared_to": self.compared,
            "stored": self.stored,
            "missing": self.missing,
            "missing_ranges": [list(each) for each in self.ranges],
            "dropped": self.dropped,
            "unexplained": self.unexplained,
        }

    def __str__(self) -> str:
        where = f"{self.service} {self.epoch}"
        if self.host:
            where += f" ({self.host}, pid {self.pid}, {_STATES[self.state]})"
        text = (
            f"{where}: {self.missing:,} of {self.compared - self.start:,} events are not in the "
            f"lake: {_listed(self.ranges, self.missing)}"
        )
        if self.dropped:
            reasons = ", ".join(f"{count:,} {reason}" for reason, count in self.dropped.items())
            text += f"; dropped and counted: {reasons}"
        if self.unexplained:
            text += (
                f"; {self.unexplained:,} without a reason: lost, or still in a spool, a broker or "
                "among dead letters"
            )
        if self.compared < self.given:
            text += f"; compared up to number {self.compared - 1:,}: later ones may be on their way"
        return text


_STATES = {
    "open": "still open when last heard of",
    "closed": "ended in good order",
    "lost": "killed",
    "unreported": "not reported",
}


@dataclass
class Completeness:
    """Every producer that was looked at.

    :ivar incomplete: those with missing numbers.
    :ivar states: how many of them are open, closed, lost; ``unreported`` have rows in the lake
        and said nothing.
    :ivar waiting: records of the event log that are not stored yet, as last seen.
    """

    checked: int = 0
    stored: int = 0
    states: Counter[str] = field(default_factory=Counter)
    waiting: int = 0
    incomplete: list[Numbers] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {
            "checked": self.checked,
            "stored": self.stored,
            "states": dict(self.states),
            "waiting": self.waiting,
            "missing": sum(each.missing for each in self.incomplete),
            "unexplained": sum(each.unexplained for each in self.incomplete),
            "incomplete": [each.as_dict() for each in self.incomplete],
        }


def completeness(
    *, days: float = DAYS, grace: float = GRACE, clock: Clock = time.time
) -> Completeness:
    """Compare the numbers that producers gave with the rows of the lake.

    :param days: look at producers heard of, and rows requested, in the last so many days; 0: all.
    :param grace: seconds that an event may be on its way.
    :raises QueryError: the lake cannot be read, or the comparison needs more memory than
        QUERY_MEMORY_BYTES: ask for fewer days.
    """
    import duckdb
    import pyarrow as pa

    now = datetime.fromtimestamp(clock(), UTC)
    since = now - timedelta(days=days) if days else None
    settled = now - timedelta(seconds=grace)
    known = {(each.service, each.epoch): each for each in _reported(since, settled)}
    if since is not None:
        begun = [each.started_at for each in known.values() if each.started_at]
        since = min([since, *begun]) - _LONG_REQUEST
    found = Completeness(waiting=_waiting())
    connection = connect()
    try:
        connection.register(TABLE, dataset(files()))
        connection.execute(_SETTINGS)
        suspects: list[tuple[Numbers, int]] = []
        for numbers, complete, rows in _summaries(connection, known, since, settled):
            found.checked += 1
            found.stored += rows
            found.states[numbers.state] += 1
            if not complete:
                suspects.append((numbers, rows))
        for group in _groups(suspects):
            _find_missing(connection, group, since)
            found.incomplete += [numbers for numbers in group if numbers.missing]
    except duckdb.Error as error:
        raise QueryError(f"The lake cannot be compared: {' '.join(str(error).split())}") from error
    except (OSError, pa.ArrowException) as error:
        raise QueryError(f"A file of the lake cannot be read: {error}") from error
    finally:
        connection.close()
    found.incomplete.sort(key=lambda each: (each.service, each.started_at or now, each.epoch))
    return found


def _reported(since: datetime | None, settled: datetime) -> Iterator[Numbers]:
    producers = Producer.objects.all()
    if since is not None:
        producers = producers.filter(last_at__gte=since)
    for row in producers.order_by().iterator(chunk_size=2000):
        yield Numbers(
            row.service_name,
            row.epoch,
            row.state,
            row.host,
            row.pid,
            row.started_at,
            row.last_at,
            given=row.seq,
            # What was given by then has arrived by now, or is late.
            compared=row.seq if row.last_at <= settled else 0,
            dropped=row.dropped,
        )


def _summaries(
    connection: duckdb.DuckDBPyConnection,
    known: dict[_Key, Numbers],
    since: datetime | None,
    settled: datetime,
) -> Iterator[tuple[Numbers, bool, int]]:
    """Yield each producer's numbers, whether they are complete beyond doubt, and its rows."""
    seen: set[_Key] = set()
    cursor = _execute(connection, _SUMMARY, since, settled=settled)
    while rows := cursor.fetchmany(5000):
        for service, epoch, count, low, high, total, newest in rows:
            numbers = known.get((service, epoch))
            if numbers is None:
                # With older rows left out, nobody knows where it begins.
                numbers = Numbers(service, epoch, start=0 if since is None else low)
            else:
                seen.add((service, epoch))
            # Numbers are given at the response: what comes before one that is old is old too.
            numbers.given = max(numbers.given, high + 1)
            numbers.compared = max(numbers.compared, 0 if newest is None else newest + 1)
            expected = numbers.compared - numbers.start
            complete = (
                count == expected
                and (low, high) == (numbers.start, numbers.compared - 1)
                and total == (low + high) * count // 2
            )
            numbers.stored = expected if complete else 0
            yield numbers, complete or not expected, count
    for key, numbers in known.items():
        if key not in seen:
            yield numbers, not numbers.compared, 0


def _execute(
    connection: duckdb.DuckDBPyConnection, sql: str, since: datetime | None, **values: Any
) -> duckdb.DuckDBPyConnection:
    if since is None:
        return connection.execute(sql.format(since=""), values)
    # A condition by itself, so that files of an earlier time are not opened.
    sql = sql.format(since="AND request_ts >= $since")
    return connection.execute(sql, {**values, "since": since})


def _groups(suspects: Iterable[tuple[Numbers, int]]) -> Iterator[list[Numbers]]:
    """Producers to be looked at together, so that what is held of them is bounded."""
    group: list[Numbers] = []
    size = 0
    for numbers, rows in suspects:
        if group and (size + rows > _ROWS_AT_ONCE or len(group) >= 10_000):
            yield group
            group, size = [], 0
        group.append(numbers)
        size += rows
    if group:
        yield group


def _find_missing(
    connection: duckdb.DuckDBPyConnection, group: list[Numbers], since: datetime | None
) -> None:
    """Fill in what is stored and missing of each producer, from one pass over the lake."""
    import pyarrow as pa

    wanted = {
        "id": pa.array(range(len(group)), pa.int64()),
        "service_name": [each.service for each in group],
        "epoch": [each.epoch for each in group],
        "low": pa.array([each.start for each in group], pa.int64()),
        "high": pa.array([each.compared for each in group], pa.int64()),
    }
    connection.register("wanted", pa.table(wanted))
    reached = [each.start for each in group]
    cursor = _execute(connection, _WORDS, since)
    while rows := cursor.fetchmany(10_000):
        for index, word, bits, count in rows:
            numbers = group[index]
            numbers.stored += count
            first = max(word * 64, numbers.start)
            end = min(word * 64 + 64, numbers.compared)
            _add(numbers, reached[index], first)
            if bits != _ALL:
                _add_unset(numbers, bits, first, end)
            reached[index] = end
    for numbers, end in zip(group, reached, strict=True):
        _add(numbers, end, numbers.compared)
    connection.unregister("wanted")


def _add_unset(numbers: Numbers, bits: int, first: int, end: int) -> None:
    start = first
    for number in range(first, end):
        if bits >> (number % 64) & 1:
            _add(numbers, start, number)
            start = number + 1
    _add(numbers, start, end)


def _add(numbers: Numbers, start: int, end: int) -> None:
    """Count `start` to `end`, which is not among them, as missing."""
    if start >= end:
        return
    numbers.missing += end - start
    if numbers.ranges and numbers.ranges[-1][1] == start - 1:
        numbers.ranges[-1] = (numbers.ranges[-1][0], end - 1)
    elif len(numbers.ranges) < MOST_RANGES:
        numbers.ranges.append((start, end - 1))


def _waiting() -> int:
    """Records of the event log that some sink has not passed yet."""
    behind: dict[tuple[Any, ...], int] = {}
    lanes = Lane.objects.order_by().values_list(
        "region", "topic", "partition", "high_watermark", "next_offset"
    )
    for *partition, high, reached in lanes:
        key = tuple(partition)
        behind[key] = max(behind.get(key, 0), high - reached)
    return sum(behind.values())


def _listed(ranges: list[tuple[int, int]], missing: int, most: int = 20) -> str:
    shown = ranges[:most]
    text = ", ".join(str(a) if a == b else f"{a} to {b}" for a, b in shown)
    rest = missing - sum(b - a + 1 for a, b in shown)
    return f"{text}, and {rest:,} more" if rest else text
