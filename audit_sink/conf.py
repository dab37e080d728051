"""Every option of the sink: the only place that reads its settings."""

from __future__ import annotations

import posixpath
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from django.conf import settings
from django.core.signals import setting_changed
from django.dispatch import receiver

from audit_logging.options import AppSettings, option

#: Schemes a bucket's address may have; `lake.storage` opens them.
BUCKET_SCHEMES = ("file", "gs", "storages")


def _default_data_dir() -> Path:
    return Path(getattr(settings, "BASE_DIR", Path.cwd())) / "var" / "sink"


def check_bucket_url(url: str) -> None:
    """Refuse an address that no bucket backend opens.

    :raises ValueError: a sentence that says what is wrong and what would be right.
    """
    parts = urlsplit(url)
    if parts.scheme not in BUCKET_SCHEMES:
        raise ValueError(
            f"{url!r} is no bucket's address. Use file:///folder or gs://bucket, or "
            f"storages://name for an entry of STORAGES."
        )
    if parts.scheme == "file" and (parts.netloc or not parts.path.startswith("/")):
        raise ValueError(f"{url!r} is not absolute. Use three slashes: file:///folder.")
    if parts.scheme == "gs" and not parts.netloc:
        raise ValueError(f"{url!r} names no bucket. Use gs://bucket or gs://bucket/prefix.")
    if parts.scheme == "storages" and parts.netloc not in settings.STORAGES:
        raise ValueError(
            f"STORAGES has no entry {parts.netloc!r}, only {', '.join(sorted(settings.STORAGES))}."
        )


def bucket_key(url: str) -> str:
    """`url` in one spelling: two addresses of the same place are equal."""
    parts = urlsplit(url)
    if parts.scheme == "storages":
        from .exceptions import BucketMissing
        from .lake.django_storages import address

        try:
            parts = urlsplit(address(url))
        except BucketMissing:
            # It points nowhere; what uses it says so.
            pass
    path = posixpath.normpath(f"/{parts.path.lstrip('/')}")
    return f"{parts.scheme}://{parts.netloc}{path}".rstrip("/")


def _check_template(value: str) -> None:
    try:
        url = value.format(site="us", data_dir="/data")
    except (KeyError, IndexError, ValueError):
        raise ValueError(
            f"{value!r} has a placeholder that is not known. Use {{site}} and {{data_dir}}."
        ) from None
    check_bucket_url(url)
    if "{site}" not in value:
        raise ValueError(f"{value!r} would give all sites one bucket. Put {{site}} into it.")


class SinkSettings(AppSettings):
    """Options of the sink."""

    prefix = "AUDIT_SINK"
    about = "The tier that moves events from the event log to each site's bucket, and queries them."

    DATA_DIR: Path = option(
        _default_data_dir,
        "Where the embedded system keeps its buckets.",
        default_text="var/sink in the project",
    )
    BUCKET_TEMPLATE: str = option(
        "file://{data_dir}/buckets/{site}",
        "Address of the bucket of a site that names none in admin; `{site}` is its code in lower "
        "case, `{data_dir}` is DATA_DIR. For example `gs://acme-audit-{site}`.",
        validate=_check_template,
    )
    BUCKET_TIMEOUT_SECONDS: float = option(
        30.0,
        "How long one call to a bucket may take, retries included.",
        unit="seconds",
        minimum=1,
    )
    MAX_BATCH_RECORDS: int = option(
        20_000, "A batch is closed when it holds this many records.", unit="records", minimum=1
    )
    MAX_BATCH_BYTES: int = option(
        32 << 20,
        "A batch is closed when its records have this many bytes; a worker needs about five times "
        "as much memory.",
        unit="bytes",
        minimum=1024,
    )
    MAX_SCAN_RECORDS: int = option(
        200_000,
        "A batch is closed when this many records were read, however few belong to its site.",
        unit="records",
        minimum=1,
    )
    FLUSH_SECONDS: float = option(
        5.0,
        "A batch is closed when its oldest record has waited this long. Larger gives fewer, "
        "larger files; smaller gives fresher ones.",
        unit="seconds",
        minimum=0,
    )
    LEASE_SECONDS: float = option(
        6.0,
        "How long a worker's claim stands without a sign of life; then another redoes its range. "
        "A worker gives three signs in that time, whatever it waits for. The clocks of the "
        "workers' hosts must agree better than that.",
        unit="seconds",
        minimum=1,
    )
    RETRIES: int = option(
        5, "Failures in a row after which a lane counts as stalled.", unit="attempts", minimum=0
    )
    RETRY_SECONDS: float = option(
        5.0, "Wait between two tries of the same range.", unit="seconds", minimum=0
    )
    STALLED_RETRY_SECONDS: float = option(
        60.0,
        "Wait between two tries of a stalled lane, so that it recovers by itself when its cause "
        "is gone. Resuming its site in admin tries at once.",
        unit="seconds",
        minimum=1,
    )
    TASK_SECONDS: float = option(
        30.0,
        "A task starts no new batch after this time, so that others get a turn.",
        unit="seconds",
        minimum=0,
    )
    SCHEDULE_SECONDS: int = option(
        1,
        "How often beat looks for work; used when `migrate` makes the schedule, which admin edits "
        "later.",
        unit="seconds",
        minimum=1,
    )
    CONSUMER_GROUP: str = option(
        "audit-sink",
        "Group under which progress is published for lag tools, followed by `-` and the site. "
        "The sink's own progress is its ledger.",
    )
    ZSTD_LEVEL: int = option(3, "Compression level of new files.", minimum=1, maximum=22)
    DEDUP_DAYS: float = option(
        30.0,
        "How long a stored request_id is remembered; a duplicate that comes later is stored "
        "again. Keep it longer than the event log's retention.",
        unit="days",
        minimum=0,
    )
    PRODUCER_DAYS: float = option(
        90.0,
        "How long a capture process is remembered after it was last heard of; what an older one "
        "lost at its end cannot be named any more.",
        unit="days",
        minimum=1,
    )
    QUERY_MEMORY_BYTES: int = option(
        1 << 30, "Memory that one query may use.", unit="bytes", minimum=64 << 20
    )
    QUERY_THREADS: int = option(2, "Threads that one query may use.", minimum=1)

    def bucket_url(self, site_code: str) -> str:
        """Address of the bucket of a site that names none."""
        return self.BUCKET_TEMPLATE.format(
            site=site_code.lower(), data_dir=str(self.DATA_DIR.absolute())
        )


conf = SinkSettings()


@receiver(setting_changed)
def _reload(*, setting: str, **kwargs: Any) -> None:
    if setting == conf.prefix:
        conf.reload()
