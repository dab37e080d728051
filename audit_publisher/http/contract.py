"""The HTTP contract in words and schemas, from which the OpenAPI document is made."""

from __future__ import annotations

from typing import Any

from drf_spectacular.extensions import OpenApiAuthenticationExtension
from drf_spectacular.utils import OpenApiParameter

from audit_logging.fitting import LIMIT_HEADER

from ..names import CONTROL
from .problem_kinds import KINDS

#: What names and ids may hold.
NO_CONTROL = f"^[^{CONTROL.pattern[1:]}*$"
#: What a service's name may hold: what comes out of a record's key, and of a path, again.
NAME = f"^[^/{CONTROL.pattern[1:]}+$"

#: What a forwarded header may hold: UTF-8 without commas (two values that a proxy merged) and
#: without control characters. As servers hand it on, blanks around it apart.
HEADER_TEXT = r"^([!-+\--~]([ !-+\--~]*[!-+\--~])?)?$"


class _SignatureScheme(OpenApiAuthenticationExtension):
    target_class = "audit_publisher.authentication.SignatureAuthentication"
    # A name for each header: OpenAPI knows one header a scheme.
    name = ["consumer", "signedAt", "keyVersion", "signature", "signatureInput", "messageSignature"]

    def get_security_definition(self, auto_schema: Any) -> list[dict[str, str]]:
        return [
            {"type": "apiKey", "in": "header", "name": header, "description": description}
            for header, description in (SIGNATURE_HEADERS | MESSAGE_HEADERS).items()
        ]

    def get_security_requirement(self, auto_schema: Any) -> list[dict[str, list[Any]]]:
        return [
            {name: [] for name in self.name[:4]},
            {name: [] for name in ("consumer", "signatureInput", "messageSignature")},
        ]


#: The headers of a signed request. Also taken with underscores for hyphens.
SIGNATURE_HEADERS = {
    "WM-CONSUMER.ID": "Who sends; as registered. WM_CONSUMER.ID is the same header.",
    "WM-CONSUMER.INTIMESTAMP": "When it was signed, epoch milliseconds.",
    "WM-SEC.KEY-VERSION": "The version of the key it was signed with.",
    "WM-SEC.AUTH-SIGNATURE": "SHA256withRSA in base64 over consumer id, timestamp and key version, "
    "each stripped and followed by a newline.",
}

#: The headers of a request whose message is signed; the consumer's id belongs to them, too.
MESSAGE_HEADERS = {
    "Signature-Input": "What the message signature (RFC 9421) covers: @method, @path, "
    "content-digest and more; with created, nonce, alg and keyid (consumer id:key version).",
    "Signature": "The message signature; Content-Digest (RFC 9530) goes with it.",
}

_HEADERS = [
    OpenApiParameter(
        name,
        {"type": "string", "maxLength": 256, "pattern": HEADER_TEXT},
        OpenApiParameter.HEADER,
        description=description,
    )
    for name, description in (
        ("WM-SITE-ID", "The site of events that name none themselves."),
        ("WM-QOS.CORRELATION-ID", "Travels with the events that have none themselves."),
        ("WM-SVC.NAME", "As WM-QOS.CORRELATION-ID."),
        ("WM-SVC.VERSION", "As WM-QOS.CORRELATION-ID."),
        ("WM-SVC.ENV", "As WM-QOS.CORRELATION-ID."),
        ("traceparent", "W3C trace context of the delivery."),
    )
]


def _ref(name: str) -> dict[str, str]:
    return {"$ref": f"#/components/schemas/{name}"}


def _describe(status: int) -> str:
    kinds = [kind for kind in KINDS.values() if kind.status == status]
    return " ".join(f"`{kind.code}`: {kind.title}." for kind in kinds)


#: What each status means when it refuses a whole request.
PROBLEMS = {status: _describe(status) for status in {kind.status for kind in KINDS.values()}}

#: What it means when it does not.
DONE = {
    "200": "Done; the body says more.",
    "204": "The event is durable.",
    "304": "Nothing changed since the entity tag was given.",
}

#: What any operation may answer.
_ANY = (400, 401, 404, 405, 414, 417, 431, 500, 501, 503)
_RETRY_AFTER = {
    "Retry-After": {
        "description": "Seconds after which the same request may be sent again.",
        "schema": {"type": "integer", "minimum": 1},
    }
}
#: Headers of answers, by status.
ANSWER_HEADERS: dict[int, Any] = {
    401: {
        "WWW-Authenticate": {"description": "What is wanted.", "schema": {"type": "string"}},
    },
    405: {"Allow": {"description": "What is allowed.", "schema": {"type": "string"}}},
    409: _RETRY_AFTER,
    429: _RETRY_AFTER,
    500: _RETRY_AFTER,
    503: _RETRY_AFTER,
}


def _responses(success: dict[Any, Any], *problems: int) -> dict[Any, Any]:
    found: dict[Any, Any] = dict(success)
    for status in sorted({*_ANY, *problems}):
        found[(status, "application/problem+json")] = _ref("Problem")
    return found


#: What operations that take events may answer, too.
_EVENTS = (408, 409, 413, 415, 422, 429)
_ONCE = (
    " `request_id` is the idempotency key: an event that is sent again with the same one, after "
    "an answer that was lost or a failure, may be stored twice on the way and is one row in the "
    "lake. So send again whatever was not answered with 2xx and is `retryable`, unchanged."
)

