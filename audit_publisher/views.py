"""The publisher's operations: take one event, take a batch, hand out a service's flags."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from typing import Any

import msgspec
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
from audit_logging.fitting import LIMIT_HEADER

from . import contract, metrics
from .authentication import SignatureAuthentication
from .body import read_body
from .conf import PublisherSettings, conf
from .exceptions import AmbiguousHeader, InvalidHeader
from .flags import Board, FlagsCache, matches
from .intake import Result, error_of, problem_of, take
from .problems import Problem, answer, not_allowed
from .routing import TRACE, http_headers
from .serializers import split_array

logger = logging.getLogger(__name__)

JSON = "application/json"
NDJSON = "application/x-ndjson"
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
        # Each answer tells it, so that no sender needs a setting that must agree with ours.
        response[LIMIT_HEADER] = str(conf.MAX_EVENT_BYTES)
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


def _content_type(request: Request, *allowed: str) -> str:
    essence, _, parameters = (request.META.get("CONTENT_TYPE") or "").partition(";")
    essence = essence.strip().lower()
    charset = parameters.lower().partition("charset=")[2].strip(" \"'")
    if essence not in allowed:
        raise Problem(
            415,
            f"Send {' or '.join(allowed)}, not {essence[:100] or 'nothing'}.",
            header="Content-Type",
        )
    if charset not in {"", "utf-8", "utf8"}:
        raise Problem(415, "Send UTF-8.", header="Content-Type")
    return essence


def _take(
    request: Request, events: Sequence[bytes | msgspec.Raw], *, batch: bool = False
) -> list[Result]:
    try:
        http = http_headers(request.META, request.user.consumer_id)
    except AmbiguousHeader as error:
        raise Problem(400, str(error), code="ambiguous-header", header=error.header) from error
    except InvalidHeader as error:
        raise Problem(422, str(error), code="invalid-header", header=error.header) from error
    if batch:
        # That of the delivery, which says nothing of the events in it.
        http.pop(TRACE, None)
    with tracing.span("publish", kind="server", parent=_sent_along(request), events=len(events)):
        return take(events, http, request.user, time.time_ns() // 1000, batch=batch)


def _sent_along(request: Request) -> dict[str, str | None]:
    return {
        name: request.META.get(f"HTTP_{name.upper()}") for name in ("traceparent", "tracestate")
    }


def _take_one(request: Request) -> Result:
    _content_type(request, JSON)
    body = read_body(request._request, conf.MAX_EVENT_BYTES)
    (result,) = _take(request, [body])
    if result.outcome.status == "rejected":
        raise problem_of(result.outcome)
    return result


class EventView(PublisherView):
    """Take one event."""

    operation = "event"
    http_method_names = ["post"]

    @extend_schema(**contract.EVENT)
    def post(self, request: Request) -> HttpResponse:
        """Take one event; the answer says where it is durable."""
        result = _take_one(request)
        body = {"status": result.outcome.status, "request_id": result.request_id}
        if result.outcome.region is not None:
            body["region"] = result.outcome.region
        return answer(body)


class LegacyEventView(PublisherView):
    """Take one event, as the system before this one did."""

    operation = "legacy"
    http_method_names = ["post"]

    @extend_schema(**contract.LEGACY)
    def post(self, request: Request) -> HttpResponse:
        """Take one event; nothing is said but that it is durable."""
        _take_one(request)
        return HttpResponse(status=204)


class BatchView(PublisherView):
    """Take many events."""

    operation = "batch"
    http_method_names = ["post"]

    @extend_schema(**contract.BATCH)
    def post(self, request: Request) -> HttpResponse:
        """Take many events; the answer has one item for each, in order."""
        form = _content_type(request, JSON, NDJSON, "application/jsonl")
        body = read_body(request._request, conf.MAX_BATCH_BYTES)
        events: Sequence[bytes | msgspec.Raw]
        if form == JSON:
            try:
                events = split_array(body)
            except ValueError as error:
                raise Problem(400, str(error), code="not-json", field="") from error
        else:
            events = [line for line in body.split(b"\n") if line.strip()]
        if len(events) > conf.MAX_BATCH_EVENTS:
            raise Problem(
                413,
                f"{len(events):,} events; {conf.MAX_BATCH_EVENTS:,} are allowed in one batch.",
                code="too-many-events",
                field="",
            )
        results = _take(request, events, batch=True)
        if results and all(result.outcome.retryable for result in results):
            raise problem_of(results[0].outcome)
        return answer({"items": [_item(result) for result in results]})


def _item(result: Result) -> dict[str, Any]:
    return {
        "request_id": result.request_id,
        "status": result.outcome.status,
        "region": result.outcome.region,
        "retryable": result.outcome.retryable,
        "error": error_of(result.outcome),
    }


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
