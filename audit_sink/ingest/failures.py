"""What became of a lane's tries, written where people look: log, metrics, lane and site."""

from __future__ import annotations

import logging
from collections.abc import Callable
from datetime import UTC, datetime

from django.db import DatabaseError

from audit_publisher.exceptions import PublisherError

from .. import metrics
from ..conf import conf
from ..exceptions import BucketRefused, ClaimLost, RangeUnavailable, SinkError
from ..models import Lane, Site

logger = logging.getLogger(__name__)


def record_failure(lane: Lane, error: Exception, clock: Callable[[], float]) -> str:
    """Write the failure where people look, and set when to try again."""
    line = " ".join(str(error).split()) or type(error).__name__
    if isinstance(error, ClaimLost):
        logger.info("%s", line)
        return line
    if not isinstance(error, (PublisherError, SinkError)):
        line = f"{type(error).__name__}: {line}"
    metrics.FAILURES.labels(lane.sink, type(error).__name__).inc()
    now = clock()
    failures = lane.failures + 1
    refused = isinstance(error, BucketRefused)
    if refused:
        # Nobody gives rights within five tries: stalled at once, for everyone who looks.
        failures = max(failures, conf.RETRIES + 1)
    stalled = failures > conf.RETRIES
    wait = conf.STALLED_RETRY_SECONDS if stalled else conf.RETRY_SECONDS
    when = datetime.fromtimestamp(now, UTC)
    level = logging.ERROR if stalled else logging.WARNING
    gone = isinstance(error, RangeUnavailable)
    reassurance = "The lane stands still" if gone else "Nothing is lost"
    logger.log(
        level,
        "%s: %s: %s. %s; the range is tried again in %g s.",
        lane,
        _how_often(failures, refused),
        line.rstrip("."),
        reassurance,
        wait,
        exc_info=None if isinstance(error, (PublisherError, SinkError)) else error,
    )
    metrics.STALLED.labels(*lane.key).set(int(stalled))
    try:
        Lane.objects.filter(pk=lane.pk).update(
            failures=failures, last_error=line[:2000], last_error_at=when, due_at=now + wait
        )
        Site.objects.filter(code=lane.sink).update(last_error=line[:2000], last_error_at=when)
    except DatabaseError as failure:
        logger.error("%s: the failure could not be recorded: %s", lane, failure)
    return line


def _how_often(failures: int, refused: bool) -> str:
    if refused:
        return "paused until the bucket lets us in"
    return f"{failures} failures in a row" if failures > 1 else "first failure"


def record_success(lane: Lane) -> None:
    """Forget the lane's failures, and the site's when no other lane of it fails."""
    Lane.objects.filter(pk=lane.pk).update(failures=0, last_error="", last_error_at=None)
    metrics.STALLED.labels(*lane.key).set(0)
    lane.failures, lane.last_error = 0, ""
    if not Lane.objects.filter(sink=lane.sink, failures__gt=0).exists():
        Site.objects.filter(code=lane.sink).update(last_error="", last_error_at=None)
