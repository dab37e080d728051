"""The sink's ledger: sites, lanes, claimed ranges, the files they became, the ids they hold.

A *lane* is what one sink does with one partition: (sink, region, topic, partition). Its batches
are half-open ranges of offsets, ``start_offset`` included and ``end_offset`` not, each starting
where the one before ended, so that the ledger can have neither gap nor overlap.
"""

from __future__ import annotations

from typing import Any

from django.core.exceptions import ValidationError
from django.core.validators import RegexValidator
from django.db import models, transaction
from django.utils import timezone

from .conf import bucket_key, check_bucket_url, conf

#: The sink that takes the records no site owns, and dead-letters them.
UNROUTABLE = "unroutable"


def validate_bucket_url(url: str) -> None:
    """Refuse an address that no bucket backend opens."""
    try:
        check_bucket_url(url)
    except ValueError as error:
        raise ValidationError(str(error)) from error


class Site(models.Model):
    """A country with its own sink, progress and bucket."""

    class StartFrom(models.TextChoices):
        """Where a partition that the site has never read begins."""

        EARLIEST = "earliest", "the oldest record kept"
        LATEST = "latest", "records that come from now on"

    class Tolerance(models.TextChoices):
        """What a record that cannot be stored does to its site."""

        ALL = "all", "dead-letter the record and go on"
        NONE = "none", "stop the site before the record"

    code = models.CharField(
        max_length=16,
        unique=True,
        validators=[RegexValidator(r"^[A-Z][A-Z0-9-]*\Z", "Use capital letters, such as US.")],
        help_text="Short name, in capitals: US. It names the sink and, by default, its bucket.",
    )
    name = models.CharField(max_length=100, blank=True)
    site_id = models.CharField(
        max_length=64,
        unique=True,
        validators=[RegexValidator(r"^[\x21-\x7e]+\Z", "Use visible ASCII characters alone.")],
        help_text="The value of the record header wm-site-id that this site takes, exactly. "
        "Records of an id that no site has go to the dead letters as they come; a new site that "
        "starts with the oldest record kept also stores those of its id that the event log still "
        "holds. Change it while no events of this site come in.",
    )
    bucket = models.CharField(
        "bucket URL",
        max_length=500,
        blank=True,
        validators=[validate_bucket_url],
        help_text="file:///folder or gs://bucket[/prefix]. Empty: AUDIT_SINK_BUCKET_TEMPLATE.",
    )
    takes_unlabelled = models.BooleanField(
        default=False,
        help_text="Also takes records without the header. One site at most. Change it while no "
        "such events come in.",
    )
    paused = models.BooleanField(
        default=False, help_text="A paused site reads nothing; its records wait in the event log."
    )
    start_from = models.CharField(
        max_length=8, choices=StartFrom.choices, default=StartFrom.EARLIEST
    )
    errors_tolerance = models.CharField(
        max_length=4,
        choices=Tolerance.choices,
        default=Tolerance.ALL,
        help_text="What a record that cannot be stored does to the site.",
    )
    dead_letter_limit = models.PositiveIntegerField(
        default=1_000,
        help_text="Open dead letters at which the site stops. 0: no limit.",
    )
    stopped_reason = models.TextField(
        blank=True, editable=False, help_text="Why the site stopped itself; empty while it runs."
    )
    stopped_at = models.DateTimeField(null=True, blank=True, editable=False)
    last_error = models.TextField(blank=True, editable=False)
    last_error_at = models.DateTimeField(null=True, blank=True, editable=False)

    class Meta:
        ordering = ["code"]
        constraints = [
            models.UniqueConstraint(
                fields=["takes_unlabelled"],
                condition=models.Q(takes_unlabelled=True),
                name="audit_sink_one_unlabelled_site",
                violation_error_message="Another site already takes records without the header.",
            )
        ]

    def __str__(self) -> str:
        return self.code

    @property
    def bucket_url(self) -> str:
        """Address of the site's bucket."""
        return self.bucket or conf.bucket_url(self.code)

    def clean(self) -> None:
        """Refuse another site's bucket, and a change by which waiting records would be lost."""
        super().clean()
        mine = bucket_key(self.bucket_url)
        for other in Site.objects.exclude(pk=self.pk):
            if bucket_key(other.bucket_url) == mine:
                raise ValidationError(
                    {
                        "bucket": f"{other} has the bucket {other.bucket_url}. Two sites give "
                        f"their files the same names: give each a bucket, or prefix, of its own."
                    }
                )
        stored = Site.objects.filter(pk=self.pk).first()
        takes = (self.site_id, self.takes_unlabelled)
        if stored is None or (stored.site_id, stored.takes_unlabelled) != takes:
            from .ingest.handover import obstacle

            if reason := obstacle(self):
                raise ValidationError(reason)

    def delete(self, *args: Any, **kwargs: Any) -> tuple[int, dict[str, int]]:
        """Delete the site and its lanes.

        :raises ValidationError: records wait for it, which would be lost.
        """
        from .ingest.handover import obstacle

        if reason := obstacle(self, deleted=True):
            raise ValidationError(reason)
        with transaction.atomic():
            # A later site of this code begins as a new one.
            Lane.objects.filter(sink=self.code).delete()
            return super().delete(*args, **kwargs)


