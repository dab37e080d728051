"""GET /metrics: what Prometheus scrapes, from every process of this host if it is set up so."""

from __future__ import annotations

import os

from django.http import HttpRequest, HttpResponse
from django.views.decorators.http import require_safe
from prometheus_client import CONTENT_TYPE_LATEST, REGISTRY, CollectorRegistry, generate_latest
from prometheus_client.multiprocess import MultiProcessCollector

from .conf import conf


@require_safe
def serve(request: HttpRequest) -> HttpResponse:
    """All metrics of this process, or of all processes where PROMETHEUS_MULTIPROC_DIR is set."""
    if not conf.METRICS_PUBLIC and not getattr(request.user, "is_staff", False):
        return HttpResponse("Staff users only.\n", status=403, content_type="text/plain")
    registry = REGISTRY
    if os.environ.get("PROMETHEUS_MULTIPROC_DIR"):
        registry = CollectorRegistry()
        MultiProcessCollector(registry)
    return HttpResponse(generate_latest(registry), content_type=CONTENT_TYPE_LATEST)
