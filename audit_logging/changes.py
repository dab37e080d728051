"""What people change is told to whoever keeps a trail of it, inside the change's transaction.

A model that derives from :class:`Watched` tells of each row that is made, changed or deleted: by
``save``, by ``QuerySet.update``, ``bulk_create`` and ``bulk_update``, which Django's own signals do
not see, and by cascades. A listener of :data:`changed` that raises undoes the change. Without a
listener it costs nothing. What changes tables by SQL, or by a model's ``_base_manager``, is not
seen.
"""

from __future__ import annotations

import hashlib
import os
import pwd
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from django.db import NotSupportedError, models, router, transaction
from django.db.models.signals import class_prepared, pre_delete
from django.dispatch import Signal
from django.http import HttpRequest

#: Sent with `change`, a :class:`Change`, in the transaction of the change.
changed = Signal()
#: Sent with `refused`, a :class:`Refused`, when somebody was denied what an admin page does.
refused = Signal()

#: The field of an admin form in which somebody says why.
REASON = "_change_reason"
_MOST_REASON = 500
_MOST_VALUE = 4000

Shown = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Actor:
    """Who changes something.

    :ivar name: a user's name, or "audit_key by root" for a command.
    :ivar user_id: the user's primary key as text; empty for a command.
    :ivar address: the address that the request came from.
    :ivar forwarded: the request's X-Forwarded-For: a claim, unless a proxy of ours has set it.
    """

    name: str
    user_id: str = ""
    address: str = ""
    forwarded: str = ""
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Change:
    """One row that was made, changed or deleted.

    :ivar action: created, changed or deleted.
    :ivar fields: name → (before, after), of those that differ; None where there was no row.
    :ivar using: alias of the database.
    """

    action: str
    kind: str
    key: str
    text: str
    using: str
    actor: Actor
    fields: dict[str, tuple[Any, Any]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Refused:
    """A request for something that its user may not do."""

    kind: str
    what: str
    actor: Actor


_acting: ContextVar[Actor | None] = ContextVar("audit_acting", default=None)


def actor() -> Actor:
    """Who acts now: the user of the admin page, else this command and who runs it."""
    return _acting.get() or process_actor()


@contextmanager
def acting(who: Actor) -> Iterator[None]:
    """Everything within is done by `who`."""
    token = _acting.set(who)
    try:
        yield
    finally:
        _acting.reset(token)


@contextmanager
def because(reason: str) -> Iterator[None]:
    """Everything within is done for this reason, by whoever acts."""
    with acting(replace(actor(), reason=printable(reason).strip()[:_MOST_REASON])):
        yield


def actor_of(request: HttpRequest) -> Actor:
    """The user of a request, from where, and the reason given with it."""
    user = request.user
    return Actor(
        name=str(user.get_username())[:200],
        user_id=str(user.pk or ""),
        address=str(request.META.get("REMOTE_ADDR", ""))[:64],
        forwarded=printable(request.META.get("HTTP_X_FORWARDED_FOR", ""))[:200],
        reason=printable(request.POST.get(REASON, "")).strip()[:_MOST_REASON],
    )


def printable(text: str) -> str:
    """`text` with a blank for each character that a terminal or a log would act upon."""
    return "".join(character if character.isprintable() else " " for character in text)


def process_actor() -> Actor:
    """This process: its command and the user of the operating system that runs it."""
    name = Path(sys.argv[0]).name if sys.argv and sys.argv[0] else "python"
    if name in ("manage.py", "django-admin", "__main__.py") and len(sys.argv) > 1:
        name = sys.argv[1]
    try:
        user = pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:
        user = f"user {os.geteuid()}"
    behind = os.environ.get("SUDO_USER", "")
    if behind and os.geteuid() == 0:
        user = f"{user} (sudo by {behind})"
    return Actor(f"{name} by {user}"[:200])


class WatchedQuerySet(models.QuerySet):
    """Tells of what it changes in bulk."""

    def update(self, **kwargs: Any) -> int:
        """As Django's, and tells of each row."""
        if not changed.has_listeners(self.model):
            return super().update(**kwargs)
        self._for_write = True
        using = self.db
        with transaction.atomic(using=using):
            keys = list(self.values_list("pk", flat=True))
            before = _look(self.model, using, keys)
            # Those alone: a row that came meanwhile would be changed without a word.
            count = super(WatchedQuerySet, self.filter(pk__in=keys)).update(**kwargs)
            after = _look(self.model, using, keys)
            for key, was in before.items():
                if key in after:
                    _tell(self.model, "changed", using, key, was, after[key])
        return count

    update.alters_data = True  # type: ignore[attr-defined]

    def bulk_create(self, objs: Any, *args: Any, **kwargs: Any) -> list[Any]:
        """As Django's, and tells of each row.

        :raises NotSupportedError: conflicts are to be ignored or updated, so that it is not known
            what changed.
        """
        if not changed.has_listeners(self.model):
            return super().bulk_create(objs, *args, **kwargs)
        if any(args[1:]) or kwargs.get("ignore_conflicts") or kwargs.get("update_conflicts"):
            raise NotSupportedError(
                f"{self.model.__name__} is watched: save its rows one by one, or create them "
                "without ignore_conflicts and update_conflicts."
            )
        self._for_write = True
        using = self.db
        with transaction.atomic(using=using):
            made = super().bulk_create(objs, *args, **kwargs)
            for instance in made:
                found = _Row(str(instance), shown(instance))
                _tell(self.model, "created", using, instance.pk, None, found)
        return made

    bulk_create.alters_data = True  # type: ignore[attr-defined]


class Watched(models.Model):
    """A model whose every change is told.

    :cvar untold: fields that say again what is told anyway, such as who changed the row.
    """

    untold: frozenset[str] = frozenset()

    objects = models.Manager.from_queryset(WatchedQuerySet)()

    class Meta:
        abstract = True

    def told(self, name: str, value: Any) -> Any:
        """What a trail may hold of a field's value; override for what is long or secret."""
        return value

    def save_base(self, *args: Any, **kwargs: Any) -> None:
        """As Django's, in one transaction with what is told of it."""
        model = type(self)
        if not changed.has_listeners(model):
            super().save_base(*args, **kwargs)
            return
        using = kwargs.get("using") or router.db_for_write(model, instance=self)
        with transaction.atomic(using=using):
            before = _look(model, using, [self.pk]) if self.pk is not None else {}
            super().save_base(*args, **kwargs)
            after = _look(model, using, [self.pk])
            if self.pk in after:
                was = before.get(self.pk)
                action = "created" if was is None else "changed"
                _tell(model, action, using, self.pk, was, after[self.pk])


@dataclass(frozen=True, slots=True)
class _Row:
    text: str
    fields: Shown


def shown(instance: models.Model) -> Shown:
    """A row's fields as a trail keeps them: plain values, without key and times of the row."""
    found: Shown = {}
    for column in instance._meta.concrete_fields:
        own_time = getattr(column, "auto_now", False) or getattr(column, "auto_now_add", False)
        if column.primary_key or own_time or column.name in getattr(instance, "untold", ()):
            continue
        if column.is_relation:
            value = getattr(instance, column.name)
            value = None if value is None else str(value)
        else:
            value = column.value_from_object(instance)
        told = instance.told(column.name, value) if isinstance(instance, Watched) else value
        found[column.name] = plain(told)
    return found


def plain(value: Any) -> Any:
    """A value as JSON takes it."""
    if value is None or isinstance(value, bool | int | float):
        return value
    return value.isoformat() if hasattr(value, "isoformat") else str(value)


def _bounded(value: Any) -> Any:
    if not isinstance(value, str) or len(value) <= _MOST_VALUE:
        return value
    # Both ends, and what tells it from any other: what is in the middle can be compared.
    half = _MOST_VALUE // 2
    digest = hashlib.sha256(value.encode(errors="surrogatepass")).hexdigest()
    cut = f"… ({len(value)} characters, SHA-256 {digest}) …"
    return f"{value[:half]}{cut}{value[-half:]}"


def _look(model: type[models.Model], using: str, keys: Sequence[Any]) -> dict[Any, _Row]:
    rows = model._base_manager.using(using).select_for_update().filter(pk__in=keys).order_by()
    return {row.pk: _Row(str(row), shown(row)) for row in rows}


def _tell(
    model: type[models.Model], action: str, using: str, key: Any, before: Any, after: Any
) -> None:
    was, now = (before.fields if before else {}), (after.fields if after else {})
    fields = {
        name: (_bounded(was.get(name)), _bounded(now.get(name)))
        for name in {**was, **now}
        if before is None or after is None or was.get(name) != now.get(name)
    }
    if action == "changed" and not fields:
        return
    change = Change(
        action=action,
        kind=model._meta.label_lower,
        key=str(key),
        text=(after or before).text,
        using=using,
        actor=actor(),
        fields=fields,
    )
    changed.send(sender=model, change=change)


def _deleting(sender: type[models.Model], instance: Any, using: str, **kwargs: Any) -> None:
    # Django's own transaction is open, and the row and what it points to are still there.
    if changed.has_listeners(sender):
        for row in _look(sender, using, [instance.pk]).values():
            _tell(sender, "deleted", using, instance.pk, row, None)


def _prepared(sender: type[models.Model], **kwargs: Any) -> None:
    # For these models alone: a listener for all would cost every deletion of the host its speed.
    if issubclass(sender, Watched) and not sender._meta.abstract:
        pre_delete.connect(_deleting, sender=sender)


class_prepared.connect(_prepared)