class LaneKey(models.Model):
    """The columns that name a lane."""

    sink = models.CharField(max_length=32)
    region = models.CharField(max_length=32)
    topic = models.CharField(max_length=249)
    partition = models.PositiveIntegerField()

    class Meta:
        abstract = True


class Lane(LaneKey):
    """One sink's way through one partition: where it began, and how it is doing.

    Nothing here decides what is stored; the batches do. It keeps the schedule cheap and tells
    people what is going on.
    """

    start_offset = models.BigIntegerField(help_text="Where the ledger of this lane begins.")
    next_offset = models.BigIntegerField(
        default=0, help_text="First offset that is not stored yet; the batches decide."
    )
    look_again_offset = models.BigIntegerField(
        default=0, help_text="Length of the log at which a batch may be full before it is due."
    )
    high_watermark = models.BigIntegerField(
        default=0, help_text="Next offset of the log, when last seen."
    )
    busy_until = models.FloatField(default=0, help_text="Epoch seconds; no second task until then.")
    due_at = models.FloatField(
        null=True, blank=True, help_text="Epoch seconds; when the waiting records must be stored."
    )
    failures = models.PositiveIntegerField(default=0, help_text="Failures in a row.")
    last_error = models.TextField(blank=True)
    last_error_at = models.DateTimeField(null=True, blank=True)

    class Meta:
        ordering = ["sink", "region", "topic", "partition"]
        constraints = [
            models.UniqueConstraint(
                fields=["sink", "region", "topic", "partition"], name="audit_sink_one_lane"
            )
        ]

    def __str__(self) -> str:
        return f"{self.sink} {self.region} {self.topic}/{self.partition}"

    @property
    def key(self) -> tuple[str, str, str, int]:
        """(sink, region, topic, partition)."""
        return (self.sink, self.region, self.topic, self.partition)


class Batch(LaneKey):
    """A claimed range of one lane. The unique constraint is the compare-and-set."""

    class State(models.TextChoices):
        """A batch is claimed, then done; never anything else."""

        CLAIMED = "claimed", "claimed"
        DONE = "done", "done"

    start_offset = models.BigIntegerField(help_text="First offset of the range.")
    end_offset = models.BigIntegerField(help_text="First offset after the range.")
    state = models.CharField(max_length=8, choices=State.choices, default=State.CLAIMED)
    planned = models.BooleanField(
        default=False, help_text="Poison and ownership of ids are decided; redoing keeps to it."
    )
    owner = models.CharField(max_length=100, blank=True)
    fence = models.PositiveIntegerField(default=1, help_text="Grows at each takeover.")
    lease_expires = models.FloatField(default=0, help_text="Epoch seconds.")
    read = models.PositiveIntegerField(default=0, help_text="Records in the range.")
    taken = models.PositiveIntegerField(default=0, help_text="Records of this sink.")
    stored = models.PositiveIntegerField(default=0, help_text="Rows in files.")
    duplicates = models.PositiveIntegerField(default=0, help_text="Left out: stored before.")
    dead_lettered = models.PositiveIntegerField(default=0, help_text="Sent to the dead letters.")
    lost = models.BigIntegerField(
        default=0, help_text="Offsets that were gone from the log before they could be read."
    )
    bytes = models.BigIntegerField(default=0, help_text="Bytes of the files.")
    claimed_at = models.DateTimeField(default=timezone.now)
    done_at = models.DateTimeField(null=True, blank=True)

    class Meta:
        verbose_name_plural = "batches"
        ordering = ["-id"]
        constraints = [
            models.UniqueConstraint(
                fields=["sink", "region", "topic", "partition", "start_offset"],
                name="audit_sink_claim",
            ),
            models.CheckConstraint(
                condition=models.Q(end_offset__gt=models.F("start_offset")),
                name="audit_sink_range_not_empty",
            ),
        ]
        indexes = [models.Index(fields=["state", "done_at"], name="audit_sink_batch_done")]

    def __str__(self) -> str:
        return (
            f"{self.sink} {self.region} {self.topic}/{self.partition} "
            f"[{self.start_offset}, {self.end_offset})"
        )


