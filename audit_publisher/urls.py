"""The publisher's URLs."""

from __future__ import annotations

from django.urls import path

from . import health, monitoring, openapi
from .views import BatchView, ConfigView, EventView, LegacyEventView

#: What the OpenAPI document describes.
operations = [
    path("v1/logs/api-requests", EventView.as_view(), name="audit-event"),
    path("v1/logs/api-requests:batch", BatchView.as_view(), name="audit-batch"),
    path("v1/logRequest", LegacyEventView.as_view(), name="audit-event-legacy"),
    path("v1/config/<str:service_name>", ConfigView.as_view(), name="audit-config"),
]

urlpatterns = [
    *operations,
    path("v1/openapi.json", openapi.serve, name="audit-openapi"),
    path("v1/docs", openapi.page, name="audit-docs"),
    path("health/live", health.live, name="audit-live"),
    path("health/ready", health.ready, name="audit-ready"),
    path("health/startup", health.startup, name="audit-startup"),
    path("metrics", monitoring.serve, name="audit-metrics"),
]
