"""The metrics of several processes in plain files, for where prometheus_client does not keep them.

Each process writes what it counted to one file of its own; whoever is asked adds them up. What a
process that has ended counted stays counted; its gauges, such as the length of its buffer, do not.
"""

from __future__ import annotations

import json
import logging
import os
import secrets
import threading
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

logger = logging.getLogger(__name__)

_SUFFIX = ".audit-metrics.json"
_GONE = "gone"

Key = tuple[str, ...]


class Counts:
    """What was counted: by one process, or by several together.

    :ivar counters: by metric and labels.
    :ivar gauges: likewise, each with the time (epoch seconds) it was set.
    :ivar histograms: by metric: observations in each bucket, and their sum.
    :ivar holds: names of files whose counts are among these: they count no more.
    """

    def __init__(self) -> None:
        self.counters: dict[str, dict[Key, float]] = {}
        self.gauges: dict[str, dict[Key, tuple[float, float]]] = {}
        self.histograms: dict[str, tuple[list[int], float]] = {}
        self.holds: list[str] = []

    def add(self, other: Counts, merge: Callable[[str], str] | None) -> None:
        """Add what another process counted.

        :param merge: how a gauge's values become one, by its name; None leaves gauges out.
        """
        for name, values in other.counters.items():
            mine = self.counters.setdefault(name, {})
            for key, value in values.items():
                mine[key] = mine.get(key, 0.0) + value
        for name, (counts, total) in other.histograms.items():
            before, sum_before = self.histograms.get(name, ([0] * len(counts), 0.0))
            if len(before) == len(counts):
                both = [one + two for one, two in zip(before, counts, strict=True)]
                self.histograms[name] = both, sum_before + total
        if merge is None:
            return
        for name, gauges in other.gauges.items():
            mine_too = self.gauges.setdefault(name, {})
            for key, (value, at) in gauges.items():
                old, old_at = mine_too.get(key, (value if "max" in merge(name) else 0.0, 0.0))
                if "sum" in merge(name):
                    value += old
                elif "max" in merge(name):
                    value = max(value, old)
                elif old_at > at:
                    value = old
                mine_too[key] = value, max(at, old_at)

    def dump(self) -> str:
        """Return them as JSON."""
        return json.dumps(
            {
                "counters": {
                    name: [[*key, value] for key, value in values.items()]
                    for name, values in self.counters.items()
                },
                "gauges": {
                    name: [[*key, value, at] for key, (value, at) in values.items()]
                    for name, values in self.gauges.items()
                },
                "histograms": self.histograms,
                "holds": self.holds,
            }
        )

    @classmethod
    def load(cls, text: str) -> Counts:
        """Read what :meth:`dump` wrote.

        :raises ValueError: it is nothing of the kind.
        """
        found = cls()
        try:
            document = json.loads(text)
            for name, rows in document["counters"].items():
                found.counters[name] = {tuple(row[:-1]): row[-1] for row in rows}
            for name, rows in document["gauges"].items():
                found.gauges[name] = {tuple(row[:-2]): (row[-2], row[-1]) for row in rows}
            for name, (counts, total) in document["histograms"].items():
                found.histograms[name] = list(counts), total
            found.holds = [str(name) for name in document.get("holds", ())]
        except (TypeError, KeyError, AttributeError, IndexError) as error:
            raise ValueError(f"no metrics: {error!r}") from error
        return found


class Files:
    """A folder of counts, one file for each process.

    :param folder: private, and there.
    :param clock: epoch seconds.
    """

    def __init__(self, folder: Path, clock: Callable[[], float] = time.time) -> None:
        self.folder = folder
        self._clock = clock
        self._lock = threading.Lock()
        self.forked()

    def forked(self) -> None:
        """Begin anew, in a file of this process's own."""
        self._own = Counts()
        self._changed = False
        self._name = f"{os.getpid()}-{secrets.token_hex(4)}{_SUFFIX}"
        self._pid = os.getpid()

    def take(self, metric: Any, key: Key, value: Any) -> None:
        """Take over a change of a metric; see metrics.py."""
        if self._pid != os.getpid():
            self.forked()
        self._changed = True
        if hasattr(metric, "bounds"):
            counts, total = metric.tally(value)
            change = Counts()
            change.histograms[metric.name] = counts, total
            self._own.add(change, None)
        elif hasattr(metric, "across"):
            self._own.gauges.setdefault(metric.name, {})[key] = value, self._clock()
        else:
            counters = self._own.counters.setdefault(metric.name, {})
            counters[key] = counters.get(key, 0.0) + value

    def write(self) -> None:
        """Write what changed, whole or not at all; a disk that fails is tried again later."""
        if not self._changed or self._pid != os.getpid():
            return
        self._changed = False
        try:
            self._put(self.folder / self._name, self._own)
        except OSError as error:
            self._changed = True
            logger.debug("the metrics could not be written: %s", error)

    @staticmethod
    def _put(path: Path, counts: Counts) -> None:
        new = path.with_suffix(".new")
        descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, "w") as file:
            file.write(counts.dump())
        new.replace(path)

    def read(self, metrics: Iterable[Any], *, tidy: bool = False) -> Counts:
        """Return what all processes counted together.

        :param tidy: put the files of processes that have ended into one; for a single caller.
        """
        across = {metric.name: getattr(metric, "across", "") for metric in metrics}
        with self._lock:
            total, gone, ended = Counts(), Counts(), []
            found = {}
            for path in sorted(self.folder.glob(f"*{_SUFFIX}")):
                try:
                    found[path] = Counts.load(path.read_text())
                except (OSError, ValueError):
                    # Of another version, or just replaced by somebody who tidies.
                    continue
            held = {name for counts in found.values() for name in counts.holds}
            for path, counts in found.items():
                if path.name in held:
                    # Whoever tidied was stopped before it was removed.
                    ended.append(path)
                    continue
                owner = path.name.partition("-")[0]
                if owner.isdigit() and alive(int(owner)):
                    total.add(counts, lambda name: across.get(name, ""))
                else:
                    gone.add(counts, lambda name: "mostrecent")
                    ended.append(path)
            # What is measured on the host, and not of a process, outlives who measured it.
            for name in [name for name in gone.gauges if across.get(name) != "mostrecent"]:
                del gone.gauges[name]
            if tidy and len(ended) > 1:
                self._tidy(gone, ended)
            total.add(gone, lambda name: across.get(name, ""))
        return total

    def _tidy(self, gone: Counts, ended: list[Path]) -> None:
        kept = self.folder / f"{_GONE}-{secrets.token_hex(4)}{_SUFFIX}"
        # Named in the sum: a kill before all of them are removed must not count them twice.
        gone.holds = [path.name for path in ended]
        try:
            self._put(kept, gone)
        except OSError:
            return
        for path in ended:
            path.unlink(missing_ok=True)


def alive(pid: int) -> bool:
    """Whether there is a process of that number."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True
