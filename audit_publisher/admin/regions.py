"""The page of regions: how every publisher process sees them; drain, and fail over."""

from __future__ import annotations

from typing import Any

from django.contrib import admin, messages
from django.core.exceptions import PermissionDenied
from django.http import Http404, HttpRequest, HttpResponse
from django.shortcuts import redirect
from django.template.response import TemplateResponse
from django.urls import path, reverse
from django.views.decorators.http import require_http_methods, require_safe

from audit_logging.changes_admin import acts

from ..conf import conf
from ..models import RegionWish
from ..operating.overview import Overview, look
from ..operating.region_actions import (
    ACTIONS,
    DRAIN,
    FAIL_BACK,
    FAIL_OVER,
    TAKE_BACK,
    Overtaken,
    carry_out,
    plan,
)
from .showing import ShowingAdmin

CONTROL = "audit_publisher.control_regions"


@admin.register(RegionWish)
class RegionAdmin(ShowingAdmin):
    """Shows regions; what is done to them goes through a page that asks first."""

    class Media:
        js = ["audit_logging/flags.js"]

    def has_view_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        """Whoever may do something to regions may see them, too."""
        return super().has_view_permission(request, obj) or request.user.has_perm(CONTROL)

    def get_urls(self) -> list[Any]:
        """The list, its part that renews itself, and the page of each action."""
        view = self.admin_site.admin_view
        name = "audit_publisher_regionwish"
        return [
            path("", view(self.changelist_view), name=f"{name}_changelist"),
            path("lines/", view(self.lines_view), name="audit_publisher_region_lines"),
            path(
                "<str:action>/<str:region>/",
                view(self.action_view),
                name="audit_publisher_region_action",
            ),
        ]

    def _context(self, request: HttpRequest) -> dict[str, Any]:
        overview = look()
        may = request.user.has_perm(CONTROL)
        return {
            **self.admin_site.each_context(request),
            "opts": self.opts,
            "media": self.media,
            "title": "Regions",
            "overview": overview,
            "cards": [
                (view, _offered(view.name, overview) if may else []) for view in overview.regions
            ],
            "may": may,
            "shared": conf.REGION_MODE == "active-active",
            "lines_url": reverse(f"{self.admin_site.name}:audit_publisher_region_lines"),
        }

    @acts
    def changelist_view(
        self, request: HttpRequest, extra_context: dict[str, Any] | None = None
    ) -> HttpResponse:
        """Regions, and how processes see them."""
        return require_safe(self._page)(request, "admin/audit_publisher/regions.html")

    @acts
    def lines_view(self, request: HttpRequest) -> HttpResponse:
        """The part of the page that renews itself."""
        return require_safe(self._page)(request, "admin/audit_publisher/regions_lines.html")

    def _page(self, request: HttpRequest, template: str) -> HttpResponse:
        if not self.has_view_permission(request):
            raise PermissionDenied
        return TemplateResponse(request, template, self._context(request))

    @acts
    def action_view(self, request: HttpRequest, action: str, region: str) -> HttpResponse:
        """GET: what would happen, and a form that asks why. POST: do it."""
        if not request.user.has_perm(CONTROL):
            raise PermissionDenied
        return require_http_methods(["GET", "HEAD", "POST"])(self._action)(request, action, region)

    def _action(self, request: HttpRequest, action: str, region: str) -> HttpResponse:
        overview = look()
        if action not in ACTIONS or overview.region(region) is None:
            raise Http404
        found = plan(action, region, overview)
        back = reverse(f"{self.admin_site.name}:audit_publisher_regionwish_changelist")
        if found.impossible:
            self.message_user(request, found.impossible, messages.WARNING)
            return redirect(back)
        problems: list[str] = []
        if request.method == "POST":
            if not request.POST.get("_change_reason", "").strip():
                problems.append("Say why: others will want to know.")
            # What was ticked is this page's danger, not one that has come since.
            if request.POST.get("meant", "") != found.mark:
                problems.append("Tick that you have read what is marked, or go back.")
            if not problems:
                try:
                    found = carry_out(found)
                except Overtaken as overtaken:
                    found = overtaken.plan
                    problems.append("Somebody else was quicker, and this is what it means now.")
                else:
                    self.message_user(request, f"{found.verb}: done. {found.effects[-1]}")
                    return redirect(back)
                if found.impossible:
                    message = f"Somebody else was quicker. {found.impossible}"
                    self.message_user(request, message, messages.WARNING)
                    return redirect(back)
        context = {
            **self.admin_site.each_context(request),
            "opts": self.opts,
            "media": self.media,
            "title": found.title,
            "plan": found,
            "problems": problems,
            "reason": request.POST.get("_change_reason", ""),
            "back": back,
        }
        return TemplateResponse(request, "admin/audit_publisher/region_action.html", context)


def _offered(region: str, overview: Overview) -> list[tuple[str, str]]:
    """Actions that can be taken on a region now: (action, label)."""
    offered = []
    for action, label in (
        (FAIL_OVER, "Fail over to it now …"),
        (FAIL_BACK, "Fail back …"),
        (TAKE_BACK, "Take back …"),
        (DRAIN, "Drain …"),
    ):
        view = overview.region(region)
        if action == FAIL_OVER and view is not None and view.place == 1:
            continue
        if not plan(action, region, overview).impossible:
            offered.append((action, label))
    return offered
