"""A lake that the sink wrote, opened as a user would: DuckDB, Polars, PyArrow, and audit_query."""

from __future__ import annotations

import uuid
from dataclasses import dataclass
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import duckdb
import polars
import pyarrow as pa
import pyarrow.dataset as ds
import pytest

from audit_publisher.conf import conf as publisher_conf
from audit_publisher.eventlog import get_region
from audit_publisher.testing import make_event, make_record
from audit_sink.ingest.run import ingest_all
from audit_sink.lake.ledger import ledger_problems
from audit_sink.models import Site
from audit_sink.query.engine import query

pytestmark = pytest.mark.django_db

DAY = datetime(2026, 3, 1, tzinfo=UTC)
#: Services whose names some engine would read as another type or not at all.
SERVICES = ("inventory-api", "007", "null", "2024-01-01", "prix \\ été", "true")


@dataclass
class Lake:
    folder: Path
    events: list[dict[str, Any]]

    @property
    def pattern(self) -> str:
        return f"{self.folder}/events/**/*.parquet"


def publish(count: int = 60) -> list[dict[str, Any]]:
    events = [
        make_event(
            service_name=SERVICES[n % len(SERVICES)],
            endpoint_name=("iac/v1/inventory", "dsd/v1/shipments/<id>")[n % 2],
            request_ts=DAY.timestamp() + n * 3600 + 0.25,
            response_ts=DAY.timestamp() + n * 3600 + 0.5,
            headers={"content-type": "application/json", "n": str(n)},
            user=None if n % 3 else "ännie",
            response_code=200 + n,
        )
        for n in range(count)
    ]
    log = get_region("primary")
    records = [make_record(event) for event in events]
    for receipt in log.append(publisher_conf.DEFAULT_TOPIC, records):
        assert receipt.error is None
    return events


def options(settings: Any, folder: Path) -> None:
    settings.AUDIT_PUBLISHER = {"DATA_DIR": folder / "publisher", "TOPIC_PARTITIONS": 2}
    settings.AUDIT_SINK = {"DATA_DIR": folder / "sink", "MAX_BATCH_RECORDS": 25}


@pytest.fixture
def lake(tmp_path: Path, settings: Any) -> Lake:
    options(settings, tmp_path)
    events = publish()
    outcomes = ingest_all()
    assert [one.error for one in outcomes.values() if one.error] == []
    assert ledger_problems() == []
    return Lake(tmp_path / "sink/buckets/us", events)


def check_rows(lake: Lake, rows: list[dict[str, Any]]) -> None:
    """The rows are the events, and the keys agree with the columns."""
    by_id = {row["request_id"]: row for row in rows}
    assert len(by_id) == len(rows) == len(lake.events)
    for event in lake.events:
        row = by_id[event["request_id"]]
        for name in ("service_name", "endpoint_name", "response_code", "user", "request_body"):
            assert row[name] == event[name]
        assert row["request_ts"].timestamp() == event["request_ts"]
        assert row["request_ts"].utcoffset().total_seconds() == 0
        assert row["date"] == row["request_ts"].date()
        assert row["endpoint"] == event["endpoint_name"].split("/")[0]
        plain = row["service"] == row["service_name"]
        assert plain == (row["service_name"] == "inventory-api")


def test_duckdb(lake: Lake) -> None:
    connection = duckdb.connect()
    connection.execute("SET TimeZone = 'UTC'")
    table = connection.sql(f"FROM read_parquet('{lake.pattern}', hive_partitioning = true)")
    types = dict(zip(table.columns, map(str, table.types), strict=True))
    assert types["service"] == types["endpoint"] == "VARCHAR"
    assert types["date"] == "DATE"
    assert types["request_ts"] == "TIMESTAMP WITH TIME ZONE"
    assert types["headers"] == "MAP(VARCHAR, VARCHAR)"
    assert types["response_code"] == "INTEGER"
    check_rows(lake, table.to_arrow_table().to_pylist())
    found = table.filter("date = DATE '2026-03-02' AND endpoint = 'iac'").order("request_ts")
    assert [row[0] for row in found.project("headers['n']").fetchall()] == [
        str(n) for n in range(24, 48, 2)
    ]


def test_polars(lake: Lake) -> None:
    frame = polars.scan_parquet(lake.pattern, hive_partitioning=True).collect()
    assert frame.schema["service"] == frame.schema["endpoint"] == polars.String
    assert frame.schema["date"] == polars.Date
    assert frame.schema["request_ts"] == polars.Datetime("us", "UTC")
    assert frame.schema["response_code"] == polars.Int32
    check_rows(lake, frame.to_dicts())
    one = frame.filter(polars.col("date") == date(2026, 3, 2), polars.col("endpoint") == "dsd")
    assert one.height == 12


def test_pyarrow(lake: Lake) -> None:
    found = ds.dataset(lake.folder / "events", partitioning="hive")
    schema = found.schema
    assert schema.field("request_ts").type == pa.timestamp("us", "UTC")
    assert pa.types.is_map(schema.field("headers").type)
    # PyArrow takes dates in paths for strings unless it is told; nothing is guessed wrongly.
    assert schema.field("date").type == pa.string()
    assert schema.field("service").type == pa.string()
    keys = pa.schema([("service", pa.string()), ("date", pa.date32()), ("endpoint", pa.string())])
    typed = ds.dataset(lake.folder / "events", partitioning=ds.partitioning(keys, flavor="hive"))
    check_rows(lake, typed.to_table().to_pylist())
    day = ds.field("date") == pa.scalar(date(2026, 3, 2))
    assert typed.count_rows(filter=day) == 24


def test_nothing_but_parquet_lies_under_events(lake: Lake) -> None:
    files = [path for path in (lake.folder / "events").rglob("*") if path.is_file()]
    assert {path.suffix for path in files} == {".parquet"}
    for path in files:
        parts = path.relative_to(lake.folder).parts
        assert [part.partition("=")[0] for part in parts[1:4]] == ["service", "date", "endpoint"]


def test_our_own_query(lake: Lake) -> None:
    check_rows(lake, query("SELECT * FROM audit_logs WHERE site = 'US'").to_pylist())


@pytest.mark.services
def test_a_lake_in_google_cloud_storage(
    tmp_path: Path, settings: Any, gcs_server: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", gcs_server.url)
    name = f"lake-{uuid.uuid4().hex}"
    gcs_server.create_bucket(name)
    options(settings, tmp_path)
    Site.objects.filter(code="US").update(bucket=f"gs://{name}/audit")
    Site.objects.filter(code="CA").update(bucket=f"gs://missing-{name}")
    events = publish()
    log = get_region("primary")
    log.append(
        publisher_conf.DEFAULT_TOPIC, [make_record(make_event(site_id="1704989474816248000"))]
    )
    outcomes = ingest_all()
    assert {lane.split()[0] for lane, one in outcomes.items() if one.error} == {"CA"}
    assert "There is no bucket" in Site.objects.get(code="CA").last_error
    assert ledger_problems() == []
    check_rows(Lake(tmp_path, events), query("SELECT * FROM audit_logs").to_pylist())
