"""Answers that refuse a whole request: problem details (RFC 9457) with a `retryable` member."""

from __future__ import annotations

from typing import Any

import msgspec
from django.http import HttpResponse

from .problem_kinds import document, kind_of

CONTENT_TYPE = "application/problem+json"


class Problem(Exception):
    """A request is refused.

    :param status: HTTP status.
    :param detail: a sentence for the sender: what is wrong, and what to do.
    :param code: which of the KINDS it is; without it, what the status or the reason says.
    :param field: the body's field at fault, if there is one; "" is the body as a whole.
    :param header: the request header at fault, if there is one.
    :param retry_after: seconds after which the same request may be sent again; None: never.
    :param headers: further response headers.
    :param reason: label for metrics.
    """

    def __init__(
        self,
        status: int,
        detail: str,
        *,
        code: str = "",
        field: str | None = None,
        header: str | None = None,
        retry_after: int | None = None,
        headers: dict[str, str] | None = None,
        reason: str = "",
    ) -> None:
        super().__init__(detail)
        self.status = status
        self.detail = detail
        self.kind = kind_of(status, code, reason)
        self.field = field
        self.header = header
        self.retry_after = retry_after
        self.headers = headers or {}
        self.reason = reason

    def document(self) -> dict[str, Any]:
        """The answer's body."""
        return document(
            self.kind,
            self.detail,
            status=self.status,
            retryable=self.retry_after is not None,
            field=self.field,
            header=self.header,
        )

    def content(self) -> bytes:
        """The answer's body, as it is sent."""
        return msgspec.json.encode(self.document())

    def all_headers(self) -> dict[str, str]:
        """The answer's headers, but for those of its body."""
        if self.retry_after is None:
            return self.headers
        return {"Retry-After": str(self.retry_after), **self.headers}

    def response(self) -> HttpResponse:
        """The answer."""
        response = HttpResponse(self.content(), status=self.status, content_type=CONTENT_TYPE)
        for name, value in self.all_headers().items():
            response[name] = value
        return response


def not_allowed(*methods: str) -> Problem:
    """The path has no such method, but these."""
    allowed = ", ".join(methods)
    return Problem(405, f"Use {allowed}.", headers={"Allow": allowed})


def answer(body: Any, status: int = 200) -> HttpResponse:
    """A JSON answer."""
    return HttpResponse(msgspec.json.encode(body), status=status, content_type="application/json")
