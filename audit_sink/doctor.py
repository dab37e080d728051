"""What `manage.py audit_doctor` examines of the sink: each site's bucket, its broker, its tasks."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

from django.conf import settings

from audit_logging.doctor import broker
from audit_logging.doctor.examinations import (
    Asked,
    Finding,
    examine,
    failure,
    of_checks,
    ok,
    warning,
)
from audit_publisher import eventlog, routing
from audit_publisher.exceptions import EventLogError

from .checks import check_buckets
from .conf import conf
from .exceptions import BucketError, ConflictError
from .lake.storage import Bucket, open_bucket
from .models import Site

#: One small object beside the events, the same for ever: the rights to create and to read are
#: all that the sink needs, and a bucket with a lock can delete nothing.
MARKER = "_doctor/marker.txt"
_CONTENT = b"Made by `manage.py audit_doctor`: this bucket can be written, once for each name.\n"


@examine("buckets", "sites", seconds=45)
def buckets(asked: Asked) -> Iterator[Finding]:
    """Every site's bucket is there, takes a new object, gives it back, and keeps it."""
    if conf.problems():
        return
    yield from of_checks(check_buckets(databases=["default"]))
    sites = list(Site.objects.all())
    if not sites:
        yield failure("There is no site.", "Run manage.py migrate, or add one in admin, Sites.")
    for site in sites:
        yield from _bucket(site)


def _bucket(site: Site) -> Iterator[Finding]:
    url = site.bucket_url
    paused = " (paused)" if site.paused else ""
    try:
        bucket = open_bucket(url)
        bucket.create(MARKER, _CONTENT)
        wrong = _create_only(bucket)
        if not wrong and bucket.read(MARKER) != _CONTENT:
            wrong = "it gives back other bytes than were written"
        next(iter(bucket.list("events/")), None)
    except ConflictError:
        yield failure(
            f"{site.code}: {url}/{MARKER} holds other bytes than the doctor writes.",
            "Somebody else made it: look at it, and remove it.",
        )
        return
    except (BucketError, OSError) as error:
        yield failure(
            f"{site.code}: {error}",
            "Make the bucket, correct the site's bucket URL in admin (or "
            "AUDIT_SINK_BUCKET_TEMPLATE), or give this service's account the right to create, "
            "read and list objects.",
        )
        return
    if wrong:
        yield failure(
            f"{site.code}: {url}: {wrong}: two workers could overwrite each other's files.",
            "Use a store that honours create-only writes (ifGenerationMatch=0).",
        )
        return
    yield ok(f"{site.code}{paused}: {url} takes, gives back and lists objects, each name once")


def _create_only(bucket: Bucket) -> str:
    """Say what is wrong with a second write of the same name; "" when it is refused."""
    try:
        bucket.create(MARKER, _CONTENT + b"other bytes")
    except ConflictError:
        return ""
    return "it lets a name be written twice"


@examine("topics", "retention and the sink", seconds=20)
def retention(asked: Asked) -> Iterator[Finding]:
    """What is stored twice is known for as long as it can come twice."""
    longest = 0.0
    for region in eventlog.region_names():
        try:
            for facts in eventlog.get_region(region).describe(routing.topics()).values():
                if facts is not None and facts.retention is not None:
                    longest = max(longest, facts.retention)
        except EventLogError:
            # The region's own line says it.
            continue
    if conf.problems() or not longest:
        return
    remembered = conf.DEDUP_DAYS * 86_400
    if remembered < longest and not math.isinf(longest):
        yield warning(
            f"Records are kept for {longest / 86_400:g} days, request ids remembered for "
            f"{conf.DEDUP_DAYS:g} (DEDUP_DAYS): a replay of older ones makes duplicates.",
            f"Set AUDIT_SINK_DEDUP_DAYS to {math.ceil(longest / 86_400) + 1}.",
        )


def _on_its_own_broker(look: Callable[[str], Iterator[Finding]]) -> Iterator[Finding]:
    url = getattr(settings, "CELERY_BROKER_URL", "") or ""
    if url:
        yield from look(str(url))


@examine("broker", "sink")
def sink_broker(asked: Asked) -> Iterator[Finding]:
    """The project's Celery broker, which beat and the sink's workers share."""
    yield from _on_its_own_broker(lambda url: broker.look("AUDIT_BROKER_URL", url))


@examine("queues", "sink")
def sink_queue(asked: Asked) -> Iterator[Finding]:
    """Tasks that no worker takes: beat makes one for each lane and second."""
    queue = str(getattr(settings, "CELERY_TASK_DEFAULT_QUEUE", "celery"))
    yield from _on_its_own_broker(lambda url: broker.depth("AUDIT_BROKER_URL", url, queue))
