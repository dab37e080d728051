"""An event log, a ledger and buckets of a test's own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from audit_logging.spool import Record
from audit_publisher.conf import conf as publisher_conf
from audit_publisher.eventlog import get_region
from audit_publisher.testing import make_event, make_record
from audit_sink.conf import conf
from audit_sink.ingest.run import Outcome, ingest_all
from audit_sink.models import LakeFile, Lane, Site

SITES = {"US": "1704989259133687000", "CA": "1704989474816248000", "MX": "1704989390144984000"}


class Clock:
    """Time that a test moves."""

    def __init__(self, now: float = 1_800_000_000.0) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now

    def advance(self, seconds: float) -> None:
        self.now += seconds


@dataclass
class World:
    """The whole sink in one folder: publish with it, ingest with it, look with it."""

    folder: Path
    clock: Clock = field(default_factory=Clock)
    topic: str = ""

    def __post_init__(self) -> None:
        self.topic = publisher_conf.DEFAULT_TOPIC

    def event(self, site: str | None = "US", **overrides: Any) -> dict[str, Any]:
        overrides.setdefault("site_id", SITES.get(site, site) if site else None)
        overrides.setdefault("request_ts", self.clock.now - 1)
        overrides.setdefault("response_ts", self.clock.now)
        return make_event(**overrides)

    def publish(self, *events: dict[str, Any], region: str = "primary") -> list[Record]:
        records = [make_record(event, now=int(self.clock.now * 1e6)) for event in events]
        self.append(records, region=region)
        return records

    def append(self, records: Sequence[Record], region: str = "primary") -> None:
        for receipt in get_region(region).append(self.topic, records):
            assert receipt.error is None, receipt.error

    def ingest(self, *, flush: bool = True) -> dict[str, Outcome]:
        return ingest_all(clock=self.clock, flush=flush)

    def rows(self, site: str | None = None) -> list[dict[str, Any]]:
        import pyarrow.parquet as pq

        from audit_sink.lake.storage import get_bucket

        found: list[dict[str, Any]] = []
        files = LakeFile.objects.order_by("id")
        for file in files.filter(site=site) if site else files:
            with get_bucket(file.bucket).open(file.path) as stream:
                found += pq.read_table(stream).to_pylist()
        return found

    def ids(self, site: str | None = None) -> list[str]:
        return sorted(row["request_id"] for row in self.rows(site))

    def letters(self, region: str = "primary") -> list[Any]:
        from audit_publisher.eventlog import Limits

        log = get_region(region)
        topic = f"{self.topic}_DLQ"
        _, high = log.watermarks(topic, 0)
        return list(log.read(topic, 0, 0, Limits(timeout=0))) if high else []

    def lane(self, sink: str, partition: int = 0, region: str = "primary") -> Lane:
        return Lane.objects.get(sink=sink, partition=partition, region=region)


@pytest.fixture
def world(tmp_path: Path, settings: Any, db: None) -> World:
    settings.AUDIT_PUBLISHER = {
        "DATA_DIR": tmp_path / "publisher",
        "TOPIC_PARTITIONS": 2,
        "SECONDARY_URL": f"local://{tmp_path}/secondary.sqlite3",
    }
    settings.AUDIT_SINK = {"DATA_DIR": tmp_path / "sink"}
    return World(tmp_path)


@pytest.fixture
def sink_options(settings: Any) -> Callable[..., None]:
    """Change options of the sink for one test."""

    def change(**options: Any) -> None:
        settings.AUDIT_SINK = {**settings.AUDIT_SINK, **options}
        assert not conf.problems()

    return change


@pytest.fixture
def us(world: World) -> Site:
    return Site.objects.get(code="US")
