"""Examinations side by side, each with its time, told in order as they are done."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from django.db import DatabaseError, connections

from .examinations import Asked, Examination, Finding, failure
from .hiding import scrub


@dataclass
class Report:
    """What one examination came to.

    :ivar seconds: how long it took.
    """

    examination: Examination
    findings: list[Finding] = field(default_factory=list)
    seconds: float = 0.0


class _Running:
    """One examination on its thread."""

    def __init__(self, examination: Examination, asked: Asked) -> None:
        self.examination = examination
        self._asked = asked
        self._findings: list[Finding] = []
        self._began = time.monotonic()
        self._ended = 0.0
        # A daemon: what hangs must not keep the process from its end.
        self._thread = threading.Thread(target=self._run, name="audit doctor", daemon=True)
        self._thread.start()

    def report(self) -> Report:
        """Wait for its end, or for the end of its time."""
        seconds = self.examination.seconds
        self._thread.join(max(0.0, self._began + seconds - time.monotonic()))
        late = self._thread.is_alive()
        # A copy: a thread that wakes up later changes nothing that was told.
        findings = list(self._findings)
        if late:
            findings.append(
                failure(
                    f"No answer within {seconds:g} s.",
                    "Look at what the other lines of this group say, and at the network between.",
                )
            )
        took = (time.monotonic() if late else self._ended) - self._began
        return Report(self.examination, [_clean(each) for each in findings], took)

    def _run(self) -> None:
        try:
            for finding in self.examination.function(self._asked):
                self._findings.append(finding)
        except BaseException as error:  # noqa: BLE001 - also what would end a thread in silence
            text = " ".join(str(error).split())[:500]
            cure = "Mend what the message names."
            if isinstance(error, DatabaseError):
                cure = "Look at what is said of the database; perhaps run manage.py migrate."
            self._findings.append(failure(f"{type(error).__name__}: {text}", cure))
        finally:
            self._ended = time.monotonic()
            connections.close_all()


def _clean(finding: Finding) -> Finding:
    return Finding(finding.level, scrub(finding.message), scrub(finding.cure), finding.id)


def run(examinations: Sequence[Examination], asked: Asked) -> Iterator[Report]:
    """Start all, and yield their reports in order; those that do not apply have no findings."""
    running = [_Running(each, asked) for each in examinations]
    for each in running:
        yield each.report()
