"""Admin pages: who may publish, with which keys, and to which topics."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from django.conf import settings
from django.contrib import admin
from django.db.models import QuerySet
from django.http import HttpRequest
from django.utils.html import format_html
from django.utils.timezone import template_localtime

from audit_logging.changes_admin import WatchedAdmin

from ..conf import conf
from ..models import Consumer, ConsumerKey, TopicRoute


class ConsumerKeyInline(admin.StackedInline):
    """A consumer's keys, on its own page."""

    model = ConsumerKey
    extra = 0
    fields = ("key_version", "public_key", ("not_before", "not_after"), "revoked")


@admin.register(Consumer)
class ConsumerAdmin(WatchedAdmin):
    """Who publishes."""

    list_display = ("consumer_id", "name", "active", "enforcement", "allowed_services", "key_list")
    list_filter = ("active", "enforcement", "schemes", "replay")
    search_fields = ("consumer_id", "name", "service_names")
    inlines = (ConsumerKeyInline,)
    fieldsets = (
        (None, {"fields": ("consumer_id", "name", "active")}),
        (
            "What it may do",
            {
                "fields": ("service_names", "caller_ids", "enforcement", "schemes", "replay"),
                "description": "Changes act in every publisher process within seconds.",
            },
        ),
    )

    def get_queryset(self, request: HttpRequest) -> QuerySet[Consumer]:
        """One query for all keys of the list."""
        return super().get_queryset(request).prefetch_related("keys")

    @admin.display(description="services")
    def allowed_services(self, consumer: Consumer) -> str:
        """Its services, or that there are none."""
        names = [name.strip() for name in consumer.service_names.splitlines() if name.strip()]
        if "*" in names:
            return "every service"
        return ", ".join(sorted(names)) or "none: it cannot publish"

    @admin.display(description="keys")
    def key_list(self, consumer: Consumer) -> str:
        """Versions of its keys, with what is wrong with them."""
        keys = [
            key.key_version if key.state == "valid" else f"{key.key_version} ({key.state})"
            for key in consumer.keys.all()
        ]
        return ", ".join(keys) or "none"


@admin.register(ConsumerKey)
class ConsumerKeyAdmin(WatchedAdmin):
    """Public keys of all consumers."""

    list_display = ("consumer", "key_version", "state", "valid_from", "valid_until", "short_print")
    list_filter = ("revoked",)
    search_fields = ("consumer__consumer_id", "consumer__name", "key_version")
    list_select_related = ("consumer",)
    autocomplete_fields = ("consumer",)
    readonly_fields = ("full_print", "state", "created_at")
    actions = ("revoke",)
    fieldsets = (
        (None, {"fields": ("consumer", "key_version", "public_key", "full_print")}),
        (
            "Validity",
            {
                "fields": ("state", "not_before", "not_after", "revoked", "created_at"),
                "description": f"Times are in {settings.TIME_ZONE}. To rotate a key, add the new "
                "version, let the consumer switch to it, then revoke the old one.",
            },
        ),
    )

    @admin.display(description="not before", ordering="not_before")
    def valid_from(self, key: ConsumerKey) -> str:
        """With the time zone."""
        return _told(key.not_before)

    @admin.display(description="not after", ordering="not_after")
    def valid_until(self, key: ConsumerKey) -> str:
        """With the time zone."""
        return _told(key.not_after)

    @admin.display(description="fingerprint")
    def short_print(self, key: ConsumerKey) -> str:
        """The first characters of the fingerprint."""
        return format_html("<code>{}…</code>", key.fingerprint[:16])

    @admin.display(description="fingerprint (SHA-256)")
    def full_print(self, key: ConsumerKey) -> str:
        """The fingerprint, to compare with the consumer's."""
        return key.fingerprint if key.pk else "shown after saving"

    @admin.action(description="Revoke the selected keys", permissions=["change"])
    def revoke(self, request: HttpRequest, queryset: QuerySet[ConsumerKey]) -> None:
        """Refuse the selected keys from now on."""
        count = queryset.update(revoked=True)
        self.message_user(request, f"{count} revoked; refused everywhere within seconds.")


def _told(moment: datetime | None) -> str:
    return f"{template_localtime(moment):%Y-%m-%d %H:%M %Z}".rstrip() if moment else ""


@admin.register(TopicRoute)
class TopicRouteAdmin(WatchedAdmin):
    """Which service has a topic of its own."""

    list_display = ("service_name", "topic", "enabled")
    list_filter = ("enabled", "topic")
    list_editable = ("enabled",)
    search_fields = ("service_name", "topic")

    def changelist_view(
        self, request: HttpRequest, extra_context: dict[str, Any] | None = None
    ) -> Any:
        """The list, which says where all other events go."""
        routed = TopicRoute.objects.filter(enabled=True).exists()
        who = "Services without a route here" if routed else "No route is in force: all services"
        said = {"subtitle": f"{who} publish to the default topic, {conf.DEFAULT_TOPIC}."}
        return super().changelist_view(request, said | (extra_context or {}))
