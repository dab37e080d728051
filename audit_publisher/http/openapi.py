"""The OpenAPI document: made from the views and from the event's type, served and committed."""

from __future__ import annotations

import json
import threading
from functools import cache
from pathlib import Path
from typing import Any

import msgspec
from django.http import HttpRequest, HttpResponse
from django.shortcuts import render

from ..codec import SCHEMA_PATH
from ..producer_records import ProducerRecord
from ..serializers import EARLIEST, LATEST, WITHOUT_CONTROL, LogEvent
from .contract import (
    ANSWER_HEADERS,
    ANSWERS,
    DONE,
    LINKS,
    MESSAGE_HEADERS,
    NAME,
    NO_CONTROL,
    PROBLEMS,
    SIGNATURE_HEADERS,
)
from .problem_kinds import KINDS

#: The committed copy; `manage.py audit_openapi` writes it.
DOCUMENT_PATH = Path(__file__).parents[1] / "openapi.json"


# The generator loads its extensions at first use, and two threads would see half of them.
_generating = threading.Lock()


def document() -> dict[str, Any]:
    """The document, OpenAPI 3.1; made once."""
    with _generating:
        return _document()


@cache
def _document() -> dict[str, Any]:
    from drf_spectacular.generators import SchemaGenerator

    from ..urls import operations

    generated = SchemaGenerator(patterns=operations).get_schema(request=None, public=True)
    made: dict[str, Any] = json.loads(json.dumps(generated))
    made["openapi"] = "3.1.0"
    made["info"] = {
        "title": "Audit publisher",
        "version": "1",
        "description": "Takes audit events; a 2xx answer means that they are durable. Every "
        "refusal is problem details (RFC 9457) with a stable `code`.",
    }
    # The publisher's own address, whatever it is.
    made["servers"] = [{"url": "/"}]
    made["components"]["schemas"] = {
        "LogEvent": _event_schema(),
        "ProducerRecord": _producer_schema(),
        **ANSWERS,
    }
    for path in made["paths"].values():
        for operation in path.values():
            _complete(operation)
    return made


def _complete(operation: dict[str, Any]) -> None:
    """Add to an operation what the generator has no words for."""
    for status, response in operation["responses"].items():
        if int(status) in PROBLEMS:
            response["description"] = PROBLEMS[int(status)]
        else:
            response["description"] = DONE[status]
        if int(status) in ANSWER_HEADERS:
            response["headers"] = ANSWER_HEADERS[int(status)]
    if "requestBody" in operation:
        operation["requestBody"]["required"] = True
    links = LINKS.get(operation["operationId"])
    if links:
        operation["responses"]["200"]["links"] = links


def _event_schema() -> dict[str, Any]:
    _, components = msgspec.json.schema_components([LogEvent], ref_template="{name}")
    schema = dict(components["LogEvent"])
    described = {
        field["name"]: field["doc"] for field in json.loads(SCHEMA_PATH.read_text())["fields"]
    }
    for name, declared in schema["properties"].items():
        declared["description"] = described[name]
    properties = schema["properties"]
    for name in ("request_ts", "response_ts"):
        said = properties[name]["description"] + " Epoch seconds, whole or with a fraction."
        properties[name] = {
            "type": "number",
            "minimum": EARLIEST,
            "maximum": LATEST,
            "description": said,
        }
    properties["request_ts"]["description"] += (
        " Not longer ago than MAX_EVENT_AGE_DAYS, not further ahead than MAX_EVENT_AHEAD_DAYS."
    )
    for name in WITHOUT_CONTROL:
        kinds = properties[name].get("anyOf", [properties[name]])
        kinds[0]["pattern"] = NO_CONTROL
    properties["service_name"]["pattern"] = NAME
    properties["site_id"]["description"] += " At most 256 bytes in UTF-8."
    schema.pop("title", None)
    return schema


def _producer_schema() -> dict[str, Any]:
    _, components = msgspec.json.schema_components([ProducerRecord], ref_template="{name}")
    schema = dict(components["ProducerRecord"])
    schema.pop("title", None)
    properties = schema["properties"]
    properties["service_name"]["pattern"] = NAME
    properties["host"]["pattern"] = NO_CONTROL
    for name in ("started_at", "at"):
        properties[name] |= {"minimum": EARLIEST, "maximum": LATEST}
    return schema


@cache
def text() -> str:
    """The document as it is committed."""
    return json.dumps(document(), indent=2, sort_keys=True) + "\n"


def serve(request: HttpRequest) -> HttpResponse:
    """GET /v1/openapi.json."""
    return HttpResponse(text(), content_type="application/json")


#: The page's, by what is looked for most.
_ORDER = ["publishEvent", "publishBatch", "logRequest", "captureConfig"]


def page(request: HttpRequest) -> HttpResponse:
    """GET /v1/docs: the same for people, without scripts or anything from another host."""
    made = document()
    operations = [
        {
            **operation,
            "method": method.upper(),
            "path": path,
            "description": operation["description"].replace("`", ""),
            "good": [
                (status, response["description"])
                for status, response in operation["responses"].items()
                if int(status) < 400
            ],
            "refusals": [
                (status, [kind.code for kind in KINDS.values() if kind.status == int(status)])
                for status in operation["responses"]
                if int(status) >= 400
            ],
        }
        for path, methods in made["paths"].items()
        for method, operation in methods.items()
    ]
    operations.sort(key=lambda each: _ORDER.index(each["operationId"]))
    event = made["components"]["schemas"]["LogEvent"]
    fields = [
        {
            "name": name,
            "required": name in event["required"],
            "type": _type_of(declared),
            "description": declared["description"],
        }
        for name, declared in event["properties"].items()
    ]
    context = {
        "about": made["info"]["description"].replace("`", ""),
        "document": made,
        "operations": operations,
        "signature": SIGNATURE_HEADERS,
        "message": MESSAGE_HEADERS,
        "address": f"{request.scheme}://{request.get_host()}",
        "fields": fields,
        "problems": KINDS.values(),
    }
    return render(request, "audit_publisher/docs.html", context)


def _type_of(declared: dict[str, Any]) -> str:
    options = declared.get("anyOf", [declared])
    names = []
    for option in options:
        if "enum" in option:
            names.append(" | ".join(str(value) for value in option["enum"] if value is not None))
        else:
            names.append(option.get("format") or option.get("type", ""))
    return " or ".join(dict.fromkeys(name for name in names if name))
