"""Admin of capture flags and endpoint rules."""

from django.contrib import admin

from . import dead_letters_admin as dead_letters_admin
from .models import CaptureFlags, EndpointRule


class EndpointRuleInline(admin.TabularInline):
    """The rules of one service, in the order they are tried."""

    model = EndpointRule
    extra = 0
    fields = ["position", "match", "pattern", "level"]


@admin.register(CaptureFlags)
class CaptureFlagsAdmin(admin.ModelAdmin):
    """Flags that act in every process of the service within 5 seconds."""

    list_display = [
        "service_name", "enabled", "response_bodies", "sample_rate", "max_body_bytes",
        "rule_count", "updated_at",
    ]  # fmt: skip
    list_editable = ["enabled", "response_bodies"]
    search_fields = ["service_name"]
    inlines = [EndpointRuleInline]

    @admin.display(description="rules")
    def rule_count(self, flags: CaptureFlags) -> int:
        """Number of endpoint rules."""
        return flags.rules.count()
