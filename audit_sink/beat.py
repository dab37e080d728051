"""The sink's entries in django-celery-beat's schedule, which admins may edit afterwards."""

from __future__ import annotations

from typing import Any

from django.apps import apps
from django.db import connections

from .conf import conf


def make_schedule(*, using: str = "default", **kwargs: Any) -> None:
    """Add the entries that are missing; called after `migrate`. Changes none that is there."""
    if not apps.is_installed("django_celery_beat"):
        return
    from django_celery_beat.models import CrontabSchedule, IntervalSchedule, PeriodicTask

    if PeriodicTask._meta.db_table not in connections[using].introspection.table_names():
        # A migration of this app alone; the entries come with the whole.
        return
    tasks = PeriodicTask.objects.using(using)
    if not tasks.filter(task="audit_sink.schedule").exists():
        every, _ = IntervalSchedule.objects.using(using).get_or_create(
            every=conf.SCHEDULE_SECONDS, period=IntervalSchedule.SECONDS
        )
        tasks.create(
            name="Sink: look for work",
            task="audit_sink.schedule",
            interval=every,
            # A tick that no worker took in time is worthless: the next one does the same.
            expire_seconds=10,
            description="Enqueues one task for each lane that has something to do.",
        )
    if not tasks.filter(task="audit_sink.prune").exists():
        nightly, _ = CrontabSchedule.objects.using(using).get_or_create(minute="17", hour="3")
        tasks.create(
            name="Sink: keep the ledger small",
            task="audit_sink.prune",
            crontab=nightly,
            description="Forgets request ids after AUDIT_SINK_DEDUP_DAYS and capture processes "
            "after AUDIT_SINK_PRODUCER_DAYS, merges empty batches.",
        )
