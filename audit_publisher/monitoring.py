"""GET /metrics: what Prometheus scrapes, from every process of this host if it is set up so."""

from __future__ import annotations

from django.http import HttpRequest, HttpResponse
from django.views.decorators.http import require_safe

from audit_logging import monitoring

from .conf import conf
from .http.problems import Problem


@require_safe
def serve(request: HttpRequest) -> HttpResponse:
    """All metrics of this process, or of all processes where PROMETHEUS_MULTIPROC_DIR is set."""
    if not conf.METRICS_PUBLIC and not getattr(request.user, "is_staff", False):
        return Problem(403, "Staff users only: METRICS_PUBLIC is off.").response()
    page, content_type = monitoring.exposition()
    return HttpResponse(page, content_type=content_type)
