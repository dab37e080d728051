"""Middleware of the project's own."""

from __future__ import annotations

from typing import Any

from asgiref.sync import iscoroutinefunction
from django.http import HttpRequest, JsonResponse
from django.utils.decorators import sync_and_async_middleware


@sync_and_async_middleware
def doorkeeper(get_response: Any) -> Any:
    """Answers ``/closed/…`` before the view, without a look at the body."""

    def refused(request: HttpRequest) -> JsonResponse | None:
        if request.path.startswith("/closed/"):
            return JsonResponse({"error": "no key given"}, status=401)
        return None

    if iscoroutinefunction(get_response):

        async def async_middleware(request: HttpRequest) -> Any:
            return refused(request) or await get_response(request)

        return async_middleware

    def middleware(request: HttpRequest) -> Any:
        return refused(request) or get_response(request)

    return middleware
