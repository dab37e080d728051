"""The view, of the kind that the process is configured for."""

from __future__ import annotations

import json
from typing import Any

from django.conf import settings
from django.http import HttpRequest, HttpResponse, JsonResponse
from django.urls import include, path
from django.views.decorators.csrf import csrf_exempt


@csrf_exempt
def order(request: HttpRequest) -> HttpResponse:
    """Take an order and give it back."""
    return JsonResponse(json.loads(request.body))


@csrf_exempt
async def order_async(request: HttpRequest) -> HttpResponse:
    """Take an order and give it back."""
    return JsonResponse(json.loads(request.body))


@csrf_exempt
def upload(request: HttpRequest) -> HttpResponse:
    """Give back what came, byte for byte."""
    return HttpResponse(request.body, content_type="application/json")


def _view() -> Any:
    if settings.BENCHMARK_DRF:
        from rest_framework.decorators import api_view
        from rest_framework.response import Response

        @api_view(["POST"])
        def order_drf(request: Any) -> Any:
            return Response(request.data)

        return order_drf
    return order_async if settings.BENCHMARK_ASYNC else order


urlpatterns = [path("iac/v1/inventory", _view()), path("iac/v1/upload", upload)]
if "silk" in settings.INSTALLED_APPS:
    urlpatterns.append(path("silk/", include("silk.urls", namespace="silk")))
