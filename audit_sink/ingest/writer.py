"""A table of events to Parquet files: one for each service, date and endpoint.

The same rows give the same bytes, whatever order they come in: redoing a range must meet its own
files. One file is encoded at a time, so that memory is bounded by one batch.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import date, datetime, timedelta

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from ..lake.layout import endpoint_slug, event_path, slug
from ..lake.schema import BODIES, DICTIONARY, LOOKED_UP, SCHEMA_VERSION, lake_schema


@dataclass(frozen=True)
class Part:
    """One encoded file, not stored yet."""

    path: str
    service: str
    date: date
    endpoint: str
    rows: int
    data: pa.Buffer
    sha256: str
    min_request_ts: datetime
    max_request_ts: datetime


#: A day is a partition if it is at most this long before, or after, the day of its batch.
_EARLIEST, _LATEST = timedelta(days=31), timedelta(days=1)
#: So many other days may be partitions of one batch.
MOST_ODD_DAYS = 8


def encode(
    table: pa.Table, stem: str, *, level: int, metadata: dict[str, str], claimed: date
) -> Iterator[Part]:
    """Yield the files of `table`, each encoded when it is asked for.

    :param stem: names the files: `lake.layout.range_stem`.
    :param level: zstd level.
    :param metadata: goes into each footer, under ``audit.<name>``.
    :param claimed: the day of the batch, where events go whose own clocks scatter them over more
        days than MOST_ODD_DAYS.
    """
    if not len(table):
        return
    services = table.column("service_name").combine_chunks().dictionary_encode()
    endpoints = table.column("endpoint_name").combine_chunks().dictionary_encode()
    days = _days(table.column("request_ts"), claimed)
    keyed = table.select(lake_schema().names).append_column("_service", _mapped(services, slug))
    keyed = keyed.append_column("_date", days).append_column(
        "_endpoint", _mapped(endpoints, endpoint_slug)
    )
    keys = ("_service", "_date", "_endpoint")
    # Sorted by consumer and time, a supplier's rows lie together. The id makes the order total.
    order = [*keys, "consumer_id", "request_ts", "request_id"]
    keyed = keyed.take(pc.sort_indices(keyed, sort_keys=[(name, "ascending") for name in order]))
    for start, end in _runs([keyed.column(name) for name in keys]):
        rows = keyed.slice(start, end - start)
        service, day, endpoint = (rows.column(name)[0].as_py() for name in keys)
        path = event_path(service, day, endpoint, stem)
        data = _to_parquet(rows.select(lake_schema().names), level, metadata)
        times = pc.min_max(rows.column("request_ts")).as_py()
        yield Part(
            path=path,
            service=service,
            date=day,
            endpoint=endpoint,
            rows=len(rows),
            data=data,
            sha256=hashlib.sha256(data).hexdigest(),
            min_request_ts=times["min"],
            max_request_ts=times["max"],
        )


def _runs(columns: list[pa.ChunkedArray]) -> Iterator[tuple[int, int]]:
    """Yield (start, end) of each run of rows that are equal in all `columns`, which are sorted.

    Not with `group_by`: it gives groups in an order of its own, though never told to thread.
    """
    differs = [pc.not_equal(column[1:], column[:-1]) for column in columns]
    ends = pc.indices_nonzero(functools.reduce(pc.or_, differs)).to_pylist()
    start = 0
    for end in (*(end + 1 for end in ends), len(columns[0])):
        yield start, end
        start = end


def _days(times: pa.ChunkedArray, claimed: date) -> pa.ChunkedArray:
    """The day of each row's partition, which is its own unless clocks have gone mad.

    A batch with rows of a thousand days would be a thousand files. The rows keep their times, and
    a query finds them by those.
    """
    days = times.cast(pa.timestamp("us")).cast(pa.date32(), safe=False)
    earliest, latest = pc.min_max(days).as_py().values()
    if earliest >= claimed - _EARLIEST and latest <= claimed + _LATEST:
        return days
    odd = pc.or_(
        pc.less(days, pa.scalar(claimed - _EARLIEST)),
        pc.greater(days, pa.scalar(claimed + _LATEST)),
    )
    if len(days.filter(odd).unique()) <= MOST_ODD_DAYS:
        return days
    return pc.if_else(odd, pa.scalar(claimed), days)


def same_rows(left: bytes | pa.Buffer, right: bytes | pa.Buffer) -> bool:
    """Whether two files hold the same rows, though perhaps encoded by different libraries, or by
    a version of this one with fewer columns."""
    try:
        one, other = (pq.read_table(pa.BufferReader(data)) for data in (left, right))
    except pa.ArrowInvalid:
        return False
    shared = [name for name in one.column_names if name in other.column_names]
    if len(shared) < min(one.num_columns, other.num_columns):
        return False
    return bool(one.select(shared).equals(other.select(shared)))


def _mapped(column: pa.DictionaryArray, function) -> pa.Array:
    # Each distinct value once, however many rows.
    return pa.array([function(value) for value in column.dictionary.to_pylist()], pa.string()).take(
        column.indices
    )


def _to_parquet(rows: pa.Table, level: int, metadata: dict[str, str]) -> pa.Buffer:
    footer = {"audit.schema_version": str(SCHEMA_VERSION)}
    footer |= {f"audit.{name}": value for name, value in metadata.items()}
    rows = rows.replace_schema_metadata(footer)
    sink = pa.BufferOutputStream()
    with pq.ParquetWriter(
        sink,
        rows.schema,
        compression="zstd",
        compression_level=level,
        use_dictionary=list(DICTIONARY),
        write_statistics=[name for name in rows.schema.names if name not in BODIES],
        # Where a supplier's rows are within the file, and whether an id can be in it at all.
        write_page_index=True,
        bloom_filter_options={name: {"ndv": len(rows), "fpp": 0.01} for name in LOOKED_UP},
        # Engines older than this version's types are read by nobody's cluster any more.
        version="2.6",
        store_schema=True,
        write_page_checksum=True,
    ) as writer:
        writer.write_table(rows, row_group_size=100_000)
    return sink.getvalue()
