"""URLs of the runnable project."""

from django.contrib import admin
from django.urls import include, path
from django.views.generic import RedirectView

admin.site.site_header = admin.site.site_title = "API audit"
admin.site.index_title = "Capture, publish, sink"

urlpatterns = [
    path("", RedirectView.as_view(pattern_name="admin:index")),
    path("admin/", admin.site.urls),
    path("", include("audit_publisher.urls")),
]
