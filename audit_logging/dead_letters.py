"""Dead letters: events that the publisher refused for good, in the service's own database.

The worker first keeps them in a file beside its spools, which needs nothing but a disk. From
there they are moved into this table, where admin shows them, sends them again, or discards them.
A database that is down, or has no such table, costs nothing: they stay in the file.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

from django.db import DataError, IntegrityError, connections, models, router, transaction
from django.db.models import F, Q
from django.utils import timezone

from . import dead_letter_file, metrics
from .batch import Batch
from .breaker import Breaker
from .conf import LoggingSettings
from .dead_letter_file import DEAD_STREAM, Letter
from .exceptions import BatchUnreadable, Declined, DeliveryRefused, RetryLater
from .outcome import Delivered, Refusal, Target
from .spool import DurableQueue

logger = logging.getLogger(__name__)

#: Letters that one step moves or sends.
_MOST = 50
#: Seconds between looks while there is nothing to do, and while the database is no help.
_IDLE, _AWAY = 10.0, 60.0
#: Seconds that a worker may take over letters it has in hand.
_CLAIM = 300.0


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
        return f"{self.request_id or 'damaged batch'}: {self.reason[:80]}"

    @property
    def sendable(self) -> bool:
        """Whether there is an event that could be sent: not of a damaged batch, nor discarded."""
        return self.event.startswith("{")


_State = DeadLetter.State


def resend(letters: models.QuerySet[DeadLetter]) -> list[int]:
    """Let workers send these letters again; return the keys of those that can be."""
    chosen = letters.filter(state=_State.WAITING, event__startswith="{")
    return _change(chosen, state=_State.RESEND, claimed_until=None)


def discard(letters: models.QuerySet[DeadLetter]) -> list[int]:
    """Throw the events of these letters away; return the keys of those that had any.

    What stays is that there were such.
    """
    chosen = letters.filter(state__in=[_State.WAITING, _State.RESEND])
    changed = _change(chosen, state=_State.DISCARDED, event="", claimed_until=None)
    if changed:
        metrics.rejected.inc(len(changed), reason="discarded")
    return changed


def _change(letters: models.QuerySet[DeadLetter], **values: Any) -> list[int]:
    keys = list(letters.order_by().values_list("pk", flat=True))
    for start in range(0, len(keys), 500):
        letters.filter(pk__in=keys[start : start + 500]).update(**values)
    return keys


class Mover:
    """The background work: from the file to the table, and from the table to the publisher.

    :param file: this host's dead letters.
    :param target: where letters that are sent again go.
    :param breaker: what is known of the target.
    """

    #: Of this process: whether the table was seen, and what was last said of the database.
    _seen = False
    _said = ""

    def __init__(
        self, file: DurableQueue, target: Target, breaker: Breaker, options: LoggingSettings
    ) -> None:
        self._file = file
        self._target = target
        self._breaker = breaker
        self._options = options

    def step(self) -> float:
        """Move and send some; return the seconds until the next step is due."""
        try:
            if not self._has_table():
                self._say("there is no table for them yet (manage.py migrate)")
                return _AWAY
            busy = self.move() + self.send()
            if not busy:
                self._count()
        except Exception as error:  # noqa: BLE001 - whatever a database's driver raises
            Mover._seen = False
            self._say(f"the database does not take them: {error}")
            return _AWAY
        finally:
            # A connection of this thread's own, which a host's database is not to keep open.
            _close_connection()
        self._say("")
        return 0.0 if busy else _IDLE

    @staticmethod
    def _count() -> None:
        waiting = DeadLetter.objects.using(_alias()).filter(state=_State.WAITING)
        metrics.dead_letters.set(waiting.count(), kept_in="database")

    def _say(self, text: str) -> None:
        if text and text != Mover._said and self._file.path.exists():
            logger.warning("dead letters stay in %s: %s", self._file.path, text)
        Mover._said = text

    @staticmethod
    def _has_table() -> bool:
        # By asking, as a query would leave an error in the database's log each time.
        if not Mover._seen:
            tables = connections[_alias()].introspection.table_names()
            Mover._seen = DeadLetter._meta.db_table in tables
        return Mover._seen

    # -- from the file to the table -----------------------------------------------------------

    def move(self) -> int:
        """Move letters from the file into the table; return how many."""
        if not self._file.path.exists():
            return 0
        if not self._file.stats(DEAD_STREAM).records:
            return 0
        if not self._room():
            logger.warning(
                "%s dead letters are in the database, as many as may be; further ones stay in %s",
                self._options.DEAD_LETTERS_MAX,
                self._file.path,
            )
            return 0
        records = self._file.lease(
            DEAD_STREAM, seconds=_CLAIM, owner="to-database", max_records=_MOST
        )
        kept = []
        try:
            for record in records:
                try:
                    keep(Letter.of(record))
                except (DataError, ValueError) as error:
                    # It alone stays in the file, and holds up no other.
                    logger.error("a dead letter does not fit into the database: %s", error)
                    self._file.release(DEAD_STREAM, [record], delay=3600)
                else:
                    kept.append(record)
        finally:
            # After the table has them: a crash before this line moves them again, which is seen.
            self._file.settle(DEAD_STREAM, kept)
            if len(kept) < len(records):
                # Those that are still leased; settled and put aside ones are not.
                self._file.release(DEAD_STREAM, records, tried=False)
            dead_letter_file.measure(self._file)
        return len(kept)

    def _room(self) -> bool:
        """Make room in the table; return whether there is any."""
        most = self._options.DEAD_LETTERS_MAX
        letters = DeadLetter.objects.using(_alias())
        excess = letters.count() + _MOST - most
        if excess > 0:
            settled = letters.filter(state__in=[_State.DELIVERED, _State.DISCARDED])
            old = list(settled.order_by("last_seen").values_list("pk", flat=True)[:excess])
            letters.filter(pk__in=old).delete()
        return letters.count() < most

    # -- from the table to the publisher ------------------------------------------------------

    def send(self) -> int:
        """Send letters that somebody wants sent again; return how many were settled."""
        if not self._breaker.allows:
            return 0
        letters = self._claim()
        if not letters:
            return 0
        if not self._breaker.admits(self._options.DELIVERY_TIMEOUT):
            self._give_back(letters)
            return 0
        by_line = {letter.event: letter for letter in letters}
        try:
            result = self._send(list(by_line))
        except BaseException:
            self._give_back(letters)
            raise
        for status, count in result.stored.items():
            metrics.delivered.inc(count, status=status)
        for refusal in result.refused:
            _refused_again(by_line[refusal.line], refusal)
        again = set(result.again)
        self._give_back([by_line[line] for line in again])
        gone = again.union(refusal.line for refusal in result.refused)
        delivered = [letter.pk for line, letter in by_line.items() if line not in gone]
        # The event is in the log now; a copy here would only be one more to look after.
        DeadLetter.objects.using(_alias()).filter(pk__in=delivered).update(
            state=_State.DELIVERED, event="", claimed_until=None
        )
        return len(by_line) - len(again)

    def _claim(self) -> list[DeadLetter]:
        now = timezone.now()
        free = DeadLetter.objects.using(_alias()).filter(
            Q(claimed_until=None) | Q(claimed_until__lt=now), state=_State.RESEND
        )
        until = now + timedelta(seconds=_CLAIM)
        claimed, size = [], 0
        for letter in free.order_by("pk")[:_MOST]:
            # One by one and by the condition again: another worker may be at it.
            if free.filter(pk=letter.pk).update(claimed_until=until):
                claimed.append(letter)
                size += len(letter.event)
                if size >= self._options.BATCH_BYTES:
                    break
        return claimed

    @staticmethod
    def _give_back(letters: Iterable[DeadLetter]) -> None:
        """Later, by whoever comes first: what is away now is not asked again at once."""
        until = timezone.now() + timedelta(seconds=_IDLE * 2)
        DeadLetter.objects.using(_alias()).filter(
            pk__in=[letter.pk for letter in letters], state=_State.RESEND
        ).update(claimed_until=until)

    def _send(self, lines: list[str]) -> Delivered:
        try:
            result = self._target.send(Batch.of(lines))
        except RetryLater as error:
            self._breaker.failed(error.retry_after)
            return Delivered(again=lines)
        except (DeliveryRefused, BatchUnreadable) as error:
            status = getattr(error, "status", None)
            return Delivered(refused=[Refusal(line, str(error), status) for line in lines])
        except Declined as error:
            self._breaker.succeeded()
            if not error.by_content:
                return Delivered(again=lines)
            if len(lines) == 1:
                # Whoever sent it again wants to know what was said now.
                return Delivered(refused=[Refusal(lines[0], str(error), error.status)])
            total = Delivered()
            for line in lines:
                total.add(self._send([line]))
            return total
        self._breaker.succeeded()
        return result


def keep(letter: Letter) -> None:
    """Put a letter into the table, or count a further refusal of one that is there; only once."""
    key = hashlib.sha256(letter.event.encode("utf-8", "replace")).hexdigest()
    when = datetime.fromtimestamp(letter.refused_at, UTC)
    if not timezone.is_aware(timezone.now()):
        when = timezone.make_naive(when)
    values: dict[str, Any] = {
        "refusal": letter.refusal,
        "state": _State.WAITING,
        "request_id": _text(letter.fields.get("request_id"), 64),
        "service_name": _text(letter.fields.get("service_name"), 100),
        "endpoint_name": _text(letter.fields.get("endpoint_name"), 255),
        "status": letter.status,
        "reason": _text(letter.reason, 10_000),
        "event": letter.event.replace("\x00", ""),
        "first_seen": when,
        "last_seen": when,
    }
    letters = DeadLetter.objects.using(_alias())
    try:
        with transaction.atomic(using=_alias()):
            letters.create(key=key, **values)
    except IntegrityError:
        del values["first_seen"]
        # The condition makes it once, also of two workers at the same time.
        letters.filter(key=key).exclude(refusal=letter.refusal).update(
            attempts=F("attempts") + 1, claimed_until=None, **values
        )


def _refused_again(letter: DeadLetter, refusal: Refusal) -> None:
    DeadLetter.objects.using(_alias()).filter(pk=letter.pk, state=_State.RESEND).update(
        state=_State.WAITING,
        claimed_until=None,
        reason=_text(refusal.reason, 10_000),
        status=refusal.status,
        attempts=F("attempts") + 1,
        last_seen=timezone.now(),
    )


def _text(value: Any, longest: int) -> str:
    # PostgreSQL stores no NUL, and the event may say anything of itself.
    text = "" if value is None else str(value)
    return text.replace("\x00", "").encode("utf-8", "replace").decode()[:longest]


def _alias() -> str:
    return router.db_for_write(DeadLetter)


def _close_connection() -> None:
    try:
        connection = connections[_alias()]
        if not connection.in_atomic_block:
            connection.close()
    except Exception:
        # There is no database, or no way to it any more.
        logger.debug("the connection could not be closed", exc_info=True)


def waiting() -> tuple[int, datetime | None]:
    """Return how many letters wait for something, and since when the first of them does.

    :raises Exception: whatever the database raises.
    """
    letters = DeadLetter.objects.using(_alias()).filter(state__in=[_State.WAITING, _State.RESEND])
    found = letters.aggregate(count=models.Count("pk"), oldest=models.Min("first_seen"))
    return found["count"], found["oldest"]


def summaries(most: int) -> Sequence[dict[str, Any]]:
    """The newest letters that wait for something, for people on a terminal.

    :raises Exception: whatever the database raises.
    """
    waiting = DeadLetter.objects.using(_alias()).filter(state__in=[_State.WAITING, _State.RESEND])
    return [
        {
            "place": "database",
            "request_id": letter.request_id,
            "reason": letter.reason,
            "status": letter.status,
            "refused_at": letter.last_seen.isoformat(),
            "state": letter.state,
            "attempts": letter.attempts,
        }
        for letter in waiting[:most]
    ]
