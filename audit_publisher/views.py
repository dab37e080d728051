"""The publisher's operations: take one event, take a batch, hand out a service's flags."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from typing import Any

from django.core.signals import setting_changed
from django.http import HttpRequest, HttpResponse, HttpResponseNotModified
from django.utils.cache import patch_cache_control
from drf_spectacular.utils import extend_schema
from rest_framework.exceptions import MethodNotAllowed
from rest_framework.negotiation import BaseContentNegotiation
from rest_framework.renderers import BaseRenderer, JSONRenderer
from rest_framework.request import Request
from rest_framework.views import APIView

from audit_logging import tracing, uptake

from . import metrics, operations
from .authentication import Sender, SignatureAuthentication
from .conf import PublisherSettings
from .flags import Board, FlagsCache, matches
from .http import contract
from .http.body import read_body
from .http.problems import Problem, not_allowed
from .intake import take
from .operations import JSON, Operation

logger = logging.getLogger(__name__)

#: Which process asks for its flags.
PROCESS = "HTTP_" + uptake.HEADER.upper().replace("-", "_")


class _AnyAccept(BaseContentNegotiation):
    """There is one representation; what the client accepts does not change it."""

    def select_parser(self, request: Any, parsers: Any) -> Any:
        return None

    def select_renderer(
        self, request: Any, renderers: Sequence[BaseRenderer], format_suffix: str | None = None
    ) -> tuple[BaseRenderer, str]:
        return renderers[0], renderers[0].media_type or ""


class PublisherView(APIView):
    """What all operations share: the signature, problem details, and no traceback for anybody."""

    operation = ""
    authentication_classes = [SignatureAuthentication]
    permission_classes: list[Any] = []
    throttle_classes: list[Any] = []
    parser_classes: list[Any] = []
    renderer_classes = [JSONRenderer]
    content_negotiation_class = _AnyAccept

    def dispatch(self, request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponse:
        """Answer, and count the answer."""
        with metrics.REQUEST_SECONDS.labels(self.operation).time():
            response = super().dispatch(request, *args, **kwargs)
        for name, value in operations.fixed_headers().items():
            response[name] = value
        if isinstance(sender := getattr(self.request, "_user", None), Sender):
            sender.answered(response.status_code)
        metrics.REQUESTS.labels(self.operation, str(response.status_code)).inc()
        return response

    def initial(self, request: Request, *args: Any, **kwargs: Any) -> None:
        """Refuse a wrong method before asking who sends it."""
        if (request.method or "").lower() not in self.http_method_names:
            raise MethodNotAllowed(request.method or "")
        super().initial(request, *args, **kwargs)

    def handle_exception(self, exc: Exception) -> Any:
        """Turn every exception into problem details."""
        if isinstance(exc, MethodNotAllowed):
            exc = not_allowed(*(name.upper() for name in self.http_method_names))
        if not isinstance(exc, Problem):
            logger.exception("%s failed", self.operation, exc_info=exc)
            exc = Problem(500, "The publisher failed. Its log says why.", retry_after=30)
        return exc.response()


class _EventsView(PublisherView):
    """Takes events; each operation is one of these."""

    http_method_names = ["post"]
    does: Operation

    def _take(self, request: Request) -> HttpResponse:
        form = self.does.form_of(request.META.get("CONTENT_TYPE") or "")
        body = read_body(request._request, self.does.limit, request.user.check_body)
        events = self.does.events_in(body, form)
        http = self.does.forwarded(request.META, request.user.consumer_id)
        parent = {
            name: request.META.get(f"HTTP_{name.upper()}") for name in ("traceparent", "tracestate")
        }
        with tracing.span("publish", kind="server", parent=parent, events=len(events)):
            results = take(events, http, request.user, time.time_ns() // 1000, batch=self.does.many)
        content = self.does.answer(results, request.user)
        if not content:
            return HttpResponse(status=204)
        return HttpResponse(content, content_type=JSON)


class EventView(_EventsView):
    """Take one event."""

    operation = operations.EVENT.name
    does = operations.EVENT

    @extend_schema(**contract.EVENT)
    def post(self, request: Request) -> HttpResponse:
        """Take one event; the answer says where it is durable."""
        return self._take(request)


class LegacyEventView(_EventsView):
    """Take one event, as the system before this one did."""

    operation = operations.LEGACY.name
    does = operations.LEGACY

    @extend_schema(**contract.LEGACY)
    def post(self, request: Request) -> HttpResponse:
        """Take one event; nothing is said but that it is durable."""
        return self._take(request)


class BatchView(_EventsView):
    """Take many events."""

    operation = operations.BATCH.name
    does = operations.BATCH

    @extend_schema(**contract.BATCH)
    def post(self, request: Request) -> HttpResponse:
        """Take many events; the answer has one item for each, in order."""
        return self._take(request)


_flags = FlagsCache()
_board = Board()


class ConfigView(PublisherView):
    """Hand out one service's capture flags and rules."""

    operation = "config"
    http_method_names = ["get"]

    @extend_schema(**contract.CONFIG)
    def get(self, request: Request, service_name: str) -> HttpResponse:
        """The capture policy of a service that keeps none of its own."""
        if not request.user.may_publish_for(service_name):
            raise Problem(403, "This consumer may not read this service's flags.")
        asked_for = request.META.get("HTTP_IF_NONE_MATCH") or ""
        _board.heard(service_name, asked_for, request.META.get(PROCESS, ""))
        try:
            content, etag = _flags.get(service_name)
        except Exception as error:
            raise Problem(503, "The flags cannot be read now.", retry_after=5) from error
        response: HttpResponse
        if matches(asked_for, etag):
            response = HttpResponseNotModified()
        else:
            response = HttpResponse(content, content_type=JSON)
        response["ETag"] = etag
        patch_cache_control(response, private=True, no_cache=True)
        return response


def _reconfigure(*, setting: str, **kwargs: Any) -> None:
    if setting == PublisherSettings.prefix:
        _flags.clear()


setting_changed.connect(_reconfigure)
