"""Tables of operation: what is wanted of regions, and what each publisher process sees."""

from __future__ import annotations

from django.db import models
from django.db.models import Q

from audit_logging.changes import Watched


class RegionWish(Watched):
    """What an operator wants of one region; without a row: nothing special."""

    untold = frozenset({"wished_by", "wished_at", "note"})

    region = models.CharField(max_length=50, unique=True)
    drained = models.BooleanField(
        default=False,
        help_text="No records are sent there; it is probed all the same.",
    )
    first = models.BooleanField(
        "use first", default=False, help_text="Tried before the others, whatever the order is."
    )
    wished_by = models.CharField("asked by", max_length=200, blank=True)
    wished_at = models.DateTimeField("asked at", null=True, blank=True)
    note = models.CharField("reason", max_length=500, blank=True)

    class Meta:
        ordering = ("region",)
        verbose_name = "region"
        verbose_name_plural = "regions"
        default_permissions = ("view",)
        permissions = [("control_regions", "Can drain regions and fail over")]
        constraints = [
            models.UniqueConstraint(
                fields=("first",), condition=Q(first=True), name="audit_publisher_one_first"
            )
        ]

    def __str__(self) -> str:
        return self.region


class PublisherProcess(models.Model):
    """A running publisher process and what it sees; it says so itself, every few seconds.

    Rows of processes that are silent are removed after minutes.
    """

    process = models.CharField(max_length=150, unique=True)
    host = models.CharField(max_length=100)
    pid = models.PositiveIntegerField("process id")
    started_at = models.DateTimeField("started")
    version = models.CharField(max_length=40, blank=True)
    last_seen = models.DateTimeField(db_index=True)
    state = models.JSONField(default=dict)
    minutes = models.JSONField(default=list, help_text="What it did, minute by minute.")

    class Meta:
        ordering = ("host", "pid")
        verbose_name_plural = "publisher processes"
        default_permissions = ()

    def __str__(self) -> str:
        return f"{self.host}, process {self.pid}"


class SpoolPage(PublisherProcess):
    """The page of the spool; it has no table of its own."""

    class Meta:
        proxy = True
        verbose_name = verbose_name_plural = "spool"
        default_permissions = ("view",)
        permissions = [
            ("read_spooled_events", "Can read events that wait in the spool"),
            ("control_spool", "Can send refused events again, and discard them"),
        ]
