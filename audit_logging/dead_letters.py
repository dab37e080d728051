"""Dead letters: events that the publisher refused for good, in the service's own database.

The worker first keeps them in a file beside its spools, which needs nothing but a disk. From
there they are moved into this table, where admin shows them, sends them again, or discards them.
"""

from __future__ import annotations

from django.db import models


class DeadLetter(models.Model):
    """One event that the publisher refused, why, and what is to become of it."""

    class State(models.TextChoices):
        WAITING = "waiting", "waits for a decision"
        RESEND = "resend", "to be sent again"
        DELIVERED = "delivered", "delivered after all"
        DISCARDED = "discarded", "discarded"

    #: SHA-256 of the event: an event that is refused again is the same letter.
    key = models.CharField(max_length=64, unique=True, editable=False)
    #: Which refusal was counted last: a crash in the middle of a move must not count it twice.
    refusal = models.CharField(max_length=64, editable=False)
    state = models.CharField(max_length=10, choices=State, default=State.WAITING)
    request_id = models.CharField("request id", max_length=64, db_index=True)
    service_name = models.CharField("service", max_length=100)
    endpoint_name = models.CharField("endpoint", max_length=255)
    status = models.PositiveSmallIntegerField(
        "publisher's answer", null=True, help_text="The HTTP status that came with the refusal."
    )
    reason = models.TextField(help_text="What the publisher said.")
    event = models.TextField(help_text="The event as JSON, redacted, as it was sent.")
    attempts = models.PositiveIntegerField("refusals", default=1)
    first_seen = models.DateTimeField("first refused")
    last_seen = models.DateTimeField("last refused")
    #: Until when a worker has it in hand.
    claimed_until = models.DateTimeField(null=True, editable=False)

    class Meta:
        app_label = "audit_logging"
        ordering = ["-last_seen", "-id"]
        verbose_name = "dead letter"
        indexes = [models.Index(fields=["state", "last_seen"], name="audit_dead_state_seen")]

    def __str__(self) -> str:
        return f"{self.request_id}: {self.reason[:80]}"
