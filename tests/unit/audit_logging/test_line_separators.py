"""A batch is split at newlines alone: JSON may hold other things that Python calls line ends."""

from __future__ import annotations

import json
from pathlib import Path

from audit_logging.batch import Batch, unpack
from audit_logging.conf import LoggingSettings
from audit_logging.delivery import Delivered, Deliverer
from audit_logging.exceptions import RetryLater
from tests.unit.audit_logging.test_delivery import give

EVENTS = [
    json.dumps({"request_body": f"one{separator}two"}, ensure_ascii=False)
    for separator in ("\u2028", "\u2029", "\x85")
]


class Recorder:
    """A publisher that keeps what it is sent, or is away."""

    def __init__(self) -> None:
        self.sent: list[list[str]] = []
        self.away = False

    def send(self, batch: Batch) -> Delivered:
        if self.away:
            raise RetryLater("away")
        self.sent.append(unpack(batch.packed))
        return Delivered(stored={"published": batch.count})


def deliverer(publisher: Recorder, folder: Path) -> Deliverer:
    options = LoggingSettings(environ={"AUDIT_LOGGING_DATA_DIR": str(folder)})
    return Deliverer(publisher, options, sleep=lambda seconds: None)


def test_events_with_unicode_line_separators_are_sent_whole(tmp_path: Path) -> None:
    publisher = Recorder()
    give(deliverer(publisher, tmp_path), EVENTS)
    assert publisher.sent == [EVENTS]


def test_and_from_the_spool_too(tmp_path: Path) -> None:
    publisher = Recorder()
    under_test = deliverer(publisher, tmp_path)
    publisher.away = True
    give(under_test, EVENTS)
    under_test.stop()
    publisher.away = False
    under_test.breaker.succeeded()
    while under_test.drain_step() == 0.0:
        pass
    assert publisher.sent == [EVENTS]
