"""A log that an outage of hours does not flood."""

from __future__ import annotations

import logging

import pytest

from audit_logging.seldom import Seldom


def test_each_kind_once_in_a_while_and_how_often(caplog: pytest.LogCaptureFixture) -> None:
    now = [0.0]
    seldom = Seldom(logging.getLogger("audit_logging.test"), 10.0, clock=lambda: now[0])
    for n in range(5):
        seldom.say(logging.WARNING, "%s events wait", n)
    seldom.say(logging.ERROR, "something else")
    now[0] = 10.0
    seldom.say(logging.WARNING, "%s events wait", 5)
    now[0] = 20.0
    seldom.say(logging.WARNING, "%s events wait", 6)
    assert caplog.messages == [
        "0 events wait",
        "something else",
        "5 events wait (and 4 more times)",
        "6 events wait",
    ]
