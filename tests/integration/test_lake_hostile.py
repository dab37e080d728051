"""Names as hostile as clients can make them, written by the sink, read by every engine.

All rows come back from each with their true values, the keys in the paths parse and keep their
type, even of a value that stands alone, and a filter on a slug leaves the other files unopened.
"""

from __future__ import annotations

import json
import re
import time
from collections import Counter
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import duckdb
import msgspec
import polars
import pyarrow as pa
import pyarrow.dataset as ds
import pytest

from audit_publisher.conf import conf as publisher_conf
from audit_publisher.eventlog import get_region
from audit_publisher.eventlog.base import Record
from audit_publisher.routing import Router
from audit_publisher.serializers import parse_event
from audit_publisher.testing import make_event
from audit_sink.ingest.run import ingest_all
from audit_sink.lake.layout import endpoint_slug, slug
from audit_sink.lake.ledger import ledger_problems
from audit_sink.models import UNROUTABLE, LakeFile, Lane
from audit_sink.query.engine import query
from tests.services.errors import Unavailable
from tests.services.fixtures import give_up
from tests.services.spark import run_in_spark

pytestmark = pytest.mark.django_db

DAY = datetime(2026, 3, 1, tzinfo=UTC)

#: Each is a service of its own, and an endpoint of its own.
NAMES = (
    *("inventory-api", "Inventory-API", "INVENTORY-API", "inventory-api.", "inventory-api "),
    *("007", "1e5", "1E5", "0x1F", "1.0", "-1", "2024-01-01", "2024-01-01 00:00:00", "12:00"),
    *("null", "NULL", "None", "true", "False", "NaN", "inf", "Infinity", "epoch", "today"),
    *("__HIVE_DEFAULT_PARTITION__", "_SUCCESS", "_temporary", ".hidden", ".", "..", "...", "-"),
    *("a/../../etc/passwd", "../..", "a=b", "service=x", "%2F", "%", "%00", "a%20b", "a+b"),
    *("\\", "a\\b", "C:\\nul", '"', "'", "`", "a*", "a?b", "[a]", "{a,b}", "$(id)", "a|b", "<a>"),
    *("a:b", "a;b", "a,b", "a#b", "a&b", "~", "!", "new\nline", "tab\t", "\r", "nul\x00byte"),
    *("été", "ete\u0301", "日本語", "🚀", "\u202eabc", "مرحبا", "ﬁ", "ı", "\u200b", " ", "\ufeff"),
    *("x" * 64, "x" * 65, "x" * 5000, "é" * 300, "inventory-api--deadbeef", "con", "aux.txt"),
)


@dataclass
class Lake:
    folder: Path
    events: list[dict[str, Any]]

    @property
    def root(self) -> Path:
        return self.folder / "events"

    @property
    def expected(self) -> Counter[tuple[str, str, str, str, str]]:
        """(id, service name, endpoint name, service, endpoint) of each row."""
        return Counter(
            (
                event["request_id"],
                event["service_name"],
                event["endpoint_name"],
                slug(event["service_name"]),
                endpoint_slug(event["endpoint_name"]),
            )
            for event in self.events
        )


COLUMNS = ("request_id", "service_name", "endpoint_name", "service", "endpoint")


@pytest.fixture
def lake(tmp_path: Path, settings: Any) -> Lake:
    settings.AUDIT_PUBLISHER = {"DATA_DIR": tmp_path / "publisher", "TOPIC_PARTITIONS": 1}
    settings.AUDIT_SINK = {"DATA_DIR": tmp_path / "sink", "MAX_BATCH_RECORDS": 70}
    when = {"request_ts": DAY.timestamp() + 0.25, "response_ts": DAY.timestamp() + 0.5}
    events = [make_event(service_name=name, endpoint_name="iac/v1", **when) for name in NAMES]
    events += [make_event(service_name="plain", endpoint_name=name, **when) for name in NAMES]
    events += [make_event(service_name="plain", endpoint_name="", **when)]
    log = get_region("primary")
    for receipt in log.append(publisher_conf.DEFAULT_TOPIC, [unchecked(one) for one in events]):
        assert receipt.error is None
    outcomes = ingest_all()
    assert [one.error for one in outcomes.values() if one.error] == []
    assert ledger_problems() == []
    assert not Lane.objects.exclude(sink=UNROUTABLE).filter(failures__gt=0).exists()
    return Lake(tmp_path / "sink/buckets/us", events)


