"""Starts measured processes, tells them what to do in turn, and sums up what they say."""

from __future__ import annotations

import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from tests.services.processes import descendants

from . import contenders, peers
from .service import Spec

ROOT = Path(__file__).resolve().parents[2]
_LAST_WORDS = 2000
_WARM_UPS = 12


class Died(Exception):
    """A measured process ended; the message has its last words."""


class Process:
    """A measured process, and the file of what it logs."""

    def __init__(self, spec: Spec) -> None:
        self.spec = spec
        folder = Path(spec.folder)
        folder.mkdir(parents=True, exist_ok=True)
        self._log = folder / "log.txt"
        ours = contenders.contender(spec.contender).ours
        python = sys.executable if ours else str(peers.python())
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                [python, "-m", f"{__package__}.worker", spec.dump()],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                cwd=ROOT,
                env={
                    name: text
                    for name, text in os.environ.items()
                    if not name.startswith(("AUDIT_", "DJANGO_"))
                },
                text=True,
            )

    def wait(self) -> Self:
        """Wait until it can be told something."""
        assert self._process.stdout is not None
        if self._process.stdout.readline() != "ready\n":
            raise self._died()
        return self

    def tell(self, do: str, **how: Any) -> Any:
        """Tell it to do something; return its answer when it has."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.write(json.dumps({"do": do, **how}) + "\n")
            self._process.stdin.flush()
            answer = self._process.stdout.readline()
        except OSError as error:
            raise self._died() from error
        if not answer:
            raise self._died()
        return json.loads(answer)

    def warm_up(self) -> None:
        """Load it for a while: until ours has seen that it is busy, if it is."""
        ours = self.spec.recorded and contenders.contender(self.spec.contender).ours
        for _ in range(_WARM_UPS if ours else 1):
            self.tell("paced", requests=1000 if ours else 300, pause=0.002, seed=0)
            if descendants(self.pid):
                break

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    def stop(self) -> None:
        """End it."""
        assert self._process.stdin is not None
        with contextlib.suppress(OSError):
            self._process.stdin.close()
        try:
            self._process.wait(20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _died(self) -> Died:
        self._process.wait()
        words = self._log.read_text(errors="replace")[-_LAST_WORDS:]
        return Died(f"{self.spec.contender} ended with {self._process.returncode}:\n{words}")

    def __enter__(self) -> Self:
        return self.wait()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()


@contextlib.contextmanager
def folder() -> Iterator[Path]:
    """A folder on disk for the time of one measurement."""
    with tempfile.TemporaryDirectory(prefix="benchmark-", ignore_cleanup_errors=True) as name:
        yield Path(name)


@contextlib.contextmanager
def pair(spec: Spec) -> Iterator[tuple[Process, Process]]:
    """The bare service beside the recorded one, both ready."""
    bare = replace(spec, recorded=False, folder=f"{spec.folder}/bare")
    recorded = replace(spec, recorded=True, folder=f"{spec.folder}/recorded")
    with Process(bare) as first, Process(recorded) as second:
        yield first, second


@dataclass(frozen=True)
class Figure:
    """A figure measured once in each round: its median, and where the middle half of them lies."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, rounds: Sequence[float]) -> Figure:
        """Sum up one value for each round."""
        if len(rounds) < 2:
            return cls(rounds[0], rounds[0], rounds[0])
        low, _, high = statistics.quantiles(rounds, n=4, method="inclusive")
        return cls(statistics.median(rounds), low, high)

    def text(self, scale: float = 1.0, digits: int = 0, sign: str = "") -> str:
        """`median (low to high)`."""
        median, low, high = (
            f"{value * scale:{sign},.{digits}f}" for value in (self.median, self.low, self.high)
        )
        return f"{median} ({low} to {high})"


def quantile(values: Sequence[float], share: float) -> float:
    """The value that `share` of `values` do not exceed."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]
