"""URLs of the runnable project."""

from django.contrib import admin
from django.urls import include, path
from django.views.generic import RedirectView

from audit_publisher.http import refusals

# Clients of the publisher get problem details from Django itself, too.
handler400 = refusals.handler400
handler403 = refusals.handler403
handler404 = refusals.handler404
handler500 = refusals.handler500

admin.site.site_header = admin.site.site_title = "API audit"
admin.site.index_title = "Capture, publish, sink"

urlpatterns = [
    path("", RedirectView.as_view(pattern_name="admin:index")),
    path("admin/", admin.site.urls),
    path("", include("audit_publisher.urls")),
]
