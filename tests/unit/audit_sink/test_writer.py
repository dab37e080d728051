"""Parquet files: the same rows give the same bytes; sorted, compressed, described."""

from __future__ import annotations

import random
from datetime import date, timedelta
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from audit_sink.ingest.decode import decode
from audit_sink.ingest.writer import Part, encode, same_rows
from audit_sink.lake.schema import SCHEMA_VERSION

from .test_decode import body, record, schema_of


def table(count: int = 50, seed: int = 1) -> pa.Table:
    """Rows in the order that `seed` gives; the same rows for every seed."""
    rows = [
        body(
            request_id=f"{n:04}", consumer_id=f"c{n % 7}", request_ts=1_700_000_000_000_000 + n % 9
        )
        for n in range(count)
    ]
    random.Random(seed).shuffle(rows)
    return decode([record(n, row) for n, row in enumerate(rows)], schema_of)[0]


def parts(source: pa.Table, **options: Any) -> list[Part]:
    given = {"level": 3, "metadata": {"sink": "US"}, "claimed": date(2023, 11, 15), **options}
    return list(encode(source, "stem", **given))


def test_the_order_of_arrival_does_not_change_a_byte() -> None:
    (one,), (other,) = parts(table(seed=1)), parts(table(seed=2))
    assert one.data == other.data
    assert one.sha256 == other.sha256


def test_rows_lie_by_consumer_then_time() -> None:
    (part,) = parts(table())
    rows = pq.read_table(pa.BufferReader(part.data)).to_pylist()
    order = [(row["consumer_id"], row["request_ts"], row["request_id"]) for row in rows]
    assert order == sorted(order)
    assert part.rows == len(rows) == 50
    assert part.min_request_ts == min(row["request_ts"] for row in rows)
    assert part.max_request_ts == max(row["request_ts"] for row in rows)


def test_the_file_describes_itself() -> None:
    (part,) = parts(table(), level=3)
    file = pq.ParquetFile(pa.BufferReader(part.data))
    assert file.schema_arrow.metadata[b"audit.schema_version"] == str(SCHEMA_VERSION).encode()
    assert file.schema_arrow.metadata[b"audit.sink"] == b"US"
    group = file.metadata.row_group(0)
    columns = {group.column(i).path_in_schema: group.column(i) for i in range(group.num_columns)}
    assert {column.compression for column in columns.values()} == {"ZSTD"}
    assert columns["request_ts"].is_stats_set
    for name in ("consumer_id", "path", "headers.key_value.key", "headers.key_value.value"):
        assert columns[name].has_dictionary_page, name
    assert not columns["request_id"].has_dictionary_page
    assert "service" not in columns
    assert "_offset" not in columns


@pytest.mark.parametrize("empty", [0])
def test_nothing_gives_no_file(empty: int) -> None:
    assert parts(table(empty)) == []


def test_other_rows_are_not_the_same() -> None:
    (one,), (weaker,), (other,) = parts(table()), parts(table(), level=1), parts(table(49))
    assert same_rows(one.data, weaker.data)
    assert not same_rows(one.data, other.data)
    assert not same_rows(one.data, b"no parquet")


def test_a_file_of_a_version_with_fewer_columns_holds_the_same_rows() -> None:
    (one,), (other,) = parts(table()), parts(table(49))
    sink = pa.BufferOutputStream()
    rows = pq.read_table(pa.BufferReader(one.data))
    pq.write_table(rows.drop_columns(["token_fingerprint"]), sink)
    older = sink.getvalue().to_pybytes()
    assert same_rows(older, one.data)
    assert same_rows(one.data, older)
    assert not same_rows(older, other.data)
    sink = pa.BufferOutputStream()
    pq.write_table(rows.drop_columns(["seq"]).append_column("x", rows["seq"]), sink)
    assert not same_rows(sink.getvalue().to_pybytes(), one.data)


def dated(days: list[int]) -> pa.Table:
    """One row for each day, counted from the day of the batch."""
    noon = 1_700_049_600_000_000
    rows = [
        body(request_id=f"{n:04}", request_ts=noon + day * 86_400_000_000)
        for n, day in enumerate(days)
    ]
    return decode([record(n, row) for n, row in enumerate(rows)], schema_of)[0]


def test_late_and_early_days_are_partitions() -> None:
    days = [-400, -31, -1, 0, 1, 2, 300]
    found = {part.date for part in parts(dated(days))}
    assert found == {date(2023, 11, 15) + timedelta(days=day) for day in days}


def test_mad_clocks_do_not_make_a_file_for_each_day() -> None:
    odd = range(100, 200)
    made = parts(dated([*odd, 0, -31, 1]))
    assert {part.date for part in made} == {date(2023, 11, 15) + timedelta(d) for d in (0, -31, 1)}
    rows = [row for part in made for row in pq.read_table(pa.BufferReader(part.data)).to_pylist()]
    # Where they lie is all that changed.
    times = {row["request_ts"].date() - date(2023, 11, 15) for row in rows}
    assert {timedelta(days=day) for day in odd} <= times
    assert len(rows) == len(odd) + 3


def test_an_id_is_looked_up_and_a_body_is_not_compared() -> None:
    (part,) = parts(table())
    group = pq.ParquetFile(pa.BufferReader(part.data)).metadata.row_group(0)
    columns = {group.column(i).path_in_schema: group.column(i) for i in range(group.num_columns)}
    assert columns["consumer_id"].has_column_index
    assert not columns["request_body"].is_stats_set
    assert columns["trace_id"].is_stats_set
    filtered = {name for name, column in columns.items() if column.bloom_filter_length}
    assert filtered == {"request_id", "trace_id"}


def test_each_row_lies_in_the_partition_of_its_names() -> None:
    from audit_sink.lake.layout import endpoint_slug, slug

    random_names = random.Random(5)
    for count in (1, 2, 5, 20, 300):
        names = [f"s{random_names.randrange(10**6)}" for _ in range(count)]
        rows = [
            body(
                request_id=f"{n:04}",
                service_name=name,
                endpoint_name=f"{random_names.choice(names)}/v1",
            )
            for n, name in enumerate(names * 3)
        ]
        source = decode([record(n, row) for n, row in enumerate(rows)], schema_of)[0]
        found = parts(source)
        assert sum(part.rows for part in found) == len(rows)
        assert len({part.path for part in found}) == len(found)
        for part in found:
            held = pq.read_table(pa.BufferReader(part.data))
            assert {slug(name) for name in held["service_name"].to_pylist()} == {part.service}
            endpoints = {endpoint_slug(name) for name in held["endpoint_name"].to_pylist()}
            assert endpoints == {part.endpoint}
            assert len(held) == part.rows
