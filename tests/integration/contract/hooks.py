"""What schemathesis is told of this API; it loads this file in its own process.

Requests are signed as a consumer would sign them; and a check of our own says more than the
general ones: in a batch, what fits the contract is taken and what does not is not, item by item.
"""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import schemathesis

from audit_logging.signing import Signer

_signer = Signer(os.environ["CONTRACT_CONSUMER"], "1", Path(os.environ["CONTRACT_KEY"]))
_DOCUMENT = json.loads(Path(os.environ["CONTRACT_DOCUMENT"]).read_text())
_ITEM = jsonschema.Draft202012Validator(
    {
        **_DOCUMENT,
        "anyOf": [
            {"$ref": "#/components/schemas/LogEvent"},
            {"$ref": "#/components/schemas/ProducerRecord"},
        ],
    },
    format_checker=jsonschema.FormatChecker(["uuid"]),
)


_LATEST = _DOCUMENT["components"]["schemas"]["LogEvent"]["properties"]["request_ts"]["maximum"]
_TODAY = int(time.time())


def _times() -> Iterator[int]:
    last = 0
    while True:
        # No two requests have the same signature.
        last = max(last + 1, int(time.time() * 1000))
        yield last


_lock = threading.Lock()
_clock = _times()


@schemathesis.auth(refresh_interval=None)
class Signature:
    """The four headers, new for each request."""

    def get(self, case: schemathesis.Case, context: schemathesis.AuthContext) -> dict[str, str]:
        with _lock:
            now = next(_clock)
        return dict(_signer.headers(now))

    def set(
        self, case: schemathesis.Case, data: dict[str, str], context: schemathesis.AuthContext
    ) -> None:
        case.headers.update(data)


@schemathesis.serializer("application/x-ndjson")
def ndjson(context: schemathesis.SerializationContext, value: Any) -> bytes:
    """Text is sent as it is."""
    text = value if isinstance(value, str) else json.dumps(value)
    return text.encode(errors="surrogatepass")


@schemathesis.hook
def before_call(
    context: schemathesis.HookContext, case: schemathesis.Case, kwargs: dict[str, Any]
) -> None:
    """Two things that a schema cannot say: what is too far ahead today, and that an integer is
    written as one."""
    if isinstance(case.body, dict):
        case.body = _as_sent(case.body)


def _as_sent(event: dict[str, Any]) -> dict[str, Any]:
    sent = dict(event)
    requested = sent.get("request_ts")
    if isinstance(requested, (int, float)) and _TODAY < requested <= _LATEST:
        sent["request_ts"] = _TODAY
    for name in ("response_code", "request_size", "response_size", "seq"):
        value = sent.get(name)
        if isinstance(value, float) and value.is_integer():
            sent[name] = int(value)
    return sent


@schemathesis.check
def batch_items(
    context: schemathesis.CheckContext, response: schemathesis.Response, case: schemathesis.Case
) -> None:
    """One answer for each item, and each is what the contract says of the item."""
    if response.status_code != 200 or not case.operation.path.endswith(":batch"):
        return
    sent = response.request.body or b""
    if "ndjson" in case.media_type:
        items = [line for line in sent.split(b"\n") if line.strip()]
        values: list[Any] = []
    else:
        items = values = json.loads(sent)
    answers = json.loads(response.content)["items"]
    assert len(answers) == len(items), f"{len(items)} items, {len(answers)} answers"
    for value, answer in zip(values, answers, strict=False):
        problem = next(iter(_ITEM.iter_errors(value)), None)
        taken = answer["status"] in ("published", "spooled")
        assert (answer["error"] is None) == taken, answer
        if taken:
            assert problem is None, f"taken, but: {problem.message}"  # type: ignore[union-attr]
        elif problem is None:
            assert _is_no_matter_of_schema(value, answer["error"]), f"{value!r}: {answer}"


def _is_no_matter_of_schema(value: Any, error: dict[str, str]) -> bool:
    if error["code"] in ("odd-time", "too-large"):
        return True
    if any(isinstance(each, float) and each.is_integer() for each in _numbers(value)):
        # To a schema, 1.0 is an integer.
        return True
    # A schema counts characters, a header has bytes.
    return error["field"] in ("site_id", "headers.wm-site-id")


def _numbers(value: dict[str, Any]) -> Iterator[Any]:
    for each in value.values():
        yield from each.values() if isinstance(each, dict) else (each,)
