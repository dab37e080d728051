"""Delivery reports that come while somebody gives up waiting for them."""

from __future__ import annotations

import threading

from audit_publisher.eventlog.kafka_producer import Submission
from audit_publisher.exceptions import RegionUnavailable


class Interrupted:
    """An error of librdkafka's, in whose reading another thread gets its turn."""

    def __init__(self, submission: Submission) -> None:
        self._submission = submission

    def fatal(self) -> bool:
        other = threading.Thread(target=self._submission.give_up, args=(1.0,))
        other.start()
        other.join()
        return False

    def name(self) -> str:
        return "_PURGE_QUEUE"

    def str(self) -> str:
        return "purged"

    def code(self) -> int:
        return -152


def test_a_failure_that_is_being_read_is_not_taken_for_durable() -> None:
    told: list[list[int]] = []
    submission = Submission("primary", 2, 0.0, lambda done: told.append(sorted(done.errors)))
    submission.expect(2)
    submission.report(0, Interrupted(submission), None)
    submission.report(1, None, None)
    assert told == [[0, 1]]
    assert isinstance(submission.errors[0], RegionUnavailable)


def test_what_was_acknowledged_is_durable_whoever_gives_up() -> None:
    told: list[list[int]] = []
    submission = Submission("primary", 3, 0.0, lambda done: told.append(sorted(done.errors)))
    submission.expect(3)
    submission.report(1, None, None)
    submission.give_up(1.0)
    submission.report(2, None, None)
    assert told == [[0, 2]]
