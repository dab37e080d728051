"""One task's work: bring one lane forward until it is caught up, or its time is over.

One batch, in order: read a range → claim it → decode → record poison and owned ids → dead letters
→ files → mark done → publish the offset. Whatever fails in between, the same range is done again.
"""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass
from datetime import UTC
from typing import TYPE_CHECKING

from django.db import DatabaseError, transaction

from audit_publisher.eventlog import get_region
from audit_publisher.eventlog.base import EventLog
from audit_publisher.exceptions import EventLogError

from .. import metrics
from ..conf import conf
from ..exceptions import ConflictError, RangeUnavailable
from ..failpoints import failpoint
from ..models import UNROUTABLE, Batch, LakeFile, Lane, Site
from . import Clock, claims, dead_letter
from .claims import Counts, Poison
from .failures import record_failure, record_success
from .lease import kept
from .reader import Range, read_range
from .schedule import lanes
from .sites import SiteFilter

if TYPE_CHECKING:
    import pyarrow as pa

    from ..lake.storage import Bucket

logger = logging.getLogger(__name__)


@dataclass
class Outcome:
    """What a call of :func:`ingest` did.

    :ivar batches: batches finished.
    :ivar rows: rows stored.
    :ivar state: ``caught_up``, ``waiting`` (records that are not due yet), ``held`` (another
        worker has the claim), ``paused``, ``failed`` or ``time_over``.
    :ivar error: the failure, in one line.
    """

    batches: int = 0
    rows: int = 0
    state: str = "caught_up"
    error: str = ""


def ingest(lane: Lane, *, clock: Clock = time.time, flush: bool = False) -> Outcome:
    """Bring `lane` forward; never raises for a failure, which is recorded on lane and site.

    :param flush: store what there is, without waiting for FLUSH_SECONDS.
    """
    outcome = Outcome()
    worker = _Worker(lane, clock, flush)
    give_up_at = clock() + conf.TASK_SECONDS
    while True:
        try:
            outcome.state = worker.step(outcome)
        except Exception as error:  # noqa: BLE001 - one lane's failure is its own
            outcome.state = "failed"
            outcome.error = record_failure(lane, error, clock)
            break
        if outcome.state != "stored":
            break
        if clock() >= give_up_at:
            outcome.state = "time_over"
            break
    try:
        Lane.objects.filter(pk=lane.pk).update(busy_until=0)
    except DatabaseError:
        # The mark runs out by itself.
        pass
    return outcome


