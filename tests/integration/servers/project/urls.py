"""Routes of the project."""

from django.urls import path, re_path

from . import uploads, views

urlpatterns = [
    path("echo", views.echo),
    path("echo-async", views.echo_async),
    path("drf", views.Api.as_view()),
    path("items/<int:pk>", views.item),
    re_path(r"^class/(?P<slug>[a-z]+)/$", views.ClassView.as_view()),
    path("status/<int:code>", views.status),
    path("etag", views.etag),
    path("page", views.page),
    path("stream", views.stream),
    path("stream-async", views.stream_async),
    path("file", views.file),
    path("large-file", views.large_file),
    path("file-in-memory", views.file_in_memory),
    path("raises", views.raises),
    path("raises-async", views.raises_async),
    path("cookies", views.cookies),
    path("atomic", views.atomic),
    path("notes", views.notes),
    path("upload", uploads.upload),
    path("gate", views.gate),
    path("gate-async", views.gate_async),
    path("pid", views.pid),
    path("fork", views.fork),
    path("counted", views.counted),
]
