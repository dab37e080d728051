"""Callers of a server under test, and what became of their requests."""

from __future__ import annotations

import itertools
import threading
from collections import Counter
from collections.abc import Iterable
from typing import Any

from tests.integration.servers.kinds import Served
from tests.support import eventually


class Load:
    """Callers that ask for one item after the other, as long as the block lasts; what was answered
    stands in `answered`.

    :param target: what they ask for.
    """

    def __init__(self, served: Served, target: str = "/items/1", callers: int = 4) -> None:
        self._served = served
        self._target = target
        self._numbers = itertools.count()
        self._ended = threading.Event()
        self.answered: set[str] = set()
        self.asked: set[str] = set()
        self._threads = [threading.Thread(target=self._ask, daemon=True) for _ in range(callers)]

    def __enter__(self) -> Load:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        # Also after a failure: callers that go on would be in the way of every later test.
        self._ended.set()
        for thread in self._threads:
            thread.join(60)

    def _ask(self) -> None:
        while not self._ended.is_set():
            case = f"load-{next(self._numbers)}"
            self.asked.add(case)
            try:
                answer = self._served.get(f"{self._target}?case={case}")
            except OSError:
                # Nobody listens at the moment.
                self._ended.wait(0.01)
                continue
            if 200 <= answer.status < 300:
                self.answered.add(case)

    def reach(self, more: int) -> None:
        """Return when so many more were answered."""
        goal = len(self.answered) + more
        eventually(lambda: len(self.answered) >= goal, 30, lambda: self._served.tail_log())


def cases(events: Iterable[dict[str, Any]]) -> Counter[str]:
    """How often each case was recorded."""
    return Counter(event["path"].rpartition("case=")[2] for event in events)