class LakeFile(models.Model):
    """One object of the lake; readable because its batch is done."""

    batch = models.ForeignKey(Batch, on_delete=models.PROTECT, related_name="files")
    site = models.CharField(max_length=16, db_index=True)
    bucket = models.CharField(max_length=500)
    path = models.CharField(max_length=900)
    service = models.CharField(max_length=100)
    date = models.DateField(db_index=True)
    endpoint = models.CharField(max_length=100)
    rows = models.PositiveIntegerField()
    bytes = models.BigIntegerField()
    sha256 = models.CharField(max_length=64)
    min_request_ts = models.DateTimeField()
    max_request_ts = models.DateTimeField()

    class Meta:
        ordering = ["-id"]
        constraints = [
            models.UniqueConstraint(fields=["bucket", "path"], name="audit_sink_one_file")
        ]

    def __str__(self) -> str:
        return self.path


class DeadLetter(models.Model):
    """Where a poison record stood in the log, why it was not stored, and what became of it."""

    class State(models.TextChoices):
        """A letter is open, then for good one of the others."""

        OPEN = "open", "open"
        REDRIVEN = "redriven", "put back to its topic"
        DISCARDED = "discarded", "given up"

    batch = models.ForeignKey(Batch, on_delete=models.PROTECT, related_name="poison")
    offset = models.BigIntegerField()
    reason = models.CharField(max_length=16)
    message = models.CharField(max_length=500)
    copy_partition = models.PositiveIntegerField(
        null=True, blank=True, help_text="Partition of the dead-letter topic with the copy."
    )
    copy_offset = models.BigIntegerField(
        null=True, blank=True, help_text="Offset of the copy; empty: not known."
    )
    state = models.CharField(max_length=9, choices=State.choices, default=State.OPEN)
    settled_at = models.DateTimeField(null=True, blank=True)
    settled_by = models.CharField(max_length=150, blank=True, help_text="Who settled it.")
    note = models.CharField(max_length=500, blank=True, help_text="Why it was settled.")

    class Meta:
        ordering = ["-id"]
        constraints = [
            models.UniqueConstraint(fields=["batch", "offset"], name="audit_sink_one_letter")
        ]
        indexes = [models.Index(fields=["state", "batch"], name="audit_sink_letter_state")]

    def __str__(self) -> str:
        return f"{self.batch} @{self.offset}: {self.reason}"


class SeenRequest(models.Model):
    """Which batch of a sink holds a request_id; the first to record it keeps the row."""

    key = models.BinaryField(primary_key=True, max_length=16)
    batch = models.ForeignKey(Batch, on_delete=models.PROTECT, related_name="+")

    def __str__(self) -> str:
        return bytes(self.key).hex()


class Producer(models.Model):
    """A capture process, as it or its heirs describe it: what its numbers are compared with."""

    class State(models.TextChoices):
        """A producer is open, then for good one of the others."""

        OPEN = "open", "open"
        CLOSED = "closed", "ended in good order"
        LOST = "lost", "killed"

    service_name = models.CharField(max_length=200)
    epoch = models.CharField(max_length=64, help_text="producer_epoch of its events.")
    host = models.CharField(max_length=255, blank=True)
    pid = models.BigIntegerField(default=0)
    state = models.CharField(max_length=8, choices=State.choices, default=State.OPEN)
    seq = models.BigIntegerField(
        default=0, help_text="How many numbers it had given, when last heard of; from 0."
    )
    started_at = models.DateTimeField()
    last_at = models.DateTimeField(help_text="When it was last heard of, by its own clock.")
    dropped = models.JSONField(
        default=dict, help_text="Numbered events that it dropped, by reason; the loss is known."
    )
    skipped = models.JSONField(
        default=dict, help_text="Requests that it left out on purpose, without a number."
    )

    class Meta:
        ordering = ["-last_at"]
        constraints = [
            # With the service, so that one cannot speak of another's processes.
            models.UniqueConstraint(
                fields=["service_name", "epoch"], name="audit_sink_one_producer"
            )
        ]
        indexes = [
            models.Index(fields=["last_at"], name="audit_sink_producer_last"),
            models.Index(fields=["epoch"], name="audit_sink_producer_epoch"),
        ]

    def __str__(self) -> str:
        return f"{self.service_name} {self.epoch}"


class Turn(models.Model):
    """Something that one process at a time does; see :mod:`audit_sink.ingest.turns`."""

    name = models.CharField(primary_key=True, max_length=32)
    until = models.FloatField(default=0, help_text="Epoch seconds; free from then on.")

    def __str__(self) -> str:
        return self.name