class _Worker:
    """One run over one lane."""

    def __init__(self, lane: Lane, clock: Clock, flush: bool) -> None:
        self.lane = lane
        self.clock = clock
        self.flush = flush
        self.owner = claims.new_owner()
        self.log: EventLog = get_region(lane.region)

    def step(self, outcome: Outcome) -> str:
        """Do one batch; return ``stored``, or the state in which there is nothing to do."""
        lane, now = self.lane, self.clock()
        lane.refresh_from_db()
        sites = list(Site.objects.all())
        self.site = next((site for site in sites if site.code == lane.sink), None)
        if lane.sink != UNROUTABLE and (self.site is None or self.site.paused):
            return "paused"
        self.filter = SiteFilter(sites)
        Lane.objects.filter(pk=lane.pk).update(busy_until=now + conf.LEASE_SECONDS)
        last = claims.last_batch(lane)
        found: Range | None
        if last is not None and last.state == Batch.State.CLAIMED:
            batch = claims.take_over(last, owner=self.owner, now=now)
            if batch is None:
                self._come_back(last.lease_expires)
                return "held"
            metrics.CLAIMS_TAKEN_OVER.labels(lane.sink).inc()
            found = None
        else:
            start = last.end_offset if last is not None else lane.start_offset
            found = self._read(start)
            if not found.read:
                self._come_back(None)
                return "caught_up"
            if not self._due(found, now):
                return "waiting"
            if found.kept and self.site is not None and lane.failures:
                # Where it failed last time: no new claim before the bucket is there.
                self._bucket().probe()
            failpoint("after_read")
            claimed = claims.claim(
                lane,
                start,
                found.end,
                owner=self.owner,
                now=now,
                read=found.read,
                taken=len(found.kept),
            )
            if claimed is None:
                return "held"
            batch = claimed
        try:
            failpoint("after_claim")
            with kept(batch, self.clock):
                outcome.rows += self._store(batch, found or self._read_again(batch))
        except Exception as error:
            if not isinstance(error, DatabaseError):
                claims.release(batch)
            raise
        outcome.batches += 1
        return "stored"

    # -- what to do -----------------------------------------------------------------------

    def _read(self, start: int, end: int | None = None) -> Range:
        lane = self.lane
        return read_range(
            self.log, lane.topic, lane.partition, start, self.filter, lane.sink, end=end
        )

    def _read_again(self, batch: Batch) -> Range:
        """Read a claimed range once more: all of it, or it cannot be redone."""
        found = self._read(batch.start_offset, end=batch.end_offset)
        if found.read != batch.read:
            raise RangeUnavailable(
                f"{batch} held {batch.read} records when it was claimed; the log now gives "
                f"{found.read}."
            )
        return found

    def _due(self, found: Range, now: float) -> bool:
        """Whether the range is to be claimed now: it is full, or its oldest has waited enough."""
        if self.flush or found.full:
            return True
        oldest = min(now, (found.oldest or 0) / 1_000_000)
        # A producer's clock may be ahead: when we first saw the record counts as well.
        due_at = min(oldest + conf.FLUSH_SECONDS, self.lane.due_at or float("inf"))
        if now >= due_at:
            return True
        Lane.objects.filter(pk=self.lane.pk).update(
            due_at=due_at, look_again_offset=found.start + 2 * found.read
        )
        return False

    def _come_back(self, due_at: float | None) -> None:
        Lane.objects.filter(pk=self.lane.pk).update(due_at=due_at)

    def _bucket(self) -> Bucket:
        from ..lake.storage import get_bucket

        assert self.site is not None  # noqa: S101 - the unroutable sink has no bucket
        return get_bucket(self.site.bucket_url)

    # -- one batch ------------------------------------------------------------------------

    def _store(self, batch: Batch, found: Range) -> int:
        started = time.monotonic()
        lane = self.lane
        table: pa.Table | None = None
        if self.site is None:
            poison = [
                Poison(record.offset, "site", "no site owns the record's wm-site-id header")
                for record in found.kept
            ]
            duplicates = 0
        else:
            table, poison, duplicates = self._plan(batch, found)
        dead_letter.send(self.log, lane.sink, lane.topic, lane.partition, poison, found.kept)
        failpoint("after_dead_letter")
        found.kept.clear()
        files = list(self._write(batch, table)) if table is not None else []
        failpoint("after_upload")
        counts = Counts(sum(file.rows for file in files), duplicates, len(poison))
        claims.finish(batch, files, counts, lane=lane, now=self.clock(), producers=found.producers)
        failpoint("after_ledger")
        metrics.PRODUCER_RECORDS.labels(lane.sink).inc(len(found.producers))
        self._report(batch, files, counts, time.monotonic() - started)
        return counts.stored

    def _plan(self, batch: Batch, found: Range) -> tuple[pa.Table | None, list[Poison], int]:
        """Decode, and settle what is poison and which ids are this batch's."""
        if not found.kept:
            return None, [], 0
        import pyarrow as pa

        from audit_publisher.avro.registry import get_registry

        from .decode import decode
        from .dedup import request_keys, take_ownership

        known = claims.planned_poison(batch) if batch.planned else []
        table, poison = decode(found.kept, get_registry().schema, known)
        names = (table.column(name).to_pylist() for name in ("request_id", "service_name"))
        keys = request_keys(batch.sink, *names)
        with transaction.atomic():
            recorded = {item.offset for item in known}
            claims.plan(batch, [item for item in poison if item.offset not in recorded])
            keep = take_ownership(batch, keys)
        kept = table if all(keep) else table.filter(pa.array(keep))
        return kept, poison, len(table) - len(kept)

    def _write(self, batch: Batch, table: pa.Table):
        from ..lake.layout import range_stem
        from .writer import encode, same_rows

        assert self.site is not None  # noqa: S101 - only sites have tables
        bucket = self._bucket()
        stem = range_stem(
            batch.topic, batch.region, batch.partition, batch.start_offset, batch.end_offset
        )
        footer = {
            "sink": batch.sink,
            "region": batch.region,
            "topic": batch.topic,
            "partition": str(batch.partition),
            "start_offset": str(batch.start_offset),
            "end_offset": str(batch.end_offset),
        }
        parts = encode(
            table,
            stem,
            level=conf.ZSTD_LEVEL,
            metadata=footer,
            claimed=batch.claimed_at.astimezone(UTC).date(),
        )
        for part in parts:
            claims.renew(batch, now=self.clock())
            data, sha256 = part.data, part.sha256
            try:
                bucket.create(part.path, data)
            except ConflictError:
                # An earlier try by another version of a library gives other bytes, same rows.
                claims.renew(batch, now=self.clock())
                there = bucket.read(part.path)
                if not same_rows(there, data):
                    raise
                import hashlib

                data, sha256 = there, hashlib.sha256(there).hexdigest()
            yield LakeFile(
                batch=batch,
                site=batch.sink,
                bucket=bucket.url,
                path=part.path,
                service=part.service,
                date=part.date,
                endpoint=part.endpoint,
                rows=part.rows,
                bytes=len(data),
                sha256=sha256,
                min_request_ts=part.min_request_ts,
                max_request_ts=part.max_request_ts,
            )

    def _report(self, batch: Batch, files: list[LakeFile], counts: Counts, seconds: float) -> None:
        """Tell metrics, lag tools and people; the batch is done, so nothing here may undo it."""
        lane = self.lane
        metrics.RECORDS_READ.labels(*lane.key).inc(batch.read)
        metrics.BATCH_SECONDS.labels(lane.sink).observe(seconds)
        if self.site is not None:
            metrics.ROWS_STORED.labels(lane.sink).inc(counts.stored)
            metrics.BYTES_STORED.labels(lane.sink).inc(batch.bytes)
            metrics.FILES_STORED.labels(lane.sink).inc(len(files))
            metrics.DUPLICATES.labels(lane.sink).inc(counts.duplicates)
        if lane.failures or lane.last_error:
            record_success(lane)
        lane.due_at = None
        Lane.objects.filter(pk=lane.pk).update(
            due_at=None, look_again_offset=batch.end_offset + conf.MAX_BATCH_RECORDS
        )
        try:
            self.log.commit(
                f"{conf.CONSUMER_GROUP}-{lane.sink.lower()}",
                lane.topic,
                lane.partition,
                batch.end_offset,
            )
            _, high = self.log.watermarks(lane.topic, lane.partition)
            metrics.LAG.labels(*lane.key).set(max(0, high - batch.end_offset))
        except EventLogError as error:
            # Only lag tools look at it; the ledger is the truth.
            logger.warning("%s: the offset was not published: %s", lane, error)


def ingest_key(
    sink: str, region: str, topic: str, partition: int, *, clock: Clock = time.time
) -> Outcome:
    """:func:`ingest` for the lane of this key, which :mod:`.schedule` has made."""
    lane = Lane.objects.filter(sink=sink, region=region, topic=topic, partition=partition).first()
    if lane is None:
        # Deleted between the schedule and now.
        return Outcome(state="caught_up")
    return ingest(lane, clock=clock)


def ingest_all(*, clock: Clock = time.time, flush: bool = True) -> dict[str, Outcome]:
    """Bring every lane forward in this process until none moves; return the last outcome of each.

    :param flush: store what there is, without waiting for FLUSH_SECONDS.
    """
    outcomes: dict[str, Outcome] = {}
    for lane, _site in list(lanes()):
        total = Outcome()
        while True:
            once = ingest(lane, clock=clock, flush=flush)
            total.batches += once.batches
            total.rows += once.rows
            total.state, total.error = once.state, once.error
            if once.state != "time_over":
                break
        outcomes[str(lane)] = total
    return outcomes
