"""What admin pages of watched models share: who acts, why, and what was denied."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from django.contrib import admin
from django.core.exceptions import PermissionDenied
from django.http import HttpRequest

from . import changes


def acts(view: Callable[..., Any]) -> Callable[..., Any]:
    """Make a method of a ModelAdmin, a view, act as its user; what is denied is told."""

    @functools.wraps(view)
    def inner(self: Any, request: HttpRequest, *args: Any, **kwargs: Any) -> Any:
        with changes.acting(changes.actor_of(request)):
            try:
                return view(self, request, *args, **kwargs)
            except PermissionDenied:
                told = changes.Refused(
                    kind=self.model._meta.label_lower,
                    what=changes.printable(f"{request.method} {request.path}")[:300],
                    actor=changes.actor(),
                )
                changes.refused.send(sender=self.model, refused=told)
                raise

    return inner


class ActingAdmin(admin.ModelAdmin):
    """Admin whose pages all act as their user, and tell what was denied."""

    @acts
    def changelist_view(self, request: HttpRequest, *args: Any, **kwargs: Any) -> Any:
        """The list, its actions and what is edited in it."""
        return super().changelist_view(request, *args, **kwargs)

    @acts
    def changeform_view(self, request: HttpRequest, *args: Any, **kwargs: Any) -> Any:
        """The form."""
        return super().changeform_view(request, *args, **kwargs)

    @acts
    def delete_view(self, request: HttpRequest, *args: Any, **kwargs: Any) -> Any:
        """The question before deleting, and the deletion."""
        return super().delete_view(request, *args, **kwargs)

    @acts
    def history_view(self, request: HttpRequest, *args: Any, **kwargs: Any) -> Any:
        """Django's history of one row."""
        return super().history_view(request, *args, **kwargs)


class WatchedAdmin(ActingAdmin):
    """Admin of a watched model: changes carry the user, the address and, if given, the reason."""

    change_form_template = "admin/audit_logging/watched_change_form.html"
