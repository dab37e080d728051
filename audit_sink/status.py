"""How each sink is doing: what it has stored, how far behind it is, what is wrong."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any

from django.db.models import Count, Max, Sum

from .conf import conf
from .ingest import Clock
from .ingest.schedule import lanes
from .models import UNROUTABLE, Batch, LakeFile, Lane, Site


@dataclass
class SinkStatus:
    """One sink; `newest_age` is in seconds, None when it holds no row."""

    sink: str
    site_id: str = ""
    bucket: str = ""
    paused: bool = False
    lag: int = 0
    rows: int = 0
    files: int = 0
    bytes: int = 0
    newest: datetime | None = None
    newest_age: float | None = None
    duplicates: int = 0
    dead_letters: int = 0
    stalled_lanes: int = 0
    error: str = ""

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        found = asdict(self)
        found["newest"] = self.newest.isoformat() if self.newest else None
        return found


def sink_statuses(*, clock: Clock = time.time) -> list[SinkStatus]:
    """The status of every site, then of the unroutable sink; asks the event log for its ends."""
    # Makes the lanes of partitions that were never looked at, so that their lag shows.
    for _ in lanes():
        pass
    found = {
        site.code: SinkStatus(
            site.code, site.site_id, site.bucket_url, site.paused, error=site.last_error
        )
        for site in Site.objects.all()
    }
    found[UNROUTABLE] = SinkStatus(UNROUTABLE)
    for lane in Lane.objects.all():
        status = found.setdefault(lane.sink, SinkStatus(lane.sink))
        status.lag += max(0, lane.high_watermark - lane.next_offset)
        status.stalled_lanes += lane.failures > conf.RETRIES
        status.error = status.error or lane.last_error
    files = LakeFile.objects.filter(batch__state=Batch.State.DONE).order_by().values("site")
    for row in files.annotate(
        n=Count("id"), rows_=Sum("rows"), bytes_=Sum("bytes"), newest=Max("max_request_ts")
    ):
        status = found.setdefault(row["site"], SinkStatus(row["site"]))
        status.files, status.rows, status.bytes = row["n"], row["rows_"], row["bytes_"]
        status.newest = row["newest"]
        status.newest_age = max(0.0, clock() - status.newest.timestamp())
    batches = Batch.objects.filter(state=Batch.State.DONE).order_by().values("sink")
    for row in batches.annotate(duplicates_=Sum("duplicates"), dead_letters_=Sum("dead_lettered")):
        status = found.setdefault(row["sink"], SinkStatus(row["sink"]))
        status.duplicates, status.dead_letters = row["duplicates_"], row["dead_letters_"]
    return list(found.values())


def human_bytes(size: float) -> str:
    """`size` as a person reads it: 1.5 MB."""
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:,.1f} TB"


def human_seconds(seconds: float | None) -> str:
    """An age as a person reads it: 12 s, 3 min, 5 h, 2 days."""
    if seconds is None:
        return "-"
    for limit, divisor, unit in ((120, 1, "s"), (7200, 60, "min"), (172_800, 3600, "h")):
        if seconds < limit:
            return f"{seconds / divisor:.0f} {unit}"
    return f"{seconds / 86_400:.0f} days"
