"""The HTTP contract in words and schemas, from which the OpenAPI document is made."""

from __future__ import annotations

from typing import Any

from drf_spectacular.extensions import OpenApiAuthenticationExtension
from drf_spectacular.types import OpenApiTypes
from drf_spectacular.utils import OpenApiParameter


class _SignatureScheme(OpenApiAuthenticationExtension):
    target_class = "audit_publisher.authentication.SignatureAuthentication"
    name = "signature"

    def get_security_definition(self, auto_schema: Any) -> dict[str, str]:
        return {
            "type": "apiKey",
            "in": "header",
            "name": "WM-SEC.AUTH-SIGNATURE",
            "description": "With WM-CONSUMER.ID, WM-CONSUMER.INTIMESTAMP, WM-SEC.KEY-VERSION.",
        }


_HEADERS = [
    OpenApiParameter(
        name,
        str,
        OpenApiParameter.HEADER,
        required=required,
        description=description,
    )
    for name, required, description in (
        ("WM-CONSUMER.ID", True, "Who sends; as registered. WM_CONSUMER.ID is the same header."),
        ("WM-CONSUMER.INTIMESTAMP", True, "When it was signed, epoch milliseconds."),
        ("WM-SEC.KEY-VERSION", True, "The version of the key it was signed with."),
        (
            "WM-SEC.AUTH-SIGNATURE",
            True,
            "SHA256withRSA in base64 over consumer id, timestamp and key version, each stripped "
            "and followed by a newline.",
        ),
        ("WM-SITE-ID", False, "The site of events that name none themselves."),
        ("traceparent", False, "W3C trace context."),
    )
]


def _ref(name: str) -> dict[str, str]:
    return {"$ref": f"#/components/schemas/{name}"}


#: What each status means when it refuses a whole request.
PROBLEMS = {
    400: "Not JSON, or the body was cut short.",
    401: "The signature is missing or not good.",
    405: "Wrong method.",
    408: "The body did not arrive in time; send it again.",
    413: "Too large.",
    415: "A content type or encoding that is not taken.",
    422: "A field is not valid; `error` names it and the reason.",
    429: "Too much is waiting; send it again after Retry-After.",
    503: "No durable place takes it; send it again after Retry-After.",
}


def _responses(success: dict[Any, Any], *problems: int) -> dict[Any, Any]:
    found: dict[Any, Any] = dict(success)
    for status in problems or tuple(PROBLEMS):
        found[(status, "application/problem+json")] = _ref("Problem")
    return found


EVENT: dict[str, Any] = {
    "operation_id": "publishEvent",
    "tags": ["events"],
    "summary": "Take one event",
    "description": "A 2xx answer means that the event is durable: `published` is acknowledged by "
    "a region of the event log, `spooled` is on the publisher's disk.",
    "parameters": _HEADERS,
    "request": {"application/json": _ref("LogEvent")},
    "responses": _responses({(200, "application/json"): _ref("Published")}),
}
LEGACY: dict[str, Any] = {
    "operation_id": "logRequest",
    "tags": ["events"],
    "summary": "Take one event (legacy)",
    "description": "As publishEvent, but the answer to a durable event is empty.",
    "parameters": _HEADERS,
    "request": {"application/json": _ref("LogEvent")},
    "responses": _responses({204: None}),
}
BATCH: dict[str, Any] = {
    "operation_id": "publishBatch",
    "tags": ["events"],
    "summary": "Take many events",
    "description": "A JSON array, or one event a line as application/x-ndjson; either may be "
    "gzipped (Content-Encoding: gzip). Among them there may be producer records, by which a "
    "capture process says how many events it has numbered. The answer has one item for each, in "
    "order; only items with `retryable` may be sent again. A status other than 200 means that none "
    "was taken.",
    "parameters": _HEADERS,
    "request": {
        "application/json": {
            "type": "array",
            "items": {"anyOf": [_ref("LogEvent"), _ref("ProducerRecord")]},
        },
        "application/x-ndjson": {
            "type": "string",
            "description": "One LogEvent or ProducerRecord a line.",
        },
    },
    "responses": _responses({(200, "application/json"): _ref("BatchAnswer")}),
}
CONFIG: dict[str, Any] = {
    "operation_id": "captureConfig",
    "tags": ["flags"],
    "summary": "The capture flags of a service",
    "description": "Flags and endpoint rules as set in the admin. Ask with If-None-Match: 304 "
    "means that nothing changed.",
    "parameters": [
        *_HEADERS[:4],
        OpenApiParameter(
            "If-None-Match",
            str,
            OpenApiParameter.HEADER,
            description="The entity tag of the flags that the process has in force.",
        ),
        OpenApiParameter(
            "Audit-Process",
            str,
            OpenApiParameter.HEADER,
            description="Which process asks, for the admin to show who has taken a change up: "
            "host, pid, started (epoch seconds), version and, now and then, settings (JSON), "
            "encoded as a query string. What is not understood is ignored.",
        ),
    ],
    "request": None,
    "responses": _responses(
        {(200, "application/json"): OpenApiTypes.OBJECT, 304: None}, 401, 403, 405, 503
    ),
}

_ERROR = {
    "type": "object",
    "required": ["field", "reason"],
    "properties": {
        "field": {"type": "string", "description": 'The field at fault; "" for the whole event.'},
        "reason": {"type": "string"},
    },
}

#: Answers' schemas; the event's own is made from its msgspec type.
ANSWERS: dict[str, Any] = {
    "Published": {
        "type": "object",
        "required": ["status", "request_id"],
        "properties": {
            "status": {"enum": ["published", "spooled"]},
            "request_id": {"type": "string", "format": "uuid"},
            "region": {"type": "string", "description": "Where, if it is published."},
        },
    },
    "BatchAnswer": {
        "type": "object",
        "required": ["items"],
        "properties": {"items": {"type": "array", "items": _ref("BatchItem")}},
    },
    "BatchItem": {
        "type": "object",
        "required": ["request_id", "status", "region", "retryable", "error"],
        "properties": {
            "request_id": {"type": ["string", "null"]},
            "status": {"enum": ["published", "spooled", "rejected"]},
            "region": {"type": ["string", "null"]},
            "retryable": {"type": "boolean"},
            "error": {"oneOf": [_ref("FieldError"), {"type": "null"}]},
        },
    },
    "FieldError": _ERROR,
    "Problem": {
        "type": "object",
        "description": "Why a whole request is refused (RFC 9457).",
        "required": ["type", "title", "status", "detail", "retryable"],
        "properties": {
            "type": {"type": "string"},
            "title": {"type": "string"},
            "status": {"type": "integer"},
            "detail": {"type": "string"},
            "retryable": {
                "type": "boolean",
                "description": "Whether the same request may be sent again, after Retry-After.",
            },
            "error": _ref("FieldError"),
        },
    },
}
