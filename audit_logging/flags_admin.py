"""Admin of capture flags and endpoint rules: what they would do, and who has taken them up."""

from __future__ import annotations

from typing import Any

from django.contrib import admin
from django.core.exceptions import PermissionDenied
from django.db.models import QuerySet
from django.http import Http404, HttpRequest, HttpResponse
from django.shortcuts import render
from django.urls import path, reverse
from django.utils.html import format_html
from django.views.decorators.http import require_GET, require_http_methods

from . import what_if
from .changes_admin import WatchedAdmin
from .models import CaptureFlags, EndpointRule
from .overview import Overview, overviews


class EndpointRuleInline(admin.TabularInline):
    """The rules of one service, in the order they are tried."""

    model = EndpointRule
    formset = what_if.RuleFormSet
    extra = 0
    fields = what_if.RULE_FIELDS


@admin.register(CaptureFlags)
class CaptureFlagsAdmin(WatchedAdmin):
    """Flags that act in every process of the service within 5 seconds."""

    # By its name: with the reason for a change, and with who has taken it up.
    change_form_template = "admin/audit_logging/captureflags/change_form.html"
    list_display = [
        "service_name", "enabled", "response_bodies", "uptake", "sample_rate", "max_body_bytes",
        "rule_count", "updated_at",
    ]  # fmt: skip
    list_editable = ["enabled", "response_bodies"]
    search_fields = ["service_name"]
    fields = what_if.FLAG_FIELDS
    inlines = [EndpointRuleInline]

    class Media:
        css = {"all": ["audit_logging/flags.css"]}
        js = ["audit_logging/flags.js"]

    def get_queryset(self, request: HttpRequest) -> QuerySet[CaptureFlags]:
        """One query for the rules of all."""
        return super().get_queryset(request).prefetch_related("rules")

    def get_changelist_instance(self, request: HttpRequest) -> Any:
        """One question for the processes of all."""
        changelist = super().get_changelist_instance(request)
        found = overviews(changelist.result_list)
        for flags in changelist.result_list:
            flags.overview = found[flags.pk]
        return changelist

    @admin.display(description="rules")
    def rule_count(self, flags: CaptureFlags) -> int:
        """Number of endpoint rules."""
        return len(flags.rules.all())

    @admin.display(description="taken up by processes")
    def uptake(self, flags: CaptureFlags) -> str:
        """How many processes have these flags, of those that run."""
        overview: Overview | None = getattr(flags, "overview", None)
        if overview is None:
            return ""
        kind = "complete" if overview.complete else "partial" if overview.live else "unknown"
        return format_html('<span class="audit-uptake-{}">{}</span>', kind, overview)

    # -- further pages ----------------------------------------------------------------------

    def get_urls(self) -> list[Any]:
        """The pages beside Django's own."""
        view = self.admin_site.admin_view
        return [
            path("what-if/", view(self.what_if_view), name="audit_logging_what_if"),
            path("<int:pk>/what-if/", view(self.what_if_view), name="audit_logging_what_if_of"),
            path("<int:pk>/uptake/", view(self.uptake_view), name="audit_logging_uptake"),
            *super().get_urls(),
        ]

    def what_if_view(self, request: HttpRequest, pk: int | None = None) -> HttpResponse:
        """Say what would become of a request to a path.

        GET: by what is saved, as a page of its own, or with ``fragment`` the answer alone. POST:
        by a change form's unsaved content; the answer alone. Nothing is changed by either.
        """
        return require_http_methods(["GET", "HEAD", "POST"])(self._what_if)(request, pk)

    def _what_if(self, request: HttpRequest, pk: int | None) -> HttpResponse:
        instance = self._seen(request, pk)
        asked = request.POST if request.method == "POST" else request.GET
        text = asked.get("what-if-path", "")
        trace = asked.get("what-if-traceparent", "")
        if request.method == "POST":
            question = what_if.unsaved(request.POST, instance)
        else:
            typed = what_if.service_name(asked.get("service", ""))
            question = what_if.saved(instance.service_name if instance else typed)
        answer = what_if.answer(question, text, trace) if text.strip() else None
        if request.method == "POST" or "fragment" in asked:
            return render(
                request,
                "audit_logging/what_if_answer.html",
                {"answer": answer, "unsaved": not question.saved},
            )
        services = CaptureFlags.objects.exclude(service_name=CaptureFlags.EVERY_SERVICE)
        context = self.admin_site.each_context(request) | {
            "title": "What would happen to a request?",
            "opts": self.opts,
            "media": self.media,
            "answer": answer,
            "service": question.service,
            "services": services.values_list("service_name", flat=True)[:500],
            "path": text,
            "traceparent": trace,
        }
        return render(request, "audit_logging/what_if.html", context)

    def uptake_view(self, request: HttpRequest, pk: int) -> HttpResponse:
        """Who has taken these flags up: the part of the change page that renews itself."""
        return require_GET(self._uptake)(request, pk)

    def _uptake(self, request: HttpRequest, pk: int) -> HttpResponse:
        flags = self._seen(request, pk)
        response = render(
            request, "audit_logging/uptake_lines.html", {"overview": overviews([flags])[pk]}
        )
        response["Cache-Control"] = "no-store"
        return response

    def _seen(self, request: HttpRequest, pk: int | None) -> Any:
        instance = None
        if pk is not None:
            instance = self.get_queryset(request).filter(pk=pk).first()
            if instance is None:
                raise Http404
        if not self.has_view_permission(request, instance):
            raise PermissionDenied
        return instance

    def changeform_view(
        self,
        request: HttpRequest,
        object_id: str | None = None,
        form_url: str = "",
        extra_context: dict[str, Any] | None = None,
    ) -> Any:
        """Django's form, with the question beside it, and who has taken the flags up."""
        context = dict(extra_context or {})
        name = f"{self.admin_site.name}:audit_logging_what_if"
        context["what_if_url"] = reverse(name)
        flags = None
        if object_id is not None and object_id.isdigit():
            flags = self.get_queryset(request).filter(pk=int(object_id)).first()
        if flags is not None and request.method == "GET":
            context["what_if_url"] = reverse(f"{name}_of", args=[flags.pk])
            context["overview"] = overviews([flags])[flags.pk]
            context["uptake_url"] = reverse(
                f"{self.admin_site.name}:audit_logging_uptake", args=[flags.pk]
            )
        elif flags is not None:
            context["what_if_url"] = reverse(f"{name}_of", args=[flags.pk])
        return super().changeform_view(request, object_id, form_url, context)
