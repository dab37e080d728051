"""The publisher's URLs."""

from __future__ import annotations

from django.urls import path, re_path, register_converter
from django.urls.converters import StringConverter

from . import health, monitoring
from .http import openapi
from .http.refusals import only_get, unknown_path
from .names import CONTROL
from .views import BatchView, ConfigView, EventView, LegacyEventView


class ServiceName(StringConverter):
    """What can be a service's name; nobody else has flags."""

    regex = f"[^/{CONTROL.pattern[1:]}{{1,200}}"


register_converter(ServiceName, "service")

#: What the OpenAPI document describes.
operations = [
    path("v1/logs/api-requests", EventView.as_view(), name="audit-event"),
    path("v1/logs/api-requests:batch", BatchView.as_view(), name="audit-batch"),
    path("v1/logRequest", LegacyEventView.as_view(), name="audit-event-legacy"),
    path("v1/config/<service:service_name>", ConfigView.as_view(), name="audit-config"),
]

urlpatterns = [
    *operations,
    path("v1/openapi.json", only_get(openapi.serve), name="audit-openapi"),
    path("v1/docs", only_get(openapi.page), name="audit-docs"),
    path("health/live", only_get(health.live), name="audit-live"),
    path("health/ready", only_get(health.ready), name="audit-ready"),
    path("health/startup", only_get(health.startup), name="audit-startup"),
    path("metrics", only_get(monitoring.serve), name="audit-metrics"),
    # A project may have a /v1/ of its own, too; what is neither's is its handler404's.
    re_path(r"^v1/(?:logs|logRequest|config)(?:[/:]|$)", unknown_path),
]
