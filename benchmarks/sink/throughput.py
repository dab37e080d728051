"""Events for a CPU second of one worker: consume, filter, decode, remove duplicates, Parquet,
bucket, ledger; with all guarantees on."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from . import load
from .stack import Installation, Stack


@dataclass(frozen=True)
class Cost:
    """What one worker used for a backlog.

    :ivar cpu: CPU seconds without those of its start.
    :ivar start: CPU seconds of its start, imports included.
    :ivar peak: bytes resident, at most.
    :ivar share: bytes in the lake for each byte of JSON.
    """

    what: str
    events: int
    cpu: float
    start: float
    wall: float
    peak: int
    batches: int
    files: int
    size: int

    @property
    def each(self) -> float:
        """Microseconds of CPU for an event."""
        return self.cpu / self.events * 1e6


def one(where: Installation, what: str, count: int, *arguments: str) -> Cost:
    """Let a worker store all `count` events, and check that they are there."""
    seen = where.work(*arguments)
    errors = {lane: each["error"] for lane, each in seen["lanes"].items() if each["error"]}
    if errors:
        raise RuntimeError(f"lanes failed: {errors}")
    ((rows, files, size),) = where.sql(
        "SELECT coalesce(sum(rows), 0), count(*), coalesce(sum(bytes), 0) FROM audit_sink_lakefile"
    )
    if rows != count:
        raise RuntimeError(f"{rows} of {count} events are in the ledger")
    return Cost(
        what,
        count,
        seen["cpu"],
        seen["cpu_start"],
        seen["wall"],
        seen["peak"],
        seen["batches"],
        int(files),
        int(size),
    )


def lake_rows(buckets: Path) -> tuple[int, int]:
    """Rows, and different request_ids, that the files themselves hold."""
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    paths = [path for site in buckets.iterdir() for path in load.partition_files(site)]
    ids = pa.concat_tables(
        pq.ParquetFile(path).read(columns=["request_id"]) for path in paths
    ).column(0)
    return len(ids), pc.count_distinct(ids).as_py()


def measure(
    servers: Stack, count: int, *, rounds: int, partitions: int, profile: Path | None
) -> list[Cost]:
    """Measure a worker with the lanes of one site, with all lanes of all, and into GCS."""
    servers.topic(partitions)
    took = load.fill(servers.kafka.address, "api-audit-events", count, partitions=partitions)
    print(f"{count:,} events appended in {took:.0f} s", flush=True)
    found = []
    for number in range(rounds):
        found.append(_checked(servers, f"one site, folder ({number + 1})", count, "--sink", "US"))
    found.append(_checked(servers, "all lanes of 3 sites, folder", count))
    if servers.gcs is not None:
        found.append(_gcs(servers, count))
    if profile:
        where = servers.install()
        one(where, "profile", count, "--sink", "US", "--profile", str(profile))
    return found


def _checked(servers: Stack, what: str, count: int, *arguments: str) -> Cost:
    where = servers.install()
    cost = one(where, what, count, *arguments)
    rows, different = lake_rows(where.buckets)
    if rows != count or different != count:
        raise RuntimeError(f"{what}: {rows} rows, {different} different ids, {count} events")
    print(line(cost), flush=True)
    return cost


def _gcs(servers: Stack, count: int) -> Cost:
    assert servers.gcs is not None
    bucket = f"bench-{servers._made}"
    servers.gcs.create_bucket(bucket)
    where = servers.install(
        AUDIT_SINK_BUCKET_TEMPLATE=f"gs://{bucket}/{{site}}",
        STORAGE_EMULATOR_HOST=servers.gcs.url,
    )
    cost = one(where, "one site, GCS emulator", count, "--sink", "US")
    print(line(cost), flush=True)
    return cost


def line(cost: Cost) -> str:
    """One line for people."""
    return (
        f"{cost.what}: {cost.events / cost.cpu:,.0f} events/CPU s, {cost.each:.1f} us each "
        f"(start {cost.start:.2f} s), wall {cost.wall:.1f} s, peak {cost.peak / 1e6:.0f} MB, "
        f"{cost.batches} batches, {cost.files} files, {cost.size / cost.events:.0f} B/event"
    )


def as_dict(cost: Cost) -> dict[str, Any]:
    """For the JSON file."""
    from dataclasses import asdict

    return asdict(cost) | {"microseconds": cost.each}
