"""Django's own refusals as problem details: unknown paths, wrong methods, bad hosts, faults.

A project names the handlers in its root URLconf::

    from audit_publisher.http.refusals import handler400, handler403, handler404, handler500
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any

from django.core.exceptions import DisallowedHost, RequestDataTooBig
from django.http import HttpRequest, HttpResponse
from django.views import defaults
from django.views.decorators.csrf import csrf_exempt

from .problems import Problem, not_allowed

View = Callable[..., HttpResponse]

#: Below these, nobody gets a page for people.
_OURS = ("/v1/", "/health/", "/metrics")


def _is_for_people(request: HttpRequest) -> bool:
    return not request.path_info.startswith(_OURS) and "text/html" in request.META.get(
        "HTTP_ACCEPT", ""
    )


def handler400(request: HttpRequest, exception: Exception) -> HttpResponse:
    """Django will not handle the request: an unknown host, too many fields, a suspicious one."""
    if _is_for_people(request):
        return defaults.bad_request(request, exception)
    if isinstance(exception, DisallowedHost):
        problem = unknown_host()
    elif isinstance(exception, RequestDataTooBig):
        problem = Problem(413, "The body is too large.", field="")
    else:
        problem = Problem(400, "The request cannot be used.")
    return problem.response()


def handler403(request: HttpRequest, exception: Exception) -> HttpResponse:
    """The sender may not do this."""
    if _is_for_people(request):
        return defaults.permission_denied(request, exception)
    return Problem(403, "The sender may not do this.").response()


def handler404(request: HttpRequest, exception: Exception) -> HttpResponse:
    """There is no such path."""
    if _is_for_people(request):
        return defaults.page_not_found(request, exception)
    return _no_such_path().response()


def handler500(request: HttpRequest) -> HttpResponse:
    """A fault of ours; the log has it."""
    if _is_for_people(request):
        return defaults.server_error(request)
    return Problem(500, "The publisher failed. Its log says why.", retry_after=30).response()


def unknown_host() -> Problem:
    """The Host header is none that we answer for."""
    return Problem(
        400,
        "The Host header is not one of this publisher's names. Use its own name, or add the name "
        "to AUDIT_ALLOWED_HOSTS.",
        code="unknown-host",
        header="Host",
    )


def _no_such_path() -> Problem:
    return Problem(404, "There is no such path; /v1/docs lists those there are.")


@csrf_exempt
def unknown_path(request: HttpRequest) -> HttpResponse:
    """What is nearly one of ours, whatever the root URLconf and DEBUG are."""
    return _no_such_path().response()


def only_get(view: View) -> View:
    """Let GET and HEAD through to `view`; to the rest, say which methods there are."""

    @csrf_exempt
    @wraps(view)
    def checked(request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponse:
        if request.method not in ("GET", "HEAD"):
            return not_allowed("GET", "HEAD").response()
        return view(request, *args, **kwargs)

    return checked
