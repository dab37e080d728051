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
    """Callers that ask for one item after the other; what was answered stands in `answered`."""

    def __init__(self, served: Served, callers: int = 4) -> None:
        self._served = served
        self._numbers = itertools.count()
        self._goes_on = threading.Event()
        self._goes_on.set()
        self.answered: set[str] = set()
        self.asked: set[str] = set()
        self._threads = [threading.Thread(target=self._ask) for _ in range(callers)]
        for thread in self._threads:
            thread.start()

    def _ask(self) -> None:
        while self._goes_on.is_set():
            case = f"load-{next(self._numbers)}"
            self.asked.add(case)
            try:
                answer = self._served.get(f"/items/1?case={case}")
            except OSError:
                continue  # nobody listens at the moment
            if answer.status == 201:
                self.answered.add(case)

    def reach(self, more: int) -> None:
        """Return when so many more were answered."""
        goal = len(self.answered) + more
        eventually(lambda: len(self.answered) >= goal, 30, lambda: self._served.tail_log())

    def end(self) -> set[str]:
        """Stop asking; return the cases that were answered."""
        self._goes_on.clear()
        for thread in self._threads:
            thread.join(60)
        return self.answered


def cases(events: Iterable[dict[str, Any]]) -> Counter[str]:
    """How often each case was recorded."""
    return Counter(event["path"].rpartition("case=")[2] for event in events)