def unchecked(event: dict[str, Any]) -> Record:
    """The record of `event`, of a publisher that lets every name pass; ours refuses some."""
    plain = event | {"service_name": "plain", "endpoint_name": "plain"}
    parsed = parse_event(msgspec.json.encode(plain))
    parsed.service_name, parsed.endpoint_name = event["service_name"], event["endpoint_name"]
    return Router({}, time.time_ns() // 1000).to_record(parsed)[1]


def rows(found: list[dict[str, Any]]) -> Counter[tuple[str, ...]]:
    return Counter(tuple(row[name] for name in COLUMNS) for row in found)


def alone(lake: Lake) -> list[str]:
    """Folders of services, each to be read as if there were no other."""
    return sorted(path.name for path in lake.root.iterdir())


def test_paths_are_plain_everywhere(lake: Lake) -> None:
    part = r"[A-Za-z][A-Za-z0-9._-]{0,63}"
    pattern = rf"events/service={part}/date=2026-03-01/endpoint={part}/[a-z0-9-]+\.parquet"
    paths = list(LakeFile.objects.values_list("path", flat=True))
    assert [path for path in paths if not re.fullmatch(pattern, path)] == []
    # Also on a disk that does not tell capitals apart, and one that drops dots at the end.
    folders = {path.rpartition("/")[0] for path in paths}
    assert len({folder.casefold() for folder in folders}) == len(folders)
    assert not any(part.endswith((".", " ")) for path in paths for part in path.split("/"))
    assert len(alone(lake)) == len(NAMES) + 1
    on_disk = {str(path.relative_to(lake.folder)) for path in lake.root.rglob("*.parquet")}
    assert on_disk == set(paths)


def test_our_own_query(lake: Lake) -> None:
    assert rows(query("SELECT * FROM audit_logs").to_pylist()) == lake.expected


def test_duckdb(lake: Lake) -> None:
    with duckdb.connect() as connection:

        def read(folder: str) -> Any:
            pattern = f"{lake.root}/{folder}**/*.parquet"
            return connection.sql(f"FROM read_parquet('{pattern}', hive_partitioning = true)")

        table = read("")
        assert rows(table.select(*COLUMNS).to_arrow_table().to_pylist()) == lake.expected
        for name in NAMES:
            found = table.filter(f"service = '{slug(name)}'").select("service_name").fetchall()
            assert found == [(name,)]
        plan = connection.sql(
            f"EXPLAIN ANALYZE FROM read_parquet('{lake.root}/**/*.parquet', "
            f"hive_partitioning = true) WHERE service = '{slug('007')}'"
        ).fetchall()
        assert re.search(r"(Scanning Files|Total Files Read): *1\b", str(plan)), plan
        for folder in alone(lake):
            one = read(f"{folder}/")
            types = dict(zip(one.columns, map(str, one.types), strict=True))
            assert (types["service"], types["endpoint"]) == ("VARCHAR", "VARCHAR"), folder


def test_polars(lake: Lake) -> None:
    def read(folder: str) -> polars.LazyFrame:
        return polars.scan_parquet(f"{lake.root}/{folder}**/*.parquet", hive_partitioning=True)

    assert rows(read("").select(COLUMNS).collect().to_dicts()) == lake.expected
    for name in NAMES:
        found = read("").filter(polars.col("service") == slug(name)).collect()
        assert found["service_name"].to_list() == [name]
    for folder in alone(lake):
        schema = read(f"{folder}/").collect_schema()
        assert schema["service"] == schema["endpoint"] == polars.String, folder


def test_pyarrow(lake: Lake) -> None:
    everything = ds.dataset(lake.root, partitioning="hive")
    assert rows(everything.to_table(columns=list(COLUMNS)).to_pylist()) == lake.expected
    for name in NAMES:
        wanted = ds.field("service") == slug(name)
        (fragment,) = everything.get_fragments(filter=wanted)
        assert fragment.to_table(columns=["service_name"]).to_pylist() == [{"service_name": name}]
    for folder in alone(lake):
        one = ds.dataset(lake.root / folder, partitioning="hive", partition_base_dir=str(lake.root))
        assert one.schema.field("service").type == pa.string(), folder
        assert one.schema.field("endpoint").type == pa.string(), folder


SPARK = """
import json
import re
from pathlib import Path
ask = json.loads(Path("ask.json").read_text())
table = spark.read.parquet(ask["root"])
pruned = {}
for value in ask["slugs"]:
    found = table.filter(table.service == value)
    plan = found._jdf.queryExecution().executedPlan().toString()
    by_path = bool(re.search(r"PartitionFilters: \\[[^]]*service#\\d+ = " + value + r"\\)", plan))
    pruned[value] = [by_path, [row.service_name for row in found.collect()]]
alone = {}
for folder in ask["alone"]:
    one = spark.read.option("basePath", ask["root"]).parquet(ask["root"] + "/" + folder)
    alone[folder] = [dict(one.dtypes)[key] for key in ("service", "date", "endpoint")]
Path("answer.json").write_text(json.dumps({
    "types": dict(table.dtypes),
    "rows": [row.asDict() for row in table.select(*ask["columns"]).collect()],
    "pruned": pruned,
    "alone": alone,
}))
"""

#: What Spark would most like to read as something else; each costs it a job.
TEMPTING = ("007", "1e5", "2024-01-01", "12:00", "null", "true", "NaN", "Infinity", "epoch", "..")


@pytest.mark.services
@pytest.mark.slow
def test_spark(lake: Lake, tmp_path: Path) -> None:
    slugs = {name: slug(name) for name in TEMPTING}
    ask = {
        "root": str(lake.root),
        "columns": COLUMNS,
        "slugs": list(slugs.values()),
        "alone": [f"service={value}" for value in slugs.values()],
    }
    (tmp_path / "ask.json").write_text(json.dumps(ask))
    missing = None
    try:
        run_in_spark(SPARK, tmp_path)
    except Unavailable as error:
        missing = error
    if missing:
        give_up(missing)
    answer = json.loads((tmp_path / "answer.json").read_text())
    types = answer["types"]
    assert (types["service"], types["date"], types["endpoint"]) == ("string", "date", "string")
    assert types["request_ts"] == "timestamp"
    assert types["headers"] == "map<string,string>"
    assert rows(answer["rows"]) == lake.expected
    assert answer["pruned"] == {slugs[name]: [True, [name]] for name in TEMPTING}
    assert set(map(tuple, answer["alone"].values())) == {("string", "date", "string")}
