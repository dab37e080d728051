"""What pages have in common that show, and where nothing is edited in Django's forms."""

from __future__ import annotations

from typing import Any

from django.http import HttpRequest

from audit_logging.changes_admin import ActingAdmin


class ShowingAdmin(ActingAdmin):
    """Adds, changes and deletes nothing; who tries is in the trail."""

    class Media:
        css = {"all": ["audit_logging/flags.css", "audit_publisher/operation.css"]}

    def has_add_permission(self, request: HttpRequest) -> bool:
        """What is shown comes from elsewhere."""
        return False

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        """Nothing is edited here."""
        return False

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        """Nothing is deleted here."""
        return False
