"""Answers that refuse a whole request: problem details (RFC 9457) with a `retryable` member."""

from __future__ import annotations

from http import HTTPStatus
from typing import Any

import msgspec
from django.http import HttpResponse


class Problem(Exception):
    """A request is refused.

    :param status: HTTP status.
    :param detail: a sentence for the sender: what is wrong, and what to do.
    :param field: the field at fault, if there is one.
    :param retry_after: seconds after which the same request may be sent again; None: never.
    :param headers: further response headers.
    :param reason: label for metrics.
    """

    def __init__(
        self,
        status: int,
        detail: str,
        *,
        field: str | None = None,
        retry_after: int | None = None,
        headers: dict[str, str] | None = None,
        reason: str = "",
    ) -> None:
        super().__init__(detail)
        self.status = status
        self.detail = detail
        self.field = field
        self.retry_after = retry_after
        self.headers = headers or {}
        self.reason = reason

    def document(self) -> dict[str, Any]:
        """The answer's body."""
        body: dict[str, Any] = {
            "type": "about:blank",
            "title": HTTPStatus(self.status).phrase,
            "status": self.status,
            "detail": self.detail,
            "retryable": self.retry_after is not None,
        }
        if self.field is not None:
            body["error"] = {"field": self.field, "reason": self.detail}
        return body

    def response(self) -> HttpResponse:
        """The answer."""
        response = HttpResponse(
            msgspec.json.encode(self.document()),
            status=self.status,
            content_type="application/problem+json",
        )
        if self.retry_after is not None:
            response["Retry-After"] = str(self.retry_after)
        for name, value in self.headers.items():
            response[name] = value
        return response


def answer(body: Any, status: int = 200) -> HttpResponse:
    """A JSON answer."""
    return HttpResponse(msgspec.json.encode(body), status=status, content_type="application/json")
