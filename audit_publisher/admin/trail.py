"""The trail of changes: read, searched, never edited."""

from __future__ import annotations

import json
from typing import Any

from django.apps import apps
from django.contrib import admin
from django.db.models import QuerySet
from django.http import HttpRequest
from django.utils.html import format_html, format_html_join
from django.utils.safestring import SafeString
from django.utils.text import Truncator
from django.utils.timezone import template_localtime

from ..models import TrailLine
from .showing import ShowingAdmin

_SHOWN = 300


class KindFilter(admin.SimpleListFilter):
    """By what was acted on, in people's words."""

    title = parameter_name = "kind"

    def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[str, str]]:
        """The kinds that the trail tells of."""
        kinds = TrailLine.objects.order_by("kind").values_list("kind", flat=True).distinct()
        return sorted(((kind, _named(kind)) for kind in kinds), key=lambda both: both[1])

    def queryset(self, request: HttpRequest, queryset: QuerySet[TrailLine]) -> QuerySet[TrailLine]:
        """Lines of the chosen kind."""
        return queryset.filter(kind=self.value()) if self.value() else queryset


@admin.register(TrailLine)
class TrailAdmin(ShowingAdmin):
    """Shows who changed what; superusers neither."""

    list_display = ("when", "who", "thing", "said", "reason")
    list_display_links = ("when",)
    list_filter = ("action", KindFilter, "at")
    date_hierarchy = "at"
    search_fields = ("actor", "text", "key", "reason", "address")
    search_help_text = "Who, which object, reason, or address."
    list_per_page = 50
    show_full_result_count = False
    actions = None
    fields = (
        "when", "actor", "user_id", "address", "forwarded", "host", "action", "kind", "key", "text",
        "table", "reason",
    )  # fmt: skip
    readonly_fields = fields

    def changelist_view(
        self, request: HttpRequest, extra_context: dict[str, Any] | None = None
    ) -> Any:
        """The list, under a title that promises no editing."""
        title = {"title": "Trail of changes"}
        return super().changelist_view(request, title | (extra_context or {}))

    @admin.display(description="when", ordering="id")
    def when(self, line: TrailLine) -> str:
        """To the second, with the time zone."""
        return f"{template_localtime(line.at):%Y-%m-%d %H:%M:%S %Z}".rstrip()

    @admin.display(description="who", ordering="actor")
    def who(self, line: TrailLine) -> SafeString:
        """Who, and what they did."""
        return format_html("<strong>{}</strong> {}", line.actor, line.get_action_display())

    @admin.display(description="object", ordering="kind")
    def thing(self, line: TrailLine) -> str:
        """The object; its kind without the app where that is ours."""
        return f"{line.kind.removeprefix('audit_publisher.')} {line.text}"

    @admin.display(description="changes")
    def said(self, line: TrailLine) -> str:
        """The changes in a line."""
        parts = []
        for name, value in line.fields.items():
            if not line.about_fields:
                parts.append(f"{name}: {_plain(value)}")
            elif line.action == TrailLine.Action.CREATED:
                parts.append(f"{name}: {_plain(value[1])}")
            else:
                parts.append(f"{name}: {_plain(value[0])} → {_plain(value[1])}")
        return Truncator("; ".join(parts)).chars(_SHOWN)

    @admin.display(description="changes")
    def table(self, line: TrailLine) -> SafeString | str:
        """The changes, field by field."""
        if not line.fields:
            return "none"
        rows = [
            (name, _plain(value[0]), _plain(value[1]))
            if line.about_fields
            else (name, "", _plain(value))
            for name, value in line.fields.items()
        ]
        return format_html(
            '<div class="audit-table"><table><thead><tr><th scope="col">field</th>'
            '<th scope="col">before</th><th scope="col">after</th></tr></thead>'
            "<tbody>{}</tbody></table></div>",
            format_html_join(
                "",
                '<tr><th scope="row">{}</th><td class="audit-value">{}</td>'
                '<td class="audit-value">{}</td></tr>',
                rows,
            ),
        )


def _named(kind: str) -> str:
    try:
        name = str(apps.get_model(kind)._meta.verbose_name_plural)
    except (LookupError, ValueError):
        # No table, or none any more.
        name = kind.rpartition(".")[2]
    return name[:1].upper() + name[1:]


def _plain(value: Any) -> str:
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return json.dumps(value, ensure_ascii=False) if isinstance(value, list | dict) else str(value)