EVENT: dict[str, Any] = {
    "operation_id": "publishEvent",
    "tags": ["events"],
    "summary": "Take one event",
    "description": "A 2xx answer means that the event is durable: `published` is acknowledged by "
    "a region of the event log, `spooled` is on the publisher's disk. Each answer of these "
    f"operations says in `{LIMIT_HEADER}` how many bytes an event may have." + _ONCE,
    "parameters": _HEADERS,
    "request": {"application/json": _ref("LogEvent")},
    "responses": _responses({(200, "application/json"): _ref("Published")}, *_EVENTS),
}
LEGACY: dict[str, Any] = {
    "operation_id": "logRequest",
    "tags": ["events"],
    "summary": "Take one event (legacy)",
    "description": "As publishEvent, but the answer to a durable event is empty." + _ONCE,
    "parameters": _HEADERS,
    "request": {"application/json": _ref("LogEvent")},
    "responses": _responses({204: None}, *_EVENTS),
}
BATCH: dict[str, Any] = {
    "operation_id": "publishBatch",
    "tags": ["events"],
    "summary": "Take many events",
    "description": "A JSON array, or one event a line as application/x-ndjson; either may be "
    "gzipped (Content-Encoding: gzip). Among them there may be producer records, by which a "
    "capture process says how many events it has numbered. The answer has one item for each, in "
    "order; only items with `retryable` may be sent again. A status other than 200 means that none "
    "was taken." + _ONCE,
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
    "responses": _responses({(200, "application/json"): _ref("BatchAnswer")}, *_EVENTS),
}
CONFIG: dict[str, Any] = {
    "operation_id": "captureConfig",
    "tags": ["flags"],
    "summary": "The capture flags of a service",
    "description": "Flags and endpoint rules as set in the admin. Ask with If-None-Match: 304 "
    "means that nothing changed.",
    "parameters": [
        OpenApiParameter(
            "service_name",
            {"type": "string", "minLength": 1, "maxLength": 200, "pattern": NAME},
            OpenApiParameter.PATH,
            description="The audited service.",
        ),
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
    "responses": _responses({(200, "application/json"): _ref("CaptureConfig"), 304: None}, 403),
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
            "error": {"oneOf": [_ref("ItemError"), {"type": "null"}]},
        },
    },
    "ItemError": {
        "type": "object",
        "required": ["field", "reason", "code"],
        "properties": {
            "field": {
                "type": "string",
                "description": 'The field at fault; "" for the whole event.',
            },
            "reason": {"type": "string"},
            "code": {"enum": sorted(KINDS)},
        },
    },
    "ProblemError": {
        "type": "object",
        "description": "What is at fault: a field of the body, or a header.",
        "required": ["reason"],
        "oneOf": [{"required": ["field"]}, {"required": ["header"]}],
        "properties": {
            "field": {"type": "string", "description": 'Its name; "" for the whole body.'},
            "header": {"type": "string", "description": "Its name."},
            "reason": {"type": "string"},
        },
    },
    "CaptureConfig": {
        "type": "object",
        "required": ["flags", "rules"],
        "properties": {
            "flags": {
                "type": "object",
                "description": "By name; what is not named has its default. See docs/flags.md.",
            },
            "rules": {
                "type": "array",
                "items": {"type": "object"},
                "description": "Endpoint rules; the first that matches counts.",
            },
        },
    },
    "Problem": {
        "type": "object",
        "description": "Why a whole request is refused (RFC 9457).",
        "required": ["type", "title", "status", "code", "detail", "retryable"],
        "properties": {
            "type": {
                "type": "string",
                "format": "uri-reference",
                "description": "Names the reason, and leads to its explanation; /v1/docs#code.",
            },
            "title": {"type": "string", "description": "The reason in words."},
            "status": {"type": "integer", "minimum": 400, "maximum": 599},
            "code": {
                "description": "The reason, for machines: stable.",
                "oneOf": [
                    {
                        "const": kind.code,
                        "title": kind.title,
                        "description": f"{kind.cause} {kind.cure}",
                    }
                    for kind in KINDS.values()
                ],
            },
            "detail": {"type": "string", "description": "What is wrong with this request."},
            "retryable": {
                "type": "boolean",
                "description": "Whether the same request may be sent again, after Retry-After.",
            },
            "error": _ref("ProblemError"),
        },
    },
}

#: What an operation's good answer leads to.
LINKS: dict[str, dict[str, Any]] = {
    "publishEvent": {
        "again": {
            "operationId": "publishEvent",
            "requestBody": "$request.body",
            "description": "The same event once more: one row in the lake.",
        },
        "flags": {
            "operationId": "captureConfig",
            "parameters": {"service_name": "$request.body#/service_name"},
            "description": "The capture flags of the service that the event is from.",
        },
    },
    "publishBatch": {
        "again": {
            "operationId": "publishBatch",
            "requestBody": "$request.body",
            "description": "The same events once more.",
        },
    },
    "captureConfig": {
        "unchanged": {
            "operationId": "captureConfig",
            "parameters": {
                "service_name": "$request.path.service_name",
                "If-None-Match": "$response.header.ETag",
            },
            "description": "304 as long as nothing changes.",
        },
    },
}
