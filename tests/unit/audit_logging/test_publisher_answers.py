"""What a log line says of an answer that is not the publisher's."""

from __future__ import annotations

import urllib3

from audit_logging.publisher_client import _Answer


def said(body: bytes, status: int = 404) -> str:
    return _Answer(urllib3.HTTPResponse(status=status), body).problem()


def test_a_page_becomes_one_short_line_without_its_tags() -> None:
    page = (
        b"<!DOCTYPE html>\n<html><head><style>body { color: red }</style>\n"
        b"<script>alert('x')</script><title>Not Found</title></head>\n<body class='a'>\n"
        b"<h1>Not Found</h1>\n<p>The requested resource was not found" + b" here" * 200
    )
    line = said(page)
    assert line.startswith("the publisher answered 404: Not Found Not Found The requested resource")
    assert "<" not in line
    assert "color" not in line
    assert "alert" not in line
    assert "\n" not in line
    assert len(line) <= len("the publisher answered 404: ") + 200


def test_what_the_publisher_says_itself_stays_as_it_is() -> None:
    body = b'{"title": "Bad", "detail": "<script> is no field", "more": "' + b"x" * 300 + b'"}'
    assert said(body, 400) == f"the publisher answered 400: {body.decode()}"
