"""What an outbox says of batches that neither the broker nor the spool takes."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from audit_logging import outbox as module
from audit_logging.conf import LoggingSettings
from audit_logging.outbox import Outbox


@pytest.fixture
def full(options: Callable[..., LoggingSettings]) -> Outbox:
    """One whose spool lies where a file is in the way."""
    made = options()
    made.DATA_DIR.parent.mkdir(parents=True, exist_ok=True)
    made.DATA_DIR.write_text("")
    return Outbox(lambda batch, count: None, made)


def test_the_line_that_is_logged_gives_the_sum_since_the_last(
    full: Outbox, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [1000.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    for count in (3, 5, 7):
        full.keep(b"batch", count, "broker_down")
    now[0] += 11
    full.keep(b"batch", 2, "broker_down")
    now[0] += 11
    full.keep(b"batch", 1, "broker_down")
    said = [message.partition(":")[0] for message in caplog.messages]
    assert said == ["3 events are LOST", "14 events are LOST", "1 events are LOST"]


def test_a_producer_record_is_no_event(full: Outbox, caplog: pytest.LogCaptureFixture) -> None:
    full.keep(b"record", 0, "broker_down")
    (message,) = caplog.messages
    assert "LOST" not in message
    assert message.startswith("what this process has numbered is not told to the publisher: ")
