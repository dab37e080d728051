"""The trail: who changed what here, when, from where and why; written once, never changed.

A line is written in the transaction of its change, in the same database: there is no change
without its line. What is not a change of a table (looking at spooled events, sending them again)
is noted before it is done.
"""

from __future__ import annotations

import json
import logging
import socket
from collections.abc import Iterator
from datetime import datetime
from typing import Any, NoReturn

from django.core.serializers.json import DjangoJSONEncoder
from django.db import models
from django.utils import timezone

from audit_logging import changes
from audit_logging.changes import Actor, Change, Refused

logger = logging.getLogger(__name__)

_FOR_GOOD = "The trail is append-only: its lines are neither changed nor deleted."


class TrailQuerySet(models.QuerySet):
    """Lines can be read and added, nothing else."""

    def update(self, **kwargs: Any) -> NoReturn:
        """Refused."""
        raise TypeError(_FOR_GOOD)

    def delete(self) -> NoReturn:
        """Refused."""
        raise TypeError(_FOR_GOOD)


class TrailLine(models.Model):
    """One thing that somebody did."""

    class Action(models.TextChoices):
        """What was done."""

        CREATED = "created", "created"
        CHANGED = "changed", "changed"
        DELETED = "deleted", "deleted"
        LOOKED = "looked", "looked at"
        REDRIVEN = "redriven", "sent again"
        DISCARDED = "discarded", "discarded"
        FAILED = "failed", "tried, and failed"
        REFUSED = "refused", "was refused"

    at = models.DateTimeField("when", db_index=True)
    actor = models.CharField("who", max_length=200, db_index=True)
    user_id = models.CharField(max_length=40, blank=True)
    address = models.CharField("from", max_length=64, blank=True)
    forwarded = models.CharField(
        "forwarded for",
        max_length=200,
        blank=True,
        help_text="X-Forwarded-For as it came: believe it as far as your proxy can be believed.",
    )
    host = models.CharField(max_length=100, help_text="The host that did it.")
    action = models.CharField(max_length=20, choices=Action)
    kind = models.CharField(max_length=100, db_index=True)
    key = models.CharField(max_length=100, blank=True)
    text = models.CharField("object", max_length=300, blank=True)
    fields = models.JSONField(
        "changes", default=dict, encoder=DjangoJSONEncoder, help_text="Field: [before, after]."
    )
    reason = models.CharField(max_length=500, blank=True)

    objects = TrailQuerySet.as_manager()

    class Meta:
        ordering = ("-id",)
        verbose_name = "change"
        verbose_name_plural = "trail of changes"
        default_permissions = ("view",)

    def __str__(self) -> str:
        return f"{self.actor} {self.get_action_display()} {self.kind} {self.text}"

    def save(self, *args: Any, **kwargs: Any) -> None:
        """Add the line; one that is there already stays as it is.

        :raises TypeError: it is there already.
        """
        if not self._state.adding:
            raise TypeError(_FOR_GOOD)
        super().save(*args, **kwargs | {"force_insert": True})

    def delete(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Refused."""
        raise TypeError(_FOR_GOOD)

    @property
    def about_fields(self) -> bool:
        """Whether `fields` holds [before, after] of each field of a row; else it is plain facts."""
        return self.action in ("created", "changed", "deleted")

    def document(self) -> dict[str, Any]:
        """The line for programs."""
        return {
            "id": self.pk,
            "at": self.at.isoformat(),
            "actor": self.actor,
            "user_id": self.user_id,
            "address": self.address,
            "forwarded": self.forwarded,
            "host": self.host,
            "action": self.action,
            "kind": self.kind,
            "key": self.key,
            "text": self.text,
            "fields": self.fields,
            "reason": self.reason,
        }


def note(
    action: str,
    kind: str,
    text: str,
    *,
    key: str = "",
    fields: dict[str, Any] | None = None,
    actor: Actor | None = None,
    using: str | None = None,
) -> TrailLine:
    """Add a line about something that is no change of a table.

    :param actor: who did it; by default whoever acts now.
    :raises django.db.Error: it could not be written; then what it tells of must not be done.
    """
    actor = actor or changes.actor()
    line = TrailLine(
        at=timezone.now(),
        actor=actor.name[:200],
        user_id=actor.user_id[:40],
        address=actor.address,
        forwarded=actor.forwarded,
        host=socket.gethostname()[:100],
        action=action,
        kind=kind,
        key=key[:100],
        text=text[:300],
        fields=fields or {},
        reason=actor.reason,
    )
    line.save(using=using)
    return line


def lines(since: datetime | None = None, after: int = 0) -> Iterator[TrailLine]:
    """Lines from `since` on with ids above `after`, the oldest first."""
    found = TrailLine.objects.filter(id__gt=after).order_by("id")
    if since is not None:
        found = found.filter(at__gte=since)
    return found.iterator(chunk_size=500)


def to_json(line: TrailLine) -> str:
    """A line as one line of JSON, in ASCII: a terminal acts upon no part of it."""
    return json.dumps(line.document(), cls=DjangoJSONEncoder)


def connect() -> None:
    """Have every change of a watched model, of whichever app, written down."""
    changes.changed.connect(_changed, dispatch_uid="audit_publisher.trail")
    changes.refused.connect(_refused, dispatch_uid="audit_publisher.trail")


def _changed(sender: Any, change: Change, **kwargs: Any) -> None:
    note(
        change.action,
        change.kind,
        change.text,
        key=change.key,
        fields={name: list(both) for name, both in change.fields.items()},
        actor=change.actor,
        using=change.using,
    )


def _refused(sender: Any, refused: Refused, **kwargs: Any) -> None:
    try:
        note(str(TrailLine.Action.REFUSED), refused.kind, refused.what, actor=refused.actor)
    except Exception as error:  # noqa: BLE001  # nothing was changed; the answer stays 403
        logger.warning("A refusal could not be noted in the trail: %s", error)
